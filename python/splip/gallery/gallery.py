"""A gallery: embedded pictures in a folder, searched exactly while a writer adds to it.

The folder holds ``gallery.db`` (:mod:`splip.gallery.catalog`: paths, labels, tags, what counts), ``vectors/``
(:mod:`splip.gallery.segments`), ``model.pt`` (a copy of the checkpoint, unless an export folder made the vectors) and
``skipped.txt`` (pictures that the last ``splip index add`` could not read). One process writes at a time, any number
read meanwhile; every search sees one committed state.
"""

import contextlib
import io
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps

from splip import images
from splip.errors import UserError
from splip.gallery import catalog
from splip.gallery.catalog import Catalog, Filter, Item
from splip.gallery.lock import WriterLock
from splip.gallery.scan import Best, Part, Run, answer, choose, cover, hits
from splip.gallery.segments import Pack, Segments, sync_folder
from splip.images import decode

if TYPE_CHECKING:
    from splip.encoders.encoder import Encoder
    from splip.gallery.ingest import Added, Picture
    from splip.gallery.maintenance import Checked, Compacted
from splip.gallery.matches import Key, Match, Matches, Source
from splip.gallery.snapshot import PLANS, SEGMENT_ROWS, TAIL_ROWS, Segment, State

__all__ = ["Filter", "Gallery", "Item", "Match", "Matches"]


class Gallery:
    """Embedded pictures, and the model that embedded them.

    Example::

        from splip.gallery.catalog import Filter
        from splip.gallery.gallery import Gallery

        with Gallery.open("my-gallery") as gallery:
            for match in gallery.search(sketches=["horse.png"], k=10, filter=Filter(labels=("horse",)))[0]:
                print(f"{match.score:.3f}", match.path)

    May be used by several threads. Make one with :meth:`open` or :meth:`create`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        engine: str = "auto",
        device: str = "auto",
        model: Path | None = None,
        write: bool = False,
        encoder: "Encoder | None" = None,
    ) -> None:
        self.folder, self._engine, self._device, self._model = folder, engine, device, model
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._encoder_lock = threading.Lock()
        self._encoder: Encoder | None = None
        self._own_encoder = encoder is None
        self._state = State(-1, (), {}, 0)
        self._plans: OrderedDict[tuple[int, Key], list[Run]] = OrderedDict()
        self._labels: tuple[int, dict[str, int]] | None = None
        self._place: torch.device | None = None
        self._writer = WriterLock(folder) if write else None
        try:
            self.catalog = Catalog(folder / "gallery.db")
            if self.catalog.format < catalog.newest():
                self._migrate()
            with self.catalog.reading() as db:
                self.facts = catalog.facts(db)
            self.dim = int(str(self.facts["dim"]))
            self.segment_rows = int(str(self.facts["segment_rows"]))
            self.files = Segments(folder / "vectors", self.dim)
            if encoder is not None:
                self._encoder = self._same_model(encoder)
            with self.snapshot(ready=False) as (_, state):
                self._seen = state.revision
            if write:
                self.files.sweep({s.number for s in state.segments})
        except BaseException:
            self.close()
            raise

    # ---- making, opening, closing ----

    @classmethod
    def create(
        cls,
        folder: Path | str,
        model: Path | str,
        *,
        engine: str = "auto",
        device: str = "auto",
        encoder: "Encoder | None" = None,
        segment_rows: int = SEGMENT_ROWS,
    ) -> "Gallery":
        """A new gallery without pictures, open for writing.

        Args:
            folder: to make; may exist if it is empty.
            model: a checkpoint, which is copied into the gallery, or an export folder, which is not.
            engine: what encodes, see :class:`splip.encoders.encoder.Encoder`.
            device: cpu, cuda, ...; auto takes a GPU if there is one.
            encoder: of this model, if it is loaded already.
            segment_rows: vectors a file.

        Raises:
            UserError: the folder exists and is not empty, or the model cannot be loaded.
        """
        folder, model = Path(folder), Path(model)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder}: exists already; a new gallery needs a folder of its own")
        if encoder is None:
            from splip.encoders.encoder import Encoder

            encoder = Encoder.load(model, engine, device=device)
        facts: dict[str, object] = {
            "dim": encoder.embed_dim,
            "segment_rows": segment_rows,
            "identity": encoder.identity,
            "model": encoder.name,
            "source": None if model.is_file() else os.fsencode(model.absolute()),
            "decoding": decode.DECODING,
            "created": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            made = Path(temporary) / "gallery"
            (made / "vectors").mkdir(parents=True)
            if model.is_file():
                with open(model, "rb") as source, open(made / "model.pt", "wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
                    copy.flush()
                    os.fsync(copy.fileno())
            Catalog.create(made / "gallery.db", facts)
            sync_folder(made)
            try:
                os.rename(made, folder)
            except OSError as error:
                raise UserError(f"cannot make the gallery {folder}: {error.strerror}") from None
        sync_folder(folder.parent)
        return cls(folder, engine=engine, device=device, write=True, encoder=encoder)

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        engine: str = "auto",
        device: str = "auto",
        model: Path | str | None = None,
        write: bool = False,
        encoder: "Encoder | None" = None,
    ) -> "Gallery":
        """Open a gallery. The model is loaded when it is first needed.

        Args:
            folder: of the gallery.
            engine: what encodes queries and pictures, see :class:`splip.encoders.encoder.Encoder`.
            device: of the encoder and the search: cpu, cuda, ...; auto takes a GPU if there is one.
            model: a checkpoint or an export folder to use in place of the gallery's own; must be the same model.
            write: to add and remove; only one process can.
            encoder: of the same model, if it is loaded already.

        Raises:
            UserError: not a gallery, damaged, of another version or model, or being written by another process.
        """
        folder = Path(folder)
        if not (folder / "gallery.db").is_file():
            if (folder / "gallery.json").is_file():
                again = f"splip index add FOLDER --gallery {folder}-new --model {folder / 'model.pt'}"
                raise UserError(f"{folder}: a gallery of an earlier version; make it again: {again}")
            raise UserError(f"{folder}: not a gallery (no gallery.db); `splip index add` makes one")
        return cls(
            folder,
            engine=engine,
            device=device,
            model=None if model is None else Path(model),
            write=write,
            encoder=encoder,
        )

    def _migrate(self) -> None:
        own = WriterLock(self.folder) if self._writer is None else None
        try:
            self.catalog.migrate()
        finally:
            if own is not None:
                own.release()

    def close(self) -> None:
        """Release files, the lock and the database. The encoder goes too, unless it was given."""
        if hasattr(self, "catalog"):
            self.catalog.close()
        if self._writer is not None:
            self._writer.release()
            self._writer = None
        if self._own_encoder and self._encoder is not None:
            self._encoder.close()
        self._encoder = None
        self._plans.clear()
        self._state = State(-1, (), {}, 0)

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the model ----

    @property
    def model(self) -> str:
        """The model's name, for people."""
        return str(self.facts["model"])

    @property
    def identity(self) -> str:
        """The model's sha256."""
        return str(self.facts["identity"])

    @property
    def encoder(self) -> "Encoder":
        """The model, loaded on first use.

        Raises:
            UserError: it is gone, cannot be loaded, or is another one than made the gallery.
        """
        with self._encoder_lock:
            if self._encoder is None:
                from splip.encoders.encoder import Encoder

                source = self._model_source()
                self._encoder = self._same_model(Encoder.load(source, self._engine, device=self._device))
            return self._encoder

    @property
    def decoding(self) -> int:
        """How its pictures were decoded, see :data:`splip.images.DECODING`: those that come later are, too."""
        return int(str(self.facts.get("decoding", 1)))  # galleries of before note nothing

    def reading(self, modality: str) -> tuple[int, int]:
        """The arguments ``least`` and ``decoding`` of :func:`splip.images.read` for the pictures of this gallery."""
        return reading(self.encoder, modality, self.decoding)

    def _model_source(self) -> Path:
        """Where the model is: the checkpoint or export folder.

        Raises:
            UserError: it is gone.
        """
        if self._model is not None:
            return self._model
        source = self.facts["source"]
        path = self.folder / "model.pt" if source is None else Path(os.fsdecode(bytes(source)))  # type: ignore[call-overload]
        if not path.exists():
            raise UserError(
                f"{path}: the model of {self.folder} ({self.model}) is gone; name another place with --model"
            )
        return path

    def _same_model(self, encoder: "Encoder") -> "Encoder":
        if encoder.identity != self.identity:
            theirs = f"{encoder.name} ({encoder.identity[:12]})"
            raise UserError(
                f"{self.folder} was made with {self.model} ({self.identity[:12]}), not with {theirs}:"
                " vectors of two models cannot be compared"
            )
        if encoder.embed_dim != self.dim:
            raise UserError(f"{self.folder}: vectors of width {self.dim}, model of {encoder.embed_dim}")
        return encoder

    # ---- what it holds ----

    def __len__(self) -> int:
        """Items, as of the last search or refresh."""
        return self._state.live

    @property
    def revision(self) -> int:
        """Grows with every commit; as of the last search or refresh."""
        return self._state.revision

    def labels(self) -> dict[str, int]:
        """Items of each label, by name; those without one are not counted."""
        with self.catalog.reading() as db:
            revision = catalog.revision(db)
            if self._labels is None or self._labels[0] != revision:
                rows = db.execute("SELECT label, count(*) FROM items WHERE label IS NOT NULL GROUP BY label")
                self._labels = revision, dict(rows)
            return dict(self._labels[1])

    def item(self, id: int) -> Item:
        """An item.

        Raises:
            KeyError: no such item (any more).
        """
        with self.catalog.reading() as db:
            found = catalog.items(db, "id", [id]) if -(2**63) <= id < 2**63 else []
        if not found:
            raise KeyError(id)
        return found[0]

    def find(self, path: Path | str) -> Item | None:
        """The item of a file, if there is one."""
        with self.catalog.reading() as db:
            found = catalog.items(db, "path", [os.fsencode(os.path.abspath(path))])
        return found[0] if found else None

    def items(self, filter: Filter | None = None) -> Iterator[Item]:
        """All items that pass a filter, by id; a consistent list however long it is read."""
        with self.catalog.reading() as db:
            yield from catalog.chosen(db, filter)

    def vector(self, id: int) -> np.ndarray:
        """The vector of an item, float32 ``[D]``, e.g. to search for more like it.

        Raises:
            KeyError: no such item (any more).
        """
        with self.snapshot() as (db, state):
            found = catalog.items(db, "id", [id]) if -(2**63) <= id < 2**63 else []
            if not found:
                raise KeyError(id)
            segment, row = found[0].segment, found[0].row
            part = next(p for p in state.parts if p.segment == segment and p.first <= row < p.stop)
            rows = part.rows if isinstance(part.rows, torch.Tensor) else part.rows.rows[:, : part.rows.shape[1]]
            return rows[row - part.first].cpu().numpy().copy()

    def refresh(self) -> bool:
        """Take in what a writer has committed since; True if anything changed since the last call.

        Searches do so by themselves; this makes the next one quick, and says whether there is news.
        """
        with self.snapshot(ready=self._state.ready) as (_, state):
            changed, self._seen = state.revision != self._seen, state.revision
        return changed

    # ---- one committed state ----

    @contextlib.contextmanager
    def snapshot(self, ready: bool = True) -> Iterator[tuple[sqlite3.Connection, State]]:
        """A transaction that reads, and the state of its revision; ``ready``: to be searched."""
        failed = None
        while True:
            with self.catalog.reading() as db:
                revision = catalog.revision(db)
                try:
                    state = self._take_in(db, revision, ready)
                except (UserError, FileNotFoundError) as error:
                    # Its files may have gone with a compaction that was committed after this transaction began.
                    if failed == revision:
                        raise UserError(f"{self.folder}: {error}") if isinstance(error, OSError) else error from None
                    failed = revision
                    continue
                if state is not None:
                    if ready:
                        self._check_mapped(state)
                    yield db, state
                    return

    def _check_mapped(self, state: State) -> None:
        """Raises Unavailable: a file that a search would read was cut off since it was mapped."""
        packs = {part.segment: part.bytes for part in state.parts if part.stored}
        for segment in state.segments:
            self.files.check_mapped(segment.number, segment.count, packs.get(segment.number, 0))

    def _take_in(self, db: sqlite3.Connection, revision: int, ready: bool) -> State | None:
        """The state of a revision; None if another thread has a newer one already."""
        state = self._state
        if state.revision == revision and (state.ready or not ready):
            return state
        with self._lock:
            state = self._state
            if state.revision > revision:
                return None
            if state.revision < revision:
                state = self._load(db, revision, state)
            if ready and not state.ready:
                state = self._make_ready(db, state)
            self._state = state
            return state

    def _load(self, db: sqlite3.Connection, revision: int, before: State) -> State:
        segments = tuple(Segment(*row) for row in db.execute("SELECT number, count, crc FROM segments ORDER BY number"))
        alive: dict[int, np.ndarray] = {}
        for segment in segments:
            self.files.check_size(segment.number, segment.count)
            old = before.alive.get(segment.number)
            if old is not None:
                alive[segment.number] = np.concatenate([old, np.ones(segment.count - len(old), dtype=bool)])
        rows = db.execute("SELECT segment, row FROM deleted WHERE revision > ?", (before.revision,))
        deleted = np.fromiter(rows, dtype=[("segment", "i8"), ("row", "i8")])
        for segment in segments:
            gone = deleted["row"][deleted["segment"] == segment.number]
            if len(gone):
                alive.setdefault(segment.number, np.ones(segment.count, dtype=bool))[gone] = False
        live = sum(s.count for s in segments) - sum(int((~mask).sum()) for mask in alive.values())
        return State(revision, segments, alive, live, before.parts)

    def _make_ready(self, db: sqlite3.Connection, state: State) -> State:
        old: dict[int, list[Part]] = {}
        for part in state.parts:
            old.setdefault(part.segment, []).append(part)
        device = self._search_device(state)
        parts: list[Part] = []
        for segment in state.segments:
            if segment.count:
                parts += self._parts(db, segment, old.get(segment.number, []), device)
        return replace(state, parts=tuple(parts), ready=True)

    def _parts(self, db: sqlite3.Connection, segment: Segment, old: list[Part], device: torch.device) -> list[Part]:
        """Parts that cover a segment: those it has, its pack file, and new ones for the rest."""
        pack = None
        if device.type == "cpu" and not (len(old) == 1 and old[0].stored and old[0].stop == segment.count):
            pack = self._pack(db, segment.number)
        return cover(self.files, segment.number, 0, segment.count, old, pack, device)

    def _pack(self, db: sqlite3.Connection, number: int) -> Pack | None:
        """The pack file of a segment, if it was made of rows as they were committed."""
        pack = self.files.open_pack(number)
        if pack is None:
            return None
        statement = "SELECT crc FROM blocks WHERE segment = ? AND stop = ?"
        row = db.execute(statement, (number, pack.count)).fetchone()
        return pack if row is not None and row[0] == pack.crc else None

    def _search_device(self, state: State) -> torch.device:
        """Where vectors are searched: on a GPU that was asked for, or on any if they fit comfortably."""
        if self._place is None:
            if self._device != "auto":
                try:
                    self._place = torch.device(self._device)
                except RuntimeError as error:
                    raise UserError(f"no device {self._device}: {str(error).splitlines()[0]}") from None
            elif torch.cuda.is_available():
                needed = sum(s.count for s in state.segments) * self.dim * 4
                self._place = torch.device("cuda" if 3 * needed < torch.cuda.mem_get_info()[0] else "cpu")
            else:
                self._place = torch.device("cpu")
        return self._place

    # ---- searching ----

    def search(
        self,
        sketches: Sequence[Source] = (),
        photos: Sequence[Source] = (),
        texts: Sequence[str] = (),
        vectors: np.ndarray | None = None,
        k: int = 10,
        filter: Filter | Sequence[Filter | None] | None = None,
        text_weight: float = 0.5,
    ) -> list[list[Match]]:
        """The best pictures of each query, best first; fewer than ``k`` if no more pass the filter.

        Args:
            sketches: drawings, dark on white or on transparency: files, bytes of files, or PIL pictures.
            photos: pictures to find similar ones of.
            texts: what is to be seen, e.g. ``red car``: the model puts its prompt before it. With sketches or photos:
                one for all or one for each, added to them.
            vectors: float32 ``[Q, D]`` instead of the above.
            k: pictures a query.
            filter: one for all queries or one for each; see :class:`Filter`.
            text_weight: 0: picture only, 1: text only; see :meth:`embed`.

        Raises:
            UserError: a picture cannot be read, nothing is drawn on a sketch, the model has no text tower, ...
        """
        if vectors is None:
            vectors = self.embed(sketches, photos, texts, text_weight)
        elif len(sketches) or len(photos) or len(texts):
            raise UserError("vectors cannot be combined with sketches, photos or texts")
        return self.search_vectors(vectors, k, filter)

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
            if isinstance(value, (str, bytes, Path, Image.Image)):
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
        mixed = (1 - text_weight) * np.concatenate(found) + text_weight * words
        length = np.linalg.norm(mixed, axis=1, keepdims=True)
        return (mixed / np.maximum(length, 1e-12)).astype(np.float32)

    def prepare(self, source: Source, modality: str) -> np.ndarray:
        """A picture as the encoder takes it, uint8 ``[S, S, 3]``.

        Raises:
            UserError: it cannot be read, or nothing is drawn on a sketch.
        """
        name: object = "the picture" if isinstance(source, (bytes, Image.Image)) else source
        image = images.read(
            Path(source) if isinstance(source, str) else _encoded(source), name, *self.reading(modality)
        )
        if modality == "sketch":
            extremes = image.getextrema()
            if all(low == high for low, high in extremes):  # type: ignore[misc]
                raise UserError(f"{name}: nothing is drawn on it")
        return self.encoder.prepare(image, modality)

    def search_vectors(
        self, vectors: np.ndarray, k: int = 10, filter: Filter | Sequence[Filter | None] | None = None
    ) -> list[list[Match]]:
        """The items of largest cosine similarity with each vector: score descending, then id ascending.

        Args:
            vectors: float32 ``[Q, D]``, of any length.
            k: items a query; fewer if no more pass the filter.
            filter: one for all queries or one for each.

        Raises:
            UserError: a shape does not match, a number is not finite, or k < 1.
        """
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise UserError(f"vectors must be [Q, {self.dim}], got {list(queries.shape)}")
        if not np.isfinite(queries).all():
            raise UserError("vectors must be finite")
        if k < 1:
            raise UserError(f"k must be at least 1, got {k}")
        if filter is None or isinstance(filter, Filter):
            filter = [filter] * len(queries)
        if len(filter) != len(queries):
            raise UserError(f"{len(filter)} filters for {len(queries)} queries: give one, or one for each")
        groups: dict[Key, list[int]] = {}
        for number, one in enumerate(filter):
            groups.setdefault(one.key() if one else (), []).append(number)
        found: list[list[tuple[float, tuple[int, int]]]] = [[] for _ in queries]
        with self.snapshot() as (db, state):
            chosen = {key: filter[numbers[0]] for key, numbers in groups.items()}
            answers, whole = self._scan(db, state, chosen, {key: queries[rows] for key, rows in groups.items()}, k)
            for key, numbers in groups.items():
                for number, places in zip(numbers, hits(answers[key]), strict=True):
                    found[number] = places
            wanted: dict[int, set[int]] = {}
            for places in found:
                for _, (segment, row) in places:
                    wanted.setdefault(segment, set()).add(row)
            items = {
                (item.segment, item.row): item
                for segment, rows in wanted.items()
                for item in catalog.items_at(db, segment, sorted(rows))
            }
        matches: list[list[Match]] = []
        for places in found:
            ranked = [(score, items[place]) for score, place in places]
            matches.append(Matches((Match(i.id, s, i.path, i.label, dict(i.tags)) for s, i in ranked), not whole))
        return matches

    def _scan(
        self,
        db: sqlite3.Connection,
        state: State,
        filters: Mapping[Key, Filter | None],
        queries: Mapping[Key, np.ndarray],
        k: int,
    ) -> tuple[dict[Key, Best], bool]:
        """The best rows for the queries of each filter, and whether all of the gallery was searched."""
        return {key: answer(self._plan(db, state, key, filters[key]), some, k) for key, some in queries.items()}, True

    def _plan(self, db: sqlite3.Connection, state: State, key: Key, filter: Filter | None) -> list[Run]:
        """What to scan for a filter, remembered for as long as nothing changes."""
        name = (state.revision, key)
        with self._lock:
            if name in self._plans:
                self._plans.move_to_end(name)
                return self._plans[name]
        masks = self._masks(db, state, filter)
        plan = [run for part in state.parts if (run := choose(part, masks.get(part.segment))) is not None]
        with self._lock:
            for old in [n for n in self._plans if n[0] != state.revision]:
                del self._plans[old]
            self._plans[name] = plan
            while len(self._plans) > PLANS:
                self._plans.popitem(last=False)
        return plan

    def _masks(self, db: sqlite3.Connection, state: State, filter: Filter | None) -> dict[int, np.ndarray]:
        """Rows that may be results, bool ``[count]``, of segments where not all may."""
        if not filter:
            return state.alive
        masks = {s.number: np.zeros(s.count, dtype=bool) for s in state.segments}
        found = np.fromiter(catalog.places(db, filter), dtype=[("segment", "i8"), ("row", "i8")])
        for number, mask in masks.items():
            mask[found["row"][found["segment"] == number]] = True
        return masks

    # ---- writing ----

    @contextlib.contextmanager
    def _write(self) -> Iterator[None]:
        if self._writer is None:
            raise UserError(f"{self.folder}: is open for reading only; open it with write=True")
        with self._writing:
            yield

    def add(
        self,
        pictures: "Iterable[Picture | Path | str]",
        *,
        label: str | None = None,
        tags: Mapping[str, str] | None = None,
        batch_size: int = 64,
        threads: int | None = None,
        notify: "Callable[[Added], None] | None" = None,
        stop: Callable[[], bool] | None = None,
    ) -> "Added":
        """Embed pictures and keep them: see :func:`splip.gallery.ingest.add`."""
        from splip.gallery import ingest

        with self._write():
            return ingest.add(
                self, pictures, label=label, tags=tags or {}, batch_size=batch_size, threads=threads, notify=notify, stop=stop
            )  # fmt: skip

    def remove(self, items: Iterable[int | Path | str] = (), filter: Filter | None = None) -> list[Item]:
        """Take out items by id or path, and those that pass a filter, all at once; the files stay.

        Returns:
            What was taken out; ids and paths that are not in the gallery are passed over.
        """
        given = list(items)
        paths = [os.fsencode(os.path.abspath(i)) for i in given if not isinstance(i, int)]
        with self._write(), self.catalog.writing() as db:
            found = catalog.items(db, "id", [i for i in given if isinstance(i, int)]) + catalog.items(db, "path", paths)
            if filter:
                found += catalog.chosen(db, filter)
            gone = {item.id: item for item in found}
            catalog.drop(db, gone.values())
        return [gone[id] for id in sorted(gone)]

    def compact(self) -> "Compacted":
        """Give back the room of removed items: see :func:`splip.gallery.maintenance.compact`."""
        from splip.gallery import maintenance

        with self._write():
            return maintenance.compact(self)

    def check(self) -> "Checked":
        """Compare everything with its checksums: see :func:`splip.gallery.maintenance.check`."""
        from splip.gallery import maintenance

        return maintenance.check(self)

    def export(self, out: Path | str, form: str = "csv", filter: Filter | None = None) -> int:
        """Write vectors and what is known of them to a folder: see :func:`splip.gallery.maintenance.export`."""
        from splip.gallery import maintenance

        return maintenance.export(self, Path(out), form, filter)

    def append(self, db: sqlite3.Connection, rows: np.ndarray) -> list[tuple[int, int]]:
        """Write vectors behind the others, within a transaction that makes them count.

        Args:
            db: a connection that is writing.
            rows: float32 ``[n, D]``.

        Returns:
            Segment and row of each.
        """
        places: list[tuple[int, int]] = []
        while len(places) < len(rows):
            last = db.execute("SELECT number, count, crc FROM segments ORDER BY number DESC LIMIT 1").fetchone()
            if last is None or last[1] >= self.segment_rows:
                number = db.execute("INSERT INTO segments (count, crc) VALUES (0, 0)").lastrowid
                last = (number, 0, 0)
            number, count, crc = last
            some = rows[len(places) : len(places) + self.segment_rows - count]
            crc, stop = self.files.append(number, count, some, crc), count + len(some)
            db.execute("UPDATE segments SET count = ?, crc = ? WHERE number = ?", (stop, crc, number))
            db.execute("INSERT INTO blocks VALUES (?, ?, ?)", (number, stop, crc))
            places += [(number, row) for row in range(count, stop)]
        return places

    def write_packs(self, least: int | None = None) -> None:
        """Write the packs that are missing: of full segments, and of others with many rows that no pack holds.

        For the writer only; a part of adding and compacting.

        Args:
            least: how many rows are many; None: more than a reader should pack when it opens.
        """
        least = TAIL_ROWS if least is None else least
        with self.catalog.reading() as db:
            for number, count, crc in db.execute("SELECT number, count, crc FROM segments ORDER BY number").fetchall():
                pack = self._pack(db, number)
                packed = 0 if pack is None else pack.count
                if packed < count and (count >= self.segment_rows or count - packed >= least):
                    self.files.write_pack(number, count, crc)


def reading(encoder: "Encoder", modality: str, decoding: int) -> tuple[int, int]:
    """The arguments ``least`` and ``decoding`` of :func:`splip.images.read` for an encoder."""
    return images.least_side(encoder.image_size, encoder.crop_sketches and modality == "sketch"), decoding


def _encoded(source: Path | bytes | Image.Image) -> Path | bytes:
    """A PIL picture as the bytes of a file, so that all pictures are read in the same way."""
    if not isinstance(source, Image.Image):
        return source
    image, file = ImageOps.exif_transpose(source), io.BytesIO()
    lossless = image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
    (image if lossless else image.convert("RGB")).save(file, "PNG", compress_level=0)
    return file.getvalue()
