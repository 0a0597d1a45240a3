"""The three fused ops in plain PyTorch: the definition that every kernel is tested against.

Sizes: B batch, L tokens, P prompts, T = L - replace + P, D width, Q queries, N gallery, K results,
C channels, H W image, S patch, M patches.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_NORM = 1e-12


def prompt_layernorm(
    x: Tensor, prompts: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5, replace: int = 0
) -> tuple[Tensor, Tensor]:
    """See :func:`splip.ops.prompt_layernorm`."""
    if prompts.dim() == 2:
        prompts = prompts.unsqueeze(0)
    prompts = prompts.expand(x.shape[0], -1, -1)
    tokens = torch.cat([x[:, :1], prompts, x[:, 1 + replace :]], dim=1)
    # The sums of a row are taken in float32 whatever the dtype, as the kernels do.
    normed = F.layer_norm(tokens.float(), tokens.shape[-1:], gamma.float(), beta.float(), eps)
    return tokens, normed.to(x.dtype)


def shuffle_tiles(images: Tensor, permutation: Tensor, grid: int) -> Tensor:
    """Permute the tiles of a ``grid`` x ``grid`` raster.

    Tile ``t`` of the result (rows first) is tile ``permutation[b, t]`` of the input. Tiles have
    ``H // grid`` by ``W // grid`` pixels; what remains at the bottom and right stays in place.

    Args:
        images: ``[B, C, H, W]``, any dtype.
        permutation: ``[B, grid * grid]``, int64.
    """
    B, C, H, W = images.shape
    h, w = H // grid, W // grid
    tiles = images[:, :, : grid * h, : grid * w].reshape(B, C, grid, h, grid, w)
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).reshape(B, grid * grid, C, h, w)
    index = permutation.to(images.device)[:, :, None, None, None].expand(-1, -1, C, h, w)
    tiles = tiles.gather(1, index).reshape(B, grid, grid, C, h, w)
    shuffled = tiles.permute(0, 3, 1, 4, 2, 5).reshape(B, C, grid * h, grid * w)
    bottom = torch.cat([shuffled, images[:, :, : grid * h, grid * w :]], dim=3)
    return torch.cat([bottom, images[:, :, grid * h :]], dim=2)


def patchify(
    images: Tensor,
    patch: int,
    mean: Sequence[float],
    std: Sequence[float],
    permutation: Tensor | None = None,
    grid: int = 3,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """See :func:`splip.ops.patchify`."""
    B, C, H, W = images.shape
    if permutation is not None:
        images = shuffle_tiles(images, permutation, grid)

    def constant(numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)

    # Division by a tensor: CUDA turns division by a Python number into a product with its reciprocal.
    values = images.float().div(constant([255])) if images.dtype == torch.uint8 else images.float()
    values = values.sub(constant(mean)).div(constant(std))
    patches = values.reshape(B, C, H // patch, patch, W // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(B, (H // patch) * (W // patch), C * patch * patch).to(dtype)


def cosine_topk(queries: Tensor, gallery: Tensor, k: int, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See :func:`splip.ops.cosine_topk`."""
    q, g = queries.float(), gallery.float()
    q_scale = 1 / q.norm(dim=1).clamp_min(MIN_NORM)
    g_scale = 1 / g.norm(dim=1).clamp_min(MIN_NORM)
    scale = q_scale[:, None] * g_scale[None, :]
    scores = (q @ g.T) * scale
    scores = scores.masked_fill(scores.isnan() | (scale == 0), float("-inf"))  # 0: a norm overflows
    if allowed is not None:  # other rows are left out even where allowed ones score -inf
        rows = allowed.nonzero()[:, 0]
        order = scores[:, rows].argsort(dim=1, descending=True, stable=True)[:, :k]
        order = rows[order]
        missing = (0, k - order.shape[1])
        return F.pad(scores.gather(1, order), missing, value=float("-inf")), F.pad(order, missing, value=-1)
    # A stable sort, not topk: among equal scores the lower index must come first.
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, order), order
