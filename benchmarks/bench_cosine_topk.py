"""Queries per second of exact cosine top-k on the CPU: splip against FAISS, torch and usearch, in one run.

    pip install faiss-cpu usearch
    OMP_WAIT_POLICY=passive python benchmarks/bench_cosine_topk.py --save my-machine

All candidates search the same unit-length rows with the same threads and take turns. `recall` is the share of the
float64 top k that a candidate returns; splip's is 1 by construction. Galleries: `random` directions; `clustered`,
1,000 groups around a common direction, as features of a network lie; `ascending`, random but sorted by the
score of the first query, so that every row beats all before it. `floor_ms` is what reading the packed gallery
once would take at this machine's measured read bandwidth.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from harness import RESULTS, machine
from torch import Tensor

from splip import ops

Candidate = Callable[[Tensor, int], Tensor]  # queries, k to indices


def make(kind: str, N: int, D: int) -> tuple[Tensor, Tensor]:
    """Gallery ``[N, D]`` and 1,024 queries, unit length."""
    if kind == "clustered":
        common, centres = torch.randn(1, D), 0.5 * torch.randn(1000, D)
        gallery = common + centres[torch.randint(1000, (N,))] + 0.5 * torch.randn(N, D)
        queries = common + centres[torch.randint(1000, (1024,))] + 0.5 * torch.randn(1024, D)
        return F.normalize(gallery, dim=1), F.normalize(queries, dim=1)
    gallery, queries = F.normalize(torch.randn(N, D), dim=1), F.normalize(torch.randn(1024, D), dim=1)
    if kind == "ascending":
        gallery = gallery[(gallery @ queries[0]).argsort()]
        # All queries lie near the first one, so the order is theirs too.
        queries = F.normalize(queries[:1] + 0.02 * torch.randn(1024, D), dim=1)
    return gallery, queries


def read_bandwidth() -> float:
    """GB/s of summing 1 GB of integers, the best of some tries."""
    data, best = torch.ones(1 << 27, dtype=torch.int64), 0.0
    for _ in range(5):
        began = time.perf_counter()
        data.sum()
        best = max(best, data.numel() * 8 / (time.perf_counter() - began) / 1e9)
    return best


def candidates(gallery: Tensor, quick: bool) -> tuple[dict[str, Candidate], dict[str, float]]:
    """What searches, and the seconds it took to build."""
    N, D = gallery.shape
    found: dict[str, Candidate] = {}
    seconds: dict[str, float] = {}

    def build(name: str, make_it: Callable[[], Candidate]) -> None:
        began = time.perf_counter()
        found[name] = make_it()
        seconds[name] = time.perf_counter() - began

    def splip() -> Candidate:
        packed = ops.pack_gallery(gallery)
        return lambda q, k: ops.cosine_topk(q, packed, k)[1]

    def torch_fp32(chunk: int) -> Candidate:
        def search(q: Tensor, k: int) -> Tensor:
            best: tuple[Tensor, Tensor] | None = None
            for first in range(0, N, chunk):
                s, i = (q @ gallery[first : first + chunk].T).topk(min(k, N - first))
                i = i + first
                if best is not None:
                    s, i = torch.cat([best[0], s], 1), torch.cat([best[1], i], 1)
                    s, order = s.topk(k)
                    i = i.gather(1, order)
                best = s, i
            assert best is not None
            return best[1]

        return search

    build("splip", splip)
    build("torch fp32, chunks of 50,000", lambda: torch_fp32(50_000))
    if not quick:
        build("torch fp32", lambda: torch_fp32(N))
        half = gallery.bfloat16()
        build("torch bf16", lambda: lambda q, k: (q.bfloat16() @ half.T).topk(k).indices)
    try:
        import faiss
    except ImportError:
        print("no faiss: pip install faiss-cpu")
    else:
        faiss.omp_set_num_threads(torch.get_num_threads())

        def flat() -> Candidate:
            index = faiss.IndexFlatIP(D)
            index.add(gallery.numpy())
            return lambda q, k: torch.from_numpy(index.search(q.numpy(), k)[1])

        def quantised(kind: int) -> Callable[[], Candidate]:
            def make_it() -> Candidate:
                index = faiss.IndexScalarQuantizer(D, kind, faiss.METRIC_INNER_PRODUCT)
                index.train(gallery[:100_000].numpy())
                index.add(gallery.numpy())
                return lambda q, k: torch.from_numpy(index.search(q.numpy(), k)[1])

            return make_it

        build("FAISS IndexFlatIP", flat)
        build("FAISS 8-bit", quantised(faiss.ScalarQuantizer.QT_8bit))
        if not quick:
            build("FAISS bf16", quantised(faiss.ScalarQuantizer.QT_bf16))
    try:
        from usearch.index import search as exact_search
    except ImportError:
        print("no usearch: pip install usearch")
    else:
        rows, threads = gallery.numpy(), torch.get_num_threads()
        if not quick:
            build("usearch exact", lambda: lambda q, k: torch.from_numpy(
                exact_search(rows, q.numpy(), k, metric="ip", exact=True, threads=threads).keys.reshape(len(q), k)
                .astype("int64")))  # fmt: skip
    return found, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--N", type=int, default=500_000)
    parser.add_argument("--D", type=int, nargs="+", default=[512])
    parser.add_argument("--Q", type=int, nargs="+", default=[1, 8, 32, 256, 1024])
    parser.add_argument("--K", type=int, nargs="+", default=[10])
    parser.add_argument("--gallery", nargs="+", default=["random"], choices=["random", "clustered", "ascending"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--slow-ms", type=float, default=4000, help="candidates slower than this run once (default: 4000)"
    )
    parser.add_argument("--quick", action="store_true", help="only splip, torch in chunks, FAISS flat and 8-bit")
    parser.add_argument("--save", metavar="TAG", help="write results/cosine_topk-TAG.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    bandwidth = read_bandwidth()
    rows: list[dict[str, Any]] = []
    for D in args.D:
        for kind in args.gallery:
            gallery, queries = make(kind, args.N, D)
            found, seconds = candidates(gallery, args.quick)
            packing = args.N * D * 4 / seconds["splip"] / 1e9
            print(f"{kind} N={args.N:,} D={D}: packed at {packing:.2f} GB/s; memory reads {bandwidth:.1f} GB/s")
            for K in args.K:
                for Q in args.Q:
                    rows.append(measure(found, queries[:Q], gallery, K, args))
                    rows[-1] |= {"gallery": kind, "pack_GB_per_s": packing, "floor_ms": args.N * D / bandwidth / 1e6}
                    show(rows[-1])
            del gallery, found
    if args.save:
        report = {"benchmark": "cosine_topk", "machine": machine("cpu") | {"read_GB_per_s": bandwidth}, "rows": rows}
        path = RESULTS / f"cosine_topk-{args.save}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(path)


def measure(
    found: dict[str, Candidate], queries: Tensor, gallery: Tensor, K: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Times of all candidates, in turns, and what they found."""
    exact = torch.cat([(q.double() @ gallery.T.double()).topk(K).indices for q in queries[:32].split(8)])
    times: dict[str, list[float]] = {name: [] for name in found}
    recalls: dict[str, float] = {}
    for round_ in range(args.repeats + 1):
        for name, search in found.items():
            if times[name] and times[name][0] > args.slow_ms:
                continue
            began = time.perf_counter()
            indices = search(queries, K)
            spent = (time.perf_counter() - began) * 1e3
            if round_ == 0:
                hits = (indices[:32, :, None] == exact[:, None, :]).any(dim=2)
                recalls[name] = float(hits.float().mean())
            if round_ or spent > args.slow_ms:
                times[name].append(spent)
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "Q": len(queries), "N": len(gallery), "D": gallery.shape[1], "K": K, "median_ms": median, "times_ms": times,
        "recall": recalls, "ratio": {name: ms / median["splip"] for name, ms in median.items()},
    }  # fmt: skip


def show(row: dict[str, Any]) -> None:
    print(f"  K={row['K']} Q={row['Q']}: " + "  ".join(
        f"{name} {ms:.1f} ms ({row['ratio'][name]:.1f}x, recall {row['recall'][name]:.3f})"
        for name, ms in row["median_ms"].items()), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
