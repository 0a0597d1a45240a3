"""How wrong a tensor core's sums of unit rows are, against the bound that exact searches rely on (topk::score_error)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from splip import _C
from splip.ops import dispatch, quantized, topk

from .galleries import make_gallery
from .worker import Job

QUERIES, ROWS = 64, 1 << 14
WIDTHS = (64, 512, 768, 2048, 8192)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
UNIT = 2.0**-24


def score_error(D: int, tf32: bool) -> float:
    """topk_select.h's."""
    return UNIT * (4.0 * D + 32.0) + (2.02 / 1024 if tf32 else 0.0)


def matmul_scores(queries: Tensor, gallery: Tensor) -> Tensor:
    """cuBLAS on the tensor cores, its sums left in float32: what the unit does, if not what our kernels make of it."""
    if queries.dtype != torch.float32:
        return torch.mm(queries, gallery.T, out_dtype=torch.float32)
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    try:
        return queries @ gallery.T
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def scores_of_keys(keys: Tensor) -> Tensor:
    """Keys [Q, N] int64, score order in the upper half and inverted index in the lower, as float32 scores by index."""
    order, index = keys >> 32 & 0xFFFFFFFF, 0xFFFFFFFF - (keys & 0xFFFFFFFF)
    bits = torch.where(order >= 1 << 31, order - (1 << 31), 0xFFFFFFFF - order)
    bits = torch.where(bits >= 1 << 31, bits - (1 << 32), bits).int()  # as signed
    return bits.view(torch.float32).gather(1, index.argsort(1))


def pass_scores(scan: str, stored: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """What one pass of ours scores: products of queries with rows over their norms, stored or summed on the way."""

    def scores(queries: Tensor, gallery: Tensor) -> Tensor:
        (Q, D), N = queries.shape, len(gallery)
        keys = torch.zeros(Q, N, dtype=torch.int64, device=queries.device)
        counts = torch.zeros(Q, dtype=torch.int32, device=queries.device)
        thresholds = torch.full((Q,), -math.inf, device=queries.device)
        prepared = quantized.prepare_gallery(gallery)
        where = dispatch.place(queries)
        _C.cosine_topk_keys(
            queries=queries.data_ptr(),
            gallery=gallery.data_ptr(),
            inverse=prepared.inverse.data_ptr() if stored else 0,
            keys=keys.data_ptr(),
            counts=counts.data_ptr(),
            thresholds=thresholds.data_ptr(),
            Q=Q,
            N=N,
            D=D,
            dtype=dispatch.DTYPES[queries.dtype],
            scan=topk.SCANS[scan],
            device=where["device"],
            stream=where["stream"],
        )
        if not bool((counts == N).all()):
            raise RuntimeError(f"{scan}: {int(counts.min())} of {N} scores came out")
        return scores_of_keys(keys)

    return scores


def exact_scores(queries: Tensor, gallery: Tensor, normalised: bool) -> Tensor:
    q, g = queries.double(), gallery.double()
    if normalised:
        g = g / g.norm(dim=1, keepdim=True)
    return q @ g.T


def rounding(job: Job) -> None:
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"torch.matmul": matmul_scores}
    if not hasattr(_C, "cosine_topk_keys"):
        job.found(ours="not in this build")
    for scan in topk.SCANS if hasattr(_C, "cosine_topk_keys") else ():
        if scan not in job.leave_out | {"automatic"}:
            ways |= {scan: pass_scores(scan, False), f"{scan}, norms stored": pass_scores(scan, True)}
    for dtype in DTYPES:
        for D in WIDTHS:
            gallery, pool = make_gallery(ROWS, D, dtype)
            # Rows of one sign have the largest partial sums; the others are what galleries look like.
            for kind, (queries, rows) in {"random": (pool[:QUERIES], gallery),
                                          "positive": (pool[:QUERIES].abs(), gallery.abs())}.items():  # fmt: skip
                for name, way in ways.items():
                    want = exact_scores(queries, rows, name != "torch.matmul")
                    error = float((way(queries, rows).double() - want).abs().max())
                    # Of unit rows, nearly: the queries were rounded to their dtype.
                    bound = score_error(D, dtype == torch.float32) * float(queries.float().norm(dim=1).max())
                    case = f"{name} {str(dtype).removeprefix('torch.')} D={D} {kind}"
                    job.found(**{case: {"error": error, "bound": bound, "of_bound": error / bound}})
                    print(f"   {case}: {error:.2e}, {error / bound:.1%} of the bound", flush=True)
                    if not error <= bound or math.isnan(error):
                        job.wrong(f"rounding: {case}: {error:.3g} exceeds the bound {bound:.3g}")
