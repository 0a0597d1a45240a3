"""Checkpoint files: writing, reading, checking.

``best.safetensors`` and ``last.safetensors`` (:mod:`splip.models.tensors`) hold the tensors that training changed and,
as JSON, what is needed to build the rest again. Files of earlier versions, ``*.pt``, are read without running code.
"""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from splip.errors import UserError, short
from splip.images import archive
from splip.models import tensors

FORMAT = 2
PARTS = ("trainable", "buffers")


def name_of(identity: dict[str, Any]) -> str:
    """A backbone's identity, as :meth:`PromptedCLIP.identity` gives it, in words."""
    source = identity.get("pretrained")
    weights = f"random weights of seed {identity.get('seed')}" if source in (None, "random") else source
    return f"{identity['name']} ({weights}, sha256 {identity['sha256'][:12]})"


def write_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Replace a checkpoint file: whole, or not at all.

    Args:
        state: what :meth:`Retriever.checkpoint` returned, and further plain values. An optimiser's state may be among
            them, as ``optimiser``.
        path: by its ending .safetensors.

    Raises:
        UserError: it cannot be written.
    """
    facts = {key: value for key, value in state.items() if key not in (*PARTS, "optimiser")}
    facts |= {key: tensors.finite(value) for key, value in facts.items() if isinstance(value, float)}
    parts = {part: state[part] for part in PARTS}
    if "optimiser" in state:
        parts["optimiser"], facts["optimiser"] = tensors.flat_optimiser(state["optimiser"])
    tensors.save(path, parts, facts)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read and check a checkpoint file, without building its model."""
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    try:
        state = _read_tensors(path) if _is_new(path) else _read_pickle(path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: not a splip checkpoint, or damaged ({type(error).__name__})") from None
    if not isinstance(state, dict) or "trainable" not in state or type(state.get("format")) is not int:
        raise UserError(f"{path}: not a splip checkpoint")
    if state["format"] != FORMAT:
        raise UserError(f"{path}: checkpoint format {state['format']}, this version reads {FORMAT}")
    damage = _damage(state)
    if damage is not None:
        raise UserError(f"{path}: not a splip checkpoint, or damaged ({damage})")
    return state


def _is_new(path: Path) -> bool:
    return path.suffix == ".safetensors" or tensors.is_safetensors(path)


def _read_tensors(path: Path) -> dict[str, Any]:
    try:
        parts, state = tensors.read(path)
    except ValueError as error:
        what = "not a splip checkpoint, or damaged"
        raise UserError(f"{path}: {what} ({error}); weights of a backbone are named open_clip:NAME@FILE") from None
    if not set(parts) <= {*PARTS, "optimiser"}:
        raise UserError(f"{path}: not a splip checkpoint, or damaged (tensors of {short(sorted(parts))})")
    groups = state.get("optimiser")
    if groups is not None:
        state["optimiser"] = tensors.deep_optimiser(parts.get("optimiser", {}), groups)
    if "best" in state and state["best"] is None:
        state["best"] = -math.inf
    return state | {part: parts.get(part, {}) for part in PARTS}


def _read_pickle(path: Path) -> Any:
    archive.check_zip(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about files that it then refuses
        return torch.load(path, map_location="cpu", weights_only=True)


def _damage(state: dict[str, Any]) -> str | None:
    """What cannot be in a checkpoint, or None. Whether it fits its own configuration, :meth:`Retriever.restore` sees."""

    def words(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(word, str) for word in value)

    for part in ("config", "data", "backbone", "trainable", "buffers"):
        if not isinstance(state.get(part), dict) or not all(isinstance(key, str) for key in state[part]):
            return f"{part} is {short(state.get(part))}"
    untrained = isinstance(state["config"], dict) and state["config"].get("method") == "zero-shot"
    if not words(state.get("classes")) or not (state["classes"] or untrained):
        return f"classes are {short(state.get('classes'))}"
    for kind in ("seen", "validation", "unseen"):
        if not words(state["data"].get(kind)):
            return f"data.{kind} is {short(state['data'].get(kind))}"
    for key in ("name", "sha256"):
        if not isinstance(state["backbone"].get(key), str):
            return f"backbone.{key} is {short(state['backbone'].get(key))}"
    for part in PARTS:
        for name, value in state[part].items():
            if type(value) is not Tensor or value.layout != torch.strided or value.is_quantized or value.is_meta:
                return f"{name} is no plain tensor"
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                return f"{name} holds numbers that are not finite"
    return None


def pick_device(name: str) -> torch.device:
    """``auto``, or any device that torch knows and this machine has."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("only cpu and cuda can be used")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"no device {name}: {str(error).splitlines()[0]}") from None
    return device
