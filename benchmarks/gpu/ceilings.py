"""What this card does at most: bytes copied and read, products of each type."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch

from .build import READING
from .timing import attempt, time_ms
from .worker import Job

COPIED, READ = 1 << 30, 1 << 32  # bytes
SIDE = 8192  # of a matrix


def reading(library: Path, words: torch.Tensor) -> dict[str, Any]:
    """GB/s of a kernel that reads int32 words and keeps their sum without carries, by blocks per multiprocessor."""
    kernel = ctypes.CDLL(str(library)).read_all
    kernel.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    out = torch.zeros(1, dtype=torch.int32, device=words.device)
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count

    def call(per: int, n: int) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        code = kernel(words.data_ptr(), n // 4, out.data_ptr(), per * multiprocessors, stream)
        if code:
            raise RuntimeError(f"the kernel that only reads: CUDA error {code}")

    few = 4 * 12_345  # a number of vectors that fills no piece
    call(4, few)
    want = functools.reduce(lambda a, b: a ^ b, words[:few].tolist())
    if int(out) != want:
        raise RuntimeError("the kernel that only reads has not read everything")
    rates = {}
    for per in (2, 4, 8, 16):
        ms = time_ms([functools.partial(call, per, words.numel())])["median"]
        rates[f"{per} blocks per multiprocessor"] = words.nbytes / ms / 1e6
    return rates


def ceilings(job: Job) -> None:
    p = torch.cuda.get_device_properties(0)
    job.machine(gpu=p.name, torch=torch.__version__, cuda=torch.version.cuda, multiprocessors=p.multi_processor_count,
                L2_MB=p.L2_cache_size / 2**20, memory_GB=p.total_memory / 2**30)  # fmt: skip
    source = torch.empty(COPIED, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copy = 2 * COPIED / time_ms([functools.partial(target.copy_, source)])["median"] / 1e6
    job.found(copy_GB_per_s=copy)
    del source, target

    words = torch.empty(READ // 4, dtype=torch.int32, device="cuda").random_()
    rates = {}
    for name, call in {
        "torch.sum of int32": functools.partial(torch.sum, words, dtype=torch.int32),
        "torch.sum of float32": functools.partial(torch.sum, words.view(torch.float32)),
        "torch.amax of int32": functools.partial(torch.amax, words),
    }.items():
        took = attempt([call])
        if "median" in took:
            rates[name] = words.nbytes / took["median"] / 1e6
    library = job.shared / READING
    if library.is_file():
        rates |= reading(library, words)
    del words
    # Half of a copy is reading: a card that copies faster than anything here reads has read at least as fast.
    job.found(reading=rates, read_GB_per_s=max(rates.values(), default=copy))

    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = time_ms([functools.partial(torch.matmul, a, b)], 0.5)["median"]
    job.found(bf16_TFLOP_per_s=2 * SIDE**3 / product / 1e9)
    halves = a.half(), b.half()
    half = time_ms([functools.partial(torch.matmul, *halves)], 0.5)["median"]
    job.found(fp16_TFLOP_per_s=2 * SIDE**3 / half / 1e9)
    bytes_a, bytes_b = (torch.randint(-127, 128, (SIDE, SIDE), device="cuda", dtype=torch.int8) for _ in range(2))
    # The second factor by columns, as the kernel wants it.
    eight = attempt([functools.partial(torch._int_mm, bytes_a, bytes_b.t())], 0.5)
    # Twice bf16's by the data sheet, if it cannot be measured.
    job.found(int8_TOP_per_s=2 * SIDE**3 / eight.get("median", product / 2) / 1e9, int8_measured="median" in eight)
    said = ", ".join(f"{name} {rate:.0f} GB/s" for name, rate in rates.items())
    print(f"   copy {copy:.0f} GB/s; {said}; bf16 {2 * SIDE**3 / product / 1e9:.0f} TFLOP/s", flush=True)
