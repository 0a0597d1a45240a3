"""patchify beside the reference's operations; the floor is the bytes at the copy's rate."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from splip.ops import patches, reference

from .small_cases import MEAN, STD
from .timing import attempt, copies_beyond_cache, floor_of, row_of, time_ms
from .worker import Job

DEVICE = "cuda"
# B, side, S
PATCHIFY = [(256, 224, 32, "bfloat16"), (256, 224, 16, "bfloat16"), (256, 224, 14, "bfloat16"),
            (256, 224, 32, "float32")]  # fmt: skip


def bench_patchify(job: Job, case: tuple[int, int, int, str], peers: dict[str, Callable[..., Any]]) -> None:
    """peers: name and what wraps the plain PyTorch function."""
    B, side, S, name = case
    byte, mean, std = (torch.tensor(v, device=DEVICE).view(1, -1, 1, 1) for v in ((255.0,), MEAN, STD))
    dtype = getattr(torch, name)

    def naive(images: Any, tiles: Any) -> Any:
        """The reference's operations; its constants are on the GPU already."""
        if tiles is not None:
            images = reference.shuffle_tiles(images, tiles, 3)
        values = images.float().div(byte).sub(mean).div(std)
        patches = values.reshape(B, 3, side // S, S, side // S, S).permute(0, 2, 4, 1, 3, 5)
        return patches.reshape(B, (side // S) ** 2, 3 * S * S).to(dtype)

    pixels = B * 3 * side * side
    moved = pixels * (1 + torch.tensor([], dtype=dtype).element_size())
    pictures = [torch.randint(0, 256, (B, side, side, 3), dtype=torch.uint8, device=DEVICE).permute(0, 3, 1, 2)
                for _ in range(copies_beyond_cache(moved))]  # fmt: skip
    permutation = torch.stack([torch.randperm(9) for _ in range(B)]).to(DEVICE)
    functions = {peer: wrap(naive) for peer, wrap in peers.items()}
    for kind, tiles in (("shuffled", permutation), ("plain", None)):
        grid = 3 if tiles is not None else 1
        native = [functools.partial(patches._patchify_native, p, tiles, S, MEAN, STD, grid, dtype) for p in pictures]
        sizes = f"B={B} side={side} S={S} {name}, {kind}"
        if not torch.equal(native[0](), naive(pictures[0], tiles)):
            job.wrong(f"patchify {sizes}: not what the reference gives, bit for bit")
        times = {"splip": time_ms(native)}
        for peer, function in functions.items():
            times[peer] = attempt([functools.partial(function, p, tiles) for p in pictures])
        job.row(row_of("patchify", sizes, floor_of(moved, 0, job.ceiling), times, error=0.0))


def patchify(job: Job) -> None:
    for case in PATCHIFY:
        bench_patchify(job, case, {"torch": lambda function: function})
