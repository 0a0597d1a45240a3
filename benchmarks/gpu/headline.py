"""Top-k: ours against torch.matmul and torch.topk, each time beside its floor and each answer beside float64's.

A gallery is made once for all numbers of queries; what says most comes first, in case the time runs out. The second
part has the sizes of LiteTopK (arXiv 2607.11976: inner products of 768 numbers, cuBLAS and torch.topk as the peer).
"""

import functools
import traceback
from typing import Any, NamedTuple

import torch
from torch import Tensor

from splip import _C, ops
from splip.ops import quantized, topk

from .galleries import CHECKED, POOL, Peers, exact_topk, make_gallery, recall, time_peers
from .timing import attempt, row_of, scan_floor, time_ms
from .worker import Job

K = 10
QUERIES = (1, 8, 32, 128, 256, 1024, 4096)
LITE_QUERIES = (1, 8, 32, 64, 128)
# How much faster than cuBLAS + torch.topk LiteTopK says it is on an H100, at 1M and 4M rows.
LITE_RATIO = {8: (1.09, 1.22), 32: (1.39, 1.63), 64: (1.79, 2.17), 128: (2.20, 2.86)}
NARROW = 64  # queries up to which no way to multiply but stream and tiles64 is chosen


class Series(NamedTuple):
    """A gallery and the numbers of queries; eight: measure its 8-bit form too."""

    N: int
    D: int
    dtype: str
    queries: tuple[int, ...]
    eight: bool = False


SERIES = (
    Series(10_000_000, 512, "float16", QUERIES, eight=True),
    Series(1_000_000, 768, "float16", LITE_QUERIES, eight=True),
    Series(1_000_000, 512, "bfloat16", QUERIES),
    Series(4_000_000, 768, "float16", LITE_QUERIES, eight=True),
    Series(1_000_000, 512, "float16", QUERIES, eight=True),
    Series(4_000_000, 768, "bfloat16", LITE_QUERIES),
    Series(1_000_000, 768, "bfloat16", LITE_QUERIES),
    Series(10_000_000, 512, "bfloat16", QUERIES),
)


def way(job: Job, Q: int) -> str:
    """The automatic one; without wgmma, what stands in for it."""
    return "tiles128" if "wgmma" in job.leave_out and Q > NARROW else "automatic"


def published(series: Series, Q: int) -> float | None:
    if series.D != 768 or Q not in LITE_RATIO:
        return None
    return LITE_RATIO[Q][0 if series.N == 1_000_000 else 1]


def batches_of(pool: Tensor, Q: int, N: int) -> list[Tensor]:
    """The first holds the checked queries. A gallery is larger than the cache: other queries only vary the answers."""
    sets = 4 if Q * N <= 1 << 28 else 1
    return [pool.roll(-Q * i, 0)[:Q].contiguous() for i in range(sets)]


def measure(
    job: Job, series: Series, Q: int, pool: Tensor, gallery: Tensor, searched: Any, want: Any, peers: Peers | None
) -> Peers | None:
    """One row. Peers that were timed for the same rows in 16 bits are taken over."""
    eight = isinstance(searched, ops.EightBitGallery)
    dtype = "int8" if eight else series.dtype
    batches = batches_of(pool, Q, series.N)
    scan = way(job, Q)
    times = {"splip": time_ms([functools.partial(topk._cuda_topk, q, searched, K, None, scan) for q in batches])}
    if not eight and _C.cuda_stream_queries < Q:
        calls = [functools.partial(topk._cuda_topk, q, gallery, K, None, scan) for q in batches]
        times["splip, not prepared"] = time_ms(calls, 0.05)
    scores, ids = topk._cuda_topk(batches[0], searched, K, None, scan)
    want_scores, want_ids = (t[:Q] for t in want)
    found = recall(ids, want_ids)
    error = float((scores[:CHECKED] - want_scores).abs().max())
    if peers is None:
        peers = time_peers(batches, gallery, K, want_ids, attempt)
    sizes = f"Q={Q} N={series.N:,} D={series.D} K={K} {dtype}"
    floor = scan_floor(Q, series.N, series.D, dtype, job.ceiling)
    equal = bool(torch.equal(ids[:CHECKED], want_ids))
    row = row_of("cosine_topk", sizes, floor, {**times, **peers.times}, recall=found, peers_recall=peers.recall,
                 error=error, ids_equal_float64=equal, published=published(series, Q))  # fmt: skip
    job.row(row)
    said = ", ".join(f"{name} {r:.3f}" for name, r in peers.recall.items())
    print(f"      recall against float64 {found:g} (order {'the same' if equal else 'differs'}); {said}", flush=True)
    if found < 1 or not error < 1.2e-7:
        job.wrong(f"cosine_topk {sizes}: recall {found}, scores off by {error:.3g}")
    return peers


def run_series(job: Job, series: Series) -> None:
    gallery, pool = make_gallery(series.N, series.D, getattr(torch, series.dtype))
    want = exact_topk(pool[:CHECKED], gallery, K)
    prepared = quantized.prepare_gallery(gallery)
    eight_bits = ops.eight_bit_gallery(gallery) if series.eight else None
    for Q in series.queries:
        if job.left() < 6:
            job.found(**{f"stopped at {series}": f"Q={Q}: the time is up"})
            return
        try:
            peers = measure(job, series, Q, pool, gallery, prepared, want, None)
            if eight_bits is not None:
                measure(job, series, Q, pool, gallery, eight_bits, want, peers)
        except Exception as e:
            traceback.print_exc()
            job.wrong(f"{series} Q={Q}: {type(e).__name__}: {str(e)[:200]}")
            torch.cuda.synchronize()  # raises if the context is lost: then nothing more can be measured
            torch.cuda.empty_cache()


def headline(job: Job) -> None:
    assert max(QUERIES) <= POOL
    room = torch.cuda.get_device_properties(0).total_memory
    for series in SERIES:
        needs = 3 * series.N * series.D * 2
        if needs > room:
            job.found(**{f"left out {series}": f"needs {needs / 2**30:.0f} GiB of GPU memory"})
            continue
        run_series(job, series)
        torch.cuda.empty_cache()
