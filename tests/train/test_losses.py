import pytest
import torch
import torch.nn.functional as F

from splip.models.config import LossConfig, TrainConfig
from splip.train import losses


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def test_triplet_against_a_loop():
    sketch, positive, negative = unit(5, 8), unit(5, 8), unit(5, 8)
    margin = torch.rand(5)
    terms = []
    for s, p, n, m in zip(sketch, positive, negative, margin, strict=True):
        terms.append(max(0.0, float(((s - p) ** 2).sum() - ((s - n) ** 2).sum() + m)))
    torch.testing.assert_close(losses.triplet(sketch, positive, negative, margin), torch.tensor(terms).mean())


def test_triplet_is_zero_when_far_enough():
    a = F.normalize(torch.tensor([[1.0, 0.0]]), dim=1)
    assert losses.triplet(a, a, -a, 0.5) == 0
    assert losses.triplet(a, -a, a, 0.5) == 4.5


def test_classification_takes_each_modalitys_texts():
    features, texts = unit(6, 8), unit(2, 3, 8)
    labels, modality = torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([0, 1, 0, 1, 0, 1])
    scale = torch.tensor(14.3)
    terms = [F.cross_entropy(scale * texts[m] @ f, c) for f, c, m in zip(features, labels, modality, strict=True)]
    got = losses.classification(features, texts, labels, modality, scale)
    torch.testing.assert_close(got, torch.stack(terms).mean())


def test_classification_with_texts_of_each_image():
    features, texts, labels = unit(4, 8), unit(4, 3, 8), torch.tensor([0, 2, 1, 1])
    terms = [F.cross_entropy(9.0 * texts[i] @ f, c) for i, (f, c) in enumerate(zip(features, labels, strict=True))]
    got = losses.classification(features, texts, labels, None, torch.tensor(9.0))
    torch.testing.assert_close(got, torch.stack(terms).mean())


def test_semi_hard_takes_the_nearest_beyond_the_positive():
    def at(*degrees):
        angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    sketch, positive, photos = at(0, 0, 0), at(20, 20, 80), at(10, 30, 50, 70)
    allowed = torch.tensor([[True] * 4, [True, False, True, True], [True] * 4])
    # Nearer than the positive; not allowed; none is further away than 80 degrees.
    assert losses.semi_hard(sketch, positive, photos, allowed).tolist() == [1, 2, -1]


def test_semi_hard_with_equal_distances():
    """As far as the positive is not further away; of several as near, the first of the batch."""
    sketch, positive = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    photos = torch.tensor([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    allowed = torch.ones(1, 4, dtype=torch.bool)
    assert losses.semi_hard(sketch, positive, photos, allowed).tolist() == [2]
    assert losses.semi_hard(sketch, positive, photos[:2], allowed[:, :2]).tolist() == [-1]
    assert losses.semi_hard(sketch, positive, photos.flip(0), allowed).tolist() == [0]


def test_conditional_jigsaw_by_hand():
    """Two of three permutations for certain: CE is log 3 with equal logits, log(1 + 2/e) where the right one has 1."""
    even, right = torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]])
    target = torch.tensor([1])
    low, high = torch.log1p(torch.tensor(2.0) / torch.e), torch.log(torch.tensor(3.0))
    torch.testing.assert_close(losses.conditional_jigsaw(right, right, even, target), low)  # nearer is readable: 0
    torch.testing.assert_close(losses.conditional_jigsaw(right, even, right, target), low + high - low)
    torch.testing.assert_close(losses.conditional_jigsaw(even, even, right, target), high + high - low)


def test_conditional_jigsaw_against_a_loop():
    whole, near, far, target = torch.randn(5, 7), torch.randn(5, 7), torch.randn(5, 7), torch.randint(7, (5,))
    want = F.cross_entropy(whole, target)
    for a, b, y in zip(near, far, target, strict=True):
        want = want + max(0.0, float(F.cross_entropy(a, y) - F.cross_entropy(b, y))) / 5
    torch.testing.assert_close(losses.conditional_jigsaw(whole, near, far, target), want)


def test_permuted_triplet():
    a, b = unit(3, 8), unit(3, 8)
    assert losses.permuted_triplet(a, a, -a, 0.3) == 0
    torch.testing.assert_close(losses.permuted_triplet(a, b, b, 0.3), torch.tensor(0.3))


def test_divergence_against_a_loop():
    sketch, positive, negative = unit(6, 8), unit(6, 8), unit(6, 8)
    labels = torch.tensor([4, 1, 4, 1, 0, 0])
    relative = (sketch - positive).square().sum(1) - (sketch - negative).square().sum(1)
    rows = [torch.softmax(relative[labels == c].sort().values, 0) for c in (0, 1, 4)]
    pairs = [(p * (p / q).log()).sum() for i, p in enumerate(rows) for j, q in enumerate(rows) if i != j]
    got = losses.relative_distance_divergence(sketch, positive, negative, labels)
    torch.testing.assert_close(got, torch.stack(pairs).mean())
    assert got > 0
    assert losses.relative_distance_divergence(sketch, positive, negative, torch.zeros(6)) == 0


def test_margins_by_name():
    own, other = torch.tensor([0, 1]), torch.tensor([1, 1])
    similarity, config = torch.tensor([[1.0, 0.3], [0.3, 1.0]]), TrainConfig(loss=LossConfig(fixed_margin=0.7))
    assert losses.MARGINS["adaptive"](own, other, similarity, config).tolist() == pytest.approx([0.3, 1.0])
    assert losses.MARGINS["fixed"](own, other, similarity, config) == 0.7
    assert losses.NEGATIVES["semi-hard"] is losses.semi_hard
