"""Several processes that train one model (torchrun): who is who, and sums over all of them.

Everything here also works in a single process, where it does nothing.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from splip.errors import UserError

T = TypeVar("T")
_alone = False  # see from_first


def is_launched() -> bool:
    """True if torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def start(device: torch.device) -> torch.device:
    """Join the other processes; returns this one's device."""
    if device.type == "cuda":
        index = int(os.environ.get("LOCAL_RANK", "0"))
        if index >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started process {index} of this machine, which has {torch.cuda.device_count()} GPUs"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # Decoding a data set into the cache is the first process's work: the others wait that long.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=4))
    return device


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def barrier() -> None:
    if size() > 1:
        dist.barrier()


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total / size()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total / size()


def mean(value: Tensor) -> Tensor:
    """Mean over the processes; differentiable."""
    out: Tensor = _Mean.apply(value) if size() > 1 else value
    return out


def gather(value: T) -> list[T]:
    """What each process says, by rank."""
    if size() == 1:
        return [value]
    everything: list[T] = [value] * size()
    dist.all_gather_object(everything, value)
    return everything


@contextlib.contextmanager
def _by_itself() -> Iterator[None]:
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them; its UserError, too.

    Args:
        make: runs in the first process only, and as if there were no others. Its result must be one that torch pickles.
    """
    if size() == 1:
        return make()
    said: list[Any] = [None, None]
    if rank() == 0:
        try:
            with _by_itself():
                said = [make(), None]
        except UserError as error:
            said = [None, str(error)]
    dist.broadcast_object_list(said, src=0)
    if said[1] is not None:
        raise UserError(said[1])
    made: T = said[0]
    return made


def is_writer(folder: Path) -> bool:
    """True if this process is to write what all of them read from a folder.

    That is the first process, and the first one of each machine whose folder of this name is another one.

    Raises:
        UserError: the first process cannot write there.
    """
    if size() == 1:
        return True

    def mark() -> str:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, path = tempfile.mkstemp(prefix=".first-", dir=folder)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}") from None
        os.close(handle)
        return os.path.basename(path)

    name = from_first(mark)
    shared = (folder / name).exists()
    barrier()
    if rank() == 0:
        (folder / name).unlink(missing_ok=True)
        return True
    return not shared and os.environ.get("LOCAL_RANK", "0") == "0"


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm over the batches of all processes (torch's own does this on GPUs only).

    Equal batch sizes on all processes. In one process it is torch's BatchNorm1d.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or size() == 1:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None
        dtype, x = x.dtype, x.float()  # under autocast: sums in float32
        average = mean(x.mean(dim=0))
        variance = mean((x - average).square().mean(dim=0))
        with torch.no_grad():
            count = len(x) * size()
            self.running_mean.lerp_(average, self.momentum or 0.1)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum or 0.1)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        return ((x - average) * torch.rsqrt(variance + self.eps) * self.weight + self.bias).to(dtype)
