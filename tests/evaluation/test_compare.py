"""Values of every query, and whether a difference is more than chance."""

import csv
import json

import numpy as np
import pytest
import torch

from splip.errors import UserError
from splip.evaluation import compare, evaluate, metrics, queries
from splip.evaluation.config import CompareConfig, EvalConfig


def result(values, labels):
    values = {name: np.asarray(v, dtype=float) for name, v in values.items()}
    return metrics.Result.of(values, np.asarray(labels), 9, np.zeros(1), np.zeros((1, 1)))


@pytest.fixture
def files(tmp_path):
    """Two files of forty queries of four classes; the second is better by 0.1 in the class 0, and in no other."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 10)
    first = rng.uniform(0.2, 0.6, 40)
    second = first + 0.1 * (labels == 0)
    names, classes = [f"sketch/{i}.png" for i in range(40)], [f"class {c}" for c in labels]
    for name, values in (("a", first), ("b", second)):
        own = result({"mAP@all": values, "P@10": values / 2}, labels)
        other = result({"mAP@all": first * 0.5, "P@10": first}, labels)
        queries.write(
            tmp_path / f"{name}.csv", [queries.Measured("zs", names, classes, {"SpLIP": own, "chance": other})]
        )
    return tmp_path / "a.csv", tmp_path / "b.csv"


def test_values_come_back_as_they_were(files):
    found = queries.read(files[0])
    assert (found.method, found.protocol, found.column, len(found.queries)) == ("SpLIP", "zs", "mAP@all", 40)
    assert found.values.tolist() == np.random.default_rng(0).uniform(0.2, 0.6, 40).tolist()  # to the last bit
    assert queries.read(files[0], "P@10", "chance").values.tolist() == found.values.tolist()


def test_a_difference_and_its_intervals(files, tmp_path, cli):
    out = tmp_path / "compared.json"
    code, printed, err = cli("compare", *files, "--json", out, "--samples", "2000")
    assert code == 0, err
    assert "B - A = +2.50 over 40 queries of 4 classes (zs); 10 better, 0 worse" in printed
    report = json.loads(out.read_text())
    assert report["difference"] == pytest.approx(0.025) and report["b"]["mean"] > report["a"]["mean"]
    # By the normal approximation: queries 0.1 in one of four, classes the same with four draws.
    spread = 0.1 * np.sqrt(0.25 * 0.75)
    low, high = report["over_queries"]
    assert low == pytest.approx(0.025 - 1.96 * spread / np.sqrt(40), abs=0.004)
    assert high == pytest.approx(0.025 + 1.96 * spread / np.sqrt(40), abs=0.004)
    assert report["over_classes"] == [0.0, pytest.approx(0.075)]  # one class of four: no more than that one is known
    assert "95% over classes: +0.00 to +7.50, includes 0" in printed
    again = compare.compare(CompareConfig(*files, samples=2000))
    assert {k: v for k, v in again.items()} == report  # seeded


def test_resampling_against_a_loop():
    rng = np.random.default_rng(1)
    difference, labels = rng.normal(size=30), rng.permutation(np.arange(30) % 7)
    own = np.random.default_rng(5).integers(30, size=(50, 30))
    assert compare.over_queries(difference, 50, 5).tolist() == pytest.approx([difference[row].mean() for row in own])
    drawn = np.random.default_rng(5).integers(7, size=(50, 7))
    want = [np.concatenate([difference[labels == c] for c in row]).mean() for row in drawn]
    assert compare.over_classes(difference, labels, 50, 5).tolist() == pytest.approx(want)


def test_pairs_are_found_by_name(files):
    with open(files[1], newline="") as file:
        head, *rows = csv.reader(file)
    with open(files[1], "w", newline="") as file:
        csv.writer(file).writerows([head, *rows[::-1]])
    assert compare.compare(CompareConfig(*files, samples=100, methods=("SpLIP",)))["better"] == 10


def test_two_methods_of_one_file(files):
    report = compare.compare(CompareConfig(files[0], files[0], methods=("chance", "SpLIP"), samples=100))
    assert report["a"]["method"] == "chance" and report["worse"] == 0 and report["difference"] > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "not a file of `splip eval --per-query`"),
        (lambda rows: [*rows[:5], rows[5][:-1], *rows[6:]], "line 6: 5 fields, the first line has 6"),
        (lambda rows: [rows[0], *rows[2:]], "1 queries are in one of them only, e.g. sketch/0.png"),
        (lambda rows: [rows[0], rows[1], *rows[1:]], "a query stands there twice"),
        (lambda rows: [rows[0], [*rows[1][:4], "nan", "0"], *rows[2:]], "mAP@all of sketch/0.png is 'nan'"),
        (lambda rows: [rows[0], [*rows[1][:3], "other", *rows[1][4:]], *rows[2:]], "is of another class in each"),
        (lambda rows: [[*rows[0][:4], "MRR", "P@10"], *rows[1:]], "has mAP@all and .*MRR: name one with --column"),
        (lambda rows: [rows[0], *([("gzs"), *row[1:]] for row in rows[1:])], "the protocol zs and .* gzs"),
    ],
)
def test_files_that_cannot_be_compared(files, change, message):
    with open(files[1], newline="") as file:
        rows = list(csv.reader(file))
    with open(files[1], "w", newline="") as file:
        csv.writer(file).writerows(change(rows))
    with pytest.raises(UserError, match=message):
        compare.compare(CompareConfig(*files, samples=100))


def test_what_is_not_there(files, refused, tmp_path):
    assert "no column 'mAP'; it has mAP@all, P@10" in refused("compare", *files, "--column", "mAP")
    assert "no method 'other'; it has SpLIP, chance" in refused("compare", *files, "--methods", "other")
    assert "no protocol 'fg'; it has zs" in refused("compare", *files, "--protocol", "fg")
    assert "--samples must be at least 100, got 5" in refused("compare", *files, "--samples", "5")
    assert "cannot be read: No such file" in refused("compare", files[0], tmp_path / "none.csv")


# ---- features of others ----


@pytest.fixture
def given(tmp_path):
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 5, 30), np.concatenate([np.arange(5), rng.integers(0, 5, 45)])]
    features = [rng.normal(size=(len(own), 12)) + np.eye(12)[own] * 2 for own in labels]
    for name, rows, own in zip(("sketches", "photos"), features, labels, strict=True):
        np.save(tmp_path / f"{name}.npy", rows * 7)  # of any length
        (tmp_path / f"{name}.txt").write_text("".join(f"class {c}\n" for c in own))
        np.save(tmp_path / f"{name}-labels.npy", own)
    return tmp_path, features, labels


def test_features_are_scored_as_ours_are(given, cli):
    folder, features, labels = given
    units = [torch.nn.functional.normalize(torch.tensor(f, dtype=torch.float32), dim=1) for f in features]
    numbers = [torch.tensor(one) for one in labels]
    nothing = [torch.arange(30), torch.arange(50) + 30]
    want = metrics.measure(units[0], numbers[0], nothing[0], units[1], numbers[1], nothing[1])
    files = ("--features", folder / "sketches.npy", folder / "photos.npy")
    for ending in (".txt", "-labels.npy"):
        names = ("--labels", *(folder / f"{name}{ending}" for name in ("sketches", "photos")))
        out = ("--json", folder / "out.json", "--per-query", folder / "out.csv")
        code, printed, err = cli("eval", *files, *names, *out, "-k", "10")
        assert code == 0 and "30 sketches in 50 photos, 5 classes" in printed, err
        report = json.loads((folder / "out.json").read_text())
        assert report["query_mean"]["features"]["mAP@all"] == pytest.approx(want.query_mean["mAP@all"])
        assert report["query_mean"]["features"]["P@10"] == pytest.approx(want.query_mean["P@10"])
        found = queries.read(folder / "out.csv")
        assert found.values.tolist() == want.per_query["mAP@all"].tolist() and found.queries[3] == "3"
    assert compare.compare(CompareConfig(folder / "out.csv", folder / "out.csv", samples=100))["difference"] == 0
    code, printed, _ = cli("eval", *files, *names, "--metrics", "zse", "-k", "5")
    assert code == 0 and "P@min(5,R)" in printed and "columns of ZSE-SBIR" in printed


def test_the_very_thing_of_features(given):
    folder, features, labels = given
    for name, count in (("sketches", 30), ("photos", 50)):
        np.save(folder / f"{name}-things.npy", np.arange(count) % 40)
    pair = lambda what: tuple(folder / f"{name}{what}" for name in ("sketches", "photos"))  # noqa: E731
    report = evaluate.evaluate(
        EvalConfig(features=pair(".npy"), labels=pair(".txt"), instances=pair("-things.npy"), device="cpu")
    )
    scores = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in features]
    best = (scores[0] @ scores[1].T).argmax(axis=1)
    assert report["query_mean"]["features"]["Acc@1"] == pytest.approx(np.mean(best % 40 == np.arange(30)))


def test_features_that_do_not_fit(given, refused, tmp_path):
    folder, features, _ = given
    files = ("--features", folder / "sketches.npy", folder / "photos.npy")
    names = ("--labels", folder / "sketches.txt", folder / "photos.txt")
    assert "give --model, or --features and --labels" in refused("eval")
    assert "--labels: two files, of sketches and of photos, got 0" in refused("eval", *files)
    assert "--features: two files" in refused("eval", *names)
    assert "--baselines does not go with --features" in refused("eval", *files, *names, "--baselines")
    assert "30 labels for 50 rows of features" in refused("eval", *files, "--labels", names[1], names[1])
    for rows, message in (
        (np.ones((30, 5)), "sketches and photos have 5 and 12 components"),
        (np.ones(30), "features are numbers [rows, D], got float64 [30]"),
        (np.full((30, 12), np.nan), "row 0 is not finite (30 such rows)"),
        (np.zeros((30, 12)), "row 0 is zero (30 such rows)"),
        (np.array([["x"] * 12] * 30), "features are numbers"),
        (np.array([[None] * 12] * 30), "not a .npy file of numbers or texts"),
    ):
        np.save(tmp_path / "odd.npy", rows)
        assert message in refused("eval", "--features", tmp_path / "odd.npy", files[2], *names)
    (folder / "odd.txt").write_text("nothing like it\n" * 30)
    assert "is the label of no photo" in refused("eval", *files, "--labels", folder / "odd.txt", names[2])
    (tmp_path / "odd.npy").write_bytes(b"no array")
    assert "not a .npy file" in refused("eval", "--features", tmp_path / "odd.npy", files[2], *names)
    assert "No such file" in refused("eval", "--features", tmp_path / "none.npy", files[2], *names)
