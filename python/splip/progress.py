"""What long jobs have in common: bars on a terminal, now and then a plain line elsewhere, and a stop after a step."""

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TaskID

T = TypeVar("T")
LINE_SECONDS = 30.0  # between lines of progress where nobody can draw a bar


def is_terminal() -> bool:
    """Whether what is printed goes to one."""
    return Console().is_terminal


class _Lines(Progress):
    """Bars on stderr, which leave stdout to what was asked for. Where that is no terminal: lines, of jobs that take long."""

    def __init__(self, *columns: ProgressColumn, transient: bool, lines: bool, unit: str) -> None:
        console = Console(stderr=True)
        self.plain = lines and not console.is_terminal
        self.unit, self.said = f" {unit}" if unit else "", time.monotonic()
        super().__init__(
            *columns,
            console=console,
            transient=transient,
            disable=not console.is_terminal,
            redirect_stdout=is_terminal(),  # a file gets its lines as they are
        )

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._tell(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        now = time.monotonic()
        if not self.plain or now - self.said < LINE_SECONDS:
            return
        task = next(task for task in self.tasks if task.id == task_id)
        if not task.completed or task.finished:
            return
        self.said, rate = now, task.completed / max(task.elapsed or 0.0, 1e-9)
        of, left = "", ""
        if task.total is not None:
            minutes = (task.total - task.completed) / rate / 60
            of, left = f" of {task.total:,.0f}", f", {minutes:.0f} minutes left"
        print(
            f"{task.description}: {task.completed:,.0f}{of}{self.unit}, {rate:,.0f}/s{left}",
            file=sys.stderr,
            flush=True,
        )


def bars(*columns: ProgressColumn, transient: bool = True, lines: bool = True, unit: str = "") -> Progress:
    """A rich Progress on stderr.

    Args:
        columns: of the bar.
        transient: the bar vanishes at the end.
        lines: where stderr is no terminal, say now and then how far a task is; False: whoever asks says it.
        unit: of what is counted, in these lines.
    """
    return _Lines(*columns, transient=transient, lines=lines, unit=unit)


def track(items: Sequence[T], label: str) -> Iterator[T]:
    """Iterate with a bar that vanishes at the end."""
    with bars() as progress:
        task = progress.add_task(label, total=len(items))
        for item in items:
            yield item
            progress.advance(task)


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
