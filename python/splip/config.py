"""What can be set: one dataclass per verb, its YAML, and the order defaults < file < flags.

Field docstrings are the ``--help`` texts. This module imports no torch, so that ``--help`` is quick.
"""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from splip import disk
from splip.errors import UserError, short

T = TypeVar("T")
CONFIGS = Path(__file__).parent / "configs"
LARGEST = 1 << 20  # bytes of a YAML file


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain YAML values."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


def from_dict(cls: type[T], values: Any, source: str, prefix: str = "") -> T:
    """Fill a dataclass; unknown keys and wrong types are a UserError that names them."""
    if not isinstance(values, dict):
        raise UserError(f"{source}: {prefix.rstrip('.') or 'the file'} must be a mapping, got {short(values)}")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            known = ", ".join(hints)
            raise UserError(f"{source}: unknown key {short(f'{prefix}{key}')}; known keys: {known}")
    filled = {key: _convert(hints[key], value, source, prefix + key) for key, value in values.items()}
    return cls(**filled)


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type[Any], hint), value, source, key + ".")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, source, key)
    if origin is Literal:
        if isinstance(value, bool) and {"true", "false"} <= set(args):
            value = str(value).lower()  # YAML reads true and false as truth values
        if value in args:
            return value
        raise UserError(f"{source}: {key} must be one of {', '.join(map(str, args))}, got {short(value)}")
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_convert(args[0], v, source, key) for v in value)
        raise UserError(f"{source}: {key} must be a list, got {short(value)}")
    if origin is dict:
        if isinstance(value, dict) and all(isinstance(k, str) for k in value):
            return {k: _convert(args[1], v, source, f"{key}.{k}") for k, v in value.items()}
        raise UserError(f"{source}: {key} must be a mapping, got {short(value)}")
    if hint is float and not isinstance(value, bool):
        try:  # PyYAML reads 2e-3 as a string
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    elif hint is Path and isinstance(value, str) and "\0" not in value:
        return Path(value)
    elif hint is int and type(value) is int and not -(2**63) <= value < 2**63:
        raise UserError(f"{source}: {key} is too large: {short(value)}")
    elif type(value) is hint:
        return value
    name = "a path" if hint is Path else hint.__name__
    raise UserError(f"{source}: {key} must be {name}, got {short(value)}")


def shipped() -> dict[str, Path]:
    """The configurations in the package by name, e.g. ``sample``, ``ablations/no-b_t``."""
    return {p.relative_to(CONFIGS).with_suffix("").as_posix(): p for p in sorted(CONFIGS.rglob("*.yaml"))}


def find(path: str) -> Path:
    """A YAML file, or a shipped configuration by its name.

    Raises:
        UserError: neither.
    """
    file = shipped().get(path, Path(path))
    if not file.is_file():
        names = ", ".join(name for name in shipped() if "/" not in name)
        raise UserError(f"no configuration {path}: not a file, and the shipped ones are {names}, ablations/*")
    return file


def read(path: str) -> dict[str, Any]:
    """The settings of a YAML file, or of a shipped configuration, as they stand there."""
    file = find(path)
    if file.stat().st_size > LARGEST:
        raise UserError(f"{file}: {file.stat().st_size:,} bytes are too many for a configuration")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (
        yaml.YAMLError,
        ValueError,
        ArithmeticError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        # Besides its own class PyYAML lets through what making a number, a date or a truth value of a text raises.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file}: not valid YAML: {reason}") from None
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{file}: the file must be a mapping, got {short(values)}")
    return values or {}


def merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """Both, and where they disagree what ``high`` says."""
    out = dict(low)
    for key, value in high.items():
        before = out.get(key)
        out[key] = merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return out


def load(cls: type[T], *paths: str) -> T:
    """Read YAML files, or shipped configurations by their names; the later win."""
    values: dict[str, Any] = {}
    for path in paths:
        from_dict(cls, read(path), str(find(path)))  # an error names its own file
        values = merge(values, read(path))
    return from_dict(cls, values, ", ".join(paths))


def save(config: Any, path: Path) -> None:
    disk.write_text(path, yaml.safe_dump(to_dict(config), sort_keys=False))


def differences(a: Any, b: Any) -> list[str]:
    """Settings that differ, as ``key: old -> new``."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in values.items():
            out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return out

    old, new = flat(to_dict(a)), flat(to_dict(b))
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in {**new, **old} if old.get(key) != new.get(key)]
