"""The page of the demo, and --open. (The demo as a whole takes minutes: CI runs it as ``make demo``.)"""

import threading
from pathlib import Path

import pytest
from browsing import browser, find_axe, needs_chromium, until, violations
from PIL import Image

from splip.cli import demo
from splip.cli.config import DemoConfig
from splip.errors import UserError
from splip.serve import process

__all__ = ["browser"]  # a fixture
MATCHES = ["house/a b.png", *(f"big_cat/{i}.png" for i in range(9))]


@pytest.fixture
def folder(tmp_path):
    report = {
        "steps": 100,
        "training_seconds": 61.0,
        "classes": ["house", "big_cat"],
        "queries": 5,
        "gallery": 564,
        "query_mean": {"chance": {"mAP@all": 0.062, "P@10": 0.05}, "SpLIP": {"mAP@all": 0.302, "P@10": 0.42}},
        "drawings": [{"drawing": "house.png", "hits_in_10": 1, "matches": MATCHES}],
    }
    for path in ("drawings/house.png", "grid.png", *(f"sample/photo/{match}" for match in MATCHES)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), "white").save(tmp_path / path)
    (tmp_path / "index.html").write_text(demo._page(report, Path("my demo")), encoding="utf-8")
    return tmp_path


def test_the_page_says_what_it_is(folder):
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert (
        "are emoji" in text
        and "House: 1 of 10" in text
        and "--gallery 'my demo/gallery'" in text.replace("&#x27;", "'")
    )
    assert text.count("<li class=hit>") == 1 and 'alt="big cat"' in text


@needs_chromium
def test_the_page_on_a_phone(browser, folder, tmp_path_factory):
    page = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark").new_page()
    page.goto((folder / "index.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("[...document.images].every(i => { i.loading = 'eager'; return true; })")
    until(page, "[...document.images].every(i => i.complete && i.naturalWidth)")
    axe = find_axe(tmp_path_factory.mktemp("axe"))
    if axe is None:
        pytest.skip("needs axe-core: npm, and a registry that it reaches")
    assert violations(page, axe) == []


def test_open_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "splip.serve.app", None)
    with pytest.raises(UserError, match="--open needs"):
        demo.demo(DemoConfig(tmp_path / "demo", open=True))
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://127.0.0.1:80"), ("::1", "http://[::1]:80")],
)
def test_the_browser_is_sent_to_this_machine(monkeypatch, host, address):
    opened, done = [], threading.Event()
    monkeypatch.setattr(process.webbrowser, "open", lambda url: (opened.append(url), done.set()))
    process.open_browser(host, 80)
    assert done.wait(10) and opened == [address]
