"""torch.compile as the peer, of one case of each op: compiling takes seconds."""

import functools

import torch

from splip.ops import topk

from . import galleries, layernorm, patchify
from .headline import K, batches_of, way
from .timing import attempt, row_of, scan_floor, time_ms
from .worker import Job

TOPK = ((32, 1_000_000, 512), (1024, 1_000_000, 512))  # Q, N, D; bfloat16


def compiled(job: Job) -> None:
    peers = {"torch.compile": torch.compile}
    layernorm.bench_layernorm(job, layernorm.LAYERNORM[0], peers)
    patchify.bench_patchify(job, patchify.PATCHIFY[0], peers)
    search = torch.compile(galleries.whole)
    for Q, N, D in TOPK:
        gallery, pool = galleries.make_gallery(N, D, torch.bfloat16)
        batches = batches_of(pool, Q, N)
        scan = way(job, Q)
        times = {
            "splip": time_ms([functools.partial(topk._cuda_topk, q, gallery, K, None, scan) for q in batches]),
            "torch.compile": attempt([functools.partial(search, q, gallery, K) for q in batches]),
        }
        sizes = f"Q={Q} N={N:,} D={D} K={K} bfloat16"
        job.row(row_of("cosine_topk", sizes, scan_floor(Q, N, D, "bfloat16", job.ceiling), times))
