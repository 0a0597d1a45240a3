"""What a gallery is, to those who use one: a local folder, a Milvus collection and shards on a cluster are all that.

Nothing here is inherited: a class is a gallery by having these methods. Type checkers compare them where one is handed
over, and ``tests/gallery/test_protocol.py`` asks all of them the same questions.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from splip.gallery.catalog import Catalog, Filter, Item
from splip.gallery.matches import Match, Source
from splip.gallery.parts import Part
from splip.gallery.segments import Segments
from splip.gallery.thumbnails import Store

if TYPE_CHECKING:
    from splip.encoders.encoder import Encoder


class Searchable(Protocol):
    """A gallery that answers searches, wherever its vectors are.

    The service and ``splip search`` need no more than this. Items are listed and changed only where the gallery's folder
    is: see :class:`splip.gallery.gallery.Gallery`.
    """

    @property
    def dim(self) -> int:
        """D, the width of its vectors."""

    @property
    def model(self) -> str:
        """The model's name, for people."""

    @property
    def identity(self) -> str:
        """The model's sha256."""

    @property
    def decoding(self) -> int:
        """How its pictures were decoded, see :data:`splip.images.decode.DECODING`."""

    @property
    def encoder(self) -> "Encoder":
        """The model; may raise UserError when it is first needed."""

    def reading(self, modality: str) -> tuple[int, int]:
        """The arguments ``least`` and ``decoding`` of :func:`splip.images.read`."""

    def prepare(self, source: Source, modality: str) -> np.ndarray:
        """A picture as the encoder takes it, uint8 ``[S, S, 3]``; UserError if it cannot be read."""

    def embed(
        self,
        sketches: Sequence[Source] = (),
        photos: Sequence[Source] = (),
        texts: Sequence[str] = (),
        text_weight: float = 0.5,
    ) -> np.ndarray:
        """Queries as unit vectors, float32 ``[Q, D]``."""

    def compose(self, parts: Sequence[Part]) -> np.ndarray:
        """One query of several weighted parts as a unit vector, float32 ``[1, D]``."""

    def search(
        self,
        sketches: Sequence[Source] = (),
        photos: Sequence[Source] = (),
        texts: Sequence[str] = (),
        vectors: np.ndarray | None = None,
        k: int = 10,
        filter: Filter | Sequence[Filter | None] | None = None,
        text_weight: float = 0.5,
        stack: bool = False,
    ) -> list[list[Match]]:
        """The best pictures of each query, best first."""

    def search_vectors(
        self, vectors: np.ndarray, k: int = 10, filter: Filter | Sequence[Filter | None] | None = None
    ) -> list[list[Match]]:
        """The best pictures for each of the vectors, float32 ``[Q, D]``: score descending, then id ascending."""

    def cutoff(self, kind: str | None, filter: Filter | None = None) -> float | None:
        """The score below which a match is probably not what was asked for; None: that cannot be said."""

    def __len__(self) -> int:
        """Items, as of the last refresh."""

    def labels(self) -> dict[str, int]:
        """Items of each label."""

    def item(self, id: int) -> Item:
        """An item; KeyError: there is none."""

    def vector(self, id: int) -> np.ndarray:
        """The vector of an item, float32 ``[D]``; KeyError: there is none."""

    def refresh(self) -> bool:
        """Take in what has changed; True if anything has."""

    def close(self) -> None:
        """Let go of everything; a second call does nothing."""

    def __enter__(self) -> "Searchable": ...

    def __exit__(self, *_: object) -> None: ...


class Stored(Protocol):
    """A gallery whose folder is open: what looks after it and copies it elsewhere reads this."""

    @property
    def folder(self) -> Path: ...

    @property
    def catalog(self) -> Catalog: ...

    @property
    def files(self) -> Segments: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...

    @property
    def dim(self) -> int: ...

    @property
    def model(self) -> str: ...

    @property
    def identity(self) -> str: ...

    @property
    def decoding(self) -> int: ...

    @property
    def segment_rows(self) -> int:
        """Vectors a file."""

    def labels(self) -> dict[str, int]: ...

    def snapshot(self, ready: bool = True) -> AbstractContextManager[tuple[sqlite3.Connection, object]]:
        """A transaction that reads one committed state whose files are all there."""


class Writable(Stored, Protocol):
    """A gallery that is open for writing: what adds to it and compacts it is handed this."""

    @property
    def encoder(self) -> "Encoder": ...

    @property
    def thumbnails(self) -> Store: ...

    def reading(self, modality: str) -> tuple[int, int]: ...

    def append(self, db: sqlite3.Connection, rows: np.ndarray) -> list[tuple[int, int]]:
        """Write vectors float32 ``[n, D]`` behind the others; segment and row of each."""

    def write_packs(self, least: int | None = None) -> None:
        """Write the packs that are missing."""
