"""What a query found."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import SupportsIndex, overload

import numpy as np
from PIL import Image

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


class Matches(list[Match]):
    """What a query found, best first. A notebook shows it as pictures."""

    def __init__(self, matches: Iterable[Match] = (), partial: bool = False) -> None:
        super().__init__(matches)
        self.partial = partial
        """Some of the gallery could not be searched: only where a gallery is searched by several machines."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Match: ...

    @overload
    def __getitem__(self, index: slice) -> "Matches": ...

    def __getitem__(self, index: SupportsIndex | slice) -> "Match | Matches":
        found = super().__getitem__(index)
        return Matches(found, self.partial) if isinstance(found, list) else found

    def _repr_html_(self) -> str:
        from splip.gallery.notebook import page

        return page(self, self.partial)
