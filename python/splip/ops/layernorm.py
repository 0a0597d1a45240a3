"""prompt_layernorm: prompts into their slots, and LayerNorm, in one pass."""

from typing import Any

import torch  # before _C: both then share one OpenMP runtime
from torch import Tensor

from splip import _C
from splip.ops import reference
from splip.ops.dispatch import (
    CPU_FLOATS,
    DTYPES,
    address,
    call,
    dense,
    float_dtype,
    native,
    place,
    register,
    same_device,
)


def prompt_layernorm(
    x: Tensor,  # [B, L, D]
    prompts: Tensor,  # [P, D] or [B, P, D]
    gamma: Tensor,  # [D]
    beta: Tensor,  # [D]
    eps: float = 1e-5,
    replace: int = 0,
) -> tuple[Tensor, Tensor]:
    """Insert prompt tokens after the class token and normalise the sequence.

    Same as ``tokens = cat([x[:, :1], prompts, x[:, 1 + replace:]], 1)`` followed by
    ``layer_norm(tokens)``, in one pass over memory. With ``replace`` the outputs of the previous
    layer in the prompt slots are dropped and written anew (deep prompting).

    Args:
        x: token sequence, class token first. ``[B, L, D]``, float32, float16 or bfloat16.
        prompts: learned tokens, shared by the batch ``[P, D]`` or one set each ``[B, P, D]``; dtype of ``x``.
        gamma: LayerNorm scale. ``[D]``, float32.
        beta: LayerNorm shift. ``[D]``, float32.
        eps: added to the variance.
        replace: tokens after the class token that are left out, ``0 <= replace < L``.

    Returns:
        ``(tokens, normed)``, both ``[B, L - replace + P, D]`` with the dtype of ``x``.

    Raises:
        ValueError: a shape, dtype or device does not match.

    Native on: CPU (float32, bfloat16), CUDA (all three, rows of a multiple of 16 bytes, ``D <= 1024``, without
    gradients in 16 bits ``D <= 2048``). Elsewhere: PyTorch.
    """
    _check_prompt_layernorm(x, prompts, gamma, beta, replace)
    if not native(x, CPU_FLOATS) or (x.is_cuda and not _rows_fit_cuda(x, prompts, gamma, beta)):
        return reference.prompt_layernorm(x, prompts, gamma, beta, eps, replace)
    sets = prompts.unsqueeze(0) if prompts.dim() == 2 else prompts
    tokens, normed, _, _ = call(_prompt_layernorm, _prompt_layernorm_native, x, sets, gamma, beta, eps, replace)
    return tokens, normed


def _rows_fit_cuda(x: Tensor, *parameters: Tensor) -> bool:
    """True if CUDA's prompt_layernorm takes these rows, and their gradient if there will be one."""
    D = x.shape[2]
    row = D * x.element_size()
    if not x.shape[0] or row % 16 or row > _C.cuda_norm_bytes:
        return False
    wide = _C.cuda_norm_gradients < D
    return not (wide and torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters)))


def _check_prompt_layernorm(x: Tensor, prompts: Tensor, gamma: Tensor, beta: Tensor, replace: int) -> None:
    if x.dim() != 3 or x.shape[1] < 1 or x.shape[2] < 1:
        raise ValueError(f"x must be [B, L, D] with L, D >= 1, got {list(x.shape)}")
    float_dtype("x", x)
    B, L, D = x.shape
    if prompts.dim() not in (2, 3) or prompts.shape[-1] != D or (prompts.dim() == 3 and prompts.shape[0] not in (1, B)):
        raise ValueError(f"prompts must be [P, {D}] or [{B}, P, {D}], got {list(prompts.shape)}")
    if prompts.dtype != x.dtype:
        raise ValueError(f"prompts must be {x.dtype} like x, got {prompts.dtype}")
    for name, t in (("gamma", gamma), ("beta", beta)):
        if t.shape != (D,) or t.dtype != torch.float32:
            raise ValueError(f"{name} must be float32 [{D}], got {t.dtype} {list(t.shape)}")
    if not 0 <= replace < L:
        raise ValueError(f"replace must be between 0 and L - 1 = {L - 1}, got {replace}")
    same_device(x=x, prompts=prompts, gamma=gamma, beta=beta)


def _prompt_layernorm_native(
    x: Tensor, prompts: Tensor, gamma: Tensor, beta: Tensor, eps: float, replace: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, prompts, gamma, beta = (dense(t) for t in (x, prompts, gamma, beta))
    B, L, D = x.shape
    G, P, _ = prompts.shape
    T = L - replace + P
    tokens, normed = x.new_empty(B, T, D), x.new_empty(B, T, D)
    mean, rstd = gamma.new_empty(B, T), gamma.new_empty(B, T)
    # fmt: off
    _C.prompt_layernorm(
        x=x.data_ptr(), prompts=prompts.data_ptr(), gamma=gamma.data_ptr(), beta=beta.data_ptr(),
        tokens=tokens.data_ptr(), normed=normed.data_ptr(), mean=mean.data_ptr(), rstd=rstd.data_ptr(),
        B=B, L=L, P=P, G=G, D=D, R=replace, eps=eps, dtype=DTYPES[x.dtype], **place(x),
    )
    # fmt: on
    return tokens, normed, mean, rstd


def _prompt_layernorm_backward_native(
    d_tokens: Tensor | None,
    d_normed: Tensor | None,
    tokens: Tensor,
    gamma: Tensor,
    mean: Tensor,
    rstd: Tensor,
    sets: int,
    length: int,
    replace: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, T, D = tokens.shape
    P = T - length + replace
    d_tokens, d_normed = (t if t is None else dense(t) for t in (d_tokens, d_normed))
    tokens, gamma, mean, rstd = (dense(t) for t in (tokens, gamma, mean, rstd))
    d_x = tokens.new_empty(B, length, D)
    d_prompts = gamma.new_empty(sets, P, D)
    d_gamma, d_beta = gamma.new_empty(D), gamma.new_empty(D)
    sizes = {"B": B, "L": length, "P": P, "G": sets, "D": D, "R": replace}
    where = place(tokens)
    if tokens.is_cuda:
        scratch = gamma.new_empty(_C.prompt_layernorm_scratch(**sizes, device=where["device"]))
    else:
        scratch = gamma.new_empty(_C.layernorm_chunks, 2, D)
    # fmt: off
    _C.prompt_layernorm_backward(
        d_tokens=address(d_tokens), d_normed=address(d_normed), tokens=tokens.data_ptr(), gamma=gamma.data_ptr(),
        mean=mean.data_ptr(), rstd=rstd.data_ptr(), d_x=d_x.data_ptr(), d_prompts=d_prompts.data_ptr(),
        d_gamma=d_gamma.data_ptr(), d_beta=d_beta.data_ptr(), scratch=scratch.data_ptr(),
        dtype=DTYPES[tokens.dtype], **sizes, **where,
    )
    # fmt: on
    return d_x, d_prompts.to(tokens.dtype), d_gamma, d_beta


_prompt_layernorm = register(
    "prompt_layernorm",
    _prompt_layernorm_native,
    "(Tensor x, Tensor prompts, Tensor gamma, Tensor beta, float eps, SymInt replace)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
_prompt_layernorm_backward = register(
    "prompt_layernorm_backward",
    _prompt_layernorm_backward_native,
    "(Tensor? d_tokens, Tensor? d_normed, Tensor tokens, Tensor gamma, Tensor mean, Tensor rstd, SymInt sets,"
    " SymInt length, SymInt replace) -> (Tensor, Tensor, Tensor, Tensor)",
)


@_prompt_layernorm.register_fake
def _(
    x: Tensor, prompts: Tensor, gamma: Tensor, beta: Tensor, eps: float, replace: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, L, D = x.shape
    T = L - replace + prompts.shape[1]
    return x.new_empty(B, T, D), x.new_empty(B, T, D), gamma.new_empty(B, T), gamma.new_empty(B, T)


@_prompt_layernorm_backward.register_fake
def _(
    d_tokens: Tensor | None,
    d_normed: Tensor | None,
    tokens: Tensor,
    gamma: Tensor,
    mean: Tensor,
    rstd: Tensor,
    sets: int,
    length: int,
    replace: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, T, D = tokens.shape
    d_prompts = tokens.new_empty(sets, T - length + replace, D)
    return tokens.new_empty(B, length, D), d_prompts, gamma.new_empty(D), gamma.new_empty(D)


def _prompt_layernorm_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, prompts, gamma, _, _, replace = inputs
    tokens, _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(tokens, gamma, mean, rstd)
    ctx.sets, ctx.length, ctx.replace = prompts.shape[0], x.shape[1], replace


def _prompt_layernorm_gradient(ctx: Any, d_tokens: Tensor | None, d_normed: Tensor | None, *_: Any) -> Any:
    if d_tokens is None and d_normed is None:
        return None, None, None, None, None, None
    tokens, gamma, mean, rstd = ctx.saved_tensors
    grads = _prompt_layernorm_backward(d_tokens, d_normed, tokens, gamma, mean, rstd, ctx.sets, ctx.length, ctx.replace)
    return *grads, None, None


_prompt_layernorm.register_autograd(_prompt_layernorm_gradient, setup_context=_prompt_layernorm_context)
