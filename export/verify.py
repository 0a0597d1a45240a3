"""Do the exported files give the features that training code gives? The same pictures through both.

Sketches search among photos: what counts in the end is whether they find the same ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from splip import images
from splip.data import sample
from splip.encoders.base import normalise
from splip.encoders.graph import ImageEncoder
from splip.encoders.manifest import MODALITIES, Manifest
from splip.errors import UserError
from splip.images import decode
from splip.models.retriever import Retriever

COUNTS = {"sketch": 64, "photo": 256}
CALIBRATION = {"sketch": 128, "photo": 128}
MAX_DIFFERENCE = 1e-5  # fp32
MIN_COSINE, MIN_TOP10 = 0.999, 0.99  # fp16, bf16
BATCHES = (1, 2, 3, 8, 33)  # graphs that froze a batch size fail at one of them

Pixels = dict[str, np.ndarray]  # for each modality uint8 [N, S, S, 3]


@dataclass
class Fidelity:
    """How near the features of an engine are to float32 PyTorch's."""

    min_cosine: float
    mean_cosine: float
    max_difference: float
    top1: float  # share of the sketches whose first photo is the same
    top10: float  # mean share of their first ten photos that are the same
    finite: bool

    def failure(self, precision: str, ranking: bool = True) -> str | None:
        """Why this is not good enough for a precision, or None. int8 is for the user to judge.

        ``ranking``: whether the sketches must also find the same photos.
        """
        if not self.finite:
            return "some features are not finite numbers"
        if precision == "fp32" and self.max_difference > MAX_DIFFERENCE:
            return f"a feature differs by {self.max_difference:.1e}, allowed {MAX_DIFFERENCE:.0e}"
        if precision in ("fp16", "bf16"):
            if self.min_cosine < MIN_COSINE:
                return f"lowest cosine {self.min_cosine:.5f}, needed {MIN_COSINE}"
            if ranking and self.top10 < MIN_TOP10:
                return f"{self.top10:.2%} of the first ten photos are the same, needed {MIN_TOP10:.0%}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: None for what is not a finite number."""
        return {name: value if np.isfinite(value) else None for name, value in asdict(self).items()}


def load(source: Path | None, about: Manifest, counts: dict[str, int], part: int = 0) -> Pixels:
    """Pictures as the model takes them, spread evenly over what there is.

    Args:
        source: a folder with sketch/ and photo/, or with pictures that then serve as both; None, or ``sample``
            where no such folder is: the sample data of the package.
        about: size and fit.
        counts: how many of each modality at most.
        part: 0 or 1: which half of the pictures, so that what calibrates does not verify.

    Raises:
        UserError: no such folder, or fewer than two pictures can be read.
    """
    if source is None or (str(source) == "sample" and not source.exists()):
        return {m: _of_sample(m, about, counts[m], part) for m in MODALITIES}
    if not source.is_dir():
        raise UserError(f"{source}: no such folder of pictures")
    found = {}
    for modality in MODALITIES:
        folder = source / modality if all((source / m).is_dir() for m in MODALITIES) else source
        paths = _spread(images.find([folder])[part::2], counts[modality])
        crop = about.crop_sketches and modality == "sketch"
        decoded = decode.decode(paths, about.image_size, about.fit, crop)
        readable = [p for p in decoded if isinstance(p, np.ndarray)]
        if len(readable) < 2:
            raise UserError(f"{folder}: needs at least four pictures that can be read")
        found[modality] = np.stack(readable)
    return found


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of the items, at even distances."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _of_sample(modality: str, about: Manifest, count: int, part: int) -> np.ndarray:
    sheets = [Image.open(sample.FOLDER / name).convert("RGB") for name in sample.SHEETS[modality].values()]
    tiles = _spread(range(part, len(sample.things()), 2), count)
    out = []
    for number, tile in enumerate(tiles):
        left, top = tile % sample.COLUMNS * sample.SIDE, tile // sample.COLUMNS * sample.SIDE
        picture = sheets[number % len(sheets)].crop((left, top, left + sample.SIDE, top + sample.SIDE))
        crop = about.crop_sketches and modality == "sketch"
        out.append(images.square(picture, about.image_size, about.fit, crop))
    return np.stack(out)


def texts(model: Retriever) -> list[str]:
    """Names of its classes, and texts that are not so plain."""
    return [
        *model.classes[:100],
        "a horse",
        "two red cars, parked: it's 7 o'clock",
        "café &amp; crème",
        "x" * 9,
        "日本",
    ]


def reference(model: Retriever, pixels: Pixels) -> Pixels:
    """Features of the training code in float32, ``[N, D]`` for each modality."""

    def encode(number: int, name: str) -> np.ndarray:
        batches = torch.from_numpy(pixels[name]).permute(0, 3, 1, 2).split(32)
        return torch.cat([model.encode_image(batch, number) for batch in batches]).numpy()

    return {name: encode(number, name) for number, name in enumerate(MODALITIES)}


def run(encode: Callable[[np.ndarray, str], np.ndarray], pixels: Pixels) -> Pixels:
    """Features of an engine, in batches of changing sizes."""
    found = {}
    for name, images_ in pixels.items():
        parts, start, turn = [], 0, 0
        while start < len(images_):
            stop = start + BATCHES[turn % len(BATCHES)]
            parts.append(encode(images_[start:stop], name))
            start, turn = stop, turn + 1
        found[name] = np.concatenate(parts)
    return found


def run_torch(encoders: dict[str, ImageEncoder], pixels: Pixels, about: Manifest) -> Pixels:
    """Features of the deploy graph itself."""

    def encode(part: np.ndarray, name: str) -> np.ndarray:
        batch = part if about.fused else normalise(part, about.mean, about.std)
        with torch.no_grad():
            features: np.ndarray = encoders[name](torch.from_numpy(batch)).numpy()
        return features

    return run(encode, pixels)


def compare(wanted: Pixels, got: Pixels) -> Fidelity:
    """Both are features of unit length, ``[N, D]`` for each modality."""
    cosines = np.concatenate([(wanted[m].astype(np.float64) * got[m]).sum(axis=1) for m in MODALITIES])
    difference = max(float(np.abs(wanted[m] - got[m]).max()) for m in MODALITIES)
    finite = all(bool(np.isfinite(got[m]).all()) for m in MODALITIES)
    ours, theirs = (_ranking(f["sketch"], f["photo"]) for f in (wanted, got))
    same = [len(set(a) & set(b)) / len(a) for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)]
    return Fidelity(
        min_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        max_difference=difference,
        top1=float((ours[:, 0] == theirs[:, 0]).mean()),
        top10=float(np.mean(same)),
        finite=finite,
    )


def _ranking(sketches: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """The first ten photos of each sketch."""
    return np.argsort(-(sketches @ photos.T), axis=1, kind="stable")[:, :10]
