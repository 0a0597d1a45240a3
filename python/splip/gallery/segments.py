"""The vectors of a gallery on disk: append-only float rows, and packed copies of them for the scan.

``000001.f32`` holds float32 rows ``[n, D]`` and nothing else. How many of them count stands in the gallery's
database; what lies behind those, after a crash, is never read and is overwritten by the next writer. Committed
rows never change. ``000001.pack`` holds what :func:`splip.ops.host.pack` made of the first rows of that file.
It is written whole under another name and renamed, says which rows it was made of, and can be made again.
"""

import contextlib
import errno
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splip.disk import sync_folder
from splip.errors import GalleryError, Unavailable
from splip.ops import host
from splip.ops.host import HostGallery

MAGIC, VERSION = b"splippak", 1  # the version changes with the layout that the scan reads (csrc/cpu/packed.h)
PAGE = 4096  # arrays of a pack start at pages: the scan loads panels at 64-byte addresses
HEADER = struct.Struct("<8sIIQI" + "QQI" * 5)  # magic, version, D, count, crc of the rows; offset, bytes, crc of each
WRITE = 64 << 20  # bytes at a time


@dataclass(frozen=True)
class Pack:
    """A pack file whose header is in order."""

    count: int  # rows that it was made of, from the segment's first
    crc: int  # of those rows' bytes
    arrays: tuple[tuple[int, int, int], ...]  # offset, bytes, crc of panels, scale, error, inverse, centre
    data: np.ndarray  # uint8: the whole file, memory-mapped

    def intact(self) -> bool:
        """Read everything and compare it with its checksums."""
        return all(zlib.crc32(self.data[start : start + length].data) == crc for start, length, crc in self.arrays)


def _write_all(handle: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(handle, data[:WRITE], offset)
        data, offset = data[written:], offset + written


class Segments:
    """The files of one gallery's vectors.

    Args:
        folder: ``vectors`` of the gallery.
        dim: D.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        self.folder, self.dim = folder, dim

    def rows_path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.f32"

    def pack_path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.pack"

    # ---- rows ----

    def append(self, number: int, start: int, rows: np.ndarray, crc: int) -> int:
        """Write rows at a position and wait until the disk has them.

        Args:
            number: of the segment.
            start: rows committed before.
            rows: float32 ``[n, D]``.
            crc: of the rows before.

        Returns:
            The crc of all rows up to here.
        """
        data = np.ascontiguousarray(rows, dtype="<f4").data.cast("B")
        handle = os.open(self.rows_path(number), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _write_all(handle, data, start * self.dim * 4)
            os.fsync(handle)
        finally:
            os.close(handle)
        if not start:  # perhaps a new file
            sync_folder(self.folder)
        return zlib.crc32(data, crc)

    def check_size(self, number: int, count: int) -> None:
        """Raises GalleryError: the file is not there or shorter than what was committed."""
        path, needed = self.rows_path(number), count * self.dim * 4
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise GalleryError(f"{path}: missing; the gallery is damaged") from None
        if size < needed:
            raise GalleryError(
                f"{path}: truncated: {size} bytes, {needed} were committed; restore it, or make the gallery again"
            )

    def check_mapped(self, number: int, count: int, pack: int) -> None:
        """Look whether files that are mapped still have what they had: reading what is gone would end the process.

        Args:
            number: of the segment.
            count: rows that may be read.
            pack: bytes of its pack file; 0: it is not mapped.

        Raises:
            Unavailable: one was cut off. One that is gone stays mapped: a compaction took its name away.
        """
        for path, needed in ((self.rows_path(number), count * self.dim * 4), (self.pack_path(number), pack)):
            with contextlib.suppress(FileNotFoundError):
                if needed and (size := path.stat().st_size) < needed:
                    raise Unavailable(f"{path}: truncated: {size} bytes, {needed} are in use; restore it")

    def map_rows(self, number: int, first: int, count: int) -> np.ndarray:
        """Rows ``[count, D]`` as they lie in the page cache; private, so that who reads them may believe they could write."""
        shape, offset = (count, self.dim), first * self.dim * 4
        return np.asarray(np.memmap(self.rows_path(number), "<f4", mode="c", offset=offset, shape=shape))

    def read_rows(self, number: int, first: int, count: int) -> np.ndarray:
        """A copy of rows ``[count, D]``."""
        rows = np.empty((count, self.dim), dtype="<f4")
        handle = os.open(self.rows_path(number), os.O_RDONLY | os.O_CLOEXEC)
        try:
            data, offset = rows.data.cast("B"), first * self.dim * 4
            while data:
                got = os.preadv(handle, [data[:WRITE]], offset)
                if not got:
                    raise GalleryError(f"{self.rows_path(number)}: truncated while it was read")
                data, offset = data[got:], offset + got
        finally:
            os.close(handle)
        return rows

    # ---- packs ----

    def write_pack(self, number: int, count: int, crc: int) -> None:
        """Pack the first rows of a segment; ``crc`` is that of their bytes."""
        _, *parts = host.pack(self.map_rows(number, 0, count))
        arrays = [part.data.cast("B") for part in parts]
        offset, places = PAGE, []
        for data in arrays:
            places.append((offset, len(data), zlib.crc32(data)))
            offset = (offset + len(data) + PAGE - 1) // PAGE * PAGE
        header = HEADER.pack(MAGIC, VERSION, self.dim, count, crc, *(v for place in places for v in place))
        header += struct.pack("<I", zlib.crc32(header))
        path = self.pack_path(number)
        temporary = path.with_suffix(".pack.new")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            for data, (start, _, _) in zip(arrays, places, strict=True):
                _write_all(handle, data, start)
            _write_all(handle, memoryview(header), 0)
            os.ftruncate(handle, offset)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
        sync_folder(self.folder)

    def open_pack(self, number: int) -> Pack | None:
        """A segment's pack, memory-mapped; None: there is none, or one that this version cannot use."""
        try:  # one map for header and arrays: another file may take the name at any moment
            data = np.asarray(np.memmap(self.pack_path(number), np.uint8, mode="c"))
        except (FileNotFoundError, ValueError):  # ValueError: an empty file
            return None
        page = data[: HEADER.size + 4].tobytes()
        if len(data) < PAGE or page[HEADER.size :] != struct.pack("<I", zlib.crc32(page[: HEADER.size])):
            return None
        magic, version, dim, count, crc, *rest = HEADER.unpack(page[: HEADER.size])
        arrays = tuple(zip(rest[::3], rest[1::3], rest[2::3], strict=True))
        _, *wanted = host.sizes(count, dim).values()
        sizes = [dtype.itemsize * shape[0] for dtype, shape in wanted]
        if (magic, version, dim) != (MAGIC, VERSION, self.dim) or [a[1] for a in arrays] != sizes:
            return None
        if any(offset % PAGE or offset + length > len(data) for offset, length, _ in arrays):
            return None
        return Pack(count, crc, arrays, data)

    def use_pack(self, number: int, pack: Pack) -> HostGallery:
        """What a search takes: the pack and the rows that it was made of."""
        views = [
            pack.data[offset : offset + length].view(dtype)
            for (offset, length, _), dtype in zip(pack.arrays, ("u1", "<f4", "<f4", "<f8", "<f4"), strict=True)
        ]
        return HostGallery(self.map_rows(number, 0, pack.count), *views)

    # ---- tidying ----

    def sweep(self, numbers: set[int]) -> None:
        """Remove the files of segments that are not in use, and unfinished ones. For the writer only."""
        for path in list(self.folder.iterdir()):
            known = path.suffix in (".f32", ".pack") and path.stem.isdigit() and int(path.stem) in numbers
            ours = path.suffix in (".f32", ".pack") or path.name.endswith(".pack.new")
            if ours and not known:
                path.unlink(missing_ok=True)


def is_full(error: OSError) -> bool:
    """True if a disk, a quota or a limit on file sizes stopped a write."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
