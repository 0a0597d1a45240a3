"""What the benchmarks share: timing, the machine, saving results.

Set ``OMP_WAIT_POLICY=passive``: a thread that spins while it waits slows the others on a small machine.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

import splip
from splip import _C

RESULTS = Path(__file__).parent / "results"


def time_us(functions: dict[str, Callable[[], Any]], device: str, repeats: int, warmup: int = 3) -> dict[str, Any]:
    """Median, 10th and 90th percentile in microseconds; the candidates take turns."""
    cuda = device.startswith("cuda")
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(warmup + repeats):
        for name, function in functions.items():
            if cuda:
                torch.cuda.synchronize()
            began = time.perf_counter()
            function()
            if cuda:
                torch.cuda.synchronize()
            if round_ >= warmup:
                times[name].append((time.perf_counter() - began) * 1e6)
    out = {}
    for name, values in times.items():
        values.sort()
        out[name] = {
            "median": statistics.median(values),
            "p10": values[len(values) // 10],
            "p90": values[len(values) * 9 // 10],
        }
    return out


def program() -> str:
    """The script that runs, as it is called in the repository."""
    path = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parents[1]
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def machine(device: str) -> dict[str, Any]:
    """Where a result was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    try:
        here = Path(__file__).parent
        commit = subprocess.run(  # -dirty: what was run is not all in it
            ["git", "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True, cwd=here
        ).stdout
    except OSError:
        commit = ""
    info = {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_sets": _C.instruction_sets(),
        "kernels": _C.isa() if device == "cpu" else f"CUDA {_C.cuda_toolkit}",
        "load": round(os.getloadavg()[0], 2),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "splip": splip.__version__,
        "commit": commit.strip(),
        "command": " ".join(["python", program(), *sys.argv[1:]]),
    }
    if device != "cpu":
        info["gpu"] = torch.cuda.get_device_name(device)
    return info


def run(name: str, description: str, cases: Callable[[str, int], Iterable[dict[str, Any]]]) -> None:
    """Command line of a benchmark: measure the cases, print a row each, save JSON on request."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each candidate (default: 15)")
    parser.add_argument("--save", metavar="TAG", help=f"write results/{name}-TAG.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device != "cpu" and not (torch.cuda.is_available() and _C.has_cuda):
        parser.error(f"--device {args.device}: no GPU, or splip was built without CUDA")
    torch.manual_seed(0)
    rows = []
    for row in cases(args.device, args.repeats):
        rows.append(row)
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
                        if not isinstance(v, dict)), flush=True)  # fmt: skip
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}-{args.save}.json"
        report = {"benchmark": name, "machine": machine(args.device), "rows": rows}
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(path)
