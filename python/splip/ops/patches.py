"""patchify: pictures to patches, normalised, their tiles shuffled, in one pass."""

from collections.abc import Sequence
from typing import Any

import torch  # before _C: both then share one OpenMP runtime
from torch import Tensor

from splip import _C
from splip.ops import reference
from splip.ops.dispatch import CPU_FLOATS, DTYPES, FLOATS, address, call, native, place, register, same_device


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
    if not (native(images, (torch.uint8, torch.float32)) and (images.is_cuda or dtype in CPU_FLOATS)):
        return reference.patchify(images, patch, mean, std, permutation, grid, dtype)
    return call(_patchify, _patchify_native, images, permutation, patch, mean, std, grid, dtype)


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
    if dtype not in FLOATS:
        raise ValueError(f"dtype must be float32, float16 or bfloat16, got {dtype}")
    if permutation is None:
        return
    if not 1 <= grid <= min(H, W):
        raise ValueError(f"grid must be between 1 and {min(H, W)}, got {grid}")
    if permutation.shape != (B, grid * grid) or permutation.dtype != torch.int64:
        raise ValueError(
            f"permutation must be int64 [{B}, {grid * grid}], got {permutation.dtype} {list(permutation.shape)}"
        )
    same_device(images=images, permutation=permutation)
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
        permutation=address(permutation), patches=patches.data_ptr(), B=B, C=C, H=H, W=W, S=patch, grid=grid,
        mean=mean, std=std, image_dtype=DTYPES[images.dtype], dtype=DTYPES[dtype], **place(images),
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
        d_patches=d_patches.data_ptr(), permutation=address(permutation), d_images=d_images.data_ptr(),
        B=B, C=C, H=H, W=W, S=patch, grid=grid, std=std, dtype=DTYPES[d_patches.dtype], **place(d_patches),
    )
    # fmt: on
    return d_images


_patchify = register(
    "patchify",
    _patchify_native,
    "(Tensor images, Tensor? permutation, SymInt patch, float[] mean, float[] std, SymInt grid, ScalarType dtype)"
    " -> Tensor",
)
_patchify_backward = register(
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
