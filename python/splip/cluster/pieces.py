"""The rows of a gallery, divided among shards: what each is told of a committed state."""

import sqlite3
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from splip.gallery.segments import Segments
from splip.gallery.snapshot import State, committed_pack

LEAST_ROWS = 1024  # of a piece


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


def _counted(layout: Iterable[Iterable[Piece]]) -> list[int]:
    return [sum(piece.stop - piece.first for piece in pieces) for pieces in layout]


class Layout:
    """Which shard searches which rows. Pieces stay where they are; new rows go where there are fewest.

    Args:
        files: of the gallery.
        shards: how many.
    """

    def __init__(self, files: Segments, shards: int) -> None:
        self.files, self.shards = files, shards
        self._lock = threading.Lock()
        self._pieces: list[list[Piece]] = [[] for _ in range(shards)]
        self._told: tuple[Told, ...] = ()

    def rows(self) -> list[int]:
        """How many rows each shard has."""
        return _counted(self._pieces)

    def tell(self, db: sqlite3.Connection, state: State) -> tuple[Told, ...]:
        """What each shard is to know of a state."""
        with self._lock:
            if self._told and self._told[0].revision == state.revision:
                return self._told
            counts = {segment.number: segment.count for segment in state.segments}
            layout = [[piece for piece in pieces if piece.segment in counts] for pieces in self._pieces]
            size = max(LEAST_ROWS, -(-sum(counts.values()) // (2 * self.shards)))
            for number, count in counts.items():
                self._share(db, layout, number, count, size)
            told = tuple(Told(state.revision, tuple(pieces), bits(state.alive, pieces)) for pieces in layout)
            if not self._told or self._told[0].revision < state.revision:
                self._pieces, self._told = layout, told
            return told

    def _share(self, db: sqlite3.Connection, layout: list[list[Piece]], number: int, count: int, size: int) -> None:
        """Give out the rows of a segment that no shard has, ``size`` at a time."""
        ends = {piece.stop: shard for shard, pieces in enumerate(layout) for piece in pieces if piece.segment == number}
        for first in range(max(ends, default=0), count, size):
            loads = _counted(layout)
            shard = loads.index(min(loads))
            if first in ends and loads[ends[first]] - min(loads) < size:
                shard = ends[first]  # a few more rows behind those that it has
            layout[shard].append(self._piece(db, number, first, min(first + size, count)))

    def _piece(self, db: sqlite3.Connection, number: int, first: int, stop: int) -> Piece:
        statement = "SELECT stop, crc FROM blocks WHERE segment = ? AND stop {} ? ORDER BY stop {} LIMIT 1"
        before = db.execute(statement.format("<=", "DESC"), (number, first)).fetchone()
        behind = db.execute(statement.format(">=", "ASC"), (number, stop)).fetchone()
        pack = None if first else committed_pack(db, self.files, number)
        usable = (pack.count, pack.crc) if pack is not None and pack.count == stop else None
        return Piece(number, first, stop, before or (0, 0), behind, usable)
