"""Looking after a gallery: check it, compact it, take its contents out."""

import csv
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from splip.encoders.manifest import model_hash
from splip.errors import UserError
from splip.gallery import catalog
from splip.gallery.catalog import Filter, Item
from splip.gallery.folder import own_model
from splip.gallery.protocol import Stored, Writable
from splip.gallery.segments import is_full, sync_folder
from splip.images import archive

CHUNK = 32_768  # rows at a time


@dataclass
class Checked:
    """What a check found."""

    items: int = 0
    segments: int = 0
    deleted: int = 0  # rows that compacting would give back
    damage: list[str] = field(default_factory=list)  # a line each, naming the file
    missing: list[Path] = field(default_factory=list)  # pictures that are gone, which harms no search


@dataclass
class Compacted:
    """What compacting did."""

    rows: int  # vectors now
    dropped: int  # vectors that were taken out
    freed: int  # bytes


# ---- check ----


def check(gallery: Stored, pictures: bool = True) -> Checked:
    """Read everything and compare it with its checksums; may run beside a writer.

    Args:
        gallery: any.
        pictures: also look whether the pictures' files are still there.
    """
    while True:
        revision, found = _check(gallery, pictures)
        with gallery.catalog.reading() as db:
            # A compaction that was committed meanwhile takes files away: look again.
            if not found.damage or catalog.revision(db) == revision:
                break
    found.damage += _check_model(gallery)
    return found


def _check(gallery: Stored, pictures: bool) -> tuple[int, Checked]:
    """What one committed revision looks like."""
    found, files = Checked(), gallery.files
    with gallery.catalog.reading() as db:
        revision = catalog.revision(db)
        for (line,) in db.execute("PRAGMA integrity_check"):
            if line != "ok":
                found.damage.append(f"{gallery.catalog.path}: {' '.join(line.split())}")
        segments = db.execute("SELECT number, count, crc FROM segments ORDER BY number").fetchall()
        found.segments = len(segments)
        for number, count, crc in segments:
            blocks = db.execute("SELECT stop, crc FROM blocks WHERE segment = ? ORDER BY stop", (number,)).fetchall()
            found.damage += _check_rows(gallery, number, count, crc, blocks)
            pack = files.open_pack(number)
            if pack is None and files.pack_path(number).exists():
                found.damage.append(f"{files.pack_path(number)}: damaged; {MEND}")
            elif pack is not None and (pack.count, pack.crc) in blocks and not pack.intact():
                found.damage.append(f"{files.pack_path(number)}: does not match its checksums; {MEND}")
            statement = "SELECT row FROM {} WHERE segment = ? ORDER BY row"
            used = _numbers(db.execute(statement.format("items"), (number,)))
            gone = _numbers(db.execute(statement.format("deleted"), (number,)))
            found.deleted += len(gone)
            if not np.array_equal(np.sort(np.concatenate([used, gone])), np.arange(count)):
                found.damage.append(f"{gallery.catalog.path}: items of segment {number} do not match its {count} rows")
        found.items = db.execute("SELECT count(*) FROM items").fetchone()[0]
    if pictures:
        found.missing = [item.path for item in find_missing(gallery)]
    return revision, found


def find_missing(gallery: Stored, under: Iterable[Path | str] = ()) -> list[Item]:
    """Look which pictures' files are gone, and keep it in the catalogue where that can be written.

    Args:
        gallery: any; may be open for reading alone, beside a writer.
        under: folders and tar files, at any depth; none: everywhere.

    Returns:
        The items whose files are gone, by id.
    """
    filters = [Filter(under=Path(place)) for place in under] or [Filter()]
    gone: set[int] = set()
    changed: dict[bool, list[int]] = {True: [], False: []}
    with gallery.catalog.reading() as db:
        for filter in filters:
            where, values = filter.where()
            for id, path, missing in db.execute(f"SELECT id, path, missing FROM items WHERE {where}", values):
                is_gone = not archive.exists(os.fsdecode(path))
                if is_gone:
                    gone.add(id)
                if is_gone != bool(missing):
                    changed[is_gone].append(id)
        found = [replace(item, missing=True) for item in catalog.items(db, "id", sorted(gone))]
    for now, ids in changed.items():
        if ids:
            gallery.catalog.note_missing(ids, now)
    return sorted(found, key=lambda item: item.id)


MEND = "delete it, the next `splip index compact` makes it again"


def _numbers(rows: Any) -> np.ndarray:
    return np.fromiter((row for (row,) in rows), dtype=np.int64)


def _check_rows(gallery: Stored, number: int, count: int, crc: int, blocks: list[tuple[int, int]]) -> Iterator[str]:
    """Lines about the float rows of a segment that are not as they were committed."""
    files, path = gallery.files, gallery.files.rows_path(number)
    try:
        files.check_size(number, count)
        yield from _check_blocks(gallery, number, count, crc, blocks, path)
    except UserError as error:
        yield str(error)
    except OSError as error:
        yield f"{path}: {error.strerror}"


def _check_blocks(
    gallery: Stored, number: int, count: int, crc: int, blocks: list[tuple[int, int]], path: Path
) -> Iterator[str]:
    files = gallery.files
    if not blocks or blocks[-1] != (count, crc):
        yield f"{gallery.catalog.path}: checksums of segment {number} do not reach its {count} rows"
        return
    start, before = 0, 0
    for stop, after in blocks:
        found = before
        for first in range(start, stop, CHUNK):
            rows = files.read_rows(number, first, min(CHUNK, stop - first))
            found = zlib.crc32(rows.data.cast("B"), found)
        if found != after:
            yield f"{path}: rows {start} to {stop - 1} do not match their checksum; remove and add their pictures again"
        start, before = stop, after


def _check_model(gallery: Stored) -> Iterator[str]:
    if gallery.facts["source"] is not None:  # an export folder; its own identity is checked when it is loaded
        return
    import hashlib

    path = own_model(gallery.folder)
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        yield f"{path}: {error.strerror}"
        return
    if digest.hexdigest() != gallery.facts.get("model_sha256", model_hash(gallery.identity)):
        yield f"{path}: is not the model that this gallery was made with"


# ---- compact ----


def compact(gallery: Writable) -> Compacted:
    """Write the vectors of live items into new segments, and drop the old ones.

    Leading segments that are full and whole stay. New files are on the disk before the one commit that switches to
    them; readers go on with the files that they have open.

    Raises:
        UserError: a checksum does not match (a copy would hide that), or the disk is full.
    """
    files = gallery.files
    gallery.thumbnails.sweep(gallery.catalog.path)
    with gallery.catalog.reading() as db:
        segments = db.execute("SELECT number, count, crc FROM segments ORDER BY number").fetchall()
        deleted: dict[int, np.ndarray] = {}
        for number, _, _ in segments:
            deleted[number] = _numbers(db.execute("SELECT row FROM deleted WHERE segment = ?", (number,)))
        stay = 0
        while (
            stay < len(segments) and segments[stay][1] == gallery.segment_rows and not len(deleted[segments[stay][0]])
        ):
            stay += 1
        old = segments[stay:]
        for number, count, crc in old:
            blocks = db.execute("SELECT stop, crc FROM blocks WHERE segment = ? ORDER BY stop", (number,)).fetchall()
            for line in _check_rows(gallery, number, count, crc, blocks):
                raise UserError(line)
    rows, dropped = sum(count for _, count, _ in segments), sum(len(gone) for gone in deleted.values())
    if not dropped and len(old) <= 1:
        gallery.write_packs()
        return Compacted(rows, 0, 0)
    before = _size(files.folder)
    try:
        with gallery.catalog.writing() as db:
            # The first new segment must not continue the last old one.
            db.execute("INSERT INTO segments (count, crc) VALUES (0, 0)")
            moves: list[tuple[int, int, int, int]] = []
            for number, count, _ in old:
                live = np.ones(count, dtype=bool)
                live[deleted[number]] = False
                for first in range(0, count, CHUNK):
                    chosen = np.flatnonzero(live[first : first + CHUNK])
                    if len(chosen):
                        some = files.read_rows(number, first, min(CHUNK, count - first))[chosen]
                        places = gallery.append(db, some)
                        moves += [
                            (*place, number, first + row) for place, row in zip(places, chosen.tolist(), strict=True)
                        ]
            db.executemany("UPDATE items SET segment = ?, row = ? WHERE segment = ? AND row = ?", moves)
            for number, _, _ in old:
                for table, column in (("deleted", "segment"), ("blocks", "segment"), ("segments", "number")):
                    db.execute(f"DELETE FROM {table} WHERE {column} = ?", (number,))
            db.execute("DELETE FROM segments WHERE count = 0")
            made = db.execute("SELECT number, count, crc FROM segments WHERE number > ?", (old[-1][0],)).fetchall()
            for number, count, crc in made:  # before the commit: its readers find them
                files.write_pack(number, count, crc)
    except OSError as error:
        reason = "the disk is full" if is_full(error) else error.strerror or str(error)
        raise UserError(f"{gallery.folder}: cannot be compacted: {reason}; it is as it was") from None
    with gallery.catalog.reading() as db:
        files.sweep({number for (number,) in db.execute("SELECT number FROM segments")})
    gallery.write_packs()  # of segments that stayed and have lost theirs
    return Compacted(rows - dropped, dropped, max(0, before - _size(files.folder)))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


# ---- export ----


def export(gallery: Stored, out: Path, form: str = "csv", filter: Filter | None = None) -> int:
    """Write ``vectors.npy`` (float32 ``[N, D]``), ``items.csv`` or ``items.parquet`` (same order) and ``gallery.json``.

    Args:
        gallery: any.
        out: folder to make.
        form: csv or parquet (needs pyarrow).
        filter: which items.

    Returns:
        How many items.

    Raises:
        UserError: the folder is not empty, or pyarrow is missing.
    """
    if form == "parquet":
        _need_pyarrow()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already; choose another place for the export")
    out.mkdir(parents=True, exist_ok=True)
    with gallery.snapshot() as (db, _):
        items = list(catalog.chosen(db, filter))
        shape = (len(items), gallery.dim)
        # Items by id are rows by place: every segment is read once, in order.
        with open(out / "vectors.npy", "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for number, first, rows in _runs(items):
                block = gallery.files.read_rows(number, first, rows[-1] + 1)
                file.write(np.ascontiguousarray(block[rows]).data)
    (_write_parquet if form == "parquet" else _write_csv)(out, items)
    about = {
        "count": len(items),
        "dim": gallery.dim,
        "model": gallery.model,
        "model_sha256": model_hash(gallery.identity),
    }
    (out / "gallery.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    sync_folder(out)
    return len(items)


def _runs(items: list[Item]) -> Iterator[tuple[int, int, list[int]]]:
    """Items in a row that can be read at once: segment, first row, rows counted from there."""
    start = 0
    while start < len(items):
        stop, first = start, items[start]
        while stop < len(items) and items[stop].segment == first.segment and items[stop].row < first.row + CHUNK:
            stop += 1
        yield first.segment, first.row, [item.row - first.row for item in items[start:stop]]
        start = stop


COLUMNS = ("id", "path", "label", "tags", "size", "mtime_ns", "hash", "taken", "camera", "width", "height", "missing")


def _write_csv(out: Path, items: list[Item]) -> None:
    with open(out / "items.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for i in items:
            tags = json.dumps(i.tags, ensure_ascii=False, sort_keys=True)
            photograph = [i.taken, i.camera, i.width, i.height, int(i.missing)]
            writer.writerow([i.id, str(i.path), i.label, tags, i.size, i.mtime_ns, i.hash.hex(), *photograph])


def _need_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UserError("--format parquet needs pyarrow: pip install 'splip[parquet]'") from None


def _write_parquet(out: Path, items: list[Item]) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {
            "id": pyarrow.array([i.id for i in items], pyarrow.int64()),
            # Parquet's strings are UTF-8: what is not, as \\xe9.
            "path": pyarrow.array(
                [os.fsencode(i.path).decode("utf-8", "backslashreplace") for i in items], pyarrow.string()
            ),
            "label": pyarrow.array([i.label for i in items], pyarrow.string()),
            "tags": pyarrow.array(
                [list(i.tags.items()) for i in items], pyarrow.map_(pyarrow.string(), pyarrow.string())
            ),
            "size": pyarrow.array([i.size for i in items], pyarrow.int64()),
            "mtime_ns": pyarrow.array([i.mtime_ns for i in items], pyarrow.int64()),
            "hash": pyarrow.array([i.hash for i in items], pyarrow.binary()),
            "taken": pyarrow.array([i.taken for i in items], pyarrow.string()),
            "camera": pyarrow.array([i.camera for i in items], pyarrow.string()),
            "width": pyarrow.array([i.width for i in items], pyarrow.int32()),
            "height": pyarrow.array([i.height for i in items], pyarrow.int32()),
            "missing": pyarrow.array([i.missing for i in items], pyarrow.bool_()),
        }
    )
    pyarrow.parquet.write_table(table, out / "items.parquet")
