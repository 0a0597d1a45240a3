"""The page in a browser: how soon photos follow the pen, and whether somebody who draws finds a photo in half a minute.

    splip data sample --out sample
    python tools/build_strokes.py --out strokes
    OMP_WAIT_POLICY=passive python benchmarks/bench_page.py --sample sample --strokes strokes --save

``latency``: a gallery of all photos of the sample (``--model``). Chromium draws the strokes of drawings, one after the
other, one and a half widths of the paper a second, so that searches go out while a line is drawn, too; from pen-up (the
event in the page) to the photos of the whole drawing in the document, to the frame after that, and to the frame in which
every photo in sight is loaded. The first drawings, whose thumbnails are made for the first time, count too.

``trial``: a gallery of 400 photos (``--trial-model``): those of the emoji that are drawn, and others by chance up to 400.
A robot draws the strokes of a clean sketch of the sample, one a second, in the order of its document, and looks at the
first two screens of photos (1280 by 800, without a filter or a word) after each stroke. The sketches are of classes that
the models were not trained on (unseen and validation). Found is *the photo*: any other designer's picture of the same
emoji, of which there are three; or *the class*: a photo of the sketch's class. Time counts from the first pen-down, at
most 30 s; a robot that found the photo goes on to the next drawing. ``by_chance``: the share of searches that would find
it with one look, if the photos on the two screens were drawn by lot; ``by_chance_in_all_looks``: with as many looks as
the robot took, each drawn anew.
"""

import argparse
import csv
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_serve import WATCH, served, spread
from harness import RESULTS, machine
from playwright.sync_api import Browser, Page, sync_playwright

from splip.images.paths import strokes as svg_strokes

LIMIT = 30.0  # seconds that somebody looks for a photo
PACE = 1.0  # seconds a stroke
SPEED = 1.5  # widths of the paper that a pen draws in a second
PHOTOS = 400
SCREENS = 2
# As WATCH, but until what is in sight is there to see.
LOADED = """() => {
  const mine = performance.now();
  const inSight = () => [...document.querySelectorAll('#grid img')].filter((i) => i.getBoundingClientRect().top < innerHeight);
  return Promise.all(inSight().map((image) => image.decode().catch(() => null)))
    .then(() => new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(performance.now() - mine)))));
}"""
IN_SIGHT = """(screens) => [...document.querySelectorAll('#grid li[data-id]')]
  .filter((tile) => tile.getBoundingClientRect().top + scrollY + tile.querySelector('.photo').offsetHeight <= screens * innerHeight)
  .map((tile) => tile.querySelector('.name').textContent)"""


def lines_of(path: Path) -> list[np.ndarray]:
    """The strokes of an SVG, float64 ``[points, 2]`` each, in the middle four fifths of the unit square."""
    lines = [line for line in svg_strokes(path.read_bytes()) if len(line)]
    points = np.concatenate(lines)
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    scale = 0.8 / max(float(extent.max()), 1e-9)
    return [(line - low - extent / 2) * scale + 0.5 for line in lines]


def opened(browser: Browser, address: str) -> Page:
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.goto(address)
    page.wait_for_timeout(1000)
    return page


def stroke(page: Page, line: np.ndarray, seconds: float) -> None:
    """Draw a line with the mouse; ``seconds``: how long the hand takes for it."""
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    steps = line[np.linspace(0, len(line) - 1, min(len(line), 24)).astype(int)]
    at = [(box["x"] + box["width"] * float(x), box["y"] + box["height"] * float(y)) for x, y in steps]
    began = time.perf_counter()
    page.mouse.move(*at[0])
    page.mouse.down()
    for number, (x, y) in enumerate(at[1:], 1):
        page.mouse.move(x, y)
        time.sleep(max(0.0, began + seconds * number / len(at) - time.perf_counter()))
    page.mouse.up()


def answered(page: Page) -> None:
    while page.locator("#results").get_attribute("aria-busy") != "false":
        page.wait_for_timeout(5)


def latency(browser: Browser, gallery: Path, drawings: list[Path]) -> dict[str, Any]:
    """Pen-up to photos, over all strokes of the drawings."""
    pixels, drawn = [], 0
    with served(gallery, "auto", 32, 3.0) as address:
        page = opened(browser, address)
        page.evaluate(WATCH)
        for drawing in drawings:
            page.keyboard.press("Delete")
            answered(page)
            page.wait_for_timeout(100)
            for line in lines_of(drawing)[:12]:
                count = len(page.evaluate("window.penUps"))
                length = float(np.hypot(*np.diff(line, axis=0).T).sum())
                stroke(page, line, min(1.0, max(0.12, length / SPEED)))
                drawn += 1
                end = time.monotonic() + 5
                while len(page.evaluate("window.penUps")) == count and time.monotonic() < end:
                    page.wait_for_timeout(2)
                loading = page.evaluate(LOADED)
                measured = page.evaluate("window.penUps")
                if len(measured) > count:
                    pixels.append(measured[-1][1] + loading)
                page.wait_for_timeout(150)
        measured = page.evaluate("window.penUps")
        page.context.close()
    if len(measured) < drawn:
        raise SystemExit(f"the page answered {len(measured)} of {drawn} strokes")
    return {
        "drawings": len(drawings),
        "strokes": len(measured),
        "document_ms": spread([a for a, _ in measured]),
        "frame_ms": spread([b for _, b in measured]),
        "pixels_ms": spread(pixels),
    }


def trial(browser: Browser, gallery: Path, drawings: list[Path], facts: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Look for a photo of each drawing; ``facts``: class and emoji of each photo's file name."""
    rows: list[dict[str, Any]] = []
    in_sight: list[int] = []
    with served(gallery, "auto", 32, 3.0) as address:
        for drawing in drawings:
            page = opened(browser, address)
            wanted = {"class": drawing.parent.name, "photo": drawing.stem.rsplit("-", 1)[0]}
            row: dict[str, Any] = {"drawing": f"{drawing.parent.name}/{drawing.name}", "class": None, "photo": None}
            began = time.monotonic()
            for number, line in enumerate(lines_of(drawing), 1):
                stroke(page, line, 0.6 * PACE)
                answered(page)
                page.wait_for_timeout(30)
                seen = page.evaluate(IN_SIGHT, SCREENS)
                in_sight.append(len(seen))
                passed = time.monotonic() - began
                if passed > LIMIT:
                    break
                for place, kind in enumerate(("class", "photo")):
                    if row[kind] is None and any(facts[name][place] == wanted[kind] for name in seen):
                        row[kind] = {"strokes": number, "seconds": round(passed, 1)}
                if row["photo"] is not None:
                    break
                time.sleep(max(0.0, began + PACE * number - time.monotonic()))
            row["strokes"] = number
            rows.append(row)
            print(json.dumps(row), flush=True)
            page.context.close()
    sight = statistics.median(in_sight)
    out: dict[str, Any] = {"photos": PHOTOS, "limit_s": LIMIT, "pace_s": PACE, "screens": SCREENS, "in_sight": sight}
    for place, kind in enumerate(("class", "photo")):
        found = [row[kind] for row in rows if row[kind] is not None]
        right = [
            sum(fact[place] == (Path(row["drawing"]).parent.name, Path(row["drawing"]).stem.rsplit("-", 1)[0])[place]
                for fact in facts.values())
            for row in rows
        ]  # fmt: skip
        missed = [math.comb(PHOTOS - n, round(sight)) / math.comb(PHOTOS, round(sight)) for n in right]  # with one look
        looks = [row["strokes"] if row[kind] is None else row[kind]["strokes"] for row in rows]
        out[kind] = {
            "found": len(found),
            "of": len(rows),
            "median_seconds": statistics.median(f["seconds"] for f in found) if found else None,
            "median_strokes": statistics.median(f["strokes"] for f in found) if found else None,
            "by_chance": statistics.mean(1 - share for share in missed),
            "by_chance_in_all_looks": statistics.mean(
                1 - share**count for share, count in zip(missed, looks, strict=True)
            ),
        }
    out["drawings"] = rows
    return out


def index(photos: list[Path], gallery: Path, model: str) -> Path:
    """A gallery of these photos."""
    names = gallery.parent / f"{gallery.name}.txt"
    names.write_text("".join(f"{photo}\n" for photo in photos))
    command = [sys.executable, "-m", "splip", "index", "add", f"@{names}", "--gallery", str(gallery), "--model", model]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return gallery


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, required=True, help="folder of splip data sample")
    parser.add_argument("--strokes", type=Path, required=True, help="folder of tools/build_strokes.py")
    parser.add_argument("--model", default="splip-tiny", help="of the latency (default: splip-tiny)")
    parser.add_argument("--trial-model", default="splip-tiny-3", help="of the trial (default: what index add takes)")
    parser.add_argument("--drawings", type=int, default=24, help="in the trial (default: 24)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="about the machine, for the report")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    parser.add_argument("--save", action="store_true", help="write results/page.json")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    photos = sorted(path.resolve() for path in (args.sample / "photo").glob("*/*"))
    with open(args.sample / "instances.csv", newline="", encoding="utf-8") as file:
        emoji = {Path(row["path"]).name: row["instance"] for row in csv.DictReader(file)}
    classes = json.loads((args.sample / "dataset.json").read_text(encoding="utf-8"))
    untrained = {*classes["unseen"], *classes["validation"]}
    drawings = sorted(
        path
        for path in args.strokes.glob("*/*.svg")
        if path.parent.name in untrained and path.stem.rsplit("-", 1)[0] in set(emoji.values())
    )
    chosen = rng.sample(drawings, args.drawings)
    drawn = {path.stem.rsplit("-", 1)[0] for path in chosen}
    few = [photo for photo in photos if emoji[photo.name] in drawn]
    few += rng.sample([photo for photo in photos if emoji[photo.name] not in drawn], PHOTOS - len(few))
    facts = {photo.name: (photo.parent.name, emoji[photo.name]) for photo in few}
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        report: dict[str, Any] = {
            "benchmark": "page",
            "machine": machine("cpu"),
            "note": args.note,
            "chromium": browser.version,
            "seed": args.seed,
        }
        whole = index(photos, Path(temporary) / "whole", args.model)
        report["latency"] = {"model": args.model, "photos": len(photos), **latency(browser, whole, chosen[:8])}
        print(json.dumps(report["latency"]), flush=True)
        part = index(few, Path(temporary) / "part", args.trial_model)
        report["trial"] = {"model": args.trial_model, **trial(browser, part, chosen, facts)}
        print(json.dumps({key: value for key, value in report["trial"].items() if key != "drawings"}), flush=True)
        browser.close()
    if args.save:
        path = RESULTS / "page.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
