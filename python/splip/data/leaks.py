"""Does a backbone know the test classes already? What its pictures show, checked against the sample's classes.

A picture leaks if its code point or its name belongs to a class that is kept for testing, if Unicode files it under
the same subgroup, or if it looks like one of the test pictures.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image

from splip.data import sample

NEAR = 4  # of 64 bits: closer hashes count as the same picture


@dataclass(frozen=True)
class Kept:
    """What is kept from a backbone: words and subgroups by class, code points, and classes that are only trained on."""

    words: dict[str, str] = field(default_factory=dict)  # word: class
    subgroups: dict[str, str] = field(default_factory=dict)  # subgroup: class
    things: dict[str, str] = field(default_factory=dict)  # code point: class
    trained: frozenset[str] = frozenset()  # code points of the classes that may be seen


@cache
def kept(split: str) -> Kept:
    """What the sample's ``unseen`` or ``validation`` classes are made of."""
    concepts = json.loads((sample.FOLDER / "concepts.json").read_text(encoding="utf-8"))
    rows = sample.things()
    own = {row["class"] for row in rows if row["split"] == "unseen"} if split == "unseen" else set(concepts[split])
    if own != set(concepts[split]):
        raise RuntimeError(f"concepts.json and index.csv do not name the same {split} classes")
    tested = own | set(concepts["unseen"])
    return Kept(
        {word: name for name, concept in concepts[split].items() for word in concept["words"]},
        {group: name for name, concept in concepts[split].items() for group in concept["subgroups"]},
        {row["codepoint"]: row["class"] for row in rows if row["class"] in own},
        frozenset(row["codepoint"] for row in rows if row["class"] not in tested),
    )


def reason(codepoint: str, name: str, subgroup: str = "", split: str = "unseen") -> str | None:
    """Why a thing must not be shown to a backbone; None: it may.

    Unseen classes are kept strictly: any word of a name counts. Validation classes only serve to choose settings, so
    things of the classes that are trained on stay, whatever word their names share (a *hot dog* is no dog).

    Args:
        codepoint: hexadecimal, lower case, joined by ``-``, without fe0f.
        name: in English.
        subgroup: Unicode's, such as ``animal-bug``.
        split: unseen or validation.
    """
    known = kept(split)
    if codepoint in known.things:
        return f"is a {known.things[codepoint]}"
    if split == "validation" and codepoint in known.trained:
        return None
    for word in re.findall("[a-z]+", name.lower()):
        if word in known.words:
            return f"'{word}' is a {known.words[word]}"
    if codepoint not in known.trained and subgroup in known.subgroups:
        return f"{subgroup} holds a {known.subgroups[subgroup]}"
    return None


def picture_hash(image: Image.Image) -> int:
    """64 bits of how a picture looks: whether grey falls or rises between neighbours, at 9 x 8 pixels on white."""
    ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
    ground.alpha_composite(image.convert("RGBA"))
    grey = np.asarray(ground.convert("L").resize((9, 8), Image.Resampling.LANCZOS)).astype(int)
    bits = (grey[:, 1:] > grey[:, :-1]).flatten()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def tested_hashes() -> list[int]:
    """How the sample's unseen pictures and sketches look, sheet by sheet."""
    found = []
    for sheets in sample.SHEETS.values():
        for name in sheets.values():
            with Image.open(sample.FOLDER / name) as opened:
                sheet = opened.convert("RGBA")
            for number, row in enumerate(sample.things()):
                if row["split"] == "unseen":
                    left, top = number % sample.COLUMNS * sample.SIDE, number // sample.COLUMNS * sample.SIDE
                    found.append(picture_hash(sheet.crop((left, top, left + sample.SIDE, top + sample.SIDE))))
    return found


def distances(hashes: Sequence[int], others: Sequence[int]) -> np.ndarray:
    """For each hash the least number of differing bits to any of the others: int64 ``[N]``."""
    rest = np.array(others, dtype=np.uint64)
    least = [np.unpackbits((rest ^ np.uint64(one)).view(np.uint8)).reshape(-1, 64).sum(axis=1).min() for one in hashes]
    return np.array(least, dtype=np.int64)
