"""Pictures and names to pre-train splip-tiny on: emoji of nine designs, from openly licensed packages on npm.

Everything that belongs to the sample's unseen or validation classes is left out (``splip.data.leaks``): by code point, by any
word of the name, by Unicode's subgroup, and by looks. Sketches are never among them. People are left out, too: they
wear hats and shoes and have hands.

    python tools/build_pictures.py --out pictures    # needs npm, and pip install 'splip[sample]'
"""

import argparse
import csv
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from build_sample import SHIPPED, as_svg, fetch_npm, key, render
from PIL import Image
from rich.progress import track

from splip.data import leaks
from splip.data.sample import things as things_of_the_sample

SIDE = 96
MARGIN = 0.06
CATALOG = "openmoji@17.0.0"  # its data/openmoji.json is read for names and groups; none of its pictures is used
# designer: (package, licence)
DESIGNERS = {
    "noto": ("@iconify-json/noto@1.2.9", "Apache-2.0"),
    "noto-v1": ("@iconify-json/noto-v1@1.2.5", "Apache-2.0"),
    "twemoji": ("@iconify-json/twemoji@1.2.5", "CC-BY-4.0"),
    "emojione": ("@iconify-json/emojione@1.2.3", "CC-BY-4.0"),
    "fxemoji": ("@iconify-json/fxemoji@1.2.2", "Apache-2.0"),
    "fluent-emoji": ("@iconify-json/fluent-emoji@1.2.7", "MIT"),
    "fluent-emoji-flat": ("@iconify-json/fluent-emoji-flat@1.2.6", "MIT"),
    "streamline-emojis": ("@iconify-json/streamline-emojis@1.2.4", "CC-BY-4.0"),
    "fluent3d": ("@lobehub/fluent-emoji-3d@1.1.0", "MIT"),
}
NAMED = ("noto", "twemoji", "fluent-emoji-flat")  # packages that say which code point a name stands for
LEFT_OUT = ("flags", "component", "people-body")
LEFT_OUT_SUBGROUPS = ("keycap", "alphanum")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder for the pictures and pictures.csv")
    parser.add_argument("--work", type=Path, default=Path("build/art"), help="where packages are kept")
    parser.add_argument("--list", type=Path, help="also write names, designers and hashes, without pictures, here")
    parser.add_argument(
        "--whole", action="store_true", help="also the sample's classes: for what is never measured on the sample"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    fetch_npm(args.work, {"catalog": CATALOG} | {name: package for name, (package, _) in DESIGNERS.items()})
    things = catalog(args.work, () if args.whole else ("unseen", "validation"))
    sources = {name: source(args.work, name, things) for name in DESIGNERS}
    tested = [] if args.whole else leaks.tested_hashes()
    words = json.loads((SHIPPED / "classes.json").read_text(encoding="utf-8"))["classes"]
    sample = {row["codepoint"]: words[row["class"]] for row in things_of_the_sample()}
    rows, alike = [], 0
    for codepoint, (name, subgroup) in track(list(things.items()), "Drawing"):
        for designer, get in sources.items():
            picture = get(codepoint)
            square = None if picture is None else cut_out(picture)
            if square is None:
                continue
            looks = leaks.picture_hash(square)
            if tested and leaks.distances([looks], tested)[0] <= leaks.NEAR:
                alike += 1
                continue
            path = args.out / designer / f"{codepoint}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            square.save(path)
            kind = sample.get(codepoint, subgroup.replace("-", " "))
            rows.append([f"{designer}/{codepoint}.png", codepoint, name, kind, designer, f"{looks:016x}"])
    with open(args.out / "pictures.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([["path", "thing", "name", "class", "designer", "hash"], *rows])
    if args.list:
        lines: dict[str, list[str]] = {}
        for _, codepoint, name, kind, designer, looks in rows:
            lines.setdefault(codepoint, [codepoint, name, kind, ""])[3] += f" {designer}:{looks}"
        with open(args.list, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["thing", "name", "class", "pictures"])
            writer.writerows([*line[:3], line[3].strip()] for line in lines.values())
    print(
        f"{len(rows)} pictures of {len({row[1] for row in rows})} things in {args.out}; {alike} left out by their looks"
    )


def catalog(work: Path, kept: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Code point: name and subgroup, of everything that a backbone may see; ``kept``: splits of the sample that it may not."""
    found = {}
    for entry in json.loads((work / "catalog/data/openmoji.json").read_text(encoding="utf-8")):
        codepoint, name, subgroup = key(entry["hexcode"]), entry["annotation"], entry["subgroups"]
        group = entry["group"]
        if entry["skintone"] or group.startswith("extras") or "200d" in codepoint or subgroup in LEFT_OUT_SUBGROUPS:
            continue
        if group in LEFT_OUT and codepoint not in leaks.kept("unseen").trained:
            continue
        if any(leaks.reason(codepoint, name, subgroup, split) for split in kept):
            continue
        found[codepoint] = (name, subgroup)
    return found


def source(work: Path, designer: str, things: dict[str, tuple[str, str]]) -> Callable[[str], Image.Image | None]:
    """A function from code points to a designer's pictures; None for those it never drew."""
    if designer == "fluent3d":
        return lambda codepoint: fluent3d(work / designer / "assets", codepoint)
    icons = json.loads((work / designer / "icons.json").read_text(encoding="utf-8"))
    aliases = {name: alias["parent"] for name, alias in icons.get("aliases", {}).items()}
    tables = [
        {key(code): name for code, name in json.loads((work / package / "chars.json").read_text()).items()}
        for package in NAMED
    ]
    # One package writes names without hyphens.
    bare = {name.replace("-", ""): name for name in icons["icons"]} if designer == "fxemoji" else {}

    def get(codepoint: str) -> Image.Image | None:
        names = [table[codepoint] for table in tables if codepoint in table]
        names.append(slug(things[codepoint][0]))
        if "-" not in codepoint:
            names.append(slug(unicodedata.name(chr(int(codepoint, 16)), "")))
        for name in names:
            name = bare.get(name.replace("-", ""), aliases.get(name, name))
            if name in icons["icons"]:
                return render(as_svg(icons, name), SIDE)
        return None

    return get


def slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", re.sub("[’']", "", name.lower())).strip("-")


def fluent3d(folder: Path, codepoint: str) -> Image.Image | None:
    for name in (codepoint, f"{codepoint}-fe0f"):
        if (folder / f"{name}.webp").is_file():
            with Image.open(folder / f"{name}.webp") as image:
                return image.convert("RGBA")
    return None


def cut_out(image: Image.Image) -> Image.Image | None:
    """What is not transparent, centred in a transparent square; None if nothing is."""
    rows, columns = np.where(np.asarray(image)[..., 3] > 8)
    if len(rows) == 0:
        return None
    image = image.crop((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    scale = SIDE * (1 - 2 * MARGIN) / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Premultiplied, so that the colour of transparent pixels does not bleed in.
    image = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 0))
    square.paste(image, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return square


if __name__ == "__main__":
    main()
