"""Exact searches in parts of a gallery, and their answers merged."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from splip import ops
from splip.gallery.segments import Pack, Segments

CPU = torch.device("cpu")
FEW = 64  # a filter that lets at most one row in this many pass gets a copy of them, which is quicker to scan


Rows = ops.PackedGallery | ops.PreparedGallery | Tensor
"""Packed on the CPU, with their norms on a GPU; plain on other devices."""


@dataclass(frozen=True)
class Part:
    """A run of rows of a segment, made ready for searches."""

    segment: int
    first: int
    rows: Rows
    stored: bool  # comes from a pack file
    bytes: int = 0  # of that file

    @property
    def stop(self) -> int:
        return self.first + self.rows.shape[0]


@dataclass(frozen=True)
class Run:
    """What a search scans at once: a part, or some of its rows."""

    segment: int
    first: int
    rows: Rows
    allowed: Tensor | None = None  # bool: which of the rows
    numbers: np.ndarray | None = None  # int64: of rows that were copied out; None: from first on


def cover(
    files: Segments,
    number: int,
    first: int,
    stop: int,
    old: Sequence[Part] = (),
    pack: Pack | None = None,
    device: torch.device = CPU,
) -> list[Part]:
    """Parts that cover rows of a segment: those there are, its pack file, and new ones for the rest.

    Args:
        files: of the gallery.
        number: of the segment.
        first: row; 0 if there is a pack file.
        stop: row behind the last.
        old: parts that cover some of these rows, from the first on.
        pack: made of committed rows, of no more than these.
        device: where new parts go.
    """
    parts = list(old)
    if pack is not None and pack.count > (parts[0].stop if parts and parts[0].stored else 0):
        parts = [Part(number, 0, files.use_pack(number, pack), True, len(pack.data))]
    first = parts[-1].stop if parts else first
    if first < stop:
        # As in a binary counter, so that a tail that grows in small steps is packed log(n) times, not n.
        while parts and not parts[-1].stored and first - parts[-1].first <= stop - first:
            first = parts.pop().first
        rows = torch.from_numpy(files.map_rows(number, first, stop - first))
        rows = rows.to(device)
        made = ops.pack_gallery(rows) if device.type in ("cpu", "cuda") else rows
        parts.append(Part(number, first, made, False))
    return parts


def choose(part: Part, mask: np.ndarray | None) -> Run | None:
    """The rows of a part that a mask lets pass."""
    allowed = None if mask is None else mask[part.first : part.stop]
    count = part.rows.shape[0] if allowed is None else int(np.count_nonzero(allowed))
    if count == 0:
        return None
    if allowed is None or count == len(allowed):
        return Run(part.segment, part.first, part.rows)
    if count * FEW > len(allowed):
        return Run(part.segment, part.first, part.rows, torch.from_numpy(allowed).to(_device(part.rows)))
    places = np.flatnonzero(allowed)
    index = torch.from_numpy(places)
    index = index.to(_device(part.rows))
    copy: Rows
    if isinstance(part.rows, ops.PackedGallery):
        copy = ops.pack_gallery(part.rows.rows[index])
    elif isinstance(part.rows, ops.PreparedGallery):
        copy = ops.PreparedGallery(part.rows.rows[index], part.rows.inverse[index], part.rows.width)
    else:
        copy = part.rows[index]
    return Run(part.segment, part.first, copy, None, places + part.first)


def _device(rows: Rows) -> torch.device:
    return rows.device if isinstance(rows, Tensor) else rows.rows.device


Best = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Scores float32, segments int64 and rows int64 ``[Q, n]`` of the best rows; what is missing scores ``-inf``."""


def scan(plan: Sequence[Run], queries: np.ndarray, k: int) -> list[list[tuple[float, tuple[int, int]]]]:
    """Scores and places ``(segment, row)`` of the best rows of each query; ties by place, as by id."""
    return hits(answer(plan, queries, k))


def answer(plan: Sequence[Run], queries: np.ndarray, k: int) -> Best:
    """The best rows of all runs, ``n <= k`` for every query."""
    return merge([nothing(len(queries)), *best(plan, queries, k)], k)


def best(plan: Sequence[Run], queries: np.ndarray, k: int) -> list[Best]:
    """The best rows of each run, for every query."""
    if not plan:
        return []
    at = torch.from_numpy(queries).to(_device(plan[0].rows))
    answers = [ops.cosine_topk(at, run.rows, min(k, run.rows.shape[0]), run.allowed) for run in plan]
    found = []
    for run, (scores, index) in zip(plan, answers, strict=True):
        numbers = index.cpu().numpy()
        rows = run.first + numbers if run.numbers is None else run.numbers[numbers]
        found.append((scores.cpu().numpy(), np.full(numbers.shape, run.segment), rows))
    return found


def nothing(count: int) -> Best:
    """The answer to some queries where there is no row."""
    return np.empty((count, 0), np.float32), np.empty((count, 0), np.int64), np.empty((count, 0), np.int64)


def merge(found: Iterable[Best], k: int) -> Best:
    """The best ``k`` of one or more answers to the same queries, in whatever order they come: ties by place."""
    parts = zip(*found, strict=True)
    scores, segments, rows = (np.concatenate(part, axis=1) for part in parts)
    order = np.lexsort((rows, segments, -scores), axis=1)[:, :k]
    return tuple(np.take_along_axis(part, order, axis=1) for part in (scores, segments, rows))  # type: ignore[return-value]


def hits(found: Best) -> list[list[tuple[float, tuple[int, int]]]]:
    """Scores and places of each query, best first."""
    return [
        [(score, (segment, row)) for score, segment, row in zip(*one, strict=True) if score != -np.inf]
        for one in zip(*(part.tolist() for part in found), strict=True)
    ]
