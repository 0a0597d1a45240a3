"""Pictures into a gallery by workers on a Ray cluster: they embed, the front commits.

The front hands out runs of pictures. A worker, a Ray actor with the model loaded, reads, hashes, decodes and encodes
them as :mod:`splip.gallery.ingest` does, and writes a segment to ``incoming/`` of the gallery's folder, which all machines must
share: float rows as in :mod:`splip.gallery.segments`, then a manifest with their checksum, the model's identity and what was
seen of every picture. Neither changes afterwards. The front compares the checksums, commits the segment with the rules
of :mod:`splip.gallery.ingest`, and removes it. Only the front writes the gallery, which is like any other afterwards.

A segment with a manifest is never made again, whoever is killed: the next run begins by committing what it finds.
Pictures of a worker that died go to others; where no one is left to start, the last ones are handed out twice, and the
first answer counts. A machine that cannot write, or has another model, is left out.
"""

import contextlib
import os
import shutil
import statistics
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splip import images
from splip.cluster.incoming import FOLDER, Segment, manifest_path
from splip.cluster.ray import Cluster, Node, import_ray, last_line
from splip.errors import Skipped, UserError
from splip.gallery import catalog
from splip.gallery.catalog import Item
from splip.gallery.gallery import Gallery, reading
from splip.gallery.ingest import LOOK_UP, Added, Look, Picture, commit, find_content, look_at
from splip.gallery.segments import Segments, is_full
from splip.images import archive, decode

if TYPE_CHECKING:
    from splip.encoders.encoder import Encoder

SEGMENT_SECONDS = 20.0  # work that a worker's end can undo
SEGMENT_MOST = 16_384  # pictures
AHEAD = 2  # runs of pictures that a worker is given at once
SLOW = 2.0  # times the usual time: then another worker tries too
POLL = 0.5  # seconds
ROOM_SECONDS = 300.0  # without any worker, until the cluster is taken to have no room for one
TRIES = 2  # workers that may die with the same pictures before these are divided
DEATHS = 20  # workers that may die in a row without a segment between

Entry = tuple[bytes, Picture, Item | None]  # path, what is wanted, what is known of the path


@dataclass
class Embedded(Added):
    """What became of the pictures given, and of the workers."""

    workers: int = 0
    start_seconds: float = 0.0  # until the first worker was ready
    recovered: int = 0  # pictures that a run before this one had embedded
    died: int = 0  # workers
    again: int = 0  # runs of pictures that were handed out once more
    troubles: list[str] = field(default_factory=list)  # a line each: machines left out, segments not taken


# ---- workers ----


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

        def prepare(data: bytes, name: object) -> np.ndarray:
            return self.encoder.prepare(images.read(data, name, *how), "photo")

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


# ---- the front ----


@dataclass(eq=False)
class _Work:
    """A run of pictures, until they are committed."""

    entries: list[Entry]
    deaths: int = 0  # of workers that had it
    began: float = 0.0  # handed out first
    holders: set[int] = field(default_factory=set)  # numbers of workers
    done: bool = False


@dataclass(eq=False)
class _Hand:
    """A worker as the front sees it."""

    number: int
    node: Node | None  # None: wherever there is room
    actor: Any
    ready: bool = False
    given: dict[Any, tuple[int, _Work]] = field(default_factory=dict)  # by Ray's reference: the segment's number


def add(
    gallery: Gallery,
    pictures: Iterable[Picture | Path | str],
    cluster: Cluster,
    *,
    workers: int | None = None,
    encoder: str = "auto",
    device: str = "auto",
    label: str | None = None,
    tags: Mapping[str, str] | None = None,
    batch_size: int = 64,
    threads: int | None = None,
    segment_pictures: int | None = None,
    load: "Callable[[], Encoder] | None" = None,
    notify: Callable[[Added], None] | None = None,
    tell: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Embedded:
    """Embed pictures on the machines of a cluster and keep them; see :func:`splip.gallery.ingest.add` for what is kept.

    Args:
        gallery: open for writing, in a folder that all machines see under the same path, as the pictures.
        pictures: files, also those in tar files; may be more than fit in memory.
        cluster: connected.
        workers: None: one for each GPU; without a GPU, one for each machine with all its processors.
        encoder: what encodes, see :class:`splip.encoders.encoder.Encoder`.
        device: of the workers: cpu, cuda; auto takes GPUs if there are any.
        label: of pictures that bring none.
        tags: of all pictures, besides their own.
        batch_size: pictures a pass of the encoder.
        threads: of a worker; None: as many as it has processors.
        segment_pictures: pictures a segment; None: as many as a worker does in some 20 seconds.
        load: makes a worker's encoder; None: from the gallery's model.
        notify: is called after every commit.
        tell: is called with each of the troubles, a line, when it comes.
        stop: asked twice a second; True ends the work with what is on the way.

    Raises:
        UserError: the gallery cannot be written, or no worker can go on; what was committed before stays.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    if workers is not None and workers < 1:
        raise UserError(f"workers must be at least 1, got {workers}")
    if threads is not None and threads < 1:
        raise UserError(f"threads must be at least 1, got {threads}")
    given = (one if isinstance(one, Picture) else Picture(one) for one in pictures)
    wanted = (Picture(p.path, p.label if p.label is not None else label, {**(tags or {}), **p.tags}) for p in given)
    if load is None:
        from splip.encoders.encoder import Encoder

        load = partial(Encoder.load, gallery._model_source().absolute(), encoder, device=device)
    done, began = Embedded(), time.monotonic()
    with gallery._write():
        recover(gallery, done, tell)
        folder = gallery.folder.absolute() / FOLDER / uuid.uuid4().hex
        folder.mkdir(parents=True)
        front = _Front(gallery, wanted, cluster, done, notify, tell, batch_size, segment_pictures)
        try:
            front.start(workers, device, threads, folder, load)
            front.run(stop)
        finally:
            front.close()
        # Only now: what an error leaves behind is for the next run to commit.
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()
        gallery.write_packs()
    done.seconds = time.monotonic() - began
    return done


def recover(gallery: Gallery, done: Embedded, tell: Callable[[str], None] | None = None) -> None:
    """Commit the segments that an earlier run left, and remove what it did not finish. For the writer only."""
    before = Added()
    for folder in sorted((gallery.folder / FOLDER).glob("*/")):
        for path in sorted(folder.glob("*.json")):
            try:
                segment = Segment.read(Segments(folder, gallery.dim), int(path.stem), gallery.identity)
            except (UserError, OSError) as error:
                done.troubles.append(f"{error}; its pictures are embedded again")
                if tell is not None:
                    tell(done.troubles[-1])
                continue
            _commit(gallery, segment, before, None)
            done.recovered += len(segment.looks)
        shutil.rmtree(folder)
    done.skipped += before.skipped


def _commit(gallery: Gallery, segment: Segment, done: Added, notify: Callable[[Added], None] | None) -> None:
    """Everything that a worker saw, by what the gallery holds now."""
    moved: set[int] = set()
    for first in range(0, len(segment.looks), LOOK_UP):
        some = segment.looks[first : first + LOOK_UP]
        with gallery.catalog.reading() as db:
            known = {os.fsencode(item.path): item for item in catalog.items(db, "path", [look.path for look in some])}
        for look in some:
            look.known = known.get(look.path)
            if look.error is not None or look.hash is None:
                continue
            if look.stays:
                look.vector = None
            else:
                find_content(gallery, look, moved)
                if look.moved:
                    look.vector = None
    # What has no vector, for it was known, and is gone from the gallery since, is for another run to find.
    looks = [look for look in segment.looks if look.error is not None or look.stays or look.vector is not None]
    commit(gallery, looks, done, notify)


class _Front:
    """Hands out pictures, commits what comes back, and replaces workers that die."""

    def __init__(
        self,
        gallery: Gallery,
        pictures: Iterator[Picture],
        cluster: Cluster,
        done: Embedded,
        notify: Callable[[Added], None] | None,
        tell: Callable[[str], None] | None,
        batch_size: int,
        segment_pictures: int | None,
    ) -> None:
        self.tell = tell
        self.gallery, self.cluster, self.done, self.notify = gallery, cluster, done, notify
        self.pictures, self.batch_size, self.segment_pictures = pictures, batch_size, segment_pictures
        self.ray = import_ray()
        self.hands: dict[int, _Hand] = {}
        self.starting: dict[Any, _Hand] = {}  # by the reference of their answer
        self.again: deque[_Work] = deque()
        self.numbers = iter(range(1, 1 << 62))  # of workers and segments
        self.rate = 0.0  # pictures a second of a worker
        self.times: deque[float] = deque(maxlen=100)  # seconds a picture, of finished work
        self.deaths = 0  # in a row
        self.began = self.idle = time.monotonic()
        self.stopping = False

    # ---- workers ----

    def start(
        self, workers: int | None, device: str, threads: int | None, folder: Path, load: "Callable[[], Encoder]"
    ) -> None:
        nodes = [node for node in self.cluster.nodes() if node.cpus]
        gpus = sum(node.gpus for node in nodes) if device != "cpu" else 0
        if device.startswith("cuda") and not gpus:
            raise UserError(f"--device {device}: the cluster has no GPU")
        if gpus:
            nodes = [node for node in nodes if node.gpus]
        count = workers or gpus or len(nodes)
        if not nodes:
            raise UserError("the cluster has no processors to work with")
        if not gpus and count > sum(node.cpus for node in nodes):
            raise UserError(f"--workers {count}: the cluster has {sum(node.cpus for node in nodes)} processors")
        # As many workers on each machine as it has room for, and its processors shared out among them.
        each = -(-count // len(nodes))
        cpus = max(1, min(node.cpus for node in nodes) // each)
        self.resources: dict[str, Any] = {"num_cpus": cpus, "max_restarts": 0}
        if gpus:
            self.resources["num_gpus"] = min(1.0, gpus / count)
        first = next(self.pictures, None)
        probe = None
        if first is not None:
            self.pictures = chain([first], self.pictures)
            path = os.path.abspath(first.path)
            probe = path if archive.exists(path) else None
        self.folder = folder
        gallery = self.gallery
        self.task = Task(
            folder, gallery.dim, gallery.identity, load, self.batch_size, threads or cpus, probe, gallery.decoding
        )
        self.shared = self.ray.put(self.task)
        self.done.workers = count
        for number in range(count):
            self.hire(nodes[number % len(nodes)])

    def hire(self, node: Node | None) -> None:
        """Start a worker, on a machine or wherever there is room."""
        number = next(self.numbers)
        options = self.cluster.on(node, soft=True) if node is not None else {"scheduling_strategy": "SPREAD"}
        name = str(node) if node is not None else "a machine of the cluster"
        actor = self.ray.remote(Worker).options(**options, **self.resources).remote(self.shared, name)
        hand = _Hand(number, node, actor)
        self.starting[actor.load.remote()] = hand

    def bury(self, hand: _Hand, reason: str | None) -> None:
        """A worker is no more; its pictures go to others. Without a reason it died, and another takes its place."""
        self.hands.pop(hand.number, None)
        for place, (_, work) in enumerate(hand.given.values()):
            work.holders.discard(hand.number)
            if reason is None and not place:  # what waited behind the first is innocent
                work.deaths += 1
            if not work.done and not work.holders:
                self.done.again += 1
                self.divide(work)
        hand.given.clear()
        self.kill(hand)
        if reason is not None:
            return self.trouble(reason)
        self.done.died += 1
        self.deaths += 1
        if self.deaths >= DEATHS:
            raise UserError(
                f"{self.deaths} workers died one after the other; Ray's logs say more; run it again to go on"
            )
        self.hire(None)

    def divide(self, work: _Work) -> None:
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
                self.again.append(_Work(entries, TRIES - 1))

    # ---- work ----

    def run(self, stop: Callable[[], bool] | None) -> None:
        """Until everything is committed, or stopped.

        Raises:
            UserError: nobody can go on.
        """
        while True:
            self.hand_out()
            flying = {ref: hand for hand in self.hands.values() for ref in hand.given}
            left = any(not work.done for hand in self.hands.values() for _, work in hand.given.values())
            if not left and not self.waiting():
                return
            if not self.hands and not self.starting:
                raise UserError(f"no worker can go on; the last one: {self.done.troubles[-1]}")
            self.idle = self.idle if not self.hands else time.monotonic()
            if time.monotonic() - self.idle > ROOM_SECONDS:
                raise UserError(f"the cluster has no room for a worker with {self.resources['num_cpus']} processors")
            waited = [*flying, *self.starting]
            self.ray.wait(waited, num_returns=1, timeout=POLL)
            # All that are ready, in the order in which they were handed out: what a worker did before it died counts.
            ready, _ = self.ray.wait(waited, num_returns=len(waited), timeout=0)
            for ref in ready:
                if ref in self.starting:
                    self.welcome(ref)
                elif flying[ref].number in self.hands:  # not buried a moment ago
                    self.land(flying[ref], ref)
            if stop is not None and not self.stopping and stop():
                self.done.stopped = self.stopping = True

    def waiting(self) -> bool:
        """Whether there are pictures that nobody has."""
        if self.stopping:
            return False
        if not self.again and (work := self.next_work()) is not None:
            self.again.append(work)
        return bool(self.again)

    def welcome(self, ref: Any) -> None:
        hand = self.starting.pop(ref)
        try:
            reason = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            reason = f"{hand.node or 'a worker'}: {last_line(error)}"
        except self.ray.exceptions.RayError:
            return self.bury(hand, None)
        if reason is not None:
            return self.bury(hand, reason)
        if not self.done.start_seconds:
            self.done.start_seconds = time.monotonic() - self.began
        hand.ready = True
        self.hands[hand.number] = hand

    def land(self, hand: _Hand, ref: Any) -> None:
        """Take what a worker answers."""
        number, work = hand.given[ref]
        try:
            reason, seconds, encode_seconds = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            reason = f"{hand.node or 'a worker'}: {last_line(error)}"
        except self.ray.exceptions.RayError:
            return self.bury(hand, None)
        if reason is not None:
            return self.bury(hand, reason)
        del hand.given[ref]
        work.holders.discard(hand.number)
        if work.done:
            return
        files = Segments(self.folder, self.gallery.dim)
        try:
            segment = Segment.read(files, number, self.gallery.identity)
        except (UserError, OSError) as error:
            self.trouble(f"{error}; its pictures are embedded again")
            work.deaths += 1
            self.divide(work)
            return
        work.done, self.deaths = True, 0
        count = len(work.entries)
        self.times.append(seconds / count)
        if 2 * len(segment.rows) >= count:  # else it says nothing about how long new pictures take
            self.rate = count / max(seconds, 1e-6)
        self.done.seen += count
        self.done.encoded += len(segment.rows)
        self.done.encode_seconds += encode_seconds
        self.done.seconds = time.monotonic() - self.began
        _commit(self.gallery, segment, self.done, self.notify)
        files.rows_path(number).unlink(missing_ok=True)
        manifest_path(self.folder, number).unlink(missing_ok=True)

    def hand_out(self) -> None:
        """Keep every worker busy."""
        for depth in range(AHEAD):
            for hand in self.hands.values():
                if len(hand.given) > depth:
                    continue
                work = self.again.popleft() if self.again and not self.stopping else self.next_work()
                work = work or self.straggler(hand)
                if work is not None:
                    self.give(hand, work)

    def give(self, hand: _Hand, work: _Work) -> None:
        work.began = work.began or time.monotonic()
        work.holders.add(hand.number)
        number = next(self.numbers)
        hand.given[hand.actor.embed.remote(number, work.entries)] = number, work

    def next_work(self) -> _Work | None:
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
        return _Work([(path, picture, known.get(path)) for path, picture in block.items()])

    def straggler(self, hand: _Hand) -> _Work | None:
        """Work that another worker takes too long for, if this one has nothing else to do."""
        if hand.given or not self.times:
            return None
        now, usual = time.monotonic(), statistics.median(self.times)
        late = [
            work
            for other in self.hands.values()
            for _, work in other.given.values()
            if not work.done
            and len(work.holders) == 1
            and now - work.began > 2 * POLL + SLOW * usual * len(work.entries)
        ]
        if not late:
            return None
        self.done.again += 1
        return min(late, key=lambda work: work.began)

    # ---- the end ----

    def trouble(self, line: str) -> None:
        self.done.troubles.append(line)
        if self.tell is not None:
            self.tell(line)

    def kill(self, hand: _Hand) -> None:
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.ray.kill(hand.actor)

    def close(self) -> None:
        for hand in [*self.hands.values(), *self.starting.values()]:
            self.kill(hand)
