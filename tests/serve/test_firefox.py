"""The page in a real Firefox: drawing, a reload, the viewer, words, and a small screen."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from serving import FakeGallery, running

ROOT = Path(__file__).resolve().parents[2]
MODULES = ROOT / "build" / "npm" / "node_modules"  # as .ci/run makes it
PROGRAM = ROOT / "tests" / "fixtures" / "firefox" / "drive.mjs"


@pytest.mark.exhaustive
def test_the_page_in_firefox(tmp_path):
    node, firefox = shutil.which("node"), shutil.which("firefox") or shutil.which("firefox-esr")
    if node is None or firefox is None or not (MODULES / "puppeteer-core").is_dir():
        pytest.skip("needs Firefox, node, and: npm install --prefix build/npm of tests/fixtures/npm/package.json")
    shutil.copy(PROGRAM, tmp_path)
    (tmp_path / "node_modules").symlink_to(MODULES)
    with running(FakeGallery(tmp_path / "gallery")) as client:
        command = [node, tmp_path / PROGRAM.name, firefox, client.address.rstrip("/") + "/", tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    saw = json.loads(done.stdout)
    if "unstarted" in saw:
        pytest.skip(f"Firefox does not start: {saw['unstarted']}")
    assert "failed" not in saw, saw["failed"]
    assert not saw["wrong"] and not saw["foreign"], "nothing wrong is said, nobody else is asked"
    assert (saw["drawn"], saw["reloaded"], saw["words"]) == ("box", "box", "ball")
    assert saw["viewer"] == "2 of 24" and saw["alike"] == 24
    assert saw["overAnExample"] == 1, "a line that begins on an example"
    assert saw["example"] > 1, "a press on it"
    assert saw["widest"] <= 390, "nothing sticks out"
