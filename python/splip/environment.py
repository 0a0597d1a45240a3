"""Settings of a verb from the environment: ``SPLIP_SERVE_TOKEN_FILE`` is ``--token-file``, by one rule for every option.

The order is defaults < ``--config`` files < variables < flags. A container or a unit of systemd so needs no command line.
"""

import difflib
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from splip import config
from splip.errors import UserError, short

T = TypeVar("T")
FILES = "CONFIG"  # PREFIX_CONFIG names the files that --config does
TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def variables(cls: type[Any], prefix: str) -> dict[str, str]:
    """The variable of every setting, and the setting: ``{"SPLIP_SERVE_PORT": "port", ...}``."""
    return {f"{prefix}_{name.upper()}": name for name in typing.get_type_hints(cls)}


def read(cls: type[Any], prefix: str, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What the environment sets, checked; a variable that is empty sets nothing.

    Raises:
        UserError: a variable of this prefix that no setting has, or a value of the wrong kind.
    """
    known, hints = variables(cls, prefix), typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(prefix + "_") or variable == f"{prefix}_{FILES}":
            continue
        if variable not in known:
            raise UserError(_unknown(variable, prefix, [*known, f"{prefix}_{FILES}"]))
        if text.strip():
            name = known[variable]
            config.from_dict(cls, {name: (value := _value(hints[name], text.strip(), variable))}, variable)
            values[name] = value
    return values


def _unknown(variable: str, prefix: str, known: list[str]) -> str:
    if re.fullmatch(rf"{prefix}_(SERVICE_(HOST|PORT).*|PORT_\d+_.*)", variable):
        return (
            f"{variable}: Kubernetes sets it for a Service of this name; enableServiceLinks: false in the pod ends that"
        )
    start = len(prefix) + 1  # which is the same in all of them, and no likeness
    near = difflib.get_close_matches(variable[start:], [name[start:] for name in known], 1)
    verb = prefix.lower().replace("_", " ")
    return f"{variable}: no such setting; " + (f"did you mean {prefix}_{near[0]}?" if near else f"see {verb} --help")


def _value(hint: Any, text: str, variable: str) -> Any:
    """A text as the value that YAML would give; what is wrong with it :func:`config.from_dict` says."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), text, variable)
    if origin is tuple:
        return [_value(args[0], item, variable) for item in _items(text, variable)]
    if hint is bool:
        if text.lower() not in TRUE + FALSE:
            raise UserError(f"{variable}: must be true or false, got {short(text)}")
        return text.lower() in TRUE
    if hint is int:
        try:
            return int(text)
        except ValueError:
            raise UserError(f"{variable}: must be a whole number, got {short(text)}") from None
    return text


def _items(text: str, variable: str) -> list[str]:
    """``a, b`` or, for items that hold commas, ``["a", "b"]``."""
    if not text.startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    try:
        items = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        items = None
    if not isinstance(items, list):
        raise UserError(f"{variable}: not a list: {short(text)}; write a, b or ['a', 'b']")
    return [str(item) for item in items]


def layered(cls: type[T], files: Sequence[str], prefix: str, environ: Mapping[str, str] = os.environ) -> T:
    """Defaults, then the files (or those that the variable names, if there are none), then the variables.

    Raises:
        UserError: what a file or a variable says is wrong; the message names it.
    """
    values: dict[str, Any] = {}
    for file, said in _files(files, prefix, environ):
        try:
            there = Path(file).is_file()
        except OSError:  # a name that no file can have
            there = False
        if not there:
            raise UserError(f"{said} {file}: no such file")
        config.from_dict(cls, (settings := config.read(file)), file)  # an error names its own file
        values = config.merge(values, settings)
    return config.from_dict(cls, config.merge(values, read(cls, prefix, environ)), prefix)


def _files(files: Sequence[str], prefix: str, environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """The files in their order, each with what named it."""
    variable = f"{prefix}_{FILES}"
    named = [] if files else _items(environ.get(variable, "").strip(), variable)
    return [(file, "--config") for file in files] + [(file, f"{variable}:") for file in named]


def blamed(message: str, cls: type[Any], args: Sequence[str], files: Sequence[str], prefix: str) -> str:
    """A message that begins with an option, with the variable or the file in front that set it, if no flag did."""
    found = re.match(r"--([a-z][a-z0-9-]*)", message)
    name = found[1].replace("-", "_") if found else ""
    flags = {arg.split("=", 1)[0].replace("_", "-") for arg in args}
    if not found or name not in typing.get_type_hints(cls) or flags & {found[0], f"--no-{found[1]}"}:
        return message
    variable = f"{prefix}_{name.upper()}"
    if os.environ.get(variable, "").strip():
        return f"{variable}: {message}"
    for file, _ in reversed(_files(files, prefix, os.environ)):
        if name in config.read(file):
            return f"{file}: {message}"
    return message
