"""Pictures into a gallery: read, hash, decode and square ahead of the encoder, commit behind it.

What is there already is found by path, then by content:

* same path, size and time: unchanged, not even read;
* same path and content: unchanged, its new time is noted;
* same path, other content: embedded anew, a new item takes the place of the old one;
* another path, known content: if the old file is gone, the item moves to the new path, else it is a duplicate, an
  item of its own with the same vector. Neither is encoded.

Labels of known pictures become those given, if any are; tags that are given are set, others stay. Every commit
holds whole pictures: stopped at any moment and started again, nothing is there twice and nothing is missing.
"""

import contextlib
import hashlib
import os
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from splip import images
from splip.errors import GalleryError, Skipped, UnreadablePicture, UserError
from splip.gallery import catalog
from splip.gallery.catalog import Item, text
from splip.gallery.protocol import Writable
from splip.gallery.segments import is_full
from splip.gallery.thumbnails import SIDE, shrink
from splip.gallery.thumbnails import make as make_thumbnail
from splip.images import archive, decode
from splip.images.header import Header

T = TypeVar("T")
Prepare = Callable[[bytes, object], tuple[np.ndarray, Header | None, bytes | None]]
"""Bytes of a file and its name to pixels, what its header says, and a thumbnail if it is wanted."""

COMMIT_ROWS, COMMIT_SECONDS = 2048, 5.0  # what a kill can undo
LOOK_UP = 256  # paths asked of the database at once
LARGEST = 256 << 20  # bytes of a file
FILES = 300_000_000  # bytes of files that are held at the same time, besides what is decoded of them
files_memory = images.Budget(FILES)


@dataclass
class Picture:
    """A file to put into a gallery."""

    path: Path | str
    label: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Added:
    """What became of the pictures given."""

    seen: int = 0  # looked at so far
    new: int = 0
    changed: int = 0  # embedded again
    moved: int = 0  # known content, the old file is gone
    duplicates: int = 0  # known content, an item of its own
    relabelled: int = 0  # known pictures that got another label or tag
    unchanged: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    committed: int = 0  # of seen: on the disk, whatever happens now
    encoded: int = 0
    encode_seconds: float = 0.0  # in the encoder
    seconds: float = 0.0
    stopped: bool = False  # before the end


@dataclass
class Look:
    """What a look at a file showed."""

    picture: Picture
    path: bytes
    known: Item | None  # of this path
    size: int = 0
    mtime_ns: int = 0
    hash: bytes | None = None  # None: not read, it is the known one
    pixels: np.ndarray | None = None
    error: Skipped | None = None  # why it cannot be read
    source: Item | None = None  # another item of the same content
    moved: bool = False  # and it is this file's old place
    vector: np.ndarray | None = None  # float32 [D], once encoded or copied
    header: Header | None = None  # None: not looked at, or it cannot be read
    looked: bool = False
    thumbnail: bytes | None = None  # a JPEG

    @property
    def stays(self) -> bool:
        """The item is there already, with this content."""
        return self.moved or (self.known is not None and self.hash in (None, self.known.hash))


def add(
    gallery: Writable,
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
    """Embed pictures and keep them.

    Args:
        gallery: open for writing.
        pictures: files. A path that was given before is passed over.
        label: of pictures that bring none.
        tags: of all pictures, besides their own.
        batch_size: pictures a pass of the encoder.
        threads: that read and decode; None: one for each processor.
        thumbnails: keep small versions in the gallery, see :mod:`splip.gallery.thumbnails`; None: if it has some.
        notify: is called after every batch and commit.
        stop: asked after every batch; True ends the work with what is finished, committed.

    Returns:
        Counts, and the pictures that could not be read.

    Raises:
        UserError: the gallery cannot be written (a full disk, ...); what was committed before stays.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    if threads is not None and threads < 1:
        raise UserError(f"threads must be at least 1, got {threads}")
    done, began = Added(), time.monotonic()
    pending: list[Look] = []
    committing: Future[None] | None = None
    last = began

    def flush() -> Future[None]:
        """Commit what is finished, while the encoder goes on; one commit at a time."""
        nonlocal last
        if committing is not None:
            committing.result()
        last = time.monotonic()
        looks, pending[:] = list(pending), []
        return pool.submit(commit, gallery, looks, done, notify)

    small = gallery.thumbnails.exists if thumbnails is None else thumbnails
    prepared = _ahead(_batches(gallery, _pictures(pictures, label, tags or {}), batch_size, threads, small), 3)
    with contextlib.closing(prepared), ThreadPoolExecutor(1, "commit") as pool:
        for looks, waiting, pixels in prepared:
            if waiting:
                start = time.monotonic()
                vectors = gallery.encoder.encode(pixels, "photo")
                done.encode_seconds += time.monotonic() - start
                done.encoded += len(waiting)
                for look, vector in zip(waiting, vectors, strict=True):
                    look.vector = vector
                    if not np.isfinite(vector).all():
                        look.error = Skipped(look.picture.path, "the model answers with numbers that are not finite")
            pending += looks
            done.seen += len(looks)
            done.seconds = time.monotonic() - began
            if notify is not None:
                notify(done)
            if len(pending) >= COMMIT_ROWS or time.monotonic() - last >= COMMIT_SECONDS:
                committing = flush()
            if stop is not None and stop():
                done.stopped = True
                break
        flush().result()
    with _disk(gallery):
        gallery.write_packs()
    done.seconds = time.monotonic() - began
    return done


def _pictures(
    pictures: Iterable[Picture | Path | str], label: str | None, tags: Mapping[str, str]
) -> Iterator[tuple[bytes, Picture]]:
    """Each file once, with its absolute path."""
    given: set[bytes] = set()
    for one in pictures:
        picture = one if isinstance(one, Picture) else Picture(one)
        path = os.fsencode(os.path.abspath(picture.path))
        if path not in given:
            given.add(path)
            yield (
                path,
                Picture(picture.path, picture.label if picture.label is not None else label, {**tags, **picture.tags}),
            )


def _ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """Run an iterator in a thread of its own, at most ``depth`` items ahead of who asks."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: tuple[T | None, BaseException | None]) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(entry, timeout=0.05)
                return

    def run() -> None:
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))
        finally:
            items.close()

    thread = threading.Thread(target=run, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert item is not None
            yield item
    finally:
        stopped.set()
        thread.join()


def _batches(
    gallery: Writable, pictures: Iterator[tuple[bytes, Picture]], batch_size: int, threads: int | None, small: bool
) -> Generator[tuple[list[Look], list[Look], np.ndarray], None, None]:
    """Looks in the order given, those of them to encode, and their pixels, uint8 ``[B, S, S, 3]``."""
    threads = threads or len(os.sched_getaffinity(0))

    def prepare(data: bytes, name: object) -> tuple[np.ndarray, Header | None, bytes | None]:
        least, decoding = gallery.reading("photo")  # loads the model when the first picture is new
        if not small:
            image = images.read(data, name, least, decoding)
            return gallery.encoder.prepare(image, "photo"), image.info["header"], None
        image = images.read(data, name, max(least, SIDE), decoding)
        about: Header = image.info["header"]
        in_full = decoding == 1 and about.width * about.height <= decode.IN_FULL  # for the model, too
        photo = image if in_full else shrink(image, least)
        return gallery.encoder.prepare(photo, "photo"), about, make_thumbnail(image)

    moved: set[int] = set()
    looking: deque[Future[Look]] = deque()
    most = max(2 * batch_size, LOOK_UP)
    looks: list[Look] = []
    waiting: list[Look] = []

    def batch() -> tuple[list[Look], list[Look], np.ndarray]:
        pixels = [look.pixels for look in waiting if look.pixels is not None]
        for look in waiting:
            look.pixels = None
        return looks, waiting, np.stack(pixels) if pixels else np.empty(0, dtype=np.uint8)

    pool = ThreadPoolExecutor(threads, "decode")
    try:
        more = True
        while more or looking:
            while more and len(looking) < most:
                block = list(islice(pictures, min(LOOK_UP, batch_size)))
                more = bool(block)
                with gallery.catalog.reading() as db:
                    known = {os.fsencode(i.path): i for i in catalog.items(db, "path", [path for path, _ in block])}
                for path, picture in block:
                    looking.append(pool.submit(look_at, path, picture, known.get(path), prepare))
            if not looking:
                break
            look = looking.popleft().result()
            if look.error is None and look.hash is not None and not look.stays:
                find_content(gallery, look, moved)
            looks.append(look)
            if look.pixels is not None:
                waiting.append(look)
            if len(waiting) == batch_size or len(looks) >= 8 * batch_size:
                yield batch()
                looks, waiting = [], []
        if looks:
            yield batch()
    finally:
        pool.shutdown(cancel_futures=True)


def look_at(path: bytes, picture: Picture, known: Item | None, prepare: Prepare) -> Look:
    """Read a file if it is new or has changed; of one that has not, the header if it never was.

    Args:
        path: absolute.
        picture: what was given.
        known: the item of this path.
        prepare: see :data:`Prepare`.
    """
    look = Look(picture, path, known)
    try:
        look.size, look.mtime_ns = archive.facts(os.fsdecode(path))
        unread = known is not None and known.looked < catalog.LOOKED
        if known is not None and (known.size, known.mtime_ns) == (look.size, look.mtime_ns):
            if unread:
                # What cannot be read now stays as it is, and is looked at the next time.
                with files_memory.room(look.size), contextlib.suppress(OSError, UnreadablePicture):
                    look.header, look.looked = decode.read_header(Path(os.fsdecode(path))), True
            return look
        if look.size > LARGEST:
            raise UnreadablePicture(picture.path, f"larger than {LARGEST >> 20} MiB")
        with files_memory.room(look.size):
            data = archive.read(os.fsdecode(path))
            look.hash = hashlib.blake2b(data, digest_size=16).digest()
            if known is None or known.hash != look.hash:
                (look.pixels, look.header, look.thumbnail), look.looked = prepare(data, picture.path), True
            elif unread:
                look.header, look.looked = decode.read_header(data), True
    except UnreadablePicture as error:
        look.error = error.skipped
    except FileNotFoundError:
        look.error = Skipped(picture.path, "no such file")
    except OSError as error:
        look.error = Skipped(picture.path, error.strerror or str(error))
    except ValueError:  # a zero byte
        look.error = Skipped(picture.path, "not a name that a file can have")
    return look


def find_content(gallery: Writable, look: Look, moved: set[int]) -> None:
    """Take the vector of an item with the same content; if its file is gone, the item itself."""
    with gallery.catalog.reading() as db:
        same = catalog.items(db, "hash", [look.hash])
    if not same:
        return
    look.source, look.pixels = same[0], None
    gone = [i for i in same if i.id not in moved and not archive.exists(i.path)] if look.known is None else []
    if gone:
        look.source, look.moved = gone[0], True
        moved.add(gone[0].id)
    else:
        look.vector = gallery.files.read_rows(same[0].segment, same[0].row, 1)[0]


def commit(gallery: Writable, looks: list[Look], done: Added, notify: Callable[[Added], None] | None) -> None:
    """Everything that became of some pictures, or nothing of it."""
    counts = {"new": 0, "changed": 0, "moved": 0, "duplicates": 0, "relabelled": 0, "unchanged": 0}
    kept = [look for look in looks if look.error is None]
    vectors = [look.vector for look in kept if look.vector is not None]
    places: list[tuple[int, int]] = []
    if any(_differs(look) for look in kept):
        with _disk(gallery), gallery.catalog.writing() as db:
            places = gallery.append(db, np.stack(vectors)) if vectors else []
            free = iter(places)
            for look in kept:
                counts[_keep(db, look, free)] += 1
    else:
        counts["unchanged"] = len(kept)
    small = [(look.hash, look.thumbnail) for look in kept if look.hash is not None and look.thumbnail is not None]
    if small:
        gallery.thumbnails.put(small)
    for look in kept:
        look.thumbnail = None
    for name, count in counts.items():
        setattr(done, name, getattr(done, name) + count)
    done.skipped += [look.error for look in looks if look.error is not None]
    done.committed += len(looks)
    if notify is not None and looks:
        notify(done)
    if any(row == gallery.segment_rows - 1 for _, row in places):  # a segment is full
        with _disk(gallery):
            gallery.write_packs(gallery.segment_rows)


@contextlib.contextmanager
def _disk(gallery: Writable) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if is_full(error) else error.strerror or str(error)
        raise GalleryError(
            f"{gallery.folder}: cannot be written: {reason}; what was committed before is safe, run it again to go on"
        ) from None


def _new_labels(look: Look, item: Item) -> tuple[str | None, dict[str, str]]:
    label = item.label if look.picture.label is None else text(look.picture.label)
    return label, {**item.tags, **{text(key): text(value) for key, value in look.picture.tags.items()}}


def _differs(look: Look) -> bool:
    """True if something about a known item has to be written."""
    item = look.known
    if look.moved or item is None or look.hash is not None or look.looked or item.missing:
        return True
    return _new_labels(look, item) != (item.label, item.tags)


def _keep(db: sqlite3.Connection, look: Look, places: Iterator[tuple[int, int]]) -> str:
    """Write one picture's item; returns what it counts as."""
    old = look.source if look.moved else look.known
    label, tags = _new_labels(look, old or Item(0, Path(), None, {}, 0, 0, b"", 0, 0))
    if look.stays:
        assert old is not None
        if _differs(look):
            facts = (look.path, label, look.size, look.mtime_ns, old.id)
            if not db.execute(
                "UPDATE items SET path = ?, label = ?, size = ?, mtime_ns = ?, missing = 0 WHERE id = ?", facts
            ).rowcount:
                raise UserError(f"{look.picture.path}: changed while it was added; run it again to go on")
            if look.looked:
                statement = "UPDATE items SET taken = ?, camera = ?, width = ?, height = ?, looked = ? WHERE id = ?"
                db.execute(statement, (*_photograph(look), old.id))
            _set_tags(db, old.id, tags)
        if look.moved:
            return "moved"
        return "unchanged" if (label, tags) == (old.label, old.tags) else "relabelled"
    segment, row = next(places)
    if old is not None:
        catalog.drop(db, [old])
    values = (look.path, label, look.size, look.mtime_ns, look.hash, segment, row, *_photograph(look))
    columns = "path, label, size, mtime_ns, hash, segment, row, taken, camera, width, height, looked"
    number = db.execute(f"INSERT INTO items ({columns}) VALUES ({catalog.marks(values)})", values).lastrowid
    assert number is not None
    _set_tags(db, number, tags)
    if old is not None:
        return "changed"
    return "new" if look.source is None else "duplicates"


def _photograph(look: Look) -> tuple[object, ...]:
    """What the header says, as the database holds it."""
    about, looked = look.header, catalog.LOOKED if look.looked else 0
    return (
        (None, None, None, None, looked)
        if about is None
        else (about.taken, about.camera, about.width, about.height, looked)
    )


def _set_tags(db: sqlite3.Connection, item: int, tags: dict[str, str]) -> None:
    db.executemany("INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", [(item, *pair) for pair in tags.items()])
