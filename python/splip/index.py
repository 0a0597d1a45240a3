"""``splip index`` and ``splip search``: a gallery of embedded photos, and the photos a sketch finds.

A gallery is a folder: ``gallery.json`` (format, count, model), ``vectors.npy`` (float32 ``[N, D]``,
unit length), ``items.jsonl`` (one path a line, same order), ``model.pt`` (a copy of the checkpoint),
``skipped.txt`` (pictures that could not be read, if any).
"""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splip import grid, images, ops, pictures
from splip.config import IndexConfig, SearchConfig
from splip.errors import UnreadablePicture, UserError
from splip.model import SpLIP, file_hash, load_model, pick_device
from splip.progress import bars

FORMAT = 1


@dataclass
class Match:
    """One photo that a sketch found."""

    path: Path
    score: float  # cosine similarity
    index: int  # position in the gallery


class Gallery:
    """Embedded photos and the model that embedded them.

    Example::

        gallery = Gallery.load("my-gallery")
        for match in gallery.search_files(["my.png"], k=10)[0]:
            print(match.score, match.path)
    """

    def __init__(self, vectors: Tensor, paths: list[Path], model: SpLIP) -> None:
        self.vectors, self.paths, self.model = vectors, paths, model
        # Packing costs about two scans: it pays from the first search of a few sketches on.
        self._searched = ops.pack_gallery(vectors) if vectors.device.type == "cpu" else vectors

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> "Gallery":
        """Open a gallery.

        Raises:
            UserError: not a gallery, damaged, empty, or of another format.
        """
        folder = Path(folder)
        if not (folder / "gallery.json").is_file():
            raise UserError(f"{folder}: not a gallery (no gallery.json); `splip index` makes one")
        try:
            meta = json.loads((folder / "gallery.json").read_text(encoding="utf-8"))
            lines = (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()
            paths = [Path(json.loads(line)["path"]) for line in lines]
            vectors = torch.from_numpy(np.load(folder / "vectors.npy"))
            form, count, model_hash = meta["format"], meta["count"], meta["model_sha256"]
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder}: damaged gallery: {error}") from None
        if form != FORMAT:
            raise UserError(f"{folder}: gallery format {form}, this version reads {FORMAT}")
        if not count:
            raise UserError(f"{folder}: the gallery is empty")
        if vectors.dtype != torch.float32:
            raise UserError(f"{folder}: damaged gallery: vectors.npy holds {vectors.dtype}, not float32")
        if vectors.dim() != 2 or not len(vectors) == len(paths) == count:
            raise UserError(f"{folder}: damaged gallery: {len(vectors)} vectors, {len(paths)} paths, count {count}")
        if not (folder / "model.pt").is_file() or file_hash(folder / "model.pt") != model_hash:
            raise UserError(f"{folder}: model.pt is not the model that this gallery was made with")
        model = load_model(folder / "model.pt", device)
        if vectors.shape[1] != model.backbone.embed_dim:
            raise UserError(f"{folder}: vectors of width {vectors.shape[1]}, model of {model.backbone.embed_dim}")
        return cls(vectors.to(device), paths, model)

    def search(self, sketches: Tensor, k: int = 10) -> list[list[Match]]:
        """The ``k`` best photos of each sketch, best first.

        Args:
            sketches: uint8 ``[B, 3, S, S]``, S the model's image size.
            k: photos per sketch.
        """
        if not 1 <= k <= len(self):
            raise UserError(f"k must be between 1 and the gallery's {len(self)} photos, got {k}")
        features = self.model.encode_sketch(sketches.to(self.vectors.device))
        scores, indices = ops.cosine_topk(features, self._searched, k)
        return [
            [Match(self.paths[i], s, i) for s, i in zip(row, found, strict=True)]
            for row, found in zip(scores.tolist(), indices.tolist(), strict=True)
        ]

    def search_files(self, sketches: list[Path | str], k: int = 10) -> list[list[Match]]:
        """As :meth:`search`, for drawings in files.

        Raises:
            UserError: a drawing cannot be read or is blank, or k is larger than the gallery.
        """
        data, side = self.model.config.data, self.model.backbone.image_size
        tensors = []
        for sketch in sketches:
            image = images.read(Path(sketch))
            pixels = np.asarray(image)
            if (pixels == pixels[0, 0]).all():
                raise UserError(f"{sketch}: nothing is drawn on it")
            tensors.append(images.square(image, side, data.fit, data.crop_sketches))
        return self.search(pictures.to_tensor(np.stack(tensors)), k)


def build(config: IndexConfig) -> None:
    """``splip index``: embed every picture below the folders."""
    if not config.folders:
        raise UserError("no folder of pictures given")
    if config.batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {config.batch_size}")
    for folder in config.folders:
        if not folder.exists():
            raise UserError(f"{folder}: no such folder or picture")
    out = config.gallery
    if out.exists() and not (config.overwrite and (out / "gallery.json").is_file()):
        hint = "add --overwrite to replace it" if (out / "gallery.json").is_file() else "and is not a gallery"
        raise UserError(f"{out}: exists already; {hint}")
    paths = [p.absolute() for p in images.find(config.folders)]
    if not paths:
        raise UserError(f"no pictures in {', '.join(map(str, config.folders))}")
    device = pick_device(config.device)
    model = load_model(config.checkpoint, device)
    data, side = model.config.data, model.backbone.image_size

    kept: list[Path] = []
    skipped: list[UnreadablePicture] = []
    vectors = []
    with bars(transient=False) as progress:
        bar = progress.add_task("Indexing", total=len(paths))
        for start in range(0, len(paths), config.batch_size):
            block = paths[start : start + config.batch_size]
            readable = []
            for path, result in zip(block, images.decode(block, side, data.fit), strict=True):
                if isinstance(result, UnreadablePicture):
                    skipped.append(result)
                else:
                    kept.append(path)
                    readable.append(result)
            if readable:
                vectors.append(model.encode_photo(pictures.to_tensor(np.stack(readable)).to(device)).cpu())
            progress.advance(bar, len(block))
    if not kept:
        raise UserError(f"none of the {len(paths)} pictures can be read; the first: {skipped[0]}")
    _write(out, torch.cat(vectors), kept, skipped, config)
    print(f"{out}: {len(kept)} photos")
    if skipped:
        print(f"left out {len(skipped)} unreadable pictures, listed in {out / 'skipped.txt'}")


def _write(
    out: Path, vectors: Tensor, paths: list[Path], skipped: list[UnreadablePicture], config: IndexConfig
) -> None:
    """Make the gallery beside its place and move it there whole."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
            made = Path(temporary) / "gallery"
            made.mkdir()
            np.save(made / "vectors.npy", vectors.numpy())
            lines = "".join(json.dumps({"path": str(p)}) + "\n" for p in paths)
            (made / "items.jsonl").write_text(lines, encoding="utf-8")
            shutil.copy(config.checkpoint, made / "model.pt")
            meta: dict[str, Any] = {"format": FORMAT, "count": len(paths), "dim": vectors.shape[1]}
            meta["model_sha256"] = file_hash(made / "model.pt")
            (made / "gallery.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
            images.write_skipped(made / "skipped.txt", skipped)
            if out.exists():
                os.replace(out, Path(temporary) / "old")
            os.replace(made, out)
    except OSError as error:
        raise UserError(f"cannot write the gallery {out}: {error}") from None


def search(config: SearchConfig) -> list[list[Match]]:
    """``splip search``; returns what it prints."""
    if not config.sketch:
        raise UserError("no sketch given")
    gallery = Gallery.load(config.gallery, pick_device(config.device))
    results = gallery.search_files(list(config.sketch), config.k)
    if config.json:
        report: list[dict[str, Any]] = [
            {
                "sketch": str(sketch),
                "matches": [{"rank": r, "score": m.score, "path": str(m.path)} for r, m in enumerate(matches, 1)],
            }
            for sketch, matches in zip(config.sketch, results, strict=True)
        ]
        print(json.dumps(report, indent=1))
    else:
        for sketch, matches in zip(config.sketch, results, strict=True):
            print(sketch)
            for rank, match in enumerate(matches, 1):
                print(f"{rank:5d}  {match.score:7.4f}  {match.path}")
    if config.grid is not None:
        rows = [
            grid.Row(sketch, [m.path for m in matches], [m.score for m in matches], [None] * len(matches), sketch.stem)
            for sketch, matches in zip(config.sketch, results, strict=True)
        ]
        grid.save(config.grid, rows)
    return results
