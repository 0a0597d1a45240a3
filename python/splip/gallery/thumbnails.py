"""Small versions of a gallery's pictures, made from what indexing decodes anyway: ``thumbnails.db`` in its folder.

By content: copies share one, and one never belongs to another picture. A database of its own, so that its damage is not
the gallery's: what cannot be read is as if it were not there, and a damaged file is begun anew. Nothing waits for it.
"""

import contextlib
import io
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from splip.images.header import Header

SIDE = 256  # of the longer side
QUALITY = 88
LIMIT = 4_000_000_000  # bytes of a store; what comes later is made when it is asked for
APPLICATION = 0x73706C74  # "splt"
WAIT_SECONDS = 0.2
NAME = "thumbnails.db"


def make(image: Image.Image) -> bytes | None:
    """A JPEG of a picture that :func:`splip.images.read` decoded; None: it was shrunk too far."""
    about: Header = image.info["header"]
    if max(image.size) < min(SIDE, max(about.width, about.height)):
        return None
    _, box = image.info.get("extent", (None, (0, 0, *image.size)))  # of what was shrunk, see images.read
    width, height = box[2] - box[0], box[3] - box[1]
    scale = min(1.0, SIDE / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    out = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS, box, reducing_gap=2.0).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def shrink(image: Image.Image, least: int) -> Image.Image:
    """A picture that was read large enough for a thumbnail, as if it had been read for ``least`` pixels of its shorter side."""
    factor = min(image.size) // least
    if factor < 2:
        return image
    _, box = image.info.get("extent", (None, (0, 0, *image.size)))
    small = image.reduce(factor)
    # The last column and row may stand for less.
    small.info["extent"] = small.size, tuple(edge / factor for edge in box)
    return small


class Store:
    """The thumbnails of a gallery. May be used by several threads.

    Args:
        folder: of the gallery.
        limit: bytes of all thumbnails together.
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.path, self.limit = folder / NAME, limit
        self._db: sqlite3.Connection | None = None
        self._reads = True  # and no more
        self._lock = threading.Lock()

    @property
    def exists(self) -> bool:
        return self.path.exists()

    def get(self, hash: bytes) -> bytes | None:
        """The thumbnail of a content, if it is there."""
        with contextlib.suppress(sqlite3.Error), self._lock:
            if not self.exists:
                return None
            row = self._open("ro").execute("SELECT data FROM thumbnails WHERE hash = ?", (hash,)).fetchone()
            if (
                row is not None
                and isinstance(row[0], bytes)
                and row[0][:2] == b"\xff\xd8"
                and row[0][-2:] == b"\xff\xd9"
            ):
                return row[0]
        return None

    def put(self, found: Iterable[tuple[bytes, bytes]]) -> bool:
        """Keep thumbnails by their contents, all or none; False: they could not be kept. For the gallery's writer."""
        with self._lock:
            for _ in range(2):
                try:
                    db = self._open("rwc")
                    with self._whole(db):
                        ((size,),) = db.execute("SELECT bytes FROM size")
                        for hash, data in found:
                            if size + len(data) > self.limit:
                                break
                            if db.execute("INSERT OR IGNORE INTO thumbnails VALUES (?, ?)", (hash, data)).rowcount:
                                size += len(data)
                        db.execute("UPDATE size SET bytes = ?", (size,))
                    return True
                except sqlite3.DatabaseError as error:
                    self._close()
                    if isinstance(error, sqlite3.OperationalError) and "no such table" not in str(error):
                        return False  # locked, or no room
                    self.path.unlink(missing_ok=True)  # damaged, or another file
        return False

    def sweep(self, catalog: Path) -> int:
        """Remove thumbnails of contents that no item has; returns how many. For the gallery's writer.

        Args:
            catalog: the gallery's database.
        """
        with self._lock:
            if not self.exists:
                return 0
            try:
                db = self._open("rwc")
                db.execute("ATTACH ? AS gallery", (str(catalog),))
                try:
                    with self._whole(db):
                        gone = db.execute(
                            "DELETE FROM thumbnails WHERE hash NOT IN (SELECT hash FROM gallery.items)"
                        ).rowcount
                        db.execute("UPDATE size SET bytes = (SELECT coalesce(sum(length(data)), 0) FROM thumbnails)")
                finally:
                    db.execute("DETACH gallery")
                if gone:
                    db.execute("VACUUM")
                return gone
            except sqlite3.Error:
                self._close()
                return 0

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _open(self, mode: str) -> sqlite3.Connection:
        if self._db is not None and (mode == "ro" or not self._reads):
            return self._db
        self._close()
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        db = sqlite3.connect(uri, uri=True, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            if mode != "ro":
                application = db.execute("PRAGMA application_id").fetchone()[0]
                if application not in (0, APPLICATION):
                    raise sqlite3.DatabaseError("another database")
                db.execute("PRAGMA synchronous = NORMAL")
                if not application:
                    db.executescript(
                        f"BEGIN; PRAGMA application_id = {APPLICATION};"
                        "CREATE TABLE thumbnails (hash BLOB PRIMARY KEY, data BLOB NOT NULL);"
                        "CREATE TABLE size (bytes INTEGER NOT NULL); INSERT INTO size VALUES (0); COMMIT;"
                    )
        except sqlite3.Error:
            db.close()
            raise
        self._db, self._reads = db, mode == "ro"
        return db

    @staticmethod
    @contextlib.contextmanager
    def _whole(db: sqlite3.Connection) -> Iterator[None]:
        """All or nothing."""
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
