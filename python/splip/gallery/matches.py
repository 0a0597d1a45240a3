"""What a query found."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

Source = Path | str | bytes | Image.Image
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
    """What a query found, best first."""

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


def likely(match: Match, cutoff: float | None) -> bool | None:
    """Whether a match is probably what was asked for; None: that cannot be said."""
    return None if cutoff is None else match.score >= cutoff
