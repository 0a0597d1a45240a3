"""Trees of sketches and photos, their splits, and augmentation.

A tree is ``{sketch,photo}/<class>/*``. Two files at its root are optional: ``dataset.json`` names the
split and how classes are written in prompts, ``instances.csv`` (``path,instance``) says which
pictures show the same thing.
"""

import csv
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from splip import pictures
from splip.config import CheckConfig, DataConfig
from splip.errors import UserError

MODALITIES = ("sketch", "photo")  # their order is their number everywhere


@dataclass
class Items:
    """Pictures of one modality with their labels; parallel lists."""

    paths: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)  # position in Tree.classes
    instances: list[int] = field(default_factory=list)  # equal numbers show the same thing

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, positions: list[int]) -> "Items":
        columns = (self.paths, self.labels, self.instances)
        return Items(*([column[i] for i in positions] for column in columns))  # type: ignore[arg-type]

    def of(self, labels: set[int]) -> "Items":
        return self.take([i for i, label in enumerate(self.labels) if label in labels])


@dataclass
class Tree:
    """A data set: classes, their split, and the pictures of both modalities."""

    root: Path
    classes: list[str]  # folder names, sorted
    texts: list[str]  # how the class is written in a prompt
    seen: list[str]  # trained on
    validation: list[str]  # seen classes held out to choose a checkpoint
    unseen: list[str]  # test classes
    sketches: Items
    photos: Items
    notes: list[str]  # what was left out and why

    def items(self, names: list[str]) -> tuple[Items, Items]:
        """Sketches and photos of these classes."""
        labels = {self.classes.index(name) for name in names}
        return self.sketches.of(labels), self.photos.of(labels)


def prompt_name(folder: str) -> str:
    """A class folder's name as words."""
    return " ".join(folder.replace("_", " ").replace("-", " ").split())


def load_tree(root: Path | None, config: DataConfig, need_split: bool = True) -> Tree:
    """List a tree's pictures and settle its split.

    Raises:
        UserError: the folder is missing or is no such tree, or the split names unknown or overlapping classes.
    """
    if root is None:
        raise UserError("no data: --data.root names a folder that holds sketch/ and photo/")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    missing = [m for m in MODALITIES if not (root / m).is_dir()]
    if missing:
        raise UserError(f"{root}: expected sketch/<class>/ and photo/<class>/, but there is no {missing[0]}/")
    found: dict[str, dict[str, list[Path]]] = {m: {} for m in MODALITIES}
    for modality in MODALITIES:
        for folder in sorted(p for p in (root / modality).iterdir() if p.is_dir()):
            files = pictures.find([folder])
            if files:
                found[modality][folder.name] = files
    sketch_classes, photo_classes = set(found["sketch"]), set(found["photo"])
    classes = sorted(sketch_classes & photo_classes)
    notes = [f"class {name} has no photos, left out" for name in sorted(sketch_classes - photo_classes)]
    notes += [f"class {name} has no sketches, left out" for name in sorted(photo_classes - sketch_classes)]
    if not classes:
        raise UserError(f"{root}: no class has pictures in both sketch/<class>/ and photo/<class>/")

    meta = _read_meta(root)
    instances = _read_instances(root)
    numbers: dict[str, int] = {}
    items = {}
    for modality in MODALITIES:
        items[modality] = Items()
        for label, name in enumerate(classes):
            for path in found[modality][name]:
                # Without instances.csv every picture is a thing of its own.
                instance = instances.get(path.relative_to(root).as_posix(), str(path))
                items[modality].paths.append(path)
                items[modality].labels.append(label)
                items[modality].instances.append(numbers.setdefault(f"{name}/{instance}", len(numbers)))
    seen, validation, unseen = _split(root, classes, meta, config) if need_split else (classes, [], [])
    texts = [meta.get("classes", {}).get(name, prompt_name(name)) for name in classes]
    return Tree(root, classes, texts, seen, validation, unseen, items["sketch"], items["photo"], notes)


def _read_meta(root: Path) -> dict[str, Any]:
    path = root / "dataset.json"
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(meta, dict):
        raise UserError(f"{path}: expected an object with the keys classes, seen, validation, unseen")
    texts = meta.get("classes", {})
    if not isinstance(texts, dict) or not all(isinstance(v, str) for v in texts.values()):
        raise UserError(f"{path}: classes must map folder names to words")
    for key in ("seen", "validation", "unseen"):
        names = meta.get(key, [])
        if not isinstance(names, list) or not all(isinstance(v, str) for v in names):
            raise UserError(f"{path}: {key} must be a list of class names")
    return meta


def _read_instances(root: Path) -> dict[str, str]:
    path = root / "instances.csv"
    if not path.is_file():
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames is None or not {"path", "instance"} <= set(reader.fieldnames):
                raise UserError(f"{path}: expected the columns path,instance")
            rows = [(row["path"], row["instance"]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8: {error}") from None
    for number, (name, instance) in enumerate(rows, start=2):
        if not name or not instance:
            raise UserError(f"{path}: line {number} lacks a path or an instance")
    return dict(rows)


def _split(
    root: Path, classes: list[str], meta: dict[str, Any], config: DataConfig
) -> tuple[list[str], list[str], list[str]]:
    if len(classes) < 2:
        raise UserError(f"{root}: only one class ({classes[0]}): a split into seen and unseen needs at least two")
    if config.split_seed < 0 or not 0 <= config.unseen_fraction < 1:
        raise UserError("data.split_seed must not be negative, and data.unseen_fraction must be between 0 and 1")
    rng = np.random.default_rng(config.split_seed)
    unseen = list(config.unseen) or list(meta.get("unseen", []))
    _known(root, "unseen", unseen, classes)
    # A split that names its seen classes leaves the others out; validation classes are seen ones.
    seen = list(meta.get("seen", [])) if not config.unseen else []
    if seen:
        seen = sorted({*seen, *meta.get("validation", [])})
    _known(root, "seen", seen, classes)
    if not unseen:
        pool = [name for name in classes if name not in set(seen)]
        if not pool:
            raise UserError(f"{root}: dataset.json calls every class seen: none is left to test on")
        count = min(len(classes) - 1, max(1, round(config.unseen_fraction * len(classes)))) if not seen else len(pool)
        unseen = sorted(rng.choice(pool, count, replace=False).tolist())
    overlap = sorted(set(seen) & set(unseen))
    if overlap:
        raise UserError(f"{root}: classes both seen and unseen: {', '.join(overlap)}")
    seen = sorted(seen) or [name for name in classes if name not in set(unseen)]
    validation = list(config.validation) or [v for v in meta.get("validation", []) if v in seen]
    _known(root, "validation", validation, seen)
    if not validation and len(seen) >= 6:
        count = min(12, len(seen) // 6)
        validation = sorted(rng.choice(seen, count, replace=False).tolist())
    seen = [name for name in seen if name not in set(validation)]
    if not seen:
        raise UserError(f"{root}: no seen class is left to train on")
    return seen, sorted(validation), sorted(unseen)


def _known(root: Path, what: str, names: list[str], classes: list[str]) -> None:
    strange = sorted(set(names) - set(classes))
    if strange:
        raise UserError(f"{root}: no pictures for the {what} classes {', '.join(strange)}")


def check(config: CheckConfig) -> int:
    """``splip data check``: what a tree holds. Returns 1 if a picture cannot be read."""
    tree = load_tree(config.root, DataConfig(), need_split=False)
    print(f"{config.root}: {len(tree.classes)} classes, {len(tree.sketches)} sketches, {len(tree.photos)} photos")
    for kind, items in (("sketches", tree.sketches), ("photos", tree.photos)):
        counts = Counter(items.labels).values()
        print(f"  {kind} per class: {min(counts)} to {max(counts)}; {len(set(items.instances))} instances")
    paired = set(tree.sketches.instances) & set(tree.photos.instances)
    print(f"  instances with sketches and photos: {len(paired)}")
    if len(tree.classes) > 1:
        tree = load_tree(config.root, DataConfig())
        for kind, names in (("seen", tree.seen), ("validation", tree.validation), ("unseen", tree.unseen)):
            print(f"  {kind} ({len(names)}): {', '.join(names)}")
    else:
        print("  only one class: nothing to split")
    for note in tree.notes:
        print(f"  note: {note}")
    if not config.decode:
        return 0
    everything = tree.sketches.paths + tree.photos.paths
    skipped = pictures.Pictures(everything, 8, memory_gb=math.inf, label="Decoding").skipped
    for error in skipped:
        print(f"  unreadable: {error.path}: {error.reason}")
    print(f"  unreadable pictures: {len(skipped)} of {len(everything)}")
    return 1 if skipped else 0


# ---- augmentation ----

STRENGTH = {"light": 0.5, "strong": 1.0}


def augment(images: Tensor, is_sketch: Tensor, strength: str, generator: torch.Generator) -> Tensor:
    """Random variants of square pictures on white.

    Args:
        images: ``[B, 3, S, S]`` uint8.
        is_sketch: ``[B]`` bool: sketches change their stroke width, photos their colours.
        strength: none, light or strong.

    Returns:
        ``[B, 3, S, S]`` uint8.
    """
    if strength == "none":
        return images
    a, (B, _, S, _) = STRENGTH[strength], images.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(B, *shape, generator=generator) * (high - low) + low

    # Work on distance from white, so that zeros are background.
    ink = 1 - images.float() / 255
    angle = uniform(-a, a) * (math.pi / 9)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    zoom = torch.exp(uniform(-a, a) * 0.25)
    aspect = torch.exp(uniform(-a, a) * 0.15)
    shear = uniform(-a, a) * 0.15
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = flip * zoom * aspect * cos, flip * zoom * (shear * cos - sin)
    theta[:, 1, 0], theta[:, 1, 1] = zoom / aspect * sin, zoom / aspect * (shear * sin + cos)
    theta[:, :, 2] = uniform(-a, a, 2) * 0.15
    grid = F.affine_grid(theta, [B, 3, S, S], align_corners=False)
    ink = F.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    # Sketches: thicker or thinner strokes.
    thick = is_sketch & (uniform(0, 1) < 0.3 * a)
    if bool(thick.any()):
        ink[thick] = F.max_pool2d(ink[thick], 3, 1, 1)
    gain = torch.where(is_sketch, uniform(1 - 0.3 * a, 1 + 0.3 * a), torch.ones(B))

    # Photos: contrast, colour casts, sometimes grey or other hues.
    cast = torch.where(is_sketch[:, None], torch.ones(B, 3), uniform(1 - 0.5 * a, 1 + 0.4 * a, 3))
    ink = ink * (gain[:, None] * cast)[:, :, None, None]
    grey = ~is_sketch & (uniform(0, 1) < 0.6 * a)
    ink = torch.where(grey[:, None, None, None], ink.mean(dim=1, keepdim=True), ink)
    order = torch.stack([torch.randperm(3, generator=generator) for _ in range(B)])
    swap = ~is_sketch & (uniform(0, 1) < 0.3 * a)
    order = torch.where(swap[:, None], order, torch.arange(3))
    ink = ink.gather(1, order[:, :, None, None].expand(-1, -1, S, S))

    # Cut-out: a rectangle of background.
    size = uniform(0.1, 0.1 + 0.3 * a, 2) * S
    centre = uniform(0, 1, 2) * S
    cut = uniform(0, 1) < 0.5 * a
    at = torch.arange(S, dtype=torch.float32)
    inside = [(at[None] - centre[:, i : i + 1]).abs() < size[:, i : i + 1] / 2 for i in (0, 1)]
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :] & cut[:, None, None, None]
    ink = ink.masked_fill(hole, 0.0)
    return (255 * (1 - ink.clamp(0, 1))).round().to(torch.uint8)
