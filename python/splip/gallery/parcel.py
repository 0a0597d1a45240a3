"""A gallery as files that can be sent: its database and vectors as of one commit, its model as tensors and words.

What it holds of the pictures are their paths, labels, tags and vectors; the pictures themselves stay where they are.
"""

import contextlib
import os
import re
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from splip import disk
from splip.errors import UserError
from splip.gallery.folder import own_model
from splip.gallery.gallery import Gallery

FILE = re.compile(r"gallery\.db|model\.safetensors|vectors/\d+\.(f32|pack)")  # what a gallery is made of


@contextlib.contextmanager
def packed(gallery: Gallery, folder: Path) -> Iterator[dict[str, object]]:
    """The files of a gallery in a folder, for as long as the block lasts: nothing is written to the gallery meanwhile.

    A checkpoint of an earlier version is written anew, without pickle; the copy's facts name the new file.

    Args:
        gallery: open for writing.
        folder: to fill, on the gallery's file system if its vectors are not to be copied.

    Yields:
        What the copy's database says of it.

    Raises:
        UserError: its model is not the one that it was made with.
    """
    changed: dict[str, object] = {}
    with gallery.writing():
        with gallery.catalog.reading() as db:
            ((gone,),) = db.execute("SELECT COUNT(*) FROM deleted WHERE segment IN (SELECT number FROM segments)")
        if gone:
            raise UserError(
                f"{gallery.folder}: still holds the vectors of {gone} removed pictures: `splip index compact --gallery "
                f"{gallery.folder}` first"
            )
        if gallery.facts["source"] is None:
            changed = _model(gallery, folder / "model.safetensors")
        gallery.write_packs(1)
        with gallery.catalog.reading() as db:
            with closing(sqlite3.connect(folder / "gallery.db", isolation_level=None)) as copy:
                db.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")  # one file
                copy.execute("PRAGMA journal_mode = WAL")
                copy.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", changed.items())
                copy.execute("DELETE FROM facts WHERE name = 'named'")  # a path on this machine, maybe
                copy.execute("VACUUM")
                copy.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            numbers = [number for (number,) in db.execute("SELECT number FROM segments")]
        for ending in ("-wal", "-shm"):
            (folder / f"gallery.db{ending}").unlink(missing_ok=True)
        (folder / "vectors").mkdir()
        for number in numbers:
            for path in (gallery.files.rows_path(number), gallery.files.pack_path(number)):
                if path.exists():
                    _link(path, folder / "vectors" / path.name)
        yield {**gallery.facts, **changed}


def own_files(names: Iterable[str]) -> list[str]:
    """The files of a gallery among others."""
    return [name for name in names if FILE.fullmatch(name)]


def unpack(made: Path, out: Path, place: str) -> int:
    """Put files that :func:`packed` made, and another machine sent, where they are a gallery; returns its pictures.

    Args:
        made: a folder beside ``out``.
        out: must not exist, or be empty.
        place: where they are from, noted in the gallery.

    Raises:
        UserError: they are no gallery, are damaged, or are not of the model that they name.
    """
    with Gallery.open(made, write=True) as gallery:
        damage = gallery.check().damage
        if damage:
            raise UserError(f"{place}: damaged: {damage[0]}")
        with gallery.catalog.writing() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES ('place', ?)", (place,))
        count = len(gallery)
    if out.exists():
        out.rmdir()
    os.rename(made, out)
    disk.sync_folder(out.parent)
    return count


def _model(gallery: Gallery, path: Path) -> dict[str, object]:
    """Write a gallery's model; returns the facts that are other ones for it."""
    own = own_model(gallery.folder)
    if not own.is_file():
        raise UserError(f"{own}: the model of {gallery.folder} ({gallery.model}) is gone")
    if disk.file_hash(own) != gallery.facts.get("model_sha256", gallery.identity):
        raise UserError(f"{own}: is not the model that this gallery was made with")
    if own.suffix == ".safetensors":
        shutil.copyfile(own, path)
        return {}
    from splip.models.checkpoint import read_checkpoint, write_checkpoint
    from splip.models.registry import identity, load_model

    write_checkpoint(read_checkpoint(own), path)
    return {"identity": identity(load_model(path), path), "model_sha256": disk.file_hash(path)}


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except OSError:  # another file system
        shutil.copyfile(source, path)
