"""Threads for one kind of work each, shared fairly: clients take turns, and none has all threads or all places.

One client that sends what is slow to decode waits for itself; the next one's job runs as soon as a thread is free.
"""

import asyncio
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from splip.serve.queries import Busy

T = TypeVar("T")
Job = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Pool:
    """Threads for one kind of work.

    Args:
        name: what the work is called.
        threads: jobs that run at once.
        pending: jobs that may run or wait; half as many of one client.
        share: jobs of one client that run at once; None: as many as there are threads.
    """

    def __init__(self, name: str, threads: int, pending: int, share: int | None = None) -> None:
        self.name, self.pending, self.share = name, pending, share or threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # clients, the one whose turn is next first
        self._taken_on: Counter[str] = Counter()  # running and waiting
        self._running: Counter[str] = Counter()
        self._lock = threading.RLock()

    async def run(self, job: Callable[..., T], *args: Any, client: str | None = None) -> T:
        """Run a job in a thread; ``client`` is None for the service itself.

        Raises:
            Busy: too many wait already.
        """
        return await asyncio.wrap_future(self.start(job, *args, client=client))

    def start(self, job: Callable[..., T], *args: Any, client: str | None = None) -> "Future[T]":
        """The same for those who must know when it ends, which it may long after nobody waits for it any more.

        Raises:
            Busy: too many wait already.
        """
        whose = client or ""
        done: Future[T] = Future()
        entry: Job = (done, job, args)
        with self._lock:
            if self._taken_on.total() >= self.pending:
                raise Busy(f"too many {self.name} at once; try again in a moment")
            if client is not None and self._taken_on[whose] >= max(1, self.pending // 2):
                raise Busy(f"too many {self.name} at once from this address; try again in a moment")
            self._taken_on[whose] += 1
            self._waiting.setdefault(whose, deque()).append(entry)
        done.add_done_callback(lambda _: self._forget(whose, entry))
        self._threads.submit(self._work)
        return done

    def _forget(self, client: str, entry: Job) -> None:
        """The job is done, or nobody waits for it any more."""
        with self._lock:
            _count_down(self._taken_on, client)
            if (jobs := self._waiting.get(client)) is not None:
                with suppress(ValueError):
                    jobs.remove(entry)
                if not jobs:
                    del self._waiting[client]

    def _work(self) -> None:
        # Until nothing is left: what waited while its client had its share finds no other thread later.
        while (taken := self._take()) is not None:
            client, (done, job, args) = taken
            try:
                if done.set_running_or_notify_cancel():
                    try:
                        done.set_result(job(*args))
                    except BaseException as error:
                        done.set_exception(error)
            finally:
                with self._lock:
                    _count_down(self._running, client)

    def _take(self) -> tuple[str, Job] | None:
        with self._lock:
            for client, jobs in self._waiting.items():
                if self._running[client] < self.share:
                    entry = jobs.popleft()
                    if jobs:
                        self._waiting.move_to_end(client)
                    else:
                        del self._waiting[client]
                    self._running[client] += 1
                    return client, entry
        return None

    def close(self) -> None:
        """Finish what runs, and give up what waits."""
        with self._lock:
            waiting = [done for jobs in self._waiting.values() for done, _, _ in jobs]
        for done in waiting:
            done.cancel()
        self._threads.shutdown(wait=True, cancel_futures=True)


def _count_down(counts: Counter[str], client: str) -> None:
    counts[client] -= 1
    if not counts[client]:
        del counts[client]


class Room:
    """Memory for jobs that need much of it at once: the largest run alone.

    Args:
        size: bytes in all.
        small: jobs of so many bytes do not wait.
    """

    def __init__(self, size: int, small: int) -> None:
        self.size, self.small, self._used = size, small, 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Wait until there is room, and have it for as long as it takes."""
        if size <= self.small:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self.size)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()
