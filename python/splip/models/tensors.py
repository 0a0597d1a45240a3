"""Files of tensors and facts: safetensors, with one JSON text among its metadata. Reading one runs no code.

A tensor ``name`` of a part ``trainable`` stands in the file as ``trainable.name``; the facts, all that is no tensor,
are JSON under the metadata's key ``splip``. Any program that reads safetensors reads these files.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from splip import disk
from splip.errors import UserError

KEY = "splip"
LARGEST = 16 << 20  # bytes of a header: names and shapes of the tensors, and the facts
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
Parts = dict[str, dict[str, Tensor]]


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as these do: the length of a header, and a header."""
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32


def write(path: Path, parts: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
    """Replace a file, tensor by tensor: no second copy of all of them in memory.

    Args:
        path: is whole afterwards, or what it was before.
        parts: tensors of any device, by part and name.
        facts: plain values.

    Raises:
        ValueError: a fact is no plain value, or a tensor of a kind that the format does not know.
    """
    tensors = {f"{part}.{name}": t for part, some in parts.items() for name, t in some.items()}
    # As the library orders them: wide numbers first, so that every tensor is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {KEY: json.dumps(facts, allow_nan=False)}}
    at = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided:
            raise ValueError(f"{name} is {tensor.dtype}, {tensor.layout}")
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with disk.replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().flatten()
            file.write(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def facts(path: Path) -> dict[str, Any]:
    """The facts of a file, without its tensors.

    Raises:
        ValueError: it is not one of these files; the text says why.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, LARGEST):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a header that is no JSON: {str(error)[:100]}") from None
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get(KEY), str):
        raise ValueError("tensors alone, no words on what they are")
    try:
        found = json.loads(metadata[KEY], parse_int=_number, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"facts that are no JSON: {str(error)[:100]}") from None
    if not isinstance(found, dict):
        raise ValueError("facts that are no JSON object")
    return found


def read(path: Path) -> tuple[Parts, dict[str, Any]]:
    """Tensors by part and name, on the CPU, and the facts.

    Raises:
        ValueError: it is not one of these files, or damaged; the text says why.
    """
    found = facts(path)
    parts: Parts = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part, dot, rest = name.partition(".")
                if not dot or not rest:
                    raise ValueError(f"a tensor that is of no part: {name[:100]!r}")
                tensor = file.get_tensor(name)
                if tensor.dtype not in DTYPES:
                    raise ValueError(f"{name[:100]!r} holds {tensor.dtype}")
                parts.setdefault(part, {})[rest] = tensor
    except (SafetensorError, RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None
    return parts, found


def _number(text: str) -> int:
    if len(text) > 20:  # a longer one takes long to read, and fits nowhere
        raise ValueError("a number of too many digits")
    return int(text)


def _no_number(text: str) -> float:
    raise ValueError(f"a number that is {text}")


# ---- the state of an optimiser, which torch keeps as a tree of numbered dictionaries ----


def flat_optimiser(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The tensors by number and name, as ``0.exp_avg``, and the groups.

    Args:
        state: what ``Optimizer.state_dict`` returned; all its values are tensors, as Adam's are.
    """
    tensors = {f"{number}.{key}": t for number, values in state.get("state", {}).items() for key, t in values.items()}
    return tensors, list(state.get("param_groups", []))


def deep_optimiser(tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """What ``Optimizer.load_state_dict`` takes.

    Raises:
        ValueError: a tensor's name has no number.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition(".")
        state.setdefault(_number(number), {})[key] = tensor
    return {"state": state, "param_groups": groups}


def restore_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """``load_state_dict``, and moments that lie in memory as their parameters do: fused steps take that for granted."""
    optimiser.load_state_dict(state)
    for parameter, values in optimiser.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def finite(value: float) -> float | None:
    """A number as a fact, which JSON has no infinities for."""
    return value if math.isfinite(value) else None


def save(path: Path, parts: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
    """:func:`write`, whose failure a user reads.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write(path, parts, facts)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {path}: {error}") from None
