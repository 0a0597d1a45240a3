"""prompt_layernorm and patchify against the same maths in PyTorch, in one run.

    OMP_WAIT_POLICY=passive python benchmarks/bench_ops.py --save my-machine

`GB_per_s` counts each input and output byte once. `error` is the largest difference from the
reference, which runs the plain PyTorch sequence.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import run, time_us

from splip import ops, reference

LAYERNORM = [(1, 50, 6, 768), (64, 50, 6, 768), (64, 197, 6, 768)]  # B, L, P, D: ViT-B/32 and ViT-B/16
PATCHIFY = [(1, 224, 32), (64, 224, 32), (64, 224, 16)]  # B, side, patch
MEAN, STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)


def row_of(
    op: str, sizes: str, moved: int, candidates: dict[str, Callable[[], Any]], device: str, repeats: int
) -> dict[str, Any]:
    times = time_us(candidates, device, repeats)
    ours, theirs = (function() for function in candidates.values())
    ours, theirs = (out if isinstance(out, tuple) else (out,) for out in (ours, theirs))
    error = max(float((a.float() - b.float()).abs().max()) for a, b in zip(ours, theirs, strict=True))
    median = {name: t["median"] for name, t in times.items()}
    return {
        "op": op,
        "sizes": sizes,
        "splip_us": median["splip"],
        "torch_us": median["torch"],
        "ratio": median["torch"] / median["splip"],
        "GB_per_s": moved / median["splip"] / 1e3,
        "error": error,
        "times_us": times,
    }


def cases(device: str, repeats: int) -> Iterator[dict[str, Any]]:
    for B, L, P, D in LAYERNORM:
        x, prompts = torch.randn(B, L, D, device=device), torch.randn(P, D, device=device)
        gamma, beta = torch.randn(D, device=device), torch.randn(D, device=device)
        args = (x, prompts, gamma, beta)
        candidates = {
            "splip": lambda: ops.prompt_layernorm(*args),
            "torch": lambda: reference.prompt_layernorm(*args),
        }
        moved = 4 * D * (B * L + P + 2 * B * (L + P))
        yield row_of("prompt_layernorm", f"B={B} L={L} P={P} D={D}", moved, candidates, device, repeats)
    for B, side, patch in PATCHIFY:
        images = torch.randint(0, 256, (B, side, side, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
        permutation = torch.stack([torch.randperm(9) for _ in range(B)]).to(device)
        arguments = (images, patch, MEAN, STD, permutation)
        candidates = {
            "splip": lambda: ops.patchify(*arguments),
            "torch": lambda: reference.patchify(*arguments),
        }
        yield row_of("patchify", f"B={B} side={side} S={patch}", images.numel() * 5, candidates, device, repeats)


if __name__ == "__main__":
    run("ops", __doc__, cases)
