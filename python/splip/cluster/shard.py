"""Some rows of a gallery, searched by a process on one machine: what a shard does, without the one who asks it."""

import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from splip.cluster.pieces import Piece, Told
from splip.errors import UserError
from splip.gallery.matches import Key
from splip.gallery.scan import Best, Part, Run, answer, choose, cover
from splip.gallery.segments import Segments
from splip.gallery.snapshot import PLANS
from splip.ops import host

STATES = 3  # committed states that a shard remembers: searches of the one before may be on the way
CHUNK = 32_768  # rows read at a time


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
        host.limit(threads)
        self.files, self.device, self.name = Segments(folder, dim), device, name
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
            file = self.files.open_pack(number) if pack and not first and self.device == "cpu" else None
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
        if piece.pack is not None and self.device == "cpu":
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
