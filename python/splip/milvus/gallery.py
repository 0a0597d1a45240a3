"""A gallery whose vectors a Milvus collection keeps and searches; ``splip index push`` fills it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splip.errors import UserError
from splip.gallery.catalog import Filter, Item
from splip.gallery.gallery import Gallery
from splip.gallery.matches import Match
from splip.gallery.protocol import Searchable
from splip.gallery.queries import QueryEncoder, checked
from splip.milvus.address import is_address, parse, to_path
from splip.milvus.collection import FACTS, LABELS, LIMIT, Collection, expression

if TYPE_CHECKING:
    from splip.encoders.encoder import Encoder

QUERIES = 64  # in one message


class MilvusGallery(QueryEncoder):
    """A collection that is searched like a gallery; it is changed, and its items are listed, where it was pushed from.

    Example::

        with MilvusGallery("milvus://localhost:19530/photos", model="runs/sample") as gallery:
            for match in gallery.search(sketches=["horse.png"], k=10)[0]:
                print(f"{match.score:.3f}", match.path)

    Args:
        address: of the collection, see the top of :mod:`splip.milvus.address`.
        engine: what encodes queries, see :class:`splip.encoders.encoder.Encoder`.
        device: of the encoder.
        model: the one that made the gallery, by any name.
        encoder: of that model, if it is loaded already.

    Raises:
        UserError: no such collection, not one that ``splip index push`` made, or of another model than the encoder's.
    """

    def __init__(
        self,
        address: str,
        *,
        engine: str = "auto",
        device: str = "auto",
        model: Path | str | None = None,
        encoder: "Encoder | None" = None,
    ) -> None:
        self.address = parse(address)
        self._counts: tuple[int, dict[str, int]] | None = None
        self._collection = Collection(self.address)

        def source() -> Path | str:
            if model is None:
                missing = f"holds no model: name the one of its pictures, {self.model}, with --model"
                raise UserError(f"{self.address}: {missing}")
            return model

        try:
            facts = self._properties()
            super().__init__(str(self.address), facts, source, engine=engine, device=device, encoder=encoder)
            self._collection.load()
            self.refresh()
        except BaseException:
            self._collection.close()
            raise

    @property
    def most(self) -> int:
        """Items that a search may ask for."""
        return LIMIT

    @property
    def labels_told(self) -> int:
        """Labels that :meth:`labels` knows at most."""
        return LABELS

    def _properties(self) -> dict[str, str]:
        held = self._collection.properties()
        if held is None:
            raise UserError(f"{self.address}: no such collection; `splip index push` makes one")
        return held

    def close(self) -> None:
        """Release the connection, and the encoder unless it was given."""
        self._collection.close()
        self.close_encoder()

    def __len__(self) -> int:
        """Rows, as of the last refresh."""
        return self._counts[0] if self._counts else 0

    def labels(self) -> dict[str, int]:
        """Items of each label, of the most frequent ones; as of the last whole push and the last refresh."""
        return dict(self._counts[1]) if self._counts else {}

    def refresh(self) -> bool:
        """Count anew; True if that or the labels changed. Searches need it not."""
        before = self._counts
        self._counts = self._collection.count(), json.loads(self._properties().get("labels", "{}"))
        return self._counts != before

    def item(self, id: int) -> Item:
        """An item, without a place: its vector is in the collection.

        Raises:
            KeyError: no such item (any more).
        """
        return _item(self._row(id, FACTS))

    def vector(self, id: int) -> np.ndarray:
        """The vector of an item, float32 ``[D]``.

        Raises:
            KeyError: no such item (any more).
        """
        return np.asarray(self._row(id, ("vector",))["vector"], dtype=np.float32)

    def _row(self, id: int, columns: Sequence[str]) -> dict[str, Any]:
        found = self._collection.rows(f"id == {id}", columns) if -(2**63) <= id < 2**63 else []
        if not found:
            raise KeyError(id)
        return found[0]

    def search_vectors(
        self, vectors: np.ndarray, k: int = 10, filter: Filter | Sequence[Filter | None] | None = None
    ) -> list[list[Match]]:
        """As :meth:`splip.gallery.gallery.Gallery.search_vectors`; Milvus sums in float32, so the last digit of a score may differ.

        Raises:
            UserError: a shape does not match, a number is not finite, k < 1 or above what Milvus returns.
        """
        queries, filters = checked(vectors, self.dim, k, filter, LIMIT)
        queries = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
        groups: dict[str, list[int]] = {}
        for number, one in enumerate(filters):
            groups.setdefault(expression(one), []).append(number)
        found: list[list[Match]] = [[] for _ in queries]
        for condition, numbers in groups.items():
            for first in range(0, len(numbers), QUERIES):
                some = numbers[first : first + QUERIES]
                for number, hits in zip(some, self._collection.search(queries[some], k, condition), strict=True):
                    found[number] = [Match.of(_item(row), score) for score, row in hits]
        return found


def _item(row: Mapping[str, Any]) -> Item:
    label, hash = row["label"] or None, bytes.fromhex(row["hash"])
    return Item(row["id"], to_path(row["uri"]), label, dict(row["tags"]), row["size"], row["mtime_ns"], hash, -1, -1)


def open_gallery(
    place: str | Path, *, engine: str = "auto", device: str = "auto", model: Path | str | None = None
) -> Searchable:
    """What is to be searched: a collection if ``place`` is the address of one, else the gallery in that folder.

    Raises:
        UserError: see :class:`MilvusGallery` and :meth:`Gallery.open`.
    """
    if is_address(place):
        return MilvusGallery(str(place), engine=engine, device=device, model=model)
    return Gallery.open(place, engine=engine, device=device, model=model)
