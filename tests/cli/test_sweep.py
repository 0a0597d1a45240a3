import json

import pytest

from splip.cli import sweep
from splip.cli.config import SweepConfig
from splip.errors import UserError


@pytest.fixture
def small(tree, tmp_path):
    """Settings of every run of a sweep: a few steps on the tiny tree."""
    return (
        f"data.root={tree}",
        "data.unseen=[box, cone]",
        "data.validation=[pole]",
        "backbone.name=splip-tiny",
        "steps=2",
        "batch_size=4",
        "eval_every=2",
        "device=cpu",
    )


@pytest.mark.exhaustive
def test_sweep(small, tmp_path, capsys):
    out = tmp_path / "sweep"
    config = SweepConfig(("zero-shot", "ablations/no-b_[tv]"), set=small, seeds=(0, 1), out=out)
    table = sweep.sweep(config).read_text()
    report = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["zero-shot", "no-b_t", "no-b_v"]
    assert [row["label"] for row in report["rows"]] == ["plain CLIP, nothing trained", "without B_t", "without B_v"]
    for row in report["rows"]:
        assert all(len(values) == 2 for values in row["metrics"].values())
    zero = report["rows"][0]["metrics"]["mAP@all"]
    assert zero[0] == zero[1]  # nothing random is left
    for row in report["rows"]:
        measured = json.loads((out / row["name"] / "seed-1" / "eval-zs.json").read_text())
        (method,) = measured["query_mean"]  # the method's own, and nothing beside it
        assert method == ("zero-shot" if row["name"] == "zero-shot" else "SpLIP")
        assert measured["query_mean"][method]["mAP@all"] == row["metrics"]["mAP@all"][1]
    assert f"| without B_t | {100 * sum(report['rows'][1]['metrics']['mAP@all']) / 2:.1f} ± " in table
    assert (out / "plot.png").stat().st_size > 5000

    # A second call measures nothing anew and makes the same table.
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    assert len(before) == 12
    assert sweep.sweep(config).read_text() == table
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")} == before


@pytest.mark.exhaustive
def test_runs_with_other_settings_are_not_taken(small, tmp_path, capsys):
    config = SweepConfig(("clip-ln",), set=small, seeds=(0,), out=tmp_path / "sweep")
    sweep.sweep(config)
    other = SweepConfig(("clip-ln",), set=(*small, "lr=0.1"), seeds=(0,), out=tmp_path / "sweep")
    sweep.sweep(other)
    assert "holds a run with other settings: lr: 0.001 -> 0.1" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_one_failed_row_leaves_the_others(small, tmp_path):
    rows = ("ablations/depth-9", "clip-ln", "ablations/full")  # deeper than the tiny backbone
    table = sweep.sweep(SweepConfig(rows, set=small, seeds=(0,), out=tmp_path / "sweep")).read_text()
    assert "Failed: " in table and "depth-9/seed-0: prompts.depth must be between 0 and 4" in table
    report = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["full", "clip-ln"]  # the others are compared with full


def test_mean_and_spread():
    rows = [{"name": "a", "label": "A", "metrics": {"mAP@all": [0.10, 0.14, 0.12]}}]
    report = {"rows": rows, "seeds": [0, 1, 2], "queries": 1564, "gallery": 20, "protocol": "zs"}
    text = sweep.markdown(report)
    assert "| A | 12.0 ± 2.0 |" in text and "1,564 sketches in 20 photos" in text and "3 seeds" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rows", "nowhere"], "no configuration nowhere"),
        (["--rows", "clip-ln", "--set", "steps"], "--set takes KEY=VALUE, got 'steps'"),
        (["--rows", "clip-ln", "--set", "loss.speed=3"], "unknown key 'loss.speed'"),
        (["--rows", "clip-ln", "clip-ln"], "two configurations are called clip-ln"),
        (["--rows", "clip-ln", "--jobs", "0"], "at least one seed and one job"),
    ],
    ids=str,
)
def test_bad_sweeps(refused, tmp_path, args, message):
    assert message in refused("sweep", "--out", tmp_path / "sweep", *args)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.exhaustive
def test_failed_runs_are_told(small, tmp_path, capsys):
    config = SweepConfig(("clip-ln",), set=(*small, "batch_size=400"), seeds=(0,), out=tmp_path / "sweep")
    with pytest.raises(
        UserError, match="every run failed; .*clip-ln/seed-0: batch_size 400 is larger than the 15 sketches"
    ):
        sweep.sweep(config)


def test_settings():
    assert sweep._settings(("a.b=1e-3", "a.c=[1, 2]", "d=x y", "a.b=2")) == {"a": {"b": 2, "c": [1, 2]}, "d": "x y"}
