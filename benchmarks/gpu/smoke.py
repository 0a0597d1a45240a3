"""Whether the kernels can be run at all, before anything is measured: what hangs or fails is left out from here on."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

from splip import _C, ops
from splip.ops import quantized, topk

from . import small_cases
from .worker import Job

# Q, N, D: one tile and many, queries that stay in shared memory and queries that do not.
TRIALS = [(1, 300, 64), (130, 1100, 24), (200, 30_000, 512), (1024, 200_000, 512), (300, 50_000, 768)]
REPEATS = 5


def run_small_cases(job: Job, name: str, prefix: tuple[str, ...] = (), seconds: float = 1e9) -> str | None:
    """In a process of its own, whose output goes to this one's; what went wrong."""
    command = [*prefix, sys.executable, "-m", "gpu.small_cases", name]
    try:
        code = subprocess.run(command, timeout=max(1, min(seconds, job.left() - 2))).returncode
    except subprocess.TimeoutExpired:
        return f"{name} does not end"
    return f"{name}: exit code {code}" if code else None


def smoke(job: Job) -> None:
    names = [*(scan for scan in topk.SCANS if scan not in job.leave_out), small_cases.OTHER]
    failed = set()
    with ThreadPoolExecutor(len(names)) as pool:
        for name, what in zip(names, pool.map(lambda name: run_small_cases(job, name), names), strict=True):
            job.found(**{name: what or "all right"})
            if what:
                failed.add(name)
                job.wrong(f"small cases: {what}")
    # The automatic choice and the other ops cannot be left out: what follows shows how far they get.
    job.found(leave_out=sorted(failed - {"automatic", small_cases.OTHER}))


def wgmma(job: Job) -> None:
    """It against mma.sync, many times: a race would not lose every time."""
    if "wgmma" in job.leave_out:
        job.skip("wgmma is left out")
    if not _C.cuda_has_wgmma(0):
        job.found(leave_out=["wgmma"])
        job.skip("not a GPU of compute capability 9.0, or not built for it")
    job.found(leave_out=["wgmma"])  # unless all ends well
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for Q, N, D in TRIALS:
            queries, gallery = (torch.randn(n, D, device="cuda").to(dtype) for n in (Q, N))
            for searched in (gallery, quantized.prepare_gallery(gallery), ops.eight_bit_gallery(gallery)):
                want = topk._cuda_topk(queries, searched, 10, None, "tiles128")
                for _ in range(REPEATS):
                    got = topk._cuda_topk(queries, searched, 10, None, "wgmma")
                    if not (torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])):
                        kind = type(searched).__name__ if searched is not gallery else str(dtype)
                        job.wrong(f"wgmma Q={Q} N={N} D={D} {kind}: not what tiles128 gives")
                        return
    job.found(leave_out=[])
    print("   wgmma: all right", flush=True)
