"""Which files are to be pictures of a gallery: folders, tar files, lists."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from splip.errors import Skipped, UnreadablePicture, UserError
from splip.gallery.ingest import Picture
from splip.images import archive, formats


def read_list(file: Path) -> tuple[list[str], list[Skipped]]:
    """The paths in a list, and those that leave its folder by ``..``: no honest list needs that.

    Absolute paths are taken as they are.

    Raises:
        UserError: the list cannot be read.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the list {file}: {error.strerror}") from None
    paths, refused = [], []
    for line in data.split(b"\0") if b"\0" in data else data.splitlines():
        if not line:
            continue
        name = os.fsdecode(line)
        if not os.path.isabs(name) and os.path.normpath(name).split(os.sep)[0] == os.pardir:
            refused.append(Skipped(name, f"leaves the folder of the list {file}"))
        else:
            paths.append(os.path.join(file.parent, name))
    return paths, refused


def label_of(path: str, root: str | None, how: str) -> str | None:
    """The label of a picture by where it lies.

    Args:
        path: of the picture.
        root: the folder or tar file that was given; None: the picture itself was.
        how: folder, top or none, see :func:`pictures`.
    """
    if how == "none":
        return None
    parent = Path(os.path.abspath(path)).parent
    if how == "top" and root is not None:
        below = parent.relative_to(os.path.abspath(root)).parts
        if below or archive.is_tar(root):
            return below[0] if below else None
        return Path(os.path.abspath(root)).name or None
    return None if archive.is_tar(parent) else parent.name or None


def pictures(
    given: Iterable[Path], lists: Iterable[Path] = (), label: str | None = None, label_from: str = "none"
) -> tuple[Iterator[Picture], list[Skipped]]:
    """All pictures of some places and lists, one after the other.

    Args:
        given: folders, tar files, pictures, or ``@FILE`` for a list.
        lists: files of paths, see :func:`read_list`.
        label: of all of them.
        label_from: without a label: the ``folder`` of each picture, the ``top`` one below the folder given, or ``none``.

    Returns:
        The pictures, found while they are read, and what is left out: more of it by then.

    Raises:
        UserError: a place is not there, or a list cannot be read; while they are read: there are no pictures.
    """
    given, lists = list(given), list(lists)
    places: list[str] = []
    for place in given:
        if str(place).startswith("@") and not place.exists():
            lists.append(Path(str(place)[1:]))
        elif place.exists():
            places.append(str(place))
        else:
            raise UserError(f"{place}: no such folder or picture")
    left_out: list[Skipped] = []
    for file in lists:
        paths, outside = read_list(file)
        left_out += outside
        places += paths

    def found() -> Iterator[Picture]:
        count = 0
        for path, root in find(places, left_out):
            count += 1
            yield Picture(path, label if label is not None else label_of(path, root, label_from))
        if not count and not left_out:
            raise UserError(f"no pictures in {', '.join(map(str, (*given, *lists)))}")

    return found(), left_out


def find(places: Iterable[str | Path], skipped: list[Skipped]) -> Iterator[tuple[str, str | None]]:
    """Pictures of folders and tar files, and those that are given themselves, whose names may end in anything.

    Args:
        places: folders, tar files, pictures.
        skipped: grows by what cannot be looked into.

    Returns:
        Each picture, and the folder or tar file that was given; None: the picture was.
    """
    for place in (os.fspath(p) for p in places):
        if os.path.isdir(place):
            yield from ((path, place) for path in walk(place, skipped))
        elif archive.is_tar(place):
            yield from ((path, place) for path in _members(place, skipped))
        else:
            yield place, None


def walk(folder: str, skipped: list[Skipped]) -> Iterator[str]:
    """Pictures in a folder and below, by name; hidden files and folders are left out.

    Args:
        folder: to start in.
        skipped: grows by folders that cannot be read, and links to folders: those may lead in circles.
    """
    wanted, left = formats.suffixes(), [folder]
    while left:  # not os.walk: it passes over what it cannot read, and recurses as deep as folders are
        place = left.pop()
        try:
            with os.scandir(place) as entries:
                found = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            skipped.append(Skipped(place, error.strerror or str(error)))
            continue
        below = []
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                skipped.append(Skipped(entry.path, "a link to a folder, which is not followed"))
            elif os.path.splitext(entry.name)[1].lower() in wanted:
                yield entry.path
        left += reversed(below)


def _members(tar: str, skipped: list[Skipped]) -> Iterator[str]:
    """The pictures in a tar file."""
    wanted = formats.suffixes()
    try:
        for name in archive.members(tar):
            if os.path.splitext(name)[1].lower() in wanted:
                yield os.path.join(tar, name)
    except UnreadablePicture as error:
        skipped.append(error.skipped)
