"""Which implementation runs: native code where it applies, else the reference."""

import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch  # before _C: both then share one OpenMP runtime
from torch import Tensor

from splip import _C

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.uint8: 3}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
CPU_FLOATS = (torch.float32, torch.bfloat16)
_use_native = True


@contextlib.contextmanager
def reference_only() -> Iterator[None]:
    """Run the plain PyTorch versions inside this block, e.g. to export a graph of standard operators."""
    global _use_native
    before, _use_native = _use_native, False
    try:
        yield
    finally:
        _use_native = before


def native(x: Tensor, cpu_dtypes: tuple[torch.dtype, ...]) -> bool:
    """True if the native version takes this tensor."""
    if not _use_native:
        return False
    if x.device.type == "cpu":
        return x.dtype in cpu_dtypes
    return x.device.type == "cuda" and _C.has_cuda and _has_code_for(x.device)


@functools.cache
def _has_code_for(device: torch.device) -> bool:
    """True if the build holds code that this GPU can run; else warns once that PyTorch stands in."""
    major, minor = torch.cuda.get_device_capability(device)
    if runs_on(_C.cuda_archs.split(), major, minor):
        return True
    warnings.warn(
        f"splip was built for sm_{_C.cuda_archs.replace(' ', ' sm_')}, which an sm_{major}{minor} cannot run:"
        " PyTorch is used instead. Build with SPLIP_CUDA_ARCHS=native.",
        stacklevel=2,
    )
    return False


def runs_on(archs: list[str], major: int, minor: int) -> bool:
    """True if a GPU of this compute capability can run code for one of ``archs``, as CMake names them.

    Machine code runs on its own generation, from its own number on; with an ``a`` on exactly that
    number, with an ``f`` on its generation. The last architecture comes as PTX too, which newer GPUs
    compile; PTX with a letter is bound like its machine code.
    """
    for arch in archs:
        name, _, kind = arch.partition("-")
        found = re.fullmatch(r"(\d+)(\d)([af]?)", name)
        if found is None:  # "native": the GPU of the machine that built it
            return True
        own, letter = (int(found[1]), int(found[2])), found[3]
        ptx = kind == "virtual" or (kind != "real" and arch == archs[-1])
        if letter == "a":
            runs = own == (major, minor)
        elif letter == "f" or not ptx:
            runs = own[0] == major and own[1] <= minor
        else:
            runs = own <= (major, minor)
        if runs:
            return True
    return not archs


def place(x: Tensor) -> dict[str, int]:
    """Device index (-1: CPU), CUDA stream, CPU threads."""
    if x.device.type == "cpu":
        return {"device": -1, "stream": 0, "threads": torch.get_num_threads()}
    index = x.device.index if x.device.index is not None else torch.cuda.current_device()
    return {"device": index, "stream": torch.cuda.current_stream(index).cuda_stream, "threads": 0}


def dense(x: Tensor) -> Tensor:
    """Contiguous; on CUDA also aligned to 16 bytes, which a view of a tensor need not be."""
    x = x.contiguous()
    return x.clone() if x.is_cuda and x.data_ptr() % 16 else x


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def call(op: Any, native: Callable[..., Any], *args: Any) -> Any:
    """Run ``op``; skip the dispatcher (10 to 40 us a call) when nothing records or traces the call."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0
    if tracing or any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors):
        return op(*args)  # a subclass is a fake tensor that only traces shapes
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return op(*args)
    return native(*args)


def register(name: str, native: Callable[..., Any], schema: str) -> Any:
    """The schema is spelt out: what torch can infer from annotations differs between its versions."""
    return torch.library.custom_op(f"splip::{name}", native, mutates_args=(), schema=schema)


def same_device(**tensors: Tensor | None) -> None:
    devices = {name: t.device for name, t in tensors.items() if t is not None}
    if len(set(devices.values())) > 1:
        raise ValueError("tensors on different devices: " + ", ".join(f"{n} on {d}" for n, d in devices.items()))


def float_dtype(name: str, x: Tensor) -> None:
    if x.dtype not in FLOATS:
        raise ValueError(f"{name} must be float32, float16 or bfloat16, got {x.dtype}")
