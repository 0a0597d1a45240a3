"""What is searched among what: zero-shot, generalised and fine-grained protocols, and classes that leaked.

A protocol is a choice of sketches and photos of a tree, made on the files that are listed, before any is decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from splip.data.trees import Tree, normal_name, unpaired
from splip.errors import UserError

GALLERIES = {
    "zs": ("paired-photo",),
    "gzs": ("sempcyc", "sempcyc-queries", "per-class-20", "all"),
    "fg": ("per-class", "all"),
}
USUAL = {"zs": (), "gzs": ("sempcyc",), "fg": ("per-class", "all")}


@dataclass(frozen=True)
class Protocol:
    """Sketches that search and photos that are searched, as positions in a tree's lists."""

    name: str  # zs, gzs:sempcyc, fg:per-class, ...; a suffix :without-leaked
    meaning: str
    classes: list[str]  # of the sketches; folder names
    queries: np.ndarray  # positions in tree.sketches, rising
    gallery: np.ndarray  # positions in tree.photos, rising; one that counts several times stands there so often

    @property
    def instances(self) -> bool:
        """A sketch is to find its very thing, not its class."""
        return self.name.startswith("fg")

    @property
    def in_class(self) -> bool:
        """A sketch searches only among the photos of its own class."""
        return self.name.startswith("fg:per-class")


def build(name: str, galleries: Sequence[str], tree: Tree, names: Sequence[str], seed: int = 0) -> list[Protocol]:
    """The protocols to report.

    Args:
        name: zs, gzs or fg.
        galleries: some of ``GALLERIES[name]``; none: the usual ones.
        tree: the data set.
        names: its classes to be measured.
        seed: of the choice of seen photos (gzs), and of a photo for each sketch (zs).

    Raises:
        UserError: a gallery of another protocol, no seen class, or sketches without a photo (fg).
    """
    strange = [g for g in galleries if g not in GALLERIES[name]]
    if strange:
        choices = f"choose among {', '.join(GALLERIES[name])}"
        raise UserError(f"--gallery {strange[0]}: not a gallery of the protocol {name}; {choices}")
    labels = [tree.classes.index(n) for n in names]
    queries = np.flatnonzero(np.isin(tree.sketches.labels, labels))
    photos = np.flatnonzero(np.isin(tree.photos.labels, labels))
    if name == "zs":
        if galleries:
            return [_paired_photo(tree, names, queries, photos, seed)]
        meaning = "sketches of the classes against the photos of these classes"
        return [Protocol("zs", meaning, list(names), queries, photos)]
    if name == "fg":
        _need_pairs(tree, queries, photos)
        against = {"per-class": "the photos of its own class", "all": "the photos of all these classes"}
        return [
            Protocol(
                f"fg:{g}", f"each sketch is to find the very thing among {against[g]}", list(names), queries, photos
            )
            for g in galleries or USUAL["fg"]
        ]
    made = []
    for g in galleries or USUAL["gzs"]:
        extra, which = _seen_photos(tree, names, g, len(photos), seed)
        asked, classes, more = queries, list(names), ""
        if g == "sempcyc-queries":
            added = _seen_sketches(tree, names, len(queries), seed)
            asked, more = (
                np.union1d(queries, added),
                f" and {len(added)} sketches of seen classes, 20% of their number,",
            )
            classes += sorted({tree.classes[label] for label in np.asarray(tree.sketches.labels)[added]} - set(names))
        meaning = f"sketches of the classes{more} against their photos and {len(extra)} photos of seen classes: {which}"
        made.append(Protocol(f"gzs:{g}", meaning, classes, asked, np.union1d(photos, extra)))
    return made


def _paired_photo(tree: Tree, names: Sequence[str], queries: np.ndarray, photos: np.ndarray, seed: int) -> Protocol:
    """A photo of its class for each sketch, drawn anew each time: a photo may stand in the gallery several times."""
    rng, of = np.random.default_rng(seed), np.asarray(tree.photos.labels)[photos]
    labels = np.asarray(tree.sketches.labels)[queries]
    pools = {label: photos[of == label] for label in np.unique(labels)}
    empty = next((label for label, pool in pools.items() if not len(pool)), None)
    if empty is not None:
        raise UserError(f"{tree.root}: no photo of {tree.classes[empty]} for the gallery paired-photo")
    drawn = np.array([pools[label][rng.integers(len(pools[label]))] for label in labels])
    meaning = f"sketches of the classes against one photo for each of them, drawn from its class, seed {seed} (CLIP-AT's code)"
    return Protocol("zs:paired-photo", meaning, list(names), queries, np.sort(drawn))


def _seen_sketches(tree: Tree, names: Sequence[str], size: int, seed: int) -> np.ndarray:
    """Positions of sketches of the seen classes, validation classes among them: 20% of ``size``."""
    seen = {*tree.seen, *tree.validation} - set(names)
    pool = np.flatnonzero(np.isin(tree.sketches.labels, [tree.classes.index(n) for n in seen]))
    count = min(len(pool), round(0.2 * size))
    return np.sort(np.random.default_rng([seed, 1]).choice(pool, count, replace=False))


def _seen_photos(tree: Tree, names: Sequence[str], gallery: str, size: int, seed: int) -> tuple[np.ndarray, str]:
    """Positions of photos of the seen classes, validation classes among them, and how they were chosen."""
    seen = sorted({*tree.seen, *tree.validation} - set(names))
    labels = [tree.classes.index(n) for n in seen]
    pool = np.flatnonzero(np.isin(tree.photos.labels, labels))
    if not len(pool):
        raise UserError(f"{tree.root}: no photos of seen classes for the protocol gzs")
    rng = np.random.default_rng(seed)
    if gallery == "all":
        return pool, "all there are"
    if gallery.startswith("sempcyc"):
        count = min(len(pool), round(0.2 * size))
        return np.sort(rng.choice(pool, count, replace=False)), f"20% of the unseen photos' number, seed {seed}"
    of = np.asarray(tree.photos.labels)[pool]
    chosen = [rng.choice(pool[of == c], max(1, round(0.2 * (of == c).sum())), replace=False) for c in labels]
    return np.sort(np.concatenate(chosen)), f"20% of each seen class, seed {seed}"


def _need_pairs(tree: Tree, queries: np.ndarray, photos: np.ndarray) -> None:
    lacking = unpaired(tree.sketches.take(queries.tolist()), tree.photos.take(photos.tolist()))
    if lacking:
        raise UserError(
            f"the protocol fg needs a photo of each sketch's very thing, but {len(lacking)} of {len(queries)} sketches "
            f"have none, e.g. {lacking[0]}"
        )


def both_counts(protocol: Protocol, tree: Tree) -> list[Protocol]:
    """A protocol on a benchmark's photos, counted once each and as often as they lie there.

    Published galleries count photos twice that are in the basic and in the extended folder.

    Args:
        protocol: built on all files.
        tree: loaded with ``dedup`` off.

    Raises:
        UserError: no photo lies there twice.
    """
    things = np.asarray(tree.photos.instances)[protocol.gallery]
    _, first = np.unique(things, return_index=True)  # of rising positions: the file that stays
    twice = len(things) - len(first)
    if not twice:
        raise UserError(f"--duplicates: no photo of these classes lies twice in {tree.root}")
    once = replace(protocol, gallery=protocol.gallery[np.sort(first)])
    more = f"{protocol.meaning}; {twice} photos count twice, as they do in published galleries"
    return [once, replace(protocol, name=f"{protocol.name}:with-duplicates", meaning=more)]


# ---- classes that the checkpoint knows ----


def known_classes(tree: Tree, names: Sequence[str], words: Sequence[str]) -> list[str]:
    """Those of the classes whose folder or words are among ``words``, spaces, `_`, `-` and capitals aside."""
    known = {normal_name(w) for w in words}
    return [n for n in names if {normal_name(n), normal_name(tree.texts[tree.classes.index(n)])} & known]


def leaks(tree: Tree, names: Sequence[str], data: dict[str, Any], validation: bool = True) -> dict[str, list[str]]:
    """Classes to be measured that the checkpoint knows, by how it came to know them.

    Args:
        tree: the data set.
        names: its classes to be measured.
        data: what the checkpoint says of its own data: words of its ``seen`` and ``validation`` classes.
        validation: classes that chose the checkpoint count too.
    """
    found = {"was trained on": known_classes(tree, names, data["seen"])}
    if validation:
        found["was chosen by"] = known_classes(tree, names, data["validation"])
    return {how: classes for how, classes in found.items() if classes}


def without(protocol: Protocol, tree: Tree, leaked: Sequence[str]) -> Protocol:
    """The protocol with these classes taken out of queries and gallery."""
    labels = [tree.classes.index(n) for n in leaked]
    queries = protocol.queries[~np.isin(np.asarray(tree.sketches.labels)[protocol.queries], labels)]
    gallery = protocol.gallery[~np.isin(np.asarray(tree.photos.labels)[protocol.gallery], labels)]
    return replace(
        protocol,
        name=f"{protocol.name}:without-leaked",
        meaning=f"{protocol.meaning}; without the {len(leaked)} classes that the checkpoint knows",
        classes=[n for n in protocol.classes if n not in set(leaked)],
        queries=queries,
        gallery=gallery,
    )
