"""Where the time of a search goes: every kernel's share by torch's profiler, and three kernels through Nsight Compute."""

import csv
import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from splip import ops
from splip.ops import quantized, topk

from .galleries import make_gallery
from .worker import Job

N, D, K = 1_000_000, 512, 10
CASES = ((8, "stream", "float16"), (256, "tiles128", "float16"), (1024, "wgmma", "float16"))
SHARES = (*CASES, (1, "stream", "int8"), (32, "stream", "float16"), (64, "tiles64", "float16"),
          (1024, "tiles256", "float16"), (1024, "wgmma", "int8"), (1024, "wgmma", "float16, not prepared"), (1024, "tiles128", "float32"))  # fmt: skip
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "ComputeWorkloadAnalysis", "SchedulerStats", "WarpStateStats",
            "InstructionStats", "LaunchStats", "Occupancy", "SourceCounters")  # fmt: skip
KERNELS = "stream|tile|wgmma"
HOT = 40  # instructions of each kernel that are listed with their stalls


def kernel_times(call: Callable[[], Any]) -> dict[str, float]:
    """Microseconds of each kernel that a call launches, of all its launches together."""
    import cuda_resources  # of tools/
    from torch.profiler import ProfilerActivity, profile

    calls = 3
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    spent = {e.key: e.self_device_time_total / calls for e in seen.key_averages() if e.self_device_time_total > 0}
    names = cuda_resources.readable(list(spent))
    return {name: round(us, 2) for name, us in sorted(zip(names, spent.values(), strict=True), key=lambda p: -p[1])}


def searches(leave_out: set[str], cases: tuple[tuple[int, str, str], ...]) -> dict[str, Callable[[], Any]]:
    """Calls by their names, all in the same rows."""
    gallery, pool = make_gallery(N, D, torch.float16)
    forms: dict[str, Any] = {"float16": quantized.prepare_gallery(gallery), "float16, not prepared": gallery}
    if any(form == "int8" for _, _, form in cases):
        forms["int8"] = ops.eight_bit_gallery(gallery)
    if any(form == "float32" for _, _, form in cases):
        forms["float32"] = quantized.prepare_gallery(gallery.float())
    found: dict[str, Callable[[], Any]] = {}
    for Q, scan, form in cases:
        if scan not in leave_out:
            queries = pool[:Q].float() if form == "float32" else pool[:Q]
            call = functools.partial(topk._cuda_topk, queries, forms[form], K, None, scan)
            found[f"Q={Q} N={N:,} D={D} K={K} {form}, {scan}"] = call
    return found


def ncu(job: Job) -> None:
    for name, call in searches(job.leave_out, SHARES).items():
        times = kernel_times(call)
        job.found(**{name: times})
        print(f"   {name}: " + ", ".join(f"{k} {us:.0f} us" for k, us in list(times.items())[:5]), flush=True)
    torch.cuda.empty_cache()
    if shutil.which("ncu") is None:
        job.skip("no ncu on PATH")
    report = job.scratch / "report"
    command = [
        "ncu",
        "--clock-control",
        "none",
        "--profile-from-start",
        "off",
        "-k",
        f"regex:{KERNELS}",
        "-o",
        str(report),
    ]
    command += [word for section in SECTIONS for word in ("--section", section)]
    command += [sys.executable, "-m", "gpu.profile", *sorted(job.leave_out)]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         timeout=max(1, job.left() - 5))  # fmt: skip
    print(run.stdout[-3000:])
    if run.returncode or not report.with_suffix(".ncu-rep").is_file():
        raise RuntimeError(f"ncu: exit code {run.returncode}")
    details = page(report, "details")
    (job.out / "ncu.txt").write_text(details[: 8 << 20])
    job.found(profiled=headlines(details))
    hot = hottest(page(report, "source", "--csv"))  # last: the rest is written
    with (job.out / "ncu.txt").open("a") as file:
        file.write(hot[: 4 << 20])


def page(report: Path, name: str, *more: str) -> str:
    command = ["ncu", "--import", f"{report}.ncu-rep", "--page", name, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


def headlines(details: str) -> list[dict[str, str]]:
    """Of each launch: its name and the numbers that say what bounds it. A call's last launch is its last pass."""
    wanted = ("Duration", "Memory Throughput", "DRAM Throughput", "Compute (SM) Throughput", "Registers Per Thread",
              "Achieved Occupancy", "No Eligible", "Grid Size")  # fmt: skip
    found: list[dict[str, str]] = []
    for line in details.splitlines():
        kernel = re.match(r"^ {2}(\S.*?_kernel.*?) ?\(\d+, \d+, \d+\)x", line)
        if kernel:
            found.append({"kernel": kernel[1][:120]})
            continue
        for name in wanted:
            value = re.match(rf"^\s+{re.escape(name)}\s+(\S*)\s+([\d.,]+)\s*$", line)
            if value and found:
                found[-1].setdefault(name, f"{value[2]} {value[1]}".strip())
    return found


def hottest(source: str) -> str:
    """The instructions with most samples of each kernel, from ncu's source page as CSV."""
    lines, out = list(csv.reader(source.splitlines())), [""]
    header: list[str] = []
    block: list[tuple[float, str]] = []

    def flush() -> None:
        out.extend(f"{n:8.0f}  {text}" for n, text in sorted(block, key=lambda pair: -pair[0])[:HOT])
        block.clear()

    for fields in lines:
        if "Source" in fields and any("Samples" in field or "Sampling" in field for field in fields):
            flush()
            header = fields
            out.append("\nSamples and instructions, the most first")
        elif header and len(fields) == len(header):
            column = next(i for i, field in enumerate(header) if "Samples" in field or "Sampling" in field)
            number = fields[column].replace(",", "")
            if re.fullmatch(r"\d+(\.\d+)?", number) and float(number) > 0:
                block.append((float(number), fields[header.index("Source")].strip()))
        elif any("_kernel" in field for field in fields):
            flush()
            out.append(" ".join(fields)[:200])
    flush()
    return "\n".join(out) + "\n"


def under_ncu(leave_out: set[str]) -> None:
    """Each case once between cudaProfilerStart and Stop: all passes of its scan are profiled."""
    for name, call in searches(leave_out, CASES).items():
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
        print(f"   profiled {name}", flush=True)


if __name__ == "__main__":
    under_ncu(set(sys.argv[1:]))
