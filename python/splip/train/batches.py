"""The pictures that a run trains on, and its batches: what of a step's batch this process computes, on its device.

Every batch comes from (seed, step) alone.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splip import distributed
from splip.data import pseudo
from splip.data.augment import augment
from splip.data.cache import Pictures
from splip.data.strokes import Partial
from splip.data.trees import Items, Tree, paired, unpaired
from splip.errors import UserError
from splip.models.config import TrainConfig
from splip.train.objective import Objective
from splip.train.sampler import Batch, Sampler


@dataclass
class Part:
    """This process's part of a step's batch: B sketches, B positives, B negatives."""

    images: Tensor  # [3 * B, 3, S, S] uint8
    labels: Tensor  # [3 * B], position among the seen classes
    instances: Tensor  # [3 * B]
    pieces: Tensor  # [B, 2] permutations
    batch: Batch


class Feed:
    """The pictures of the seen classes, and batches of them on the device."""

    def __init__(self, tree: Tree, config: TrainConfig, side: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.notes: list[str] = []
        sketches, photos = _share_of_pictures(*tree.items(tree.seen), config)
        self.pseudo = config.data.sketches == "pseudo"
        if self.pseudo:
            sketches = photos
        by_instance = config.setting == "fine-grained" or config.positives == "instance"
        lacking = unpaired(sketches, photos) if by_instance else []
        if lacking:
            what = "setting: fine-grained" if config.setting == "fine-grained" else "positives: instance"
            more = f", nor have {len(lacking) - 1} more sketches" if len(lacking) > 1 else ""
            raise UserError(f"{what}, but {lacking[0]} has no photo of the same instance{more}")
        data = config.data
        options: dict[str, Any] = {"memory_gb": data.memory_gb, "cache": data.cache, "scan": False}
        second = Pictures(photos.paths, side, data.fit, False, label="Decoding photos", **options)
        first = second  # which the sketches are drawn from
        if not self.pseudo:
            first = Pictures(sketches.paths, side, data.fit, data.crop_sketches, label="Decoding sketches", **options)
        self.pictures = (first, second)
        self.partial = Partial(data.partial, data.partial_least, data.crop_sketches, data.fit, data.memory_gb * 1e9)
        self.sketches, self.photos = (
            items.take(source.kept) for items, source in zip((sketches, photos), self.pictures, strict=True)
        )
        without = sorted(
            {tree.classes.index(n) for n in tree.seen} - (set(self.sketches.labels) & set(self.photos.labels))
        )
        if without:
            name = tree.classes[without[0]]
            raise UserError(
                f"{tree.root}: class {name} has no readable sketch or no readable photo; remove its folders"
            )
        self.rows = np.arange(len(self.sketches))  # of the sketches' pictures
        if by_instance:
            self.rows = np.flatnonzero(paired(self.sketches, self.photos))
            if len(self.rows) < len(self.sketches):
                self.notes.append(f"{len(self.sketches) - len(self.rows)} sketches left out: their photo is unreadable")
        self.sketches = self.sketches.take(self.rows.tolist())
        if len(self.sketches) < config.batch_size:
            raise UserError(
                f"batch_size {config.batch_size} is larger than the {len(self.sketches)} sketches to train on"
            )
        self.sampler = Sampler(self.sketches, self.photos, config)
        number = {tree.classes.index(name): i for i, name in enumerate(tree.seen)}
        self.sketch_labels = np.array([number[label] for label in self.sketches.labels])
        self.photo_labels = np.array([number[label] for label in self.photos.labels])
        self._told = len(self.skipped)

    @property
    def skipped(self) -> list[Any]:
        """Pictures that cannot be read, those found on the way too."""
        return [*self.pictures[0].skipped, *(() if self.pseudo else self.pictures[1].skipped)]

    def share_skipped(self) -> None:
        """What one process found unreadable is listed by the first."""
        for kind in (0, 1) if distributed.size() > 1 else ():
            own = self.pictures[kind].skipped
            found = {str(e.path): e for errors in distributed.gather(own) for e in errors}
            own[:] = found.values()

    def news(self) -> bool:
        """True once after more unreadable pictures were found."""
        told, self._told = self._told, len(self.skipped)
        return told != self._told

    def some(self, count: int) -> tuple[Tensor, Tensor]:
        """Up to ``count`` sketches and as many photos, evenly spaced: uint8 ``[B, 3, S, S]`` each, what can be read."""
        found = []
        for source in self.pictures:
            rows = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(np.int64))
            pixels, readable = source.get_readable(rows)
            found.append(pixels[torch.from_numpy(readable)])
        return found[0], found[1]

    def files(self, part: Part) -> list[Path]:
        """The pictures of a batch, as its rows."""
        b = part.batch
        return [self.sketches.paths[i] for i in b.sketches] + [
            self.photos.paths[i] for i in (*b.positives, *b.negatives)
        ]

    def batches(self, start: int, stop: int, objective: Objective) -> Iterator[Part]:
        """The batches of these steps; for a GPU they are made while it computes."""

        def make(step: int) -> Part:
            return self.part(step, objective)

        yield from ahead(make, start, stop, 2 if self.device.type == "cuda" else 0)

    def part(self, step: int, objective: Objective) -> Part:
        """This process's part of the batch of a step."""
        config = self.config
        whole = self.sampler.batch(step)
        B = config.batch_size // distributed.size()
        mine = np.arange(distributed.rank() * B, (distributed.rank() + 1) * B)
        batch = whole.take(mine)
        which = (self.pictures[0], self.pictures[1], self.pictures[1])
        positions = (self.rows[batch.sketches], batch.positives, batch.negatives)
        found = [source.get_readable(p) for source, p in zip(which, positions, strict=True)]
        images = torch.cat([pixels for pixels, _ in found])
        readable = np.logical_and.reduce([ok for _, ok in found])
        if not readable.all():
            # Another triplet of this process stands in for one with a picture that turned out unreadable.
            good = np.flatnonzero(readable)
            if not len(good):
                raise UserError(f"step {step}: no triplet of the batch has three readable pictures: {self.skipped[-1]}")
            rows = np.where(readable, np.arange(B), good[np.arange(B) % len(good)])
            batch = batch.take(rows)
            images = images[torch.from_numpy(np.concatenate([rows, rows + B, rows + 2 * B]))]
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        places = torch.from_numpy(np.concatenate([mine + i * config.batch_size for i in range(3)]))
        device = self.device
        images = images.to(device, non_blocking=True)
        if self.pseudo:
            drawn = pseudo.draw(images[:B], generator, torch.from_numpy(mine), config.batch_size)
            images = torch.cat([drawn, images[B:]])
        if config.data.partial:
            # Numbers of their own: the rest of a batch is the same with finished sketches.
            own = torch.Generator().manual_seed(config.seed * 1_000_003 + step + 250_000)
            names = None if self.pseudo else self.rows[batch.sketches]
            parts = self.partial(images[:B], own, torch.from_numpy(mine), config.batch_size, names)
            images = torch.cat([parts, images[B:]])
        images = augment(
            images, torch.arange(3 * B) < B, config.data.augment, generator, places, 3 * config.batch_size,
            pairs=config.setting == "fine-grained",
        )  # fmt: skip
        generator.manual_seed(config.seed * 1_000_003 + step + 500_000)
        pieces = objective.pieces(config.batch_size, generator)[torch.from_numpy(mine)]
        labels = [self.sketch_labels[batch.sketches], *(self.photo_labels[p] for p in batch[1:])]
        things = [self.sampler.instances[batch.sketches], *(self.sampler.photo_instances[p] for p in batch[1:])]
        return Part(
            images,
            torch.from_numpy(np.concatenate(labels)).to(device),
            torch.from_numpy(np.concatenate(things)).to(device),
            pieces.to(device),
            batch,
        )


def ahead(make: Callable[[int], Part], start: int, stop: int, depth: int) -> Iterator[Part]:
    """``make(start) ... make(stop - 1)``, up to ``depth`` of them made in advance by another thread."""
    if depth == 0:
        yield from map(make, range(start, stop))
        return
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(make, step) for step in range(start, min(start + depth, stop))]
        for step in range(start + depth, stop + depth):
            part = waiting.pop(0).result()
            if step < stop:
                waiting.append(pool.submit(make, step))
            yield part


def _share_of_pictures(sketches: Items, photos: Items, config: TrainConfig) -> tuple[Items, Items]:
    """A seeded share of each class's pictures; sketches and photos of an instance stay together."""
    if config.data.sample_fraction == 1:
        return sketches, photos
    rng = np.random.default_rng([config.data.split_seed, 4])
    both = set(sketches.instances) & set(photos.instances)
    pools: dict[tuple[int, str], list[int]] = {}
    for kind, items in (("sketch", sketches), ("photo", photos)):
        for label, thing in zip(items.labels, items.instances, strict=True):
            pools.setdefault((label, "both" if thing in both else kind), []).append(thing)
    kept: set[int] = set()
    for key in sorted(pools):
        things = sorted(set(pools[key]))
        count = max(2 if key[1] == "both" else 1, round(config.data.sample_fraction * len(things)))
        kept.update(rng.choice(things, min(count, len(things)), replace=False).tolist())

    def keep(items: Items) -> Items:
        return items.take([i for i, thing in enumerate(items.instances) if thing in kept])

    return keep(sketches), keep(photos)
