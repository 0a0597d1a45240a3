"""A gallery whose vectors a Milvus collection searches."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splip.errors import UserError
from splip.gallery.catalog import Filter, Item
from splip.gallery.gallery import Gallery
from splip.gallery.matches import Match

if TYPE_CHECKING:
    from splip.encoders.encoder import Encoder
from splip.milvus.address import is_address, parse, to_path
from splip.milvus.collection import FACTS, LIMIT, Collection, expression

QUERIES = 64  # in one message


class MilvusGallery(Gallery):
    """A collection that is searched like a gallery; it is changed by pushing only.

    Example::

        with MilvusGallery("milvus://localhost:19530/photos", model=Path("best.pt")) as gallery:
            for match in gallery.search(sketches=["horse.png"], k=10)[0]:
                print(f"{match.score:.3f}", match.path)

    Args:
        address: of the collection, see the top of this module.
        engine: what encodes queries, see :class:`splip.encoders.encoder.Encoder`.
        device: of the encoder.
        model: a checkpoint or an export folder of the model that made the gallery.
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
        model: Path | None = None,
        encoder: "Encoder | None" = None,
    ) -> None:
        self.address, self.folder = parse(address), Path(address)
        self._engine, self._device, self._model = engine, device, model
        self._encoder_lock = threading.Lock()
        self._encoder, self._own_encoder = None, encoder is None
        self._counts: tuple[int, dict[str, int]] | None = None
        self._collection = Collection(self.address)
        try:
            self.facts = dict(self._properties())
            self.dim = int(str(self.facts["dim"]))
            if encoder is not None:
                self._encoder = self._same_model(encoder)
            self._collection.load()
            self.refresh()
        except BaseException:
            self.close()
            raise

    def _properties(self) -> dict[str, str]:
        held = self._collection.properties()
        if held is None:
            raise UserError(f"{self.address}: no such collection; `splip index push` makes one")
        return held

    def close(self) -> None:
        """Release the connection, and the encoder unless it was given."""
        self._collection.close()
        if self._own_encoder and self._encoder is not None:
            self._encoder.close()
        self._encoder = None

    def _not_here(self) -> Any:
        raise UserError(f"{self.address}: a collection answers searches only; this needs the gallery that was pushed")

    catalog = files = revision = property(_not_here)  # of a gallery's folder

    def _write(self) -> Any:
        raise UserError(f"{self.address}: change the gallery and push it again")

    def _model_source(self) -> Path:
        if self._model is None:
            raise UserError(f"{self.address}: holds no model: name the one of its pictures, {self.model}, with --model")
        return self._model

    def _same_model(self, encoder: "Encoder") -> "Encoder":
        if encoder.identity != self.identity or encoder.embed_dim != self.dim:
            theirs = f"{encoder.name} ({encoder.identity[:12]})"
            raise UserError(
                f"{self.address} was made with {self.model} ({self.identity[:12]}), not with {theirs}:"
                " vectors of two models cannot be compared"
            )
        return encoder

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
        row = self._row(id, FACTS)
        label, hash = row["label"] or None, bytes.fromhex(row["hash"])
        return Item(id, to_path(row["uri"]), label, dict(row["tags"]), row["size"], row["mtime_ns"], hash, -1, -1)

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
        """As :meth:`Gallery.search_vectors`; Milvus sums in float32, so the last digit of a score may differ.

        Raises:
            UserError: a shape does not match, a number is not finite, k < 1 or above what Milvus returns.
        """
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise UserError(f"vectors must be [Q, {self.dim}], got {list(queries.shape)}")
        if not np.isfinite(queries).all():
            raise UserError("vectors must be finite")
        if not 1 <= k <= LIMIT:
            raise UserError(f"k must be between 1 and {LIMIT}, got {k}")
        filters = [filter] * len(queries) if filter is None or isinstance(filter, Filter) else list(filter)
        if len(filters) != len(queries):
            raise UserError(f"{len(filters)} filters for {len(queries)} queries: give one, or one for each")
        queries = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
        groups: dict[str, list[int]] = {}
        for number, one in enumerate(filters):
            groups.setdefault(expression(one), []).append(number)
        found: list[list[Match]] = [[] for _ in queries]
        for condition, numbers in groups.items():
            for first in range(0, len(numbers), QUERIES):
                some = numbers[first : first + QUERIES]
                for number, hits in zip(some, self._collection.search(queries[some], k, condition), strict=True):
                    found[number] = [
                        Match(row["id"], score, to_path(row["uri"]), row["label"] or None, dict(row["tags"]))
                        for score, row in hits
                    ]
        return found


def open_gallery(
    place: str | Path, *, engine: str = "auto", device: str = "auto", model: Path | None = None
) -> Gallery:
    """What is to be searched: a collection if ``place`` is the address of one, else the gallery in that folder.

    Raises:
        UserError: see :class:`MilvusGallery` and :meth:`Gallery.open`.
    """
    if is_address(place):
        return MilvusGallery(str(place), engine=engine, device=device, model=model)
    return Gallery.open(place, engine=engine, device=device, model=model)
