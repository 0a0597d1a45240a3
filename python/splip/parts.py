"""Exact searches in parts of a gallery, and their answers merged."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from splip import ops

FEW = 64  # a filter that lets at most one row in this many pass gets a copy of them, which is quicker to scan


@dataclass(frozen=True)
class Part:
    """A run of rows of a segment, made ready for searches."""

    segment: int
    first: int
    rows: ops.PackedGallery | Tensor
    stored: bool  # comes from a pack file

    @property
    def stop(self) -> int:
        return self.first + self.rows.shape[0]


@dataclass(frozen=True)
class Run:
    """What a search scans at once: a part, or some of its rows."""

    segment: int
    first: int
    rows: ops.PackedGallery | Tensor
    allowed: Tensor | None = None  # bool: which of the rows
    numbers: np.ndarray | None = None  # int64: of rows that were copied out; None: from first on


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
    if isinstance(part.rows, ops.PackedGallery):
        copy: ops.PackedGallery | Tensor = ops.pack_gallery(part.rows.rows[index])
    else:
        copy = part.rows[index.to(part.rows.device)]
    return Run(part.segment, part.first, copy, None, places + part.first)


def _device(rows: ops.PackedGallery | Tensor) -> torch.device:
    return rows.device if isinstance(rows, Tensor) else torch.device("cpu")


def scan(plan: list[Run], queries: np.ndarray, k: int) -> list[list[tuple[float, tuple[int, int]]]]:
    """Scores and places ``(segment, row)`` of the best rows of each query; ties by place, as by id."""
    if not plan:
        return [[] for _ in queries]
    at = torch.from_numpy(queries).to(_device(plan[0].rows))
    best = [ops.cosine_topk(at, run.rows, min(k, run.rows.shape[0]), run.allowed) for run in plan]
    scores, segments, rows = [], [], []
    for run, (found, index) in zip(plan, best, strict=True):
        numbers = index.cpu().numpy()
        scores.append(found.cpu().numpy())
        segments.append(np.full(numbers.shape, run.segment))
        rows.append(run.first + numbers if run.numbers is None else run.numbers[numbers])
    all_scores, all_segments, all_rows = (np.concatenate(part, axis=1) for part in (scores, segments, rows))
    # Stable, and the runs stand in the order of their places.
    order = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
    found_scores, found_segments, found_rows = (
        np.take_along_axis(part, order, axis=1).tolist() for part in (all_scores, all_segments, all_rows)
    )
    return [
        [(score, (segment, row)) for score, segment, row in zip(*hits, strict=True) if score != -np.inf]
        for hits in zip(found_scores, found_segments, found_rows, strict=True)
    ]
