"""``splip eval --partial``: ranks by hand, and whole sketches as without it."""

import csv
import json

import numpy as np
import pytest
import torch
from drawing import pair

from splip.errors import UserError
from splip.evaluation import evaluate, partial
from splip.evaluation.config import EvalConfig
from splip.models import build

SEEN = ["ball", "dash", "red ball", "red box", "slash"]


@pytest.fixture
def checkpoint(settings, tmp_path):
    model = build(settings, SEEN)
    model.data = {"seen": SEEN, "validation": ["pole"], "unseen": ["box", "cone"], "pictures": ""}
    torch.save(model.checkpoint(), tmp_path / "best.pt")
    return tmp_path / "best.pt"


@pytest.fixture
def run(checkpoint):
    def go(**options):
        options = {"partial": True, **options}
        if options["partial"]:
            options = {"shares": (0.25, 1.0), **options}
        return evaluate.evaluate(EvalConfig(checkpoint, device="cpu", **options))

    return go


def test_first_ranks_by_hand():
    photos = torch.tensor([[1.0, 0], [0.8, 0.6], [0.8, 0.6], [0, 1]])
    sketches = torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0]])
    right = np.array([[0, 0, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=bool)
    # Scores 1, .8, .8, 0: the third photo comes behind its equal; of the last sketch 0, .6, .6, 1: behind one photo.
    ranks, sizes = partial.first_ranks(sketches, photos, right)
    assert ranks.tolist() == [3, 1, 2] and sizes.tolist() == [4, 4, 4]
    pool = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]], dtype=bool)
    ranks, sizes = partial.first_ranks(sketches, photos, right, pool)
    assert ranks.tolist() == [1, 1, 1] and sizes.tolist() == [2, 4, 2]


def test_summary_by_hand():
    assert partial.summary(np.array([1]), np.array([1]), ())["percentile"] == 1  # nothing else to be found
    found = partial.summary(np.array([1, 2, 5]), np.array([5, 5, 5]), (1, 2))
    assert found == pytest.approx(
        {
            "Acc@1": 1 / 3, "Acc@2": 2 / 3, "median rank": 2, "mean rank": 8 / 3, "percentile": (1 + 0.75 + 0) / 3,
            "reciprocal": (1 + 0.5 + 0.2) / 3,
        }
    )  # fmt: skip


@pytest.mark.parametrize(("frame", "crop"), [("page", False), ("page", True), ("whole", True)])
def test_whole_sketches_are_found_as_ever(run, tree, settings, checkpoint, frame, crop):
    pair(tree)
    if crop:
        state = torch.load(checkpoint)
        state["config"]["data"]["crop_sketches"] = True
        torch.save(state, checkpoint)
    usual = run(partial=False, protocol="fg")["results"]
    report = run(protocol="fg", frame=frame)["partial"]
    assert [one["protocol"] for one in report["results"]] == [one["protocol"] for one in usual]
    assert report["strokes"] == "traced" and report["frame"] == frame and report["without_strokes"] == 0
    for ours, theirs in zip(report["results"], usual, strict=True):
        want = next(iter(theirs["query_mean"].values()))
        assert [v for k, v in ours["rows"][-1].items() if k.startswith("Acc")] == list(want.values())
        assert ours["m@A"] == np.mean([row["percentile"] for row in ours["rows"]])
        assert ours["m@B"] == np.mean([row["reciprocal"] for row in ours["rows"]])
    map_all = run(partial=False)["query_mean"]["SpLIP"]["mAP@all"]
    rows = run(frame=frame)["partial"]["results"][0]["rows"]
    assert rows[-1]["mAP@all"] == map_all and rows[0]["share"] == 0.25


def test_a_part_is_not_the_whole(run, monkeypatch):
    seen = []
    show = partial.show

    def look(drawing, share, *rest):
        seen.append((share, show(drawing, share, *rest)))
        return seen[-1][1]

    monkeypatch.setattr(partial, "show", look)
    run()
    assert [share for share, _ in seen] == [0.25] * 6 + [1.0] * 6
    for (_, part), (_, whole) in zip(seen[:6], seen[6:], strict=True):
        assert (part < 128).sum() < 0.5 * (whole < 128).sum() and (part < 128).any()


def test_strokes_of_a_folder(run, tree, tmp_path, capsys):
    folder = tmp_path / "strokes"
    (folder / "cone").mkdir(parents=True)
    lines = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M1 1L8 8"/><path d="M1 8L8 1"/></svg>'
    (folder / "cone" / "0.svg").write_text(lines)
    row = {"key_id": "2", "drawing": [[[0, 9], [0, 9]], [[0, 9], [9, 0]]]}
    (folder / "box.ndjson").write_text(json.dumps(row) + "\n")
    report = run(strokes=folder)["partial"]
    assert report["results"][0]["queries"] == 2 and report["without_strokes"] == 4
    assert report["strokes"] == str(folder) and "left out 4 of 6 sketches" in capsys.readouterr().out
    (folder / "cone" / "0.svg").write_text("<svg")
    with pytest.raises(UserError, match=r"cone/0.svg: not an SVG"):
        run(strokes=folder)
    with pytest.raises(UserError, match="no such folder"):
        run(strokes=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no strokes of any of the 6 sketches"):
        run(strokes=tmp_path / "empty")


def test_files(run, tmp_path):
    pytest.importorskip("matplotlib")
    run(out=tmp_path / "out", json=tmp_path / "one.json", k=(2,))
    report = json.loads((tmp_path / "one.json").read_text())
    assert json.loads((tmp_path / "out/results.json").read_text()) == report
    with open(tmp_path / "out/partial.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["share"]) for row in rows] == [0.25, 1.0]
    assert float(rows[1]["Acc@2"]) == report["partial"]["results"][0]["rows"][1]["Acc@2"]
    assert (tmp_path / "out/partial.png").read_bytes()[:4] == b"\x89PNG"


def test_refusals(refused, checkpoint, tree):
    command = ("eval", "--model", checkpoint, "--device", "cpu", "--partial")
    assert "--shares must be above 0 and at most 1, got 10" in refused(*command, "--shares", "10")
    assert "--baselines does not go with --partial" in refused(*command, "--baselines")
    assert "--metrics zse does not go with --partial" in refused(*command, "--metrics", "zse")
    assert "--strokes goes with --partial" in refused(*command[:-1], "--strokes", tree)
    assert "--frame goes with --partial" in refused(*command[:-1], "--frame", "whole")
    assert "--per-query does not go with --partial" in refused(*command, "--per-query", "x.csv")


def test_a_sketch_without_a_photo_is_never_found():
    """Behind all photos: no accuracy counts it, and its percentile is 0."""
    sketches, photos = torch.eye(3)[:2], torch.eye(3)
    right = np.array([[True, False, False], [False, False, False]])
    ranks, sizes = partial.first_ranks(sketches, photos, right)
    found = partial.summary(ranks, sizes, [1, 5])
    assert found["Acc@1"] == found["Acc@5"] == 0.5 and found["percentile"] == 0.5
    assert found["mean rank"] == 2.5 and found["reciprocal"] == (1 + 1 / 4) / 2
