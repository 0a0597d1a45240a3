"""What a search says of its own answer: the cutoff of its scores, and words that the model was never shown."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from splip.gallery.catalog import Filter
    from splip.gallery.protocol import Searchable


class Judged(Protocol):
    """Of a :class:`splip.serve.batching.Search`, what it is judged by, and what is said of it."""

    image: np.ndarray | None
    vector: np.ndarray | None
    modality: str
    text: str | None
    more: "Sequence[tuple[np.ndarray | str, float]]"
    filter: "Filter | None"
    cutoff: float | None
    unknown_words: list[str]


def judge(search: Judged, gallery: "Searchable") -> None:
    """Fill in the search's cutoff and unknown words, if the gallery and its model can tell."""
    texts = [text for text in (search.text, *(part for part, _ in search.more)) if isinstance(text, str)]
    search.unknown_words = gallery.encoder.unknown_words(texts) if texts else []
    search.cutoff = gallery.cutoff(kind(search), search.filter)


def kind(search: Judged) -> str | None:
    """What kind of query a search is; None: of several parts, or of words that the model does not know."""
    if search.more:
        return None
    if search.text is not None:
        return "text" if search.image is None and search.vector is None and not search.unknown_words else None
    return search.modality if search.image is not None else "photo"  # the vector of a photo of the gallery


def told(search: Judged) -> dict[str, Any]:
    """What the answer says of it."""
    return {
        "cutoff": None if search.cutoff is None else round(search.cutoff, 6),
        "unknown_words": search.unknown_words,
    }
