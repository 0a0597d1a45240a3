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
        generator: of all random numbers, on the CPU: they are the same wherever the pictures are.
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
    a, (B, _, S, _), device = STRENGTH[strength], images.shape, images.device

    if rows is None or total is None:
        rows, total = torch.arange(B), B
    is_sketch = is_sketch.to(device)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (torch.rand(total, *shape, generator=generator)[rows] * (high - low) + low).to(device)

    # Work on distance from white, so that zeros are background.
    ink = 1 - images.float() / 255
    angle = uniform(-a, a) * (math.pi / 9)
    mirrored = torch.rand(total, generator=generator) < 0.5
    flip = torch.where(mirrored[rows % (total // 3) if pairs else rows], -1.0, 1.0).to(device)
    zoom = torch.exp(uniform(-a, a) * 0.25)
    aspect = torch.exp(uniform(-a, a) * 0.15)
    shear = uniform(-a, a) * 0.15
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.zeros(B, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 1] = flip * zoom * aspect * cos, flip * zoom * (shear * cos - sin)
    theta[:, 1, 0], theta[:, 1, 1] = zoom / aspect * sin, zoom / aspect * (shear * sin + cos)
    theta[:, :, 2] = uniform(-a, a, 2) * 0.15
    grid = F.affine_grid(theta, [B, 3, S, S], align_corners=False)
    ink = F.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    # Sketches: thicker or thinner strokes.
    thick = is_sketch & (uniform(0, 1) < 0.3 * a)
    if device.type != "cpu":  # to ask which would make it wait
        ink = torch.where(thick[:, None, None, None], F.max_pool2d(ink, 3, 1, 1), ink)
    elif bool(thick.any()):
        ink[thick] = F.max_pool2d(ink[thick], 3, 1, 1)
    gain = torch.where(is_sketch, uniform(1 - 0.3 * a, 1 + 0.3 * a), torch.ones(B, device=device))

    # Photos: contrast, colour casts, sometimes grey or other hues.
    plain = torch.ones(B, 3, device=device)
    cast = torch.where(is_sketch[:, None], plain, uniform(1 - 0.5 * a, 1 + 0.4 * a, 3))
    ink = ink * (gain[:, None] * cast)[:, :, None, None]
    grey = ~is_sketch & (uniform(0, 1) < 0.6 * a)
    ink = torch.where(grey[:, None, None, None], ink.mean(dim=1, keepdim=True), ink)
    order = torch.stack([torch.randperm(3, generator=generator) for _ in range(total)])[rows].to(device)
    swap = ~is_sketch & (uniform(0, 1) < 0.3 * a)
    order = torch.where(swap[:, None], order, torch.arange(3, device=device))
    ink = ink.gather(1, order[:, :, None, None].expand(-1, -1, S, S))

    # Cut-out: a rectangle of background.
    size = uniform(0.1, 0.1 + 0.3 * a, 2) * S
    centre = uniform(0, 1, 2) * S
    cut = uniform(0, 1) < 0.5 * a
    at = torch.arange(S, dtype=torch.float32, device=device)
    inside = [(at[None] - centre[:, i : i + 1]).abs() < size[:, i : i + 1] / 2 for i in (0, 1)]
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :] & cut[:, None, None, None]
    ink = ink.masked_fill(hole, 0.0)
    return (255 * (1 - ink.clamp(0, 1))).round().to(torch.uint8)


def repaint(images: Tensor, side: int, generator: torch.Generator, strength: float, outlines: float) -> Tensor:
    """Random variants of cut-out pictures, much stronger than :func:`augment`: they train a backbone from nothing.

    Moved, turned, mirrored, sheared and bent; on white or any colour; hues mixed, grey, inverted; with a hole; some as
    their edges alone.

    Args:
        images: ``[B, 4, H, W]`` uint8: red, green, blue, opacity.
        side: S of the result.
        generator: of all random numbers, on the CPU.
        strength: 0 to 1, scales most ranges.
        outlines: share of pictures that become their edges, dark on white.

    Returns:
        ``[B, 3, S, S]`` float32, 0 to 1.
    """
    a, B, device = strength, images.shape[0], images.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (torch.rand(B, *shape, generator=generator) * (high - low) + low).to(device)

    def some(share: float) -> Tensor:
        return (uniform(0, 1) < share)[:, None, None, None]

    angle, shear = uniform(-a, a) * (math.pi / 7), uniform(-a, a) * 0.25
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    zoom, aspect = torch.exp(uniform(-0.3, 0.35) * a), torch.exp(uniform(-a, a) * 0.25)
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.zeros(B, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 1] = flip * zoom * aspect * cos, flip * zoom * (shear * cos - sin)
    theta[:, 1, 0], theta[:, 1, 1] = zoom / aspect * sin, zoom / aspect * (shear * sin + cos)
    theta[:, :, 2] = uniform(-a, a, 2) * 0.2
    bend = torch.randn(B, 2, 5, 5, generator=generator).to(device) * (uniform(0, 0.06) * a)[:, None, None, None]
    bend = F.interpolate(bend, (side, side), mode="bicubic").permute(0, 2, 3, 1)
    grid = F.affine_grid(theta, [B, 4, side, side], align_corners=False) + bend
    paint = images.float() / 255
    paint[:, :3] *= paint[:, 3:]  # colours of transparent pixels mean nothing
    paint = F.grid_sample(paint, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    ground = torch.where(some(0.6), torch.ones(B, 3, 1, 1, device=device), uniform(0, 1, 3, 1, 1))
    picture = paint[:, :3] + ground * (1 - paint[:, 3:])

    mix = torch.eye(3, device=device) + uniform(-0.35, 0.35, 3, 3) * a
    order = torch.rand(B, 3, generator=generator).argsort(dim=1).to(device)
    swapped = mix.gather(1, order[:, :, None].expand(-1, -1, 3))
    mix = torch.where(some(0.25)[..., 0], swapped, mix)
    mix = torch.where(some(0.35)[..., 0], torch.full_like(mix, 1 / 3), mix)
    contrast, light = torch.exp(uniform(-0.5, 0.4) * a), uniform(-0.2, 0.2) * a
    picture = torch.einsum("bij,bjhw->bihw", mix * contrast[:, None, None], picture - 0.5)
    picture = (picture + (0.5 + light)[:, None, None, None]).clamp(0, 1)
    inverted = some(0.1)
    picture = torch.where(inverted, 1 - picture, picture)
    ground = torch.where(inverted, 1 - ground, ground)
    edges = some(outlines)
    if bool(edges.any()):
        rows = edges.flatten()
        picture[rows] = _edges(picture[rows], generator)
        ground = torch.where(edges, torch.ones_like(ground), ground)

    size, centre = uniform(0.1, 0.45, 2) * side, uniform(0, 1, 2) * side
    at = torch.arange(side, dtype=torch.float32, device=device)
    inside = [(at - centre[:, i : i + 1]).abs() < size[:, i : i + 1] / 2 for i in (0, 1)]
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :] & some(0.5 * a)
    return torch.where(hole, ground, picture)


def _edges(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Dark lines on white where a picture changes: ``[B, 3, S, S]`` 0 to 1 to the same."""
    B, device = pictures.shape[0], pictures.device

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(B, 1, 1, 1, generator=generator) * (high - low) + low).to(device)

    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pictures = torch.where(uniform(0, 1) < 0.5, soft, pictures)
    right = F.pad(pictures[:, :, :, 1:] - pictures[:, :, :, :-1], (0, 1, 0, 0))
    down = F.pad(pictures[:, :, 1:] - pictures[:, :, :-1], (0, 0, 0, 1))
    change = (right.square() + down.square()).sum(dim=1, keepdim=True).sqrt()
    most = change.amax(dim=(2, 3), keepdim=True).clamp_min(0.05)
    ink = (change / most * uniform(1.5, 4) - uniform(0.05, 0.3)).clamp(0, 1)
    ink = torch.where(uniform(0, 1) < 0.5, F.max_pool2d(ink, 3, 1, 1), ink)
    return (1 - ink).expand(-1, 3, -1, -1)
