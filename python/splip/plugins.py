"""Names that others may add to: registries of methods and losses, and the files and packages that fill them.

What adds a name is code, so it runs only when it was named on the command line (``--plugin FILE.py``) or is an
installed package (entry points of the group ``splip.plugins``). Nothing that a checkpoint or a configuration says
makes it run. This module imports no torch.
"""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from splip.errors import UserError, short

T = TypeVar("T")
D = TypeVar("D")
GROUP = "splip.plugins"
loaded: list[Path] = []  # files, for processes that this one starts


class Registry(Generic[T]):
    """What a setting may name.

    Args:
        setting: for messages, as it stands in YAML: ``loss.margin``.
        homes: modules that define the names that are built in; they are imported by the first look-up.
    """

    def __init__(self, setting: str, *homes: str) -> None:
        self.setting = setting
        self._homes, self._known = list(homes), dict[str, T]()

    def register(self, name: str) -> Callable[[D], D]:
        """A decorator that adds what it stands before. The same function or class, read again, replaces itself.

        Raises:
            ValueError: something else has the name.
        """
        self._fill()

        def add(thing: D) -> D:
            other = self._known.get(name)
            if other is not None and _origin(other) != _origin(thing):
                raise ValueError(f"{self.setting} '{name}' is registered already, by {'.'.join(_origin(other))}")
            self._known[name] = thing  # type: ignore[assignment]
            return thing

        return add

    def __contains__(self, name: object) -> bool:
        self._fill()
        if name not in self._known:
            load_installed()
        return name in self._known

    def __getitem__(self, name: str) -> T:
        """What has the name.

        Raises:
            UserError: nothing has; the message lists what there is.
        """
        if name not in self:
            known = ", ".join(self._known)
            raise UserError(f"{self.setting}: there is no {short(name)}, only {known}; --plugin FILE.py adds others")
        return self._known[name]

    def names(self) -> list[str]:
        """The names that are known so far, the built-in ones first."""
        self._fill()
        return list(self._known)

    def _fill(self) -> None:
        homes, self._homes = self._homes, []
        for module in homes:
            importlib.import_module(module)


def _origin(thing: Any) -> tuple[str, str]:
    return getattr(thing, "__module__", ""), getattr(thing, "__qualname__", repr(thing))


def load_plugin(path: Path | str) -> None:
    """Run a file that registers methods or losses; once, however often it is named.

    Raises:
        UserError: no such file, or it cannot be run.
    """
    file = Path(path).resolve()
    if file in loaded:
        return
    if not file.is_file():
        raise UserError(f"--plugin {path}: there is no such file")
    # Files of the same name in two folders are two modules.
    name = f"splip_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin {path}: not a Python file (*.py)")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        if isinstance(error, SyntaxError):
            lines.append(error.lineno)
        where = f"{path}, line {lines[-1]}" if lines else path
        raise UserError(f"--plugin {where}: {type(error).__name__}: {error}") from error
    loaded.append(file)


_installed: list[str] = []  # what load_installed has imported


def load_installed() -> None:
    """Import the plugins among the installed packages, when a name is asked for that nothing else has.

    Raises:
        UserError: one cannot be imported.
    """
    import importlib.metadata  # slow, and seldom needed

    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.value in _installed:
            continue
        _installed.append(entry.value)
        try:
            entry.load()
        except Exception as error:
            raise UserError(f"plugin {entry.name} ({entry.value}): {type(error).__name__}: {error}") from error
