"""Copies as one result: of items with the same content the best is shown, and the others belong to it.

A search for k contents needs more than k items where some are there many times. So one asks for more until there are
enough contents, or no more items: what is found is the beginning of the whole ranking, with each content once. Where that
would be very many items, one asks for what comes behind the contents that are known: for the best items of no such content.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from splip.gallery.browse import Copies, folded
from splip.gallery.catalog import Item
from splip.gallery.filters import Filter
from splip.gallery.matches import Match, Matches

MORE = 8  # items that are asked for beside k: a few copies cost no second search
MANY = 2048  # items that are asked for, of queries for fewer, before the contents that are known are left out


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
    behind: list[list[list[Match]]] = [[] for _ in range(count)]  # contents that are not asked for again
    left, need = list(range(count)), max(ks, default=1)
    if any(stacks) and need >= 1:  # else it is for the gallery to refuse
        need = max(need, _at_most(need + MORE, most))
    while left:
        some = [_without(filters[i], behind[i]) for i in left]
        answers = gallery.search_vectors(queries[left], need, None if all(f is None for f in some) else some)
        again, wanted = [], need
        for i, matches in zip(left, answers, strict=True):
            found[i].partial |= isinstance(matches, Matches) and matches.partial
            if not stacks[i]:
                found[i] = Matches(matches[: ks[i]], found[i].partial)
                continue
            groups = behind[i] + _groups(matches)
            if len(groups) >= ks[i] or len(matches) < need or need == most:
                found[i] = Matches(_folded(gallery, groups[: ks[i]], filters[i]), found[i].partial)
                continue
            again.append(i)
            copies = _copies(gallery, groups[len(behind[i]) :], filters[i])
            enough = max(2 * need, sum(same.total for same in copies.values()) + ks[i] - len(groups) + MORE)
            if copies and enough > MANY:
                behind[i], enough = groups, min(2 * need, MANY)
            wanted = max(wanted, enough)
        left, need = again, _at_most(wanted, most)
    return found


def _at_most(need: int, most: int | None) -> int:
    return need if most is None else min(need, most)


def _without(filter: Filter | None, groups: list[list[Match]]) -> Filter | None:
    """A filter that some contents do not pass, either."""
    if not groups:
        return filter
    return replace(filter or Filter(), without=(filter.without if filter else ()) + tuple(g[0].hash for g in groups))


def _groups(matches: Sequence[Match]) -> list[list[Match]]:
    """Matches of the same content together, in the order of the best of each; what has no hash is one of its own.

    Of each, those whose files are there come first: one of them stands for it.
    """
    groups: dict[Any, list[Match]] = {}
    for match in matches:
        groups.setdefault(match.hash or match.id, []).append(match)
    return [sorted(group, key=lambda match: match.missing) for group in groups.values()]


def _folded(gallery: Searches, groups: list[list[Match]], filter: Filter | None) -> list[Match]:
    """What stands for each, with the ids of the others."""
    known = _copies(gallery, groups, filter)
    shown = []
    for first, *others in groups:
        same = known.get(first.hash) or Copies([first.id, *(match.id for match in others)], 1 + len(others))
        shown.append(folded(_there(gallery, first, same), same))
    return shown


def _there(gallery: Searches, match: Match, same: Copies) -> Match:
    """A match, or another of its content whose file is there, if its own is gone."""
    ask: Callable[[int], Item] | None = getattr(gallery, "item", None)
    if match.missing and same[0] != match.id and ask is not None:
        with contextlib.suppress(KeyError):  # it was removed meanwhile
            if not (item := ask(same[0])).missing:
                return Match.of(item, match.score)
    return match


def _copies(gallery: Searches, groups: list[list[Match]], filter: Filter | None) -> dict[bytes, Copies]:
    """All items of some contents, where the gallery can tell."""
    ask = getattr(gallery, "copies", None)
    hashes = [group[0].hash for group in groups if group[0].hash]
    found: dict[bytes, Copies] = ask(hashes, filter) if ask is not None and hashes else {}
    return found
