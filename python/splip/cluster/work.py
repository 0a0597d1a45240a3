"""What is to be embedded on a cluster, in runs of pictures, and what has become of it."""

import os
import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice

from splip.cluster.worker import Entry
from splip.errors import Skipped
from splip.gallery import catalog
from splip.gallery.ingest import Added, Picture
from splip.gallery.protocol import Stored
from splip.images import archive

SEGMENT_SECONDS = 20.0  # work that a worker's end can undo
SEGMENT_MOST = 16_384  # pictures
SLOW = 2.0  # times the usual time: then another worker tries too
POLL = 0.5  # seconds
TRIES = 2  # workers that may die with the same pictures before these are divided


@dataclass
class Embedded(Added):
    """What became of the pictures given, and of the workers."""

    workers: int = 0
    start_seconds: float = 0.0  # until the first worker was ready
    recovered: int = 0  # pictures that a run before this one had embedded
    died: int = 0  # workers
    again: int = 0  # runs of pictures that were handed out once more
    troubles: list[str] = field(default_factory=list)  # a line each: machines left out, segments not taken


@dataclass(eq=False)
class Work:
    """A run of pictures, until they are committed."""

    entries: list[Entry]
    deaths: int = 0  # of workers that had it
    began: float = 0.0  # handed out first
    holders: set[int] = field(default_factory=set)  # numbers of workers
    done: bool = False


class Works:
    """The pictures that nobody has yet, and those that have to be handed out again.

    Args:
        gallery: is asked what it knows of them.
        pictures: may be more than fit in memory.
        done: is told what is given up.
        batch_size: pictures a pass of the encoder.
        segment_pictures: pictures a run; None: as many as a worker does in some 20 seconds.
    """

    def __init__(
        self,
        gallery: Stored,
        pictures: Iterator[Picture],
        done: Embedded,
        batch_size: int,
        segment_pictures: int | None,
    ) -> None:
        self.gallery, self.pictures, self.done = gallery, pictures, done
        self.batch_size, self.segment_pictures = batch_size, segment_pictures
        self.again: deque[Work] = deque()
        self.rate = 0.0  # pictures a second of a worker
        self.times: deque[float] = deque(maxlen=100)  # seconds a picture, of finished work
        self.stopping = False

    def probe(self) -> str | None:
        """The first picture, if it is there: every machine must see it."""
        first = next(self.pictures, None)
        if first is None:
            return None
        self.pictures = chain([first], self.pictures)
        path = os.path.abspath(first.path)
        return path if archive.exists(path) else None

    def waiting(self) -> bool:
        """Whether there are pictures that nobody has."""
        if self.stopping:
            return False
        if not self.again and (work := self.next_work()) is not None:
            self.again.append(work)
        return bool(self.again)

    def take(self) -> Work | None:
        """Work for a worker: what has to be done again, else the next pictures."""
        return self.again.popleft() if self.again and not self.stopping else self.next_work()

    def next_work(self) -> Work | None:
        """The next pictures, with what the gallery knows of them; about the same time of work each."""
        if self.stopping:
            return None
        size = self.segment_pictures or int(self.rate * SEGMENT_SECONDS) or 4 * self.batch_size
        size = min(max(size, self.segment_pictures or self.batch_size), SEGMENT_MOST)
        block = {os.fsencode(os.path.abspath(picture.path)): picture for picture in islice(self.pictures, size)}
        if not block:
            return None
        with self.gallery.catalog.reading() as db:
            found = catalog.items(db, "path", list(block))
        known = {os.fsencode(item.path): item for item in found}
        return Work([(path, picture, known.get(path)) for path, picture in block.items()])

    def divide(self, work: Work) -> None:
        """Hand out again; pictures that workers keep dying with are divided, down to the one that is to blame."""
        if work.deaths < TRIES:
            self.again.appendleft(work)
        elif len(work.entries) == 1:
            picture = work.entries[0][1]
            self.done.skipped.append(Skipped(picture.path, "workers died while they read it"))
            self.done.seen += 1
            self.done.committed += 1
        else:
            middle = len(work.entries) // 2
            for entries in (work.entries[:middle], work.entries[middle:]):
                self.again.append(Work(entries, TRIES - 1))

    def finished(self, work: Work, seconds: float, vectors: int) -> None:
        """Take note of how long it took."""
        work.done = True
        count = len(work.entries)
        self.times.append(seconds / count)
        if 2 * vectors >= count:  # else it says nothing about how long new pictures take
            self.rate = count / max(seconds, 1e-6)

    def late(self, given: Iterable[Work]) -> Work | None:
        """Of work that somebody has, what takes far longer than usual."""
        if not self.times:
            return None
        now, usual = time.monotonic(), statistics.median(self.times)
        late = [
            work
            for work in given
            if not work.done
            and len(work.holders) == 1
            and now - work.began > 2 * POLL + SLOW * usual * len(work.entries)
        ]
        return min(late, key=lambda work: work.began, default=None)
