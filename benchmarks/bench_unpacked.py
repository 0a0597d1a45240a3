"""Exact searches of a gallery that is not packed, at each level of kernels that the processor has, against torch.

    OMP_WAIT_POLICY=passive python benchmarks/bench_unpacked.py --save my-machine

From nine queries on splip packs the gallery on the way; below, every score is exact at once. torch multiplies in parts that
fit the cache and takes the best of each; the rows are unit vectors, so that it has no norms to find, which splip finds. Both
take turns, with one thread; a ratio is of CPU seconds, as other work on the machine changes them least. Below AVX-512 torch
is held to AVX2, too. The portable level is left out: torch's matrix product cannot be held to it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from bench_cosine_topk import CHUNK, HELD, make, torch_matmul
from harness import RESULTS, machine

from splip import _C, ops

K = 10


def measure(level: str, N: int, D: int, counts: list[int], repeats: int) -> list[dict[str, Any]]:
    _C.set_isa(level)
    gallery, queries = make("random", N, D)
    search = torch_matmul(gallery, CHUNK)
    rows = []
    for Q in counts:
        some = queries[:Q]
        same = bool((ops.cosine_topk(some, gallery, K)[1] == search(some, K)).float().mean() > 0.999)
        spent: dict[str, list[float]] = {"splip": [], "torch": []}
        for _ in range(repeats):
            for name in spent:
                began = time.process_time()
                ops.cosine_topk(some, gallery, K) if name == "splip" else search(some, K)
                spent[name].append(time.process_time() - began)
        ms = {name: 1e3 * statistics.median(values) for name, values in spent.items()}
        ratio = statistics.median(t / s for t, s in zip(spent["torch"], spent["splip"], strict=True))
        rows.append({"level": level, "Q": Q, "N": N, "D": D, "K": K, "cpu_ms": ms, "ratio": ratio, "same_ids": same})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--N", type=int, default=200_000)
    parser.add_argument("--D", type=int, default=512)
    parser.add_argument("--Q", type=int, nargs="+", default=[1, 2, 4, 8, 9, 10, 12, 16, 24, 32, 64, 128, 256])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--level", help="this one alone, in this process; prints JSON")
    parser.add_argument("--save", metavar="TAG", help="write results/unpacked-TAG.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if args.level:
        print(json.dumps(measure(args.level, args.N, args.D, args.Q, args.repeats)))
        return
    rows: list[dict[str, Any]] = []
    for level in _C.levels():
        if level == "scalar" or "emulated" in level:
            continue
        command = [sys.executable, *sys.argv, "--level", level]
        held = {} if level in ("avx512", "amx") else HELD
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | held).stdout
        rows += json.loads(out)
        for row in rows[-len(args.Q) :]:
            print(f"{level} Q={row['Q']}: splip {row['cpu_ms']['splip']:.0f} ms, torch / splip {row['ratio']:.2f}")
    if args.save:
        path = RESULTS / f"unpacked-{args.save}.json"
        path.write_text(json.dumps({"benchmark": "unpacked", "machine": machine("cpu"), "rows": rows}, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
