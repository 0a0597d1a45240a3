"""Queries per second of exact cosine top-k: splip against torch's matmul + topk, in one run.

    OMP_WAIT_POLICY=passive python benchmarks/bench_cosine_topk.py --save my-machine

Both take unit-length float32 rows. torch writes the score matrix and reads it again; its matmul is
the best there is. `recall` is the share of the float64 top k that a candidate returns.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from harness import run, time_us

from splip import ops

N, D, K = 100_000, 512, 10
QUERIES = [1, 8, 32, 128]


def recall(indices: torch.Tensor, exact: torch.Tensor) -> float:
    hits = (indices[:, :, None] == exact[:, None, :]).any(dim=2)
    return float(hits.float().mean())


def cases(device: str, repeats: int) -> Iterator[dict[str, Any]]:
    gallery = F.normalize(torch.randn(N, D, device=device), dim=1)
    for Q in QUERIES:
        queries = F.normalize(torch.randn(Q, D, device=device), dim=1)
        candidates = {
            "splip": lambda: ops.cosine_topk(queries, gallery, K),
            "torch": lambda: (queries @ gallery.T).topk(K),
        }
        times = time_us(candidates, device, repeats)
        exact = (queries.double() @ gallery.double().T).topk(K).indices
        row: dict[str, Any] = {"Q": Q, "N": N, "D": D, "K": K}
        for name, function in candidates.items():
            row[f"{name}_us"] = times[name]["median"]
            row[f"{name}_queries_per_s"] = Q / times[name]["median"] * 1e6
            row[f"{name}_recall"] = recall(function()[1], exact)
        row["ratio"] = times["torch"]["median"] / times["splip"]["median"]
        row["gallery_GB_per_s"] = N * D * 4 / times["splip"]["median"] / 1e3
        row["times_us"] = times
        yield row


if __name__ == "__main__":
    run("cosine_topk", __doc__, cases)
