"""Exact searches in parts of a gallery, and their answers merged."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

import numpy as np

from splip import ops
from splip.gallery.segments import Pack, Segments
from splip.ops import host
from splip.ops.host import HostGallery

if TYPE_CHECKING:
    import torch

FEW = 64  # a filter that lets at most one row in this many pass gets a copy of them, which is quicker to scan


Rows = Union[HostGallery, "ops.PreparedGallery", "torch.Tensor"]  # noqa: UP007  torch is imported for GPUs only
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
    allowed: "np.ndarray | torch.Tensor | None" = None  # bool: which of the rows, where they are
    numbers: np.ndarray | None = None  # int64: of rows that were copied out; None: from first on


def cover(
    files: Segments,
    number: int,
    first: int,
    stop: int,
    old: Sequence[Part] = (),
    pack: Pack | None = None,
    device: str = "cpu",
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
        parts.append(Part(number, first, ready(files.map_rows(number, first, stop - first), device), False))
    return parts


def ready(rows: np.ndarray, device: str) -> Rows:
    """Rows float32 ``[n, D]`` as searches on a device take them."""
    if device == "cpu":
        return host.pack(rows)
    import torch

    moved = torch.from_numpy(rows).to(device)
    return ops.pack_gallery(moved) if moved.is_cuda else moved  # type: ignore[return-value]


def choose(part: Part, mask: np.ndarray | None) -> Run | None:
    """The rows of a part that a mask lets pass."""
    allowed = None if mask is None else mask[part.first : part.stop]
    count = part.rows.shape[0] if allowed is None else int(np.count_nonzero(allowed))
    if count == 0:
        return None
    if allowed is None or count == len(allowed):
        return Run(part.segment, part.first, part.rows)
    if count * FEW > len(allowed):
        return Run(part.segment, part.first, part.rows, _there(allowed, part.rows))
    places = np.flatnonzero(allowed)
    copy: Rows
    if isinstance(part.rows, HostGallery):
        copy = host.pack(part.rows.rows[places])
    else:
        index = _there(places, part.rows)
        if isinstance(part.rows, ops.PreparedGallery):
            copy = ops.PreparedGallery(part.rows.rows[index], part.rows.inverse[index], part.rows.width)
        else:
            copy = part.rows[index]
    return Run(part.segment, part.first, copy, None, places + part.first)


def _there(array: np.ndarray, rows: Rows) -> "np.ndarray | torch.Tensor":
    """An array where some rows are."""
    if isinstance(rows, HostGallery):
        return array
    import torch

    return torch.from_numpy(array).to(rows.rows.device if isinstance(rows, ops.PreparedGallery) else rows.device)


def vector(part: Part, row: int) -> np.ndarray:
    """A copy of a row of the segment, float32 ``[D]``."""
    if isinstance(part.rows, HostGallery):
        return part.rows.rows[row - part.first].copy()
    rows = part.rows.rows[:, : part.rows.width] if isinstance(part.rows, ops.PreparedGallery) else part.rows
    found: np.ndarray = rows[row - part.first].cpu().numpy().copy()
    return found


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
    if isinstance(plan[0].rows, HostGallery):
        answers = [host.topk(queries, run.rows, min(k, run.rows.shape[0]), run.allowed) for run in plan]  # type: ignore[arg-type]
    else:
        at = _there(queries, plan[0].rows)
        there = [ops.cosine_topk(at, run.rows, min(k, run.rows.shape[0]), run.allowed) for run in plan]  # type: ignore[arg-type]
        answers = [(scores.cpu().numpy(), index.cpu().numpy()) for scores, index in there]
    found = []
    for run, (scores, numbers) in zip(plan, answers, strict=True):
        rows = run.first + numbers if run.numbers is None else run.numbers[numbers]
        found.append((scores, np.full(numbers.shape, run.segment), rows))
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
