"""ms of every way to multiply by the number of queries: is the choice the right one, do they agree?"""

import functools
from typing import Any

import torch

from splip import _C, ops
from splip.ops import quantized, topk

from .galleries import make_gallery
from .timing import scan_floor, time_ms
from .worker import Job

N, D, K = 1_000_000, 512, 10
DTYPES = ("bfloat16", "int8", "float32")  # int8: a float16 gallery in 8 bits
SWEEP = (1, 8, 16, 32, 48, 64, 96, 128, 256, 512, 1024, 4096)  # queries
SWEEP_MOST = {"stream": 256, "tiles64": 1024}  # ways that are not meant for more


def last_of_each(rows: dict[int, dict[str, Any]]) -> dict[str, int]:
    """The most queries at which each way was the fastest."""
    return {row["best"]: Q for Q, row in sorted(rows.items())}


def ways(leave_out: set[str]) -> list[str]:
    return [s for s in topk.SCANS if s not in leave_out | {"automatic"}]


def sweep_dtype(job: Job, dtype: str) -> dict[int, dict[str, Any]]:
    gallery, pool = make_gallery(N, D, torch.float16 if dtype == "int8" else getattr(torch, dtype))
    searched = ops.eight_bit_gallery(gallery) if dtype == "int8" else quantized.prepare_gallery(gallery)
    rows: dict[int, dict[str, Any]] = {}
    for Q in SWEEP:
        if job.left() < 4:
            break
        queries, times, want = pool[:Q], {}, None
        for way in ways(job.leave_out):
            if SWEEP_MOST.get(way, Q) < Q:
                continue
            call = functools.partial(topk._cuda_topk, queries, searched, K, None, way)
            _, ids = call()
            want = ids if want is None else want
            if not torch.equal(ids, want):
                differ = float((ids != want).float().mean())
                job.wrong(f"sweep {dtype}: {way} at Q={Q}: {differ:.2%} of the ids differ")
            times[way] = time_ms([call], 0.1)["median"]
        floor = scan_floor(Q, N, D, dtype, job.ceiling)["floor_ms"]
        best = min(times, key=lambda way: times[way])
        rows[Q] = {"ms": times, "best": best, "of_floor": floor / times[best]}
        job.found(**{dtype: {"queries": rows, "fastest_up_to": last_of_each(rows)}})
        said = "  ".join(f"{way} {ms:.3f}" for way, ms in times.items())
        print(f"   {dtype} Q={Q}: {said}; best {best}, {floor / times[best]:.0%} of the floor", flush=True)
    return rows


def sweep(job: Job) -> None:
    chosen = {"stream": _C.cuda_stream_queries, "tiles64": _C.cuda_narrow_queries}
    job.found(automatic=chosen)
    for dtype in DTYPES:
        rows = sweep_dtype(job, dtype)
        print(f"   {dtype}: fastest up to {last_of_each(rows)}; chosen up to {chosen}", flush=True)
        torch.cuda.empty_cache()
