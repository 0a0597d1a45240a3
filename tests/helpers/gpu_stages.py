"""Stages for the tests of the GPU suite's driver: each does one of the things that a stage can do."""

import ctypes
import subprocess
import sys
import time


def good(job):
    print("good begins")
    job.machine(gpu="a card")
    job.found(copy_GB_per_s=3000.0, told=job.ceiling)
    job.row(row("Q=1", 2.0))


def row(sizes, ms):
    return {"op": "cosine_topk", "sizes": sizes, "ms": ms, "of_floor": 0.5, "bound": "memory", "recall": 1.0,
            "ratio": {"splip": 1.0, "torch": 2.5},
            "times": {"splip": {"median": ms}, "torch": {"median": 2.5 * ms}}}  # fmt: skip


def hangs(job):
    """As does what it starts: both have to go."""
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    job.found(sleeper=sleeper.pid)
    job.row(row("Q=8", 3.0))
    print("hangs: the last words", flush=True)
    time.sleep(1000)


def raises(job):
    job.row(row("Q=32", 4.0))
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def dies(job):
    job.row(row("Q=64", 5.0))
    print("dies: the last words", flush=True)
    ctypes.string_at(0)


def leaves_out(job):
    job.found(leave_out=["wgmma"])
    job.wrong("wgmma is not what tiles128 gives")
    job.skip("no more")


def sees(job):
    job.found(leave_out_was=sorted(job.leave_out), ceiling=job.ceiling, left=job.left())
