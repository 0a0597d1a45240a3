"""Which sketches, positive and negative photos make up the batch of a step.

Every choice comes from (seed, step) alone: a resumed run, or another number of processes, sees the
same batches.
"""

from typing import NamedTuple

import numpy as np

from splip.data.trees import Items
from splip.errors import UserError
from splip.models.config import TrainConfig


class Batch(NamedTuple):
    """Positions of sketches, positive photos and negative photos, ``[B]`` each."""

    sketches: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray

    def take(self, rows: np.ndarray) -> "Batch":
        return Batch(self.sketches[rows], self.positives[rows], self.negatives[rows])


class Sampler:
    """Batches of sketches with a positive and a negative photo each.

    Category setting: the positive is a photo of the sketch's class (or of its instance, ``positives``),
    the negative one of another class. Fine-grained: a photo of its instance, and another instance of its class.

    ``sampling: uniform`` visits every sketch once an epoch, but for the last partial batch; ``class`` gives all
    classes, ``instance`` all instances the same chance. ``per_class`` sketches of a class come together; above
    1, classes are drawn anew for each batch, uniform: in proportion to their sketches.

    Args:
        sketches: of the seen classes.
        photos: of the seen classes.
        config: batch_size, positives, setting, sampling, per_class, seed.

    Raises:
        UserError: the pictures do not allow such batches.
    """

    def __init__(self, sketches: Items, photos: Items, config: TrainConfig) -> None:
        self.config, self.batch_size, self.seed = config, config.batch_size, config.seed
        self.fine_grained = config.setting == "fine-grained"
        self.by_instance = self.fine_grained or config.positives == "instance"
        self.labels, self.instances = np.asarray(sketches.labels), np.asarray(sketches.instances)
        self.photo_labels, self.photo_instances = np.asarray(photos.labels), np.asarray(photos.instances)
        self.classes = np.unique(self.photo_labels)
        self.of_class = _positions(self.photo_labels)
        self.sketches_of = _positions(self.labels)
        own = _positions(self.photo_instances)
        self.own = [own.get(i, np.empty(0, dtype=np.int64)) for i in self.instances.tolist()]
        if self.by_instance and not all(len(photos_of) for photos_of in self.own):
            lacking = next(i for i, photos_of in enumerate(self.own) if not len(photos_of))
            raise UserError(f"{sketches.paths[lacking]} has no photo of the same instance")
        if self.fine_grained:
            for label, positions in self.of_class.items():
                if label in self.sketches_of and len(np.unique(self.photo_instances[positions])) < 2:
                    folder = photos.paths[positions[0]].parent
                    raise UserError(f"setting: fine-grained, but {folder} has photos of one instance: no negative")
        if config.batch_size % config.per_class:
            raise UserError(f"batch_size {config.batch_size} is not a multiple of per_class {config.per_class}")
        self.steps_per_epoch = max(1, len(self.labels) // self.batch_size)
        weights = {"uniform": len, "class": lambda _: 1, "instance": lambda p: len(np.unique(self.instances[p]))}
        counts = np.array([weights[config.sampling](p) for p in self.sketches_of.values()], dtype=float)
        self.chances = counts / counts.sum()

    def batch(self, step: int) -> Batch:
        """The batch of a step, of all processes together."""
        rng = np.random.default_rng([self.seed, 2, step])
        chosen = self._sketches(step, rng)
        positive, negative = np.empty_like(chosen), np.empty_like(chosen)
        for i, sketch in enumerate(chosen):
            label = self.labels[sketch]
            pool = self.own[sketch] if self.by_instance else self.of_class[int(label)]
            positive[i] = rng.choice(pool)
            if self.fine_grained:
                same = self.of_class[int(label)]
                negative[i] = rng.choice(same[self.photo_instances[same] != self.instances[sketch]])
            else:
                other = rng.choice(self.classes[self.classes != label])
                negative[i] = rng.choice(self.of_class[int(other)])
        return Batch(chosen, positive, negative)

    def _sketches(self, step: int, rng: np.random.Generator) -> np.ndarray:
        size = self.config.per_class
        if self.config.sampling == "uniform" and size == 1:
            epoch, position = divmod(step, self.steps_per_epoch)
            order = np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.labels))
            return order[position * self.batch_size : (position + 1) * self.batch_size]
        classes, count = list(self.sketches_of), self.batch_size // size
        if self.config.sampling == "class":  # as evenly as the batch allows
            rounds = [rng.permutation(len(classes)) for _ in range(-(-count // len(classes)))]
            drawn = np.concatenate(rounds)[:count]
        else:
            drawn = rng.choice(len(classes), count, p=self.chances)
        return np.concatenate([self._of_class(self.sketches_of[classes[c]], size, rng) for c in drawn])

    def _of_class(self, positions: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        """``size`` sketches of a class, different ones while there are enough."""
        if self.config.sampling == "instance":
            things = np.unique(self.instances[positions])
            chosen = rng.choice(things, size, replace=size > len(things))
            return np.array([rng.choice(positions[self.instances[positions] == t]) for t in chosen])
        return rng.choice(positions, size, replace=size > len(positions))


def _positions(numbers: np.ndarray) -> dict[int, np.ndarray]:
    """Where each number stands, by rising number."""
    order = np.argsort(numbers, kind="stable")
    values, starts = np.unique(numbers[order], return_index=True)
    return {int(v): p for v, p in zip(values, np.split(order, starts[1:]), strict=True)}
