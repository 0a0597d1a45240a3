"""Queries per second of exact cosine top-k on the CPU: splip against FAISS, torch, NumKong and usearch, in one run.

    pip install faiss-cpu numkong usearch
    OMP_WAIT_POLICY=passive python benchmarks/bench_cosine_topk.py --save my-machine

All candidates search the same unit-length rows with the same threads and take turns. `recall` is the share of the
float64 top k that a candidate returns; splip's is 1 by construction. Galleries: `random` directions; `clustered`,
1,000 groups around a common direction, as features of a network lie; `ascending`, random but sorted by the
score of the first query, so that every row beats all before it. `read_share` and `multiply_share` are what splip reaches
of this machine's ceilings, which a small C++ program measures first (needs a C++ compiler): reading the packed
gallery once, and multiplying bytes in registers.

`--level avx2` and `--level avxvnni` show what a processor without AVX-512 would do: everybody is held to AVX2, by
FAISS_OPT_LEVEL, torch's ATEN_CPU_CAPABILITY, MKL_ENABLE_INSTRUCTIONS and ONEDNN_MAX_CPU_ISA, and NumKong's own switches (but usearch, which has none; --quick leaves it out).
`avxvnni-emulated` is AVX-VNNI's kernel in the encoding of AVX-512, where a processor has only that.

    OMP_WAIT_POLICY=passive python benchmarks/bench_cosine_topk.py --suite --save my-machine   # the README's, 30 min
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness import RESULTS, machine
from torch import Tensor

from splip import _C, ops

HELD = {"FAISS_OPT_LEVEL": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2"}  # fmt: skip
CHUNK = 50_000  # rows that the chunked products take at a time
# gallery, N, D, K, Q, all candidates or the quick ones
SUITE = [
    ("random", 500_000, 512, [10], [1, 8, 32, 256, 1024], True),
    ("clustered", 500_000, 512, [10], [1, 8, 32, 256, 1024], False),
    ("ascending", 500_000, 512, [10], [1, 8, 32, 256, 1024], False),
    ("random", 500_000, 512, [100, 1000], [1, 32, 256], False),
    ("random", 500_000, 768, [10, 100], [1, 32, 256], False),
    ("random", 1_000_000, 512, [10], [1, 8, 32, 256], False),
]

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


def ceilings() -> dict[str, float]:
    """GB/s of reading memory and G multiply-adds/s of bytes, all threads; empty without a compiler or below AVX-512."""
    if _C.isa() not in ("avx512", "amx"):
        return {}
    source, compiler = Path(__file__).with_name("ceilings.cpp"), os.environ.get("CXX", "c++")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "ceilings"
        flags = ["-O3", "-std=c++17", "-mavx512f", "-mavx512vnni", "-fopenmp"]
        try:
            subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            print("no ceilings: they need a C++ compiler with OpenMP")
            return {}
        mode = ["tiles"] if _C.isa() == "amx" else []
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        out = subprocess.run([program, *mode], check=True, capture_output=True, text=True, env=os.environ | threads)
    read, multiply = map(float, out.stdout.split())
    return {"read_GB_per_s": read, "multiply_G_per_s": multiply}


def in_bytes(rows: Tensor) -> Tensor:
    """One scale for all."""
    return (rows * (127 / rows.abs().max())).round().to(torch.int8)


def numkong_products(gallery: Tensor) -> Candidate:
    """NumKong's packed products of bytes, a part of the gallery for each thread, and torch's topk."""
    import numkong

    if HELD.items() <= os.environ.items():
        for name in ("skylake", "icelake", "genoa", "turin", "sapphire", "sapphireamx", "graniteamx", "diamond"):
            numkong.disable_capability(name)
    threads = torch.get_num_threads()
    parts = [numkong.dots_pack(part.numpy()) for part in in_bytes(gallery).chunk(threads)]
    pool = ThreadPoolExecutor(threads)

    def search(q: Tensor, k: int) -> Tensor:
        wide = in_bytes(q).numpy()
        found = pool.map(lambda part: torch.from_numpy(np.asarray(numkong.dots_packed(wide, part))), parts)
        return torch.cat(list(found), dim=1).topk(k).indices

    return search


def torch_matmul(rows: Tensor, chunk: int) -> Candidate:
    """Products in parts of the gallery, and the best of each part merged."""
    N = len(rows)

    def search(q: Tensor, k: int) -> Tensor:
        best: tuple[Tensor, Tensor] | None = None
        q = q.to(rows.dtype)
        for first in range(0, N, chunk):
            s, i = (q @ rows[first : first + chunk].T).topk(min(k, N - first))
            i = i + first
            if best is not None:
                s, i = torch.cat([best[0], s], 1), torch.cat([best[1], i], 1)
                s, order = s.topk(k)
                i = i.gather(1, order)
            best = s, i
        assert best is not None
        return best[1]

    return search


def others(gallery: Tensor, quick: bool, build: Callable[[str, Callable[[], Candidate]], None]) -> None:
    """NumKong and usearch, where they are installed."""
    try:
        import numkong  # noqa: F401
    except ImportError:
        print("no numkong: pip install numkong")
    else:
        build("NumKong 8-bit + topk", lambda: numkong_products(gallery))
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

    build("splip", splip)
    build("torch fp32, chunks", lambda: torch_matmul(gallery, CHUNK))
    build("torch bf16, chunks", lambda: torch_matmul(gallery.bfloat16(), CHUNK))
    if not quick:
        build("torch fp32", lambda: torch_matmul(gallery, N))
        build("torch bf16", lambda: torch_matmul(gallery.bfloat16(), N))
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
    others(gallery, quick, build)
    return found, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--N", type=int, default=500_000)
    parser.add_argument("--D", type=int, nargs="+", default=[512])
    parser.add_argument("--Q", type=int, nargs="+", default=[1, 8, 32, 256, 1024])
    parser.add_argument("--K", type=int, nargs="+", default=[10])
    parser.add_argument("--gallery", nargs="+", default=["random"], choices=["random", "clustered", "ascending"])
    parser.add_argument("--suite", action="store_true", help="the README's settings in place of the five above")
    parser.add_argument("--level", choices=_C.levels(), help="splip's kernels (default: the fastest there are)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--slow-ms", type=float, default=4000, help="candidates slower than this run once (default: 4000)"
    )
    parser.add_argument("--quick", action="store_true", help="only splip, torch in chunks, FAISS flat and 8-bit")
    parser.add_argument("--save", metavar="TAG", help="write results/cosine_topk-TAG.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.level:
        if args.level not in ("avx512", "amx") and not HELD.items() <= os.environ.items():
            os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | HELD)  # they choose when imported
        _C.set_isa(args.level)
    limits = ceilings()
    print("  ".join(f"{name} {value:.0f}" for name, value in limits.items()))
    settings = [(kind, args.N, D, args.K, args.Q, not args.quick) for D in args.D for kind in args.gallery]
    rows: list[dict[str, Any]] = []
    for kind, N, D, Ks, Qs, everybody in SUITE if args.suite else settings:
        gallery, queries = make(kind, N, D)
        found, seconds = candidates(gallery, not everybody)
        packing = N * D * 4 / seconds["splip"] / 1e9
        print(f"{kind} N={N:,} D={D}: packed at {packing:.2f} GB/s")
        for K in Ks:
            for Q in Qs:
                row = measure(found, queries[:Q], gallery, K, args)
                row |= {"gallery": kind, "pack_GB_per_s": packing}
                seconds_ = row["median_ms"]["splip"] / 1e3
                row |= {"GB_per_s": N * D / seconds_ / 1e9, "G_multiply_adds_per_s": Q * N * D / seconds_ / 1e9}
                if limits:
                    row["read_share"] = row["GB_per_s"] / limits["read_GB_per_s"]
                    row["multiply_share"] = row["G_multiply_adds_per_s"] / limits["multiply_G_per_s"]
                rows.append(row)
                show(row)
        del gallery, found
    if args.save:
        held = {name: os.environ[name] for name in HELD if name in os.environ}
        report = {"benchmark": "cosine_topk", "machine": machine("cpu") | limits, "held": held, "rows": rows}
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
