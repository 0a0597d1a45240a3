"""Sketches without anybody who draws: lines of photos, made so that they look drawn.

Whoever has photos and no sketches can train all the same (``data.sketches: pseudo``): colour edges are thinned to lines,
weak and short ones left out as a hand leaves them out, what remains is bent, broken and thickened. Real drawings say more,
and a model is measured on them where there are any.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from splip.data import datasets
from splip.data.cache import Pictures
from splip.errors import UserError

LEAST, GROUP = 16, 8  # photos that can be told apart at all; of a group
SIDE = 64  # pixels that widths below are meant for


def photos(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The photos of a folder by class, and notes.

    Classes are the folders of ``photo/``, or of the folder itself. Photos that lie in no folder are dealt to groups, which
    stand for classes: then only what tells one photo from others is learned (``setting: fine-grained``).

    Raises:
        UserError: too few photos.
    """
    base = root / "photo" if (root / "photo").is_dir() else root
    found = {folder.name: datasets.files_below(folder) for folder in datasets.class_folders(base)}
    found = {name: files for name, files in found.items() if files and name != "sketch"}
    inside = {path for files in found.values() for path in files}
    loose = [path for path in datasets.files_below(base) if path not in inside and path.parent == base]
    notes = []
    if len(found) > 1:
        if loose:
            notes.append(f"{len(loose)} photos of {base} lie in no folder, left out")
        return found, notes
    everything = [*loose, *inside]
    if len(everything) < LEAST:
        raise UserError(f"{root}: {len(everything)} photos: at least {LEAST} are needed, or two folders of them")
    everything.sort()
    count = max(4, min(64, len(everything) // GROUP))
    # Neighbours, which may be shots of one scene, go to different groups: they are no negatives of each other.
    groups = {f"group {i + 1:02}": everything[i::count] for i in range(count)}
    notes.append(
        f"{len(everything)} photos in no folders of their own: dealt to {count} groups, which stand for classes"
    )
    return groups, notes


def draw(images: Tensor, generator: torch.Generator, rows: Tensor | None = None, total: int | None = None) -> Tensor:
    """Photos as somebody might have drawn them: dark lines on white.

    Args:
        images: ``[B, 3, S, S]`` uint8.
        generator: of all random numbers, on the CPU.
        rows: ``[B]`` int64 places of these pictures in the batch of all processes; None: this is the whole batch.
        total: pictures in that batch; with ``rows``.

    Returns:
        ``[B, 3, S, S]`` uint8, grey.
    """
    B, S, device = len(images), images.shape[-1], images.device
    if rows is None or total is None:
        rows, total = torch.arange(B), B

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (torch.rand(total, *shape, generator=generator)[rows] * (high - low) + low).to(device)

    fine = SIDE / S
    lines = _thin_lines(images.float() / 255, uniform(0, 1), uniform(0.03, 0.10) * fine)
    # A hand leaves out what is short, and parts of what is long.
    window = _odd(7 / fine)
    length = F.avg_pool2d(lines, window, 1, window // 2) * window**2
    lines = lines * (length >= uniform(0.4, 0.9)[:, None, None, None] * window)
    gaps = F.interpolate(uniform(0, 1, 1, 6, 6), (S, S), mode="bicubic")
    lines = lines * (gaps > uniform(0.0, 0.3)[:, None, None, None])
    lines = _bent(lines, uniform(-1, 1, 2, 5, 5) * uniform(0, 0.05)[:, None, None, None])
    ink = _thick(lines, uniform(0, 1), fine)
    grey = (1 - ink * uniform(0.7, 1.0)[:, None, None, None]).clamp(0, 1)
    return (255 * grey).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def _thin_lines(pictures: Tensor, smooth: Tensor, share: Tensor) -> Tensor:
    """Ridges of the colour gradient, one pixel wide: ``[B, 1, S, S]`` of 0 and 1.

    Args:
        pictures: ``[B, 3, S, S]``, 0 to 1.
        smooth: ``[B]`` 0 to 1, how much detail is blurred away first.
        share: ``[B]`` of the pixels that may become line, the strongest.
    """
    S, device = pictures.shape[-1], pictures.device
    radius = max(1, round(S / SIDE))
    taps = torch.arange(-2 * radius, 2 * radius + 1, device=device).float()
    kernel = torch.exp(-0.5 * (taps / radius).square())
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1).expand(3, 1, 1, -1)
    soft = F.conv2d(F.pad(pictures, (2 * radius,) * 4, mode="replicate"), kernel, groups=3)
    soft = F.conv2d(soft, kernel.transpose(2, 3), groups=3)
    if S > 1.5 * SIDE:  # what is finer than a line is wide is no line
        pictures = soft
        soft = F.avg_pool2d(F.pad(soft, (radius,) * 4, mode="replicate"), 2 * radius + 1, 1)
    weight = smooth[:, None, None, None]
    picture = F.pad(pictures * (1 - weight) + soft * weight, (1, 1, 1, 1), mode="replicate")
    across = picture[:, :, 1:-1, 2:] - picture[:, :, 1:-1, :-2]
    down = picture[:, :, 2:, 1:-1] - picture[:, :, :-2, 1:-1]
    strength = (across.square() + down.square()).sum(dim=1, keepdim=True).sqrt()
    # A ridge is higher than both neighbours in the direction in which it rises.
    steep = across.abs().sum(dim=1, keepdim=True) > down.abs().sum(dim=1, keepdim=True)
    around = F.pad(strength, (1, 1, 1, 1))
    left, right, above, below = (
        around[:, :, 1:-1, :-2], around[:, :, 1:-1, 2:], around[:, :, :-2, 1:-1], around[:, :, 2:, 1:-1],
    )  # fmt: skip
    ridge = torch.where(steep, (strength > left) & (strength >= right), (strength > above) & (strength >= below))
    strength = strength * ridge
    count = (share * S * S).long().clamp(1, S * S - 1)
    order = strength.flatten(1).sort(dim=1, descending=True).values
    least = order.gather(1, count[:, None]).clamp(min=0.02)[:, :, None, None]
    return (strength > least).float()


def _bent(lines: Tensor, shift: Tensor) -> Tensor:
    """Lines ``[B, 1, S, S]`` moved by a smooth field, ``shift`` ``[B, 2, 5, 5]`` in halves of the side."""
    B, S = len(lines), lines.shape[-1]
    field = F.interpolate(shift, (S, S), mode="bicubic").permute(0, 2, 3, 1)
    still = torch.eye(2, 3, device=lines.device).expand(B, -1, -1)
    grid = F.affine_grid(still, [B, 1, S, S], align_corners=False) + field
    return F.grid_sample(lines, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _odd(size: float) -> int:
    return 2 * round((size - 1) / 2) + 1


def _thick(lines: Tensor, choice: Tensor, fine: float) -> Tensor:
    """Strokes of one of two or three widths, soft at their edges; ``choice`` ``[B]`` 0 to 1."""
    widths = [F.max_pool2d(lines, k, 1, k // 2) for k in (_odd(width / fine) for width in (1, 2, 3))]
    pick = choice[:, None, None, None]
    ink = torch.where(pick < 0.3, widths[0], torch.where(pick < 0.8, widths[1], widths[2]))
    soft = F.avg_pool2d(F.pad(ink, (1, 1, 1, 1)), 3, 1)
    return (0.6 * ink + 0.6 * soft).clamp(0, 1)


class Drawn(Pictures):
    """Photos that are given as sketches of themselves; the same each time. Arguments as for :class:`Pictures`."""

    def get(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        photos = super().get(indices)
        for place, i in enumerate(indices):
            photos[place] = draw(photos[place : place + 1], torch.Generator().manual_seed(int(i) + 1))[0]
        return photos
