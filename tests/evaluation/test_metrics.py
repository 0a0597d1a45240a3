"""Metrics against their definitions, scikit-learn and torchmetrics, on random and on adversarial rankings."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torchmetrics.functional import retrieval

from splip.evaluation import metrics
from splip.evaluation.metrics import Hits

# Relevance of one ranked gallery: any, none at all, all of it.
RANKINGS = st.integers(1, 30).flatmap(
    lambda n: st.one_of(
        st.lists(st.booleans(), min_size=n, max_size=n), st.just([False] * n), st.just([True] * n)
    )
)  # fmt: skip
CUTS = st.integers(1, 35)  # beyond the gallery too
DENOMINATORS = ("min(k,R)", "h", "k")


def literal(relevant, k, denominator, interpolated=False):
    """The definition, one rank at a time."""
    hits, precisions = 0, []
    for i, rel in enumerate(relevant[:k], start=1):
        hits += rel
        precisions.append(hits / i)
    if interpolated:
        precisions = [max(precisions[i:]) for i in range(len(precisions))]
    s_k = sum(p for p, rel in zip(precisions, relevant, strict=False) if rel)
    divisor = {"min(k,R)": min(k, sum(relevant)), "h": hits, "k": k}[denominator]
    return s_k / divisor if hits else 0.0


def one(values):
    assert values.shape == (1,) and values.dtype == np.float64
    return float(values[0])


# ---- one ranking ----


@settings(max_examples=200, deadline=None)
@given(RANKINGS, CUTS, st.booleans())
@example([True], 1, False)
@example([False], 1, True)
def test_average_precision_against_the_definition(relevant, k, interpolated):
    hits, everything = Hits.of(np.array([relevant])), len(relevant)
    for denominator in DENOMINATORS:
        got = one(metrics.average_precision(hits, k, denominator, interpolated))
        assert got == pytest.approx(literal(relevant, k, denominator, interpolated), abs=1e-12)
    got = one(metrics.average_precision(hits, interpolated=interpolated))
    assert got == pytest.approx(literal(relevant, everything, "min(k,R)", interpolated), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(RANKINGS)
def test_average_precision_against_scikit_learn(relevant):
    scores = -np.arange(len(relevant))
    want = average_precision_score(relevant, scores) if any(relevant) else 0.0
    assert one(metrics.average_precision(Hits.of(np.array([relevant])))) == pytest.approx(want)


@settings(max_examples=200, deadline=None)
@given(RANKINGS, CUTS)
def test_against_torchmetrics(relevant, k):
    """Where it measures the same. Its scores must be positive: targets of other scores count as irrelevant there."""
    target = torch.tensor(relevant)
    scores = torch.arange(len(relevant), 0, -1).float()
    hits = Hits.of(target[None])
    pairs = [
        (metrics.average_precision(hits), retrieval.retrieval_average_precision(scores, target)),
        (metrics.average_precision(hits, k, "h"), retrieval.retrieval_average_precision(scores, target, top_k=k)),
        (metrics.precision_at(hits, k), retrieval.retrieval_precision(scores, target, top_k=k)),
        (metrics.accuracy_at(hits, k), retrieval.retrieval_hit_rate(scores, target, top_k=k)),
    ]
    for ours, theirs in pairs:
        assert one(ours) == pytest.approx(float(theirs), abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(RANKINGS, CUTS)
def test_relations_between_the_variants(relevant, k):
    hits, R = Hits.of(np.array([relevant])), sum(relevant)
    ours, h, by_k = (one(metrics.average_precision(hits, k, d)) for d in DENOMINATORS)
    assert by_k <= ours + 1e-12 <= h + 2e-12
    assert ours <= one(metrics.average_precision(hits, k, interpolated=True)) + 1e-12 <= 1 + 2e-12
    # A table that breaks this used another denominator.
    if k <= R:
        assert ours <= one(metrics.precision_at(hits, k)) + 1e-12
    assert one(metrics.precision_at(hits, k)) == sum(relevant[:k]) / k
    assert one(metrics.precision_at(hits, k, "min(k,R)")) == (sum(relevant[:k]) / min(k, R) if R else 0.0)
    assert one(metrics.accuracy_at(hits, k)) == float(any(relevant[:k]))


def test_hits_of_several_queries():
    """Queries without a hit, at the start, in the middle and at the end, keep their rows."""
    relevant = np.array([[0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0]], dtype=bool)
    hits = Hits.of(relevant)
    assert hits.total.tolist() == [0, 2, 0, 1, 0] and hits.nth.tolist() == [1, 2, 1]
    assert metrics.average_precision(hits).tolist() == [0, pytest.approx((1 / 2 + 2 / 3) / 2), 0, 1, 0]
    assert metrics.average_precision(hits, interpolated=True).tolist() == [0, pytest.approx(2 / 3), 0, 1, 0]
    assert metrics.precision_at(hits, 2).tolist() == [0, 0.5, 0, 0.5, 0]


def test_names_say_which_variant():
    columns = metrics.category_columns((200,), variants=True)
    assert [c.name for c in columns] == [
        "mAP@all", "mAP@all VOC", "mAP@200", "mAP@200 /h", "mAP@200 /k", "mAP@200 VOC", "P@200", "P@200 /min(k,R)", "P@min(200,R)",
    ]  # fmt: skip
    assert "min(200, R)" in columns[2].meaning and "torchmetrics" in columns[3].meaning
    assert [c.name for c in metrics.category_columns((100, 200))] == ["mAP@all", "mAP@100", "P@100", "mAP@200", "P@200"]


# ---- ranking ----


# Small whole numbers: products are exact, and full of ties.
@st.composite
def galleries(draw):
    Q, N, D = draw(st.integers(1, 7)), draw(st.integers(1, 25)), draw(st.integers(1, 4))
    values = st.integers(-2, 2) if draw(st.booleans()) else st.just(1)  # or nothing but ties
    queries = draw(st.lists(st.lists(values, min_size=D, max_size=D), min_size=Q, max_size=Q))
    gallery = draw(st.lists(st.lists(values, min_size=D, max_size=D), min_size=N, max_size=N))
    label = st.integers(0, draw(st.integers(0, 4)))
    labels = [draw(st.lists(label, min_size=n, max_size=n)) for n in (Q, N)]
    things = [[10 * c + draw(st.integers(0, 3)) for c in some] for some in labels]
    return (
        torch.tensor(queries).float(), torch.tensor(labels[0]), torch.tensor(things[0]),
        torch.tensor(gallery).float(), torch.tensor(labels[1]), torch.tensor(things[1]),
    )  # fmt: skip


def ranked(query, gallery):
    scores = [sum(a * b for a, b in zip(query, photo, strict=True)) for photo in gallery]
    return sorted(range(len(gallery)), key=lambda i: (-scores[i], i))


EVERY = [
    *metrics.category_columns((1, 3, 40), variants=True),
    *(metrics.accuracy_column(k, in_class) for k in (1, 2) for in_class in (False, True)),
]


def slow(queries, query_labels, query_things, gallery, labels, things):
    """Each column of each query by the definitions, with lists."""
    rows = []
    for query, label, thing in zip(queries.tolist(), query_labels.tolist(), query_things.tolist(), strict=True):
        order = ranked(query, gallery.tolist())
        relevant = [bool(labels[i] == label) for i in order]
        same = [bool(things[i] == thing) for i in order]
        in_class = [s for s, r in zip(same, relevant, strict=True) if r]
        row = {}
        for k in (None, 1, 3, 40):
            cut, name = k or len(order), f"@{k or 'all'}"
            row["mAP" + name] = literal(relevant, cut, "min(k,R)")
            row["mAP" + name + " VOC"] = literal(relevant, cut, "min(k,R)", True)
            if k:
                row["mAP" + name + " /h"] = literal(relevant, k, "h")
                row["mAP" + name + " /k"] = literal(relevant, k, "k")
                row["P" + name] = sum(relevant[:k]) / k
                row["P" + name + " /min(k,R)"] = sum(relevant[:k]) / max(1, min(k, sum(relevant)))
                reach = min(k, sum(relevant))
                row[f"P@min({k},R)"] = sum(relevant[:reach]) / max(1, reach)
        for k in (1, 2):
            row[f"Acc@{k}"], row[f"Acc@{k} in class"] = float(any(same[:k])), float(any(in_class[:k]))
        rows.append(row)
    return rows


@settings(max_examples=150, deadline=None)
@given(galleries(), st.integers(1, 8))
def test_measure_against_a_slow_loop(data, block):
    result = metrics.measure(*data, EVERY, block=block)
    rows, labels = slow(*data), data[1].tolist()
    paired = bool(set(data[2].tolist()) & set(data[5].tolist()))
    assert list(result.query_mean) == [c.name for c in EVERY if paired or c.relevance == "class"]
    for name, values in result.per_query.items():
        want = [row[name] for row in rows]
        assert values.tolist() == pytest.approx(want, abs=1e-12), name
        assert result.query_mean[name] == pytest.approx(sum(want) / len(want))
        of_class = {c: [w for w, label in zip(want, labels, strict=True) if label == c] for c in set(labels)}
        means = {c: sum(some) / len(some) for c, some in of_class.items()}
        assert {c: row[name] for c, row in result.per_class.items()} == pytest.approx(means)
        assert result.class_mean[name] == pytest.approx(sum(means.values()) / len(means))
    assert result.ap.tolist() == pytest.approx([row["mAP@all"] for row in rows], abs=1e-12)
    orders = [ranked(query, data[3].tolist()) for query in data[0].tolist()]
    assert result.top.tolist() == [order[:10] for order in orders]
    assert metrics.rank(data[0], data[3], block).tolist() == orders


@pytest.mark.parametrize("piece", [1, 100, 1 << 18])
def test_blocks_and_pieces_do_not_matter(piece, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features = [torch.randint(-3, 4, (n, 8), generator=generator).float() for n in (67, 41)]
    labels = [torch.randint(0, 5, (n,), generator=generator) for n in (67, 41)]
    things = [torch.randint(0, 30, (n,), generator=generator) for n in (67, 41)]
    data = (features[0], labels[0], things[0], features[1], labels[1], things[1])
    want = metrics.measure(*data, EVERY)
    monkeypatch.setattr(metrics, "PIECE", piece)
    for block in (1, 2, 66, 67, 1000):
        got = metrics.measure(*data, EVERY, block=block)
        assert got.query_mean == want.query_mean and got.per_class == want.per_class  # to the last bit
        assert np.array_equal(got.top, want.top)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
@example([0.0, -0.0, 0.0, -1e-45, 1e-45])
@example([-1.0, -2.0, 3.4e38, -3.4e38, 0.0])
def test_order_of_any_scores(scores):
    """Every float32 has its place, 0 and -0 are equal, and the index decides ties; on a GPU too."""
    want = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    array, tags = np.array([scores], dtype=np.float32), np.arange(len(scores))[None] << 2 | 3
    keys = metrics._sorted_keys(array, tags)
    assert metrics._index(keys)[0].tolist() == want and (keys & 3 == 3).all()
    same = metrics._sorted_keys_torch(torch.from_numpy(array), torch.from_numpy(tags))
    assert same.tolist() == keys.tolist()


def test_rank_breaks_ties_by_index():
    gallery = torch.eye(4)[[1, 0, 0, 1, 2]]
    order = metrics.rank(torch.eye(4)[:2], gallery, block=1)
    assert order.tolist() == [[1, 2, 0, 3, 4], [0, 3, 1, 2, 4]]


def test_duplicates_share_a_score():
    """Photos that lie twice in a gallery are neighbours, the first of them first."""
    generator = torch.Generator().manual_seed(0)
    photos = torch.nn.functional.normalize(torch.randn(333, 96, generator=generator), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(70, 96, generator=generator), dim=1)
    order = metrics.rank(queries, torch.cat([photos, photos]))
    place = order.argsort(dim=1)
    assert torch.equal(place[:, 333:], place[:, :333] + 1)


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
    assert result.per_class[0]["Acc@1"] == 1.0 and result.per_class[1]["Acc@1"] == 0.0


def test_refuses_what_it_cannot_rank():
    good, labels = torch.eye(3), torch.arange(3)
    for bad in (math.nan, math.inf, -math.inf):
        broken = good.clone()
        broken[1, 2] = bad
        with pytest.raises(ValueError, match="gallery: row 1 holds a value that is not finite"):
            metrics.measure(good, labels, labels, broken, labels, labels)
        with pytest.raises(ValueError, match="queries: row 1 holds a value that is not finite"):
            metrics.rank(broken, good)
    with pytest.raises(ValueError, match="queries: expected features .* with at least one row"):
        metrics.measure(good[:0], labels[:0], labels[:0], good, labels, labels)
    with pytest.raises(ValueError, match="gallery: expected features .* with at least one row"):
        metrics.rank(good, good[:0])
    with pytest.raises(ValueError, match="gallery: 3 rows, but labels of shape"):
        metrics.measure(good, labels, labels, good, labels[:2], labels)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_measure_on_a_gpu():
    generator = torch.Generator().manual_seed(0)
    features = [torch.randint(-3, 4, (n, 8), generator=generator).float() for n in (67, 41)]
    labels = [torch.randint(0, 5, (n,), generator=generator) for n in (67, 41)]
    things = [torch.randint(0, 30, (n,), generator=generator) for n in (67, 41)]
    data = (features[0], labels[0], things[0], features[1], labels[1], things[1])
    want, got = metrics.measure(*data, EVERY), metrics.measure(*(d.cuda() for d in data), EVERY)
    assert got.query_mean == want.query_mean and np.array_equal(got.top, want.top)
    assert torch.equal(metrics.rank(data[0].cuda(), data[3].cuda()).cpu(), metrics.rank(data[0], data[3]))
