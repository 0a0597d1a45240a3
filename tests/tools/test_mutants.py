"""The tool that asks whether tests see, on a package of three lines; and the list that it is for."""

import json

import mutants
import pytest


@pytest.fixture
def root(tmp_path):
    """A tiny checkout: a module, a test that sees one of its two halves."""
    root = tmp_path / "root"
    (root / "python").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "python" / "halves.py").write_text("def low():\n    return 1\n\n\ndef high():\n    return 2\n")
    (root / "tests" / "test_halves.py").write_text(
        "import halves\n\n\ndef test_low():\n    assert halves.low() == 1\n\n\ndef test_high():\n    halves.high()\n"
    )
    return root


def mutation(before, after, test="tests/test_halves.py"):
    return mutants.Mutation("one", "python/halves.py", before, after, [test])


@pytest.mark.exhaustive
def test_killed_survived_broken(root, tmp_path):
    copy = mutants.Copy(tmp_path / "copy", root)
    text = (root / "python" / "halves.py").read_text()
    cases = [
        (mutation("return 1", "return 3"), "killed", ""),
        (mutation("return 2", "return 3"), "survived", ""),  # nobody looks at the number
        (mutation("return 1", "return 3", "tests/test_halves.py::test_high"), "survived", ""),
        (mutation("return 1", "import os; os.abort()"), "killed", "crashes"),
        (mutation("return 1", "import time; time.sleep(60)"), "killed", "hangs"),
        (mutation("return 7", "return 3"), "broken", "'before' is 0 times in python/halves.py"),
        (mutation("return", "yield"), "broken", "'before' is 2 times"),
        (mutation("return 1", "return 1"), "broken", "'after' is 'before'"),
        (mutation("return 1", "return ("), "broken", "no Python"),
        (mutation("return 1", "return 3", "tests/test_halves.py::test_gone"), "broken", "pytest ended with 4"),
        (mutation("return 1", "return 3"), "killed", ""),  # the file was put back each time
    ]
    for one, result, why in cases:
        got = copy.try_out(one, 120 if "sleep" not in one.after else 4)
        assert got[0] == result and why in got[1], (one, got)
        assert (tmp_path / "copy" / "python" / "halves.py").read_text() == text
    assert (root / "python" / "halves.py").read_text() == text


def test_report(root, monkeypatch, tmp_path, capsys):
    entries = [
        {"name": name, "file": "python/halves.py", "before": before, "after": "return 3", "tests": ["tests"]}
        for name, before in (("low", "return 1"), ("high", "return 2"), ("gone", "return 9"))
    ]
    (tmp_path / "list.yaml").write_text(json.dumps(entries))
    found = mutants.read(tmp_path / "list.yaml")
    copy = mutants.Copy
    monkeypatch.setattr(mutants, "Copy", lambda folder: copy(folder, root))
    report = mutants.run(found, 2, 30, None, False)
    rows = {name: row["result"] for name, row in report["rows"].items()}
    assert rows == {"low": "killed", "high": "survived", "gone": "broken"}
    assert report["score"] == 0.5 and (report["killed"], report["survived"], report["broken"]) == (1, 1, 1)
    assert "survived high" in capsys.readouterr().out


def test_a_seed_chooses():
    every = mutants.read()
    names = [[m.name for m in mutants.choose(every, 6, seed)] for seed in ("1", "1", "2")]
    assert names[0] == names[1] != names[2] and len(set(names[0])) == 6
    assert len(mutants.choose(every, 10**6, "1")) == len(every)


def test_the_list_is_true():
    """Every text is where the list says, once, and every test file is there."""
    every = mutants.read()
    assert len(every) >= 100
    for one in every:
        one.apply((mutants.ROOT / one.file).read_text(encoding="utf-8"))
        for test in one.tests:
            path, _, name = test.partition("::")
            text = (mutants.ROOT / path).read_text(encoding="utf-8")
            assert f"def {name.split('[')[0]}(" in text if name else "def test_" in text, one.name


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"name": "a"}], "an entry needs"),
        ([{"name": "a", "file": "f", "before": "x", "after": "y", "tests": []}], "an entry needs"),
        ([{"name": "a", "file": "f", "before": "x", "after": "y", "tests": ["t"]}] * 2, "more than one a"),
    ],
)
def test_lists_that_are_refused(tmp_path, entries, message):
    (tmp_path / "list.yaml").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=message):
        mutants.read(tmp_path / "list.yaml")
