"""Several processes that train one model (torchrun): who is who, and sums over all of them.

Everything here also works in a single process, where it does nothing.
"""

import os
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from splip.errors import UserError

T = TypeVar("T")


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
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if dist.is_initialized():
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
