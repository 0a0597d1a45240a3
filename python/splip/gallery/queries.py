"""Queries as vectors: what all galleries do alike, wherever their vectors are searched."""

import io
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from PIL import Image, ImageOps

from splip import images
from splip.errors import GalleryError, UnreadablePicture, UserError
from splip.gallery import stacks
from splip.gallery.catalog import Filter
from splip.gallery.matches import Match, Matches, Source
from splip.gallery.parts import Part, between, check, mix
from splip.gallery.parts import name as told
from splip.images import archive

if TYPE_CHECKING:
    from splip.encoders.encoder import Encoder

Self = TypeVar("Self", bound="QueryEncoder")
_ONE = (str, bytes, Path, Image.Image, np.ndarray)  # a query, and not a list of some


class QueryEncoder(ABC):
    """The model of a gallery, and sketches, photos and texts encoded by it.

    A base of galleries with only this job: what is stored, and how vectors are searched, is theirs.

    Args:
        place: the gallery's name in messages.
        facts: what is known of its vectors: ``dim``, ``model``, ``identity`` and, of newer ones, ``decoding``.
        source: says where the model is, when it is first needed; raises UserError if it is gone.
        engine: what encodes, see :class:`splip.encoders.encoder.Encoder`.
        device: of the encoder.
        encoder: of this model, if it is loaded already; stays the caller's to close.

    Raises:
        UserError: the encoder is of another model.
    """

    def __init__(
        self,
        place: str,
        facts: Mapping[str, Any],
        source: Callable[[], Path | str],
        *,
        engine: str = "auto",
        device: str = "auto",
        encoder: "Encoder | None" = None,
    ) -> None:
        self._place, self.facts, self._source = place, facts, source
        self._engine, self._device = engine, device
        self._encoder_lock = threading.Lock()
        self._own_encoder = encoder is None
        self._encoder = None if encoder is None else self._same_model(encoder)

    @property
    def dim(self) -> int:
        """D, the width of the vectors."""
        return int(self.facts["dim"])

    @property
    def model(self) -> str:
        """The model's name, for people."""
        return str(self.facts["model"])

    @property
    def identity(self) -> str:
        """The model's sha256."""
        return str(self.facts["identity"])

    @property
    def decoding(self) -> int:
        """How its pictures were decoded, see :data:`splip.images.decode.DECODING`: those that come later are, too."""
        return int(self.facts.get("decoding", 1))  # galleries of before note nothing

    @property
    def encoder(self) -> "Encoder":
        """The model, loaded on first use.

        Raises:
            UserError: it is gone, cannot be loaded, or is another one than made the gallery.
        """
        with self._encoder_lock:
            if self._encoder is None:
                from splip.encoders.encoder import Encoder

                self._encoder = self._same_model(Encoder.load(self._source(), self._engine, device=self._device))
            return self._encoder

    def _same_model(self, encoder: "Encoder") -> "Encoder":
        if encoder.embed_dim != self.dim and self.dim in encoder.dimensions:
            encoder = encoder.sized(self.dim)
        if encoder.identity != self.identity:
            theirs = f"{encoder.name} ({encoder.identity[:12]})"
            raise GalleryError(
                f"{self._place} was made with {self.model} ({self.identity[:12]}), not with {theirs}:"
                " vectors of two models cannot be compared; --gallery NAME makes another"
            )
        if encoder.embed_dim != self.dim:
            raise GalleryError(f"{self._place}: vectors of width {self.dim}, model of {encoder.embed_dim}")
        return encoder

    @abstractmethod
    def close(self) -> None:
        """Let go of everything: the encoder too, unless it was given."""

    def close_encoder(self) -> None:
        """The part of :meth:`close` that is of queries."""
        if self._own_encoder and self._encoder is not None:
            self._encoder.close()
        self._encoder = None

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- queries ----

    def reading(self, modality: str) -> tuple[int, int]:
        """The arguments ``least`` and ``decoding`` of :func:`splip.images.read` for the pictures of this gallery."""
        return reading(self.encoder, modality, self.decoding)

    def prepare(self, source: Source, modality: str) -> np.ndarray:
        """A picture as the encoder takes it, uint8 ``[S, S, 3]``.

        Raises:
            UserError: it cannot be read, or nothing is drawn on a sketch.
        """
        name: object = source if isinstance(source, (str, Path)) else "the picture"
        file = Path(source) if isinstance(source, str) else _encoded(source)
        if isinstance(source, str) and not Path(source).suffix and not archive.exists(source):
            raise UnreadablePicture(source, "no such file; words are searched for as a text")
        image = images.read(file, name, *self.reading(modality))
        if modality == "sketch":
            extremes = image.getextrema()
            if all(low == high for low, high in extremes):  # type: ignore[misc]
                raise UserError(f"{name}: nothing is drawn on it")
        return self.encoder.prepare(image, modality)

    def embed(
        self,
        sketches: Sequence[Source] = (),
        photos: Sequence[Source] = (),
        texts: Sequence[str] = (),
        text_weight: float = 0.5,
    ) -> np.ndarray:
        """Queries as unit vectors, float32 ``[Q, D]``: sketches, then photos; or texts.

        With texts beside pictures each query is ``normalise((1 - w) * picture + w * text)``.

        Raises:
            UserError: see :meth:`search`.
        """
        for name, value in (("sketches", sketches), ("photos", photos), ("texts", texts)):
            if isinstance(value, _ONE):
                raise UserError(f"{name} must be a list, got {type(value).__name__}")
        if not 0 <= text_weight <= 1:
            raise UserError(f"text_weight must be between 0 and 1, got {text_weight}")
        count = len(sketches) + len(photos)
        if count and len(texts) not in (0, 1, count):
            raise UserError(f"{len(texts)} texts for {count} pictures: give one, or one for each")
        found = []
        for modality, sources in (("sketch", sketches), ("photo", photos)):
            if len(sources):
                pixels = [self.prepare(source, modality) for source in sources]
                found.append(self.encoder.encode(np.stack(pixels), modality))
        if not len(texts):
            return np.concatenate(found) if found else np.empty((0, self.dim), dtype=np.float32)
        words = self.encoder.encode_text(texts)
        if not found:
            return words
        return between(np.concatenate(found), words, text_weight)

    def compose(self, parts: Sequence[Part]) -> np.ndarray:
        """One query of several parts, each with a weight, as a unit vector float32 ``[1, D]`` for :meth:`search_vectors`.

        Raises:
            UserError: a part cannot be read or encoded, nothing is looked for, or the parts cancel out.
        """
        check(parts)
        found = np.empty((len(parts), self.dim), dtype=np.float32)
        for kind in ("sketch", "photo"):
            of = [number for number, part in enumerate(parts) if part.kind == kind]
            if of:
                pixels = [self.prepare(parts[number].value, kind) for number in of]  # type: ignore[arg-type]
                found[of] = self.encoder.encode(np.stack(pixels), kind)
        of = [number for number, part in enumerate(parts) if part.kind == "text"]
        if of:
            found[of] = self.encoder.encode_text([parts[number].words for number in of])
        for number, part in enumerate(parts):
            if part.kind == "item":
                try:
                    vector = self.vector(int(part.value))  # type: ignore[arg-type]
                except KeyError:
                    raise UserError(f"{told(part)}: there is no such item in the gallery") from None
                found[number] = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return mix(parts, found)

    @abstractmethod
    def vector(self, id: int) -> np.ndarray:
        """The vector of an item, float32 ``[D]``; KeyError: there is none."""

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is a Sequence[str], too
        self,
        sketches: Source,
        *,
        texts: str = ...,
        k: int = ...,
        filter: Filter | None = ...,
        text_weight: float = ...,
        stack: bool = ...,
    ) -> Matches: ...

    @overload
    def search(  # type: ignore[overload-overlap]
        self,
        *,
        photos: Source,
        texts: str = ...,
        k: int = ...,
        filter: Filter | None = ...,
        text_weight: float = ...,
        stack: bool = ...,
    ) -> Matches: ...

    @overload
    def search(  # type: ignore[overload-overlap]
        self, *, texts: str, k: int = ..., filter: Filter | None = ..., stack: bool = ...
    ) -> Matches: ...

    @overload
    def search(
        self,
        sketches: Sequence[Source] = ...,
        photos: Sequence[Source] = ...,
        texts: Sequence[str] = ...,
        vectors: np.ndarray | None = ...,
        k: int = ...,
        filter: Filter | Sequence[Filter | None] | None = ...,
        text_weight: float = ...,
        stack: bool = ...,
    ) -> list[list[Match]]: ...

    def search(
        self,
        sketches: Source | Sequence[Source] = (),
        photos: Source | Sequence[Source] = (),
        texts: str | Sequence[str] = (),
        vectors: np.ndarray | None = None,
        k: int = 10,
        filter: Filter | Sequence[Filter | None] | None = None,
        text_weight: float = 0.5,
        stack: bool = False,
    ) -> Matches | list[list[Match]]:
        """The best pictures of each query, best first; fewer than ``k`` if no more pass the filter.

        One query gets its matches: ``search("horse.png")``, ``search("horse.png", texts="brown")``, ``search(texts="red car")``.
        Lists of queries get a list of as many.

        Args:
            sketches: drawings, dark on white or on transparency: a file, the bytes of one, a PIL picture, or an array uint8
                ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``; or a list of such.
            photos: pictures to find similar ones of, the same.
            texts: what is to be seen, e.g. ``red car``: the model puts its prompt before it. With sketches or photos:
                one for all or one for each, added to them.
            vectors: float32 ``[Q, D]`` instead of the above.
            k: pictures a query.
            filter: one for all queries or one for each; see :class:`splip.gallery.catalog.Filter`.
            text_weight: 0: picture only, 1: text only; see :meth:`embed`.
            stack: pictures of the same content are one of the ``k``, with the ids of the others in ``copies``.

        Raises:
            UserError: a picture cannot be read, nothing is drawn on a sketch, the model has no text tower, ...
        """
        given = (sketches, photos, texts)
        single = [isinstance(value, _ONE) for value in given]
        if single[0] and single[1]:
            raise UserError("a sketch and a photo are two queries: give them as lists, or as one with compose")
        many: list[Any] = [[value] if one else value for value, one in zip(given, single, strict=True)]
        judged = vectors is None
        if vectors is None:
            vectors = self.embed(many[0], many[1], many[2], text_weight)
        elif any(map(len, many)):
            raise UserError("vectors cannot be combined with sketches, photos or texts")
        if stack:
            queries, filters = checked(vectors, self.dim, k, filter)
            found: list[list[Match]] = list(stacks.search(self, queries, k, filters))
        else:
            found = self.search_vectors(vectors, k, filter)
        if judged:
            self._judge(found, many, filter)
        if not any(single) or not all(one or not len(value) for one, value in zip(single, many, strict=True)):
            return found
        return found[0] if isinstance(found[0], Matches) else Matches(found[0])

    def _judge(
        self, found: Sequence[list[Match]], asked: Sequence[Any], filter: Filter | Sequence[Filter | None] | None
    ) -> None:
        """Note the cutoffs of answers to sketches, photos and texts that were asked with, where they can be said."""
        sketches, photos, texts = asked
        kinds: list[str] = []  # none of sketches or photos with texts
        if not len(sketches) and not len(photos):
            kinds = ["text"] * len(texts)
        elif not len(texts):
            kinds = [*["sketch"] * len(sketches), *["photo"] * len(photos)]
        filters = [filter] * len(found) if filter is None or isinstance(filter, Filter) else filter
        for number, (matches, kind) in enumerate(zip(found, kinds, strict=False)):
            cutoff = self.cutoff(kind, filters[number])
            unknown = kind == "text" and cutoff is not None and self.encoder.unknown_words([texts[number]])
            if isinstance(matches, Matches) and not unknown:
                matches.cutoff = cutoff

    def cutoff(self, kind: str | None, filter: Filter | None = None) -> float | None:
        """The score below which a match is probably not what was asked for; None: that cannot be said.

        Args:
            kind: of the query: sketch, photo, or text of words that the model knows; None: of several parts.
            filter: of the search: one that lets some items pass only cannot be judged.
        """
        return None

    @abstractmethod
    def search_vectors(
        self, vectors: np.ndarray, k: int = 10, filter: Filter | Sequence[Filter | None] | None = None
    ) -> list[list[Match]]:
        """The items of largest cosine similarity with each vector: score descending, then id ascending."""


def checked(
    vectors: np.ndarray,
    dim: int,
    k: int,
    filter: Filter | Sequence[Filter | None] | None,
    most: int | None = None,
) -> tuple[np.ndarray, Sequence[Filter | None]]:
    """What a search is asked, in one form.

    Args:
        vectors: ``[Q, D]``, of any length.
        dim: D.
        k: items a query.
        filter: one for all queries or one for each.
        most: the largest k that can be answered.

    Returns:
        The vectors as contiguous float32 ``[Q, D]``, and a filter for each of them.

    Raises:
        UserError: a shape does not match, a number is not finite, or k is out of range.
    """
    queries = np.ascontiguousarray(vectors, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise UserError(f"vectors must be [Q, {dim}], got {list(queries.shape)}")
    if not np.isfinite(queries).all():
        raise UserError("vectors must be finite")
    if k < 1 or most is not None and k > most:
        allowed = "at least 1" if most is None else f"between 1 and {most}"
        raise UserError(f"k must be {allowed}, got {k}")
    filters = [filter] * len(queries) if filter is None or isinstance(filter, Filter) else filter
    if len(filters) != len(queries):
        raise UserError(f"{len(filters)} filters for {len(queries)} queries: give one, or one for each")
    return queries, filters


def reading(encoder: "Encoder", modality: str, decoding: int) -> tuple[int, int]:
    """The arguments ``least`` and ``decoding`` of :func:`splip.images.read` for an encoder."""
    return images.least_side(encoder.image_size, encoder.crop_sketches and modality == "sketch"), decoding


def _encoded(source: Path | bytes | Image.Image | np.ndarray) -> Path | bytes:
    """A PIL picture or an array as the bytes of a file, so that all pictures are read in the same way.

    Raises:
        UserError: the array is no picture.
    """
    if isinstance(source, np.ndarray):
        shape = source.shape
        if source.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))) or 0 in shape:
            raise UserError(
                f"an array as a picture must be uint8 [H, W], [H, W, 3] or [H, W, 4], got {source.dtype} {list(shape)}"
            )
        source = Image.fromarray(source)
    if not isinstance(source, Image.Image):
        return source
    image, file = ImageOps.exif_transpose(source), io.BytesIO()
    lossless = image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
    (image if lossless else image.convert("RGB")).save(file, "PNG", compress_level=0)
    return file.getvalue()
