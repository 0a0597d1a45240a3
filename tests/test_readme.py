"""Numbers and commands in the README."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from splip.cli import VERBS, parse

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text() if (ROOT / "README.md").is_file() else ""


def test_tables_come_from_the_committed_results():
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks/report.py")
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    assert report.updated(README) == README, "run python benchmarks/report.py --update"
    assert README.count("<!-- table: ") == len(report.TABLES)


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
