"""``--json`` means the same for every verb: one JSON object on stdout and nothing else there, whatever people read on stderr."""

import dataclasses
import importlib.util
import io
import json

import numpy as np
import pytest
from checkpoints import save_model
from drawing import draw

from splip import report
from splip.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tree of shapes, a gallery of it, features of a method, and values of two."""
    root = tmp_path_factory.mktemp("json")
    for number, name in enumerate(("ball", "box", "slash")):
        for i in range(2):
            draw(root / "tree" / "sketch" / name / f"{i}.png", number, "black", i)
            draw(root / "tree" / "photo" / name / f"{i}.png", number, "blue", i + 2)
    model = save_model(root / "tiny.pt", 0)
    added = ["index", "add", str(root / "tree" / "photo"), "--gallery", str(root / "gallery"), "--model", str(model)]
    assert main.main(added) == 0
    rng = np.random.default_rng(0)
    for name, labels in (("sketches", ["a", "a", "b", "b"]), ("photos", ["a", "b", "a", "b", "b"])):
        np.save(root / f"{name}.npy", rng.standard_normal((len(labels), 8)).astype(np.float32))
        (root / f"{name}.txt").write_text("\n".join(labels) + "\n")
    features = [
        "--features",
        root / "sketches.npy",
        root / "photos.npy",
        "--labels",
        root / "sketches.txt",
        root / "photos.txt",
    ]
    for name in ("one", "two"):
        assert main.main([str(arg) for arg in ("eval", *features, "--per-query", root / f"{name}.csv")]) == 0
    return root, features


# Of each verb, what is asked for and what its object has at least.
def commands(root, features):
    gallery = ("--gallery", root / "gallery")
    yield "eval", (*features, "--json", "-"), {"protocol", "queries"}
    yield "compare", (root / "one.csv", root / "two.csv", "--samples", "100", "--json", "-"), {"difference", "a", "b"}
    yield "data check", ("--root", root / "tree", "--json"), {"classes", "unseen", "complete"}
    yield "models", ("--json",), {"models"}
    yield "info", ("--json",), {"splip", "cpu_kernels"}
    yield "index list", (*gallery, "--json"), {"items"}
    yield "index list", (*gallery, "--labels", "--json"), {"labels"}
    yield "index check", (*gallery, "--json"), {"damage", "missing", "items"}
    yield "search", (*gallery, "--sketch", root / "tree" / "sketch" / "box" / "0.png", "--json"), {"queries"}
    more = root / "more"
    yield (
        "index add",
        (root / "tree" / "sketch", "--gallery", more, "--model", root / "tiny.pt", "--json"),
        {"new", "skipped"},
    )
    yield "index remove", (root / "tree" / "sketch" / "box", "--gallery", more, "--dry-run", "--json"), {"would_remove"}
    yield "index remove", (root / "tree" / "sketch" / "box", "--gallery", more, "--json"), {"removed", "pictures"}
    yield "index compact", ("--gallery", more, "--json"), {"rows", "dropped"}
    yield "index export", ("--gallery", more, "--out", root / "exported", "--json"), {"out", "pictures"}
    if importlib.util.find_spec("milvus_lite"):
        yield "index push", ("--gallery", more, "--to", f"milvus:{root}/photos.db/photos", "--json"), {"new", "stopped"}


VERBS = sorted(
    verb for verb, entry in main.VERBS.items() if "json" in {f.name for f in dataclasses.fields(main._named(entry[0]))}
)


def test_it_is_one_object_and_nothing_else(place, cli):
    done = set()
    for verb, args, keys in commands(*place):
        code, out, err = cli(*verb.split(), *args)
        assert code == 0, (verb, err)
        found = json.loads(out)
        assert isinstance(found, dict) and keys <= set(found), (verb, sorted(found))
        assert out.endswith("}\n") and "\x1b" not in out, verb
        done.add(verb)
    assert done | {"index push"} == set(VERBS)


def test_what_people_read_goes_to_stderr_then(place, cli):
    root, features = place
    _, plain, _ = cli("eval", *features)
    code, out, err = cli("eval", *features, "--json", "-")
    assert code == 0 and "mAP" in plain and plain.splitlines()[:3] == err.splitlines()[:3]
    assert cli("eval", *features, "--json", root / "report.json")[0] == 0  # a file, as ever
    assert json.loads((root / "report.json").read_text()) == json.loads(out)


def test_the_code_is_that_of_the_verb_and_errors_leave_stdout_alone(place, cli, tmp_path):
    root, _ = place
    (tmp_path / "tree").mkdir()
    for name in ("sketch", "photo"):
        for kind in ("ball", "box"):
            draw(tmp_path / "tree" / name / kind / "0.png", 0, "black", 0)
    (tmp_path / "tree" / "photo" / "box" / "1.png").write_bytes(b"no picture")
    code, out, _ = cli("data", "check", "--root", tmp_path / "tree", "--decode", "--json")
    found = json.loads(out)
    assert code == 1 and not found["complete"] and found["unreadable"][0]["path"].endswith("box/1.png")
    code, out, err = cli("search", "--gallery", tmp_path / "none", "--text", "a", "--json")
    assert (code, out) == (2, "") and err.startswith("splip: error: ")
    code, out, err = cli("index", "list", "--gallery", tmp_path / "none", "--json")
    assert (code, out) == (2, "") and err.startswith("splip: error: ")


# ---- the writer ----


def written(value):
    file = io.StringIO()
    report.write(value, file)
    return file.getvalue()


def test_long_lists_are_written_as_they_come():
    def rows(count):
        for number in range(count):
            yield {"id": number, "path": "\udcff"}

    for count in (0, 1, 3):
        text = written(report.Report(total=count, items=rows(count), end=None))
        assert json.loads(text) == {"total": count, "items": list(rows(count)), "end": None}
        assert sum('"id"' in line for line in text.splitlines()) == count  # a line each
    assert written(report.Report()) == "{}\n"
    assert json.loads(written({"a": {"b": [1, 2]}, "c": []})) == {"a": {"b": [1, 2]}, "c": []}


def test_an_error_before_the_first_row_leaves_nothing():
    def rows():
        raise ValueError("damaged")
        yield

    file = io.StringIO()
    with pytest.raises(ValueError, match="damaged"):
        report.write(report.Report(total=1, items=rows()), file)
    assert file.getvalue() == ""
