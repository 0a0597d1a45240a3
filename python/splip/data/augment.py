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


def repaint(
    images: Tensor,
    side: int,
    generator: torch.Generator,
    strength: float,
    outlines: float,
    drawing: Tensor | None = None,
    line: Tensor | None = None,
    plain: Tensor | None = None,
    scenes: float = 0.0,
) -> Tensor:
    """Random variants of cut-out pictures, much stronger than :func:`augment`: they train a backbone from nothing.

    Moved, turned, mirrored, sheared and bent; on white or any colour; hues mixed, grey, inverted; with a hole; some as
    their edges alone, some lit, on textured grounds, out of focus and noisy, as photographs are.

    Args:
        images: ``[B, 4, H, W]`` uint8: red, green, blue, opacity; of lines the first channel is that of thinned ones.
        side: S of the result.
        generator: of all random numbers, on the CPU.
        strength: 0 to 1, scales most ranges.
        outlines: share of pictures that become their edges, dark on white.
        drawing: ``[B]`` bool, which become drawings whatever that share: lines stay lines, others become their edges.
            None, here and below: none.
        line: ``[B]`` bool, which are drawn in lines.
        plain: ``[B]`` bool, which are of one ink, and may be of any colour.
        scenes: share of those that are no drawings which become photograph-like.

    Returns:
        ``[B, 3, S, S]`` float32, 0 to 1.
    """
    a, B, device = strength, images.shape[0], images.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (torch.rand(B, *shape, generator=generator) * (high - low) + low).to(device)

    def some(share: float) -> Tensor:
        return (uniform(0, 1) < share)[:, None, None, None]

    grid = _bent(B, side, a, generator, device)
    paint = images.float() / 255
    drawn = torch.zeros(B, dtype=torch.bool, device=device) if drawing is None else drawing.to(device)
    if line is not None and plain is not None:
        line, plain = line.to(device), plain.to(device)
        _ink(paint, drawn, line, plain, generator)
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
    strokes = torch.zeros_like(drawn) if line is None else drawn & line
    edges = edges | (drawn & ~strokes)[:, None, None, None]
    if bool(edges.any()):
        rows = edges.flatten()
        picture[rows] = _edges(picture[rows], generator)
    if bool(strokes.any()):
        picture[strokes] = _strokes(paint[strokes, 3:], generator)
    ground = torch.where(edges | strokes[:, None, None, None], torch.ones_like(ground), ground)
    if scenes:
        rows = (some(scenes) & ~edges).flatten() & ~drawn
        if bool(rows.any()):
            picture[rows] = _scene(picture[rows], paint[rows, 3:], generator)

    size, centre = uniform(0.1, 0.45, 2) * side, uniform(0, 1, 2) * side
    at = torch.arange(side, dtype=torch.float32, device=device)
    inside = [(at - centre[:, i : i + 1]).abs() < size[:, i : i + 1] / 2 for i in (0, 1)]
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :] & some(0.5 * a)
    return torch.where(hole, ground, picture)


def _bent(B: int, side: int, a: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """Where each pixel comes from, as grid_sample takes it: turned, sheared, scaled, moved, mirrored and bent."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (torch.rand(B, *shape, generator=generator) * (high - low) + low).to(device)

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
    return F.affine_grid(theta, [B, 4, side, side], align_corners=False) + bend


def _ink(paint: Tensor, drawn: Tensor, line: Tensor, plain: Tensor, generator: torch.Generator) -> None:
    """Thin some lines, and give some plain pictures that are no drawings a colour, in ``paint [B, 4, H, W]`` itself."""
    B, device = paint.shape[0], paint.device
    thin = line & (torch.rand(B, generator=generator).to(device) < torch.where(drawn, 0.8, 0.2))
    paint[:, 3] = torch.where(thin[:, None, None], paint[:, 0], paint[:, 3])
    colour = torch.rand(B, 3, 1, 1, generator=generator).to(device)
    coloured = plain & ~drawn & (torch.rand(B, generator=generator) < 0.6).to(device)
    ink = colour * coloured[:, None, None, None]
    paint[:, :3] = torch.where(plain[:, None, None, None], ink, paint[:, :3])


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


def _strokes(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Lines as a hand draws them, dark on white: thicker, fainter and with gaps; ``[B, 1, S, S]`` to ``[B, 3, S, S]``."""
    B, S, device = ink.shape[0], ink.shape[2], ink.device

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(B, 1, 1, 1, generator=generator) * (high - low) + low).to(device)

    ink = (ink * uniform(1.0, 2.0)).clamp(0, 1)
    ink = torch.where(uniform(0, 1) < 0.3, F.max_pool2d(ink, 3, 1, 1), ink)
    field = torch.randn(B, 1, 8, 8, generator=generator).to(device)
    gaps = F.interpolate(field, (S, S), mode="bilinear") < -0.9  # about a tenth of the lines
    ink = ink * ~(gaps & (uniform(0, 1) < 0.35))
    return (1 - ink * uniform(0.6, 1.0)).expand(-1, 3, -1, -1)


def _scene(pictures: Tensor, opacity: Tensor, generator: torch.Generator) -> Tensor:
    """Things lit from a side, with a shadow, on a ground of shades and texture, out of focus and noisy.

    ``[B, 3, S, S]`` 0 to 1 and the things' opacity ``[B, 1, S, S]`` to ``[B, 3, S, S]``.
    """
    B, S, device = pictures.shape[0], pictures.shape[2], pictures.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (torch.rand(B, *(shape or (1, 1, 1)), generator=generator) * (high - low) + low).to(device)

    def smooth(channels: int, cells: int) -> Tensor:
        field = torch.rand(B, channels, cells, cells, generator=generator).to(device)
        return F.interpolate(field, (S, S), mode="bicubic").clamp(0, 1)

    base, spread = uniform(0.1, 1, 3, 1, 1), uniform(0, 0.7)
    grey = base.mean(dim=1, keepdim=True)
    base = torch.lerp(base, grey.expand_as(base), uniform(0.2, 1))
    ground = base + spread * (smooth(3, 3) - 0.5) * uniform(0.3, 1) + uniform(0, 0.2) * (smooth(1, 24) - 0.5)
    shadow = torch.roll(F.avg_pool2d(opacity, 7, 1, 3), (3, 3), (2, 3))
    ground = ground.clamp(0, 1) * (1 - uniform(0, 0.6) * shadow)
    lit = pictures * (1 + uniform(0, 0.8) * (smooth(1, 2) - 0.5)) + uniform(0, 0.15) * (smooth(1, 24) - 0.5)
    made = lit * opacity + ground * (1 - opacity)
    softened = F.avg_pool2d(F.avg_pool2d(F.pad(made, (2, 2, 2, 2), mode="replicate"), 3, 1), 3, 1)
    made = torch.lerp(made, softened, uniform(0, 1.0))
    # A few patterns for all: on a GPU, numbers from the CPU are what a batch waits for.
    patterns = torch.randn(16, *made.shape[1:], generator=generator).to(device)
    noise = patterns[torch.randint(16, (B,), generator=generator).to(device)]
    return (made + noise * uniform(0, 0.06)).clamp(0, 1)
