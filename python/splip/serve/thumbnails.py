"""The gallery's own files, opened with care, and small versions of them."""

import hashlib
import io
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from splip import images
from splip.errors import UnreadablePicture
from splip.images import archive
from splip.serve.metrics import Telemetry
from splip.serve.queries import MEDIA, TooLarge, open_header

SIDES = (128, 256, 512, 1024, 2048)
STORED = 256  # that a gallery may keep
MAX_FILE = 512 * 2**20  # bytes of a file that is read whole


class File:
    """A picture of the gallery, open; nothing but a regular file with the head of a picture becomes one.

    Args:
        path: where the gallery says it is.

    Raises:
        UnreadablePicture: it is gone, or something else by now.
    """

    hash: bytes | None = None  # of its content, if the gallery knows that it is still this

    def __init__(self, path: Path) -> None:
        inside = archive.split(path)
        if inside is not None:
            self._open_member(path)
            return
        try:
            # Without O_NONBLOCK, a pipe that was put in its place would hold the thread for ever.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError):
            raise UnreadablePicture(path.name, "the file is gone") from None
        self.stream: BinaryIO = os.fdopen(descriptor, "rb")
        try:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise UnreadablePicture(path.name, "it is not a regular file any more")
            self.size, self.mtime_ns = about.st_size, about.st_mtime_ns
            self.version = hashlib.sha256(f"{path}|{about.st_ino}|{about.st_mtime_ns}|{self.size}".encode(
                errors="surrogateescape")).hexdigest()[:24]  # fmt: skip
            self._read_header(path.name)
        except BaseException:
            self.stream.close()
            raise

    def _open_member(self, path: Path) -> None:
        """A picture in a tar file: read at once, for the tar file is open to be read by others too."""
        try:
            self.size, self.mtime_ns = archive.facts(path)
            data = archive.read(path) if self.size <= MAX_FILE else b""
        except OSError:
            raise UnreadablePicture(path.name, "the file is gone") from None
        self.stream = io.BytesIO(data)
        self.version = hashlib.sha256(
            f"{path}|{self.mtime_ns}|{self.size}".encode(errors="surrogateescape")
        ).hexdigest()[:24]
        self._read_header(path.name)

    def _read_header(self, name: str) -> None:
        header = open_header(self.stream, name, MEDIA)
        self.format, self.pixels = header.format or "", header.size[0] * header.size[1]
        self.stream.seek(0)

    @property
    def media_type(self) -> str:
        return MEDIA[self.format]

    def read(self, max_pixels: int) -> bytes:
        """The whole file.

        Raises:
            TooLarge: more pixels than ``max_pixels``, or more bytes than a picture should have.
        """
        with self.stream:
            if self.pixels > max_pixels or self.size > MAX_FILE:
                raise TooLarge(f"the picture has more than {max_pixels / 1e6:g} million pixels")
            return self.stream.read()

    def close(self) -> None:
        self.stream.close()


def make(file: File, side: int, max_pixels: int) -> bytes:
    """A JPEG of a picture, upright, its longer side at most ``side``; closes the file."""
    image = images.read(file.read(max_pixels), "picture", images.least_side(side))
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return out.getvalue()


class Thumbnails:
    """Thumbnails in memory, the least used forgotten first.

    Args:
        capacity: bytes to keep.
        max_pixels: of a picture to make one of.
        stored: what the gallery has of a content, its longer side at most ``STORED``.
    """

    def __init__(
        self,
        capacity: int,
        max_pixels: int,
        telemetry: Telemetry,
        stored: Callable[[bytes], bytes | None] | None = None,
    ) -> None:
        self.capacity, self.max_pixels, self.telemetry, self.stored = capacity, max_pixels, telemetry, stored
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, file: File, side: int) -> bytes:
        """A JPEG whose longer side is at most ``side``; closes the file."""
        key = (file.version, side)
        with self._lock:
            data = self._kept.get(key)
            if data is not None:
                self._kept.move_to_end(key)
        if data is None and side == STORED and file.hash is not None and self.stored is not None:
            data = self.stored(file.hash)
            if data is not None:
                self.telemetry.thumbnails.labels("stored").inc()
                file.close()
                return data
        self.telemetry.thumbnails.labels("made" if data is None else "kept").inc()
        if data is not None:
            file.close()
            return data
        data = make(file, side, self.max_pixels)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = data
                self._bytes += len(data)
            while self._bytes > self.capacity:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return data
