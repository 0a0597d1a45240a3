"""DisAmb's elastic matching (*Modeling the Visual Ambiguity of Human Sketches*, CVPR 2026): ambiguous triplets ask for less.

Published, as far as it could be read (the abstract, and a summary of the paper; its code is not out): AmbiScore measures
by CLIP how ambiguous a pair of a sketch and a picture is, one sketch fitting several pictures; *elastic matching* adapts
the strength of the supervision to it; *purified matching* shuffles shapes and swaps textures under masks of another model.

Ours: the formula of the score, that it scales the margin or the weight of SpLIP's triplet, and linearly. Purified
matching is not here: it needs a model that makes masks.

    a(s, p+) = share of the photos that are none of the sketch's own and that the backbone, before any training,
               finds as near to s as p+, or nearer                     in [0, 1]: 0 tells p+ from all others
    w = 1 - e a,   e = loss.elastic
    L = mean of max(0, d(s, p+) - d(s, p-) + w mu)                     loss.elastic_scales: margin
    L = mean of w max(0, d(s, p+) - d(s, p-) + mu)                     loss.elastic_scales: weight

A share of ranks needs no temperature, whatever range a backbone's cosines have.

Sizes: B triplets, N photos, D embedding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from splip.errors import UserError
from splip.models.clip import PromptedCLIP
from splip.models.config import TrainConfig
from splip.train.losses import squared_distance


def ambiguity(sketch: Tensor, positive: Tensor, photos: Tensor, allowed: Tensor) -> Tensor:
    """a: how ambiguous each pair of a sketch and its photo is, ``[B]`` in [0, 1]; 0 where there is nothing to confuse it with.

    Args:
        sketch: ``[B, D]`` by the backbone before training, unit length; ``positive`` alike.
        photos: ``[N, D]``.
        allowed: ``[B, N]`` bool: photos that are none of the sketch's own.
    """
    as_near = sketch @ photos.T >= (sketch * positive).sum(dim=1, keepdim=True)
    return (as_near & allowed).sum(dim=1) / allowed.sum(dim=1).clamp(min=1)


def triplet(
    sketch: Tensor, positive: Tensor, negative: Tensor, margin: Tensor | float, strength: Tensor, scales: str
) -> Tensor:
    """The triplet loss whose margin, or weight, is scaled by ``strength``.

    Args:
        sketch: ``[B, D]``, ``positive`` and ``negative`` alike.
        margin: mu, ``[B]`` or one number.
        strength: w, ``[B]``.
        scales: "margin" or "weight".
    """
    relative = squared_distance(sketch, positive) - squared_distance(sketch, negative)
    if scales == "margin":
        return F.relu(relative + strength * margin).mean()
    return (strength * F.relu(relative + margin)).mean()


class Untrained:
    """The backbone as it was before training: a second copy, which nothing changes and no checkpoint holds.

    Args:
        config: of the model.
        identity: of its backbone, before training.

    Raises:
        UserError: the same settings build other weights now.
    """

    def __init__(self, config: TrainConfig, identity: dict[str, Any]) -> None:
        self.clip = PromptedCLIP(config.backbone).requires_grad_(False).eval()
        if self.clip.identity()["sha256"] != identity["sha256"]:
            raise UserError("loss.elastic: the backbone's weights are not those that the run began with")

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Unit-length features ``[N, D]`` of uint8 images ``[N, 3, S, S]``."""
        self.clip.to(images.device)
        return F.normalize(self.clip.encode_visual(self.clip.embed_patches(images)).float(), dim=-1)


def check(config: TrainConfig) -> None:
    """Refuse settings that elastic matching cannot work with.

    Raises:
        UserError: one line that names the setting.
    """
    loss = config.loss
    if not 0 <= loss.elastic <= 1:
        raise UserError(f"loss.elastic must be between 0 and 1, got {loss.elastic}")
    if loss.elastic and not loss.triplet:
        raise UserError("loss.elastic scales the triplet loss: loss.triplet must not be 0")
    if loss.elastic and config.train_backbone:
        raise UserError("loss.elastic asks the backbone before training what is ambiguous: not with train_backbone")
