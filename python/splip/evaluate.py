"""``splip eval``: retrieval on held-out classes under a named protocol, beside baselines that learn nothing."""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

import splip
from splip import disk, grid, metrics, ops, plots, protocols
from splip.clip import PromptedCLIP
from splip.config import DataConfig, EvalConfig
from splip.data import Items, Tree, load_tree, paired
from splip.errors import UserError
from splip.model import SpLIP, file_hash, load_model, pick_device
from splip.pictures import Pictures
from splip.progress import track
from splip.protocols import Protocol

BATCH = 64
SHOWN = 10  # queries in a picture, and photos of each


def embed(pictures: Pictures, encode: Callable[[Tensor], Tensor], device: torch.device, label: str = "") -> Tensor:
    """Features ``[N, D]`` on the CPU, in batches, with a progress bar when ``label`` is given."""
    starts: Sequence[int] = range(0, len(pictures), BATCH)
    with torch.no_grad():
        parts = [
            encode(pictures.get(range(i, min(i + BATCH, len(pictures)))).to(device)).float().cpu()
            for i in (track(starts, label) if label else starts)
        ]
    return torch.cat(parts)


@dataclass
class Features:
    """Sketches ``[Q, D]`` and photos ``[N, D]`` of a test set, unit length, on the CPU."""

    sketches: Tensor
    photos: Tensor


class TestSet:
    """Sketches and photos of some classes, decoded, with their labels.

    Args:
        tree: the data set.
        names: classes of the sketches.
        config: how pictures become square.
        side: pixels.
        gallery: positions of the photos in ``tree.photos``; None: those of the classes.
    """

    __test__ = False  # not a pytest class

    def __init__(
        self, tree: Tree, names: list[str], config: DataConfig, side: int, gallery: np.ndarray | None = None
    ) -> None:
        labels = [tree.classes.index(n) for n in names]
        queries = np.flatnonzero(np.isin(tree.sketches.labels, labels))
        if gallery is None:
            gallery = np.flatnonzero(np.isin(tree.photos.labels, labels))
        sketches, photos = tree.sketches.take(queries.tolist()), tree.photos.take(gallery.tolist())
        self.tree, self.names = tree, names
        self.sketch_pictures = Pictures(
            sketches.paths, side, config.fit, config.crop_sketches, config.memory_gb, "Decoding sketches", config.cache
        )
        self.photo_pictures = Pictures(
            photos.paths, side, config.fit, False, config.memory_gb, "Decoding photos", config.cache
        )
        self.sketches = sketches.take(self.sketch_pictures.kept)
        self.photos = photos.take(self.photo_pictures.kept)
        # Where they stand in the tree's lists.
        self.queries, self.gallery = queries[self.sketch_pictures.kept], gallery[self.photo_pictures.kept]
        self.skipped = self.sketch_pictures.skipped + self.photo_pictures.skipped
        if not len(self.sketches) or not len(self.photos):
            what = "sketches" if not len(self.sketches) else "photos"
            raise UserError(f"{tree.root}: no readable {what} of the classes {', '.join(names)}")

    def measure(self, sketches: Tensor, photos: Tensor) -> metrics.Result:
        """All sketches among all photos, in the columns of a plain tree."""
        return metrics.measure(sketches, *_labels(self.sketches), photos, *_labels(self.photos))

    def measure_model(self, model: SpLIP, device: torch.device) -> metrics.Result:
        features = self.embed_model(model, device)
        return self.measure(features.sketches, features.photos)

    def embed_model(self, model: SpLIP, device: torch.device, bars: bool = False) -> Features:
        labels = ("Embedding sketches", "Embedding photos") if bars else ("", "")
        return Features(
            embed(self.sketch_pictures, model.encode_sketch, device, labels[0]),
            embed(self.photo_pictures, model.encode_photo, device, labels[1]),
        )

    def embed_alike(self, encode: Callable[[Tensor], Tensor], device: torch.device) -> Features:
        """Sketches and photos by the same function."""
        return Features(embed(self.sketch_pictures, encode, device), embed(self.photo_pictures, encode, device))


def _labels(items: Items) -> tuple[Tensor, Tensor]:
    return torch.tensor(items.labels), torch.tensor(items.instances)


class View:
    """The part of a test set that a protocol measures.

    Where it asks for a sketch's own photo and that could not be read, the sketch is left out; ``unpaired`` of them.
    """

    def __init__(self, test: TestSet, protocol: Protocol, device: torch.device) -> None:
        self.test, self.protocol, self.device = test, protocol, device
        self.rows = np.flatnonzero(np.isin(test.queries, protocol.queries))
        self.columns = np.flatnonzero(np.isin(test.gallery, protocol.gallery))
        self.unpaired = 0
        self.photos = test.photos.take(self.columns.tolist())
        if protocol.instances:
            found = paired(test.sketches.take(self.rows.tolist()), self.photos)
            self.unpaired = int((~found).sum())
            self.rows = self.rows[found]
        self.sketches = test.sketches.take(self.rows.tolist())
        if not len(self.sketches) or not len(self.photos):
            what = "sketches" if not len(self.sketches) else "photos"
            raise UserError(f"{test.tree.root}: no readable {what} for the protocol {protocol.name}")

    def take(self, features: Features) -> Features:
        """What the protocol compares, on the device."""
        sketches, photos = features.sketches[self.rows], features.photos[self.columns]
        return Features(sketches.to(self.device), photos.to(self.device))

    def measure(self, features: Features, columns: Sequence[metrics.Column]) -> metrics.Result:
        own = self.take(features)
        return metrics.measure(
            own.sketches, *_labels(self.sketches), own.photos, *_labels(self.photos), columns
        )  # fmt: skip

    def spread(self, count: int = SHOWN) -> list[int]:
        """Sketches spread evenly over the classes, chosen before looking at a result."""
        labels = np.asarray(self.sketches.labels)
        classes = list(dict.fromkeys(labels.tolist()))
        count = min(count, len(classes))
        chosen = [classes[i * len(classes) // count] for i in range(count)]
        return [int(np.flatnonzero(labels == c)[n % (labels == c).sum()]) for n, c in enumerate(chosen)]

    def by_precision(self, result: metrics.Result, seed: int, count: int = SHOWN) -> dict[str, list[int]]:
        """The sketches of greatest, middle and least average precision; ties in a random order."""
        ties = np.random.default_rng(seed).permutation(len(result.ap))
        order = np.lexsort((ties, -result.ap)).tolist()
        middle = max(0, (len(order) - count) // 2)
        return {"best": order[:count], "median": order[middle : middle + count], "worst": order[::-1][:count]}

    def grid_rows(self, chosen: Sequence[int], features: Features, ap: np.ndarray | None = None) -> list[grid.Row]:
        """A row for each of these sketches, with its photos, their classes and, given them, average precisions."""
        own, labels, rows = self.take(features), np.asarray(self.photos.labels), []
        for q in chosen:
            label, thing = self.sketches.labels[q], self.sketches.instances[q]
            pool = np.flatnonzero(labels == label) if self.protocol.in_class else np.arange(len(labels))
            photos, sketch = own.photos[pool], own.sketches[[q]]
            best, found = ops.cosine_topk(sketch, photos, min(SHOWN, len(pool)))
            scores, indices = best[0].tolist(), pool[found[0].cpu().numpy()].tolist()
            hits: list[str | None] = [
                "same" if self.photos.instances[i] == thing else ("hit" if self.photos.labels[i] == label else "miss")
                for i in indices
            ]
            names = [self.test.tree.texts[self.photos.labels[i]] for i in indices]
            paths = [self.photos.paths[i] for i in indices]
            note = "" if ap is None else f"AP {100 * ap[q]:.1f}"
            rows.append(grid.Row(self.sketches.paths[q], paths, scores, hits, self.test.tree.texts[label], note, names))
        return rows

    def confusion(self, result: metrics.Result) -> tuple[np.ndarray, list[str], list[str]]:
        """Share of the first photos by class of the sketch (rows) and of the photo; the names of both.

        Seen classes, which no sketch shows, are one column.
        """
        tree = self.test.tree
        rows = sorted((tree.classes.index(n) for n in self.protocol.classes), key=lambda label: tree.texts[label])
        position = np.full(len(tree.classes), len(rows))
        position[rows] = np.arange(len(rows))
        queries = position[np.asarray(self.sketches.labels)]
        photos = position[np.asarray(self.photos.labels)][result.top]
        counts = np.zeros((len(rows), len(rows) + 1))
        np.add.at(counts, (queries[:, None], photos), 1)
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        names = [tree.texts[r] for r in rows]
        if (position[np.asarray(self.photos.labels)] < len(rows)).all():
            return share[:, :-1], names, names
        return share, names, [*names, "(seen classes)"]


# ---- baselines ----


def chance(test: TestSet) -> Iterator[Features]:
    """Ten random orders."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        vectors = [torch.randn(len(items), 64, generator=generator) for items in (test.sketches, test.photos)]
        yield Features(*(F.normalize(v, dim=1) for v in vectors))


def mean(results: Sequence[metrics.Result], labels: Sequence[int]) -> metrics.Result:
    """Of several measurements of the same queries."""
    per_query = {
        name: np.mean([r.per_query[name] for r in results], axis=0) for name in results[0].per_query
    }  # fmt: skip
    ap = np.mean([r.ap for r in results], axis=0)
    return metrics.Result.of(per_query, np.asarray(labels), results[0].gallery, ap, results[0].top)


def _grey(images: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images.float() * weights).sum(dim=1)  # [B, S, S], 0 to 255


def raw_pixels(test: TestSet) -> Features:
    """Grey pixels at 32 x 32, each picture's mean taken away."""

    def encode(images: Tensor) -> Tensor:
        small = F.interpolate(_grey(images)[:, None], size=(32, 32), mode="area").flatten(1)
        return F.normalize(small - small.mean(dim=1, keepdim=True), dim=1)

    return test.embed_alike(encode, torch.device("cpu"))


def need_hog() -> None:
    """Say that scikit-image is missing before any work is done."""
    try:
        import skimage.feature  # noqa: F401
    except ImportError:
        raise UserError("the HOG baseline needs scikit-image: pip install scikit-image") from None


def hog(test: TestSet) -> Features:
    """Histograms of oriented gradients (scikit-image) at 64 x 64: no learning, and strong on drawings."""
    from skimage.feature import hog as describe

    def encode(images: Tensor) -> Tensor:
        grey = F.interpolate(_grey(images)[:, None], size=(64, 64), mode="area")[:, 0].numpy()
        rows = [describe(g, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2)) for g in grey]
        return F.normalize(torch.from_numpy(np.stack(rows)).float(), dim=1)

    return test.embed_alike(encode, torch.device("cpu"))


def plain_backbone(test: TestSet, model: SpLIP, device: torch.device) -> Features:
    """The backbone before any training, without prompts."""
    backbone = PromptedCLIP(model.config.backbone).to(device).eval()

    def encode(images: Tensor) -> Tensor:
        return F.normalize(backbone.encode_visual(backbone.embed_patches(images)), dim=1)

    return test.embed_alike(encode, device)


def _backbone_words(model: SpLIP) -> str:
    """The backbone's name and, unless the package holds them, where its weights come from."""
    source = model.backbone_identity["pretrained"]
    if source == "package":
        return model.config.backbone.name
    return f"{model.config.backbone.name} ({'random weights' if source in (None, 'random') else source})"


# ---- the verb ----


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """``splip eval``; returns what it writes as results.json."""
    if config.baselines:
        need_hog()
    if config.out is not None:
        plots.need()
        if config.out.exists() and not config.out.is_dir():
            raise UserError(f"{config.out}: exists and is not a folder")
    if any(k < 1 for k in config.k):
        raise UserError(f"--k must be at least 1, got {min(config.k)}")
    device = pick_device(config.device)
    model = load_model(config.checkpoint, device)
    data = _test_data(config, model.config.data)
    tree = load_tree(data.root, data)
    names = list(getattr(tree, config.classes))
    if not names:
        raise UserError(f"{tree.root}: no {config.classes} classes")
    chosen = protocols.build(config.protocol, config.gallery, tree, names, config.seed)
    leaked = _leaked(config, model, data, tree, names)
    if leaked:
        chosen += [protocols.without(p, tree, leaked) for p in chosen]

    everything = np.unique(np.concatenate([p.gallery for p in chosen]))
    test = TestSet(tree, names, data, model.backbone.image_size, everything)
    if test.skipped:
        print(f"left out {len(test.skipped)} unreadable pictures: " + ", ".join(str(s.path) for s in test.skipped))
    views = [View(test, p, device) for p in chosen]
    features: dict[str, list[Features]] = {}
    if config.baselines:
        features["chance"] = list(chance(test))
        features["raw pixels"] = [raw_pixels(test)]
        features["HOG"] = [hog(test)]
        features[f"plain {_backbone_words(model)}"] = [plain_backbone(test, model, device)]
    method = model.config.method
    ours = "SpLIP" if method == "splip" else method
    features[ours] = [test.embed_model(model, device, bars=True)]

    measured = []
    for view in views:
        columns = _columns(config, data, view.protocol)
        rows = {n: mean([view.measure(f, columns) for f in fs], view.sketches.labels) for n, fs in features.items()}
        print_table(_title(view), rows)
        if view.unpaired:
            print(f"left out {view.unpaired} sketches whose own photo cannot be read")
        measured.append((view, rows))
    sets = [_facts(view, rows, ours) for view, rows in measured]
    asked = {c.name: c.meaning for view, _ in measured for c in _columns(config, data, view.protocol)}
    report = {
        "protocol": sets[0]["protocol"],
        "dataset": tree.dataset,
        "split": tree.split,
        "classes": sets[0]["classes"],
        "queries": sets[0]["queries"],
        "gallery": sets[0]["gallery"],
        "skipped": [str(s.path) for s in test.skipped],
        "leaked": leaked,
        "columns": {name: text for name, text in asked.items() if any(name in s["query_mean"][ours] for s in sets)},
        "order": "cosine in float32, falling; ties by gallery index",
        "seed": config.seed,
        "method": method,
        "checkpoint": {"file": str(config.checkpoint), "sha256": file_hash(config.checkpoint)},
        "backbone": model.backbone_identity,
        "splip": splip.__version__,
        "query_mean": sets[0]["query_mean"],
        "class_mean": sets[0]["class_mean"],
        "results": sets,
    }
    if config.json is not None:
        write_json(config.json, report)
    if config.grid is not None:
        view, own = views[0], features[ours][0]
        grid.save(config.grid, view.grid_rows(view.spread(), own), _title(view))
    if config.out is not None:
        write_json(config.out / "results.json", report)
        for view, rows in measured:
            # One protocol writes into the folder itself, several into one each.
            folder = config.out if len(measured) == 1 else config.out / view.protocol.name.replace(":", "-")
            _write_set(folder, view, rows, ours, features[ours][0], config.seed)
        print(f"{config.out}: results.json, tables and pictures")
    return report


def _test_data(config: EvalConfig, trained: DataConfig) -> DataConfig:
    """The data settings of the checkpoint, changed to the data set to be tested on."""
    # Decoded pictures may be used again, but an evaluation elsewhere makes no folder it was not told of.
    cache = trained.cache if trained.cache is not None and trained.cache.is_dir() else None
    data = replace(trained, root=config.root or trained.root, cache=cache)
    if config.protocol == "fg":
        data = replace(data, extended=False)  # Sketchy's other photos were not drawn by anyone
    if config.dataset is None and config.split is None:
        return data
    dataset = config.dataset or trained.dataset
    if config.root is None and dataset != trained.dataset:
        raise UserError(f"--dataset {dataset}: --root must name its folder")
    # Lists of classes belong to the data set that training was given.
    split = config.split or (trained.split if dataset == trained.dataset else None)
    return replace(data, dataset=dataset, split=split, unseen=(), validation=())


def _same_data_set(data: DataConfig, trained: DataConfig) -> bool:
    if data.dataset != trained.dataset:
        return False
    # A benchmark is the same wherever it lies; of a tree only the folder is known.
    return data.dataset != "tree" or (
        data.root is not None and trained.root is not None and data.root.resolve() == trained.root.resolve()
    )


def _leaked(config: EvalConfig, model: SpLIP, data: DataConfig, tree: Tree, names: list[str]) -> list[str]:
    """Classes to be measured that the checkpoint knows.

    Raises:
        UserError: it knows any of the data set that it was trained on, or all of another one.
    """
    same = _same_data_set(data, model.config.data)
    found = protocols.leaks(tree, names, model.data, validation=not (same and config.classes == "validation"))
    leaked = [n for n in names if any(n in classes for classes in found.values())]
    if leaked and (same or len(leaked) == len(names)):
        how, classes = next(iter(found.items()))
        words = sorted(tree.texts[tree.classes.index(n)] for n in classes)
        raise UserError(f"{config.checkpoint} {how} classes to be measured: {', '.join(words)}")
    if leaked:
        print(
            f"note: {config.checkpoint} knows {len(leaked)} of the {len(names)} classes from its own data set: "
            f"{', '.join(leaked)}; results follow with and without them"
        )
    return leaked


def _columns(config: EvalConfig, data: DataConfig, protocol: Protocol) -> list[metrics.Column]:
    if protocol.instances:
        return [metrics.accuracy_column(k, protocol.in_class) for k in config.k or (1, 5, 10)]
    instances = [c for c in metrics.DEFAULT if c.relevance != "class"]
    variants = config.metrics == "all"
    if not config.k and data.dataset == "tree" and not variants:
        return list(metrics.DEFAULT)
    ks = config.k or ((10,) if data.dataset == "tree" else (100, 200))
    return metrics.category_columns(ks, variants) + instances


def _title(view: View) -> str:
    p = view.protocol
    return f"{p.name}, {len(p.classes)} classes: {len(view.sketches)} sketches in {len(view.photos)} photos"


def _gallery_lines(view: View) -> list[str]:
    root = view.test.tree.root
    return [os.path.relpath(path, root) for path in view.photos.paths]


def _facts(view: View, rows: dict[str, metrics.Result], ours: str) -> dict[str, Any]:
    """One protocol's part of results.json."""
    listed = hashlib.sha256("".join(line + "\n" for line in _gallery_lines(view)).encode("utf-8", "surrogateescape"))
    return {
        "protocol": view.protocol.name,
        "meaning": view.protocol.meaning,
        "classes": view.protocol.classes,
        "queries": len(view.sketches),
        "gallery": len(view.photos),
        "gallery_sha256": listed.hexdigest(),
        "unpaired": view.unpaired,
        "query_mean": {name: r.query_mean for name, r in rows.items()},
        "class_mean": {name: r.class_mean for name, r in rows.items()},
        "per_class": {view.test.tree.classes[label]: values for label, values in rows[ours].per_class.items()},
    }


def _write_set(
    folder: Path, view: View, rows: dict[str, metrics.Result], ours: str, features: Features, seed: int
) -> None:
    """The files of one protocol: per_class.csv, gallery.txt and the pictures."""
    result, tree = rows[ours], view.test.tree
    sketches, photos = np.bincount(view.sketches.labels), np.bincount(view.photos.labels, minlength=len(tree.classes))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = {"encoding": "utf-8", "errors": "surrogateescape"}
        with disk.replacing(folder / "per_class.csv", "w", newline="", **text) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["method", "class", "sketches", "photos", *result.query_mean])
            for name, r in rows.items():
                for label, values in r.per_class.items():
                    counts = [sketches[label], photos[label]]
                    writer.writerow([name, tree.classes[label], *counts, *(f"{v:.6f}" for v in values.values())])
        lines = "".join(line + "\n" for line in _gallery_lines(view))
        disk.write_text(folder / "gallery.txt", lines, "surrogateescape")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}") from None
    if not view.protocol.in_class:  # else every photo is of the right class
        share, names, columns = view.confusion(result)
        plots.confusion(
            folder / "confusion.png", share, names, columns, f"Classes of the ten best photos\n{_title(view)}"
        )
    for which, chosen in view.by_precision(result, seed).items():
        title = f"The {len(chosen)} sketches of {which} average precision ({view.protocol.name}, {ours})"
        grid.save(folder / f"{which}.png", view.grid_rows(chosen, features, result.ap), title)


def write_json(path: Path, report: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.write_text(path, json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from None


def print_table(title: str, rows: dict[str, metrics.Result]) -> None:
    """Means over queries, and below them means over classes; many columns stand upright."""
    names = list(next(iter(rows.values())).query_mean)
    table = Table()
    if len(names) > 7:
        caption = "percent: mean over queries / mean over classes"
        for head in ("", *rows):
            table.add_column(head, justify="right" if head else "left")
        for name in names:
            cells = (f"{100 * r.query_mean[name]:.1f} / {100 * r.class_mean[name]:.1f}" for r in rows.values())
            table.add_row(name, *cells)
    else:
        caption = "percent: means over queries, below the line over classes"
        for head in ("", *names):
            table.add_column(head, justify="right" if head else "left")
        for which in ("query_mean", "class_mean"):
            for name, result in rows.items():
                table.add_row(name, *(f"{100 * v:.1f}" for v in getattr(result, which).values()))
            table.add_section()
    console = Console()
    console.print(title, style="italic", highlight=False)
    console.print(table)
    console.print(caption, style="dim", highlight=False)
