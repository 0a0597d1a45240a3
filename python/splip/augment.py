"""Random variants of square pictures on white, for training."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

STRENGTH = {"light": 0.5, "strong": 1.0}


def augment(
    images: Tensor,
    is_sketch: Tensor,
    strength: str,
    generator: torch.Generator,
    rows: Tensor | None = None,
    total: int | None = None,
    pairs: bool = False,
) -> Tensor:
    """Random variants of square pictures on white.

    Args:
        images: ``[B, 3, S, S]`` uint8.
        is_sketch: ``[B]`` bool: sketches change their stroke width, photos their colours.
        strength: none, light or strong.
        generator: of all random numbers.
        rows: ``[B]`` int64 places of these pictures in the batch of all processes, so that a picture
            gets the same variant however many processes share the batch; None: this is the whole batch.
        total: pictures in the batch of all processes; with ``rows``.
        pairs: the batch is sketches, positives and negatives, and mirrors each triplet as one: a mirrored
            sketch is not of its photo any more.

    Returns:
        ``[B, 3, S, S]`` uint8.
    """
    if strength == "none":
        return images
    a, (B, _, S, _) = STRENGTH[strength], images.shape

    if rows is None or total is None:
        rows, total = torch.arange(B), B

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(total, *shape, generator=generator)[rows] * (high - low) + low

    # Work on distance from white, so that zeros are background.
    ink = 1 - images.float() / 255
    angle = uniform(-a, a) * (math.pi / 9)
    mirrored = torch.rand(total, generator=generator) < 0.5
    flip = torch.where(mirrored[rows % (total // 3) if pairs else rows], -1.0, 1.0)
    zoom = torch.exp(uniform(-a, a) * 0.25)
    aspect = torch.exp(uniform(-a, a) * 0.15)
    shear = uniform(-a, a) * 0.15
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = flip * zoom * aspect * cos, flip * zoom * (shear * cos - sin)
    theta[:, 1, 0], theta[:, 1, 1] = zoom / aspect * sin, zoom / aspect * (shear * sin + cos)
    theta[:, :, 2] = uniform(-a, a, 2) * 0.15
    grid = F.affine_grid(theta, [B, 3, S, S], align_corners=False)
    ink = F.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    # Sketches: thicker or thinner strokes.
    thick = is_sketch & (uniform(0, 1) < 0.3 * a)
    if bool(thick.any()):
        ink[thick] = F.max_pool2d(ink[thick], 3, 1, 1)
    gain = torch.where(is_sketch, uniform(1 - 0.3 * a, 1 + 0.3 * a), torch.ones(B))

    # Photos: contrast, colour casts, sometimes grey or other hues.
    cast = torch.where(is_sketch[:, None], torch.ones(B, 3), uniform(1 - 0.5 * a, 1 + 0.4 * a, 3))
    ink = ink * (gain[:, None] * cast)[:, :, None, None]
    grey = ~is_sketch & (uniform(0, 1) < 0.6 * a)
    ink = torch.where(grey[:, None, None, None], ink.mean(dim=1, keepdim=True), ink)
    order = torch.stack([torch.randperm(3, generator=generator) for _ in range(total)])[rows]
    swap = ~is_sketch & (uniform(0, 1) < 0.3 * a)
    order = torch.where(swap[:, None], order, torch.arange(3))
    ink = ink.gather(1, order[:, :, None, None].expand(-1, -1, S, S))

    # Cut-out: a rectangle of background.
    size = uniform(0.1, 0.1 + 0.3 * a, 2) * S
    centre = uniform(0, 1, 2) * S
    cut = uniform(0, 1) < 0.5 * a
    at = torch.arange(S, dtype=torch.float32)
    inside = [(at[None] - centre[:, i : i + 1]).abs() < size[:, i : i + 1] / 2 for i in (0, 1)]
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :] & cut[:, None, None, None]
    ink = ink.masked_fill(hole, 0.0)
    return (255 * (1 - ink.clamp(0, 1))).round().to(torch.uint8)
