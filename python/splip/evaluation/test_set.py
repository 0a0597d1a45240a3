"""Queries and galleries of a test, embedded and measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from splip import ops
from splip.data.cache import Pictures
from splip.data.config import DataConfig
from splip.data.pseudo import Drawn
from splip.data.trees import Items, Tree, paired
from splip.errors import UserError
from splip.evaluation import metrics
from splip.evaluation.protocols import Protocol
from splip.images import grid
from splip.models.retriever import Retriever
from splip.progress import track

BATCH = 64
Change = Literal["removed", "swapped"]
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

    def first(self, size: int) -> "Features":
        """The first ``size`` components, at unit length again."""
        return Features(*(F.normalize(whole[:, :size], dim=1) for whole in (self.sketches, self.photos)))


class TestSet:
    """Sketches and photos of some classes, decoded, with their labels.

    Args:
        tree: the data set.
        names: classes of the sketches.
        config: how pictures become square.
        side: pixels.
        gallery: rising positions of the photos in ``tree.photos``; None: those of the classes. One that stands there several
            times is decoded once, and :meth:`measure` counts it so often.
        queries: positions of the sketches in ``tree.sketches``; None: those of the classes.
    """

    __test__ = False  # not a pytest class

    def __init__(
        self,
        tree: Tree,
        names: list[str],
        config: DataConfig,
        side: int,
        gallery: np.ndarray | None = None,
        queries: np.ndarray | None = None,
    ) -> None:
        labels = [tree.classes.index(n) for n in names]
        if queries is None:
            queries = np.flatnonzero(np.isin(tree.sketches.labels, labels))
        if gallery is None:
            gallery = np.flatnonzero(np.isin(tree.photos.labels, labels))
        given, gallery = gallery, np.unique(gallery)
        sketches, photos = tree.sketches.take(queries.tolist()), tree.photos.take(gallery.tolist())
        self.tree, self.names = tree, names
        drawing = Pictures if tree.drawn else Drawn
        self.sketch_pictures = drawing(
            sketches.paths, side, config.fit, config.crop_sketches, config.memory_gb, "Decoding sketches", config.cache
        )
        self.photo_pictures = Pictures(
            photos.paths, side, config.fit, False, config.memory_gb, "Decoding photos", config.cache
        )
        self.sketches = sketches.take(self.sketch_pictures.kept)
        self.photos = photos.take(self.photo_pictures.kept)
        # Where they stand in the tree's lists.
        self.queries, self.gallery = queries[self.sketch_pictures.kept], gallery[self.photo_pictures.kept]
        self.counted = np.searchsorted(self.gallery, given[np.isin(given, self.gallery)])  # rows of photos
        self.skipped = self.sketch_pictures.skipped + self.photo_pictures.skipped
        if not len(self.sketches) or not len(self.photos):
            what = "sketches" if not len(self.sketches) else "photos"
            raise UserError(f"{tree.root}: no readable {what} of the classes {', '.join(names)}")

    def measure(self, sketches: Tensor, photos: Tensor) -> metrics.Result:
        """All sketches among all photos, in the columns of a plain tree."""
        counted = self.photos.take(self.counted.tolist())
        return metrics.measure(sketches, *_labels(self.sketches), photos[self.counted], *_labels(counted))

    def measure_model(self, model: Retriever, device: torch.device, change: Change | None = None) -> metrics.Result:
        features = self.embed_model(model, device, change=change)
        return self.measure(features.sketches, features.photos)

    def embed_model(
        self, model: Retriever, device: torch.device, bars: bool = False, change: Change | None = None
    ) -> Features:
        """Sketches and photos by a model in eval mode; ``change``: with other visual prompts than its own."""
        notes = f" ({change} prompts)" if change else ""
        labels = (f"Embedding sketches{notes}", f"Embedding photos{notes}") if bars else ("", "")

        def encode(modality: int) -> Callable[[Tensor], Tensor]:
            of: int | None = {None: modality, "removed": None, "swapped": 1 - modality}[change]
            return lambda images: model.encode_image(images, modality, of)

        return Features(
            embed(self.sketch_pictures, encode(0), device, labels[0]),
            embed(self.photo_pictures, encode(1), device, labels[1]),
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
        # In the order of the gallery, and as often: what could not be read is left out.
        readable = protocol.gallery[np.isin(protocol.gallery, test.gallery)]
        self.columns = np.searchsorted(test.gallery, readable)
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
