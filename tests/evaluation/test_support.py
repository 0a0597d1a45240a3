"""``splip eval --support``: what a model is shown of the classes that are measured, and where that may not be."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawing import pair

from splip.data.trees import load_tree
from splip.errors import UserError
from splip.evaluation import evaluate, support
from splip.evaluation.config import EvalConfig
from splip.evaluation.test_set import TestSet
from splip.models import build, load_model
from splip.models.config import LossConfig, PromptConfig

SEEN = ["ball", "dash", "red ball", "red box", "slash"]
ASKED = {"protocol": "fg", "gallery": ("per-class",)}


def save(settings, path, **changes):
    model = build(dataclasses.replace(settings, **changes), SEEN)
    model.data = {"seen": SEEN, "validation": ["pole"], "unseen": ["box", "cone"], "pictures": ""}
    model.patch_mean.normal_()
    torch.save(model.checkpoint(), path)
    return path


@pytest.fixture
def checkpoint(settings, tmp_path, tree):
    pair(tree)
    loss, prompts = LossConfig(jigsaw=0.0, margin="fixed"), PromptConfig(channel_scales=True, template="a photo of a")
    return save(settings, tmp_path / "best.pt", method="dp-clip", setting="fine-grained", loss=loss, prompts=prompts)


def run(checkpoint, **options):
    return evaluate.evaluate(EvalConfig(checkpoint, device="cpu", **options))


def test_a_row_of_its_own(checkpoint, capsys):
    """Beside the model that was shown nothing; what it was shown is said, and listed."""
    report = run(checkpoint, **ASKED, support=1)
    rows = report["query_mean"]
    assert list(rows)[:2] == ["DP-CLIP's prompts", "DP-CLIP's prompts, shown 1 photo of each class"]
    shown = report["support"]
    assert shown["photos"] == 1 and sorted(f.split("/")[1] for f in shown["files"]) == ["box", "cone"]
    assert (
        "1 of the gallery's photos of each measured class, with their labels: it compares with no method that sees none"
        in (" ".join(capsys.readouterr().out.split()))
    )
    assert "slot_attention" in report and "support" not in run(checkpoint, **ASKED)


def test_each_class_has_its_own_prompts(checkpoint, settings, tree):
    model = load_model(checkpoint)
    with torch.no_grad():
        model.scales.weight.normal_(std=0.5)
    test = TestSet(load_tree(tree, settings.data), ["box", "cone"], settings.data, 64)
    features, told = support.embed(test, model, 2, 0, torch.device("cpu"))
    assert len(told["support"]["files"]) == 4  # both photos of each class
    labels = np.asarray(test.photos.labels)
    for pictures, items, found in (
        (test.sketch_pictures, test.sketches, features.sketches),
        (test.photo_pictures, test.photos, features.photos),
    ):
        for row in range(len(items)):
            shown = test.photo_pictures.get(np.flatnonzero(labels == items.labels[row]))
            adapted = model.adapt(shown, ["box", "cone"][int(test.tree.classes[items.labels[row]] == "cone")])
            patches = model.backbone.embed_patches(pictures.get([row]))
            with torch.no_grad():
                want = F.normalize(model.backbone.encode_visual(patches, adapted.prompts), dim=1) * adapted.scales
            want = F.normalize(want, dim=1)[0]
            torch.testing.assert_close(found[row], want, atol=1e-5, rtol=1e-4)
    plain = test.embed_model(model, torch.device("cpu"))
    assert not torch.allclose(features.photos, plain.photos, atol=1e-3)


def test_the_draw(checkpoint, settings, tree):
    test = TestSet(load_tree(tree, settings.data), ["box", "cone"], settings.data, 64)
    labels = np.asarray(test.photos.labels)
    for size in (1, 2, 9):
        shown = support.draw(test, size, 4)
        assert {len(rows) for rows in shown.values()} == {min(size, 2)}
        assert all((labels[rows] == label).all() for label, rows in shown.items())
        again = support.draw(test, size, 4)
        assert all((again[label] == rows).all() for label, rows in shown.items())
    draws = {tuple(int(rows[0]) for rows in support.draw(test, 1, seed).values()) for seed in range(8)}
    assert len(draws) > 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"support": 2}, "only with --protocol fg --gallery per-class"),
        ({"support": 2, "protocol": "gzs"}, "only with --protocol fg --gallery per-class"),
        ({"support": 2, "protocol": "fg"}, "only with --protocol fg --gallery per-class"),  # all is among its galleries
        ({"support": 2, "protocol": "fg", "gallery": ("all",)}, "is the answer wherever other classes are searched"),
        ({"support": -1, **ASKED}, "--support must not be negative, got -1"),
    ],
)
def test_where_it_may_not_be(checkpoint, asked, message):
    with pytest.raises(UserError, match=message):
        run(checkpoint, **asked)


def test_of_other_methods(settings, tmp_path, tree):
    pair(tree)
    with pytest.raises(UserError, match="--support: method splip takes no photos of a category, only dp-clip does"):
        run(save(settings, tmp_path / "splip.pt"), **ASKED, support=2)


def test_of_given_features(refused):
    message = refused("eval", "--features", "a.npy", "b.npy", "--labels", "a.npy", "b.npy", "--support", 2)
    assert "--support adapts a model: it goes with --model, not with --features" in message
