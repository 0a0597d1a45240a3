from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from splip.data.trees import Items
from splip.errors import UserError
from splip.models.config import TrainConfig
from splip.train.sampler import Sampler


def items(labels, instances):
    return Items([Path(f"{label}/{i}.png") for i, label in enumerate(labels)], labels, instances)


SKETCHES = items([0] * 6 + [1] * 6 + [2] * 6, [*range(18)])
PHOTOS = items([0] * 4 + [1] * 1 + [2] * 5 + [0] * 2, [0, 1, 2, 3, 6, 12, 13, 14, 15, 16, 4, 5])
PAIRED = SKETCHES.take([0, 1, 2, 3, 12, 13, 14])


def sampler(sketches=SKETCHES, photos=PHOTOS, **changes):
    return Sampler(sketches, photos, TrainConfig(**{"batch_size": 6, **changes}))


def triplets(drawn, steps):
    for step in range(steps):
        yield from zip(*drawn.batch(step), strict=True)


def test_batches_are_right_and_repeatable():
    drawn = sampler()
    seen = []
    for step in range(drawn.steps_per_epoch):
        sketch, positive, negative = drawn.batch(step)
        for s, p, n in zip(sketch, positive, negative, strict=True):
            assert PHOTOS.labels[p] == SKETCHES.labels[s] != PHOTOS.labels[n]
        seen += sketch.tolist()
        assert all(np.array_equal(a, b) for a, b in zip(drawn.batch(step), (sketch, positive, negative), strict=True))
    assert sorted(seen) == list(range(18))  # an epoch visits every sketch once
    assert not np.array_equal(drawn.batch(0).sketches, drawn.batch(3).sketches)


def test_instance_positives():
    for s, p, _ in triplets(sampler(PAIRED, positives="instance", batch_size=4), 4):
        assert PHOTOS.instances[p] == PAIRED.instances[s]
    with pytest.raises(UserError, match=r"0/4.png has no photo of the same instance"):
        sampler(SKETCHES.take([*range(8)]), PHOTOS.take([*range(5)]), positives="instance", batch_size=4)


def test_fine_grained():
    """The photo that was drawn, and another photo of the same class."""
    for s, p, n in triplets(sampler(PAIRED, setting="fine-grained", batch_size=4), 6):
        assert PHOTOS.instances[p] == PAIRED.instances[s] != PHOTOS.instances[n]
        assert PHOTOS.labels[n] == PAIRED.labels[s]


def test_fine_grained_needs_a_negative():
    one = SKETCHES.take([0, 1, 6])
    with pytest.raises(UserError, match=r"but 1 has photos of one instance: no negative"):
        sampler(one, PHOTOS, setting="fine-grained", batch_size=1)


def test_class_balance():
    """Class 0 has ten times the sketches of the others and is drawn no more often."""
    sketches = items([0] * 50 + [1] * 5 + [2] * 5, [*range(60)])
    counts = Counter(sketches.labels[s] for s, _, _ in triplets(sampler(sketches, sampling="class"), 50))
    assert counts == {0: 100, 1: 100, 2: 100}
    uniform = Counter(sketches.labels[s] for s, _, _ in triplets(sampler(sketches), 50))
    assert uniform[0] > 4 * uniform[1]


def test_instance_balance():
    """Thing 0 was drawn forty times, the other nine things of its class once."""
    sketches = items([0] * 49 + [1] * 10, [0] * 40 + [*range(1, 20)])
    counts = Counter(sketches.instances[s] for s, _, _ in triplets(sampler(sketches, sampling="instance"), 400))
    assert set(counts) == set(range(20))
    assert max(counts.values()) < 2 * min(counts.values())


@pytest.mark.parametrize("sampling", ["uniform", "class", "instance"])
def test_groups_of_a_class(sampling):
    drawn = sampler(sampling=sampling, per_class=3)
    for step in range(5):
        sketches = drawn.batch(step).sketches.reshape(-1, 3)
        for group in sketches:
            assert len({SKETCHES.labels[s] for s in group}) == 1 and len(set(group)) == 3
    with pytest.raises(UserError, match="batch_size 6 is not a multiple of per_class 4"):
        sampler(per_class=4)
