"""The held-back test: line drawings by designers that nothing here is trained on, among pictures by others, by noun.

Sketches: Fluent Emoji High Contrast, EmojiOne Monotone and Symbola. Gallery: Tux Paint's stamps and GCompris's pictures,
photographs and paintings. None of these sets is ever trained, tuned or pre-trained on. A class is a noun that both sides
show. ``kept`` nouns belong to the sample's unseen or validation classes, by word, synonym or kind, which build_icons.py leaves
out under any designer; of ``shown`` nouns a backbone knows pictures by other designers.

    python tools/build_heldback.py --out heldback    # needs npm, apt-get and dpkg, and pip install 'splip[sample]'
    python benchmarks/heldback_results.py --data heldback
"""

import argparse
import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from build_sample import as_svg, fit, render
from icon_names import Nouns
from icon_packages import fetch, qt_resources, sets, stop, wordnet
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

from splip.data import leaks
from splip.errors import UserError

SIDE = 128
SYMBOLA = ("symbola", "deb:fonts-symbola=2.60-1.1", "Symbola")
GALLERY = {"tuxpaint": "deb:tuxpaint-stamps-default=2022.06.04-1", "gcompris": "deb:gcompris-qt-data=3.1-2"}
LICENCE = {"tuxpaint": "GPL-2.0", "gcompris": "GPL-3.0 and others, a file each", "symbola": "public domain (2.60)"}
LEFT_OUT = ("/symbols/", "/flags/", "/roadsigns/", "/people/")
# Activities of GCompris whose pictures show one thing and are named by it.
ACTIVITIES = ("algorithm", "babymatch", "babyshapes", "categorization", "enumerate", "erase", "explore_farm_animals",
              "explore_world_animals", "instruments", "lang", "memory")  # fmt: skip
COLUMNS = ("path", "noun", "side", "set", "licence", "nouns", "hash")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("heldback"), help="folder for sketch/, photo/ and heldback.csv"
    )
    parser.add_argument("--work", type=Path, default=Path("build/art"), help="where packages are kept")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    nouns = Nouns(wordnet(args.work))
    print(write(args.out, nouns, list(sketches(args.work, nouns)), list(gallery(args.work, nouns))))


def write(
    out: Path, nouns: Nouns, drawn: list[tuple[int, str, Image.Image]], shown: list[tuple[int, str, Image.Image]]
) -> str:
    """Write what both sides show as a tree of classes; returns a line that says how much that is."""
    held = [nouns.held(split) for split in ("unseen", "validation")]
    both = sorted({noun for noun, *_ in drawn} & {noun for noun, *_ in shown})
    words = {noun: nouns.name(noun) for noun in both}
    for noun in both:  # two nouns of one name, as of two mice
        if list(words.values()).count(words[noun]) > 1:
            words[noun] = f"{nouns.name(noun)} {noun}"
    kept = {noun: any(h.reason(words[noun], noun) for h in held) for noun in both}
    rows, seen = [], set()
    for side, pictures in (("sketch", drawn), ("photo", shown)):
        for noun, origin, image in pictures:
            looks = leaks.picture_hash(image)
            if noun not in words or (side, noun, looks) in seen:
                continue
            seen.add((side, noun, looks))
            path = Path(side) / words[noun] / f"{origin.replace('/', '-')}.png"
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            image.save(out / path)
            name = origin.split("/")[0]
            licence = LICENCE.get(name) or next(row.licence for row in sets() if row.name == name)
            rows.append([path, words[noun], side, name, licence, "kept" if kept[noun] else "shown", f"{looks:016x}"])
    with open(out / "heldback.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    names = {"unseen": sorted(words.values()), "classes": {word: word for word in words.values()}}
    (out / "dataset.json").write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
    count = sum(row[2] == "sketch" for row in rows)
    return f"{out}: {count} sketches and {len(rows) - count} pictures of {len(both)} nouns, {sum(kept.values())} of them kept"


def sketches(work: Path, nouns: Nouns) -> Iterator[tuple[int, str, Image.Image]]:
    """Noun, origin and picture of every drawing that shows one noun."""
    for row in sets():
        if row.use == "reserved":
            icons = json.loads((fetch(work, row.name, row.package) / "icons.json").read_text(encoding="utf-8"))
            for name in track(sorted(icons["icons"]), row.name):
                noun = nouns.shows(name)
                if noun is not None:
                    yield noun, f"{row.name}/{name}", fit(render(as_svg(icons, name), 2 * SIDE), SIDE)
    font = next(fetch(work, *SYMBOLA[:2]).rglob("Symbola*.ttf"))
    letters = ImageFont.truetype(str(font), 2 * SIDE)
    absent = bytes(letters.getmask("\U0001fffe"))  # what stands for a character that the font lacks
    for code in track(range(0x1F300, 0x1F9FF), "symbola"):
        noun = nouns.shows(unicodedata.name(chr(code), ""))
        left, top, right, bottom = letters.getbbox(chr(code))
        if noun is None or right <= left or bottom <= top or bytes(letters.getmask(chr(code))) == absent:
            continue
        page = Image.new("RGB", (int(right - left) + 40, int(bottom - top) + 40), "white")
        ImageDraw.Draw(page).text((20 - left, 20 - top), chr(code), font=letters, fill="black")
        yield noun, f"symbola/{code:x}", fit(page, SIDE)


def gallery(work: Path, nouns: Nouns) -> Iterator[tuple[int, str, Image.Image]]:
    """Noun, origin and picture of every stamp, photograph and painting that shows one noun."""
    stamps = next(fetch(work, "tuxpaint", GALLERY["tuxpaint"]).rglob("tuxpaint/stamps"))
    files = [p for p in sorted(stamps.rglob("*")) if p.suffix in (".png", ".svg") and not p.stem.endswith("_mirror")]
    for path in track(files, "tuxpaint"):
        if any(part in f"{path}" for part in LEFT_OUT):
            continue
        words = path.with_suffix(".txt")
        told = words.read_text(encoding="utf-8", errors="replace").splitlines()[:1] if words.is_file() else []
        noun = next((n for name in [*told, path.stem] if (n := nouns.shows(name)) is not None), None)
        picture = opened(path.read_bytes(), path.suffix) if noun is not None else None
        if noun is not None and picture is not None:
            yield noun, f"tuxpaint/{path.relative_to(stamps).with_suffix('')}{path.suffix[1:]}", picture
    folder = next(fetch(work, "gcompris", GALLERY["gcompris"]).rglob("rcc"))
    for activity in track(ACTIVITIES, "gcompris"):
        for name, content in sorted(qt_resources(folder / f"{activity}.rcc")):
            path = Path(name)
            if path.suffix not in (".svg", ".png", ".webp", ".jpg") or re.match("(upper|lower)[A-Z]$", path.stem):
                continue  # the latter are letters
            noun = nouns.shows(path.stem)
            picture = opened(content, path.suffix) if noun is not None else None
            if noun is not None and picture is not None:
                yield noun, f"gcompris/{activity}/{path.stem}{path.suffix[1:]}", picture


def opened(content: bytes, suffix: str) -> Image.Image | None:
    """A picture as a white square, or None for a file that cannot be drawn."""
    try:
        if suffix == ".svg":
            return fit(render(content.decode("utf-8", errors="replace"), 2 * SIDE), SIDE)
        return fit(Image.open(io.BytesIO(content)), SIDE)
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        stop(error)
