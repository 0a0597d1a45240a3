"""A gallery: embedded pictures in a folder of this machine, searched exactly while a writer adds to it.

What the folder holds stands at the top of :mod:`splip.gallery.folder`. One process writes at a time, any number read
meanwhile; every search sees one committed state (:mod:`splip.gallery.snapshot`).
"""

import os
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from splip.gallery import catalog, doubt, ingest, maintenance
from splip.gallery.catalog import Catalog, Filter, Item
from splip.gallery.folder import make, need_free
from splip.gallery.ingest import Added, Picture
from splip.gallery.maintenance import Checked, Compacted
from splip.gallery.matches import Match
from splip.gallery.queries import checked
from splip.gallery.scan import Part, vector
from splip.gallery.segments import Segments
from splip.gallery.snapshot import State
from splip.gallery.stored import StoredGallery
from splip.gallery.thumbnails import Store
from splip.gallery.writer import Writer
from splip.models.names import resolve

if TYPE_CHECKING:
    from splip.encoders.encoder import Encoder

SEGMENT_ROWS = 262_144


class Gallery(StoredGallery):
    """Embedded pictures, and the model that embedded them.

    Example::

        from splip.gallery import Filter, Gallery

        with Gallery.open("my-gallery") as gallery:
            for match in gallery.search("horse.png", k=10, filter=Filter(labels=("horse",))):
                print(f"{match.score:.3f}", match.path)

    May be used by several threads. Make one with :meth:`open` or :meth:`create`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        engine: str = "auto",
        device: str = "auto",
        model: Path | str | None = None,
        write: bool = False,
        encoder: "Encoder | None" = None,
    ) -> None:
        super().__init__(folder, device, engine=engine, device=device, model=model, write=write, encoder=encoder)
        self._writer = Writer(self._files)
        if write:
            try:
                self.files.sweep({segment.number for segment in self._snapshots.state.segments})
            except BaseException:
                self._files.close()
                raise

    def __repr__(self) -> str:
        return f"<Gallery {self.folder}: {len(self):,} pictures, {self.model}>"

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
        dimensions: int | None = None,
        segment_rows: int = SEGMENT_ROWS,
    ) -> "Gallery":
        """A new gallery without pictures, open for writing.

        Args:
            folder: to make; may exist if it is empty.
            model: any name of one, see :mod:`splip.models.names`. A checkpoint is copied into the gallery, of a model
                without training its name and commit; an export folder is not.
            engine: what encodes, see :class:`splip.encoders.encoder.Encoder`.
            device: cpu, cuda, ...; auto takes a GPU if there is one.
            encoder: of this model, if it is loaded already.
            dimensions: components of the vectors, one of the sizes that the model was trained for; None: all, or as
                many as ``encoder`` gives.
            segment_rows: vectors a file.

        Raises:
            UserError: the folder exists and is not empty, the model cannot be loaded, or was not trained for this size.
        """
        folder, found = Path(folder), resolve(model)
        need_free(folder)
        if encoder is None:
            from splip.encoders.encoder import Encoder

            encoder = Encoder.load(found, engine, device=device, dimensions=dimensions)
        elif dimensions is not None:
            encoder = encoder.sized(dimensions)
        make(folder, found, encoder, segment_rows)
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
            model: to use in place of the gallery's own, by any name; must be the same model.
            write: to add and remove; only one process can.
            encoder: of the same model, if it is loaded already.

        Raises:
            UserError: not a gallery, damaged, of another version or model, or being written by another process.
        """
        return cls(Path(folder), engine=engine, device=device, model=model, write=write, encoder=encoder)

    def model_source(self) -> Path | str:
        """Where the model is loaded from: a checkpoint, an export folder, or a name that was given.

        Raises:
            UserError: it is gone.
        """
        return self._source()

    # ---- what it holds ----

    @property
    def catalog(self) -> Catalog:
        """The database: items, and what counts."""
        return self._files.catalog

    @property
    def files(self) -> Segments:
        """The files of vectors."""
        return self._files.files

    @property
    def thumbnails(self) -> Store:
        """Small versions of its pictures, if it keeps them."""
        return self._files.thumbnails

    @property
    def segment_rows(self) -> int:
        """Vectors a file."""
        return self._files.segment_rows

    @property
    def parts(self) -> Sequence[Part]:
        """What the last search scanned."""
        return self._snapshots.state.parts

    def vector(self, id: int) -> np.ndarray:
        """The vector of an item, float32 ``[D]``, e.g. to search for more like it.

        Raises:
            KeyError: no such item (any more).
        """
        with self.snapshot() as (db, state):
            item = catalog.item(db, id)
            part = next(p for p in state.parts if p.segment == item.segment and p.first <= item.row < p.stop)
            return vector(part, item.row)

    # ---- searching ----

    def snapshot(self, ready: bool = True) -> AbstractContextManager[tuple[sqlite3.Connection, State]]:
        """A transaction that reads, and the state of its revision; ``ready``: to be searched.

        Raises:
            UserError: its files are damaged.
        """
        return self._snapshots.take(ready)

    def refresh(self) -> bool:
        """Take in what a writer has committed since; True if anything changed since the last call.

        Searches do so by themselves; this makes the next one quick, and says whether there is news.
        """
        return self._snapshots.refresh()

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
        queries, filters = checked(vectors, self.dim, k, filter)
        return self._snapshots.search(queries, k, filters)

    # ---- writing ----

    def writing(self) -> AbstractContextManager[None]:
        """One change at a time, of all threads.

        Raises:
            UserError: the gallery is open for reading only.
        """
        return self._writer.writing()

    def add(
        self,
        pictures: Iterable[Picture | Path | str],
        *,
        label: str | None = None,
        tags: Mapping[str, str] | None = None,
        batch_size: int = 64,
        threads: int | None = None,
        thumbnails: bool | None = None,
        notify: Callable[[Added], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Added:
        """Embed pictures and keep them: see :func:`splip.gallery.ingest.add`."""
        with self.writing():
            done = ingest.add(
                self, pictures, label=label, tags=tags or {}, batch_size=batch_size, threads=threads, thumbnails=thumbnails,
                notify=notify, stop=stop,
            )  # fmt: skip
            if not done.stopped:
                try:
                    doubt.calibrate(self)
                except Exception as error:  # of many types: a model that is gone, a disk; the pictures are safe
                    warnings.warn(
                        f"{self.folder}: not measured, the next `splip index add` tries again: {error}",
                        RuntimeWarning,
                        stacklevel=2,
                    )
            return done

    def remove(self, items: Iterable[int | Path | str] = (), filter: Filter | None = None) -> list[Item]:
        """Take out items by id or path, and those that pass a filter, all at once; the files stay.

        Returns:
            What was taken out; ids and paths that are not in the gallery are passed over.
        """
        given = list(items)
        paths = [os.fsencode(os.path.abspath(i)) for i in given if not isinstance(i, int)]
        with self.writing(), self.catalog.writing() as db:
            found = catalog.items(db, "id", [i for i in given if isinstance(i, int)]) + catalog.items(db, "path", paths)
            if filter:
                found += catalog.chosen(db, filter)
            gone = {item.id: item for item in found}
            catalog.drop(db, gone.values())
        return [gone[id] for id in sorted(gone)]

    def compact(self) -> Compacted:
        """Give back the room of removed items: see :func:`splip.gallery.maintenance.compact`."""
        with self.writing():
            return maintenance.compact(self)

    def check(self) -> Checked:
        """Compare everything with its checksums: see :func:`splip.gallery.maintenance.check`."""
        return maintenance.check(self)

    def find_missing(self, under: Iterable[Path | str] = ()) -> list[Item]:
        """Look which files are gone, and keep that: see :func:`splip.gallery.maintenance.find_missing`."""
        return maintenance.find_missing(self, under)

    def export(self, out: Path | str, form: str = "csv", filter: Filter | None = None) -> int:
        """Write vectors and what is known of them to a folder: see :func:`splip.gallery.maintenance.export`."""
        return maintenance.export(self, Path(out), form, filter)

    def append(self, db: sqlite3.Connection, rows: np.ndarray) -> list[tuple[int, int]]:
        """Write vectors float32 ``[n, D]`` behind the others: see :meth:`splip.gallery.writer.Writer.append`."""
        return self._writer.append(db, rows)

    def write_packs(self, least: int | None = None) -> None:
        """Write the packs that are missing: see :meth:`splip.gallery.writer.Writer.write_packs`."""
        self._writer.write_packs(least)
