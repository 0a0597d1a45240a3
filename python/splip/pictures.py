"""From picture files to square uint8 tensors: one definition for training, evaluation and search."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.progress import Progress
from torch import Tensor

from splip.errors import UnreadablePicture

Fit = Literal["pad", "stretch", "crop"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
INK_MARGIN = 0.06  # border that crop_to_ink leaves, as a share of the side
INK_THRESHOLD = 8  # grey levels below white


def read(path: Path) -> Image.Image:
    """Decode a picture to RGB: first frame, upright (EXIF), transparency on white.

    Raises:
        UnreadablePicture: not there, empty, truncated, or not a picture.
    """
    try:
        if path.stat().st_size == 0:
            raise UnreadablePicture(path, "the file is empty")
        with Image.open(path) as image:
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
    ink = 255 - np.asarray(image).min(axis=2).astype(int) > INK_THRESHOLD
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if len(rows) == 0:
        return image
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    border = round(max(bottom - top, right - left) * INK_MARGIN / (1 - 2 * INK_MARGIN))
    box = (left - border, top - border, right + border, bottom + border)
    side = max(box[2] - box[0], box[3] - box[1])
    if side > 0.92 * max(image.size):
        return image
    canvas = Image.new("RGB", (int(box[2] - box[0]), int(box[3] - box[1])), (255, 255, 255))
    canvas.paste(image, (int(-box[0]), int(-box[1])))
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


class Pictures:
    """A list of pictures that can be asked for batches of tensors.

    They are decoded once and kept if they fit in ``memory_gb``, else decoded whenever asked for.
    Pictures that cannot be read are left out and listed in ``skipped``.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        side: int,
        fit: Fit = "pad",
        crop_ink: bool = False,
        memory_gb: float = 2.0,
        label: str = "Decoding",
        threads: int | None = None,
    ) -> None:
        self.side, self.fit, self.crop_ink = side, fit, crop_ink
        self.skipped: list[UnreadablePicture] = []
        self.paths = list(paths)
        self.kept = list(range(len(self.paths)))  # positions of the readable ones in the list given
        self._threads = threads or max(1, torch.get_num_threads())
        self._pixels: np.ndarray | None = None
        if len(self.paths) * side * side * 3 <= memory_gb * 1e9:
            self._load(label)

    def _load(self, label: str) -> None:
        pixels = np.empty((len(self.paths), self.side, self.side, 3), dtype=np.uint8)
        failed: dict[int, UnreadablePicture] = {}
        with Progress(transient=True) as progress, ThreadPoolExecutor(self._threads) as pool:
            task = progress.add_task(label, total=len(self.paths))
            for i, result in enumerate(pool.map(self._try, self.paths)):
                if isinstance(result, UnreadablePicture):
                    failed[i] = result
                else:
                    pixels[i] = result
                progress.advance(task)
        self.skipped = list(failed.values())
        self.kept = [i for i in range(len(self.paths)) if i not in failed]
        self._pixels = pixels[self.kept] if failed else pixels
        self.paths = [self.paths[i] for i in self.kept]

    def _try(self, path: Path) -> np.ndarray | UnreadablePicture:
        try:
            return square(read(path), self.side, self.fit, self.crop_ink)
        except UnreadablePicture as error:
            return error

    def __len__(self) -> int:
        return len(self.paths)

    def get(self, indices: Sequence[int]) -> Tensor:
        """Pictures as uint8 ``[B, 3, S, S]`` (channels last in memory).

        Raises:
            UnreadablePicture: one cannot be read and was not checked before.
        """
        if self._pixels is not None:
            pixels = self._pixels[np.asarray(indices, dtype=np.int64)]
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                results = list(pool.map(self._try, [self.paths[i] for i in indices]))
            for result in results:
                if isinstance(result, UnreadablePicture):
                    raise result
            pixels = np.stack([r for r in results if not isinstance(r, UnreadablePicture)])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def write_skipped(path: Path, skipped: Sequence[UnreadablePicture]) -> None:
    """List pictures that were left out, one a line with the reason; no file when there are none."""
    if skipped:
        path.write_text("".join(f"{s.path}\t{s.reason}\n" for s in skipped), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)
