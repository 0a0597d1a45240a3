"""The baselines: the same model with other prompts, or none."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splip import distributed
from splip.data.trees import MODALITIES
from splip.errors import UserError
from splip.models.config import TrainConfig
from splip.models.prompts import CoupledPrompts, ModalityTokens
from splip.models.registry import register
from splip.models.retriever import Retriever


@register("zero-shot")
class ZeroShot(Retriever):
    """The backbone as it is: nothing is trained."""

    trains = False

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        if config.train_backbone:
            raise UserError("method zero-shot trains nothing: leave out --train-backbone")
        if config.train_also:
            raise UserError("method zero-shot trains nothing: leave out --train-also")
        if config.loss.matryoshka:
            raise UserError("method zero-shot trains nothing: leave out --loss.matryoshka")

    def trained(self) -> list[nn.Parameter]:
        return []


@register("clip-ln")
class ClipLayerNorm(Retriever):
    """LayerNorms are trained, and nothing else: what the base class does by itself."""


@register("clip-at")
class ClipAT(Retriever):
    """CLIP-AT (Sain et al., CVPR 2023): learned tokens at the visual input, a set for each modality, and LayerNorms."""

    def make_prompts(self) -> None:
        self.backbone.need_prompts()
        p = self.config.prompts
        self.modality_tokens = ModalityTokens(
            len(MODALITIES), self.backbone.visual_width, p.visual_tokens, p.visual_std
        )

    def write_visual(self, modality: Tensor, summary: object) -> list[Tensor]:
        tokens = self.modality_tokens.tokens
        choice = F.one_hot(modality, len(MODALITIES))
        return [torch.einsum("gm,mnd->gnd", choice.to(tokens.dtype), tokens)]


@register("vpt-deep")
class VPTDeep(Retriever):
    """VPT-Deep (Jia et al., ECCV 2022) for two modalities: learned tokens in each layer, a set for each, and LayerNorms.

    Nothing ties the tokens to words or to each other: what SpLIP's prompts of one modality can say, these can. They start
    around the mean state of patches, as SpLIP's do.
    """

    def make_prompts(self) -> None:
        self.backbone.need_prompts()
        depth, p = self.depth(self.backbone.visual_layers), self.config.prompts
        sizes = (len(MODALITIES), self.backbone.visual_width, p.visual_tokens)
        self.deep_tokens = nn.ModuleList([ModalityTokens(*sizes) for _ in range(depth)])

    @torch.no_grad()
    def begin(self, patches: Tensor, modality: Tensor) -> None:
        if self.config.prompts.start == "patches" and len(self.deep_tokens):
            states = self.backbone.patch_states(patches)[: len(self.deep_tokens)]
            state = distributed.mean(states.mean(dim=0))
            for tokens in self._layers():
                tokens.add_(state)

    def write_visual(self, modality: Tensor, summary: object) -> list[Tensor] | None:
        choice = F.one_hot(modality, len(MODALITIES))
        made = [torch.einsum("gm,mnd->gnd", choice.to(t.dtype), t) for t in self._layers()]
        return made or None

    def _layers(self) -> list[nn.Parameter]:
        return [layer.tokens for layer in self.deep_tokens if isinstance(layer, ModalityTokens)]


@register("maple")
class MaPLe(Retriever):
    """MaPLe (Khattak et al., CVPR 2023): learned text tokens in the first layers, linear maps of them as visual ones.

    Its recipe names a depth that smaller towers do not have: there it means all layers.
    """

    any_depth = True

    def make_prompts(self) -> None:
        p, clip = self.config.prompts, self.backbone
        self.coupled: CoupledPrompts | None = None
        if p.text_tokens and p.depth != 0:
            self.reads_texts = True
            self.backbone.need_prompts()
            self.backbone.need_words(self.config.method)
            depth = min(self.depth(clip.visual_layers), self.depth(clip.text_layers))
            first = self._first_words(p.text_tokens)
            self.coupled = CoupledPrompts(depth, p.text_tokens, clip.text_width, clip.visual_width, first)
            self.text_tokens = p.text_tokens

    def _first_words(self, tokens: int) -> Tensor:
        """Where the tokens start: the words of "a photo of a", as many as there are tokens."""
        ids = self.backbone.reader.word_ids(" ".join(["a photo of a"] * (1 + tokens // 4)), tokens)
        words: Tensor = self.backbone.text.token_embedding.weight[ids].detach()
        return words

    def write_text(self, groups: int, patches: Tensor | None) -> list[Tensor] | None:
        return None if self.coupled is None else [text.expand(groups, -1, -1) for text in self.coupled.text]

    def write_visual(self, modality: Tensor, summary: object) -> list[Tensor] | None:
        if self.coupled is None:
            return None
        return [prompt.expand(len(modality), -1, -1) for prompt in self.coupled.visual()]
