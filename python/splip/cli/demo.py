"""``splip demo``: the whole way on the sample data, in one folder that a second run uses again."""

import csv
import html
import resource
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image, ImageDraw

from splip import disk
from splip.cli import index
from splip.cli.config import DemoConfig
from splip.config import load
from splip.data import sample
from splip.data.config import SampleConfig
from splip.errors import UserError
from splip.evaluation import baselines, evaluate
from splip.evaluation.config import EvalConfig
from splip.gallery.config import IndexAddConfig
from splip.gallery.gallery import Gallery
from splip.images import grid
from splip.models.config import TrainConfig
from splip.models.names import LAST, in_folder
from splip.train import loop

Pen = ImageDraw.ImageDraw
BACKBONE = "splip-tiny-3"  # the better of the package's; methods are compared on the other


def demo(config: DemoConfig) -> None:
    """Unpack, train, measure, index, search, and write results.json and index.html."""
    out, began = config.out, time.monotonic()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: exists and is not a folder")
    baselines.need_hog()
    if config.open:
        _need_service()
    out.mkdir(parents=True, exist_ok=True)
    tree_root, run, gallery = out / "sample", out / "run", out / "gallery"

    _say("1/5  sample data")
    sample.unpack(SampleConfig(tree_root))

    _say("2/5  training")
    checkpoint = _train(config, tree_root, run)

    _say("3/5  measuring on classes that training never saw")
    report = evaluate.evaluate(
        EvalConfig(str(checkpoint), tree_root, baselines=True, grid=out / "grid.png", device=config.device)
    )

    _say("4/5  indexing the photos of those classes")
    folders = tuple(tree_root / "photo" / name for name in report["classes"])
    shutil.rmtree(gallery, ignore_errors=True)  # of another training, perhaps
    index.add(IndexAddConfig(folders, gallery, str(checkpoint), device=config.device))

    _say("5/5  searching with drawings that no data set holds")
    found = _search_drawings(config, out, gallery)

    seconds = time.monotonic() - began
    with open(run / "log.csv", newline="", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    report |= {
        "steps": int(last["step"]),
        "training_seconds": float(last["seconds"]),
        "drawings": found,
        "seconds": round(seconds, 1),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    evaluate.write_json(out / "results.json", report)
    disk.write_text(out / "index.html", _page(report, out))
    print(f"\n{seconds / 60:.1f} minutes, peak memory {report['peak_rss_gb']} GB")
    for name in ("index.html", "grid.png", "drawings.png", "results.json"):
        print(f"  {out / name}")
    if config.open:
        _serve(gallery)


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


def _train(config: DemoConfig, tree_root: Path, run: Path) -> Path:
    """Train, go on with a training that was stopped, or use the finished one."""
    settings = load(TrainConfig, "sample")
    settings.backbone.name = BACKBONE
    settings.out, settings.data.root, settings.device = run, tree_root, config.device
    settings.steps = settings.steps if config.steps is None else config.steps
    settings.eval_prompts = False  # measured once, at the end
    settings.resume = in_folder(run, LAST).is_file()
    if settings.resume:
        before = load(TrainConfig, str(run / "config.yaml"))
        if before.steps != settings.steps:
            raise UserError(f"{run} holds a run of {before.steps} steps, not {settings.steps}: choose another --out")
    return loop.train(settings)


# ---- drawings of our own: nothing here comes from the data set ----


def _house(pen: Pen) -> None:
    pen.line([(40, 130), (130, 45), (215, 128)], "black", 6)
    pen.line([(62, 112), (60, 218), (196, 220), (194, 110)], "black", 6)
    pen.line([(112, 219), (112, 165), (146, 166), (147, 219)], "black", 5)
    pen.rectangle((78, 135, 100, 158), outline="black", width=4)


def _fish(pen: Pen) -> None:
    pen.ellipse((45, 80, 180, 175), outline="black", width=6)
    pen.line([(176, 122), (225, 80), (214, 128), (226, 172), (176, 130)], "black", 6)
    pen.ellipse((72, 108, 84, 120), fill="black")
    pen.arc((85, 90, 125, 165), 280, 80, "black", 4)


def _umbrella(pen: Pen) -> None:
    pen.arc((30, 40, 226, 230), 180, 360, "black", 6)
    for left in (30, 95, 161):
        pen.arc((left, 118, left + 65, 152), 180, 360, "black", 5)
    pen.line([(128, 130), (128, 205)], "black", 6)
    pen.arc((128, 190, 158, 222), 0, 180, "black", 6)


def _clock(pen: Pen) -> None:
    pen.ellipse((40, 40, 216, 216), outline="black", width=7)
    pen.line([(128, 128), (128, 70)], "black", 6)
    pen.line([(128, 128), (168, 146)], "black", 6)
    for x, y in ((128, 54), (202, 128), (128, 202), (54, 128)):
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill="black")


def _boat(pen: Pen) -> None:
    pen.line([(35, 165), (65, 212), (185, 212), (222, 165), (35, 165)], "black", 6)
    pen.line([(122, 165), (122, 38)], "black", 6)
    pen.line([(122, 42), (196, 148), (122, 150)], "black", 5)
    pen.line([(112, 62), (60, 148), (112, 150)], "black", 5)


DRAWINGS: dict[str, Callable[[Pen], None]] = {
    "house": _house, "fish": _fish, "umbrella": _umbrella, "clock": _clock, "boat": _boat,
}  # fmt: skip


def _search_drawings(config: DemoConfig, out: Path, gallery: Path) -> list[dict[str, Any]]:
    folder = out / "drawings"
    folder.mkdir(exist_ok=True)
    paths: list[Path] = []
    for name, draw in DRAWINGS.items():
        image = Image.new("RGB", (256, 256), "white")
        draw(ImageDraw.Draw(image))
        paths.append(folder / f"{name}.png")
        image.save(paths[-1])
    with Gallery.open(gallery, device=config.device) as opened:
        results = opened.search(sketches=paths, k=10)
    rows, found = [], []
    for path, matches in zip(paths, results, strict=True):
        hits: list[str | None] = ["hit" if m.path.parent.name == path.stem else "miss" for m in matches]
        rows.append(grid.Row(path, [m.path for m in matches], [m.score for m in matches], hits, path.stem))
        found.append(
            {
                "drawing": path.name,
                "hits_in_10": hits.count("hit"),
                "matches": [f"{m.path.parent.name}/{m.path.name}" for m in matches],
            }
        )
        print(f"{path}: {hits.count('hit')} of 10 show {path.stem}; first: {matches[0].path.parent.name}")
    grid.save(out / "drawings.png", rows, "Drawings that no data set holds")
    return found


# ---- the page ----

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1f2226; --quiet: #5b5f66; --line: #c9c6be; --hit: #1f7a4d; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --text: #e7e5df; --quiet: #b4b8be; --line: #4a4f56; --hit: #6fce9b; } a { color: #8ab8ff; } }
body { background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 1.5rem auto; padding: 0 1rem;
  overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; } .scroll img { min-width: 46rem; }
table { border-collapse: collapse; white-space: nowrap; }
th, td { padding: .35rem .9rem; text-align: right; border-bottom: 1px solid var(--line); font-weight: 400; }
th:first-child { text-align: left; padding-left: 0; }
thead th, tr.ours > * { font-weight: 600; }
img { max-width: 100%; height: auto; background: #fff; }
.found { display: grid; grid-template-columns: 7rem minmax(0, 1fr); gap: 1rem; margin: 1.2rem 0; align-items: start; }
.found > img { width: 7rem; border: 1px solid var(--line); border-radius: 8px; }
.found h3 { font-size: 1rem; margin: 0 0 .3rem; }
.found ol { display: flex; flex-wrap: wrap; gap: .4rem; list-style: none; margin: 0; padding: 0; }
.found li img { width: 4rem; height: 4rem; object-fit: contain; border: 3px solid transparent; border-radius: 8px; display: block; }
.found li.hit img { border-color: var(--hit); }
.quiet { color: var(--quiet); font-size: .9rem; }
code, pre { font-size: .9rem; } pre { white-space: pre-wrap; }
@media (max-width: 30rem) { .found { grid-template-columns: minmax(0, 1fr); } }
"""


def _page(report: dict[str, Any], place: Path) -> str:
    """``index.html``; ``place``: the demo's folder, as the commands on the page name it."""
    columns = list(next(iter(report["query_mean"].values())))
    head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in columns)
    body = "".join(
        f'<tr{" class=ours" if name == "SpLIP" else ""}><th scope="row">{html.escape(name)}</th>'
        + "".join(f"<td>{100 * values[c]:.1f}</td>" for c in columns)
        + "</tr>"
        for name, values in report["query_mean"].items()
    )
    classes = html.escape(", ".join(name.replace("_", " ") for name in report["classes"]))
    drawn = "".join(map(_drawn, report["drawings"]))
    gallery = html.escape(shlex.quote(str(place / "gallery")))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>splip: find photos from a drawing</title><style>{STYLE}</style></head><body><main>
<h1>Find photos from a drawing</h1>
<p>splip searches a gallery of photos with a drawing. This page shows the whole way on data that is in the package:
{report["steps"]} training steps ({report["training_seconds"] / 60:.1f} minutes), then searches among kinds of things that
training never saw.</p>
<p>The drawings are line drawings of things. <strong>The &ldquo;photos&rdquo; are emoji</strong>: coloured pictures of the same
things by other designers, which are small and free. So this is the task in small, made to run in a minute on any
computer.</p>
<h2>Drawings that no data set holds</h2>
<p>Five drawings of ours, and the ten pictures that each of them finds among {report["gallery"]}. Framed: what was drawn.</p>
{drawn}
<h2>Draw one yourself</h2>
<pre>splip serve --gallery {gallery} --open</pre>
<p>opens a page to draw on: pictures appear while you draw. It needs <code>pip install 'splip[serve]'</code>. A drawing that is a
file:</p>
<pre>splip search --gallery {gallery} --sketch my.png -k 10 --grid out.png</pre>
<h2>How well</h2>
<div class="scroll" role="region" aria-label="Results" tabindex="0"><table><thead><tr><th scope="col">percent</th>{head}</tr></thead>
<tbody>{body}</tbody></table></div>
<p class="quiet">{report["queries"]} sketches, {report["gallery"]} photos, means over sketches. mAP@all and P@10 ask for the class,
Acc for the very thing that was drawn. The classes that training never saw: {classes}. HOG is a description of edges that
learns nothing.</p>
<p class="quiet">splip-tiny-3, the model of the package, learned from icons and drawn pictures of other things, not from the
world&rsquo;s photos: do not expect the figures of a full-size CLIP, and take one for photographs of your own.</p>
<h2>Sketches of unseen classes and what they find</h2>
<div class="scroll" role="region" aria-label="Sketches and what they find" tabindex="0">
<img src="grid.png" alt="One sketch a row, its ten best photos to the right, hits framed"></div>
<h2>Whose pictures these are</h2>
<p class="quiet">OpenMoji (CC BY-SA 4.0), Noto Emoji (Apache 2.0), Twemoji (CC BY 4.0), Fluent Emoji (MIT);
see <a href="sample/LICENSES.md">sample/LICENSES.md</a>. All numbers: <a href="results.json">results.json</a>.</p>
</main></body></html>
"""


def _drawn(found: dict[str, Any]) -> str:
    """A drawing and its matches, as a part of the page."""
    thing = Path(found["drawing"]).stem
    tiles = []
    for match in found["matches"]:
        kind, hit = match.split("/")[0], match.split("/")[0] == thing
        source = html.escape(quote(f"sample/photo/{match}"))
        text = html.escape(kind.replace("_", " "))
        tiles.append(
            f'<li{" class=hit" if hit else ""}><img src="{source}" alt="{text}" title="{text}" loading="lazy"></li>'
        )
    return (
        f'<div class="found"><img src="drawings/{html.escape(quote(found["drawing"]))}" alt="A drawn {html.escape(thing)}">'
        f"<div><h3>{html.escape(thing.capitalize())}: {found['hits_in_10']} of 10</h3><ol>{''.join(tiles)}</ol></div></div>\n"
    )


# ---- the service ----


def _need_service() -> None:
    """Say that --open cannot be done before anything is, not after a minute of training."""
    try:
        import splip.serve.app  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"--open needs {error.name}: pip install 'splip[serve]'") from None


def _serve(gallery: Path) -> None:
    from splip.serve import process
    from splip.serve.config import ServeConfig

    _say("A page to draw on")
    process.serve(ServeConfig(gallery=str(gallery), port=0, open=True))
