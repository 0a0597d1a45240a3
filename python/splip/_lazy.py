"""Names that a package imports when they are first asked for."""

import importlib
from collections.abc import Callable
from typing import Any


def lazy(package: str, **modules: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """A package's ``__getattr__``, ``__dir__`` and ``__all__``: importing it imports none of its modules.

    Args:
        package: its ``__name__``.
        modules: names by the module of the package that defines them, divided by spaces; its own name stands for itself.
    """
    where = {name: module for module, names in modules.items() for name in names.split()}

    def __getattr__(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{where[name]}")
        value = module if name == where[name] else getattr(module, name)
        setattr(importlib.import_module(package), name, value)
        return value

    return __getattr__, lambda: sorted(where), sorted(where)
