"""The axes of a backbone's vectors, turned so that the first components say most.

A pre-trained projection has its components in no order, and a method that leaves it alone cannot bring one into them: a
loss on first components (``loss.matryoshka``) then gains nothing. So it is turned before training, to the principal axes
of the training pictures. A rotation changes no cosine. It is folded into the projections of both towers, and kept.
"""

from typing import Any

import torch
from torch import Tensor, nn

from splip.errors import UserError
from splip.models.clip import PromptedCLIP
from splip.models.config import LossConfig
from splip.models.towers.clip import ClipViT

ORTHOGONAL = 1e-3  # what products of a rotation's rows may be off


def principal_axes(features: Tensor) -> Tensor:
    """The rotation that makes the first components of vectors approximate their products best, for any number of them.

    Args:
        features: ``[N, D]``, of any length.

    Returns:
        float64 ``[D, D]``, orthogonal; ``features @ axes`` have falling sums of squares.
    """
    whole = features.double().cpu()
    _, axes = torch.linalg.eigh(whole.T @ whole)
    axes = axes.flip(1)
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    return axes * torch.where(largest < 0, -1.0, 1.0)  # else a sign is the library's choice


def none(clip: PromptedCLIP, loss: LossConfig) -> Tensor | None:
    """The rotation of a model that is not turned yet, float32 ``[D, D]``; None: it is not to be.

    Raises:
        UserError: a tower has no last projection that could be turned.
    """
    if not (loss.matryoshka and loss.rotate):
        return None
    texts = None if clip.text_tower is None else clip.text
    if (
        not isinstance(clip.visual_tower, ClipViT)
        or clip.visual.proj is None
        or getattr(texts, "text_projection", None) is None
    ):
        raise UserError(f"{clip.config.name} has no last projection that can be turned: --loss.no-rotate")
    return torch.eye(clip.embed_dim)


@torch.no_grad()
def turn(clip: PromptedCLIP, rotation: Tensor, axes: Tensor) -> None:
    """Fold a rotation into both towers, besides those that are folded in already.

    Args:
        clip: its projections change.
        rotation: ``[D, D]``, what is folded in; changes, too.
        axes: ``[D, D]``, orthogonal.
    """
    axes = axes.to(rotation.device, torch.float32).double()  # as it is kept: a model that is loaded is turned alike
    rotation.copy_(rotation.double() @ axes)
    text = clip.text.text_projection
    for weight in (clip.visual.proj, text.weight.T if isinstance(text, nn.Linear) else text):
        weight.copy_(weight.double() @ axes)
    if isinstance(text, nn.Linear) and text.bias is not None:
        text.bias.copy_(text.bias.double() @ axes)


def restore(clip: PromptedCLIP, own: Tensor | None, buffers: dict[str, Any], source: object) -> None:
    """Turn a model, whose rotation is ``own``, as a checkpoint was turned, before anything else of it is loaded.

    Raises:
        UserError: what it holds is no rotation.
    """
    kept = buffers.get("rotation")
    if own is None or kept is None:  # that it lacks one is said where buffers are loaded
        return
    if not kept.is_floating_point() or kept.shape != own.shape:
        raise UserError(f"{source}: rotation is {kept.dtype} {list(kept.shape)}, expected {list(own.shape)}")
    before, axes = own.double(), kept.to(own.device).double()
    if float((axes.T @ axes - torch.eye(len(axes), device=own.device)).abs().max()) > ORTHOGONAL:
        raise UserError(f"{source}: rotation holds no rotation")
    turn(clip, own, before.T @ axes)
