"""DP-CLIP's idea (Gao et al., *Dual-Modal Prompting for Sketch-Based Image Retrieval*, arXiv 2404.18695): prompts made of a few
pictures of the category that is searched.

Published (abstract and appendix; its code is not out): a few pictures of the target category make category-adaptive prompt
tokens, by a transformer layer; the category's name makes scales of channels; patches of sketch and photo are matched;
LayerNorms are trained and the rest of CLIP stays. Its appendix has most of the gain from the scales.

Here: the prompts, at the input, the same for sketches and photos; and with ``prompts.channel_scales`` scales of a feature's
components by the category's text t, one matrix S that starts at 0: f' = f (1 + S t), at unit length again. Ours: all of that but
the idea; that the support are photos, in training those of the batch that were drawn as negatives, which are of the same
category; the layer, its sizes and where tokens start. Patches are not matched.

Whoever adapts to a category is told it: so the method is for the fine-grained setting, where a sketch searches among the
photos of its own class, and its numbers are no zero-shot numbers: **test classes are shown, with their labels**.
Where no category is known, in a gallery, the average photo of training stands for the support.

Sizes: B triplets, K support photos, P patches, n tokens, d_v width of the visual tower, G groups.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splip import distributed
from splip.errors import UserError
from splip.models.config import TrainConfig
from splip.models.registry import register
from splip.models.retriever import Conditions, Retriever

HEAD = 32  # width of an attention head


class OfImages(Conditions):
    """Conditions whose prompts are each image's own, and scales of its features ``[B, D]``."""

    scales: Tensor | None = None


class Adapted(NamedTuple):
    """What a category makes of the model."""

    prompts: list[Tensor]  # [n, d_v] for each prompted layer
    scales: Tensor | None  # [D]; None: as they are


class SupportPrompts(nn.Module):
    """n learned queries read the patches of a support: attention and MLP, both with LayerNorms in front.

    Args:
        width: d_v, a multiple of 32.
        tokens: n.
    """

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(tokens, width))
        nn.init.normal_(self.queries, std=1.0)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, width // HEAD, batch_first=True)
        self.norm_2 = nn.LayerNorm(width)
        self.widen, self.project = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, patches: Tensor, present: Tensor) -> Tensor:
        """Tokens ``[G, n, d_v]``.

        Args:
            patches: ``[G, N, d_v]`` of all pictures of each support; their order does not matter.
            present: ``[G, N]`` bool, those that count; at least one of each group.
        """
        queries, keys = self.queries.expand(len(patches), -1, -1), self.norm(patches)
        read, _ = self.attention(queries, keys, keys, key_padding_mask=~present, need_weights=False)
        tokens: Tensor = self.project(F.gelu(self.widen(self.norm_2(queries + read))))
        return tokens

    @torch.no_grad()
    def start_at(self, state: Tensor) -> None:
        """Move the tokens to around a state ``[d_v]`` of the visual tower."""
        self.project.bias.copy_(state)


def draw_support(labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """For each triplet up to ``size`` triplets of its class, itself first, then those that follow in the batch.

    Args:
        labels: ``[B]`` int64.

    Returns:
        ``(places [B, K] int64, whether they are of the class [B, K] bool)``, K at most B.
    """
    B = len(labels)
    place = torch.arange(B, device=labels.device)
    later = (place[None, :] - place[:, None]) % B
    order = torch.where(labels[:, None] == labels[None, :], later, B + later)
    nearest, places = order.sort(dim=1)
    return places[:, :size], nearest[:, :size] < B


@register("dp-clip")
class DualPrompt(Retriever):
    """Prompts at the visual input that a transformer layer makes of photos of the category, and LayerNorms."""

    title = "DP-CLIP's prompts"

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        if config.setting != "fine-grained":
            raise UserError(
                "method dp-clip is told the category that is searched, which is the answer where a class is looked for: "
                "it needs setting: fine-grained"
            )
        if config.prompts.depth == 0:
            raise UserError("method dp-clip without prompts is clip-ln: prompts.depth must not be 0")

    def make_prompts(self) -> None:
        self.backbone.need_prompts()
        width = self.backbone.visual_width
        if width % HEAD:
            raise UserError(
                f"method dp-clip needs a width that is a multiple of {HEAD}, and this backbone's is {width}"
            )
        self.support = SupportPrompts(width, self.config.prompts.visual_tokens)
        self.scales: nn.Linear | None = None
        if self.config.prompts.channel_scales:
            self.reads_texts = True
            self.backbone.need_words(self.config.method)
            self.scales = nn.Linear(self.backbone.embed_dim, self.backbone.embed_dim, bias=False)
            nn.init.zeros_(self.scales.weight)

    def begin(self, patches: Tensor, modality: Tensor) -> None:
        """Tokens start around the mean state of patches, where they do no harm."""
        if self.config.prompts.start == "patches":
            self.support.start_at(distributed.mean(self.backbone.patch_states(patches)[0]))

    def write_visual(self, modality: Tensor, summary: Any) -> list[Tensor]:
        """Where no category is known: the average photo is the support."""
        average = self.patch_mean[1:]
        tokens = self.support(average, average.new_ones(average.shape[:2], dtype=torch.bool))
        return [tokens.expand(len(modality), -1, -1)]

    def condition(self, patches: Tensor, modality: Tensor, mean: Tensor, labels: Tensor) -> Conditions:
        """Every image takes the prompts of its triplet's class; no gradient goes into the support."""
        B = len(labels) // 3
        places, present = draw_support(labels[:B], self.config.prompts.support)
        support = patches[2 * B : 3 * B].detach()[places].flatten(1, 2)
        tokens = self.support(support, present.repeat_interleave(self.backbone.patches, dim=1))
        # Fine-grained: all pictures of a triplet, the shuffled ones too, are of one class.
        times, texts = len(patches) // B, self.condition_modalities(mean).texts
        found = OfImages(texts, [tokens.repeat(times, 1, 1)])
        if self.scales is not None:
            choice = F.one_hot(labels[:B], texts.shape[1]).to(texts.dtype)
            found.scales = 1 + self.scales(choice @ texts[1].detach()).repeat(times, 1)
        return found

    def encode(self, patches: Tensor, modality: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        if not isinstance(conditions, OfImages):
            return super().encode(patches, modality, conditions)
        features, tokens = self.backbone.encode_visual_tokens(patches, conditions.prompts, self.visual_norm)
        return scaled(features, conditions.scales), tokens

    @torch.no_grad()
    def adapt(self, photos: Tensor, name: str) -> Adapted:
        """The model for a category that is known.

        Args:
            photos: ``[K, 3, S, S]`` uint8 of the category.
            name: its words.
        """
        patches = self.backbone.embed_patches(photos).flatten(0, 1)[None]
        prompts = [self.support(patches, patches.new_ones(patches.shape[:2], dtype=torch.bool))[0]]
        return Adapted(prompts, None if self.scales is None else 1 + self.scales(self.encode_text([name]))[0])

    @torch.no_grad()
    def encode_adapted(self, images: Tensor, adapted: Adapted) -> Tensor:
        """Unit-length features ``[B, D]`` of uint8 images ``[B, 3, S, S]`` of the category, sketches or photos."""
        patches = self.backbone.embed_patches(images)
        return scaled(self.backbone.encode_visual(patches, adapted.prompts, self.visual_norm), adapted.scales)


def scaled(features: Tensor, scales: Tensor | None) -> Tensor:
    """Features ``[B, D]`` at unit length, their components scaled, and at unit length again."""
    features = F.normalize(features.float(), dim=-1)
    return features if scales is None else F.normalize(features * scales, dim=-1)
