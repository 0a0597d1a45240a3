"""The pictures that a backbone is pre-trained on, and which of them make a batch.

A table may say how each was drawn (its column ``kind``): coloured or photo, line, or solid. Lines are kept twice, as drawn
and thinned to the width of a pen: icons are drawn for a height of 24 pixels and bolder than any hand draws.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from splip.errors import UserError
from splip.images.decode import formats
from splip.progress import track

SIDE = 96  # pictures are kept at this side, so that zooming in shows more than the tower's pixels
COLOURED, LINE, SOLID = range(3)
KINDS = {"coloured": COLOURED, "photo": COLOURED, "line": LINE, "solid": SOLID}


@dataclass
class Pictures:
    """Pictures with their names.

    ``images`` uint8 ``[N, 4, SIDE, SIDE]``: red, green, blue, opacity; of lines, which are black, the first channel holds
    the opacity of the thinned ones. ``thing`` and ``kind`` int64 ``[N]`` and ``[things]``: what a picture shows, and of
    which class that is; ``names`` and ``classes`` are their words, ``texts`` all words for each thing, its name first.
    ``drawn`` int64 ``[N]``: COLOURED, LINE or SOLID.
    """

    images: Tensor
    thing: Tensor
    kind: Tensor
    names: list[str]
    classes: list[str]
    texts: list[list[str]]
    drawn: Tensor

    @classmethod
    def read(cls, folder: Path) -> "Pictures":
        """Read ``pictures.csv`` and what it lists.

        Raises:
            UserError: no such file, columns or pictures, a kind that is none, or fewer than two classes.
        """
        table = folder / "pictures.csv"
        if not table.is_file():
            raise UserError(f"--pictures: there is no {table}; python tools/build_pictures.py --out {folder} makes it")
        with open(table, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for column in ("path", "thing", "name", "class"):
            if not rows or column not in rows[0]:
                raise UserError(f"{table}: no column {column}" if rows else f"{table}: lists no pictures")
        wrong = next((row["kind"] for row in rows if row.get("kind") not in (None, *KINDS)), None)
        if wrong is not None:
            raise UserError(f"{table}: kind {wrong!r} is none of {', '.join(KINDS)}")
        drawn = torch.tensor([KINDS[row.get("kind", "coloured")] for row in rows])
        first: dict[str, dict[str, str]] = {}
        for row in rows:
            first.setdefault(row["thing"], row)
        places = {thing: number for number, thing in enumerate(first)}
        classes = sorted({row["class"] for row in first.values()})
        if len(classes) < 2:
            raise UserError(f"{table}: only one class ({classes[0]}): classes are told apart by others")
        images = np.empty((len(rows), 4, SIDE, SIDE), dtype=np.uint8)
        for number, row in enumerate(track(rows, "Reading pictures")):
            try:
                with Image.open(folder / row["path"], formats=formats()) as image:
                    square = image.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            except (OSError, ValueError) as error:
                raise UserError(f"{folder / row['path']}: cannot be read: {error}") from None
            images[number] = np.asarray(square).transpose(2, 0, 1)
        found = torch.from_numpy(images)
        for numbers in torch.nonzero(drawn == LINE).flatten().split(512):
            ink = found[numbers, 3:].float() / 255
            found[numbers, 0] = (255 * thinned(ink)[:, 0]).round().to(torch.uint8)
        texts = [
            list(dict.fromkeys([row["name"], *filter(None, (row.get("synonyms") or "").split(";"))]))
            for row in first.values()
        ]
        return cls(
            found,
            torch.tensor([places[row["thing"]] for row in rows]),
            torch.tensor([classes.index(row["class"]) for row in first.values()]),
            [row["name"] for row in first.values()],
            classes,
            texts,
            drawn,
        )

    def shown(self, numbers: Tensor) -> Tensor:
        """Pictures ``[B, 4, H, W]`` uint8 as they are: without the thinned lines, which lie in the first channel of lines."""
        images = self.images[numbers.to(self.images.device)].clone()
        images[(self.drawn[numbers] == LINE).to(images.device), 0] = 0
        return images

    def batches(self, size: int, pairs: bool = False) -> "Batches":
        return Batches(self, size, pairs)


def thinned(ink: Tensor) -> Tensor:
    """Lines of about two pixels along the middle of strokes: ``[B, 1, S, S]`` 0 to 1 to the same.

    A soft skeleton (Shit et al., *clDice*, CVPR 2021): what an opening takes away, of the strokes as they are eroded.
    """

    def eroded(x: Tensor) -> Tensor:
        return torch.minimum(-F.max_pool2d(-x, (3, 1), 1, (1, 0)), -F.max_pool2d(-x, (1, 3), 1, (0, 1)))

    left, found = ink, torch.zeros_like(ink)
    for _ in range(10):
        smaller = eroded(left)
        ridge = F.relu(left - F.max_pool2d(smaller, 3, 1, 1))
        found = found + F.relu(ridge - found * ridge)
        left = smaller
    return F.max_pool2d(found.clamp(0, 1), 2, 1, 1)[:, :, 1:, 1:].clamp(0, 1)


class Drawn(NamedTuple):
    """A batch: numbers of pictures, of their things, and which are to be shown as drawings; all ``[B]``."""

    chosen: Tensor
    things: Tensor
    drawing: Tensor


class Batches:
    """Random pictures: a batch holds different things, rare classes as often as things of large ones allow.

    A class is drawn with the square root of its things, so that neither the hundred faces nor the lone bell rule.

    Args:
        size: pictures in a batch.
        pairs: half of that is things, each as a picture (coloured, if there is one) and as a drawing (in lines, if there
            are any): first all pictures, then all drawings.
    """

    def __init__(self, pictures: Pictures, size: int, pairs: bool = False) -> None:
        counts = torch.bincount(pictures.kind, minlength=len(pictures.classes)).double()
        self.chances = counts.rsqrt()[pictures.kind]
        self.pairs = pairs
        self.size = min(size // 2 if pairs else size, len(pictures.names))
        everything = torch.ones_like(pictures.drawn, dtype=torch.bool)
        self.all = _Choice(pictures, everything)
        self.coloured = _Choice(pictures, pictures.drawn == COLOURED)
        self.lines = _Choice(pictures, pictures.drawn == LINE)
        if pairs:  # what only icons show is seldom a thing that anybody draws
            self.chances = self.chances * torch.where(self.coloured.count > 0, 1.0, 0.25)

    def draw(self, generator: torch.Generator) -> Drawn:
        """A batch; without pairs nothing is to be shown as a drawing but what the share of outlines makes one."""
        things = torch.multinomial(self.chances, self.size, generator=generator)
        if not self.pairs:
            chosen = self.all.draw(things, generator)
            return Drawn(chosen, things, torch.zeros_like(chosen, dtype=torch.bool))

        def some(share: float) -> Tensor:
            return torch.rand(self.size, generator=generator) < share

        anything = self.all.draw(things, generator)
        colour = self.coloured.draw(things, generator)
        shown = torch.where((colour >= 0) & some(0.9), colour, anything)
        line = self.lines.draw(things, generator)
        other = self.all.draw(things, generator)
        drawing = torch.where((line >= 0) & some(0.6), line, other)
        both = torch.cat([shown, drawing])
        return Drawn(both, things.repeat(2), torch.arange(2 * self.size) >= self.size)


class _Choice:
    """A random one of each thing's pictures, among those that are allowed."""

    def __init__(self, pictures: Pictures, allowed: Tensor) -> None:
        numbers = torch.nonzero(allowed).flatten()
        things = pictures.thing[numbers]
        self.order = numbers[torch.argsort(things, stable=True)]
        self.count = torch.bincount(things, minlength=len(pictures.names))
        self.start = self.count.cumsum(0) - self.count

    def draw(self, things: Tensor, generator: torch.Generator) -> Tensor:
        """Numbers of pictures ``[len(things)]``; -1 where a thing has none."""
        which = (torch.rand(len(things), generator=generator) * self.count[things]).long()
        at = (self.start[things] + which).clamp_max(max(0, len(self.order) - 1))
        found = self.order[at] if len(self.order) else torch.zeros_like(at)
        return torch.where(self.count[things] > 0, found, -1)
