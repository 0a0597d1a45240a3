"""How far a long verb is, and stopping it."""

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from splip.gallery.ingest import Added
from splip.milvus.push import Pushed
from splip.progress import bars


class _Rate(ProgressColumn):
    """Pictures a second, of late."""

    def render(self, task: Task) -> Text:
        return Text("" if not task.speed else f"{task.speed:,.0f} pictures/s")


class _Progress:
    """A bar on a terminal, now and then a line elsewhere."""

    def __init__(self, total: int | None, what: str = "Indexing") -> None:
        self.total = total
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        self.bars = bars(*columns, unit="pictures")
        self.task = self.bars.add_task(what, total=total)

    def __call__(self, done: Added | Pushed) -> None:
        self.bars.update(self.task, completed=done.seen)


class _Interrupt:
    """Ctrl-C (or SIGTERM) once: finish and commit what is in hand; twice: as ever."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Callable[[], bool]:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self.asked.is_set

    def _handle(self, number: int, _: object) -> None:
        print("\nstopping after this batch; press again to stop at once", file=sys.stderr, flush=True)
        self.asked.set()
        self._restore()

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def __exit__(self, *_: object) -> None:
        self._restore()
