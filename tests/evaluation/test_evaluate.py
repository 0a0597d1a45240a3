"""``splip eval``: protocols, files and refusals, on a model that has learned nothing."""

import csv
import dataclasses
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from drawing import pair
from PIL import Image

import splip
from splip.data.trees import load_tree
from splip.disk import file_hash
from splip.errors import UserError
from splip.evaluation import evaluate, metrics, test_set
from splip.evaluation.config import EvalConfig
from splip.models import build, load_model

SEEN = ["ball", "dash", "red ball", "red box", "slash"]


def save(settings, path):
    model = build(settings, SEEN)
    model.data = {"seen": SEEN, "validation": ["pole"], "unseen": ["box", "cone"], "pictures": ""}
    torch.save(model.checkpoint(), path)
    return path


@pytest.fixture
def checkpoint(settings, tmp_path):
    return save(settings, tmp_path / "best.pt")


@pytest.fixture
def run(checkpoint):
    """``run(protocol="gzs", ...)``: the report."""
    return lambda **options: evaluate.evaluate(EvalConfig(checkpoint, device="cpu", **options))


def lines(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_report_of_a_plain_tree(run, checkpoint, tree):
    report = run()
    assert list(report["query_mean"]) == ["SpLIP", "SpLIP, prompts removed", "SpLIP, prompts swapped"]
    assert list(report["query_mean"]["SpLIP"]) == ["mAP@all", "P@10"]  # no sketch has a photo of its own
    assert report["protocol"] == "zs" and report["classes"] == ["box", "cone"]
    assert report["queries"] == 6 and report["gallery"] == 4 and report["leaked"] == []
    assert report["dataset"] == "tree" and report["method"] == "splip" and report["splip"] == splip.__version__
    assert report["checkpoint"]["sha256"] == file_hash(checkpoint)
    assert report["columns"] == {"mAP@all": "mean of S_N / R", "P@10": "mean of h / 10"}
    assert json.loads(json.dumps(report)) == report
    (one,) = report["results"]
    assert one["query_mean"] == report["query_mean"] and set(one["per_class"]) == {"box", "cone"}


def test_what_prompts_are_worth(run, checkpoint, settings, cli):
    """The rows without the prompts and with the other modality's are what the model gives so."""
    model = load_model(checkpoint)
    with torch.no_grad():
        model.b_v.project.weight *= 30  # prompts that matter
    torch.save(model.checkpoint(), checkpoint)
    report = run()
    test = test_set.TestSet(load_tree(settings.data.root, settings.data), ["box", "cone"], settings.data, 64)
    sketches, photos = (p.get(range(len(p))) for p in (test.sketch_pictures, test.photo_pictures))
    plain = load_model(checkpoint)
    kinds = (("SpLIP", None, (0, 1)), ("SpLIP, prompts removed", "removed", (None, None)),
             ("SpLIP, prompts swapped", "swapped", (1, 0)))  # fmt: skip
    seen = []
    for row, change, of in kinds:
        found = test.embed_model(plain, torch.device("cpu"), change=change)
        torch.testing.assert_close(found.sketches, plain.encode_image(sketches, 0, of[0]))
        torch.testing.assert_close(found.photos, plain.encode_image(photos, 1, of[1]))
        assert report["query_mean"][row] == pytest.approx(test.measure(found.sketches, found.photos).query_mean), row
        assert not any(torch.allclose(found.sketches, other, atol=1e-3) for other in seen), row
        seen.append(found.sketches)
    shares = report["slot_attention"]
    assert len(shares["sketch"]) == len(shares["photo"]) == 4 and 0 < shares["mean"] < 1
    assert shares["uniform"] == 6 / (1 + 6 + 16)
    assert "attention on the prompts" in cli("eval", "--checkpoint", checkpoint)[1]
    without = run(prompts=False)
    assert list(without["query_mean"]) == ["SpLIP"] and "slot_attention" not in without


def test_methods_without_visual_prompts_have_one_row(settings, tmp_path):
    file = save(dataclasses.replace(settings, method="clip-ln"), tmp_path / "ln.pt")
    report = evaluate.evaluate(EvalConfig(file, device="cpu"))
    assert list(report["query_mean"]) == ["clip-ln"] and "slot_attention" not in report


def test_columns_of_instances(run, tree):
    pair(tree)
    assert list(run()["query_mean"]["SpLIP"]) == ["mAP@all", "P@10", "Acc@1", "Acc@5", "Acc@1 in class"]


def test_columns_of_instances_stay_if_a_photo_is_missing(run, tree):
    """Its sketches count as not found, the others as ever."""
    pair(tree)
    whole = run()["query_mean"]["SpLIP"]
    (tree / "photo" / "box" / "0.jpg").write_bytes(b"")
    broken = run()["query_mean"]["SpLIP"]
    assert list(broken) == list(whole) == ["mAP@all", "P@10", "Acc@1", "Acc@5", "Acc@1 in class"]
    assert broken["Acc@5"] == pytest.approx(4 / 6) and whole["Acc@5"] == 1.0  # two of six sketches show that photo


def test_columns_that_are_asked_for(run, cli, checkpoint):
    assert list(run(k=(1, 3))["query_mean"]["SpLIP"]) == ["mAP@all", "mAP@1", "P@1", "mAP@3", "P@3"]
    code, out, err = cli("eval", "--checkpoint", checkpoint, "--metrics", "all", "-k", "3")
    assert code == 0, err
    for name in ("mAP@all VOC", "mAP@3 /h", "mAP@3 /k", "mAP@3 VOC", "P@3 /min(k,R)"):
        assert name in out
    with pytest.raises(UserError, match="--k must be at least 1, got 0"):
        run(k=(5, 0))


def test_generalised(run, tree):
    report = run(protocol="gzs", gallery=("all", "per-class-20"))
    assert [r["protocol"] for r in report["results"]] == ["gzs:all", "gzs:per-class-20"]
    assert [r["gallery"] for r in report["results"]] == [16, 10]
    # More photos that are wrong cannot help.
    whole, zs = report["results"][0]["query_mean"]["SpLIP"]["mAP@all"], run()["query_mean"]["SpLIP"]["mAP@all"]
    assert whole <= zs


def test_fine_grained(run, tree):
    pair(tree)
    per_class, everything = run(protocol="fg")["results"]
    assert list(per_class["query_mean"]["SpLIP"]) == ["Acc@1 in class", "Acc@5 in class", "Acc@10 in class"]
    assert list(everything["query_mean"]["SpLIP"]) == ["Acc@1", "Acc@5", "Acc@10"]
    assert per_class["query_mean"]["SpLIP"]["Acc@5 in class"] == 1.0  # two photos a class
    assert per_class["query_mean"]["SpLIP"]["Acc@1 in class"] >= everything["query_mean"]["SpLIP"]["Acc@1"]


def test_fine_grained_leaves_out_broken_pairs(run, tree, capsys):
    pair(tree)
    (tree / "photo" / "box" / "0.jpg").write_bytes(b"")
    report = run(protocol="fg", gallery=("all",))
    assert report["queries"] == 4 and report["gallery"] == 3 and report["results"][0]["unpaired"] == 2
    assert report["skipped"] == [str(tree / "photo" / "box" / "0.jpg")]
    out = capsys.readouterr().out
    assert "left out 2 sketches whose own photo cannot be read" in out and "left out 1 unreadable pictures" in out
    run(protocol="zs")  # which does not ask for it


def test_fine_grained_refuses_a_tree_without_pairs(refused, checkpoint):
    message = refused("eval", "--checkpoint", checkpoint, "--protocol", "fg")
    assert "6 of 6 sketches have none, e.g." in message


def test_folder_of_results(run, tree, tmp_path):
    out = tmp_path / "out"
    report = run(out=out, baselines=True)
    assert json.loads((out / "results.json").read_text()) == report
    gallery = (out / "gallery.txt").read_text()
    assert gallery.splitlines() == [f"photo/{name}/{i}.jpg" for name in ("box", "cone") for i in (0, 1)]
    assert hashlib.sha256(gallery.encode()).hexdigest() == report["results"][0]["gallery_sha256"]
    table = lines(out / "per_class.csv")
    assert [row["class"] for row in table if row["method"] == "SpLIP"] == ["box", "cone"]
    assert {row["method"] for row in table} == set(report["query_mean"]) and table[0]["sketches"] == "3"
    for row in table[-2:]:
        assert float(row["mAP@all"]) == pytest.approx(
            report["results"][0]["per_class"][row["class"]]["mAP@all"], abs=1e-6
        )
    for name in ("confusion", "best", "median", "worst"):
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 300
    assert report["query_mean"]["raw pixels"]["mAP@all"] > report["query_mean"]["chance"]["mAP@all"]


def test_several_galleries_have_a_folder_each(run, tmp_path):
    run(out=tmp_path / "out", protocol="gzs", gallery=("sempcyc", "all"))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"results.json", "gzs-sempcyc", "gzs-all"}
    assert len((tmp_path / "out" / "gzs-all" / "gallery.txt").read_text().splitlines()) == 16
    assert (tmp_path / "out" / "gzs-all" / "confusion.png").is_file()


def test_another_data_set_with_leaked_classes(run, tree, tmp_path, capsys):
    """Measured with and without the classes that the checkpoint knows from its own data."""
    other = tmp_path / "other"
    shutil.copytree(tree, other)
    (other / "dataset.json").write_text('{"unseen": ["cone", "slash", "red-box"], "validation": ["ball"]}')
    report = run(dataset="tree", root=other, out=tmp_path / "out")
    assert report["leaked"] == ["red-box", "slash"]
    assert [(r["protocol"], r["classes"]) for r in report["results"]] == [
        ("zs", ["cone", "red-box", "slash"]),
        ("zs:without-leaked", ["cone"]),
    ]
    assert [(r["queries"], r["gallery"]) for r in report["results"]] == [(9, 6), (3, 2)]
    assert "knows 2 of the 3 classes from its own data set: red-box, slash" in capsys.readouterr().out
    assert (tmp_path / "out" / "zs-without-leaked" / "gallery.txt").is_file()


def test_leaks_of_the_same_data_set_are_refused(settings, tmp_path):
    data = dataclasses.replace(settings.data, unseen=("box", "slash"), validation=("pole",))
    path = save(dataclasses.replace(settings, data=data), tmp_path / "best.pt")
    with pytest.raises(UserError, match="was trained on classes to be measured: slash"):
        evaluate.evaluate(EvalConfig(path, device="cpu"))


def test_nothing_but_leaked_classes(run, tree, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tree, other)
    (other / "dataset.json").write_text('{"unseen": ["slash", "red-box"], "validation": ["ball"]}')
    with pytest.raises(UserError, match="was trained on classes to be measured: red box, slash"):
        run(dataset="tree", root=other)


def test_validation_classes(run):
    assert run(classes="validation")["classes"] == ["pole"]


def test_another_kind_of_data_set_needs_its_folder(refused, checkpoint):
    assert "--dataset tuberlin: --root must name its folder" in refused(
        "eval", "--checkpoint", checkpoint, "--dataset", "tuberlin"
    )


def test_gallery_of_another_protocol(refused, checkpoint):
    assert "not a gallery of the protocol zs" in refused("eval", "--checkpoint", checkpoint, "--gallery", "all")


def test_results_folder_that_is_a_file(refused, checkpoint, tmp_path):
    (tmp_path / "file").touch()
    args = ("eval", "--checkpoint", checkpoint, "--out", tmp_path / "file")
    assert "exists and is not a folder" in refused(*args)


def test_missing_matplotlib_is_said_first(tmp_path):
    """Before even the checkpoint is looked for."""
    code = (
        "import sys; sys.modules['matplotlib'] = None; from splip.cli.main import main; "
        f"sys.exit(main(['eval', '--checkpoint', 'none.pt', '--out', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert 'pip install "splip[plot]"' in done.stderr and not (tmp_path / "out").exists()


# ---- parts ----


def test_test_set_measures_as_the_report_does(run, settings, checkpoint, tree):
    """What training asks for is what `splip eval` prints."""
    model = load_model(checkpoint)
    loaded = load_tree(tree, settings.data)
    test = test_set.TestSet(loaded, loaded.unseen, settings.data, model.backbone.image_size)
    result = test.measure_model(model, torch.device("cpu"))
    assert result.query_mean == run()["query_mean"]["SpLIP"]


@pytest.fixture
def view(settings, tree):
    from splip.evaluation import protocols

    loaded = load_tree(tree, settings.data)
    (protocol,) = protocols.build("gzs", ("all",), loaded, loaded.unseen)
    test = test_set.TestSet(loaded, loaded.unseen, settings.data, 64, protocol.gallery)
    return test_set.View(test, protocol, torch.device("cpu"))


def test_best_median_worst(view):
    ap = np.array([0.2, 0.9, 0.9, 0.0, 0.5, 0.4])
    result = metrics.Result.of({"mAP@all": ap}, np.asarray(view.sketches.labels), 16, ap, np.zeros((6, 1), int))
    chosen = view.by_precision(result, seed=0, count=2)
    assert set(chosen["best"]) == {1, 2} and chosen["median"] == [4, 5] and chosen["worst"] == [3, 0]
    assert sorted(view.by_precision(result, seed=0)["best"]) == [0, 1, 2, 3, 4, 5]  # fewer than ten


def test_confusion(view):
    """Two photos of each sketch: its own class, and one of a seen class."""
    labels = np.asarray(view.photos.labels)
    seen = int(np.flatnonzero(labels == view.test.tree.classes.index("ball"))[0])
    own = [int(np.flatnonzero(labels == label)[0]) for label in view.sketches.labels]
    top = np.array([[i, seen] for i in own])
    ap = np.zeros(6)
    result = metrics.Result.of({"mAP@all": ap}, np.asarray(view.sketches.labels), 16, ap, top)
    share, rows, columns = view.confusion(result)
    assert rows == ["box", "cone"] and columns == ["box", "cone", "(seen classes)"]
    assert share.tolist() == [[0.5, 0, 0.5], [0, 0.5, 0.5]]


def test_pictures_of_many_classes(tmp_path):
    """Names are cut, not drawn over each other, and the picture grows with the classes."""
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("no matplotlib")
    from splip.evaluation import plots

    sizes = []
    for n in (1, 30, 60):
        names = [f"a class whose name is rather long {i}" for i in range(n)]
        plots.confusion(tmp_path / "c.png", np.eye(n), names, names, "title")
        with Image.open(tmp_path / "c.png") as image:
            sizes.append(image.size)
    assert sizes[0] < sizes[1] and max(sizes[2]) < 2500
    with pytest.raises(UserError, match="cannot write picture"):
        plots.confusion(tmp_path / "c.png" / "d.png", np.eye(1), ["a"], ["a"], "title")


def test_shorter_vectors_are_measured_beside_whole_ones(settings, tmp_path, refused, monkeypatch):
    settings.loss.matryoshka = (16, 64)
    nested = save(settings, tmp_path / "nested.pt")
    measured, measure = [], test_set.View.measure

    def watch(view, features, columns):
        measured.append(features)
        return measure(view, features, columns)

    monkeypatch.setattr(test_set.View, "measure", watch)
    report = evaluate.evaluate(EvalConfig(nested, device="cpu", dimensions=(16, 64, 256), prompts=False))
    assert list(report["query_mean"]) == ["SpLIP", "SpLIP, 16", "SpLIP, 64"] and report["dimensions"] == [16, 64, 256]
    whole, *cut = measured
    for features, size in zip(cut, (16, 64), strict=True):
        for name in ("sketches", "photos"):
            head = getattr(whole, name)[:, :size]
            torch.testing.assert_close(getattr(features, name), head / head.norm(dim=1, keepdim=True))
    message = refused("eval", "--checkpoint", nested, "--dimensions", "16", "32")
    assert "--dimensions 32: " in message and "was trained for 16, 64, 256 (see --loss.matryoshka)" in message


def test_presets(run, capsys, checkpoint, refused):
    report = run(metrics="sake", k=(2, 3), prompts=False)
    assert list(report["query_mean"]["SpLIP"]) == ["mAP@all VOC", "mAP@3 VOC", "P@2", "P@3"]
    assert report["metrics"] == "sake"
    assert "columns of SAKE (Liu et al., ICCV 2019); its means are over classes" in capsys.readouterr().out
    message = refused("eval", "--checkpoint", checkpoint, "--protocol", "fg", "--metrics", "zse")
    assert "--metrics zse is about classes; the protocol fg asks for the very photo" in message


def test_values_of_every_query(run, tmp_path, tree):
    report = run(prompts=False, per_query=tmp_path / "queries.csv", protocol="gzs", gallery=("sempcyc", "all"))
    rows = lines(tmp_path / "queries.csv")
    assert list(rows[0])[:4] == ["protocol", "method", "query", "class"] and len(rows) == 12
    for found in report["results"]:
        mine = [row for row in rows if row["protocol"] == found["protocol"]]
        assert {row["query"] for row in mine} == {f"sketch/{c}/{i}.png" for c in ("box", "cone") for i in range(3)}
        assert all(row["class"] == row["query"].split("/")[1] and row["method"] == "SpLIP" for row in mine)
        for name, value in found["query_mean"]["SpLIP"].items():
            assert np.mean([float(row[name]) for row in mine]) == pytest.approx(value)


def test_a_gallery_that_holds_photos_several_times(run, tree, tmp_path):
    report = run(gallery=("paired-photo",), prompts=False, out=tmp_path / "out")
    assert (report["protocol"], report["queries"], report["gallery"]) == ("zs:paired-photo", 6, 6)
    listed = (tmp_path / "out" / "gallery.txt").read_text().splitlines()
    assert len(listed) == 6 and len(set(listed)) <= 4
    (tree / "photo" / "box" / "0.jpg").write_bytes(b"broken")  # each time it stands there
    fewer = run(gallery=("paired-photo",), prompts=False)
    assert fewer["gallery"] == 6 - listed.count("photo/box/0.jpg")


def test_seen_sketches_are_queries(run, tmp_path):
    report = run(protocol="gzs", gallery=("sempcyc-queries",), prompts=False, out=tmp_path / "out")
    (found,) = report["results"]
    assert found["queries"] == 7 and len(found["classes"]) == 3 and set(found["per_class"]) == set(found["classes"])
    assert (tmp_path / "out" / "confusion.png").stat().st_size > 1000


def test_duplicates_are_of_benchmarks(refused, checkpoint):
    for more in ((), ("--protocol", "fg")):
        message = refused("eval", "--checkpoint", checkpoint, "--duplicates", *more)
        assert "--duplicates is for the protocol zs on a benchmark, which holds photos twice" in message
