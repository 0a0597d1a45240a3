"""Losses of other methods, by hand."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from splip.errors import UserError
from splip.models import build
from splip.models.clip import PromptedCLIP
from splip.models.config import BackboneConfig, LossConfig, TrainConfig
from splip.train import checks
from splip.train.objective import Objective
from splip.train.rivals import consistency, elastic, icon

LABELS = torch.tensor([0, 1, 2, 0] + [0, 1, 2, 0] + [1, 2, 0, 2])
THINGS = torch.tensor([0, 1, 2, 3] + [0, 1, 2, 3] + [4, 5, 0, 6])
ALONE = {"triplet": 0.0, "classification": 0.0, "jigsaw": 0.0}


def at(*degrees):
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def make(loss, **changes):
    return Objective(
        build(TrainConfig(backbone=BackboneConfig(name="splip-tiny"), loss=loss, **changes), ["dog", "palm", "cup"])
    )


def batch(objective):
    images = torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8)
    return images, LABELS, THINGS, objective.pieces(4, torch.Generator().manual_seed(1))


# ---- elastic matching ----


def test_ambiguity_counts_what_is_as_near():
    sketch, positive, photos = at(0, 0, 0), at(30, 30, 5), at(10, 20, 40, -60)
    allowed = torch.tensor([[True] * 4, [True, False, True, True], [False] * 4])
    # Two of four are nearer than 30 degrees; one of three; nothing to confuse it with.
    assert elastic.ambiguity(sketch, positive, photos, allowed).tolist() == pytest.approx([1 / 2, 1 / 3, 0])
    tie = elastic.ambiguity(at(0), at(90), at(90, 180), torch.ones(1, 2, dtype=torch.bool))
    assert tie.tolist() == [0.5]  # as near counts


def test_elastic_triplet_by_hand():
    """d is 2 - 2 cos: 0, 2, 4 at 0, 90, 180 degrees. The hinges are max(0, 0 - 2 + mu) and max(0, 2 - 2 + mu)."""
    sketch, positive, negative = at(0, 0), at(0, 90), at(90, -90)
    margin, strength = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.25])
    scaled = elastic.triplet(sketch, positive, negative, margin, strength, "margin")
    assert float(scaled) == pytest.approx((1.0 + 0.25) / 2, abs=1e-6)
    scaled = elastic.triplet(sketch, positive, negative, margin, torch.tensor([0.5, 0.25]), "margin")
    assert float(scaled) == pytest.approx((0.0 + 0.25) / 2, abs=1e-6)  # half of 3 is less than 2
    scaled = elastic.triplet(sketch, positive, negative, margin, torch.tensor([0.5, 0.25]), "weight")
    assert float(scaled) == pytest.approx((0.5 + 0.25) / 2, abs=1e-6)


@pytest.mark.parametrize("scales", ["margin", "weight"])
def test_elastic_term_asks_the_untrained_backbone(scales):
    objective = make(LossConfig(elastic=0.8, elastic_scales=scales, classification=0, jigsaw=0, fixed_margin=0.7))
    model, (images, labels, things, pieces) = objective.model, batch(objective)
    with torch.no_grad():  # training moves LayerNorms; what is ambiguous must not move with them
        for parameter in model.backbone.visual_tower.normalisations():
            parameter.add_(0.3 * torch.randn_like(parameter))
    got = objective(images, labels, things, pieces)["triplet"]
    model.eval()
    plain = PromptedCLIP(model.config.backbone)
    with torch.no_grad():
        before = F.normalize(plain.encode_visual(plain.embed_patches(images)), dim=1)
        sketch, positive, negative = (
            model.encode_image(part, kind) for part, kind in zip(images.chunk(3), (0, 1, 1), strict=True)
        )
    total = 0.0
    for i in range(4):
        own = float(before[i] @ before[4 + i])
        others = [float(before[i] @ before[4 + j]) >= own for j in range(8) if labels[4 + j] != labels[i]]
        w = 1 - 0.8 * sum(others) / len(others)
        mu = max(0.2, float(model.class_similarity[labels[i], labels[8 + i]]))
        gap = float((sketch[i] - positive[i]).square().sum() - (sketch[i] - negative[i]).square().sum())
        total += max(0.0, gap + w * mu) if scales == "margin" else w * max(0.0, gap + mu)
    assert float(got.detach()) == pytest.approx(total / 4, abs=1e-4)


def test_elastic_leaves_no_trace():
    """The second copy is neither trained nor saved; without elastic there is none."""
    objective = make(LossConfig(elastic=1.0))
    assert not any("untrained" in name for name in objective.state_dict())
    assert set(objective.model.checkpoint()["trainable"]) == set(make(LossConfig()).model.checkpoint()["trainable"])
    assert make(LossConfig()).untrained is None
    with pytest.raises(UserError, match="weights are not those that the run began with"):
        elastic.Untrained(objective.model.config, {"sha256": "other"})


# ---- ICon ----


def test_icon_by_hand():
    """Cosines 1 and 0 at temperature 1: q is e / (e + 1) and 1 / (e + 1). The target is (1 - a) + a/2 and a/2."""
    sketch, photos, own = at(0), at(0, 90), torch.tensor([[True, False]])
    q = [math.e / (math.e + 1), 1 / (math.e + 1)]
    assert float(icon.icon(sketch, photos, own, 1.0, 0.0)) == pytest.approx(-math.log(q[0]), abs=1e-6)
    p = [0.9, 0.1]
    want = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(icon.icon(sketch, photos, own, 1.0, 0.2)) == pytest.approx(want, abs=1e-6)
    # With a temperature at which q is the target, nothing is left to learn.
    assert float(icon.icon(sketch, photos, own, 1 / math.log(9), 0.2)) == pytest.approx(0, abs=1e-6)


def test_icon_shares_the_target_among_a_sketchs_own():
    sketch, photos, own = unit(3, 8), unit(5, 8), torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 1, 1, 1]]) > 0
    want = 0.0
    for s, mine in zip(sketch, own, strict=True):
        q = torch.softmax(photos @ s / 0.07, dim=0)
        p = torch.full((5,), 0.3 / 5)
        p[mine] += 0.7 / int(mine.sum())
        want += float((p * (p / q).log()).sum()) / 3
    assert float(icon.icon(sketch, photos, own, 0.07, 0.3)) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("setting", ["category", "fine-grained"])
def test_icon_term(setting):
    """All photos of the batch; a sketch's own are its class's, or those of its thing, drawn as another's negative too."""
    objective = make(LossConfig(icon=1.0, icon_temperature=0.5, **ALONE), setting=setting)
    images, labels, things, pieces = batch(objective)
    got = objective(images, labels, things, pieces)["icon"]
    model, kind = objective.model.eval(), things if setting == "fine-grained" else labels
    sketch, photos = model.encode_image(images[:4], 0), model.encode_image(images[4:], 1)
    own = torch.tensor([[bool(kind[i] == kind[4 + j]) for j in range(8)] for i in range(4)])
    assert own.sum() == (5 if setting == "fine-grained" else 11)
    torch.testing.assert_close(got, icon.icon(sketch, photos, own, 0.5, 0.2))


# ---- consistency ----


def test_consistency_by_hand():
    """Three sketches at 0, 0, 90 degrees, their photos at 0, 90, 90: temperature 1, so weights are e and 1."""
    high, low = math.e / (math.e + 1), 1 / (math.e + 1)
    # Relations of 0 to (1, 2), of 1 to (0, 2), of 2 to (0, 1).
    sketches = [(high, low), (high, low), (0.5, 0.5)]
    photos = [(0.5, 0.5), (low, high), (low, high)]
    want = 0.0
    for s, p in zip(sketches, photos, strict=True):
        m = [(a + b) / 2 for a, b in zip(s, p, strict=True)]
        want += sum(a * math.log(a / c) + b * math.log(b / c) for a, b, c in zip(s, p, m, strict=True)) / 2 / 3
    got = consistency.consistency(at(0, 0, 90), at(0, 90, 90), 1.0)
    assert float(got) == pytest.approx(want, abs=1e-6)


def test_consistency_is_of_relations():
    """A turn of all photos changes nothing, and it is alike in both directions."""
    x, y = unit(6, 4), unit(6, 4)
    turn = torch.linalg.qr(torch.randn(4, 4))[0]
    assert float(consistency.consistency(x, x @ turn, 0.1)) == pytest.approx(0, abs=1e-5)
    there, back = consistency.consistency(x, y, 0.1), consistency.consistency(y, x, 0.1)
    torch.testing.assert_close(there, back)
    assert 0 < float(there) <= math.log(2)


def test_consistency_term():
    objective = make(LossConfig(consistency=2.0, consistency_temperature=0.5, **ALONE), method="clip-ln")
    images, labels, things, pieces = batch(objective)
    terms = objective(images, labels, things, pieces)
    model = objective.model.eval()
    want = consistency.consistency(model.encode_image(images[:4], 0), model.encode_image(images[4:8], 1), 0.5)
    torch.testing.assert_close(terms["consistency"], want)
    torch.testing.assert_close(terms["loss"], 2 * want)
    terms["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.trainable().values() if p.grad is not None)


# ---- settings ----


@pytest.mark.parametrize(
    ("loss", "changes", "message"),
    [
        ({"elastic": 1.5}, {}, "loss.elastic must be between 0 and 1, got 1.5"),
        ({"elastic": math.nan}, {}, "loss.elastic must be between 0 and 1"),
        ({"elastic": 0.5, "triplet": 0.0}, {}, "loss.elastic scales the triplet loss: loss.triplet must not be 0"),
        ({"elastic": 0.5}, {"train_backbone": True}, "asks the backbone before training .* not with train_backbone"),
        ({"icon": -1.0}, {}, "loss.icon must not be negative, got -1"),
        ({"icon_temperature": 0.0}, {}, "loss.icon_temperature must be greater than 0, got 0"),
        ({"icon_spread": 1.1}, {}, "loss.icon_spread must be between 0 and 1, got 1.1"),
        ({"consistency_temperature": math.nan}, {}, "loss.consistency_temperature must be greater than 0, got nan"),
        ({"consistency": 1.0}, {"batch_size": 4, "accumulate": 2}, "pairs of a batch: 3 at least, got 2"),
        ({"terms": {"icon": 1.0}}, {}, "loss.terms: the weight of icon is loss.icon"),
    ],
)
def test_settings_that_cannot_be(loss, changes, message):
    config = dataclasses.replace(TrainConfig(loss=LossConfig(**loss)), **changes)
    with pytest.raises(UserError, match=message):
        checks.check_settings(config)
