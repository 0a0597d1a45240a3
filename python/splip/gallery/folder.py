"""A gallery's folder, open: its database, its facts, its files of vectors.

It holds ``gallery.db`` (:mod:`splip.gallery.catalog`: paths, labels, tags, what counts), ``vectors/``
(:mod:`splip.gallery.segments`), ``model.safetensors`` or, of earlier
checkpoints, ``model.pt`` (a copy of the checkpoint, unless an export folder made the vectors) and
``skipped.txt`` (pictures that the last ``splip index add`` could not read).
"""

import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from splip import disk
from splip.errors import GalleryError, UserError
from splip.gallery import browse, catalog, doubt
from splip.gallery.browse import Browsed, Copies, Timeline
from splip.gallery.catalog import Catalog, Filter, Item
from splip.gallery.doubt import Doubt
from splip.gallery.lock import WriterLock
from splip.gallery.segments import Segments, sync_folder
from splip.gallery.thumbnails import Store
from splip.images import decode
from splip.models import hub
from splip.models.names import Model

if TYPE_CHECKING:
    from splip.encoders.encoder import Encoder


T = TypeVar("T")
Key = tuple[object, ...]
COUNTS = 64  # questions whose answers are remembered


class GalleryFolder:
    """An open folder, and what its database says about items.

    Args:
        path: of the folder.
        write: take the right to write, which one process can have.

    Raises:
        UserError: not a gallery, damaged, of another version, or being written by another process.
    """

    def __init__(self, path: Path, write: bool = False) -> None:
        need_gallery(path)
        self.path = path
        self.lock = WriterLock(path) if write else None
        self._labels: tuple[int, dict[str, int]] | None = None
        self._doubt: tuple[int, Doubt | None] | None = None
        self._counts: dict[Key, tuple[int, Any]] = {}  # revision and answer
        self._counts_lock = threading.Lock()
        try:
            self.catalog = Catalog(path / "gallery.db")
            if self.catalog.format < catalog.newest():
                self._migrate()
            with self.catalog.reading() as db:
                self.facts: dict[str, Any] = catalog.facts(db)
            self.segment_rows = int(self.facts["segment_rows"])
            self.files = Segments(path / "vectors", int(self.facts["dim"]))
            self.thumbnails = Store(path)
        except BaseException:
            self.close()
            raise

    def _migrate(self) -> None:
        """Bring the database to this version's format, which earlier versions cannot read: for who writes alone.

        Who only reads does without, and brings up to date what cannot be read as it is.
        """
        if self.lock is not None:
            self.catalog.migrate()
        elif self.catalog.format not in catalog.OLD:
            own = WriterLock(self.path)
            try:
                self.catalog.migrate()
            finally:
                own.release()

    def close(self) -> None:
        """Release the database and the right to write."""
        if hasattr(self, "catalog"):
            self.catalog.close()
        if hasattr(self, "thumbnails"):
            self.thumbnails.close()
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def model_source(self, given: Path | str | None = None) -> Path | str:
        """Where the model is: the place that is given, else the folder's own checkpoint, or the export folder.

        Raises:
            UserError: it is gone.
        """
        if given is not None:
            return given
        source = self.facts["source"]
        path = own_model(self.path) if source is None else Path(os.fsdecode(bytes(source)))
        if not path.exists():
            model = self.facts["model"]
            raise GalleryError(f"{path}: the model of {self.path} ({model}) is gone; name another place with --model")
        return path

    # ---- what it holds ----

    def labels(self) -> dict[str, int]:
        """Items of each label, by name; those without one are not counted."""
        with self.catalog.reading() as db:
            revision = catalog.revision(db)
            if self._labels is None or self._labels[0] != revision:
                rows = db.execute("SELECT label, count(*) FROM items WHERE label IS NOT NULL GROUP BY label")
                self._labels = revision, dict(rows)
            return dict(self._labels[1])

    def doubt(self) -> Doubt | None:
        """What is known of the scores of what does not fit; None: nothing."""
        with self.catalog.reading() as db:
            revision = catalog.revision(db)
            if self._doubt is None or self._doubt[0] != revision:
                self._doubt = revision, doubt.read(catalog.facts(db))
            return self._doubt[1]

    def item(self, id: int) -> Item:
        """An item.

        Raises:
            KeyError: no such item (any more).
        """
        with self.catalog.reading() as db:
            return catalog.item(db, id)

    def find(self, path: Path | str) -> Item | None:
        """The item of a file, if there is one."""
        with self.catalog.reading() as db:
            found = catalog.items(db, "path", [os.fsencode(os.path.abspath(path))])
        return found[0] if found else None

    def browse(self, sort: str, limit: int, cursor: str | None, filter: Filter | None, stack: bool) -> Browsed:
        """A page of items: see :func:`splip.gallery.browse.page`."""
        with self.catalog.reading() as db:
            items, following = browse.page(db, sort, limit, cursor, filter, stack)
            count = self._remembered(
                db, ("total", filter.key() if filter else None, stack), browse.total, filter, stack
            )
            return Browsed(items, following, count)

    def timeline(self, filter: Filter | None, stack: bool) -> Timeline:
        """Items by month: see :func:`splip.gallery.browse.timeline`."""
        with self.catalog.reading() as db:
            return self._remembered(
                db, ("timeline", filter.key() if filter else None, stack), browse.timeline, filter, stack
            )

    def _remembered(self, db: sqlite3.Connection, key: Key, ask: Callable[..., T], *how: object) -> T:
        """What was counted before, if nothing has changed since: that takes a look at every item."""
        now = catalog.revision(db)
        with self._counts_lock:
            kept = self._counts.get(key)
        if kept is None or kept[0] != now:
            kept = now, ask(db, *how)
            with self._counts_lock:
                self._counts[key] = kept
                while len(self._counts) > COUNTS:
                    self._counts.pop(next(iter(self._counts)))
        found: T = kept[1]
        return found

    def copies(self, hashes: Iterable[bytes], filter: Filter | None = None) -> dict[bytes, Copies]:
        """The items of some contents that pass a filter: see :func:`splip.gallery.browse.copies`."""
        with self.catalog.reading() as db:
            return browse.copies(db, hashes, filter)

    def items(self, filter: Filter | None = None) -> Iterator[Item]:
        """All items that pass a filter, by id; a consistent list however long it is read."""
        with self.catalog.reading() as db:
            yield from catalog.chosen(db, filter)


def need_gallery(path: Path) -> None:
    """Raises UserError: there is no gallery of this version in a folder."""
    if not (path / "gallery.db").is_file():
        if str(path).startswith(hub.PREFIX):
            name = str(path).removeprefix(hub.PREFIX)
            raise UserError(f"{path}: `splip pull-from-hub {name} --out FOLDER` brings it here; then name that folder")
        if (path / "gallery.json").is_file():
            again = f"splip index add FOLDER --gallery {path}-new --model {own_model(path)}"
            raise UserError(f"{path}: a gallery of an earlier version; make it again: {again}")
        raise UserError(f"{path}: not a gallery (no gallery.db); `splip index add` makes one")


def need_free(path: Path) -> None:
    """Raises UserError: a new gallery cannot have this folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: exists already; a new gallery needs a folder of its own")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"cannot make the gallery {path}: {above} cannot be written")


def own_model(path: Path) -> Path:
    """The copy of the checkpoint in a gallery's folder; galleries of before have torch's."""
    new, old = path / "model.safetensors", path / "model.pt"
    return old if old.exists() and not new.exists() else new


def make(folder: Path, model: Model, encoder: "Encoder", segment_rows: int) -> None:
    """Make the folder of a gallery without pictures, at once and whole.

    Args:
        folder: to make; may exist if it is empty.
        model: a checkpoint is copied into the gallery, an export folder is not.
        encoder: of this model.
        segment_rows: vectors a file.

    Raises:
        UserError: it cannot have its name.
    """
    facts: dict[str, object] = {
        "dim": encoder.embed_dim,
        "segment_rows": segment_rows,
        "identity": encoder.identity,
        "model": encoder.name,
        "source": os.fsencode(model.path.absolute()) if model.path and model.kind == "export" else None,
        "named": model.name,
        "decoding": decode.DECODING,
        "created": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made = Path(temporary) / "gallery"
        (made / "vectors").mkdir(parents=True)
        if model.path is None:
            encoder.save_model(made / "model.safetensors")
        elif model.kind == "checkpoint":
            name = "model.safetensors" if model.path.suffix == ".safetensors" else "model.pt"
            with open(model.path, "rb") as source, open(made / name, "wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
        if facts["source"] is None:
            facts["model_sha256"] = disk.file_hash(own_model(made))
        Catalog.create(made / "gallery.db", facts)
        sync_folder(made)
        try:
            os.rename(made, folder)
        except OSError as error:
            raise UserError(f"cannot make the gallery {folder}: {error.strerror}") from None
    sync_folder(folder.parent)
