"""The committed states of a gallery, as its searches see them: one at a time, each of them whole."""

import contextlib
import ctypes
import importlib.util
import sqlite3
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from splip.errors import GalleryError, UserError
from splip.gallery import catalog
from splip.gallery.catalog import Filter
from splip.gallery.folder import GalleryFolder
from splip.gallery.matches import Key, Match, Matches
from splip.gallery.scan import Best, Part, Run, answer, choose, cover, hits
from splip.gallery.segments import Pack, Segments

PLANS = 32  # filters whose rows are remembered

Filters = Mapping[Key, Filter | None]
"""The filters of one search, each once."""


@dataclass(frozen=True)
class Segment:
    """A file of vectors, as far as it is committed."""

    number: int
    count: int  # rows
    crc: int  # of their bytes


@dataclass(frozen=True)
class State:
    """One committed revision, as a search sees it."""

    revision: int
    segments: tuple[Segment, ...]
    alive: dict[int, np.ndarray]  # bool [count] of segments with deleted rows
    live: int  # rows that may be results
    parts: tuple[Part, ...] = ()
    ready: bool = False  # the parts cover all segments: made so by the first search


NONE = State(-1, (), {}, 0)

Scan = Callable[[sqlite3.Connection, State, Filters, Mapping[Key, np.ndarray], int], tuple[dict[Key, Best], bool]]
"""Finds the best k rows for the queries float32 ``[Q, D]`` of each filter; says whether all of the gallery was searched."""


class Snapshots:
    """The state that searches see, and the next ones as a writer commits them. May be used by several threads.

    Args:
        folder: open; stays the caller's to close.
        device: where vectors are searched: cpu, cuda, ...; auto takes a GPU if they fit there comfortably; None: not in
            this process.
    """

    def __init__(self, folder: GalleryFolder, device: str | None) -> None:
        self.folder, self._device = folder, device
        self.state = NONE  # as of the last search or refresh
        self._seen = -1  # revision of the last refresh
        self._lock = threading.Lock()
        self._plans: OrderedDict[tuple[int, Key], list[Run]] = OrderedDict()
        self._place: str | None = None

    def forget(self) -> None:
        """Let go of files that are mapped."""
        self._plans.clear()
        self.state = NONE

    def refresh(self) -> bool:
        """Take in what a writer has committed since; True if anything changed since the last call."""
        with self.take(ready=self.state.ready) as (_, state):
            changed, self._seen = state.revision != self._seen, state.revision
        return changed

    @contextlib.contextmanager
    def take(self, ready: bool = True) -> Iterator[tuple[sqlite3.Connection, State]]:
        """A transaction that reads, and the state of its revision; ``ready``: to be searched.

        Raises:
            UserError: its files are damaged. Unavailable: one that is mapped was cut off.
        """
        failed = None
        while True:
            with self.folder.catalog.reading() as db:
                revision = catalog.revision(db)
                try:
                    state = self._take_in(db, revision, ready)
                except (UserError, FileNotFoundError) as error:
                    # Its files may have gone with a compaction that was committed after this transaction began.
                    if failed == revision:
                        if isinstance(error, OSError):
                            raise GalleryError(f"{self.folder.path}: {error}") from None
                        raise
                    failed = revision
                    continue
                if state is not None:
                    if ready:
                        self._check_mapped(state)
                    yield db, state
                    return

    # ---- taking in a revision ----

    def _check_mapped(self, state: State) -> None:
        """Raises Unavailable: a file that a search would read was cut off since it was mapped."""
        packs = {part.segment: part.bytes for part in state.parts if part.stored}
        for segment in state.segments:
            self.folder.files.check_mapped(segment.number, segment.count, packs.get(segment.number, 0))

    def _take_in(self, db: sqlite3.Connection, revision: int, ready: bool) -> State | None:
        """The state of a revision; None if another thread has a newer one already."""
        state = self.state
        if state.revision == revision and (state.ready or not ready):
            return state
        with self._lock:
            state = self.state
            if state.revision > revision:
                return None
            if state.revision < revision:
                state = self._load(db, revision, state)
            if ready and not state.ready:
                state = replace(state, parts=self._parts(db, state), ready=True)
            self.state = state
            return state

    def _load(self, db: sqlite3.Connection, revision: int, before: State) -> State:
        """The state of a later revision, from what has changed."""
        segments = tuple(Segment(*row) for row in db.execute("SELECT number, count, crc FROM segments ORDER BY number"))
        alive: dict[int, np.ndarray] = {}
        for segment in segments:
            self.folder.files.check_size(segment.number, segment.count)
            old = before.alive.get(segment.number)
            if old is not None:
                alive[segment.number] = np.concatenate([old, np.ones(segment.count - len(old), dtype=bool)])
        rows = db.execute("SELECT segment, row FROM deleted WHERE revision > ?", (before.revision,))
        deleted = np.fromiter(rows, dtype=[("segment", "i8"), ("row", "i8")])
        for segment in segments:
            gone = deleted["row"][deleted["segment"] == segment.number]
            if len(gone):
                alive.setdefault(segment.number, np.ones(segment.count, dtype=bool))[gone] = False
        live = sum(s.count for s in segments) - sum(int((~mask).sum()) for mask in alive.values())
        return State(revision, segments, alive, live, before.parts)

    def _parts(self, db: sqlite3.Connection, state: State) -> tuple[Part, ...]:
        """Parts that cover all segments: those there are, pack files, and new ones for the rest."""
        if self._device is None:
            return ()
        old: dict[int, list[Part]] = {}
        for part in state.parts:
            old.setdefault(part.segment, []).append(part)
        device, files = self._search_device(self._device, state), self.folder.files
        parts: list[Part] = []
        for segment in state.segments:
            have, pack = old.get(segment.number, []), None
            if device == "cpu" and not (len(have) == 1 and have[0].stored and have[0].stop == segment.count):
                pack = committed_pack(db, files, segment.number)
            if segment.count:
                parts += cover(files, segment.number, 0, segment.count, have, pack, device)
        return tuple(parts)

    def _search_device(self, asked: str, state: State) -> str:
        """Where vectors are searched: on a GPU that was asked for, or on any if they fit comfortably."""
        if self._place is None:
            needed = sum(s.count for s in state.segments) * self.folder.files.dim * 4
            self._place = place(asked, needed)
        return self._place

    # ---- searching one ----

    def search(
        self, queries: np.ndarray, k: int, filters: Sequence[Filter | None], scan: Scan | None = None
    ) -> list[list[Match]]:
        """What is found in one state: score descending, then id ascending.

        Args:
            queries: float32 ``[Q, D]``, finite.
            k: items a query.
            filters: one for each query.
            scan: finds rows; None: :meth:`scan`.
        """
        groups: dict[Key, list[int]] = {}
        for number, one in enumerate(filters):
            groups.setdefault(one.key() if one else (), []).append(number)
        found: list[list[tuple[float, tuple[int, int]]]] = [[] for _ in queries]
        with self.take() as (db, state):
            chosen = {key: filters[numbers[0]] for key, numbers in groups.items()}
            asked = {key: queries[rows] for key, rows in groups.items()}
            answers, whole = (scan or self.scan)(db, state, chosen, asked, k)
            for key, numbers in groups.items():
                for number, places in zip(numbers, hits(answers[key]), strict=True):
                    found[number] = places
            wanted: dict[int, set[int]] = {}
            for places in found:
                for _, (segment, row) in places:
                    wanted.setdefault(segment, set()).add(row)
            items = {
                (item.segment, item.row): item
                for segment, rows in wanted.items()
                for item in catalog.items_at(db, segment, sorted(rows))
            }
        matches: list[list[Match]] = []
        for places in found:
            ranked = [(score, items[place]) for score, place in places]
            matches.append(Matches((Match.of(item, score) for score, item in ranked), not whole))
        return matches

    def scan(
        self, db: sqlite3.Connection, state: State, filters: Filters, queries: Mapping[Key, np.ndarray], k: int
    ) -> tuple[dict[Key, Best], bool]:
        """The best rows of a state's parts, in this process: a :data:`Scan`."""
        return {key: answer(self._plan(db, state, key, filters[key]), some, k) for key, some in queries.items()}, True

    def _plan(self, db: sqlite3.Connection, state: State, key: Key, filter: Filter | None) -> list[Run]:
        """What to scan for a filter, remembered for as long as nothing changes."""
        name = (state.revision, key)
        with self._lock:
            if name in self._plans:
                self._plans.move_to_end(name)
                return self._plans[name]
        masks = passing(db, state, filter)
        plan = [run for part in state.parts if (run := choose(part, masks.get(part.segment))) is not None]
        if filter and filter.without:  # of one search alone
            return plan
        with self._lock:
            for old in [n for n in self._plans if n[0] != state.revision]:
                del self._plans[old]
            self._plans[name] = plan
            while len(self._plans) > PLANS:
                self._plans.popitem(last=False)
        return plan


def place(asked: str, needed: int) -> str:
    """The device that is meant; torch is imported only where there may be another than the CPU.

    Args:
        asked: cpu, cuda, cuda:1, ...; auto takes a GPU if three times the vectors fit.
        needed: bytes of the vectors.

    Raises:
        UserError: no such device.
    """
    if asked == "cpu" or (asked == "auto" and not may_have_gpu()):
        return "cpu"
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(f"no device {asked}: PyTorch is not installed") from None
    if asked != "auto":
        try:
            device = torch.device(asked)
        except RuntimeError as error:
            raise UserError(f"no device {asked}: {str(error).splitlines()[0]}") from None
        return "cpu" if device.type == "cpu" else str(device)
    return "cuda" if torch.cuda.is_available() and 3 * needed < torch.cuda.mem_get_info()[0] else "cpu"


def may_have_gpu() -> bool:
    """Whether asking torch for a GPU is worth its import: it is there already, or a driver is."""
    if sys.modules.get("torch") is not None:
        return True
    if importlib.util.find_spec("torch") is None:
        return False
    if Path("/dev/kfd").exists():  # AMD's
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def passing(db: sqlite3.Connection, state: State, filter: Filter | None) -> dict[int, np.ndarray]:
    """Rows that may be results, bool ``[count]``, of segments where not all may."""
    if not filter:
        return state.alive
    if filter.without:  # a few of many: those that pass all else are known, or as quick to find as without this
        rest = passing(db, state, replace(filter, without=()))
        masks = {
            s.number: rest[s.number].copy() if s.number in rest else np.ones(s.count, bool) for s in state.segments
        }
        for number, row in catalog.places_of(db, filter.without):
            masks[number][row] = False
        return masks
    masks = {s.number: np.zeros(s.count, dtype=bool) for s in state.segments}
    found = np.fromiter(catalog.places(db, filter), dtype=[("segment", "i8"), ("row", "i8")])
    for number, mask in masks.items():
        mask[found["row"][found["segment"] == number]] = True
    return masks


def committed_pack(db: sqlite3.Connection, files: Segments, number: int) -> Pack | None:
    """The pack file of a segment, if it was made of rows as they were committed."""
    pack = files.open_pack(number)
    if pack is None:
        return None
    row = db.execute("SELECT crc FROM blocks WHERE segment = ? AND stop = ?", (number, pack.count)).fetchone()
    return pack if row is not None and row[0] == pack.crc else None
