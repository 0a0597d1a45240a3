"""Lists of pictures as uint8 tensors: decoded once, in memory or in a cache file, or as they are asked for."""

import fcntl
import hashlib
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splip import distributed
from splip.errors import Skipped, UnreadablePicture, UserError
from splip.images.decode import DECODING, Fit, decode
from splip.progress import bars

BLOCK = 256  # pictures decoded between two steps of a progress bar
CACHE_BLOCK = 4096  # pictures decoded into a cache between two notes of how far it is


def to_tensor(pixels: np.ndarray) -> Tensor:
    """``[B, S, S, 3]`` to ``[B, 3, S, S]``, the same memory."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


class Pictures:
    """A list of pictures that can be asked for batches of tensors.

    Decoded once at the start and kept in memory if they fit in ``memory_gb``, or in a file of ``cache``
    that later runs use again; else decoded for every use. What cannot be read is left out and listed
    in ``skipped``; ``kept`` holds the positions of the others in the list given.

    Args:
        paths: of the pictures.
        side: S, pixels.
        fit: how a picture becomes square.
        crop_ink: crop to what is drawn.
        memory_gb: see above.
        label: of the progress bar.
        cache: folder of decoded pictures.
        scan: read everything at the start even if nothing is kept, so that ``kept`` is complete. Without,
            what cannot be read comes to light in :meth:`get_readable`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        side: int,
        fit: Fit = "pad",
        crop_ink: bool = False,
        memory_gb: float = 2.0,
        label: str = "Decoding",
        cache: Path | None = None,
        scan: bool = True,
    ) -> None:
        self.side, self.fit, self.crop_ink = side, fit, crop_ink
        self.skipped: list[Skipped] = []
        self._pixels: np.ndarray | None = None
        fits = len(paths) * side * side * 3 <= memory_gb * 1e9
        if cache is not None:
            self._pixels, readable = self._open_cache(paths, cache, label)
        elif fits:
            self._pixels = np.empty((len(paths), side, side, 3), dtype=np.uint8)
            readable = self._decode(paths, range(len(paths)), self._pixels, label)
        elif scan:
            readable = self._decode(paths, range(len(paths)), None, label)
        else:
            readable = np.ones(len(paths), dtype=bool)
        self.kept: list[int] = np.flatnonzero(readable).tolist()
        self.paths = [paths[i] for i in self.kept]
        self._broken: set[object] = set()

    def _decode(
        self, paths: Sequence[Path], positions: Sequence[int], pixels: np.ndarray | None, label: str
    ) -> np.ndarray:
        """Decode into ``pixels``; returns which can be read, ``[N]`` bool, and lists the others."""
        readable = np.zeros(len(paths), dtype=bool)
        with bars() as progress:
            task = progress.add_task(label, total=len(positions))
            for start in range(0, len(positions), BLOCK):
                block = positions[start : start + BLOCK]
                results = decode([paths[i] for i in block], self.side, self.fit, self.crop_ink)
                for i, result in zip(block, results, strict=True):
                    if isinstance(result, Skipped):
                        self.skipped.append(result)
                        continue
                    readable[i] = True
                    if pixels is not None:
                        pixels[i] = result
                progress.advance(task, len(block))
        return readable

    def _open_cache(self, paths: Sequence[Path], folder: Path, label: str) -> tuple[np.ndarray, np.ndarray]:
        """The decoded pictures, memory-mapped; one process for each storage decodes what is not there yet."""
        digest = hashlib.sha256(f"{self.side} {self.fit} {self.crop_ink} {DECODING}\n".encode())
        for path in paths:
            try:
                stat = path.stat()
                facts = f" {stat.st_size} {stat.st_mtime_ns}"
            except OSError:
                facts = " missing"
            digest.update(os.fsencode(path.absolute()) + facts.encode() + b"\n")
        name = digest.hexdigest()[:32]
        pixels_file, done_file, bad_file = (folder / f"{name}.{suffix}" for suffix in ("pixels", "done", "bad"))
        shape = (len(paths), self.side, self.side, 3)

        def whole() -> bool:
            return done_file.is_file() and pixels_file.is_file() and pixels_file.stat().st_size == math.prod(shape)

        if distributed.is_writer(folder) and not whole():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                # Another run may be filling the same file: one fills, the others wait for it.
                with open(folder / f"{name}.lock", "w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    if not whole():
                        done_file.unlink(missing_ok=True)
                        missing = math.prod(shape) - (
                            pixels_file.stat().st_blocks * 512 if pixels_file.is_file() else 0
                        )
                        room = shutil.disk_usage(folder).free
                        if missing > room:
                            needs = f"needs {missing / 1e9:.1f} GB, {room / 1e9:.1f} GB are free"
                            raise UserError(f"data.cache {folder}: {needs}")
                        self._fill_cache(paths, pixels_file, bad_file, shape, label)
                        done_file.touch()
            except OSError as error:
                raise UserError(f"data.cache {folder}: {error}") from None
        distributed.barrier()
        readable = np.ones(len(paths), dtype=bool)
        for line in bad_file.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            number, _, reason = line.partition("\t")
            readable[int(number)] = False
            self.skipped.append(Skipped(paths[int(number)], reason))
        return np.memmap(pixels_file, dtype=np.uint8, mode="r", shape=shape), readable

    def _fill_cache(
        self, paths: Sequence[Path], pixels_file: Path, bad_file: Path, shape: tuple[int, ...], label: str
    ) -> None:
        # A stopped run goes on where it was: the position is noted after every block.
        start_file = bad_file.with_suffix(".start")
        same = pixels_file.is_file() and pixels_file.stat().st_size == math.prod(shape)
        start = int(start_file.read_text()) if same and start_file.is_file() else 0
        if start:  # what a stopped run listed after its last note
            options: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}
            lines = bad_file.read_text(**options).splitlines(keepends=True)
            bad_file.write_text("".join(x for x in lines if int(x.partition("\t")[0]) < start), **options)
        pixels = np.memmap(pixels_file, dtype=np.uint8, mode="r+" if start else "w+", shape=shape)
        with open(bad_file, "a" if start else "w", encoding="utf-8", errors="surrogateescape") as bad:
            for first in range(start, len(paths), CACHE_BLOCK):
                block = range(first, min(first + CACHE_BLOCK, len(paths)))
                readable = self._decode(paths, block, pixels, f"{label} {first:,} of {len(paths):,}")
                reasons = {error.path: error.reason for error in self.skipped}
                bad.writelines(f"{i}\t{reasons[paths[i]]}\n" for i in block if not readable[i])
                bad.flush()
                pixels.flush()
                note = start_file.with_suffix(".note")
                note.write_text(str(block.stop))
                note.replace(start_file)
        self.skipped.clear()  # read back from the file, as every process does
        start_file.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self.paths)

    def get(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Pictures as uint8 ``[B, 3, S, S]`` (channels last in memory).

        Raises:
            UnreadablePicture: one cannot be read, or not any more.
        """
        pixels, errors = self._get(indices)
        for error in errors.values():
            raise UnreadablePicture(error.path, error.reason)
        return pixels

    def get_readable(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, np.ndarray]:
        """As :meth:`get`, with white pictures for what cannot be read, and which could be, ``[B]`` bool."""
        pixels, errors = self._get(indices)
        readable = np.ones(len(indices), dtype=bool)
        for place, error in errors.items():
            readable[place] = False
            if error.path not in self._broken:
                self._broken.add(error.path)
                self.skipped.append(error)
        return pixels, readable

    def _get(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, dict[int, Skipped]]:
        errors: dict[int, Skipped] = {}
        if self._pixels is not None:
            rows = np.asarray(self.kept, dtype=np.int64)[np.asarray(indices, dtype=np.int64)]
            return to_tensor(self._pixels[rows]), errors
        decoded = decode([self.paths[i] for i in indices], self.side, self.fit, self.crop_ink)
        pixels = np.full((len(decoded), self.side, self.side, 3), 255, dtype=np.uint8)
        for place, result in enumerate(decoded):
            if isinstance(result, Skipped):
                errors[place] = result
            else:
                pixels[place] = result
        return to_tensor(pixels), errors
