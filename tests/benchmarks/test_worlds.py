"""A small version of benchmarks/worlds.py: what only the modality can tell, prompts tell."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import worlds  # noqa: E402


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.manual_seed(0)
    return worlds.tower(tmp_path_factory.mktemp("world")), worlds.TwoObjects(0)


@pytest.mark.exhaustive
def test_prompts_pass_the_blind_ceiling(world):
    """On classes that training never saw. Swapped prompts see the wrong side, and without prompts there is none."""
    name, things = world
    test = things.test(300)
    model = worlds.make("splip", name, worlds.SEEN, 0)
    worlds.train(model, things.batch, steps=80, lr=2e-2, B=16)
    own, swapped, removed = (worlds.measure(model, test, of) for of in (worlds.OWN, worlds.SWAPPED, worlds.REMOVED))
    assert own["AUC"] > 60 and own["mAP"] > removed["mAP"] + 10
    assert swapped["AUC"] < 40 and swapped["mAP"] < own["mAP"] - 10
    assert removed["AUC"] == pytest.approx(50, abs=1e-6)


def test_blind_methods_are_at_the_ceiling(world):
    """To the last digit, trained or not: their scores are symmetric."""
    name, things = world
    test = things.test(200)
    for row, steps in (("clip-ln", 5), ("maple", 2), ("splip without prompts", 2)):
        model = worlds.make(row, name, worlds.SEEN, 0)
        before = worlds.measure(model.eval(), test)
        worlds.train(model, things.batch, steps, lr=1e-2, B=8)
        after = worlds.measure(model, test)
        assert after["AUC"] == pytest.approx(50, abs=1e-3) and after["mAP"] != before["mAP"]


def test_what_is_measured():
    """Scores by hand: a right pair above a mirrored one, and one that is below."""
    test = worlds.Sight(torch.zeros(3, 3, 4, 4), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))
    # x = (0, 1): right for it is the photo whose right thing is 0: the third; mirrored the second, whose left is 1.
    scores = torch.tensor([[9.0, 1.0, 2.0], [3.0, 9.0, 0.0], [0.0, 5.0, 9.0]])
    assert worlds.scored(scores, test) == {"AUC": pytest.approx(100 * 9 / 9), "mAP": pytest.approx(100.0)}
    turned = worlds.scored(scores.T, test)
    assert turned["AUC"] == 0 and turned["mAP"] == pytest.approx(50.0)
    both = worlds.both_objects(test)
    assert torch.equal(both, both.T)
    assert worlds._auc(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])) == pytest.approx(3.5 / 4)


def test_clusters_are_those_of_the_features():
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(5, 16, generator=generator), dim=1)
    truth = torch.randint(5, (1500,), generator=generator)
    rows = centres[truth] + 0.05 * torch.randn(1500, 16, generator=generator)
    found = worlds._clusters(torch.nn.functional.normalize(rows, dim=1), 5, generator)
    for cluster in range(5):
        assert len(truth[found == cluster].unique()) == 1
