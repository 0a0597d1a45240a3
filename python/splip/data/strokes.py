"""Drawings as strokes, and a drawing that is not finished: the first part of its strokes, by length.

Strokes come from QuickDraw's ``.ndjson`` (simplified or raw) and from SVG drawings. Where only a picture is left, its lines
are walked along (:mod:`splip.images.tracing`): an order that nobody drew in.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from splip.data.splits import normal_name
from splip.errors import UserError
from splip.images import tracing
from splip.images.decode import INK_MARGIN, Fit, crop_to_ink, square
from splip.images.paths import strokes as svg_strokes

# As the page draws and sends (serve/page/strokes.js): side of the picture, width of the pen, its colour.
SIDE, PEN, COLOUR = 384, 13 / 512, 0x11
FINE = 2  # pixels that are drawn for one
FAR = 1e9  # coordinates further out are nobody's drawing
TRACED = 256  # longer side at which pictures are traced


class Drawing(Protocol):
    """What can be shown in part."""

    def picture(self, share: float) -> Image.Image:
        """The first part, RGB on white, in the frame of the whole."""


class Strokes:
    """A drawing of which every stroke is known.

    Args:
        lines: ``[points, 2]`` float64 each, x and y, in the order of drawing.

    Raises:
        UserError: there are none.
    """

    def __init__(self, lines: Sequence[np.ndarray]) -> None:
        lines = [line for line in lines if len(line)]
        if not lines:
            raise UserError("no strokes")
        everything = np.concatenate(lines)
        low, high = everything.min(axis=0), everything.max(axis=0)
        # In the unit square: the whole drawing is centred, with the border of ``crop_to_ink`` and half a pen.
        room, extent = 1 - 2 * INK_MARGIN - PEN, max(float((high - low).max()), 1e-9)
        middle = (low + high) / 2
        self.lines = [(line - middle) * (room / extent) + 0.5 for line in lines]
        self.lengths = [max(float(np.hypot(*np.diff(line, axis=0).T).sum()), PEN) for line in self.lines]  # a dot's too

    def first(self, share: float) -> list[np.ndarray]:
        """The first strokes up to this share of the length of all; the last one may be cut."""
        left, kept = share * sum(self.lengths), []
        for line, length in zip(self.lines, self.lengths, strict=True):
            if left >= length - 1e-9:
                kept.append(line)
            elif left > 0:
                kept.append(_cut(line, left))
            left -= length
        return kept

    def picture(self, share: float) -> Image.Image:
        side = SIDE * FINE
        image = Image.new("L", (side, side), 255)
        pen, width = ImageDraw.Draw(image), PEN * side
        for line in self.first(share):
            points = [(float(x), float(y)) for x, y in line * side]
            if len(points) > 1:
                pen.line(points, COLOUR, max(1, round(width)), "curve")
            for x, y in (points[0], points[-1]):  # round ends, and dots
                pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), COLOUR)
        return image.reduce(FINE).convert("RGB")


def _cut(line: np.ndarray, length: float) -> np.ndarray:
    """The first ``length`` of a line, at least a point."""
    steps = np.hypot(*np.diff(line, axis=0).T)
    ends = np.cumsum(steps)
    whole = int(np.searchsorted(ends, length))
    if whole >= len(steps) or steps[whole] == 0:
        return line[: whole + 1]
    rest = (length - (ends[whole] - steps[whole])) / steps[whole]
    return np.concatenate([line[: whole + 1], [line[whole] + rest * (line[whole + 1] - line[whole])]])


class Traced:
    """A drawing of which only the picture is left; the whole of it is that picture.

    Args:
        image: RGB, dark on white.

    Raises:
        UserError: nothing is drawn on it.
    """

    def __init__(self, image: Image.Image) -> None:
        small = image.convert("L")
        small.thumbnail((TRACED, TRACED), Image.Resampling.BOX)
        when = tracing.order(np.asarray(small))
        if not when.any():
            raise UserError("no strokes")
        self.pixels = np.asarray(image)
        self.when = np.asarray(Image.fromarray(when).resize(image.size, Image.Resampling.NEAREST))

    def picture(self, share: float) -> Image.Image:
        if share >= 1:
            return Image.fromarray(self.pixels)
        return Image.fromarray(np.where(self.when[..., None] <= share, self.pixels, 255).astype(np.uint8))


# ---- files ----


def read_svg(path: Path) -> Strokes:
    """Paths and shapes of a drawing in the order of the document.

    Raises:
        UserError: it cannot be read, is no SVG, or holds no strokes.
    """
    try:
        return Strokes(svg_strokes(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_ndjson(path: Path, wanted: Iterable[str] | None = None) -> dict[str, Strokes]:
    """QuickDraw's drawings of a class, by key_id: a drawing a line, ``[[x ...], [y ...]]`` a stroke, raw ones with times too.

    Args:
        path: of the file.
        wanted: key_ids; None: all.

    Raises:
        UserError: it cannot be read, or a line of it is no drawing; the message says which.
    """
    asked, found = None if wanted is None else set(wanted), {}
    try:
        with open(path, encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    row = json.loads(text)
                    key = str(row["key_id"])
                    if asked is None or key in asked:
                        found[key] = Strokes([_stroke(i, each) for i, each in enumerate(row["drawing"], 1)])
                except UserError as error:
                    raise UserError(f"{path}, line {number}: {error}") from None
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from None
                except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError):
                    raise UserError(f"{path}, line {number}: no key_id and drawing as QuickDraw writes them") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text of UTF-8") from None
    if not found and asked is None:
        raise UserError(f"{path}: no strokes")
    return found


def _stroke(number: int, given: Sequence[Sequence[float]]) -> np.ndarray:
    """x and y of a stroke, ``[points, 2]``."""
    if len(given) not in (2, 3) or len(given[0]) != len(given[1]):
        raise UserError(f"stroke {number} is not [xs, ys] or [xs, ys, times] of the same length")
    points = np.array([given[0], given[1]], dtype=np.float64).T
    if points.ndim != 2:
        raise UserError(f"stroke {number} is not [xs, ys] or [xs, ys, times] of numbers")
    if not (np.abs(points) < FAR).all():
        raise UserError(f"stroke {number} has a coordinate that is not finite, or beyond {FAR:g}")
    return points


class Folder:
    """A folder of strokes: ``<class>.ndjson``, or ``<class>/<name of the sketch>.svg``.

    Args:
        root: the folder.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(f"--strokes {root}: no such folder")
        self.root = root
        self.files = {normal_name(p.stem): p for p in sorted(root.glob("*.ndjson"))}
        self.folders = {normal_name(p.name): p for p in sorted(root.iterdir()) if p.is_dir()}

    def find(self, name: str, stems: Sequence[str]) -> list[Strokes | None]:
        """The strokes of these sketches of a class; None where there are none.

        Raises:
            UserError: a file is broken.
        """
        key = normal_name(name)
        if key in self.files:
            known = read_ndjson(self.files[key], stems)
            return [known.get(stem) for stem in stems]
        folder = self.folders.get(key)
        paths = [None if folder is None else folder / f"{stem}.svg" for stem in stems]
        return [read_svg(path) if path is not None and path.is_file() else None for path in paths]


# ---- what a model sees ----


def show(drawing: Drawing, share: float, side: int, fit: Fit, crop: bool) -> np.ndarray:
    """A part of a drawing as a model gets it from the page: uint8 ``[side, side, 3]``.

    Args:
        drawing: the whole.
        share: of its length, above 0 to 1.
        side: pixels.
        fit: how it becomes square.
        crop: to what is drawn so far, as where sketches are cropped to their ink.
    """
    return square(drawing.picture(share), side, fit, crop)


class Partial:
    """Keeps the first strokes of sketches while training (``data.partial``).

    Args:
        chance: that a sketch is shown in part, 0 to 1.
        least: share of its strokes that stays at least; the share is uniform between it and 1.
        crop: what stays is cropped to, as the whole sketch was.
        fit: how that becomes square.
        memory: bytes for what was traced before.
    """

    def __init__(self, chance: float, least: float, crop: bool, fit: Fit, memory: float = 1e9) -> None:
        self.chance, self.least, self.crop, self.fit, self.memory = chance, least, crop, fit, memory
        self._known: dict[int, np.ndarray] = {}  # float16: when each pixel was drawn

    def __call__(
        self, images: Tensor, generator: torch.Generator, rows: Tensor, total: int, names: Sequence[int] | None
    ) -> Tensor:
        """Sketches of which some are not finished; uint8 ``[B, 3, S, S]`` to the same, on the same device.

        Args:
            images: dark on white.
            generator: of all random numbers, on the CPU.
            rows: ``[B]`` int64 places of these sketches in the batch of all processes.
            total: sketches in that batch.
            names: of the pictures, so that each is traced once; None: they are new each time.
        """
        chosen = (torch.rand(total, generator=generator) < self.chance)[rows].tolist()
        share = (self.least + (1 - self.least) * torch.rand(total, generator=generator))[rows].tolist()
        if not any(chosen):
            return images
        pixels = images.cpu().permute(0, 2, 3, 1).numpy().copy()
        for i in range(len(pixels)):
            if chosen[i]:
                pixels[i] = self._part(pixels[i], share[i], None if names is None else int(names[i]))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(images.device)

    def _part(self, sketch: np.ndarray, share: float, name: int | None) -> np.ndarray:
        when = self._known.get(name) if name is not None else None
        if when is None:
            when = tracing.order(sketch.min(axis=2)).astype(np.float16)
            if name is not None and (len(self._known) + 1) * when.nbytes <= self.memory:
                self._known[name] = when
        kept = np.where(when[..., None] <= np.float16(share), sketch, np.uint8(255))
        return square(Image.fromarray(kept), len(sketch), self.fit, True) if self.crop else kept


def traced(image: Image.Image, crop: bool) -> Traced:
    """A drawing of a picture; ``crop``: to the ink of the whole, so that all parts have its frame."""
    return Traced(crop_to_ink(image) if crop else image)


def check_shares(shares: Sequence[float]) -> list[float]:
    """Shares, rising.

    Raises:
        UserError: one that is no share.
    """
    wrong = next((share for share in shares if not (math.isfinite(share) and 0 < share <= 1)), None)
    if wrong is not None or not shares:
        got = "none" if wrong is None else f"{wrong:g}"
        raise UserError(f"--shares must be above 0 and at most 1, got {got}")
    return sorted(set(shares))
