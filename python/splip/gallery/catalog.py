"""The database of a gallery: items, tags, and which vectors count. One SQLite file, ``gallery.db``.

It is in WAL mode: readers see one committed state for as long as their transaction lasts and never hold up the
writer. A commit waits for the disk (``synchronous=FULL``), and vectors are on the disk before the commit that
counts them.
"""

import contextlib
import os
import shutil
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splip.errors import GalleryError, UserError
from splip.gallery.filters import Filter as Filter
from splip.gallery.filters import marks
from splip.gallery.filters import text as text

APPLICATION = 0x73706C70  # "splp", in the header of the file
WAIT_SECONDS = 30.0
MANY = 500  # values in one statement
LEAST_FREE = 1 << 20  # bytes; with fewer, what SQLite calls an I/O error is a full disk

# Each entry brings a database from one format to the next; format 1 was a folder without a database.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    -- Vectors: rows 0 to count of a file, whose crc32 is crc. Numbers are never used again.
    CREATE TABLE segments (number INTEGER PRIMARY KEY AUTOINCREMENT, count INTEGER NOT NULL, crc INTEGER NOT NULL);
    -- What each commit added: crc is that of the segment's rows before stop.
    CREATE TABLE blocks (segment INTEGER, stop INTEGER, crc INTEGER NOT NULL, PRIMARY KEY (segment, stop)) WITHOUT ROWID;
    -- An item's vector never changes, and its place grows with its id; another vector is another item.
    CREATE TABLE items (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        path BLOB NOT NULL UNIQUE,
        label TEXT,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        hash BLOB NOT NULL,
        segment INTEGER NOT NULL,
        row INTEGER NOT NULL
    );
    CREATE UNIQUE INDEX items_place ON items (segment, row);
    CREATE INDEX items_label ON items (label);
    CREATE INDEX items_hash ON items (hash);
    CREATE TABLE tags (item INTEGER, key TEXT, value TEXT NOT NULL, PRIMARY KEY (item, key)) WITHOUT ROWID;
    CREATE INDEX tags_value ON tags (key, value, item);
    -- Rows without an item, until the segments are compacted.
    CREATE TABLE deleted (revision INTEGER, segment INTEGER, row INTEGER, PRIMARY KEY (revision, segment, row))
        WITHOUT ROWID;
    """,
    """
    -- What the header of the file says; looked: which reader of headers wrote it here, 0: none has yet.
    ALTER TABLE items ADD COLUMN taken TEXT;
    ALTER TABLE items ADD COLUMN camera TEXT;
    ALTER TABLE items ADD COLUMN width INTEGER;
    ALTER TABLE items ADD COLUMN height INTEGER;
    ALTER TABLE items ADD COLUMN looked INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE items ADD COLUMN missing INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX items_taken ON items (taken) WHERE taken IS NOT NULL;
    CREATE INDEX items_undated ON items (mtime_ns) WHERE taken IS NULL;
    DROP INDEX items_label;
    CREATE INDEX items_label ON items (label, taken);
    DROP INDEX items_hash;
    CREATE INDEX items_hash ON items (hash, taken);
    CREATE INDEX items_side ON items (min(width, height));
    """,
)
LOOKED = 1  # the reader of headers of this version
# What stands in for the table where a database of an earlier format cannot be brought to this one.
OLD = {
    2: "CREATE TEMP VIEW items AS SELECT id, path, label, size, mtime_ns, hash, segment, row, NULL AS taken, "
    "NULL AS camera, NULL AS width, NULL AS height, 0 AS looked, 0 AS missing FROM main.items"
}


def newest() -> int:
    """The format that this version writes."""
    return 1 + len(MIGRATIONS)


@dataclass
class Item:
    """One picture of a gallery."""

    id: int
    path: Path
    label: str | None
    tags: dict[str, str]
    size: int  # bytes
    mtime_ns: int  # when the file was written
    hash: bytes = field(repr=False)  # blake2b, 16 bytes, of the file
    segment: int = field(repr=False)  # where its vector is
    row: int = field(repr=False)
    taken: str | None = None  # by the camera's clock, "2019-07-14T10:02:03"
    camera: str | None = None
    width: int | None = None  # upright, pixels
    height: int | None = None
    looked: int = field(default=0, repr=False)  # which reader of headers has seen it
    missing: bool = False  # its file was not there when it was last looked for
    copies: tuple[int, ...] = ()  # other items with this content, where they are folded into one; the first 100
    copies_count: int = 0  # of all of them

    @property
    def mtime(self) -> float:
        """When the file was written, in seconds."""
        return self.mtime_ns / 1e9


ITEM = "id, path, label, size, mtime_ns, hash, segment, row, taken, camera, width, height, looked, missing"


class Catalog:
    """Connections to a gallery's database.

    Args:
        path: of ``gallery.db``.

    Raises:
        UserError: no database of a gallery, damaged, or of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._free: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        self._stamp: tuple[int, ...] | None = None  # of the file, if it is read as one that never changes
        self._copy: sqlite3.Connection | None = None  # keeps a copy in memory, which is read instead
        self._full = False  # there was no room for the files beside the database that reading it takes
        with self.errors():
            first = self._connect()
            try:
                application = first.execute("PRAGMA application_id").fetchone()[0]
                self.format: int = first.execute("PRAGMA user_version").fetchone()[0]
            except BaseException:
                first.close()
                raise
        self._free.append(first)
        if application != APPLICATION:
            self.close()
            raise GalleryError(f"{path}: not the database of a gallery")
        if self.format > newest():
            self.close()
            raise GalleryError(f"{path.parent}: gallery format {self.format}, this version reads up to {newest()}")

    @classmethod
    def create(cls, path: Path, facts: dict[str, object]) -> None:
        """Write a new database, of an empty gallery."""
        db = sqlite3.connect(path, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            _migrate(db, 1)
            db.executemany("INSERT INTO facts VALUES (?, ?)", [*facts.items(), ("revision", 0)])
        finally:
            db.close()

    def _connect(self) -> sqlite3.Connection:
        """A connection that reads; on a read-only medium one that needs no files beside the database."""
        options = "mode=rw"
        if not all(os.access(path, os.W_OK, effective_ids=True) for path in (self.path.parent, self.path)):
            options, stamp = "mode=ro", self._facts()
            if not self._beside("-shm").exists():  # nobody else has it open
                if stamp[2]:
                    raise GalleryError(
                        f"{self.path.parent}: cannot be written, and its last writer was stopped: open it where it can be"
                    )
                options, self._stamp = "mode=ro&immutable=1", stamp
        db = self._open(options)
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA schema_version")  # opens the files beside it
            self._stand_in(db)
        except sqlite3.Error as error:
            db.close()
            if options != "mode=rw" or not self._is_full(error):
                raise
            return self._connect_without_room()
        self._full = False
        return db

    def _stand_in(self, db: sqlite3.Connection) -> None:
        """What later formats know of items, as unknown, where the database is of an earlier one."""
        (format,) = db.execute("PRAGMA user_version").fetchone()
        if format in OLD and newest() > format:
            db.execute("PRAGMA temp_store = MEMORY")
            db.execute(OLD[format])

    def _open(self, options: str) -> sqlite3.Connection:
        return _open(f"{self.path.absolute().as_uri()}?{options}")

    def _connect_without_room(self) -> sqlite3.Connection:
        """A connection that reads where nothing can be written: the disk is full."""
        self._full = True
        if not self._facts()[2]:
            self._stamp, db = self._facts(), self._open("mode=ro&immutable=1")
        else:  # commits are in the journal alone: the one who has it for itself can read it without another file
            if self._copy is None:
                name = f"file:splip-{uuid.uuid4()}?mode=memory&cache=shared"
                self._copy, self._copy_name = _open(name), name
                with contextlib.closing(self._open("mode=rw")) as whole:
                    whole.execute("PRAGMA locking_mode = EXCLUSIVE")
                    whole.backup(self._copy)
                self._stamp = self._facts()
            db = _open(self._copy_name)
        self._stand_in(db)
        db.execute("PRAGMA query_only = ON")
        return db

    def _is_full(self, error: sqlite3.Error) -> bool:
        text = str(error)
        if "disk is full" in text or (self._full and "readonly" in text):
            return True
        vague = "disk I/O error" in text or "unable to open" in text
        with contextlib.suppress(OSError):
            return vague and _room(self.path.parent) < LEAST_FREE
        return False

    def _forget(self) -> None:
        """Close connections that read a database that does not change, and the copy; with the lock held."""
        self._stamp, old, self._free = None, self._free, []
        for connection in old:
            connection.close()
        if self._copy is not None:
            self._copy.close()
            self._copy = None

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(self.path.name + ending)

    def _facts(self) -> tuple[int, ...]:
        """What changes when another user writes: time and size of the database, size of its journal."""
        facts, journal = self.path.stat(), self._beside("-wal")
        return facts.st_mtime_ns, facts.st_size, journal.stat().st_size if journal.exists() else 0

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn SQLite's errors into lines that name the gallery."""
        try:
            yield
        except sqlite3.Error as error:
            reason = " ".join(str(error).split())
            if self._is_full(error):
                raise GalleryError(f"{self.path.parent}: the disk is full") from None
            if "malformed" in reason or "not a database" in reason:
                reason += "; the database is damaged"
            raise GalleryError(f"{self.path}: {reason}") from None

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread uses meanwhile."""
        with self.errors():
            with self._lock:
                if self._closed:
                    raise GalleryError(f"{self.path.parent}: the gallery was closed")
                if self._stamp is not None and self._stamp != self._facts():
                    self._forget()
                db = self._free.pop() if self._free else None
                db = db or self._connect()
                if self.format in OLD and (now := db.execute("PRAGMA user_version").fetchone()[0]) != self.format:
                    db.close()  # a writer has brought it to a later format
                    self._forget()
                    self.format, db = now, self._connect()
            try:
                yield db
            except BaseException:
                if db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        db.execute("ROLLBACK")
                raise
            finally:
                with self._lock:
                    if self._closed:
                        db.close()
                    else:
                        self._free.append(db)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One committed state, for as long as the block lasts."""
        with self.connection() as db:
            db.execute("BEGIN")
            yield db
            db.execute("COMMIT")

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; counts as a new revision. For the writer only."""
        if self._full:  # there may be room by now
            with self._lock:
                self._forget()
        with self.connection() as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE facts SET value = value + 1 WHERE name = 'revision'")
            yield db
            db.execute("COMMIT")

    @property
    def writable(self) -> bool:
        """Whether the database can be changed here."""
        places = (self.path, self.path.parent)
        return self._stamp is None and all(os.access(place, os.W_OK, effective_ids=True) for place in places)

    def migrate(self) -> None:
        """Bring an older database to this version's format. For the writer only."""
        with self.connection() as db:
            db.execute("DROP VIEW IF EXISTS temp.items")
            try:
                _migrate(db, db.execute("PRAGMA user_version").fetchone()[0])
            except sqlite3.Error:
                self._stand_in(db)
                raise
            self.format = newest()

    def note_missing(self, ids: Sequence[int], missing: bool) -> bool:
        """Keep whether the files of items are gone; False: it cannot be kept now, which does no harm.

        What is searched does not change, and so neither does the revision: also who only reads may do this, beside a writer.
        """
        if not self.writable or self.format in OLD:
            return False
        try:
            with self.connection() as db:
                db.execute("PRAGMA busy_timeout = 0")  # a writer goes first
                try:
                    db.execute("BEGIN IMMEDIATE")
                    db.executemany("UPDATE items SET missing = ? WHERE id = ?", [(int(missing), id) for id in ids])
                    db.execute("COMMIT")
                finally:
                    db.execute(f"PRAGMA busy_timeout = {int(1000 * WAIT_SECONDS)}")
        except UserError:
            return False
        return True

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._forget()


def _open(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)


def _room(folder: Path) -> int:
    """Bytes that can be written in a folder."""
    return shutil.disk_usage(folder).free


def _migrate(db: sqlite3.Connection, start: int) -> None:
    for number in range(start, newest()):
        statements = MIGRATIONS[number - 1]
        # A script cannot run inside a transaction of ours, so it brings its own.
        try:
            db.executescript(f"BEGIN IMMEDIATE; {statements}; PRAGMA user_version = {number + 1}; COMMIT;")
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


# ---- questions, all of one connection ----


def revision(db: sqlite3.Connection) -> int:
    value: int = db.execute("SELECT value FROM facts WHERE name = 'revision'").fetchone()[0]
    return value


def facts(db: sqlite3.Connection) -> dict[str, Any]:
    return dict(db.execute("SELECT name, value FROM facts"))


def item(db: sqlite3.Connection, id: int) -> Item:
    """An item by its id.

    Raises:
        KeyError: no such item (any more).
    """
    found = items(db, "id", [id]) if -(2**63) <= id < 2**63 else []
    if not found:
        raise KeyError(id)
    return found[0]


def items(db: sqlite3.Connection, column: str, values: Sequence[object]) -> list[Item]:
    """Items by their id, path (bytes) or hash."""
    found: list[Item] = []
    for first in range(0, len(values), MANY):
        some = values[first : first + MANY]
        found += _items(db, f"SELECT {ITEM} FROM items WHERE {column} IN ({marks(some)})", some)
    return found


def items_at(db: sqlite3.Connection, segment: int, rows: Sequence[int]) -> list[Item]:
    """Items by where their vectors are."""
    found: list[Item] = []
    for first in range(0, len(rows), MANY):
        some = rows[first : first + MANY]
        statement = f"SELECT {ITEM} FROM items WHERE segment = ? AND row IN ({marks(some)})"
        found += _items(db, statement, [segment, *some])
    return found


def chosen(db: sqlite3.Connection, filter: Filter | None = None) -> Iterator[Item]:
    """The items that pass a filter, by id."""
    where, values = filter.where() if filter else ("1", [])
    if filter and filter.ids is not None:
        ids: list[tuple[int]] = []
        for some in _slices(sorted(set(filter.ids))):
            ids += db.execute(
                f"SELECT id FROM items WHERE id IN ({marks(some)}) AND {where} ORDER BY id", [*some, *values]
            )
    else:
        ids = db.execute(f"SELECT id FROM items WHERE {where} ORDER BY id", values).fetchall()
    for some in _slices([id for (id,) in ids]):
        yield from _items(db, f"SELECT {ITEM} FROM items WHERE id IN ({marks(some)}) ORDER BY id", some)


def places(db: sqlite3.Connection, filter: Filter) -> Iterator[tuple[int, int]]:
    """Segment and row of the items that pass a filter."""
    where, values = filter.where()
    if filter.ids is None:
        yield from db.execute(f"SELECT segment, row FROM items WHERE {where}", values)
        return
    for some in _slices(sorted(set(filter.ids))):
        yield from db.execute(
            f"SELECT segment, row FROM items WHERE id IN ({marks(some)}) AND {where}", [*some, *values]
        )


def places_of(db: sqlite3.Connection, hashes: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Segment and row of the items of some contents."""
    for first in range(0, len(hashes), MANY):
        some = hashes[first : first + MANY]
        yield from db.execute(f"SELECT segment, row FROM items WHERE hash IN ({marks(some)})", some)


def drop(db: sqlite3.Connection, items: Iterable[Item]) -> None:
    """Take items out, within a transaction that writes."""
    now = revision(db)
    for item in items:
        db.execute("DELETE FROM tags WHERE item = ?", (item.id,))
        db.execute("DELETE FROM items WHERE id = ?", (item.id,))
        db.execute("INSERT INTO deleted VALUES (?, ?, ?)", (now, item.segment, item.row))


def _slices(values: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(values), MANY):
        yield values[first : first + MANY]


def _items(db: sqlite3.Connection, statement: str, values: Sequence[object]) -> list[Item]:
    found = []
    for id, path, label, size, mtime_ns, hash, segment, row, *photograph, missing in db.execute(statement, values):
        taken, camera, width, height, looked = photograph
        place = Path(os.fsdecode(path))
        facts = (size, mtime_ns, hash, segment, row, taken, camera, width, height, looked, bool(missing))
        found.append(Item(id, place, label, {}, *facts))
    by_id = {item.id: item for item in found}
    ids = list(by_id)
    for first in range(0, len(ids), MANY):
        some = ids[first : first + MANY]
        for item, key, value in db.execute(f"SELECT item, key, value FROM tags WHERE item IN ({marks(some)})", some):
            by_id[item].tags[key] = value
    return found
