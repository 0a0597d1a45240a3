"""A worker on one machine of a cluster: reads, hashes, decodes and encodes pictures, and writes segments of them.

It does so as :mod:`splip.gallery.ingest` does. What it writes is described at the top of :mod:`splip.cluster.incoming`.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from splip import images
from splip.cluster.incoming import Segment
from splip.errors import Skipped, UserError
from splip.gallery.catalog import Item
from splip.gallery.ingest import Look, Picture, look_at
from splip.gallery.queries import reading
from splip.gallery.segments import Segments, is_full
from splip.images import archive, decode
from splip.images.header import Header

if TYPE_CHECKING:
    from splip.encoders.encoder import Encoder

Entry = tuple[bytes, Picture, Item | None]
"""Path, what is wanted, what is known of the path."""


@dataclass(frozen=True)
class Task:
    """What every worker is told."""

    folder: Path  # of this run
    dim: int
    identity: str
    load: Callable[[], "Encoder"]
    batch_size: int
    threads: int
    probe: str | None  # a picture that every machine must see
    decoding: int = decode.DECODING  # of the gallery


class Worker:
    """The model on one machine, and what it does with pictures; Ray makes an actor of it."""

    def __init__(self, task: Task, name: str) -> None:
        self.task, self.name = task, name
        self.files = Segments(task.folder, task.dim)

    def load(self) -> str | None:
        """Load the model; answers with the reason if this machine cannot take part."""
        task = self.task
        for path in (task.folder, task.probe):
            if path is not None and not archive.exists(path):
                return f"{self.name} does not see {path}: the machines of a cluster must share such folders"
        try:
            import torch

            torch.set_num_threads(task.threads)
            self.encoder = task.load()
        except UserError as error:
            return f"{self.name}: {error}"
        if self.encoder.identity != task.identity:
            other = f"{self.encoder.name} ({self.encoder.identity[:12]})"
            return f"{self.name} has another model than the gallery ({task.identity[:12]}): {other}"
        return None

    def embed(self, number: int, entries: list[Entry]) -> tuple[str | None, float, float]:
        """Make the segment of some pictures.

        Returns:
            Why this machine cannot, if so; seconds, and those of them in the encoder.
        """
        began = time.monotonic()
        encode_seconds = 0.0
        looks: list[Look] = []
        vectors: list[np.ndarray] = []
        try:
            for waiting in self._batches(entries, looks):
                start = time.monotonic()
                found = self.encoder.encode(
                    np.stack([p for look in waiting if (p := look.pixels) is not None]), "photo"
                )
                encode_seconds += time.monotonic() - start
                for look, vector in zip(waiting, found, strict=True):
                    look.pixels = None
                    if np.isfinite(vector).all():
                        look.vector = vector
                    else:
                        reason = "the model answers with numbers that are not finite"
                        look.error = Skipped(look.picture.path, reason)
            vectors = [look.vector for look in looks if look.vector is not None]
            rows = np.stack(vectors) if vectors else np.empty((0, self.task.dim), np.float32)
            Segment(looks, rows).write(self.files, number, self.task.identity)
        except OSError as error:
            reason = "the disk is full" if is_full(error) else error.strerror or str(error)
            return f"{self.name}: {self.task.folder}: cannot be written: {reason}", 0.0, 0.0
        except UserError as error:
            return f"{self.name}: {error}", 0.0, 0.0
        return None, time.monotonic() - began, encode_seconds

    def _batches(self, entries: list[Entry], looks: list[Look]) -> Iterator[list[Look]]:
        """Looks with pixels, a batch at a time, while the next are read and decoded; ``looks`` becomes all of them."""
        waiting: list[Look] = []
        left, looking = iter(entries), deque[Future[Look]]()
        how = reading(self.encoder, "photo", self.task.decoding)

        def prepare(data: bytes, name: object) -> tuple[np.ndarray, Header | None, None]:
            image = images.read(data, name, *how)
            return self.encoder.prepare(image, "photo"), image.info.get("header"), None

        with ThreadPoolExecutor(self.task.threads, "decode") as pool:
            while True:
                for entry in islice(left, 2 * self.task.batch_size - len(looking)):
                    looking.append(pool.submit(look_at, *entry, prepare))
                if not looking:
                    break
                look = looking.popleft().result()
                looks.append(look)
                if look.pixels is not None:
                    waiting.append(look)
                if len(waiting) == self.task.batch_size:
                    yield waiting
                    waiting = []
        if waiting:
            yield waiting
