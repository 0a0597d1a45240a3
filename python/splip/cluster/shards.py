"""A gallery searched by the machines of a Ray cluster, with the answers of one machine.

The rows of the gallery are divided into shards. A process for each (with ``replicas``, several) maps its rows into
memory where they lie, in the gallery's folder that all machines share, and runs the search of :mod:`splip.gallery.scan` on
them. The front reads the database, encodes the queries, asks every shard once for a batch, and merges by score and
place, so that ids and scores are those of a search on one machine. Every search sees one committed state: a process
that does not have it yet says so and is told. When a process is gone, another replica answers; without one the answer
is partial, says so, and Ray starts the process again, on another machine if need be.
"""

import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splip.cluster.pieces import Layout, Told, bits
from splip.cluster.ray import Cluster, import_ray, last_line
from splip.cluster.replicas import Replica, Replicas
from splip.cluster.settings import SearchSettings
from splip.cluster.shard import STATES
from splip.errors import UserError
from splip.gallery.catalog import Filter
from splip.gallery.matches import Key, Match
from splip.gallery.protocol import Searchable
from splip.gallery.queries import checked
from splip.gallery.scan import Best, merge, nothing
from splip.gallery.snapshot import Filters, State, passing
from splip.gallery.stored import StoredGallery
from splip.milvus import address
from splip.milvus.gallery import open_gallery

if TYPE_CHECKING:
    from splip.encoders.encoder import Encoder

ANSWER_SECONDS = 20.0  # for all shards to answer; what is late counts as gone
LARGE = 65_536  # bytes of queries that are worth to be sent once to each machine, not to each process


class ShardedGallery(StoredGallery):
    """A gallery, open for reading, whose searches run on a cluster: see :func:`open_sharded`."""

    def __init__(
        self,
        folder: Path,
        cluster: Cluster,
        *,
        shards: int | None = None,
        replicas: int = 1,
        engine: str = "auto",
        device: str = "auto",
        model: Path | str | None = None,
        encoder: "Encoder | None" = None,
    ) -> None:
        self.replicas: Replicas | None = None
        super().__init__(folder, None, engine=engine, device=device, model=model, encoder=encoder)
        try:
            self._ray = import_ray()
            shards = shards or len(cluster.nodes())
            if shards < 1 or replicas < 1:
                raise UserError(f"shards and replicas must be at least 1, got {shards} and {replicas}")
            files = self._files.files
            self.layout = Layout(files, shards)
            self.replicas = Replicas(cluster, files, shards, replicas, on_gpu=device.startswith("cuda"))
            self.replicas.start(self._tell())
        except BaseException:
            self._end_replicas()
            self._files.close()
            raise

    def _end_replicas(self) -> None:
        if self.replicas is not None:
            self.replicas.close()

    def close(self) -> None:
        """End the processes, release the database, and the encoder unless it was given."""
        self._end_replicas()
        super().close()

    # ---- what it holds ----

    def vector(self, id: int) -> np.ndarray:
        """The vector of an item, float32 ``[D]``, from the file; KeyError: no such item (any more)."""
        item = self.item(id)
        return self._files.files.read_rows(item.segment, item.row, 1)[0]

    # ---- shards ----

    @property
    def problems(self) -> list[str]:
        """A line for everything that could not be searched at some time since the gallery was opened."""
        return sorted(self._processes.said)

    @property
    def alive(self) -> list[int]:
        """Processes of each shard that can answer now."""
        self._processes.tend(self._tell())
        return self._processes.alive()

    @property
    def _processes(self) -> Replicas:
        assert self.replicas is not None
        return self.replicas

    def _tell(self) -> tuple[Told, ...]:
        """What the shards are to know of the newest state."""
        with self._snapshots.take() as (db, state):
            return self.layout.tell(db, state)

    def refresh(self) -> bool:
        """Take in what a writer has committed since, look after the shards and tell them; True if there is news."""
        changed = self._snapshots.refresh()
        told = self._tell()
        self._processes.tend(told)
        flying = {r.actor.take.remote(told[r.shard]): r for r in self._processes.all if r.alive}
        self._ray.wait(list(flying), num_returns=len(flying), timeout=ANSWER_SECONDS) if flying else None
        return changed

    # ---- searching ----

    def search_vectors(
        self, vectors: np.ndarray, k: int = 10, filter: Filter | Sequence[Filter | None] | None = None
    ) -> list[list[Match]]:
        """As :meth:`splip.gallery.gallery.Gallery.search_vectors`; the answers may be partial, and say so then.

        Raises:
            UserError: a shape does not match, a number is not finite, or k < 1.
        """
        queries, filters = checked(vectors, self.dim, k, filter)
        return self._snapshots.search(queries, k, filters, self._scan)

    def _scan(
        self, db: sqlite3.Connection, state: State, filters: Filters, queries: Mapping[Key, np.ndarray], k: int
    ) -> tuple[dict[Key, Best], bool]:
        """Ask every shard once, and merge what they answer."""
        told = self.layout.tell(db, state)
        self._processes.tend(told)
        found, whole = _Question(self._ray, self._processes, told, db, state, filters, queries, k).ask()
        empty = [nothing(len(some)) for some in queries.values()]
        return {key: merge(parts, k) for key, *parts in zip(queries, empty, *found, strict=True)}, whole


class _Question:
    """One search, on its way to all shards and back."""

    def __init__(
        self,
        ray: Any,
        replicas: Replicas,
        told: Sequence[Told],
        db: sqlite3.Connection,
        state: State,
        filters: Filters,
        queries: Mapping[Key, np.ndarray],
        k: int,
    ) -> None:
        self.ray, self.replicas, self.told = ray, replicas, told
        self.db, self.state, self.filters, self.k = db, state, filters, k
        asked = list(queries.items())
        self.sent = ray.put(asked) if sum(some.nbytes for some in queries.values()) > LARGE else asked
        self.masks: dict[Key, dict[int, np.ndarray]] = {}
        self.flying: dict[Any, tuple[Replica, int]] = {}  # by Ray's reference: who, and how often it was told
        self.found: list[list[Best]] = []
        self.whole = True

    def ask(self) -> tuple[list[list[Best]], bool]:
        """The answers, each with the best rows for all filters, and whether they are of all rows."""
        for shard, one in enumerate(self.told):
            if one.pieces:
                self.send(self.replicas.pick(shard), 0)
        end = time.monotonic() + ANSWER_SECONDS
        while self.flying:
            ready, _ = self.ray.wait(list(self.flying), num_returns=1, timeout=max(0.0, end - time.monotonic()))
            if not ready:
                for replica, _ in self.flying.values():
                    self.replicas.bury(replica, f"shard {replica.shard} did not answer within {ANSWER_SECONDS:.0f} s")
                self.whole = False
                break
            for ref in ready:
                self.take(ref, *self.flying.pop(ref))
        return self.found, self.whole

    def send(self, replica: Replica | None, tries: int) -> None:
        """Ask a process; None: nobody can answer for this shard."""
        if replica is None:
            self.whole = False
        else:
            self.flying[replica.actor.search.remote(self.state.revision, self.k, self.sent)] = replica, tries

    def take(self, ref: Any, replica: Replica, tries: int) -> None:
        """Take what a process answers; if it is gone, ask another one."""
        try:
            got = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            self.replicas.bury(replica, f"shard {replica.shard} is gone: {last_line(error)}")
            return self.send(self.replicas.pick(replica.shard), 0)
        if got is None and tries < STATES:
            self.teach(replica)
            self.send(replica, tries + 1)
        elif got is None:
            self.whole = False
        else:
            answers, replica.problems = got
            self.found.append(answers)
            self.whole &= not replica.problems
            self.replicas.say(replica.problems)

    def teach(self, replica: Replica) -> None:
        """Tell a process the state and the filters. Ray keeps the order of what it is asked to tell an actor."""
        for key, filter in self.filters.items():
            if key and key not in self.masks:
                self.masks[key] = passing(self.db, self.state, filter)
        told = self.told[replica.shard]
        replica.actor.take.remote(told)
        if self.masks:
            masks = {key: bits(mask, told.pieces) for key, mask in self.masks.items()}
            replica.actor.learn.remote(self.state.revision, masks)


def open_asked(config: SearchSettings, cluster: Cluster | None) -> Searchable:
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
        replicas=getattr(config, "replicas", 1),
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
    """Open a gallery for searches on a cluster; otherwise as :meth:`splip.gallery.gallery.Gallery.open`.

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
        model: see :meth:`splip.gallery.gallery.Gallery.open`.
        encoder: see :meth:`splip.gallery.gallery.Gallery.open`.

    Raises:
        UserError: as :meth:`splip.gallery.gallery.Gallery.open`, or no shard starts.
    """
    return ShardedGallery(
        Path(folder),
        cluster,
        shards=shards,
        replicas=replicas,
        engine=engine,
        device=device,
        model=model,
        encoder=encoder,
    )
