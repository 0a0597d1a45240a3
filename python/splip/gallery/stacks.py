"""Copies as one result: of items with the same content the best is shown, and the others belong to it.

A search for k contents needs more than k items where some are there many times. So one asks for more until there are
enough contents, or no more items: what is found is the beginning of the whole ranking, with each content once.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from splip.gallery.filters import Filter
from splip.gallery.matches import Match, Matches

MORE = 8  # items that are asked for beside k: a few copies cost no second search


class Searches(Protocol):
    """The part of a gallery that is asked here; one that has ``copies`` is asked for those too."""

    def search_vectors(
        self, vectors: np.ndarray, k: int = 10, filter: Filter | Sequence[Filter | None] | None = None
    ) -> list[list[Match]]: ...


def search(
    gallery: Searches,
    queries: np.ndarray,
    k: int | Sequence[int],
    filter: Filter | None | Sequence[Filter | None] = None,
    stack: bool | Sequence[bool] = True,
) -> list[Matches]:
    """The best pictures for each of the vectors; copies are one of the k, in the order of ``search_vectors``.

    Args:
        gallery: any.
        queries: float32 ``[Q, D]``.
        k: pictures a query, with all their copies; one for all queries or one for each.
        filter: the same; copies that do not pass are none.
        stack: the same; False: each copy is a picture of its own.

    Raises:
        UserError: see ``search_vectors``.
    """
    count = len(queries)
    ks = [k] * count if isinstance(k, int) else list(k)
    filters = [filter] * count if filter is None or isinstance(filter, Filter) else list(filter)
    stacks = [stack] * count if isinstance(stack, bool) else list(stack)
    most: int | None = getattr(gallery, "most", None)  # items that it can be asked for
    found = [Matches() for _ in range(count)]
    left, need = list(range(count)), max(ks, default=1)
    if any(stacks) and need >= 1:  # else it is for the gallery to refuse
        need = max(need, _at_most(need + MORE, most))
    while left:
        some = [filters[i] for i in left]
        answers = gallery.search_vectors(queries[left], need, None if all(f is None for f in some) else some)
        again, wanted = [], 2 * need
        for i, matches in zip(left, answers, strict=True):
            partial = isinstance(matches, Matches) and matches.partial
            if not stacks[i]:
                found[i] = Matches(matches[: ks[i]], partial)
                continue
            groups = _groups(matches)
            if len(groups) >= ks[i] or len(matches) < need or need == most:
                found[i] = Matches(_folded(gallery, groups[: ks[i]], filters[i]), partial)
            else:
                again.append(i)
                known = sum(len(ids) for ids in _copies(gallery, groups, filters[i]).values())
                wanted = max(wanted, known + ks[i] - len(groups) + MORE)
        left, need = again, _at_most(wanted, most)
    return found


def _at_most(need: int, most: int | None) -> int:
    return need if most is None else min(need, most)


def _groups(matches: Sequence[Match]) -> list[list[Match]]:
    """Matches of the same content together, in the order of the best of each; what has no hash is one of its own."""
    groups: dict[Any, list[Match]] = {}
    for match in matches:
        groups.setdefault(match.hash or match.id, []).append(match)
    return list(groups.values())


def _folded(gallery: Searches, groups: list[list[Match]], filter: Filter | None) -> list[Match]:
    """The best of each, with the ids of the others."""
    known = _copies(gallery, groups, filter)
    folded = []
    for first, *others in groups:
        ids = known.get(first.hash) or [match.id for match in others]
        folded.append(replace(first, copies=tuple(sorted(id for id in ids if id != first.id))))
    return folded


def _copies(gallery: Searches, groups: list[list[Match]], filter: Filter | None) -> dict[bytes, list[int]]:
    """All items of some contents, where the gallery can tell."""
    ask = getattr(gallery, "copies", None)
    hashes = [group[0].hash for group in groups if group[0].hash]
    found: dict[bytes, list[int]] = ask(hashes, filter) if ask is not None and hashes else {}
    return found
