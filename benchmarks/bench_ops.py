"""prompt_layernorm and patchify against the same maths in PyTorch, alone and in a whole encoder, in one run.

    OMP_WAIT_POLICY=passive python benchmarks/bench_ops.py --save my-machine

`GB_per_s` counts each input and output byte once. `error` is the largest difference from the reference, which
runs the plain PyTorch sequence. `in place` writes the prompts into slots that the sequence already has, then
normalises: what a model can do that needs no gradient of what it overwrites. `encoder` rows are a prompted
ViT-B/32 on 32 images, its LayerNorms trained in `forward + backward`: what the two ops are worth in a model.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from harness import run, time_us
from torch import Tensor

from splip import ops
from splip.ops import reference

LAYERNORM = [(1, 50, 6, 768), (64, 50, 6, 768), (64, 197, 6, 768)]  # B, L, P, D: ViT-B/32 and ViT-B/16
PATCHIFY = [(1, 224, 32), (64, 224, 32), (64, 224, 16)]  # B, side, patch
MEAN, STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def row_of(
    op: str, sizes: str, dtype: str, part: str, moved: int, candidates: dict[str, Callable[[], Any]], device: str,
    repeats: int,
) -> dict[str, Any]:  # fmt: skip
    times = time_us(candidates, device, repeats)
    ours, theirs = candidates["splip"](), candidates["torch"]()
    ours, theirs = (out if isinstance(out, tuple) else (out,) for out in (ours, theirs))
    error = max(float((a.float() - b.float()).abs().max()) for a, b in zip(ours, theirs, strict=True))
    median = {name: t["median"] for name, t in times.items()}
    row = {"op": op, "sizes": sizes, "dtype": dtype, "part": part}
    row |= {f"{name.replace(' ', '_')}_us": us for name, us in median.items()}
    row |= {"ratio": median["torch"] / median["splip"], "error": error, "times_us": times}
    if moved:
        row["GB_per_s"] = moved / median["splip"] / 1e3
    return row


def cases(device: str, repeats: int) -> Iterator[dict[str, Any]]:
    for name, dtype in DTYPES.items():
        for B, L, P, D in LAYERNORM:
            yield from layernorm(B, L, P, D, name, dtype, device, repeats)
    for name, dtype in DTYPES.items():
        for B, side, patch in PATCHIFY:
            images = torch.randint(0, 256, (B, side, side, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
            permutation = torch.stack([torch.randperm(9) for _ in range(B)]).to(device)
            arguments = (images, patch, MEAN, STD, permutation, 3, dtype)
            candidates = {
                "splip": lambda: ops.patchify(*arguments),
                "torch": lambda: reference.patchify(*arguments),
            }
            moved = images.numel() * (1 + dtype.itemsize)
            sizes = f"B={B} side={side} S={patch}"
            yield row_of("patchify", sizes, name, "forward", moved, candidates, device, repeats)
    for name, dtype in DTYPES.items():
        yield from encoder(name, dtype, device, max(3, repeats // 3))


def layernorm(
    B: int, L: int, P: int, D: int, name: str, dtype: torch.dtype, device: str, repeats: int
) -> Iterator[dict[str, Any]]:
    x, prompts = torch.randn(B, L, D, device=device).to(dtype), torch.randn(P, D, device=device).to(dtype)
    gamma, beta = torch.randn(D, device=device), torch.randn(D, device=device)
    slots = torch.cat([x[:, :1], prompts.expand(B, -1, -1), x[:, 1:]], dim=1)
    sizes = f"B={B} L={L} P={P} D={D}"

    def in_place() -> tuple[Tensor, Tensor]:
        slots[:, 1 : 1 + P] = prompts
        return slots, F.layer_norm(slots, (D,), gamma.to(dtype), beta.to(dtype))

    with torch.no_grad():
        candidates: dict[str, Callable[[], Any]] = {
            "splip": lambda: ops.prompt_layernorm(x, prompts, gamma, beta),
            "torch": lambda: reference.prompt_layernorm(x, prompts, gamma, beta),
            "in place": in_place,
        }
        moved = dtype.itemsize * D * (B * L + P + 2 * B * (L + P))
        yield row_of("prompt_layernorm", sizes, name, "forward", moved, candidates, device, repeats)
    inputs = [t.requires_grad_() for t in (x, prompts, gamma, beta)]
    ahead = torch.randn_like(slots), torch.randn_like(slots)

    def both(module: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(module.prompt_layernorm(*inputs), inputs, ahead)

    candidates = {"splip": lambda: both(ops), "torch": lambda: both(reference)}
    yield row_of("prompt_layernorm", sizes, name, "forward + backward", 0, candidates, device, repeats)


def encoder(name: str, dtype: torch.dtype, device: str, repeats: int) -> Iterator[dict[str, Any]]:
    """A whole prompted ViT-B/32 with our ops, and with the reference in their place."""
    try:
        from splip.models.clip import PromptedCLIP
        from splip.models.config import BackboneConfig
    except ImportError:
        print("no encoder rows: they need open_clip")
        return
    clip = PromptedCLIP(BackboneConfig(name="ViT-B-32")).to(device).to(dtype)
    clip.requires_grad_(False)
    norms = [p for m in clip.visual.modules() if isinstance(m, torch.nn.LayerNorm) for p in m.parameters()]
    images = torch.randint(0, 256, (32, 3, 224, 224), dtype=torch.uint8, device=device)
    permutation = torch.stack([torch.randperm(9) for _ in range(len(images))]).to(device)
    prompts = [torch.randn(6, clip.visual_width, device=device).to(dtype) for _ in range(clip.visual_layers)]

    def forward() -> Tensor:
        return clip.encode_visual(clip.embed_patches(images, permutation, 3), prompts)

    def plain(function: Callable[[], Any]) -> Any:
        with ops.reference_only():
            return function()

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward().float().sum(), norms)

    with torch.no_grad():
        candidates = {"splip": forward, "torch": lambda: plain(forward)}
        yield row_of("encoder", "ViT-B/32 B=32 P=6", name, "forward", 0, candidates, device, repeats)
    for parameter in norms:
        parameter.requires_grad_()
    candidates = {"splip": both, "torch": lambda: plain(both)}
    yield row_of("encoder", "ViT-B/32 B=32 P=6", name, "forward + backward", 0, candidates, device, repeats)


if __name__ == "__main__":
    run("ops", __doc__, cases)
