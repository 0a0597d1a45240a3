"""``splip eval``: zero-shot retrieval on held-out classes, beside baselines that learn nothing."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from splip import grid, metrics
from splip.clip import PromptedCLIP
from splip.config import DataConfig, EvalConfig
from splip.data import Items, Tree, load_tree
from splip.errors import UserError
from splip.model import SpLIP, file_hash, load_model, pick_device
from splip.pictures import Pictures
from splip.progress import track

BATCH = 64


def embed(pictures: Pictures, encode: Callable[[Tensor], Tensor], device: torch.device, label: str = "") -> Tensor:
    """Features ``[N, D]`` on the CPU, in batches, with a progress bar when ``label`` is given."""
    starts: Sequence[int] = range(0, len(pictures), BATCH)
    with torch.no_grad():
        parts = [
            encode(pictures.get(range(i, min(i + BATCH, len(pictures)))).to(device)).float().cpu()
            for i in (track(starts, label) if label else starts)
        ]
    return torch.cat(parts)


class TestSet:
    """Sketches and photos of some classes, decoded, with their labels."""

    __test__ = False  # not a pytest class

    def __init__(self, tree: Tree, names: list[str], config: DataConfig, side: int) -> None:
        sketches, photos = tree.items(names)
        self.tree, self.names = tree, names
        self.sketch_pictures = Pictures(
            sketches.paths, side, config.fit, config.crop_sketches, config.memory_gb, "Decoding sketches"
        )
        self.photo_pictures = Pictures(photos.paths, side, config.fit, False, config.memory_gb, label="Decoding photos")
        self.sketches = sketches.take(self.sketch_pictures.kept)
        self.photos = photos.take(self.photo_pictures.kept)
        self.skipped = self.sketch_pictures.skipped + self.photo_pictures.skipped
        if not len(self.sketches) or not len(self.photos):
            what = "sketches" if not len(self.sketches) else "photos"
            raise UserError(f"{tree.root}: no readable {what} of the classes {', '.join(names)}")

    def measure(self, sketches: Tensor, photos: Tensor) -> metrics.Result:
        return metrics.measure(sketches, *_labels(self.sketches), photos, *_labels(self.photos))

    def measure_model(self, model: SpLIP, device: torch.device) -> metrics.Result:
        sketches = embed(self.sketch_pictures, model.encode_sketch, device)
        return self.measure(sketches, embed(self.photo_pictures, model.encode_photo, device))

    def grid_rows(self, sketches: Tensor, photos: Tensor, count: int, k: int = 10) -> list[grid.Row]:
        """Rows for a picture: sketches spread evenly over the classes, chosen before looking at the result."""
        labels = np.asarray(self.sketches.labels)
        classes = list(dict.fromkeys(labels.tolist()))
        count = min(count, len(classes))
        chosen = [classes[i * len(classes) // count] for i in range(count)]
        queries = [int(np.flatnonzero(labels == c)[n % (labels == c).sum()]) for n, c in enumerate(chosen)]
        order = metrics.rank(sketches[queries], photos)[:, :k].tolist()
        rows = []
        for q, found in zip(queries, order, strict=True):
            scores = [float(sketches[q] @ photos[i]) for i in found]
            label, thing = self.sketches.labels[q], self.sketches.instances[q]
            hits: list[str | None] = [
                "same" if self.photos.instances[i] == thing else ("hit" if self.photos.labels[i] == label else "miss")
                for i in found
            ]
            paths = [self.photos.paths[i] for i in found]
            rows.append(grid.Row(self.sketches.paths[q], paths, scores, hits, self.tree.texts[label]))
        return rows


def _labels(items: Items) -> tuple[Tensor, Tensor]:
    return torch.tensor(items.labels), torch.tensor(items.instances)


# ---- baselines ----


def chance(test: TestSet) -> metrics.Result:
    """Mean of ten random orders."""
    generator = torch.Generator().manual_seed(0)
    results = []
    for _ in range(10):
        vectors = [torch.randn(len(items), 64, generator=generator) for items in (test.sketches, test.photos)]
        results.append(test.measure(*(F.normalize(v, dim=1) for v in vectors)))

    def mean(which: str) -> dict[str, float]:
        return {key: float(np.mean([getattr(r, which)[key] for r in results])) for key in results[0].query_mean}

    return metrics.Result(mean("query_mean"), mean("class_mean"), results[0].queries, results[0].gallery)


def _grey(images: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images.float() * weights).sum(dim=1)  # [B, S, S], 0 to 255


def raw_pixels(test: TestSet) -> metrics.Result:
    """Cosine of grey pixels at 32 x 32, each picture's mean taken away."""

    def encode(images: Tensor) -> Tensor:
        small = F.interpolate(_grey(images)[:, None], size=(32, 32), mode="area").flatten(1)
        return F.normalize(small - small.mean(dim=1, keepdim=True), dim=1)

    cpu = torch.device("cpu")
    return test.measure(embed(test.sketch_pictures, encode, cpu), embed(test.photo_pictures, encode, cpu))


def need_hog() -> None:
    """Say that scikit-image is missing before any work is done."""
    try:
        import skimage.feature  # noqa: F401
    except ImportError:
        raise UserError("the HOG baseline needs scikit-image: pip install scikit-image") from None


def hog(test: TestSet) -> metrics.Result:
    """Histograms of oriented gradients (scikit-image) at 64 x 64: no learning, and strong on drawings."""
    from skimage.feature import hog as describe

    def encode(images: Tensor) -> Tensor:
        grey = F.interpolate(_grey(images)[:, None], size=(64, 64), mode="area")[:, 0].numpy()
        rows = [describe(g, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2)) for g in grey]
        return F.normalize(torch.from_numpy(np.stack(rows)).float(), dim=1)

    cpu = torch.device("cpu")
    return test.measure(embed(test.sketch_pictures, encode, cpu), embed(test.photo_pictures, encode, cpu))


def plain_backbone(test: TestSet, model: SpLIP, device: torch.device) -> metrics.Result:
    """The backbone before any training, without prompts."""
    backbone = PromptedCLIP(model.config.backbone).to(device).eval()

    def encode(images: Tensor) -> Tensor:
        return F.normalize(backbone.encode_visual(backbone.embed_patches(images)), dim=1)

    return test.measure(embed(test.sketch_pictures, encode, device), embed(test.photo_pictures, encode, device))


# ---- the verb ----


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """``splip eval``; returns what it prints."""
    if config.baselines:
        need_hog()
    device = pick_device(config.device)
    model = load_model(config.checkpoint, device)
    data = model.config.data
    # Pictures with a split of another tree would be another test; the split comes from the tree.
    tree = load_tree(config.root or data.root, data)
    names = getattr(tree, config.classes)
    if not names:
        raise UserError(f"{tree.root}: no {config.classes} classes")
    words = {tree.texts[tree.classes.index(n)] for n in names}
    for used, how in (("seen", "was trained on"), ("validation", "was chosen by")):
        leaked = sorted(words & set(model.data[used]))
        if leaked and used != config.classes:
            raise UserError(f"{config.checkpoint} {how} classes to be measured: {', '.join(leaked)}")
    test = TestSet(tree, names, data, model.backbone.image_size)
    if test.skipped:
        print(f"left out {len(test.skipped)} unreadable pictures: " + ", ".join(str(s.path) for s in test.skipped))
    sketches = embed(test.sketch_pictures, model.encode_sketch, device, "Embedding sketches")
    photos = embed(test.photo_pictures, model.encode_photo, device, "Embedding photos")
    rows = {}
    if config.baselines:
        rows["chance"] = chance(test)
        rows["raw pixels"] = raw_pixels(test)
        rows["HOG"] = hog(test)
        weights = model.config.backbone.pretrained or "random weights"
        rows[f"plain {model.config.backbone.name} ({weights})"] = plain_backbone(test, model, device)
    rows["SpLIP"] = test.measure(sketches, photos)
    title = f"{config.classes} classes ({len(names)}): {len(test.sketches)} sketches in {len(test.photos)} photos"
    print_table(title, rows)
    report = {
        "protocol": "zero-shot: sketches of the classes against photos of the same classes, ties by index",
        "classes": names,
        "queries": len(test.sketches),
        "gallery": len(test.photos),
        "skipped": [str(s.path) for s in test.skipped],
        "checkpoint": {"file": str(config.checkpoint), "sha256": file_hash(config.checkpoint)},
        "backbone": model.backbone_identity,
        "query_mean": {name: r.query_mean for name, r in rows.items()},
        "class_mean": {name: r.class_mean for name, r in rows.items()},
    }
    if config.json is not None:
        write_json(config.json, report)
    if config.grid is not None:
        grid.save(config.grid, test.grid_rows(sketches, photos, 10), title)
    return report


def write_json(path: Path, report: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from None


def print_table(title: str, rows: dict[str, metrics.Result]) -> None:
    table = Table(title=title, title_justify="left", caption="means over queries, percent", caption_justify="left")
    table.add_column("")
    for column in next(iter(rows.values())).query_mean:
        table.add_column(column, justify="right")
    for name, result in rows.items():
        table.add_row(name, *(f"{100 * v:.1f}" for v in result.query_mean.values()))
    Console().print(table)
