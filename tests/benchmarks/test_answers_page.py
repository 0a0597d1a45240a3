"""docs/how-to/answers.md says what was measured."""

import json
import re
from pathlib import Path

import pytest

from splip.gallery import doubt

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/answers.md").read_text(encoding="utf-8")


def result(name):
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))


def cells(line):
    return [cell.strip().strip("*") for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(("name", "kind"), [("drawings", "sketch"), ("photos", "photo"), ("known words", "text")])
def test_doubt(name, kind):
    found = result("doubt")
    assert found["factors"] == doubt.FACTORS and f"{doubt.FACTORS[kind]:.2f}" in PAGE
    rows = [cells(line) for line in PAGE.splitlines() if line.startswith(f"| {name}, ")]
    models = found["results"][kind]["reported"]["bulk (splip)"]["models"]
    assert [row[0] for row in rows] == [f"{name}, {model.replace('SpLIP, ', 'SpLIP ')}" for model in models]
    for row, measured in zip(rows, models.values(), strict=True):
        wanted = [f"{measured['auc']:.2f}", f"{measured['false_alarms']:.0%}", f"{measured['misses']:.0%}"]
        assert [cell.replace(" %", "%") for cell in row[1:]] == wanted


def test_explanations():
    found = result("explain")
    models = ["splip-tiny", "splip-tiny-3", "a plain ViT"]
    titles = {
        "at random": "at random",
        "where there is ink": "where there is ink",
        "parts": "patches",
        "removal": "removal",
    }
    for kind, title in titles.items():
        (row,) = [cells(line) for line in PAGE.splitlines() if line.startswith(f"| {title} |")]
        orders = [found[model]["orders"][kind] for model in models]
        assert row[1:] == [f"{o['insertion'] - o['deletion']:.3f}" for o in orders]
    cost = found["vit-b-32"]
    took, whole, share, wall, plain = re.search(
        r"one photo, (\d+) ms on two cores .* \((\d+) ms of processor time\), "
        r"([\d.]+) times the processor time of encoding it \((\d+) ms, (\d+)\)",
        " ".join(PAGE.split()),
    ).groups()
    assert (took, wall) == tuple(f"{cost['wall_ms'][kind]:.0f}" for kind in ("explain", "encode"))
    assert (whole, plain) == tuple(f"{cost['cpu_ms'][kind]:.0f}" for kind in ("explain", "encode"))
    assert share == f"{cost['cpu_ms']['explain'] / cost['cpu_ms']['encode']:.2f}"


def test_rules_that_were_tried():
    rules = {
        "the bulk of drawings (what splip does)": "bulk (splip)",
        "the bulk of the gallery's own photos": "photos' bulk",
        "z among the scores of the best match with unrelated queries": "z of the photo's scores",
        "best scores of unrelated queries": "best scores of unrelated queries",
        "the bare score": "score",
        "robust z among the query's scores, by N": "robust z, by N",
        "z among the query's scores": "z of the query's scores",
        "the same, by N": "the same, by N",
        "lead over the tenth match": "lead over the tenth",
    }
    chosen = result("doubt")["results"]["sketch"]["chosen"]
    assert chosen.keys() == set(rules.values())
    for title, rule in rules.items():
        (row,) = [cells(line) for line in PAGE.splitlines() if line.startswith(f"| {title} |")]
        models = list(chosen[rule]["models"].values())
        alarms = [100 * model["false_alarms"] for model in models]
        by_gallery = zip(*(model["false_alarms_by_gallery"] for model in models), strict=True)
        assert row[1:] == [
            ", ".join(f"{model['auc']:.2f}" for model in models),
            f"{min(alarms):.0f} to {max(alarms):.0f} %",
            f"{100 * sum(model['misses'] for model in models) / len(models):.0f} %",
            ", ".join(f"{100 * sum(several) / len(several):.0f}" for several in by_gallery) + " %",
        ]
    anew = [
        result("doubt")["results"][kind]["chosen"]["bulk (splip)"]["threshold"] for kind in ("sketch", "photo", "text")
    ]
    assert "chosen anew they would be {:.2f}, {:.2f} and {:.2f}".format(*anew) in " ".join(PAGE.split())
