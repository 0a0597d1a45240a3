"""Why a photo is found: a score as a sum over the patches of a picture. Imports neither torch nor an engine.

Two ways, and both are exact, for the encoder that runs: the patches' shares and the rest add up to the score.

``patches``: the vector is itself a sum over patches (:mod:`splip.encoders.explain`). One pass of the model. In torch, of
Vision Transformers whose tokens are patches of the picture.

``removal``: of all others, exports and the packaged models among them, whose convolutional stem mixes all patches before
the first layer. The picture is cut into cells, which are put back into an empty picture one after the other; each gets what
the score rises by. The order matters, so several are averaged (Shapley values, sampled). The rest is what the empty picture
scores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from splip.images import decode

Box = tuple[float, float, float, float]
Method = Literal["patches", "removal"]
CELLS = 4  # rows and columns of cells: 4 by 4 are what some dozens of passes can tell apart
AT_ONCE = 16  # pictures of the cells that are encoded between two looks at the clock
SMALL = 96  # pixels of S up to which four orders are averaged, else two


@dataclass(frozen=True)
class Share:
    """A score as a sum over one picture: ``patches.sum() + rest``.

    Args:
        patches: float32 ``[rows, columns]``: what each patch of the picture, as the model sees it, adds to the score; below
            0: takes from it.
        rest: what no single patch brought.
    """

    patches: np.ndarray
    rest: float

    @property
    def score(self) -> float:
        """The cosine similarity that is explained."""
        return float(self.patches.sum(dtype=np.float64)) + self.rest

    def heat(self) -> np.ndarray:
        """How much each patch speaks for the match beside the one that does most, float32 ``[rows, columns]``, 0 to 1.

        What speaks against it is 0; all of them are if no patch speaks for it.
        """
        found = np.maximum(self.patches, 0)
        most = float(found.max(initial=0))
        heat: np.ndarray = (found / most if most > 1e-9 else np.zeros_like(found)).astype(np.float32)
        return heat


@dataclass(frozen=True)
class Explanation:
    """Why a photo matches a query.

    Args:
        score: their cosine similarity.
        photo: as a sum over the photo.
        query: as a sum over the drawing or picture that was asked with; None: a query without one.
    """

    score: float
    photo: Share
    query: Share | None


def share(parts: np.ndarray, towards: np.ndarray) -> Share:
    """A score as a sum over one picture.

    Args:
        parts: float32 ``[1 + P, D]``, whose sum is the picture's vector: the rest first.
        towards: float32 ``[D]``, what it is compared with, of unit length.
    """
    values = parts.astype(np.float64) @ towards.astype(np.float64)
    side = round(len(values[1:]) ** 0.5)
    return Share(values[1:].reshape(side, side).astype(np.float32), float(values[0]))


def by_removal(
    encode: Callable[[np.ndarray], np.ndarray],
    pixels: np.ndarray,
    towards: np.ndarray,
    white: bool = True,
    check: Callable[[], None] = lambda: None,
) -> Share:
    """A score as a sum over cells that come into an empty picture one after the other.

    Args:
        encode: uint8 ``[B, S, S, 3]`` to unit vectors float32 ``[B, D]``.
        pixels: uint8 ``[S, S, 3]``.
        towards: float32 ``[D]``, what it is compared with, of unit length.
        white: the empty picture is; else it has the picture's mean colour.
        check: called before each batch; may raise what ends the work.
    """
    side, n = len(pixels), CELLS * CELLS
    random, orders = np.random.default_rng(0), []
    for _ in range(2 if side <= SMALL else 1):
        order = random.permutation(n)
        orders += [order, order[::-1]]  # what comes early in one comes late in the other
    there = np.zeros((len(orders), n + 1, n), dtype=bool)  # which cells, after so many came
    for number, order in enumerate(orders):
        for count in range(n):
            there[number, count + 1 :, order[count]] = True
    middle = there[:, 1:n].reshape(-1, n)  # empty and whole are the same in all orders
    masks = np.concatenate([np.zeros((1, n), dtype=bool), np.ones((1, n), dtype=bool), middle])
    edges = np.arange(side) * CELLS // side  # the row or column of cells of each pixel
    visible = masks.reshape(-1, CELLS, CELLS)[:, edges[:, None], edges[None, :]][..., None]
    colour = np.array([255, 255, 255] if white else pixels.mean(axis=(0, 1)).round()).astype(np.uint8)
    vectors: list[np.ndarray] = []
    for start in range(0, len(visible), AT_ONCE):
        check()
        vectors.append(encode(np.where(visible[start : start + AT_ONCE], pixels, colour)))
    scores = np.concatenate(vectors).astype(np.float64) @ towards.astype(np.float64)
    found = np.zeros(n)
    for order, some in zip(orders, scores[2:].reshape(len(orders), n - 1), strict=True):
        found[order] += np.diff(np.concatenate([scores[:1], some, scores[1:2]])) / len(orders)
    return Share(found.reshape(CELLS, CELLS).astype(np.float32), float(scores[0]))


def box(image: Image.Image, side: int, fit: decode.Fit) -> Box:
    """What the model's square covers: left, top, right, bottom in fractions of the upright picture.

    Outside 0 to 1 where the picture is padded. As :func:`splip.images.square` squares a picture that is not cropped to its ink.

    Args:
        image: as :func:`splip.images.read` gives it.
        side: S.
        fit: how the model's pictures are squared.
    """
    size, extent = image.info.get("extent", (None, ()))
    left, top, right, bottom = extent if size == image.size else (0, 0, *image.size)
    width, height = right - left, bottom - top
    if fit == "crop":
        kept = min(width, height)
        x, y = (1 - kept / width) / 2, (1 - kept / height) / 2
        return x, y, 1 - x, 1 - y
    if fit not in ("pad", "pad-black"):
        return 0.0, 0.0, 1.0, 1.0
    longer = max(width, height)
    columns, rows = max(1, round(width / longer * side)), max(1, round(height / longer * side))
    x, y = round((side - columns) * 0.5), round((side - rows) * 0.5)
    return -x / columns, -y / rows, (side - x) / columns, (side - y) / rows
