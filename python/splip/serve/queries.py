"""What a client sends as a query, checked and turned into a picture: files, SVG and strokes.

Everything here runs on untrusted bytes. A picture's size is read from its header before anything is decoded, and
only by the readers of the formats that ``MEDIA`` lists; Pillow knows many more.
"""

import base64
import binascii
import io
import math
from collections.abc import Iterable
from typing import Annotated, BinaryIO, Literal

import numpy as np
from PIL import Image, ImageDraw
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from splip import images
from splip.errors import UnreadablePicture, UserError
from splip.images import decode

MEDIA = decode.MEDIA
# libtiff has a long history of faults and prints to stderr: for the gallery's own files only.
UPLOADS = tuple(name for name in MEDIA if name != "TIFF")
MAX_SCANS = 200  # of a JPEG: each is a pass over all of its pixels
MAX_PASSED = 1_000_000_000  # pixels times scans: more than a second of work
BYTES = {"RGB": 12, "L": 12, "1": 12, "CMYK": 12, "YCbCr": 12, "I": 28, "I;16": 28, "I;16B": 28, "F": 28}
BYTES_ELSE = 20  # a pixel's memory while it is decoded, by mode: with transparency there are more copies
LARGE = 2048  # longer sides are shrunk first; the encoder sees a few hundred pixels
MAX_POINTS = 20_000
MAX_STROKES = 5000
MAX_LABELS = 100
MAX_LABEL = 1000  # characters
MIN_SPAN = 1e-6  # of a canvas; smaller ones overflow when they are scaled up to pixels
MAX_INK = 4e8  # pixels that a drawing's lines may touch, each as often as it is touched
STROKES_SIDE = 512
STROKE_WIDTH = 0.025  # of the longer side of the canvas, when none is given
MAX_TEXT = 400
MAX_PARTS = 16
MAX_PART_TEXTS = 4  # each is work of the text tower, for which a search waits in line but once


class TooLarge(UserError):
    """A picture with more pixels, or a document with more in it, than the service takes."""


class Blank(UserError):
    """A drawing with nothing on it."""


class Missing(UserError):
    """No picture with this id."""


class Busy(UserError):
    """The service has as much to do as it takes on."""


Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
Point = tuple[Number, Number]
# Without fail_fast a drawing of damaged points becomes a list of as many errors.
Lines = Annotated[list[Annotated[list[Point], Field(fail_fast=True)]], Field(fail_fast=True)]
Label = Annotated[str, Field(max_length=MAX_LABEL)]


def _plain_digits(value: object) -> object:
    """Python reads 1_0 and digits of other scripts as numbers; clients that send them do not mean what it reads."""
    if isinstance(value, str) and not (value.isascii() and value.removeprefix("-").isdigit()):
        raise ValueError("not a whole number in plain digits")
    return value


Whole = Annotated[int, BeforeValidator(_plain_digits)]


def _valid_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode text") from None
    if "\0" in text:
        raise ValueError("holds a NUL character")
    return text


class Like(BaseModel):
    """A part of a search beside its drawing or picture: a picture of the gallery, or words."""

    model_config = ConfigDict(extra="forbid")

    id: Whole | None = Field(default=None, ge=0, lt=2**63, description="A picture of the gallery.")
    text: str | None = Field(default=None, max_length=MAX_TEXT, description="Words.")
    weight: float = Field(
        default=1.0,
        ge=-100,
        le=100,
        allow_inf_nan=False,
        description="Beside 1 of the drawing; below 0: not like this.",
    )

    @field_validator("text")
    @classmethod
    def _text(cls, text: str | None) -> str | None:
        return None if text is None or not text.strip() else " ".join(_valid_text(text).split())

    @model_validator(mode="after")
    def _one(self) -> "Like":
        if (self.id is None) == (self.text is None):
            raise ValueError("either an id or a text")
        if not self.weight:
            raise ValueError("a weight is not 0")
        return self


class Query(BaseModel):
    """One search: a drawing or a picture, a text, or both; and more of what it is like, or not like."""

    model_config = ConfigDict(extra="forbid")

    strokes: Lines | None = Field(default=None, max_length=MAX_STROKES, description="Lines of a drawing, y downwards.")
    canvas: tuple[Number, Number] | None = Field(
        default=None,
        description="Width and height of what was drawn on; without it the drawing is fitted to the frame.",
    )
    stroke_width: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="In the units of the strokes; default: a fortieth of the longer side."
    )
    svg: str | None = Field(default=None, description="An SVG document of shapes and paths.")
    image: str | None = Field(default=None, description="A picture file, base64.")
    id: Whole | None = Field(default=None, ge=0, lt=2**63, description="A picture of the gallery: find more like it.")
    modality: Literal["sketch", "photo"] = Field(default="sketch", description="What the picture is.")
    text: str | None = Field(default=None, max_length=MAX_TEXT, description="Words that describe what to find.")
    text_weight: float = Field(
        default=0.5, ge=0, le=1, allow_inf_nan=False, description="Of the text beside a picture."
    )
    like: list[Like] = Field(
        default_factory=list,
        max_length=MAX_PARTS,
        description="What else photos are to be like, or not: weighted and summed.",
    )
    k: Whole = Field(default=24, ge=1, description="How many photos to find.")
    labels: list[Label] = Field(
        default_factory=list, max_length=MAX_LABELS, description="Only photos with one of these labels."
    )
    tags: dict[Label, Label] = Field(
        default_factory=dict, max_length=MAX_LABELS, description="Only photos with all these tags."
    )

    taken_from: str | None = Field(
        default=None, max_length=MAX_LABEL, description="Only photos taken then or later: 2019, 2019-07, 2019-07-14."
    )
    taken_to: str | None = Field(default=None, max_length=MAX_LABEL, description="Only photos taken then or earlier.")
    min_side: Whole | None = Field(
        default=None, ge=0, lt=2**31, description="Only photos of so many pixels on the shorter side, or more."
    )
    stack: bool = Field(default=True, description="Photos of the same content are one of the k.")

    @field_validator("text")
    @classmethod
    def _text(cls, text: str | None) -> str | None:
        return None if text is None or not text.strip() else " ".join(_valid_text(text).split())

    @field_validator("labels")
    @classmethod
    def _labels(cls, labels: list[str]) -> list[str]:
        return [_valid_text(label) for label in labels]

    @field_validator("tags")
    @classmethod
    def _tags(cls, tags: dict[str, str]) -> dict[str, str]:
        return {_valid_text(key): _valid_text(value) for key, value in tags.items()}

    @field_validator("like")
    @classmethod
    def _like(cls, like: list[Like]) -> list[Like]:
        if sum(part.text is not None for part in like) > MAX_PART_TEXTS:
            raise ValueError(f"more than {MAX_PART_TEXTS} texts")
        return like

    @field_validator("strokes")
    @classmethod
    def _points(cls, strokes: list[list[Point]] | None) -> list[list[Point]] | None:
        if strokes is not None and sum(map(len, strokes)) > MAX_POINTS:
            raise ValueError(f"more than {MAX_POINTS} points")
        return strokes

    def sources(self) -> list[str]:
        """Which fields name a picture."""
        return [name for name in ("strokes", "svg", "image", "id") if getattr(self, name) is not None]


# ---- pictures ----


def open_header(data: bytes | BinaryIO, name: object, formats: Iterable[str]) -> Image.Image:
    """Read the header of a picture in one of the formats; its pixels stay undecoded.

    Raises:
        UnreadablePicture: another format, or damaged.
        TooLarge: more pixels than Pillow opens.
    """
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        return Image.open(source, formats=[form for form in formats if form in Image.OPEN])
    except Image.DecompressionBombError:
        raise TooLarge("the picture has too many pixels") from None
    except Exception as error:  # Pillow raises many types for damaged files
        reason = " ".join(str(error).split())
        if not reason or "cannot identify image file" in reason:
            reason = "not a picture, damaged, or a format that is not taken"
        raise UnreadablePicture(name, reason) from None


def check_size(data: bytes, max_pixels: int) -> int:
    """Refuse a picture by what its header says, before any of it is decoded; returns the bytes that decoding takes.

    Raises:
        UnreadablePicture: not a picture in a format that is taken.
        TooLarge: more than ``max_pixels``, or a JPEG with more passes over its pixels than one would make.
    """
    if (canvas := webp_size(data)) is not None:  # Pillow sets a WebP's whole canvas aside when it opens the file
        _check_pixels(*canvas, max_pixels)
    with open_header(data, "upload", UPLOADS) as image:
        _check_pixels(image.width, image.height, max_pixels)
        pixels = image.width * image.height
        if image.format in ("JPEG", "MPO"):
            scans = data.count(b"\xff\xda")
            if scans > MAX_SCANS:
                raise TooLarge(f"the JPEG has more than {MAX_SCANS} scans")
            if scans * pixels > MAX_PASSED:
                raise TooLarge(f"the JPEG has {scans} scans of {pixels / 1e6:.0f} million pixels: too much to decode")
        return pixels * BYTES.get(image.mode, BYTES_ELSE)


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in the header of a WebP, of its extended, lossless or lossy kind; None: not a WebP."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooLarge(f"the picture has {width} x {height} pixels, more than {max_pixels / 1e6:g} million")


def read_picture(data: bytes, reading: tuple[int | None, int] = (None, decode.DECODING)) -> Image.Image:
    """Decode an upload that ``check_size`` let pass to RGB as ``images.read`` does; ``reading`` is its last arguments.

    Raises:
        UnreadablePicture: damaged.
    """
    image = images.read(data, None, *reading)
    if max(image.size) > LARGE:
        image.thumbnail((LARGE, LARGE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return image


def decode_base64(text: str) -> bytes:
    """The bytes of a picture in JSON; a ``data:`` URL's head is skipped.

    Raises:
        UserError: not base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("image is not valid base64") from None


def looks_like_svg(data: bytes) -> bool:
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    return head.startswith(b"<") and (b"<svg" in head or head.startswith((b"<?xml", b"<!DOCTYPE svg", b"<!--")))


def draw_strokes(query: Query) -> Image.Image:
    """A drawing as black lines with round ends on white, its longer side ``STROKES_SIDE``.

    Raises:
        Blank: no points.
        UserError: the canvas has no area.
    """
    assert query.strokes is not None
    lines = [np.asarray(line, dtype=np.float64).reshape(-1, 2) for line in query.strokes if line]
    if not lines:
        raise Blank("the drawing has no strokes")
    if query.canvas is not None:
        low, extent = np.zeros(2), np.asarray(query.canvas)
        if extent.min() < MIN_SPAN:
            raise UserError(f"canvas: width and height must be at least {MIN_SPAN:g}")
    else:
        points = np.concatenate(lines)
        span = max(float(np.ptp(points, axis=0).max()), MIN_SPAN)
        low = points.min(axis=0) - 0.08 * span
        extent = np.ptp(points, axis=0) + 0.16 * span
    side = float(extent.max())
    if side > 50 * float(extent.min()):
        extent = np.maximum(extent, side / 50)
    # Drawn at twice the size and halved, for smooth edges.
    scale = 2 * STROKES_SIDE / side
    size = [max(2, math.ceil(scale * e / 2) * 2) for e in extent]
    width = min(max(scale * (query.stroke_width or STROKE_WIDTH * side), 1.0), 0.2 * STROKES_SIDE)
    paths = [_thin((line - low) * scale) for line in lines]
    if sum(float(np.abs(np.diff(path, axis=0)).sum()) for path in paths) * width > MAX_INK:
        raise UserError("the strokes are too long in all")
    canvas = Image.new("L", (size[0], size[1]), 255)
    pen = ImageDraw.Draw(canvas)
    radius = width / 2
    for path in paths:
        dots = [(float(x), float(y)) for x, y in path]
        for start in range(0, len(dots) - 1, 64):  # in pieces: others get a turn between them
            pen.line(dots[start : start + 65], fill=0, width=max(1, round(width)), joint="curve")
        for x, y in (*dots[::64], dots[-1]):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=0)
    return canvas.resize((size[0] // 2, size[1] // 2), Image.Resampling.BOX).convert("RGB")


def _thin(path: np.ndarray) -> np.ndarray:
    """A line, float64 ``[P, 2]`` in pixels, without the points that hardly move on."""
    path = path.clip(-STROKES_SIDE, 3 * STROKES_SIDE)  # further out there is nothing to see
    kept = [0]
    for i in range(1, len(path)):
        if np.abs(path[i] - path[kept[-1]]).max() >= 1.0:
            kept.append(i)
    return path[kept]


def check_ink(prepared: np.ndarray) -> None:
    """Refuse a drawing, uint8 ``[S, S, 3]``, on which nothing is darker than the paper.

    Raises:
        Blank: all white.
    """
    if int(prepared.min()) >= 255 - decode.INK_THRESHOLD:
        raise Blank("the drawing is blank: draw dark lines on white")
