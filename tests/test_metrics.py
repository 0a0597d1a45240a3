import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from splip import metrics

RANKINGS = st.integers(1, 30).flatmap(lambda n: st.lists(st.booleans(), min_size=n, max_size=n))


def literal(relevant, k, denominator):
    """The definition, one rank at a time."""
    hits, s_k = 0, 0.0
    for i, rel in enumerate(relevant[:k], start=1):
        if rel:
            hits += 1
            s_k += hits / i
    R = sum(relevant)
    divisor = {"min(k,R)": min(k, R), "h": hits, "k": k}[denominator]
    return s_k / divisor if s_k else 0.0


@settings(max_examples=200, deadline=None)
@given(RANKINGS, st.integers(1, 35))
def test_average_precision_against_the_definition(relevant, k):
    ranked = torch.tensor([relevant])
    for denominator in ("min(k,R)", "h", "k"):
        got = float(metrics.average_precision(ranked, k, denominator))
        assert got == pytest.approx(literal(relevant, k, denominator), abs=1e-12)
    assert float(metrics.average_precision(ranked)) == pytest.approx(literal(relevant, len(relevant), "min(k,R)"))


@settings(max_examples=100, deadline=None)
@given(RANKINGS)
def test_average_precision_against_scikit_learn(relevant):
    scores = -np.arange(len(relevant))
    want = average_precision_score(relevant, scores) if any(relevant) else 0.0
    assert float(metrics.average_precision(torch.tensor([relevant]))) == pytest.approx(want)


@settings(max_examples=100, deadline=None)
@given(RANKINGS, st.integers(1, 35))
def test_map_at_k_never_exceeds_precision_when_enough_are_relevant(relevant, k):
    """A table that breaks this used another denominator."""
    ranked = torch.tensor([relevant])
    if sum(relevant) >= k:
        assert metrics.average_precision(ranked, k) <= metrics.precision_at(ranked, k) + 1e-12


def test_precision_and_accuracy():
    ranked = torch.tensor([[True, False, True, False], [False, False, False, True]])
    assert metrics.precision_at(ranked, 2).tolist() == [0.5, 0.0]
    assert metrics.precision_at(ranked, 10).tolist() == [0.2, 0.1]
    assert metrics.accuracy_at(ranked, 1).tolist() == [1.0, 0.0]
    assert metrics.accuracy_at(ranked, 4).tolist() == [1.0, 1.0]


def test_rank_breaks_ties_by_index():
    gallery = torch.eye(4)[[1, 0, 0, 1, 2]]
    order = metrics.rank(torch.eye(4)[:2], gallery, block=1)
    assert order.tolist() == [[1, 2, 0, 3, 4], [0, 3, 1, 2, 4]]


def test_measure():
    """Two classes; the second sketch finds the other class first, then its class, not its own thing."""
    photos = torch.eye(4)
    sketches = torch.tensor([[1.0, 0.1, 0.0, 0.0], [0.9, 0.0, 0.1, 0.2]])
    sketches = torch.nn.functional.normalize(sketches, dim=1)
    result = metrics.measure(
        sketches, torch.tensor([0, 1]), torch.tensor([10, 12]),
        photos, torch.tensor([0, 0, 1, 1]), torch.tensor([10, 11, 12, 13]),
    )  # fmt: skip
    assert result.queries == 2 and result.gallery == 4
    assert result.query_mean["Acc@1"] == 0.5
    assert result.query_mean["Acc@1 in class"] == 0.5
    assert result.query_mean["Acc@5"] == 1.0
    assert result.query_mean["mAP@all"] == pytest.approx((1.0 + (1 / 2 + 2 / 3) / 2) / 2)
    assert result.class_mean == pytest.approx(result.query_mean)


def test_measure_means_over_classes():
    """Three queries of one class, one of the other: the class mean weighs the classes equally."""
    photos, labels = torch.eye(2), torch.tensor([0, 1])
    sketches = torch.eye(2)[[0, 0, 0, 0]]
    query_labels = torch.tensor([0, 0, 0, 1])
    result = metrics.measure(sketches, query_labels, query_labels, photos, labels, labels)
    assert result.query_mean["Acc@1"] == 0.75 and result.class_mean["Acc@1"] == 0.5
