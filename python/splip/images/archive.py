"""Pictures by path, also those in tar files: ``shard.tar/member.jpg`` names a member of ``shard.tar``.

WebDataset keeps pictures so. A path leads into a tar file if one of its folders is a file whose name ends in ``.tar``;
everything that reads a gallery's pictures asks here. Tar files are not compressed: a member is read where it stands.
"""

import os
import posixpath
import stat
import tarfile
import zipfile
from functools import lru_cache

from splip.errors import UnreadablePicture, UserError

SUFFIX = ".tar"
KEPT = 16  # tar files whose lists of members are remembered

Place = tuple[int, int]  # offset and size of a member


def is_tar(path: str | os.PathLike[str]) -> bool:
    """A tar file, by its name."""
    return os.fspath(path).lower().endswith(SUFFIX) and os.path.isfile(path)


def split(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """The tar file that a path leads into, and the member's name; None: an ordinary path."""
    text = os.fspath(path)
    lower, end = text.lower(), 0
    while (end := lower.find(SUFFIX + "/", end) + len(SUFFIX)) >= len(SUFFIX):
        if os.path.isfile(text[:end]):
            return text[:end], text[end + 1 :]
    return None


def members(tar: str | os.PathLike[str]) -> list[str]:
    """Names of the files in a tar file, in its order.

    Raises:
        UnreadablePicture: not there, or not a tar file.
    """
    try:
        return list(_places(os.fspath(tar)))
    except OSError as error:
        raise UnreadablePicture(tar, error.strerror or str(error)) from None


def _places(tar: str) -> dict[str, Place]:
    facts = os.stat(tar)
    return _index(tar, facts.st_ino, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=KEPT)
def _index(tar: str, *_: int) -> dict[str, Place]:
    """Where the members of a tar file are; reads its headers only. The rest of the key tells a changed file."""
    found: dict[str, Place] = {}
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                name = posixpath.normpath(member.name.lstrip("/"))
                # No name may lead out of the tar file.
                if member.isreg() and not member.issparse() and name.split("/")[0] not in ("..", "."):
                    found[name] = member.offset_data, member.size
    except tarfile.TarError:
        raise UnreadablePicture(tar, "not an uncompressed tar file, or damaged") from None
    return found


def facts(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Size in bytes of a picture's file, and when it (or the tar file that it is in) was written, in nanoseconds.

    Raises:
        UnreadablePicture: not a file.
        OSError: not there.
    """
    inside = split(path)
    about = os.stat(inside[0] if inside else path)
    if not stat.S_ISREG(about.st_mode):
        raise UnreadablePicture(path, "not a file")
    return (_member(path, *inside)[1] if inside else about.st_size), about.st_mtime_ns


def _member(path: object, tar: str, name: str) -> Place:
    place = _places(tar).get(name)
    if place is None:
        raise FileNotFoundError(2, "no such file in the tar file", str(path))
    return place


def read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a picture's file.

    Raises:
        UnreadablePicture: cut off.
        OSError: not there.
    """
    inside = split(path)
    if inside is None:
        with open(path, "rb") as file:
            return file.read()
    offset, size = _member(path, *inside)
    with open(inside[0], "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise UnreadablePicture(path, "the tar file ends within it")
    return data


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether a picture's file is (still) there."""
    try:
        inside = split(path)
        return os.path.exists(path) if inside is None else inside[1] in _places(inside[0])
    except (OSError, ValueError, UnreadablePicture):
        return False


def check_zip(path: str | os.PathLike[str]) -> None:
    """Refuse a zip file whose members would be larger than itself: torch.save writes them as they are.

    Raises:
        UserError: it is one. What is no zip file, or damaged, is for those to tell who read it.
    """
    try:
        size = os.path.getsize(path)
        with zipfile.ZipFile(path) as file:
            claimed = sum(member.file_size for member in file.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return
    if claimed > size:
        raise UserError(
            f"{os.fspath(path)}: claims {claimed} bytes in a file of {size}: not a checkpoint, or made to harm"
        )
