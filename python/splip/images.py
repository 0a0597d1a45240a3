"""From picture files to square uint8 arrays: one definition for training, evaluation, export and serving.

Needs Pillow and numpy only, so that exported encoders run where torch is not installed.
"""

import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageChops, ImageOps

from splip import archive
from splip.errors import UnreadablePicture

Fit = Literal["pad", "stretch", "crop"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
INK_MARGIN = 0.06  # border that crop_to_ink leaves, as a share of the side
INK_THRESHOLD = 8  # grey levels below white


def read(source: Path | bytes, name: object = None) -> Image.Image:
    """Decode a picture to RGB: first frame, upright (EXIF), transparency on white.

    Args:
        source: a file, also one in a tar file (:mod:`splip.archive`), or the bytes of one.
        name: what errors call it; a file's own path if None.

    Raises:
        UnreadablePicture: not there, empty, truncated, or not a picture.
    """
    path = name if name is not None else (source if isinstance(source, Path) else "upload")
    try:
        if isinstance(source, Path) and archive.split(source) is not None:
            source = archive.read(source)
        if not (source if isinstance(source, bytes) else source.stat().st_size):
            raise UnreadablePicture(path, "the file is empty")
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):  # 16 bits a channel: keep the upper 8
                values = np.asarray(image, dtype=np.float64)
                top = 65535.0 if values.max() > 255 else 255.0
                image = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
                canvas.alpha_composite(image)
                image = canvas
            return image.convert("RGB")
    except UnreadablePicture:
        raise
    except FileNotFoundError:
        raise UnreadablePicture(path, "no such file") from None
    except Image.DecompressionBombError:
        raise UnreadablePicture(path, "too many pixels") from None
    except Exception as error:  # Pillow raises many types for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if "cannot identify image file" in reason:
            reason = "not a picture, or damaged"
        raise UnreadablePicture(path, reason) from None


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
    if image.size != (side, side):
        resample = Image.Resampling.BICUBIC
        if fit == "pad":
            image = ImageOps.pad(image, (side, side), method=resample, color=(255, 255, 255))
        elif fit == "crop":
            image = ImageOps.fit(image, (side, side), method=resample)
        else:
            image = image.resize((side, side), resample)
    return np.asarray(image)


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
) -> list[np.ndarray | UnreadablePicture]:
    """Pictures as uint8 ``[side, side, 3]``, several at a time; an error stands in for what cannot be read.

    ``threads`` is by default the number of processors that this process may use.
    """

    def one(path: Path) -> np.ndarray | UnreadablePicture:
        try:
            return square(read(path), side, fit, crop_ink)
        except UnreadablePicture as error:
            return error

    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(one, paths))


def write_skipped(path: Path, skipped: Sequence[UnreadablePicture]) -> None:
    """List pictures that were left out, one a line with the reason; no file when there are none."""
    if skipped:
        path.write_text("".join(f"{s.path}\t{s.reason}\n" for s in skipped), encoding="utf-8", errors="surrogateescape")
    else:
        path.unlink(missing_ok=True)
