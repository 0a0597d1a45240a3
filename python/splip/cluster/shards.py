"""A gallery searched by the machines of a Ray cluster, with the answers of one machine.

The rows of the gallery are divided into shards. A process for each (with ``replicas``, several) maps its rows into
memory where they lie, in the gallery's folder that all machines share, and runs the search of :mod:`splip.gallery.scan` on
them. The front reads the database, encodes the queries, asks every shard once for a batch, and merges by score and
place, so that ids and scores are those of a search on one machine. Every search sees one committed state: a process
that does not have it yet says so and is told. When a process is gone, another replica answers; without one the answer
is partial, says so, and Ray starts the process again, on another machine if need be.
"""

import contextlib
import itertools
import logging
import sqlite3
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splip.cluster.ray import Cluster, Node, import_ray, last_line
from splip.errors import UserError
from splip.gallery.catalog import Filter
from splip.gallery.config import SearchConfig
from splip.gallery.gallery import Gallery
from splip.gallery.matches import Key
from splip.gallery.scan import Best, Part, Run, answer, choose, cover, merge, nothing
from splip.gallery.segments import Segments
from splip.gallery.snapshot import PLANS, State
from splip.milvus import address
from splip.milvus.gallery import open_gallery
from splip.serve.config import ServeConfig

if TYPE_CHECKING:
    from splip.encoders.encoder import Encoder

STATES = 3  # committed states that a shard remembers: searches of the one before may be on the way
LEAST_ROWS = 1024  # of a piece
CHUNK = 32_768  # rows read at a time
START_SECONDS = 300.0  # for the shards to be ready
ANSWER_SECONDS = 20.0  # for all shards to answer; what is late counts as gone
TRIES = 3  # to start a shard, until the others begin without it
AGAIN_SECONDS = 2.0  # between two tries to start a shard that does not start
LARGE = 65_536  # bytes of queries that are worth to be sent once to each machine, not to each process

log = logging.getLogger("splip.serve.process")


@dataclass(frozen=True)
class Piece:
    """Rows of a segment that one shard searches."""

    segment: int
    first: int
    stop: int
    start: tuple[int, int]  # a row before these, and the checksum of the segment's rows before it
    end: tuple[int, int]  # and one behind
    pack: tuple[int, int] | None  # rows and checksum of a pack file that holds all of them


@dataclass(frozen=True)
class Told:
    """What a shard is told of a committed state."""

    revision: int
    pieces: tuple[Piece, ...]
    masks: dict[int, np.ndarray]  # bits: rows that may be results, of segments where not all may


def bits(masks: Mapping[int, np.ndarray], pieces: Iterable[Piece]) -> dict[int, np.ndarray]:
    """The masks that some pieces need, eight rows a byte."""
    return {number: np.packbits(masks[number]) for number in {piece.segment for piece in pieces} if number in masks}


# ---- a shard ----


@dataclass
class _Known:
    """A committed state, as a shard has it."""

    parts: list[Part]
    masks: dict[int, np.ndarray]
    problems: list[str]
    plans: OrderedDict[Key, list[Run]] = field(default_factory=OrderedDict)

    def plan(self, masks: Mapping[int, np.ndarray]) -> list[Run]:
        """What to scan; masks of bits may be longer than the segment."""
        wide = {number: np.unpackbits(mask).view(bool) for number, mask in masks.items()}
        return [run for part in self.parts if (run := choose(part, wide.get(part.segment))) is not None]


class Shard:
    """Some rows of a gallery on one machine; Ray makes an actor of it."""

    def __init__(self, folder: Path, dim: int, threads: int, device: str, name: str) -> None:
        import torch

        torch.set_num_threads(threads)
        self.files, self.device, self.name = Segments(folder, dim), torch.device(device), name
        self.known: OrderedDict[int, _Known] = OrderedDict()
        self.parts: dict[tuple[int, int], list[Part]] = {}  # by segment and first row
        self.good: set[Piece] = set()

    def take(self, told: Told) -> list[str]:
        """Map the rows of a committed state; answers with a line for each piece that cannot be searched."""
        if told.revision in self.known:
            return self.known[told.revision].problems
        problems, good = [], []
        for piece in told.pieces:
            try:
                if piece not in self.good:
                    self._check(piece)
                good.append(piece)
            except UserError as error:
                problems.append(f"{self.name}: {error}")
            except OSError as error:
                problems.append(f"{self.name}: {self.files.rows_path(piece.segment)}: {error.strerror or error}")
        parts: dict[tuple[int, int], list[Part]] = {}
        for number, first, stop, pack in _runs(good):
            file = self.files.open_pack(number) if pack and not first and self.device.type == "cpu" else None
            usable = file if file is not None and (file.count, file.crc) == pack else None
            parts[number, first] = cover(
                self.files, number, first, stop, self.parts.get((number, first), []), usable, self.device
            )
        self.parts, self.good = parts, set(good)
        every = [part for key in sorted(parts) for part in parts[key]]
        self.known[told.revision] = _Known(every, told.masks, problems)
        while len(self.known) > STATES:
            self.known.popitem(last=False)
        return problems

    def _check(self, piece: Piece) -> None:
        """Raises UserError: these are not the rows that were committed."""
        number, path = piece.segment, self.files.rows_path(piece.segment)
        self.files.check_size(number, piece.end[0])
        if piece.pack is not None and self.device.type == "cpu":
            pack = self.files.open_pack(number)
            if pack is not None and (pack.count, pack.crc) == piece.pack:
                return  # made of the committed rows; to read all of them would take long
        (start, crc), (end, wanted) = piece.start, piece.end
        for first in range(start, end, CHUNK):
            crc = zlib.crc32(self.files.read_rows(number, first, min(CHUNK, end - first)).data.cast("B"), crc)
        if crc != wanted:
            raise UserError(
                f"{path}: rows {start} to {end - 1} do not match their checksum: damaged, or of another model"
            )

    def learn(self, revision: int, filters: dict[Key, dict[int, np.ndarray]]) -> None:
        """Rows that pass filters, by segment."""
        known = self.known.get(revision)
        if known is None:
            return
        for key, masks in filters.items():
            known.plans[key] = known.plan(masks)
            while len(known.plans) > PLANS + len(filters):
                known.plans.popitem(last=False)

    def search(self, revision: int, k: int, asked: list[tuple[Key, np.ndarray]]) -> tuple[list[Best], list[str]] | None:
        """The best rows for the queries of each filter, and what cannot be searched; None: tell me first."""
        known = self.known.get(revision)
        if known is None:
            return None
        if () not in known.plans:
            known.plans[()] = known.plan(known.masks)
        if any(key not in known.plans for key, _ in asked):
            return None
        for key in ((), *(key for key, _ in asked)):
            known.plans.move_to_end(key)
        return [answer(known.plans[key], queries, k) for key, queries in asked], known.problems


def _runs(pieces: Iterable[Piece]) -> list[tuple[int, int, int, tuple[int, int] | None]]:
    """Pieces that follow each other as one: segment, first, stop, and a pack of their first rows."""
    runs: list[tuple[int, int, int, tuple[int, int] | None]] = []
    for piece in sorted(pieces, key=lambda piece: (piece.segment, piece.first)):
        if runs and runs[-1][0] == piece.segment and runs[-1][2] == piece.first:
            runs[-1] = (*runs[-1][:2], piece.stop, runs[-1][3])
        else:
            runs.append((piece.segment, piece.first, piece.stop, piece.pack))
    return runs


# ---- the front ----


@dataclass(eq=False)
class _Replica:
    """A process that searches a shard, as the front sees it."""

    shard: int
    number: int
    actor: Any = None  # None: dead
    starting: Any = None  # Ray's reference of the answer that it is ready
    tried: float = 0.0  # when it was started last
    node: str = ""  # where it was started last
    avoid: str = ""  # a node that it was lost on
    failures: int = 0  # to start
    problems: list[str] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.actor is not None and self.starting is None


def place(replica: _Replica, replicas: Sequence[_Replica], nodes: Sequence[Node], on_gpu: bool) -> Node:
    """Where to start a process: not where it was lost, away from others of its shard, and where there are fewest."""
    others = [other for other in replicas if other.actor is not None]
    held = [other.node for other in others]
    twins = [other.node for other in others if other.shard == replica.shard]
    turn = replica.shard + replica.number

    def cost(number: int) -> tuple[bool, bool, int, int, int]:
        node = nodes[number]
        full = on_gpu and held.count(node.id) >= node.gpus  # there it would wait for one
        return full, node.id == replica.avoid, twins.count(node.id), held.count(node.id), (number - turn) % len(nodes)

    return nodes[min(range(len(nodes)), key=cost)]


class ShardedGallery(Gallery):
    """A gallery, open for reading, whose searches run on a cluster: see :func:`open_sharded`."""

    _cluster: Cluster | None = None
    _replicas: tuple[_Replica, ...] = ()

    def spread(self, cluster: Cluster, shards: int | None, replicas: int) -> None:
        """Start the processes and wait until they can search.

        Raises:
            UserError: none of them starts.
        """
        self._ray, self._cluster = import_ray(), cluster
        nodes = cluster.nodes()
        self._shards = shards or len(nodes)
        if self._shards < 1 or replicas < 1:
            raise UserError(f"shards and replicas must be at least 1, got {self._shards} and {replicas}")
        self._layout: list[list[Piece]] = [[] for _ in range(self._shards)]
        self._told: tuple[Told, ...] = ()
        self._turn = itertools.count()
        self._tending = threading.Lock()
        self._said: set[str] = set()
        self._replicas = tuple(_Replica(s, r) for s in range(self._shards) for r in range(replicas))
        with self.snapshot() as (db, state):
            told = self._tell(db, state)
        end = time.monotonic() + START_SECONDS
        while True:
            self._tend(told)
            starting = [replica.starting for replica in self._replicas if replica.starting is not None]
            left = end - time.monotonic()
            if left <= 0 or not starting and all(r.alive or r.failures >= TRIES for r in self._replicas):
                break
            if starting:
                self._ray.wait(starting, num_returns=len(starting), timeout=left)
            else:
                time.sleep(0.1)  # one has just failed, and may be tried again soon
        if not any(replica.alive for replica in self._replicas):
            raise UserError(
                f"no shard of {self.folder} starts: {' '.join(sorted(self._said)) or 'no room on the cluster'}"
            )

    def close(self) -> None:
        for replica in self._replicas:
            self._kill(replica)
        self._replicas = ()
        super().close()

    @property
    def problems(self) -> list[str]:
        """A line for everything that could not be searched at some time since the gallery was opened."""
        return sorted(self._said)

    @property
    def alive(self) -> list[int]:
        """Processes of each shard that can answer now."""
        with self.snapshot() as (db, state):
            self._tend(self._tell(db, state))
        return [sum(r.alive for r in self._replicas if r.shard == shard) for shard in range(self._shards)]

    # ---- states ----

    def _make_ready(self, db: sqlite3.Connection, state: State) -> State:
        return replace(state, parts=(), ready=True)  # this process searches nothing

    def refresh(self) -> bool:
        """As :meth:`Gallery.refresh`; also looks after the shards and tells them what is new."""
        changed = super().refresh()
        with self.snapshot() as (db, state):
            told = self._tell(db, state)
        self._tend(told)
        flying = {r.actor.take.remote(told[r.shard]): r for r in self._replicas if r.alive}
        self._ray.wait(list(flying), num_returns=len(flying), timeout=ANSWER_SECONDS) if flying else None
        return changed

    def vector(self, id: int) -> np.ndarray:
        """As :meth:`Gallery.vector`, from the file."""
        item = self.item(id)
        return self.files.read_rows(item.segment, item.row, 1)[0]

    def _tell(self, db: sqlite3.Connection, state: State) -> tuple[Told, ...]:
        """What the shards are to know of a state. Pieces stay where they are; new rows go where there are fewest."""
        with self._lock:
            if self._told and self._told[0].revision == state.revision:
                return self._told
            counts = {segment.number: segment.count for segment in state.segments}
            layout = [[piece for piece in pieces if piece.segment in counts] for pieces in self._layout]
            size = max(LEAST_ROWS, -(-sum(counts.values()) // (2 * self._shards)))
            for number, count in counts.items():
                ends = {
                    piece.stop: shard
                    for shard in range(self._shards)
                    for piece in layout[shard]
                    if piece.segment == number
                }
                covered = max(ends, default=0)
                for first in range(covered, count, size):
                    stop = min(first + size, count)
                    loads = [sum(piece.stop - piece.first for piece in pieces) for pieces in layout]
                    shard = loads.index(min(loads))
                    if first in ends and loads[ends[first]] - min(loads) < size:
                        shard = ends[first]  # a few more rows behind those that it has
                    layout[shard].append(self._piece(db, number, first, stop))
            told = tuple(Told(state.revision, tuple(pieces), bits(state.alive, pieces)) for pieces in layout)
            if not self._told or self._told[0].revision < state.revision:
                self._layout, self._told = layout, told
            return told

    def _piece(self, db: sqlite3.Connection, number: int, first: int, stop: int) -> Piece:
        statement = "SELECT stop, crc FROM blocks WHERE segment = ? AND stop {} ? ORDER BY stop {} LIMIT 1"
        before = db.execute(statement.format("<=", "DESC"), (number, first)).fetchone()
        behind = db.execute(statement.format(">=", "ASC"), (number, stop)).fetchone()
        pack = None if first else self._pack(db, number)
        usable = (pack.count, pack.crc) if pack is not None and pack.count == stop else None
        return Piece(number, first, stop, before or (0, 0), behind, usable)

    # ---- searching ----

    def _scan(
        self,
        db: sqlite3.Connection,
        state: State,
        filters: Mapping[Key, Filter | None],
        queries: Mapping[Key, np.ndarray],
        k: int,
    ) -> tuple[dict[Key, Best], bool]:
        told = self._tell(db, state)
        self._tend(told)
        asked = list(queries.items())
        sent = self._ray.put(asked) if sum(some.nbytes for some in queries.values()) > LARGE else asked
        masks: dict[Key, dict[int, np.ndarray]] = {}
        found: list[list[Best]] = []
        whole = True
        flying: dict[Any, tuple[_Replica, int]] = {}

        def ask(replica: _Replica, tries: int) -> None:
            flying[replica.actor.search.remote(state.revision, k, sent)] = replica, tries

        def teach(replica: _Replica) -> None:
            """Ray keeps the order of what it is asked to tell an actor."""
            for key in queries:
                if key and key not in masks:
                    masks[key] = self._masks(db, state, filters[key])
            replica.actor.take.remote(told[replica.shard])
            if masks:
                pieces = told[replica.shard].pieces
                replica.actor.learn.remote(state.revision, {key: bits(mask, pieces) for key, mask in masks.items()})

        for shard, one in enumerate(told):
            if one.pieces:
                first = self._pick(shard)
                if first is None:
                    whole = False
                else:
                    ask(first, 0)
        end = time.monotonic() + ANSWER_SECONDS
        while flying:
            ready, _ = self._ray.wait(list(flying), num_returns=1, timeout=max(0.0, end - time.monotonic()))
            if not ready:
                for replica, _ in flying.values():
                    self._bury(replica, f"shard {replica.shard} did not answer within {ANSWER_SECONDS:.0f} s")
                whole = False
                break
            for ref in ready:
                replica, tries = flying.pop(ref)
                try:
                    got = self._ray.get(ref)
                except self._ray.exceptions.RayError as error:
                    self._bury(replica, f"shard {replica.shard} is gone: {last_line(error)}")
                    other = self._pick(replica.shard)
                    if other is None:
                        whole = False
                    else:
                        ask(other, 0)
                    continue
                if got is None and tries < STATES:
                    teach(replica)
                    ask(replica, tries + 1)
                elif got is None:
                    whole = False
                else:
                    answers, replica.problems = got
                    found.append(answers)
                    whole &= not replica.problems
                    self._say(replica.problems)
        empty = [nothing(len(some)) for some in queries.values()]
        return {key: merge(parts, k) for key, *parts in zip(queries, empty, *found, strict=True)}, whole

    # ---- processes ----

    def _pick(self, shard: int) -> _Replica | None:
        """A process that can answer for a shard, in turn; one with all of its rows if there is one."""
        alive = [replica for replica in self._replicas if replica.shard == shard and replica.alive]
        best = [replica for replica in alive if not replica.problems] or alive
        return best[next(self._turn) % len(best)] if best else None

    def _tend(self, told: Sequence[Told]) -> None:
        """Start what is dead, and take in what has become ready."""
        if all(replica.alive for replica in self._replicas) or not self._tending.acquire(blocking=False):
            return
        try:
            nodes: list[Node] = []
            for replica in self._replicas:
                if replica.starting is not None:
                    self._look_at(replica)
                if replica.actor is None and time.monotonic() - replica.tried >= AGAIN_SECONDS:
                    nodes = nodes or self._nodes()
                    self._start(replica, nodes, told)
        finally:
            self._tending.release()

    def _nodes(self) -> list[Node]:
        assert self._cluster is not None
        return [node for node in self._cluster.nodes() if node.cpus] or self._cluster.nodes()

    def _start(self, replica: _Replica, nodes: Sequence[Node], told: Sequence[Told]) -> None:
        """Start a process; replicas of a shard on different machines, as far as there are enough."""
        assert self._cluster is not None
        on_gpu = self._device.startswith("cuda")
        node = place(replica, self._replicas, nodes, on_gpu)
        replica.node = node.id
        threads = max(1, node.cpus // -(-len(self._replicas) // len(nodes)))
        # It asks for no processor of its own: searches are short, and work that is not may want all of them. Nowhere else
        # than there: with a softer wish Ray puts processes on the head while other machines are new, and leaves them there.
        options = self._cluster.on(node) | {"num_cpus": 0, "num_gpus": int(on_gpu), "max_restarts": 0}
        arguments = (self.files.folder.absolute(), self.dim, threads, "cuda" if on_gpu else "cpu", str(node))
        replica.actor = self._ray.remote(Shard).options(**options).remote(*arguments)
        replica.starting = replica.actor.take.remote(told[replica.shard])
        replica.tried = time.monotonic()

    def _look_at(self, replica: _Replica) -> None:
        ready, _ = self._ray.wait([replica.starting], timeout=0)
        if not ready:
            return
        try:
            replica.problems = self._ray.get(replica.starting)
            replica.starting, replica.failures = None, 0
            self._say(replica.problems)
        except self._ray.exceptions.RayError as error:
            replica.failures += 1
            # A machine that has just joined may refuse the first time.
            self._bury(replica, f"shard {replica.shard} does not start: {last_line(error)}", replica.failures % 2 == 0)

    def _bury(self, replica: _Replica, reason: str, avoid: bool = True) -> None:
        """Take note that a process is gone; ``avoid``: that its machine may be gone too is known only after a while."""
        self._say([reason])
        replica.avoid = replica.node if avoid else ""
        self._kill(replica)

    def _kill(self, replica: _Replica) -> None:
        actor, replica.actor, replica.starting = replica.actor, None, None
        if actor is not None:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)

    def _say(self, lines: Iterable[str]) -> None:
        for line in lines:
            if line not in self._said:
                self._said.add(line)
                log.warning("%s", line)


def open_asked(config: SearchConfig | ServeConfig, cluster: Cluster | None) -> Gallery:
    """The gallery that a command searches: on a cluster if there is one, else a folder or a collection of Milvus."""
    if cluster is None:
        return open_gallery(config.gallery, engine=config.engine, device=config.device, model=config.model)
    if address.is_address(config.gallery):
        raise UserError(
            f"--engine ray searches the gallery of a folder, not {config.gallery}: Milvus has its own machines"
        )
    return open_sharded(
        config.gallery,
        cluster,
        shards=config.shards,
        replicas=config.replicas if isinstance(config, ServeConfig) else 1,
        engine=config.encoder,
        device=config.device,
        model=config.model,
    )


def open_sharded(
    folder: Path | str,
    cluster: Cluster,
    *,
    shards: int | None = None,
    replicas: int = 1,
    engine: str = "auto",
    device: str = "auto",
    model: Path | str | None = None,
    encoder: "Encoder | None" = None,
) -> ShardedGallery:
    """Open a gallery for searches on a cluster; otherwise as :meth:`Gallery.open`.

    Example::

        with connect("head:6379") as cluster, open_sharded("my-gallery", cluster, replicas=2) as gallery:
            matches = gallery.search(sketches=["horse.png"])[0]
            print(matches, "of a part of the gallery" if matches.partial else "")

    Args:
        folder: of the gallery, which all machines see under the same path.
        cluster: connected, for as long as the gallery is open.
        shards: parts of the gallery; None: one for each machine.
        replicas: processes for each part.
        engine: what encodes queries, in this process.
        device: cuda searches on GPUs, one for each process; else on processors.
        model: see :meth:`Gallery.open`.
        encoder: see :meth:`Gallery.open`.

    Raises:
        UserError: as :meth:`Gallery.open`, or no shard starts.
    """
    gallery = ShardedGallery.open(folder, engine=engine, device=device, model=model, encoder=encoder)
    assert isinstance(gallery, ShardedGallery)
    try:
        gallery.spread(cluster, shards, replicas)
    except BaseException:
        gallery.close()
        raise
    return gallery
