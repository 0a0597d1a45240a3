"""The fused ops: checks, native call, shapes for tracing, gradients.

One name, three implementations: :mod:`splip.reference` (plain PyTorch, the definition), C++ and
CUDA in ``csrc``. The functions here choose; where the native version does not apply (dtype, device,
a build without CUDA) the reference gives the same result, slower.

Sizes: B batch, L tokens, P prompts, T = L - replace + P, D width, Q queries, N gallery, K results,
C channels, H W image, S patch, M patches.
"""

import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch  # before _C: both then share one OpenMP runtime
from torch import Tensor

from splip import _C, reference

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.uint8: 3}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
PACK_QUERIES, PACK_ROWS = 8, 4096  # from here on packing a gallery for one search costs less than it saves
_CPU_FLOATS = (torch.float32, torch.bfloat16)

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


def _native(x: Tensor, cpu_dtypes: tuple[torch.dtype, ...]) -> bool:
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
    if _runs_on(_C.cuda_archs.split(), major, minor):
        return True
    warnings.warn(
        f"splip was built for sm_{_C.cuda_archs.replace(' ', ' sm_')}, which an sm_{major}{minor} cannot run:"
        " PyTorch is used instead. Build with SPLIP_CUDA_ARCHS=native.",
        stacklevel=2,
    )
    return False


def _runs_on(archs: list[str], major: int, minor: int) -> bool:
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


def _where(x: Tensor) -> dict[str, int]:
    """Device index (-1: CPU), CUDA stream, CPU threads."""
    if x.device.type == "cpu":
        return {"device": -1, "stream": 0, "threads": torch.get_num_threads()}
    index = x.device.index if x.device.index is not None else torch.cuda.current_device()
    return {"device": index, "stream": torch.cuda.current_stream(index).cuda_stream, "threads": 0}


def _dense(x: Tensor) -> Tensor:
    """Contiguous; on CUDA also aligned to 16 bytes, which a view of a tensor need not be."""
    x = x.contiguous()
    return x.clone() if x.is_cuda and x.data_ptr() % 16 else x


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _call(op: Any, native: Callable[..., Any], *args: Any) -> Any:
    """Run ``op``; skip the dispatcher (10 to 40 us a call) when nothing records or traces the call."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0
    if tracing or any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors):
        return op(*args)  # a subclass is a fake tensor that only traces shapes
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return op(*args)
    return native(*args)


def _register(name: str, native: Callable[..., Any], schema: str) -> Any:
    """The schema is spelt out: what torch can infer from annotations differs between its versions."""
    return torch.library.custom_op(f"splip::{name}", native, mutates_args=(), schema=schema)


def _same_device(**tensors: Tensor | None) -> None:
    devices = {name: t.device for name, t in tensors.items() if t is not None}
    if len(set(devices.values())) > 1:
        raise ValueError("tensors on different devices: " + ", ".join(f"{n} on {d}" for n, d in devices.items()))


def _float_dtype(name: str, x: Tensor) -> None:
    if x.dtype not in _FLOATS:
        raise ValueError(f"{name} must be float32, float16 or bfloat16, got {x.dtype}")


# ---- prompt_layernorm ----


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
    if not _native(x, _CPU_FLOATS) or (x.is_cuda and not _rows_fit_cuda(x, prompts, gamma, beta)):
        return reference.prompt_layernorm(x, prompts, gamma, beta, eps, replace)
    sets = prompts.unsqueeze(0) if prompts.dim() == 2 else prompts
    tokens, normed, _, _ = _call(_prompt_layernorm, _prompt_layernorm_native, x, sets, gamma, beta, eps, replace)
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
    _float_dtype("x", x)
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
    _same_device(x=x, prompts=prompts, gamma=gamma, beta=beta)


def _prompt_layernorm_native(
    x: Tensor, prompts: Tensor, gamma: Tensor, beta: Tensor, eps: float, replace: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, prompts, gamma, beta = (_dense(t) for t in (x, prompts, gamma, beta))
    B, L, D = x.shape
    G, P, _ = prompts.shape
    T = L - replace + P
    tokens, normed = x.new_empty(B, T, D), x.new_empty(B, T, D)
    mean, rstd = gamma.new_empty(B, T), gamma.new_empty(B, T)
    # fmt: off
    _C.prompt_layernorm(
        x=x.data_ptr(), prompts=prompts.data_ptr(), gamma=gamma.data_ptr(), beta=beta.data_ptr(),
        tokens=tokens.data_ptr(), normed=normed.data_ptr(), mean=mean.data_ptr(), rstd=rstd.data_ptr(),
        B=B, L=L, P=P, G=G, D=D, R=replace, eps=eps, dtype=_DTYPES[x.dtype], **_where(x),
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
    d_tokens, d_normed = (t if t is None else _dense(t) for t in (d_tokens, d_normed))
    tokens, gamma, mean, rstd = (_dense(t) for t in (tokens, gamma, mean, rstd))
    d_x = tokens.new_empty(B, length, D)
    d_prompts = gamma.new_empty(sets, P, D)
    d_gamma, d_beta = gamma.new_empty(D), gamma.new_empty(D)
    sizes = {"B": B, "L": length, "P": P, "G": sets, "D": D, "R": replace}
    where = _where(tokens)
    if tokens.is_cuda:
        scratch = gamma.new_empty(_C.prompt_layernorm_scratch(**sizes, device=where["device"]))
    else:
        scratch = gamma.new_empty(_C.layernorm_chunks, 2, D)
    # fmt: off
    _C.prompt_layernorm_backward(
        d_tokens=_address(d_tokens), d_normed=_address(d_normed), tokens=tokens.data_ptr(), gamma=gamma.data_ptr(),
        mean=mean.data_ptr(), rstd=rstd.data_ptr(), d_x=d_x.data_ptr(), d_prompts=d_prompts.data_ptr(),
        d_gamma=d_gamma.data_ptr(), d_beta=d_beta.data_ptr(), scratch=scratch.data_ptr(),
        dtype=_DTYPES[tokens.dtype], **sizes, **where,
    )
    # fmt: on
    return d_x, d_prompts.to(tokens.dtype), d_gamma, d_beta


_prompt_layernorm = _register(
    "prompt_layernorm",
    _prompt_layernorm_native,
    "(Tensor x, Tensor prompts, Tensor gamma, Tensor beta, float eps, SymInt replace)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
_prompt_layernorm_backward = _register(
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


# ---- patchify ----


def patchify(
    images: Tensor,  # [B, C, H, W]
    patch: int,
    mean: Sequence[float],
    std: Sequence[float],
    permutation: Tensor | None = None,  # [B, grid * grid]
    grid: int = 3,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Shuffle tiles, normalise and cut into patches, ready for the patch embedding's matrix product.

    Same as shuffling the tiles of each image, ``(images / 255 - mean) / std`` (no division for float
    images) and ``unfold`` (im2col), in one pass over memory. ``patches @ conv.weight.flatten(1).T``
    then equals a convolution with kernel and stride ``patch``.

    Args:
        images: ``[B, C, H, W]``, uint8 (0 to 255) or float32 (0 to 1), C <= 4, any strides: a
            channels-last picture as decoded, permuted, is read as it lies.
        patch: side S of a patch in pixels; divides H and W.
        mean: subtracted per channel, C floats.
        std: divided by per channel, C floats, positive.
        permutation: tile ``t`` of the result, rows first, is tile ``permutation[b, t]`` of image ``b``.
            ``[B, grid * grid]``, int64, every row a permutation (checked on the CPU, trusted on CUDA).
        grid: tiles per side. Tiles have ``H // grid`` by ``W // grid`` pixels; what remains at the
            bottom and right stays in place.
        dtype: of the result: float32, float16 or bfloat16.

    Returns:
        ``[B, M, C * S * S]``, M = (H / S) * (W / S) patches, rows first.

    Raises:
        ValueError: a shape, dtype or device does not match, or a row is not a permutation.

    Native on: CPU (to float32, bfloat16), CUDA (all three). Elsewhere: PyTorch. Differentiable in float images.
    """
    mean, std = [float(v) for v in mean], [float(v) for v in std]
    grid = 1 if permutation is None else grid
    _check_patchify(images, patch, mean, std, permutation, grid, dtype)
    if not (_native(images, (torch.uint8, torch.float32)) and (images.is_cuda or dtype in _CPU_FLOATS)):
        return reference.patchify(images, patch, mean, std, permutation, grid, dtype)
    return _call(_patchify, _patchify_native, images, permutation, patch, mean, std, grid, dtype)


def _check_patchify(
    images: Tensor,
    patch: int,
    mean: list[float],
    std: list[float],
    permutation: Tensor | None,
    grid: int,
    dtype: torch.dtype,
) -> None:
    if images.dim() != 4:
        raise ValueError(f"images must be [B, C, H, W], got {list(images.shape)}")
    if images.dtype not in (torch.uint8, torch.float32):
        raise ValueError(f"images must be uint8 or float32, got {images.dtype}")
    B, C, H, W = images.shape
    if not 1 <= C <= _C.max_channels:
        raise ValueError(f"images must have 1 to {_C.max_channels} channels, got {C}")
    if patch < 1 or H % patch or W % patch or not H or not W:
        raise ValueError(f"images of {H} x {W} pixels cannot be cut into patches of {patch}")
    if len(mean) != C or len(std) != C:
        raise ValueError(f"mean and std must have {C} values, got {len(mean)} and {len(std)}")
    if not all(v > 0 for v in std):
        raise ValueError(f"std must be positive, got {std}")
    if dtype not in _FLOATS:
        raise ValueError(f"dtype must be float32, float16 or bfloat16, got {dtype}")
    if permutation is None:
        return
    if not 1 <= grid <= min(H, W):
        raise ValueError(f"grid must be between 1 and {min(H, W)}, got {grid}")
    if permutation.shape != (B, grid * grid) or permutation.dtype != torch.int64:
        raise ValueError(
            f"permutation must be int64 [{B}, {grid * grid}], got {permutation.dtype} {list(permutation.shape)}"
        )
    _same_device(images=images, permutation=permutation)
    if permutation.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = (permutation.sort(dim=1).values != torch.arange(grid * grid, device=permutation.device)).any(dim=1)
        if bool(wrong.any()):
            raise ValueError(f"permutation row {int(wrong.nonzero()[0])} is not a permutation of 0..{grid * grid - 1}")


def _patchify_native(
    images: Tensor,
    permutation: Tensor | None,
    patch: int,
    mean: Sequence[float],
    std: Sequence[float],
    grid: int,
    dtype: torch.dtype,
) -> Tensor:
    B, C, H, W = images.shape
    permutation = None if permutation is None else permutation.contiguous()
    patches = images.new_empty(B, (H // patch) * (W // patch), C * patch * patch, dtype=dtype)
    stride_b, stride_c, stride_y, stride_x = images.stride()
    # fmt: off
    _C.patchify(
        images=images.data_ptr(), stride_b=stride_b, stride_c=stride_c, stride_y=stride_y, stride_x=stride_x,
        permutation=_address(permutation), patches=patches.data_ptr(), B=B, C=C, H=H, W=W, S=patch, grid=grid,
        mean=mean, std=std, image_dtype=_DTYPES[images.dtype], dtype=_DTYPES[dtype], **_where(images),
    )
    # fmt: on
    return patches


def _patchify_backward_native(
    d_patches: Tensor, permutation: Tensor | None, shape: Sequence[int], patch: int, std: Sequence[float], grid: int
) -> Tensor:
    d_patches = d_patches.contiguous()
    permutation = None if permutation is None else permutation.contiguous()
    B, C, H, W = shape
    d_images = d_patches.new_empty(B, C, H, W, dtype=torch.float32)
    # fmt: off
    _C.patchify_backward(
        d_patches=d_patches.data_ptr(), permutation=_address(permutation), d_images=d_images.data_ptr(),
        B=B, C=C, H=H, W=W, S=patch, grid=grid, std=std, dtype=_DTYPES[d_patches.dtype], **_where(d_patches),
    )
    # fmt: on
    return d_images


_patchify = _register(
    "patchify",
    _patchify_native,
    "(Tensor images, Tensor? permutation, SymInt patch, float[] mean, float[] std, SymInt grid, ScalarType dtype)"
    " -> Tensor",
)
_patchify_backward = _register(
    "patchify_backward",
    _patchify_backward_native,
    "(Tensor d_patches, Tensor? permutation, SymInt[] shape, SymInt patch, float[] std, SymInt grid) -> Tensor",
)


@_patchify.register_fake
def _(
    images: Tensor,
    permutation: Tensor | None,
    patch: int,
    mean: Sequence[float],
    std: Sequence[float],
    grid: int,
    dtype: torch.dtype,
) -> Tensor:
    B, C, H, W = images.shape
    return images.new_empty(B, (H // patch) * (W // patch), C * patch * patch, dtype=dtype)


@_patchify_backward.register_fake
def _(
    d_patches: Tensor, permutation: Tensor | None, shape: Sequence[int], patch: int, std: Sequence[float], grid: int
) -> Tensor:
    return d_patches.new_empty(tuple(shape), dtype=torch.float32)


def _patchify_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, permutation, patch, _, std, grid, _ = inputs
    ctx.save_for_backward(permutation)
    ctx.shape, ctx.patch, ctx.std, ctx.grid = tuple(images.shape), patch, std, grid


def _patchify_gradient(ctx: Any, d_patches: Tensor) -> Any:
    (permutation,) = ctx.saved_tensors
    d_images = _patchify_backward(d_patches, permutation, ctx.shape, ctx.patch, ctx.std, ctx.grid)
    return d_images, None, None, None, None, None, None


_patchify.register_autograd(_patchify_gradient, setup_context=_patchify_context)


# ---- cosine_topk ----


class PackedGallery(NamedTuple):
    """A gallery made ready for many searches on the CPU by :func:`pack_gallery`."""

    rows: Tensor  # [N, D] float32: what was packed
    panels: Tensor  # uint8: rows in 8 bits, in the order of the scan
    scale: Tensor  # [ceil(N / 32) * 32] float32
    error: Tensor  # [ceil(N / 32) * 32] float32: length of what 8 bits lost
    inverse: Tensor  # [N] float64: 1 / norm
    centre: Tensor  # [D + 1] float32: mean of the unit rows, and the greatest length less it

    @property
    def shape(self) -> torch.Size:
        """``[N, D]``."""
        return self.rows.shape

    def addresses(self) -> dict[str, int]:
        """Of its tensors, by the names that the native module has for them."""
        rows, *others = (t.data_ptr() for t in self)
        return {"gallery": rows, **dict(zip(self._fields[1:], others, strict=True))}


class PreparedGallery(NamedTuple):
    """A gallery made ready for many searches on a GPU by :func:`pack_gallery`."""

    rows: Tensor  # [N, P]: what was prepared; P is D rounded up to 16 bytes, zeros past D
    inverse: Tensor  # [N] float32: 1 / norm; NaN: a row without a score
    width: int  # D

    @property
    def shape(self) -> torch.Size:
        """``[N, D]``."""
        return torch.Size((len(self.rows), self.width))


def _aligned(count: int, alignment: int = 64) -> Tensor:
    """``count`` bytes at an aligned address."""
    memory = torch.empty(count + alignment, dtype=torch.uint8)
    start = -memory.data_ptr() % alignment
    return memory[start : start + count]


def pack_gallery(gallery: Tensor) -> "PackedGallery | PreparedGallery":
    """Make a gallery ready for many exact searches: pass the result to :func:`cosine_topk` in place of the gallery.

    On the CPU its rows are packed in 8 bits beside it: a quarter more memory, several times the speed. On a GPU the
    rows' norms are kept, which each search of more than a few queries would have to sum again, and rows that are not
    a multiple of 16 bytes long are copied into longer ones. Rows are kept, not copied otherwise: do not change them.

    Args:
        gallery: ``[N, D]``, on the CPU float32, on a GPU float32, float16 or bfloat16. ``N < 2**31``, ``D <= 65536``.

    Raises:
        ValueError: another shape, dtype or device.
    """
    if gallery.dim() != 2 or not 1 <= gallery.shape[1] <= 65536 or gallery.shape[0] >= 2**31:
        raise ValueError(f"gallery must be [N, D], N < 2**31, 1 <= D <= 65536, got {list(gallery.shape)}")
    if gallery.device.type == "cuda":
        return _prepare_gallery(gallery.detach())
    if gallery.dtype != torch.float32 or gallery.device.type != "cpu":
        raise ValueError(f"gallery must be float32 on the CPU, got {gallery.dtype} on {gallery.device}")
    return _pack_gallery(gallery)


def _prepare_gallery(gallery: Tensor) -> PreparedGallery:
    """On any device, for tests."""
    _float_dtype("gallery", gallery)
    N, D = gallery.shape
    rows = torch.nn.functional.pad(gallery, (0, -D % (16 // gallery.element_size()))).contiguous()
    inverse = gallery.new_empty(N, dtype=torch.float32)
    for first in range(0, N, _QUANTISE_ROWS):
        part = slice(first, first + _QUANTISE_ROWS)
        norm = rows[part].double().norm(dim=1)
        inverse[part] = (1 / norm.clamp_min(reference.MIN_NORM)).where(norm.square() <= _LONGEST, torch.nan)
    return PreparedGallery(rows, inverse, D)


def _pack_gallery(gallery: Tensor) -> PackedGallery:
    rows = gallery.detach().contiguous()
    (N, D), threads = rows.shape, torch.get_num_threads()
    padded = (N + 31) // 32 * 32
    packed = PackedGallery(
        rows,
        _aligned(_C.packed_panel_bytes(N, D)),
        torch.empty(padded),
        torch.empty(padded),
        torch.empty(N, dtype=torch.float64),
        torch.empty(D + 1),
    )
    scratch = _aligned(_C.pack_gallery_scratch(D=D, threads=threads))
    _C.pack_gallery(**packed.addresses(), scratch=scratch.data_ptr(), N=N, D=D, **_where(rows))
    return packed


class EightBitGallery(NamedTuple):
    """A gallery in 8 bits for searches on a GPU, by :func:`eight_bit_gallery`."""

    rows: Tensor | None  # [N, D] what it was made of, for exact scores
    bytes: Tensor  # [N, P] int8: unit rows less their mean; P is D rounded up to 16
    scale: Tensor  # [N] float32; NaN: a row without a score
    error: Tensor  # [N] float32: at least the length of what 8 bits lost
    centre: Tensor  # [D + 1] float32: mean of the unit rows, and at least the length of any row in 8 bits

    @property
    def shape(self) -> torch.Size:
        """``[N, D]``."""
        return torch.Size((len(self.bytes), len(self.centre) - 1))

    def approximate(self) -> Tensor:
        """The unit rows as 8 bits remember them, float32 ``[N, D]``."""
        return self.bytes[:, : self.shape[1]] * self.scale[:, None] + self.centre[:-1]


_QUANTISE_ROWS = 1 << 16  # at a time


def eight_bit_gallery(gallery: Tensor, keep_rows: bool = True) -> EightBitGallery:
    """Quantise a gallery to 8 bits, so that searches on a GPU read half the bytes and multiply twice as fast.

    Pass the result to :func:`cosine_topk` in place of the gallery. With its rows kept, which are not copied and must
    not change, results are the same as without 8 bits: exact. Without them it takes half the memory of a 16-bit
    gallery, and results are approximate: exact in the rows as 8 bits remember them, whose scores are off by at most
    ``error``, 0.007 at D = 512.

    Args:
        gallery: ``[N, D]``, float32, float16 or bfloat16, on any device. ``D <= 65536``.
        keep_rows: keep ``gallery`` for exact scores.

    Raises:
        ValueError: another shape or dtype.
    """
    if gallery.dim() != 2 or not 1 <= gallery.shape[1] <= 65536:
        raise ValueError(f"gallery must be [N, D], 1 <= D <= 65536, got {list(gallery.shape)}")
    _float_dtype("gallery", gallery)
    rows = gallery.detach().contiguous()
    N, D = rows.shape

    def unit(part: Tensor) -> Tensor:
        """NaN where a row has no score."""
        norm = part.double().norm(dim=1, keepdim=True)
        return (part.double() / norm.clamp_min(reference.MIN_NORM)).float().where(norm.square() <= _LONGEST, torch.nan)

    made = EightBitGallery(
        rows if keep_rows else None,
        rows.new_zeros(N, -(-D // 16) * 16, dtype=torch.int8),
        rows.new_empty(N, dtype=torch.float32),
        rows.new_empty(N, dtype=torch.float32),
        rows.new_zeros(D + 1, dtype=torch.float32),
    )
    mean = sum((unit(p).nan_to_num_(0).sum(dim=0, dtype=torch.float64) for p in rows.split(_QUANTISE_ROWS)), 0)
    centre = made.centre[:-1].add_(mean / max(1, N))
    for first in range(0, N, _QUANTISE_ROWS):
        part = slice(first, first + _QUANTISE_ROWS)
        residual = unit(rows[part]).sub_(centre)
        scale = residual.abs().amax(dim=1) / 127
        made.scale[part] = scale
        steps = (residual / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round_().nan_to_num_(0)
        made.bytes[part, :D] = steps.clamp_(-127, 127)
        steps *= scale[:, None]
        # A little more than it is, for the rounding of all of this.
        made.error[part] = (residual - steps).double().norm(dim=1).mul(1.0001).add(1e-6).nan_to_num_(0)
        longest = steps.double().norm(dim=1).nan_to_num_(0).max() * 1.0001
        torch.maximum(made.centre[-1], longest.float(), out=made.centre[-1])
    return made


# The largest square of a float32 row's length that has a score.
_LONGEST = float(torch.finfo(torch.float32).max)


def _packed_topk(queries: Tensor, gallery: PackedGallery, k: int, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    queries = queries.detach().contiguous()
    (Q, D), N, where = queries.shape, len(gallery.rows), _where(queries)
    scores, indices = queries.new_empty(Q, k), queries.new_empty(Q, k, dtype=torch.int64)
    if not Q or not k:
        return scores, indices
    bits = None
    if allowed is not None:
        bits = torch.zeros((N + 31) // 32 * 4, dtype=torch.uint8)
        packed = np.packbits(allowed.contiguous().numpy(), bitorder="little")
        bits[: len(packed)] = torch.from_numpy(packed)
    scratch = _aligned(_C.packed_topk_scratch(Q=Q, D=D, K=k, threads=where["threads"]))
    # fmt: off
    _C.packed_topk(
        queries=queries.data_ptr(), allowed=_address(bits), scores=scores.data_ptr(), indices=indices.data_ptr(),
        scratch=scratch.data_ptr(), Q=Q, N=N, D=D, K=k, **gallery.addresses(), **where,
    )
    # fmt: on
    return scores, indices


def cosine_topk(
    queries: Tensor,  # [Q, D]
    gallery: Tensor | PackedGallery | PreparedGallery | EightBitGallery,  # [N, D]
    k: int,
    allowed: Tensor | None = None,  # [N]
) -> tuple[Tensor, Tensor]:
    """The ``k`` gallery rows of largest cosine similarity for each query.

    Same as ``(normalize(queries) @ normalize(gallery).T).topk(k)``, without the score matrix and with
    a fixed order: score descending, then index ascending. Rows need not be normalised.

    Args:
        queries: ``[Q, D]``, float32, float16 or bfloat16.
        gallery: ``[N, D]``, same dtype; or one made ready by :func:`pack_gallery`, for searches that are several
            times faster on the CPU, up to twice on a GPU, exact all the same (scores are sums in float64) and have
            no gradient; or one of :func:`eight_bit_gallery`, without a gradient either.
        k: results per query, ``0 <= k <= N``.
        allowed: bool ``[N]``: rows that may be results; on the CPU for packed galleries only. With fewer than
            ``k``, the last results are index -1 at ``-inf``.

    Returns:
        ``(scores, indices)``: ``[Q, k]`` float32 and ``[Q, k]`` int64. A zero row scores 0. A score
        that is not a number (a row holds NaN, infinity, or is too long for float32) counts and is
        reported as ``-inf``.

    Raises:
        ValueError: a shape, dtype or device does not match, or ``k > N``.

    Native on: CPU (float32), CUDA (all three, ``k <= 1024``, ``N < 2**31``, ``D <= 65536``). Elsewhere: PyTorch.
    Scores are differentiable in queries and gallery.

    On CUDA the answer is exact: scores are cosines of the given rows, summed in float64 and rounded to
    float32, and no row is missed. A scan in the rows' own precision (float32 rows: tf32) keeps every row that
    rounding could have kept out, these are scored again in float64, and a query whose candidates do not fit
    is scanned in float64 altogether. Rows in 8 bits come with bounds of what that changes. Exactness follows from a bound on how the tensor cores round, taken at
    more than what is known of them. Nothing synchronises, so a CUDA graph can record the call.
    """
    shape = gallery.shape
    if queries.dim() != 2 or len(shape) != 2 or queries.shape[1] != shape[1] or not queries.shape[1]:
        raise ValueError(
            f"queries and gallery must be [Q, D] and [N, D], D >= 1, got {list(queries.shape)} and {list(gallery.shape)}"
        )
    _float_dtype("queries", queries)
    if isinstance(gallery, PackedGallery):
        return _check_packed_topk(queries, gallery, k, allowed)
    if isinstance(gallery, PreparedGallery):
        return _check_prepared_topk(queries, gallery, k, allowed)
    if isinstance(gallery, EightBitGallery):
        return _check_eight_bit_topk(queries, gallery, k, allowed)
    if allowed is not None and not queries.is_cuda:
        raise ValueError("allowed needs a packed gallery on the CPU: see pack_gallery")
    if gallery.dtype != queries.dtype:
        raise ValueError(f"gallery must be {queries.dtype} like queries, got {gallery.dtype}")
    if not 0 <= k <= gallery.shape[0]:
        raise ValueError(f"k must be between 0 and the gallery's size {gallery.shape[0]}, got {k}")
    if allowed is not None:
        _check_allowed(allowed, gallery.shape[0])
    _same_device(queries=queries, gallery=gallery, allowed=allowed)
    if not _native(queries, (torch.float32,)) or _too_much_for_cuda(queries, shape, k):
        return reference.cosine_topk(queries, gallery, k, allowed)
    return _call(_cosine_topk, _cosine_topk_native, queries, gallery, k, allowed)


def _too_much_for_cuda(queries: Tensor, shape: torch.Size, k: int) -> bool:
    return queries.is_cuda and (k > _C.cuda_max_k or shape[0] >= 2**31 or shape[1] > _C.cuda_max_width)


def _check_ready_topk(
    queries: Tensor, gallery: PreparedGallery | EightBitGallery, scanned: Tensor, k: int, allowed: Tensor | None
) -> None:
    N = gallery.shape[0]
    if gallery.rows is not None and gallery.rows.dtype != queries.dtype:
        raise ValueError(f"queries must be {gallery.rows.dtype} like the gallery's rows, got {queries.dtype}")
    if not 0 <= k <= N:
        raise ValueError(f"k must be between 0 and the gallery's size {N}, got {k}")
    if allowed is not None:
        _check_allowed(allowed, N)
    _same_device(queries=queries, gallery=scanned, allowed=allowed)


def _check_eight_bit_topk(
    queries: Tensor, gallery: EightBitGallery, k: int, allowed: Tensor | None
) -> tuple[Tensor, Tensor]:
    _check_ready_topk(queries, gallery, gallery.bytes, k, allowed)
    queries = queries.detach()
    if _native(queries, ()) and not _too_much_for_cuda(queries, gallery.shape, k):
        return _cuda_topk(queries, gallery, k, allowed)
    if gallery.rows is not None:
        return reference.cosine_topk(queries, gallery.rows, k, allowed)
    return _approximate_topk(queries, gallery, k, allowed)


def _check_prepared_topk(
    queries: Tensor, gallery: PreparedGallery, k: int, allowed: Tensor | None
) -> tuple[Tensor, Tensor]:
    _check_ready_topk(queries, gallery, gallery.rows, k, allowed)
    queries = queries.detach()
    if _native(queries, ()) and not _too_much_for_cuda(queries, gallery.shape, k):
        return _cuda_topk(queries, gallery, k, allowed)
    return reference.cosine_topk(queries, gallery.rows[:, : gallery.width], k, allowed)


def _approximate_topk(
    queries: Tensor, gallery: EightBitGallery, k: int, allowed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """In plain PyTorch. Approximate rows are nearly unit rows, and taken as they are: a column more makes all alike."""
    rows = gallery.approximate()
    length = 4.0  # longer than any: at D = 65536, 8 bits can change a unit row by 2
    rest = (length**2 - rows.square().sum(dim=1, keepdim=True)).sqrt()
    padded = torch.nn.functional.pad(queries.float(), (0, 1))
    scores, indices = reference.cosine_topk(padded, torch.cat([rows, rest], dim=1), k, allowed)
    return scores * length, indices


def _check_allowed(allowed: Tensor, N: int) -> None:
    if allowed.dtype != torch.bool or allowed.shape != (N,):
        raise ValueError(f"allowed must be bool [{N}], got {allowed.dtype} {list(allowed.shape)}")


def _check_packed_topk(
    queries: Tensor, gallery: PackedGallery, k: int, allowed: Tensor | None
) -> tuple[Tensor, Tensor]:
    N = gallery.shape[0]
    if queries.dtype != torch.float32 or queries.device.type != "cpu":
        raise ValueError(
            f"queries of a packed gallery must be float32 on the CPU, got {queries.dtype} on {queries.device}"
        )
    if not 0 <= k <= N:
        raise ValueError(f"k must be between 0 and the gallery's size {N}, got {k}")
    if allowed is not None:
        _check_allowed(allowed, N)
    _check_pack(gallery)
    return _packed_topk(queries, gallery, k, allowed)


def _check_pack(gallery: PackedGallery) -> None:
    """The scan reads what the sizes promise: an array that is too short would end the process."""
    N, D = gallery.shape
    padded = (N + 31) // 32 * 32
    sizes = {
        "rows": (torch.float32, (N, D)),
        "panels": (torch.uint8, (_C.packed_panel_bytes(N, D),)),
        "scale": (torch.float32, (padded,)),
        "error": (torch.float32, (padded,)),
        "inverse": (torch.float64, (N,)),
        "centre": (torch.float32, (D + 1,)),
    }
    for (name, (dtype, size)), array in zip(sizes.items(), gallery, strict=True):
        if array.dtype != dtype or tuple(array.shape) != size or array.device.type != "cpu":
            found = f"{array.dtype} {list(array.shape)} on {array.device}"
            raise ValueError(f"{name} of a packed gallery [{N}, {D}] must be {dtype} {list(size)}, got {found}")
        if not array.is_contiguous():
            raise ValueError(f"{name} of a packed gallery must be contiguous")
    if gallery.panels.data_ptr() % 64:
        raise ValueError("panels of a packed gallery must begin at a multiple of 64 bytes")


# What CUDA's cosine_topk may take for the candidates of a block of queries.
_MOST_SCRATCH = 1 << 28


def _cosine_topk_native(
    queries: Tensor, gallery: Tensor, k: int, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    if queries.is_cuda:
        return _cuda_topk(queries, gallery, k, allowed)
    queries, gallery = queries.contiguous(), gallery.contiguous()
    (Q, D), N = queries.shape, gallery.shape[0]
    if Q >= PACK_QUERIES and PACK_ROWS <= N < 2**31 and D <= 65536:
        return _packed_topk(queries, _pack_gallery(gallery), k, None)
    scores, indices = queries.new_empty(Q, k), queries.new_empty(Q, k, dtype=torch.int64)
    if Q and k:
        sizes, where = {"Q": Q, "N": N, "D": D, "K": k}, _where(queries)
        scratch = queries.new_empty(_C.cosine_topk_scratch(**sizes, threads=where["threads"]), dtype=torch.uint8)
        # fmt: off
        _C.cosine_topk(
            queries=queries.data_ptr(), gallery=gallery.data_ptr(), scores=scores.data_ptr(),
            indices=indices.data_ptr(), scratch=scratch.data_ptr(), dtype=_DTYPES[queries.dtype], **sizes, **where,
        )
        # fmt: on
    return scores, indices


# How CUDA multiplies, splip.h's TopkScan: what is not "automatic" is for tests and measurements.
SCANS = {"automatic": 0, "stream": 1, "tiles64": 2, "tiles128": 3, "tiles256": 4, "wgmma": 5}


def _cuda_topk(
    queries: Tensor,
    gallery: Tensor | PreparedGallery | EightBitGallery,
    k: int,
    allowed: Tensor | None = None,
    scan: str = "automatic",
) -> tuple[Tensor, Tensor]:
    rows: Tensor | None
    if isinstance(gallery, PreparedGallery):
        rows = gallery.rows
        queries = torch.nn.functional.pad(queries, (0, rows.shape[1] - gallery.width))
        N, pitch, eight_bits = len(rows), 0, {"inverse": gallery.inverse.data_ptr()}
    elif isinstance(gallery, EightBitGallery):
        rows, (N, pitch) = gallery.rows, gallery.bytes.shape
        eight_bits = {
            "eight_bit_rows": gallery.bytes.data_ptr(),
            "scale": gallery.scale.data_ptr(),
            "error": 0 if rows is None else gallery.error.data_ptr(),  # without the rows, 8 bits are all there is
            "centre": gallery.centre.data_ptr(),
            "pitch": pitch,
        }
    else:
        rows = gallery.contiguous()
        N, pitch, eight_bits = len(rows), 0, {}
    queries, (Q, D) = queries.contiguous(), queries.shape
    scores = queries.new_empty(Q, k, dtype=torch.float32)
    indices = queries.new_empty(Q, k, dtype=torch.int64)
    if not Q or not k:
        return scores, indices
    where = _where(queries)
    mask = None if allowed is None else allowed.contiguous()

    def room(n: int) -> int:
        return _C.cosine_topk_scratch(Q=n, N=N, D=D, K=k, device=where["device"], scan=SCANS[scan], pitch=pitch)

    # Every query has room for its candidates in the scratch memory: take blocks of queries, all of a size.
    blocks = -(-Q // _C.cuda_max_queries)
    while blocks < Q and room(-(-Q // blocks)) > _MOST_SCRATCH:
        blocks += 1
    block = -(-Q // blocks)
    scratch = queries.new_empty(max(room(n) for n in {block, Q % block or block}), dtype=torch.uint8)
    for first in range(0, Q, block):
        q, s, i = (t[first : first + block] for t in (queries, scores, indices))
        # fmt: off
        _C.cosine_topk(
            queries=q.data_ptr(), gallery=_address(rows), scores=s.data_ptr(), indices=i.data_ptr(),
            scratch=scratch.data_ptr(), Q=len(q), N=N, D=D, K=k, dtype=_DTYPES[queries.dtype], scan=SCANS[scan],
            allowed=_address(mask), **eight_bits, **where,
        )
        # fmt: on
    return scores, indices


_cosine_topk = _register(
    "cosine_topk",
    _cosine_topk_native,
    "(Tensor queries, Tensor gallery, SymInt k, Tensor? allowed=None) -> (Tensor, Tensor)",
)


@_cosine_topk.register_fake
def _(queries: Tensor, gallery: Tensor, k: int, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    Q = queries.shape[0]
    return queries.new_empty(Q, k, dtype=torch.float32), queries.new_empty(Q, k, dtype=torch.int64)


def _cosine_topk_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    queries, gallery, _, _ = inputs
    scores, indices = output
    ctx.mark_non_differentiable(indices)
    ctx.save_for_backward(queries, gallery, scores, indices)


def _cosine_topk_gradient(ctx: Any, d_scores: Tensor, _: Any) -> Any:
    """d cos(q, g) / d q = (g / |g| - cos * q / |q|) / |q|, and the same with q and g exchanged."""
    queries, gallery, scores, indices = ctx.saved_tensors
    missing = indices < 0  # fewer allowed rows than results: no row, no gradient
    scores, indices = scores.masked_fill(missing, 0), indices.clamp_min(0)
    q, chosen = queries.float()[:, None], gallery.float()[indices]  # [Q, 1, D], [Q, K, D]
    q_scale = 1 / q.norm(dim=2, keepdim=True).clamp_min(reference.MIN_NORM)
    g_scale = 1 / chosen.norm(dim=2, keepdim=True).clamp_min(reference.MIN_NORM)
    q_unit, g_unit, cosine = q * q_scale, chosen * g_scale, scores[:, :, None]
    weight = d_scores.masked_fill(missing, 0)[:, :, None]
    d_queries = (weight * (g_unit - cosine * q_unit) * q_scale).sum(dim=1).to(queries.dtype)
    if not ctx.needs_input_grad[1]:  # a fixed gallery: spare its [N, D] gradient
        return d_queries, None, None, None
    d_chosen = weight * (q_unit - cosine * g_unit) * g_scale
    d_gallery = torch.zeros_like(gallery, dtype=torch.float32)
    d_gallery = d_gallery.index_add(0, indices.flatten(), d_chosen.flatten(0, 1)).to(gallery.dtype)
    return d_queries, d_gallery, None, None


_cosine_topk.register_autograd(_cosine_topk_gradient, setup_context=_cosine_topk_context)
