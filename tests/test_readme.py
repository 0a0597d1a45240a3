"""Numbers and commands in the README."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from splip.cli.main import VERBS, parse

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text() if (ROOT / "README.md").is_file() else ""


@pytest.fixture
def benchmark(monkeypatch):
    """Scripts of benchmarks/ as modules."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_tables_come_from_the_committed_results(benchmark):
    report = benchmark("report")
    assert report.updated(README) == README, "run python benchmarks/report.py --update"
    assert README.count("<!-- table: ") == len(report.TABLES)


def test_the_results_page_comes_from_the_committed_results(benchmark):
    page, text = benchmark("results_page"), (ROOT / "docs/results.md").read_text()
    assert page.page(benchmark("report").load("sample")) == text, "run python benchmarks/results_page.py"
    assert not re.findall(r"\{\w+\}", text)  # every place was filled
    for path in re.findall(r"!\[.*?\]\((.+?)\)", text):
        assert (ROOT / "docs" / path).is_file(), path


def test_every_row_of_the_results_is_a_configuration(benchmark, tmp_path):
    runs = benchmark("sample_results")
    for _, setting, rows, _ in runs.GROUPS.values():
        for row in rows:
            config = runs.settings(row, setting, 3, tmp_path, tmp_path / "weights", tmp_path)
            assert (config.seed, config.steps, config.layernorm_lr) == (3, 100, 0.01)
    for row, last in runs.TUNING.values():
        runs.settings(row, "category", 0, tmp_path, None, tmp_path, last)


COMMANDS = re.findall(r"^splip ((?:data |index )?\w+)(.*?)$", README, re.MULTILINE)


@pytest.mark.parametrize(("verb", "rest"), [c for c in COMMANDS if c[0] in VERBS], ids=lambda c: c)
def test_commands_parse(verb, rest):
    parse(verb, shlex.split(rest, comments=True))


def test_commands_are_found():
    assert {verb for verb, _ in COMMANDS} >= {
        "data sample",
        "train",
        "eval",
        "index add",
        "search",
        "serve",
        "export",
        "info",
    }


def test_pictures_exist():
    for path in re.findall(r"!\[.*?\]\((.+?)\)", README):
        assert (ROOT / path).is_file(), path
