"""From picture files to square uint8 arrays: one definition for training, evaluation, export and serving.

Needs Pillow and numpy only, so that exported encoders run where torch is not installed. Files come from anywhere:
only the readers of the formats in ``MEDIA`` see them, and what is decoded at the same time has a limit on its memory.
"""

import contextlib
import ctypes
import functools
import io
import math
import os
import struct
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageChops, ImageCms, JpegImagePlugin, TiffImagePlugin, features

from splip.errors import Skipped, UnreadablePicture, shown
from splip.images import archive, header

Fit = Literal["pad", "stretch", "crop", "pad-black"]

# Pillow's name of each format that is read, and its media type: what is read can be shown. Pillow knows forty more,
# among them EPS, for which it runs Ghostscript.
MEDIA = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
    "HEIF": "image/heif",
}
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

DECODING = 2
"""How pictures become arrays; a gallery notes what made its vectors, and keeps to it.

1: decoded in full, colours as they are stored.
2: decoders leave out detail that the model does not see (``least_side``), and colours are converted to sRGB.
"""

INK_MARGIN = 0.06  # border that crop_to_ink leaves, as a share of the side
INK_THRESHOLD = 8  # grey levels below white
SKETCH_SIDE = 2048  # that a sketch keeps at least: its ink may fill a small part of it

MEMORY = 1_200_000_000  # bytes for all pictures that are being decoded; with their files (ingest.FILES) 1.5 GB
MAX_PIXELS = 178_956_970  # of what is decoded; a JPEG's decoder shrinks first
MAX_JPEG = 1_000_000_000  # pixels of a JPEG that is shrunk
MAX_BYTES = 3_000_000_000  # that decoding one picture may take
IN_FULL = 40_000_000  # pixels up to which decoding 1 is kept to
MARKERS = 1 << 16  # bytes that are searched at a time
STRIP = 1 << 20  # pixels that are converted at a time
KEPT = 64 << 20  # bytes that a thread may keep for its next picture

# Bytes for each pixel while a format is decoded, measured; others take what their pixels take.
COSTS = {"WEBP": 16, "AVIF": 12, "HEIF": 12, "TIFF": 8}
MODES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2}  # others take four bytes a pixel
COEFFICIENTS = 6  # bytes a pixel: a JPEG of several scans is kept whole until the last, shrunk or not
SIXTEEN = ("I", "I;16", "I;16B", "I;16L", "F")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Budget:
    """Memory that threads share, in the order in which they ask; what needs more than there is has it alone.

    Args:
        total: bytes.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def room(self, amount: int) -> Iterator[None]:
        """Wait until there is room, and hold it for as long as the block lasts. Blocks of one budget must not nest."""
        turn = object()
        with self._changed:
            amount = min(amount, self.total)
            self._waiting.append(turn)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is turn and self._used + amount <= self.total)
                self._used += amount
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


decoding_memory = Budget(MEMORY)


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that can be read here; HEIF if pillow-heif is installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    _silence_libtiff()
    have = {"AVIF": features.check("avif"), "WEBP": features.check("webp")}
    return tuple(form for form in MEDIA if form in Image.OPEN and have.get(form, True))


def _silence_libtiff() -> None:
    """Damaged TIFFs are told by their errors; the library's own lines on standard error name no file."""
    with contextlib.suppress(OSError, AttributeError):  # elsewhere than on Linux, or built in
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            paths = {path for line in maps if "libtiff" in (path := line.split(maxsplit=5)[-1].strip())}
        for path in paths:
            library = ctypes.CDLL(path)
            for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
                setter = getattr(library, name)
                setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
                setter(None)


def least_side(side: int, crop_ink: bool = False) -> int:
    """Pixels that the shorter side of a picture keeps at least before it becomes a square of ``side``."""
    return max(2 * side, SKETCH_SIDE) if crop_ink else 2 * side


def read(
    source: Path | str | bytes, name: object = None, least: int | None = None, decoding: int = DECODING
) -> Image.Image:
    """Decode a picture to RGB: first frame, upright (EXIF), transparency on white, in sRGB.

    What its header says is in its ``info["header"]``, a :class:`splip.images.header.Header`.

    Args:
        source: a file, also one in a tar file (:mod:`splip.images.archive`), or the bytes of one.
        name: what errors call it; a file's own path if None.
        least: it may be shrunk to no less than this on its shorter side, to be read quicker; None: it is read in full.
        decoding: see ``DECODING``.

    Raises:
        UnreadablePicture: not there, empty, truncated, too large, or not a picture of a format that is read.
    """
    source = Path(source) if isinstance(source, str) else source
    path = name if name is not None else (source if isinstance(source, Path) else "upload")
    try:
        if isinstance(source, Path) and archive.split(source) is not None:
            source = archive.read(source)
        if not (source if isinstance(source, bytes) else source.stat().st_size):
            raise UnreadablePicture(path, "the file is empty")
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            return _decode(file, least, decoding)
    except UnreadablePicture:
        raise
    except FileNotFoundError:
        raise UnreadablePicture(path, "no such file") from None
    except Exception as error:  # Pillow raises many types for damaged files
        raise UnreadablePicture(path, _reason(error)) from None


def read_header(source: Path | bytes) -> header.Header | None:
    """What a picture's header says, without decoding any of it; None: it says nothing that is understood.

    Args:
        source: a file, also one in a tar file, or the bytes of one.

    Raises:
        UnreadablePicture: its tar file is cut off. OSError: the file cannot be read, which says nothing of the picture.
    """
    if isinstance(source, Path) and archive.split(source) is not None:
        source = archive.read(source)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            if (size := _webp_size(file)) is not None:
                return header.of_webp(size, file)
            with _open(file) as image:
                if image.format == "PNG" and "exif" not in image.info and (exif := header.png_exif(file)) is not None:
                    image.info["exif"] = exif  # behind the pixels: a reader of all of it finds it
                size, orientation = image.size, _orientation(image)
                if isinstance(image, TiffImagePlugin.TiffImageFile):  # some Pillows tell the size of what is upright
                    size = int(image.tag_v2[256]), int(image.tag_v2[257])
                return header.of(size, orientation, _tags(image, file))
    except Exception as error:  # as read: many types
        if header.of_disk(error):
            raise
        return None


def _tags(image: Image.Image, file: BinaryIO) -> dict[int, bytes]:
    """As :func:`splip.images.header.tags`; nothing where a header is beyond it, which spoils no picture."""
    try:
        return header.tags(image, file)
    except Exception as error:
        if header.of_disk(error):
            raise
        return {}


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shown(" ".join(text.split())) or type(error).__name__


def _decode(file: BinaryIO, least: int | None, decoding: int) -> Image.Image:
    size = _webp_size(file)
    if size is None:
        with _open(file) as image:
            return _shrunk(image, file, least, decoding)
    # Its decoder sets the whole canvas aside when it opens the file, and keeps it until it goes itself.
    cost = COSTS["WEBP"] * math.prod(size)
    _limit(math.prod(size), cost)
    with decoding_memory.room(cost):
        small = _shrunk(_open(file), file, least, decoding, room=False)
        _give_back(cost)
        return small


def _shrunk(image: Image.Image, file: BinaryIO, least: int | None, decoding: int, room: bool = True) -> Image.Image:
    """Decode what was opened; ``room``: when there is room for it."""
    size, pixels, drafted = image.size, image.width * image.height, None
    found = _tags(image, file)  # before TIFFs are decoded, which closes them
    if decoding == 1 and pixels <= IN_FULL:
        least = None
    cost = pixels * COEFFICIENTS if _many_scans(image, file) else 0
    if least is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
        if pixels > MAX_JPEG:
            raise ValueError("too many pixels")
        drafted = image.draft(image.mode, (least, least))
        pixels = image.width * image.height
    factor = 1 if least is None else max(1, min(image.size) // least)
    each = COSTS.get(image.format or "", MODES.get(image.mode, 4)) + (8 if factor == 1 else 0)
    cost += pixels * each
    _limit(pixels, cost)
    with decoding_memory.room(cost) if room else contextlib.nullcontext():
        image.load()
        width, height = drafted[1][2:] if drafted is not None else image.size
        orientation, profile = _orientation(image), image.info.get("icc_profile")
        about = header.of(size, orientation, found or _tags(image, file))
        small = _shrink(image, factor)
        small = _to_srgb(small, profile) if profile and decoding >= 2 else small.convert("RGB")
        image.close()  # and with it its pixels: ``small`` is another picture
        _give_back(cost)
    small = _turn(small, (width / factor, height / factor), orientation)
    small.info["header"] = about
    return small


def _orientation(image: Image.Image) -> int | None:
    """EXIF's number; None where what stands there is no EXIF."""
    with contextlib.suppress(Exception):  # Pillow's are of many types
        # The method of the class: that of PNGs decodes the picture, for what may stand behind it.
        number = Image.Image.getexif(image).get(0x0112)
        return number if isinstance(number, int) else None
    return None


def _give_back(freed: int) -> None:
    """Return freed memory to the system: each thread's allocator would keep what it once had."""
    if freed > KEPT:
        with contextlib.suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def _turn(image: Image.Image, extent: tuple[float, float], orientation: int | None) -> Image.Image:
    """Upright, with a note of what part of its pixels the picture covers: the last column and row may stand for less."""
    (width, height), (right, bottom) = image.size, extent
    left, top = width - right, height - bottom  # where it begins if the side is turned round
    boxes = {
        2: (left, 0, width, bottom),
        3: (left, top, width, height),
        4: (0, top, right, height),
        5: (0, 0, bottom, right),
        6: (top, 0, height, right),
        7: (top, left, height, width),
        8: (0, left, bottom, width),
    }
    box = boxes.get(orientation or 1, (0, 0, right, bottom))
    if orientation in TURNS:
        image = image.transpose(TURNS[orientation])
    if extent != (width, height):
        image.info["extent"] = image.size, box
    return image


def _limit(pixels: int, cost: int) -> None:
    if pixels > MAX_PIXELS or cost > MAX_BYTES:
        raise ValueError("too many pixels")


def _open(file: BinaryIO) -> Image.Image:
    """As ``Image.open``, by the readers of our formats only, and with our limits."""
    prefix = file.read(16)
    for form in formats():
        factory, accept = Image.OPEN[form]
        if accept is not None and accept(prefix) is not True:
            continue
        file.seek(0)
        # As Pillow does: these mean that another format may fit.
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
            return factory(file, "")
    raise ValueError("not a picture, damaged, or of a format that is not read")


def _webp_size(file: BinaryIO) -> tuple[int, int] | None:
    """Width and height in the header of a WebP; None: it is none."""
    head = file.read(30)
    file.seek(0)
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return None
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def _many_scans(image: Image.Image, file: BinaryIO) -> bool:
    """Whether a JPEG's decoder keeps all of it until the last scan."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return False
    # A colour a scan needs three; a thumbnail inside or a second picture behind count without harm.
    return bool(image.info.get("progressive")) or (isinstance(file, io.BytesIO) and _scans(file.getvalue()) > 2)


def _scans(data: bytes) -> int:
    """How often a JPEG begins a scan; ``count`` of bytes takes five times as long, and no other thread runs meanwhile."""
    values, found = np.frombuffer(data, np.uint8), 0
    for first in range(0, len(values), MARKERS):
        some = values[first : first + MARKERS + 1]
        found += int(np.count_nonzero((some[:-1] == 0xFF) & (some[1:] == 0xDA)))
    return found


def _shrink(image: Image.Image, factor: int) -> Image.Image:
    """A picture averaged over squares of ``factor``, without transparency and of 8 bits: RGB, L or CMYK."""
    if image.mode in ("RGB", "L", "CMYK") and "transparency" not in image.info:
        return image.reduce(factor) if factor > 1 else image
    width, height = image.size
    rows = max(STRIP // (width * factor), 1) * factor

    def strips() -> Iterator[tuple[int, Image.Image]]:
        for top in range(0, height, rows):
            yield top, image.crop((0, top, width, min(top + rows, height)))

    sixteen = image.mode in SIXTEEN
    largest = max(np.asarray(strip).max() for _, strip in strips()) if sixteen else 0
    small: Image.Image | None = None
    for top, strip in strips():
        strip = _eight_bits(strip, largest) if sixteen else _on_white(strip)
        strip = strip.reduce(factor) if factor > 1 else strip
        if small is None:
            small = Image.new(strip.mode, (-(-width // factor), -(-height // factor)))
        small.paste(strip, (0, top // factor))
    assert small is not None
    return small


def _eight_bits(image: Image.Image, largest: float) -> Image.Image:
    """The upper 8 of 16 bits; values that all fit into 8 are taken as such."""
    values = np.asarray(image)
    if values.dtype.kind == "f":
        top = 65535.0 if largest > 255 else 255.0
        scaled = np.nan_to_num(values, nan=0.0) * np.float32(255 / top)
        return Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
    values = values.clip(0, 65535)
    return Image.fromarray((values // 257 if largest > 255 else values).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] == 255:  # as browsers write what is drawn: nothing shows through
            return image.convert("RGB")
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        canvas.alpha_composite(image)
        image = canvas
    return image.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Colours as a screen shows them; as they are where the profile does not fit or is damaged."""
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(own.profile.xcolor_space.strip())
        if space == image.mode and "srgb" not in ImageCms.getProfileDescription(own).lower():
            to = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, own, to, outputMode="RGB")
            return converted if converted is not None else image.convert("RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError, ImportError):
        pass  # many files carry a profile that is no use
    return image.convert("RGB")


def crop_to_ink(image: Image.Image) -> Image.Image:
    """Crop to what is not white, plus a border; a picture that already fills its frame stays as it is."""
    red, green, blue = image.split()
    low = ImageChops.darker(ImageChops.darker(red, green), blue)
    box = low.point([255 * (255 - v > INK_THRESHOLD) for v in range(256)]).getbbox()  # None: blank
    if box is None:
        return image
    left, top, right, bottom = box
    border = round(max(bottom - top, right - left) * INK_MARGIN / (1 - 2 * INK_MARGIN))
    box = (left - border, top - border, right + border, bottom + border)
    side = max(box[2] - box[0], box[3] - box[1])
    if side > 0.92 * max(image.size):
        return image
    canvas = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), (255, 255, 255))
    canvas.paste(image, (-box[0], -box[1]))
    return canvas


def square(image: Image.Image, side: int, fit: Fit = "pad", crop_ink: bool = False) -> np.ndarray:
    """A picture as uint8 ``[side, side, 3]``."""
    if crop_ink:
        image = crop_to_ink(image)
    size, box = image.info.get("extent", (None, ()))  # of what ``read`` shrank
    left, top, right, bottom = box if size == image.size else (0, 0, *image.size)
    width, height = right - left, bottom - top
    if (width, height) == (side, side):
        return np.asarray(image)
    shape = (side, side)
    if fit == "crop":  # the middle
        kept = min(width, height)
        left, top = left + (width - kept) * 0.5, top + (height - kept) * 0.5
        right, bottom = left + kept, top + kept
    elif fit in ("pad", "pad-black"):
        longer = max(width, height)
        shape = (max(1, round(width / longer * side)), max(1, round(height / longer * side)))
    small = image.resize(shape, Image.Resampling.BICUBIC, (left, top, right, bottom))
    if shape == (side, side):
        return np.asarray(small)
    canvas = Image.new("RGB", (side, side), (0, 0, 0) if fit == "pad-black" else (255, 255, 255))
    canvas.paste(small, (round((side - small.width) * 0.5), round((side - small.height) * 0.5)))
    return np.asarray(canvas)


def find(folders: Iterable[Path]) -> list[Path]:
    """All pictures below the folders, sorted; a path that is a file is taken as it is."""
    found: set[Path] = set()
    for folder in folders:
        if folder.is_dir():
            found.update(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        else:
            found.add(folder)
    return sorted(found)


def decode(
    paths: Sequence[Path], side: int, fit: Fit = "pad", crop_ink: bool = False, threads: int | None = None
) -> list[np.ndarray | Skipped]:
    """Pictures as uint8 ``[side, side, 3]``, several at a time; the reason stands in for what cannot be read.

    ``threads`` is by default the number of processors that this process may use.
    """

    least = least_side(side, crop_ink)

    def one(path: Path) -> np.ndarray | Skipped:
        try:
            return square(read(path, least=least), side, fit, crop_ink)
        except UnreadablePicture as error:
            return error.skipped

    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(one, paths))


def write_skipped(path: Path, skipped: Sequence[Skipped]) -> None:
    """List pictures that were left out, one a line with the reason; no file when there are none."""
    if skipped:
        lines = (f"{_on_one_line(s.path)}\t{_on_one_line(s.reason)}\n" for s in skipped)
        path.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    else:
        path.unlink(missing_ok=True)


def _on_one_line(value: object) -> str:
    """As ``shown``, but bytes of a name that are no text stay those bytes."""
    return "".join(c if "\udc80" <= c <= "\udcff" else shown(c) for c in str(value))
