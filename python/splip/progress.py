"""What long jobs have in common: bars on a terminal, silence elsewhere (a log file wants lines), and a stop after a step."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that the step in hand is finished and saved."""
    caught: list[int] = []
    names = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(s, lambda number, _: caught.append(number)) for s in names]
    except ValueError:  # not the main thread: signals are somebody else's business
        yield caught
        return
    try:
        yield caught
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)
