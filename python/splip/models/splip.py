"""SpLIP: prompts that each tower writes for the other (ECCV 2024, arXiv 2407.04207).

Sizes: C training classes, P patches, M text context, m and n prompt tokens, d_v and d_t widths, G groups of images
that share their texts, a and s tokens that the texts of a group share and that are their own.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from splip import distributed
from splip.data.trees import MODALITIES
from splip.errors import UserError
from splip.models.config import TrainConfig
from splip.models.prompts import LayersToVision, VisionToText, WordsToVision
from splip.models.registry import register
from splip.models.retriever import Retriever


class Pooled(NamedTuple):
    """A text layer's states over all classes: mean at [EOS] and mean over the words, both ``[G, d_t]``."""

    at_eos: Tensor
    over_words: Tensor


@register("splip")
class SpLIP(Retriever):
    """B_t writes text tokens of the patches, B_v visual tokens of the template's words, B_vt of the text layers.

    With ``conditioning: modality`` the prompts depend on the modality, not on the image: they are constants after
    training. With ``instance`` every image has its own texts and prompts.
    """

    title = "SpLIP"
    b_t: VisionToText | None
    b_v: WordsToVision | None
    b_vt: LayersToVision | None

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        if "{modality}" not in config.prompts.template:
            raise UserError(f"prompts.template must contain {{modality}}, got '{config.prompts.template}'")

    def make_prompts(self) -> None:
        p, clip = self.config.prompts, self.backbone
        d_v, d_t = clip.visual_width, clip.text_width
        self.per_image = p.conditioning == "instance"
        self.b_t = self.b_v = self.b_vt = None
        if p.depth == 0:
            return
        self.reads_texts = bool(p.text_tokens or p.words or p.layer_tokens)
        if self.reads_texts:
            self.backbone.need_prompts()
            self.backbone.need_words(self.config.method)
        if p.text_tokens:
            self.b_t = VisionToText(clip.patches, d_v, d_t, p.text_tokens, p.activation)
            self.text_tokens = p.text_tokens
        if p.words:
            self.b_v = WordsToVision(d_t, d_v, p.words_norm)
        if p.layer_tokens:
            self.b_vt = LayersToVision(d_t, d_v, p.layer_tokens, p.activation)

    def begin(self, patches: Tensor, modality: Tensor) -> None:
        """Tokens start where they do no harm, see :mod:`splip.models.prompts`."""
        p = self.config.prompts
        if self.b_t is not None and p.text_std is not None:
            self.b_t.start_at(self.average(patches, modality), p.text_std)
        visual = [module for module in (self.b_v, self.b_vt) if module is not None]
        if p.start == "patches" and visual:
            states = self.backbone.patch_states(patches)[: self.depth(self.backbone.visual_layers)]
            state = distributed.mean(states.mean(dim=0))
            for module in visual:
                module.start_at(state)

    def write_text(self, groups: int, patches: Tensor | None) -> list[Tensor] | None:
        """B_t: the same tokens before every text layer."""
        return None if self.b_t is None else [self.b_t(patches)] * self.depth(self.backbone.text_layers)

    def summarise(self, tokens: Tensor, shared: int, hidden: list[tuple[Tensor, Tensor]]) -> list[Pooled]:
        """What B_vt reads off every text layer."""
        if self.b_vt is None:
            return []
        (_, C, M), dtype = tokens.shape, hidden[0][0].dtype
        reader, position = self.backbone.reader, torch.arange(M, device=tokens.device)
        end, every = reader.end(tokens).unsqueeze(-1), self.config.prompts.pooling == "all"
        # The words proper: after [SOS] and the m slots, before [EOS].
        is_word = position <= end if every else (position >= reader.start + self.text_tokens) & (position < end)
        words = (is_word / is_word.sum(dim=2, keepdim=True) / C).to(dtype)
        ends = ((position == reader.pooled(tokens).unsqueeze(-1))[:, :, shared:] / C).to(dtype)
        first, own = words[:, :, :shared].sum(dim=1), words[:, :, shared:]
        pooled = []
        for start, rest in hidden:
            over = torch.einsum("ga,gad->gd", first, start) + torch.einsum("gcs,gcsd->gd", own, rest)
            pooled.append(Pooled(over if every else torch.einsum("gcs,gcsd->gd", ends, rest), over))
        return pooled

    def write_visual(self, modality: Tensor, summary: Any) -> list[Tensor] | None:
        """The template's words, the same before every layer, then the text layer's summary."""
        p = self.config.prompts
        parts: list[list[Tensor]] = [[] for _ in range(self.depth(self.backbone.visual_layers))]
        if self.b_v is not None:
            choice = F.one_hot(modality, len(MODALITIES))
            words = self.b_v(
                self.backbone.text.token_embedding(
                    self.word_ids[:, 0 if p.words_start else self.backbone.reader.start :]
                )
            )
            words = torch.einsum("gm,mnd->gnd", choice.to(words.dtype), words)
            for layer in parts:
                layer.append(words)
        if self.b_vt is not None and parts:
            summaries = [self.b_vt(*layer) for layer in summary]
            for number, part in enumerate(parts):
                # Towers of different depth: visual layer l takes text layer floor(l * L_t / L_v).
                part.append(summaries[number * len(summaries) // self.backbone.visual_layers])
        prompts = [torch.cat(part, dim=1) for part in parts if part]
        return prompts or None
