"""compute-sanitizer on the small cases: memory errors of our kernels alone."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from splip.ops import topk

from .small_cases import OTHER
from .smoke import run_small_cases
from .worker import Job

AT_ONCE = 4  # processes on one GPU


# Kernels of the namespace splip, so that torch's run at full speed. Versions differ in what they call it; where names
# are matched as mangled, at::native reads 2at6native.
FILTERS = (("--kernel-name", "kernel_substring=splip"), ("--kernel-regex", "kns=splip"),
           ("--kernel-name-exclude", "kernel_substring=at::"))  # fmt: skip
REFUSED = re.compile("unrecogni[sz]ed|unknown|invalid|ambiguous|not recognized|parse|argument", re.IGNORECASE)


def command(tool: str, said: Callable[[list[str]], str]) -> list[str]:
    """With the first name filter that this version does not refuse. said: what it prints around a program."""
    found = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
    for words in FILTERS:
        if not REFUSED.search(said([*found, *words, "true"])):
            return [*found, *words]
    return found


def output(words: list[str]) -> str:
    return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20).stdout


def memcheck(job: Job) -> None:
    if shutil.which("compute-sanitizer") is None:
        job.skip("no compute-sanitizer on PATH")
    prefix = tuple(command("memcheck", output))
    print("$", *prefix, flush=True)
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # or a tensor's end is no end of memory
    names = [OTHER, *(scan for scan in topk.SCANS if scan not in job.leave_out)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for name, what in zip(names, pool.map(lambda name: run_small_cases(job, name, prefix), names), strict=True):
            job.found(**{name: what or "no error"})
            if what:
                job.wrong(f"memcheck: {what}")
