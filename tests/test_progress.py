"""Bars on a terminal, lines elsewhere, and stdout for what was asked for."""

import os
import pty
import re
import subprocess
import sys

import pytest

from splip import progress

WORK = """
import time
from splip import progress
progress.LINE_SECONDS = 0.05
print("an answer")
for number in progress.track(range(6), "Reading"):
    time.sleep(0.03)
    if number == 3:
        print("between")
print("the end")
"""


def run(terminal, **environment):
    """Stdout and stderr, which is a terminal or a file."""
    command, env = [sys.executable, "-c", WORK], {**os.environ, "TERM": "xterm", **environment}
    if not terminal:
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
        return done.stdout, done.stderr
    master, slave = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, text=True, env=env) as process:
        os.close(slave)
        out, shown = process.stdout.read(), b""
        try:
            while part := os.read(master, 4096):
                shown += part
        except OSError:  # the other end is closed
            pass
    os.close(master)
    return out, shown.decode()


def test_a_file_gets_plain_lines_and_stdout_the_answer():
    out, err = run(terminal=False)
    assert out == "an answer\nbetween\nthe end\n"
    lines = err.splitlines()
    assert 1 <= len(lines) <= 4
    assert all(re.fullmatch(r"Reading: [1-5] of 6, \d+/s, 0 minutes left", line) for line in lines), err


def test_a_terminal_gets_a_bar_and_stdout_the_answer():
    out, err = run(terminal=True)
    assert out == "an answer\nbetween\nthe end\n"
    assert "Reading" in err and "\x1b[" in err and "minutes left" not in err


def test_no_color_is_kept():
    colours = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
    assert colours.search(run(terminal=True)[1])
    assert not colours.search(run(terminal=True, NO_COLOR="1")[1])


@pytest.mark.parametrize(("lines", "total", "said"), [
    (True, 100, "Indexing: 40 of 100 pictures, "), (True, None, "Indexing: 40 pictures, "), (False, 100, ""),
])  # fmt: skip
def test_lines_say_how_far_it_is(capsys, monkeypatch, lines, total, said):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.bars(lines=lines, unit="pictures") as bar:
        task = bar.add_task("Indexing", total=total)
        bar.update(task, completed=0)
        bar.update(task, completed=40)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(said) and len(err.splitlines()) == bool(said)
    assert ("minutes left" in err) == bool(said and total)
