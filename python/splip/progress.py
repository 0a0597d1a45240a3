"""Progress bars on a terminal, silence elsewhere: a log file wants lines, not bars."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn

T = TypeVar("T")


def is_terminal() -> bool:
    return Console().is_terminal


def bars(*columns: ProgressColumn, transient: bool = True) -> Progress:
    """A rich Progress that draws on a terminal only."""
    return Progress(*columns, transient=transient, disable=not is_terminal())


def track(items: Sequence[T], label: str) -> Iterator[T]:
    """Iterate with a bar that vanishes at the end."""
    with bars() as progress:
        yield from progress.track(items, description=label)
