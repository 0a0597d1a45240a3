"""What a model's checkpoint holds: written and read back."""

from typing import Any

import torch
from torch import Tensor

from splip.config import to_dict
from splip.errors import UserError
from splip.models import rotation
from splip.models.checkpoint import FORMAT, name_of

Model = Any  # a Retriever, which imports this module


def kept_buffers(model: Model) -> dict[str, Tensor]:
    """What a model has learned besides parameters: average patch embeddings, BatchNorm statistics, permutations."""
    kept = set(model.state_dict(keep_vars=True))
    return {name: b for name, b in model.named_buffers() if name in kept and not name.startswith("backbone.")}


def state_of(model: Model) -> dict[str, Any]:
    """What training changed, and what is needed to build the rest again."""
    return {
        "format": FORMAT,
        "config": to_dict(model.config),
        "classes": model.classes,
        "data": model.data,
        "backbone": model.backbone_identity,
        "trainable": {name: p.detach().cpu().clone() for name, p in model.trainable().items()},
        "buffers": {name: b.cpu().clone() for name, b in kept_buffers(model).items()},
    }


def restore(model: Model, state: dict[str, Any], source: object) -> None:
    """Load what :func:`state_of` returned.

    Raises:
        UserError: it is of another backbone, or holds other parameters.
    """
    if state["backbone"]["sha256"] != model.backbone_identity["sha256"]:
        ours, theirs = model.backbone_identity, state["backbone"]
        raise UserError(
            f"{source}: was trained on another backbone: {name_of(theirs)}, but this one is {name_of(ours)}"
        )
    if state["backbone"].get("quick_gelu", model.backbone.quick_gelu) != model.backbone.quick_gelu:
        raise UserError(f"{source}: was trained with another GELU than backbone.quick_gelu says")
    own, buffers = model.trainable(), kept_buffers(model)
    if set(own) != set(state["trainable"]):
        odd = sorted(set(own) ^ set(state["trainable"]))
        raise UserError(f"{source}: holds other parameters than this configuration, e.g. {odd[0]}")
    lacking = sorted(set(buffers) - set(state["buffers"]))
    if lacking:
        raise UserError(f"{source}: lacks {lacking[0]}")
    rotation.restore(model.backbone, model.rotation, state["buffers"], source)
    with torch.no_grad():
        for part, targets in (("trainable", own), ("buffers", buffers)):
            for name, target in targets.items():
                value = state[part][name]
                if value.shape != target.shape:
                    shapes = f"{list(value.shape)}, expected {list(target.shape)}"
                    raise UserError(f"{source}: {name} has shape {shapes}")
                if value.is_floating_point() != target.is_floating_point() or value.is_complex():
                    raise UserError(f"{source}: {name} holds {value.dtype}, expected {target.dtype}")
                target.copy_(value)
        model.data = state["data"]
