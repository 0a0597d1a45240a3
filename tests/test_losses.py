import torch
import torch.nn.functional as F

from splip import losses


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
