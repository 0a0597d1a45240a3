"""Galleries on the CPU without torch: numpy arrays, packed and searched by the same native code.

A program that finds pictures by vectors it has needs no torch, whose import takes longer than a search of millions of
rows. :mod:`splip.ops.topk` says what a search promises; here it is for float32 on the CPU alone.
"""

import functools
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np


class HostGallery(NamedTuple):
    """A gallery made ready for many searches on the CPU by :func:`pack`; the arrays are those of ``PackedGallery``."""

    rows: np.ndarray  # [N, D] float32: what was packed
    panels: np.ndarray  # uint8: rows in 8 bits, in the order of the scan
    scale: np.ndarray  # [ceil(N / 32) * 32] float32
    error: np.ndarray  # [ceil(N / 32) * 32] float32: length of what 8 bits lost
    inverse: np.ndarray  # [N] float64: 1 / norm
    centre: np.ndarray  # [D + 1] float32: mean of the unit rows, and the greatest length less it

    @property
    def shape(self) -> tuple[int, int]:
        """``[N, D]``."""
        N, D = self.rows.shape
        return N, D

    def addresses(self) -> dict[str, int]:
        """Of its arrays, by the names that the native module has for them."""
        rows, *others = (a.ctypes.data for a in self)
        return {"gallery": rows, **dict(zip(self._fields[1:], others, strict=True))}


_limit: int | None = None


def limit(count: int) -> None:
    """Take so many threads from now on, in this process."""
    global _limit
    _limit = count


def threads() -> int:
    """As many as :func:`limit` or torch is set to, ``OMP_NUM_THREADS``, or one for each core, as torch would take."""
    torch = sys.modules.get("torch")
    if _limit is not None:
        return _limit
    if hasattr(torch, "get_num_threads"):  # it may be half imported, by another thread
        return int(torch.get_num_threads())  # type: ignore[union-attr]
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else cores()


@functools.cache
def cores() -> int:
    """Cores that this process may run on: two threads of one are one."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    mine, siblings = os.sched_getaffinity(0), set()
    for number in mine:
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").read_text())
        except OSError:
            return len(mine)
    return len(siblings)


def aligned(count: int, alignment: int = 64) -> np.ndarray:
    """``count`` bytes at an aligned address."""
    memory = np.empty(count + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + count]


def sizes(N: int, D: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Type and shape of a packed gallery's arrays."""
    from splip import _C  # not before torch, where both are used: a build from source then shares its OpenMP runtime

    padded = (N + 31) // 32 * 32
    return {
        "rows": (np.dtype(np.float32), (N, D)),
        "panels": (np.dtype(np.uint8), (_C.packed_panel_bytes(N, D),)),
        "scale": (np.dtype(np.float32), (padded,)),
        "error": (np.dtype(np.float32), (padded,)),
        "inverse": (np.dtype(np.float64), (N,)),
        "centre": (np.dtype(np.float32), (D + 1,)),
    }


def pack(rows: np.ndarray) -> HostGallery:
    """Make rows float32 ``[N, D]`` ready for many exact searches: :func:`splip.ops.pack_gallery` without torch.

    Raises:
        ValueError: another shape or dtype.
    """
    from splip import _C

    if rows.ndim != 2 or not 1 <= rows.shape[1] <= 65536 or len(rows) >= 2**31 or rows.dtype != np.float32:
        raise ValueError(
            f"gallery must be float32 [N, D], N < 2**31, 1 <= D <= 65536, got {rows.dtype} {list(rows.shape)}"
        )
    rows = np.ascontiguousarray(rows)
    (N, D), count = rows.shape, threads()
    _, panels, *others = sizes(N, D).values()
    packed = HostGallery(rows, aligned(panels[1][0]), *(np.empty(shape, dtype) for dtype, shape in others))
    scratch = aligned(_C.pack_gallery_scratch(D=D, threads=count))
    _C.pack_gallery(**packed.addresses(), scratch=scratch.ctypes.data, N=N, D=D, device=-1, stream=0, threads=count)
    return packed


def check(gallery: HostGallery) -> None:
    """The scan reads what the sizes promise: an array that is too short would end the process.

    Raises:
        ValueError: one is not what it must be.
    """
    N, D = gallery.shape
    for (name, (dtype, shape)), array in zip(sizes(N, D).items(), gallery, strict=True):
        if array.dtype != dtype or array.shape != shape:
            found = f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"{name} of a packed gallery [{N}, {D}] must be {dtype} {list(shape)}, got {found}")
        if not array.flags.c_contiguous:
            raise ValueError(f"{name} of a packed gallery must be contiguous")
    if N and gallery.panels.ctypes.data % 64:
        raise ValueError("panels of a packed gallery must begin at a multiple of 64 bytes")


def bits(allowed: np.ndarray) -> np.ndarray:
    """A bit for each of bool ``[N]``, in whole words of 32, as the scan reads them."""
    packed = np.packbits(allowed, bitorder="little")
    found = np.zeros((len(allowed) + 31) // 32 * 4, np.uint8)
    found[: len(packed)] = packed
    return found


def topk(
    queries: np.ndarray, gallery: HostGallery, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` rows of largest cosine similarity for each query: :func:`splip.ops.cosine_topk` without torch.

    Args:
        queries: float32 ``[Q, D]``.
        gallery: packed.
        k: results per query, ``0 <= k <= N``.
        allowed: bool ``[N]``: rows that may be results.

    Returns:
        ``(scores, indices)``: ``[Q, k]`` float32 and ``[Q, k]`` int64.

    Raises:
        ValueError: a shape or dtype does not match, or ``k > N``.
    """
    from splip import _C

    N, D = gallery.shape
    if queries.ndim != 2 or queries.shape[1] != D or queries.dtype != np.float32:
        raise ValueError(
            f"queries must be float32 [Q, {D}] like the gallery, got {queries.dtype} {list(queries.shape)}"
        )
    if not 0 <= k <= N:
        raise ValueError(f"k must be between 0 and the gallery's size {N}, got {k}")
    if allowed is not None and (allowed.dtype != np.bool_ or allowed.shape != (N,)):
        raise ValueError(f"allowed must be bool [{N}], got {allowed.dtype} {list(allowed.shape)}")
    check(gallery)
    queries, Q, count = np.ascontiguousarray(queries), len(queries), threads()
    scores, indices = np.empty((Q, k), np.float32), np.empty((Q, k), np.int64)
    if not Q or not k:
        return scores, indices
    mask = None if allowed is None else bits(allowed)
    scratch = aligned(_C.packed_topk_scratch(Q=Q, D=D, K=k, threads=count))
    # fmt: off
    _C.packed_topk(
        queries=queries.ctypes.data, allowed=0 if mask is None else mask.ctypes.data, scores=scores.ctypes.data,
        indices=indices.ctypes.data, scratch=scratch.ctypes.data, Q=Q, N=N, D=D, K=k, **gallery.addresses(),
        device=-1, stream=0, threads=count,
    )
    # fmt: on
    return scores, indices
