"""Class names as data sets write them, and the splits that have a name in the field.

``configs/splits.json`` holds every list. The three sets are passed around with their folders spelt in
several ways; whatever a folder is called, a class has one name here: that of the data set's own list.
"""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from splip.config import CONFIGS
from splip.errors import UserError

# Folders of the data sets' downloads that are no other spelling of the class but a wrong one.
MISSPELT = {
    "sketchy": {},
    "tuberlin": {
        "chandeler": "chandelier",
        "diamod": "diamond",
        "griaffe": "giraffe",
        "spacesshuttle": "space shuttle",
        "spidar": "spider",
        "tromobone": "trombone",
        "wristwatching": "wrist-watch",
    },
    "quickdraw": {},
}


@dataclass(frozen=True)
class Split:
    """A named split; every class of the data set that is not unseen is seen."""

    name: str
    dataset: str
    source: str  # where the list comes from
    seen: tuple[str, ...]  # sorted
    unseen: tuple[str, ...]  # sorted
    expected: dict[str, int]  # published sizes: queries, gallery, gallery_with_duplicates


def prompt_name(folder: str) -> str:
    """A class folder's name as words."""
    return " ".join(folder.replace("_", " ").replace("-", " ").split())


def normal_name(name: str) -> str:
    """A class name for comparison: data sets write the same class with spaces, `_`, `-` and capitals."""
    return prompt_name(name).lower()


@cache
def _lists() -> dict[str, Any]:
    lists: dict[str, Any] = json.loads((CONFIGS / "splits.json").read_text(encoding="utf-8"))
    return lists


def dataset_facts(dataset: str) -> dict[str, Any]:
    """``classes`` of sketchy, tuberlin or quickdraw, and sizes that do not depend on the split."""
    facts: dict[str, Any] = _lists()["datasets"][dataset]
    return facts


def _letters(name: str) -> str:
    """TU-Berlin's photo folders leave spaces and signs out: ``carsedan`` is ``car (sedan)``."""
    return "".join(c for c in normal_name(name) if c.isalnum())


@cache
def _spellings(dataset: str) -> dict[str, str]:
    classes: list[str] = dataset_facts(dataset)["classes"]
    # `mouse` stands for `mouse (animal)` as long as no class is called just mouse.
    spellings = {_letters(name.split("(")[0]): name for name in classes if "(" in name}
    spellings |= {_letters(name): name for name in classes}
    return spellings | MISSPELT[dataset]


@cache  # list files ask for every line
def class_of(dataset: str, folder: str) -> str | None:
    """The class of a data set that a folder's name means, or None."""
    return _spellings(dataset).get(_letters(folder))


def split_names(dataset: str) -> list[str]:
    return [name for name, entry in _lists()["splits"].items() if entry["dataset"] == dataset]


def find_split(dataset: str, name: str | None) -> Split:
    """A split by its full name (``sketchy-2``) or what follows the data set's (``2``); None: the usual one.

    Raises:
        UserError: the data set has no such split.
    """
    known = split_names(dataset)
    full = dataset_facts(dataset)["default"] if name is None else name
    if full not in known:
        full = f"{dataset}-{name}"
    if full not in known:
        raise UserError(f"{dataset} has no split '{name}'; it has {', '.join(known)}")
    entry = _lists()["splits"][full]
    unseen = sorted(_spellings(dataset)[_letters(n)] for n in entry["unseen"])
    seen = sorted(set(dataset_facts(dataset)["classes"]) - set(unseen))
    sizes = {key: value for key, value in entry.items() if isinstance(value, int)}
    return Split(full, dataset, entry["source"], tuple(seen), tuple(unseen), sizes)
