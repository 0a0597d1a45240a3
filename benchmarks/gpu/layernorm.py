"""prompt_layernorm and its gradient beside the same maths in PyTorch; the floor is the bytes at the copy's rate."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from splip.ops import reference
from splip.ops.layernorm import _prompt_layernorm_backward_native, _prompt_layernorm_native

from .timing import attempt, copies_beyond_cache, floor_of, row_of, time_ms
from .worker import Job

DEVICE = "cuda"
# B, L, P, D: ViT-B/16 and ViT-B/32
LAYERNORM = [(256, 197, 6, 768, "bfloat16"), (256, 50, 6, 768, "bfloat16"), (256, 197, 6, 768, "float32")]
CHECKED = 8  # pictures
TOLERANCE = {"bfloat16": 0.06, "float16": 0.01, "float32": 1e-4}


def naive_of(D: int) -> Callable[..., Any]:
    def naive(x: Any, prompts: Any, gamma: Any, beta: Any) -> Any:
        tokens = torch.cat([x[:, :1], prompts.expand(len(x), -1, -1), x[:, 1:]], 1)
        return tokens, F.layer_norm(tokens, (D,), gamma, beta)

    return naive


def gradient_of(function: Callable[..., Any], prompts: Any, low: tuple[Any, Any]) -> Callable[..., Any]:
    def run(x: Any, d_tokens: Any, d_normed: Any) -> Any:
        inputs = [t.detach().requires_grad_() for t in (x, prompts, *low)]
        return torch.autograd.grad(function(*inputs), inputs, (d_tokens, d_normed))

    return run


def bench_layernorm(job: Job, case: tuple[int, int, int, int, str], peers: dict[str, Callable[..., Any]]) -> None:
    """peers: name and what wraps the plain PyTorch function."""
    B, L, P, D, name = case
    dtype = getattr(torch, name)
    T, size = L + P, torch.tensor([], dtype=dtype).element_size()
    forward_bytes = size * D * (B * L + P + 2 * B * T)
    sets = []
    for _ in range(copies_beyond_cache(forward_bytes)):
        x, grads = torch.randn(B, L, D, device=DEVICE, dtype=dtype), torch.randn(2, B, T, D, device=DEVICE, dtype=dtype)
        sets.append((x, grads[0], grads[1]))
    prompts = torch.randn(1, P, D, device=DEVICE, dtype=dtype)
    gamma, beta = torch.randn(D, device=DEVICE), torch.randn(D, device=DEVICE)
    low = gamma.to(dtype), beta.to(dtype)
    functions = {peer: wrap(naive_of(D)) for peer, wrap in peers.items()}

    one = _prompt_layernorm_native
    times = {"splip": time_ms([functools.partial(one, x, prompts, gamma, beta, 1e-5, 0) for x, _, _ in sets])}
    for peer, function in functions.items():
        times[peer] = attempt([functools.partial(function, x, prompts, *low) for x, _, _ in sets])
    sizes = f"B={B} L={L} P={P} D={D} {name}"
    got = one(sets[0][0], prompts, gamma, beta, 1e-5, 0)[1]
    want = reference.prompt_layernorm(sets[0][0][:CHECKED].float(), prompts.float(), gamma, beta)[1]
    error = float((got[:CHECKED].float() - want).abs().max())
    if not error <= TOLERANCE[name]:
        job.wrong(f"prompt_layernorm {sizes}: off by {error:.3g}")
    job.row(row_of("prompt_layernorm", sizes, floor_of(forward_bytes, 0, job.ceiling), times, error=error))

    def both(x: Any, d_tokens: Any, d_normed: Any) -> Any:
        tokens, _, mean, rstd = one(x, prompts, gamma, beta, 1e-5, 0)
        return _prompt_layernorm_backward_native(d_tokens, d_normed, tokens, gamma, mean, rstd, 1, L, 0)

    times = {"splip": time_ms([functools.partial(both, *s) for s in sets])}
    for peer, function in functions.items():
        gradient = gradient_of(function, prompts, low)
        times[peer] = attempt([functools.partial(gradient, *s) for s in sets])
    floor = floor_of(forward_bytes + size * D * (3 * B * T + B * L), 0, job.ceiling)
    job.row(row_of("prompt_layernorm + backward", sizes, floor, times))


def layernorm(job: Job) -> None:
    for case in LAYERNORM:
        bench_layernorm(job, case, {"torch": lambda function: function})
