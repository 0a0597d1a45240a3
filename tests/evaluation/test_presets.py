"""Presets against the formulas of the code that they are named after, written from what that code computes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torchmetrics.functional import retrieval

from splip.evaluation import metrics
from splip.evaluation.config import EvalConfig
from splip.evaluation.presets import PRESETS

RANKINGS = st.lists(st.booleans(), min_size=1, max_size=40).filter(any)
KS = (5, 12)


def area(relevant, top=None):
    """VOC's area under the monotone curve of precision over recall, as ZSE and SAKE have it, for some first ranks."""
    R = sum(relevant)
    if top is not None:
        relevant, R = relevant[:top], min(top, R)
    recall, precision, found = [0.0], [0.0], 0
    for rank, hit in enumerate(relevant, 1):
        found += hit
        recall.append(found / R)
        precision.append(found / rank)
    recall.append(1.0)
    precision.append(0.0)
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


def within(relevant, k):
    return sum(relevant[:k]) / k


def zse(relevant):
    R = sum(relevant)
    return [area(relevant), area(relevant, KS[-1]), *(within(relevant, min(k, R)) for k in KS)]


def sake(relevant):
    return [area(relevant), area(relevant, KS[-1]), *(within(relevant, k) for k in KS)]


def sempcyc(relevant):
    """scikit-learn's average precision of what is left after a cut; nothing relevant among it: 0."""

    def ap(part):
        return average_precision_score(part, -np.arange(len(part))) if any(part) else 0.0

    return [ap(relevant), ap(relevant[: KS[-1]]), *(within(relevant, k) for k in KS)]


def clip_at(relevant):
    """torchmetrics on distances; today's takes scores below zero for irrelevant, so they are shifted."""
    scores = torch.linspace(0.0, -1.0, len(relevant)) + 2
    return [float(retrieval.retrieval_average_precision(scores, torch.tensor(relevant)))]


FORMULAS = {"zse": zse, "sake": sake, "sempcyc": sempcyc, "clip-at": clip_at}


@pytest.mark.parametrize("name", PRESETS)
@settings(max_examples=60, deadline=None)
@given(relevant=RANKINGS)
def test_a_preset_is_its_codes_formula(name, relevant):
    padded = relevant + [False] * max(0, KS[-1] - len(relevant))
    columns = PRESETS[name].columns(KS)
    hits = metrics.Hits.of(np.array([padded]))
    got = [float(column.of(hits)[0]) for column in columns]
    assert got == pytest.approx(FORMULAS[name](padded), abs=1e-6)


def test_precision_among_what_is_reachable():
    """Where fewer photos are relevant than k, ZSE looks at no more ranks than that: not h / min(k, R)."""
    hits = metrics.Hits.of(np.array([[True, False, True, False, True]]))
    assert metrics.precision_at_reachable(hits, 4).tolist() == [pytest.approx(2 / 3)]
    assert metrics.precision_at(hits, 5, "min(k,R)").tolist() == [1.0]
    assert metrics.precision_at_reachable(metrics.Hits.of(np.zeros((1, 3), bool)), 2).tolist() == [0.0]


def test_names_of_a_presets_columns():
    names = {name: [c.name for c in preset.columns(preset.ks)] for name, preset in PRESETS.items()}
    assert names == {
        "zse": ["mAP@all VOC", "mAP@200 VOC", "P@min(100,R)", "P@min(200,R)"],
        "sake": ["mAP@all VOC", "mAP@200 VOC", "P@100", "P@200"],
        "sempcyc": ["mAP@all", "mAP@200 /h", "P@100", "P@200"],
        "clip-at": ["mAP@all"],
    }
    assert {name for name, preset in PRESETS.items() if preset.mean == "class_mean"} == {"sake"}
    assert set(PRESETS) | {"standard", "all"} == set(EvalConfig.__annotations__["metrics"].__args__)
