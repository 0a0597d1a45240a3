"""Labels as people write them: in another case, or nearly right."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Protocol

from splip.errors import UserError, short
from splip.gallery.filters import text

NEAR = 0.6  # of difflib, from which on another label may have been meant
COMPARED = 2000  # labels that are compared with one that is not known: difflib takes its time, and no other thread runs


class Labelled(Protocol):
    """The part of a gallery that is asked here."""

    def labels(self) -> Mapping[str, int]: ...


def meant(gallery: Labelled, given: Iterable[str]) -> tuple[str, ...]:
    """Labels as the gallery writes them: as they are, or the only one that differs in case alone.

    Raises:
        UserError: no picture has such a label, or several labels differ in case alone; the message names the nearest.
    """
    known, wanted = gallery.labels(), [text(label) for label in given]
    if all(label in known for label in wanted):
        return tuple(wanted)
    folded: dict[str, list[str]] = {}
    for label in known:
        folded.setdefault(label.casefold(), []).append(label)
    # A Milvus collection tells of the most frequent ones alone.
    whole = not (limit := getattr(gallery, "labels_told", None)) or len(known) < limit
    return tuple(_one(label, known, folded, whole) for label in wanted)


def _one(label: str, known: Mapping[str, int], folded: Mapping[str, list[str]], whole: bool) -> str:
    if label in known:
        return label
    same = folded.get(label.casefold(), [])
    if len(same) == 1:
        return same[0]
    if same:
        raise UserError(f"label {short(label)}: could be {' or '.join(map(short, sorted(same)))}")
    if not whole:
        return label
    near = difflib.get_close_matches(label.casefold(), folded, 1, NEAR) if len(folded) <= COMPARED else []
    if near:
        raise UserError(
            f"no picture has the label {short(label)}; did you mean {short(max(folded[near[0]], key=known.__getitem__))}?"
        )
    raise UserError(f"no picture has the label {short(label)}; {_some(known)}")


def _some(known: Mapping[str, int]) -> str:
    """The most frequent labels."""
    if not known:
        return "none has a label"
    first = sorted(known, key=lambda label: (-known[label], label))[:5]
    more = f" and {len(known) - len(first)} more" if len(known) > len(first) else ""
    return f"there are {', '.join(map(short, first))}{more}"
