"""What a query found."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import SupportsIndex, overload

import numpy as np
from PIL import Image

from splip.gallery.catalog import Item

Source = Path | str | bytes | Image.Image | np.ndarray
Key = tuple[object, ...]  # of a filter


@dataclass
class Match:
    """One picture that a query found."""

    id: int
    score: float  # cosine similarity
    path: Path
    label: str | None
    tags: dict[str, str] = field(default_factory=dict)
    taken: str | None = None  # by the camera's clock, "2019-07-14T10:02:03"
    camera: str | None = None
    width: int | None = None  # upright, pixels
    height: int | None = None
    size: int = 0  # bytes
    mtime_ns: int = 0  # when the file was written
    missing: bool = False  # its file was not there when it was last looked for
    copies: tuple[int, ...] = ()  # other items with this content, where a search folds them into one; the first 100
    copies_count: int = 0  # of all of them
    hash: bytes = field(default=b"", repr=False)  # of the file, as the item's

    @classmethod
    def of(cls, item: Item, score: float) -> "Match":
        """An item that was found."""
        facts = (item.taken, item.camera, item.width, item.height, item.size, item.mtime_ns, item.missing)
        return cls(item.id, score, item.path, item.label, dict(item.tags), *facts, hash=item.hash)


class Matches(list[Match]):
    """What a query found, best first. A notebook shows it as pictures."""

    def __init__(self, matches: Iterable[Match] = (), partial: bool = False, cutoff: float | None = None) -> None:
        super().__init__(matches)
        self.partial = partial
        """Some of the gallery could not be searched: only where a gallery is searched by several machines."""
        self.cutoff = cutoff
        """The score below which a match is probably not what was asked for; None: that cannot be said of this search."""

    @property
    def likely(self) -> list[bool | None]:
        """Of each match whether it is probably what was asked for; None: that cannot be said."""
        return [likely(match, self.cutoff) for match in self]

    @overload
    def __getitem__(self, index: SupportsIndex) -> Match: ...

    @overload
    def __getitem__(self, index: slice) -> "Matches": ...

    def __getitem__(self, index: SupportsIndex | slice) -> "Match | Matches":
        found = super().__getitem__(index)
        return Matches(found, self.partial, self.cutoff) if isinstance(found, list) else found

    def _repr_html_(self) -> str:
        from splip.gallery.notebook import page

        return page(self, self.partial, self.cutoff)


def likely(match: Match, cutoff: float | None) -> bool | None:
    """Whether a match is probably what was asked for; None: that cannot be said."""
    return None if cutoff is None else match.score >= cutoff
