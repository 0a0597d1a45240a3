"""What a picture's header says of the photograph: when it was taken, by which camera, and how large it is.

EXIF comes from anywhere. Of its thousands of tags seven are looked at, each through at most ``VALUE`` bytes, whatever
it claims to hold; what makes no sense is as if it were not there.
"""

import datetime
import errno
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image

MAKE, MODEL, ORIENTATION, DATE_TIME, EXIF = 0x010F, 0x0110, 0x0112, 0x0132, 0x8769
ORIGINAL, DIGITIZED = 0x9003, 0x9004
VALUE = 256  # bytes of a value that are read
ENTRIES = 512  # tags of a directory that are looked at
SIZES = {2: 1, 3: 2, 4: 4, 7: 1, 13: 4, 129: 1}  # bytes of the types that our tags may have
CHUNKS = 10_000  # of a WebP or PNG that are passed over
PROFILE = 1 << 18  # bytes of EXIF that a PNG holds, or characters as text
FIRST_YEAR = 1826  # of the oldest photograph that is left
NAME = 100  # characters of a camera's name
DATE = re.compile(rb"\s*(\d{4})[:/.-](\d\d?)[:/.-](\d\d?)(?:[ T]+(\d\d?):(\d\d?)(?::(\d\d?))?)?(?!\d)")

Read = Callable[[int, int], bytes]
"""Bytes from an offset, at most so many."""


@dataclass(frozen=True)
class Header:
    """What is known of a picture without its pixels."""

    width: int  # upright, pixels
    height: int
    taken: str | None = None  # by the camera's clock, "2019-07-14T10:02:03"
    camera: str | None = None


def of(size: tuple[int, int], orientation: object, found: Mapping[int, bytes]) -> Header:
    """A header.

    Args:
        size: width and height as they are stored.
        orientation: EXIF's number; 5 to 8 lie on their side.
        found: what :func:`tags` found.
    """
    width, height = size[::-1] if orientation in (5, 6, 7, 8) else size
    taken = next((date for tag in (ORIGINAL, DIGITIZED, DATE_TIME) if (date := _date(found.get(tag, b"")))), None)
    return Header(width, height, taken, _camera(_text(found.get(MAKE, b"")), _text(found.get(MODEL, b""))))


def tags(image: Image.Image, file: BinaryIO) -> dict[int, bytes]:
    """The values of our tags, as they are stored.

    Args:
        image: opened; of a PNG more is known once it is decoded.
        file: it was opened from; read for TIFFs only, which are EXIF themselves.
    """
    if image.format == "TIFF":
        return _exif(_at(file), 0)[1]
    blob = image.info.get("exif")
    if blob is None and isinstance(raw := image.info.get("Raw profile type exif"), str):  # ImageMagick's PNGs
        digits = "".join(raw[:PROFILE].split("\n")[3:])
        blob = bytes.fromhex(digits[: len(digits) // 2 * 2]) if re.fullmatch("[0-9a-fA-F]*", digits) else None
    return _exif(lambda offset, size: blob[offset : offset + size], 0)[1] if isinstance(blob, bytes) else {}


def of_disk(error: Exception) -> bool:
    """Whether a file could not be read; Pillow's errors of damaged files have no number, a place that is none is EINVAL."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def _at(file: BinaryIO) -> Read:
    """Reads a file, and leaves its position as it was."""

    def read(offset: int, size: int) -> bytes:
        here = file.tell()
        try:
            file.seek(offset)
            return file.read(size)
        finally:
            file.seek(here)

    return read


def png_exif(file: BinaryIO) -> bytes | None:
    """EXIF of a PNG wherever it stands, also behind the pixels, which are passed over; None: there is none."""
    read, place = _at(file), 8
    for _ in range(CHUNKS):
        head = read(place, 8)
        if len(head) < 8:
            break
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"eXIf":
            return read(place + 8, min(length, PROFILE))
        place += 12 + length
    return None


def of_webp(size: tuple[int, int], file: BinaryIO) -> Header:
    """The header of a WebP, whose reader would set its canvas aside: by its chunks, whose contents are passed over."""
    read, place = _at(file), 12
    for _ in range(CHUNKS):
        head = read(place, 8)
        if len(head) < 8:
            break
        if head[:4] == b"EXIF":
            return of(size, *_exif(read, place + 8))
        length = int.from_bytes(head[4:], "little")
        place += 8 + length + length % 2
    return Header(*size)


def _exif(read: Read, start: int) -> tuple[int | None, dict[int, bytes]]:
    """Orientation, and the values of the other tags, of EXIF that begins somewhere; nothing where there is none."""
    for _ in range(2):  # it is written twice by some
        start += 6 if read(start, 6) == b"Exif\0\0" else 0
    head = read(start, 8)
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(head[:4])
    if order is None or len(head) < 8:
        return None, {}
    number: Callable[[bytes], int] = lambda data: int.from_bytes(data, order)  # type: ignore[arg-type]  # noqa: E731

    def directory(place: int, wanted: tuple[int, ...]) -> dict[int, bytes]:
        count = min(number(read(start + place, 2)), ENTRIES)
        entries = read(start + place + 2, 12 * count)
        found: dict[int, bytes] = {}
        for first in range(0, len(entries) - 11, 12):
            tag, kind = number(entries[first : first + 2]), number(entries[first + 2 : first + 4])
            if tag not in wanted or tag in found or kind not in SIZES:
                continue
            size, value = SIZES[kind] * number(entries[first + 4 : first + 8]), entries[first + 8 : first + 12]
            found[tag] = value[:size] if size <= 4 else read(start + number(value), min(size, VALUE))
        return found

    main = directory(number(head[4:]), (MAKE, MODEL, ORIENTATION, DATE_TIME, EXIF))
    inner = directory(number(main[EXIF][:4]), (ORIGINAL, DIGITIZED)) if EXIF in main else {}
    turned = number(main[ORIENTATION][:4]) if ORIENTATION in main else None
    return turned, {**main, **inner}


def _text(value: bytes) -> str:
    """On one line, as far as it is text."""
    text = value.split(b"\0", 1)[0].decode("utf-8", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text.replace("\ufffd", " ")).split())


def _camera(make: str, model: str) -> str | None:
    """ "Canon EOS 80D" of Canon and Canon EOS 80D, "Apple iPhone 12" of Apple and iPhone 12."""
    first = make.split(" ")[0]
    doubled = model.casefold().startswith(first.casefold()) if model else False
    return (model if doubled else f"{make} {model}".strip())[:NAME].strip() or None


def _date(value: bytes) -> str | None:
    """A date and time as they are written to EXIF, and nearly so; None: nonsense, or not yet."""
    found = DATE.match(value)
    if found is None:
        return None
    try:
        date = datetime.datetime(*(int(part or 0) for part in found.groups()))  # type: ignore[arg-type]
    except ValueError:
        return None
    latest = datetime.datetime.now() + datetime.timedelta(days=1)
    return date.isoformat() if date.year >= FIRST_YEAR and date <= latest else None
