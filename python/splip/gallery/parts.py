"""What a query is made of: drawings, pictures, words and items, each with a weight, also against something."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from splip.errors import UserError, short
from splip.gallery.matches import Source

AGAINST = 0.5  # how much "not like this" counts where no weight is given, against 1 for what is looked for
CANCELLED = 0.05  # of the length that parts could have together: what is left of them is then no direction


@dataclass(frozen=True)
class Part:
    """One part of a query.

    Args:
        kind: what ``value`` is: a sketch, a photo, a text, or the id of an item of the gallery.
        value: file, bytes or PIL picture; words; an id.
        weight: how much it counts beside the others; below 0: not like this.
    """

    kind: Literal["sketch", "photo", "text", "item"]
    value: Source | int
    weight: float = 1.0

    @property
    def words(self) -> str:
        """The value of a text."""
        if not isinstance(self.value, str):
            raise UserError(f"a text of a query must be words, got {type(self.value).__name__}")
        return self.value


def check(parts: Sequence[Part]) -> None:
    """Raises UserError: there is nothing to look for, or a weight is none."""
    if not parts:
        raise UserError("nothing to search for: a query needs at least one part")
    for part in parts:
        if part.kind not in ("sketch", "photo", "text", "item"):
            raise UserError(f"a part of a query is a sketch, photo, text or item, not {part.kind!r}")
        if isinstance(part.weight, bool) or not isinstance(part.weight, (int, float)):
            raise UserError(f"weight of a {part.kind}: a number, not {type(part.weight).__name__}")
        if part.kind == "item" and not isinstance(part.value, int):
            raise UserError(f"an item of a query is a number, not {type(part.value).__name__}")
        if not math.isfinite(part.weight) or not part.weight or abs(part.weight) > 1000:
            raise UserError(f"weight of {name(part)}: a number other than 0, from -1000 to 1000, got {part.weight:g}")
    if all(part.weight < 0 for part in parts):
        raise UserError("only things that are not looked for: a query needs something that is")


def mix(parts: Sequence[Part], vectors: np.ndarray) -> np.ndarray:
    """The weighted sum of unit vectors float32 ``[n, D]``, of unit length: ``[1, D]``.

    Raises:
        UserError: the parts cancel out.
    """
    return total([part.weight for part in parts], vectors, f": {', '.join(map(name, parts))}")[None]


def total(weights: Sequence[float], vectors: np.ndarray, what: str = "") -> np.ndarray:
    """The sum of unit vectors ``[n, D]``, each times its weight, of unit length: float32 ``[D]``.

    Raises:
        UserError: they cancel out; ``what`` stands behind the line.
    """
    of = np.asarray(weights, dtype=np.float64)
    found = of @ vectors.astype(np.float64)
    length = float(np.linalg.norm(found))
    if not length > CANCELLED * np.abs(of).sum():
        raise UserError(f"the parts of the query cancel out{what}")
    made: np.ndarray = (found / length).astype(np.float32)
    return made


def between(vectors: np.ndarray, words: np.ndarray, weight: float) -> np.ndarray:
    """Vectors of pictures and of their words, unit-length ``[D]`` or ``[n, D]``, mixed: float32 of unit length, 0 where they cancel out.

    Args:
        weight: of the words, 0 to 1; the pictures have the rest.
    """
    mixed = (1 - weight) * vectors + weight * words
    made: np.ndarray = mixed / np.maximum(np.linalg.norm(mixed, axis=-1, keepdims=True), 1e-12)
    return made.astype(np.float32)


def name(part: Part) -> str:
    """A part in messages: ``not photo c.jpg:0.3``."""
    value = part.value if isinstance(part.value, (str, Path, int)) else "a picture"
    plain = AGAINST if part.weight < 0 else 1.0
    weight = "" if abs(part.weight) == plain else f":{abs(part.weight):g}"
    return f"{'not ' if part.weight < 0 else ''}{part.kind} {short(str(value))}{weight}"


def weighted(text: str, against: bool, words: bool = False) -> tuple[str, float]:
    """``b.jpg:0.5`` as a name and its weight, which is below 0 of what is not looked for.

    A file that is called so goes before: then the whole text is its name. Of words ``16:9`` and ``at 12:30`` are words: a weight
    stands behind a letter. It is written without a sign.

    Raises:
        UserError: the weight is 0 or too large.
    """
    weight = AGAINST if against else 1.0
    found = re.fullmatch(r"(.*\D):(\d*\.?\d+)" if words else r"(.+):(-?\d*\.?\d+)", text, re.ASCII | re.DOTALL)
    if found and (words or not _exists(text)):
        text, number = found.groups()
        weight = float(number)
        if not 0 < weight <= 1000:
            raise UserError(
                f"{short(text)}:{number}: a weight is above 0 and at most 1000; --not-... says what to avoid"
            )
    return text, -weight if against else weight


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # a name that no file can have
        return False
