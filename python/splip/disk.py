"""Files that are whole or not there: written beside their place, synced to the disk, and moved into it.

A kill or a full disk leaves the file of before; a power cut leaves that or the new one, never half of one.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PART = ".part"  # ending of what is being written


def sync_folder(folder: Path) -> None:
    """Make names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """A file to write that takes the place of ``path`` when the block ends without an error.

    Args:
        path: behind a link, what the link names is replaced. A pipe or a device is written as it stands.
        mode: wb or w.
        options: of :func:`open`.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        with open(path, mode, **options) as file:
            yield file
        return
    part = path.with_name(path.name + PART)
    try:
        with open(part, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # before the name: a name whose bytes are lost would be worse than none
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Replace a text file, in UTF-8."""
    with replacing(path, "w", encoding="utf-8", errors=errors) as file:
        file.write(text)


def sync_tree(folder: Path) -> None:
    """Make all that lies in a folder survive a power cut, before the folder is moved into its place."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
