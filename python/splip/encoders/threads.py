"""How many of torch's threads encode few pictures soonest.

Threads that sleep between batches are woken for each layer of a small model, which takes longer than what they would
save: for one picture of a small model, one thread is sooner than two, and leaves the other core to whoever asked.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

COUNTS = (1, 2, 4)  # pictures at a time that are tried
RUNS = 7
CLEARLY = 0.9  # of the time that all threads take: else it may be noise
LARGE = 0.05  # seconds: a model that takes one thread longer has work for all of them


class Threads:
    """One thread for few pictures, all of them for many, once :meth:`measure` was called; nothing is changed before.

    torch has a number of threads for each thread that calls it, and one for those that begin to. Both are what they were
    when a picture was encoded: searches in the same thread ask torch how many threads they may have.

    Args:
        torch: the module.
    """

    few = 0
    """Pictures at a time up to which one thread is taken."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.most: int = torch.get_num_threads()

    @contextmanager
    def of(self, count: int) -> Iterator[None]:
        """The calling thread's number of threads, while it encodes so many pictures."""
        if not self.few:
            yield
            return
        self._torch.set_num_threads(1 if count <= self.few else self.most)
        try:
            yield
        finally:
            self._torch.set_num_threads(self.most)

    def measure(self, encode: Callable[[int], object]) -> None:
        """Find out how many pictures are few.

        Args:
            encode: encodes so many pictures, without :meth:`of`.
        """
        if self.most == 1:
            return
        few = 0
        try:
            for count in COUNTS:
                alone = self._median(encode, count, 1)
                if alone > LARGE or alone > CLEARLY * self._median(encode, count, self.most):
                    break
                few = count
        finally:
            self._torch.set_num_threads(self.most)
        self.few = few

    def _median(self, encode: Callable[[int], object], count: int, threads: int) -> float:
        self._torch.set_num_threads(threads)
        encode(count)
        seconds = []
        for _ in range(RUNS):
            began = time.perf_counter()
            encode(count)
            seconds.append(time.perf_counter() - began)
            if seconds[0] > LARGE:
                break
        return statistics.median(seconds)
