"""compute-sanitizer on the small cases: memory errors of our kernels alone."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

from splip import ops

from .small_cases import OTHER
from .smoke import run_small_cases
from .worker import Job

AT_ONCE = 4  # processes on one GPU


def command(tool: str, help_text: str) -> list[str]:
    """With the name filter that this version knows: kernels of the namespace splip, so that torch's run at full speed.

    Filters are of mangled names, in which at::native reads 2at6native.
    """
    found = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
    for option in ("--kernel-name", "--kernel-regex", "--filter"):
        if f"{option} " in help_text or f"{option}=" in help_text:
            return [*found, option, "kernel_substring=splip" if option != "--kernel-regex" else "kns=splip"]
    return [*found, "--kernel-name-exclude", "kernel_substring=at::"]


def memcheck(job: Job) -> None:
    if shutil.which("compute-sanitizer") is None:
        job.skip("no compute-sanitizer on PATH")
    told = subprocess.run(["compute-sanitizer", "--help"], capture_output=True, text=True).stdout
    prefix = tuple(command("memcheck", told))
    print("$", *prefix, flush=True)
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # or a tensor's end is no end of memory
    names = [OTHER, *(scan for scan in ops.SCANS if scan not in job.leave_out)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for name, what in zip(names, pool.map(lambda name: run_small_cases(job, name, prefix), names), strict=True):
            job.found(**{name: what or "no error"})
            if what:
                job.wrong(f"memcheck: {what}")
