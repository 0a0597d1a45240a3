"""A large corpus of named pictures to pre-train on: openly licensed icons, emoji and clip art, coloured and in lines.

What is fetched, in which version and under which licence, is the table ``icon_sets.csv``; sets that are reserved for tests
and sets that are not open are never read. What a picture shows is read from its name (``icon_names.py``). Left out:
everything of the sample's unseen and validation classes, by any word of a name, plurals and synonyms, and by what WordNet
calls a kind of them; what looks like a test picture, of the sample or of the held-back test; and people, who wear hats and
shoes and have hands.

    python tools/build_heldback.py --out heldback
    python tools/build_icons.py --out icons --heldback heldback   # about five minutes; again, it goes on

Needs npm, apt-get and dpkg (nothing is installed by them), and pip install 'splip[sample]'.
"""

import argparse
import csv
import hashlib
import io
import json
import lzma
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from build_pictures import cut_out
from build_sample import as_svg, key, render
from icon_names import Held, Nouns, classes
from icon_packages import Set, check_licence, fetch, sets, stop, wordnet
from PIL import Image
from rich.progress import track

from splip.data import leaks
from splip.errors import UserError

SIDE = 96
LEAST_SETS = 3  # a thing that only plain sets show must be known to so many of them: one set's fancies are no nouns
MOST = {"coloured": 60, "line": 40, "solid": 16}  # pictures of a thing, of each kind
COLUMNS = ("path", "thing", "name", "class", "synonyms", "set", "licence", "kind", "hash")
CLIP_ART_LEFT_OUT = ("shapes", "special", "logos", "signs_and_symbols", "people", "cards", "computer", "decorations",
                     "unsorted", "education", "geography")  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A picture that may be used: of which set, under which name, showing what, and how it is drawn."""

    row: Set
    name: str
    noun: int
    draw: Callable[[], Image.Image]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("icons"), help="folder for the pictures and pictures.csv")
    parser.add_argument("--work", type=Path, default=Path("build/art"), help="where packages are kept")
    parser.add_argument(
        "--heldback", type=Path, help="folder of build_heldback.py: nothing that looks like its pictures"
    )
    parser.add_argument("--share-alike", action="store_true", help="also sets that ask for their own licence again")
    parser.add_argument("--sets", nargs="*", help="only these sets (default: all that may be used)")
    parser.add_argument("--list", type=Path, help="also write what was used, without pictures, here (.csv or .csv.xz)")
    parser.add_argument(
        "--whole", action="store_true", help="also the sample's classes: for what is never measured on the sample"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    chosen = [s for s in sets() if s.use in ("yes", "share-alike" if args.share_alike else "yes")]
    unknown = set(args.sets or ()) - {s.name for s in chosen}
    if unknown:
        raise UserError(f"--sets: not in icon_sets.csv, or not to be used: {', '.join(sorted(unknown))}")
    chosen = [s for s in chosen if not args.sets or s.name in args.sets]
    nouns = Nouns(wordnet(args.work))
    held = [] if args.whole else [nouns.held(split) for split in ("unseen", "validation")]
    found, refused = candidates(args.work, chosen, nouns, held)
    tested = ([] if args.whole else leaks.tested_hashes()) + heldback(args.heldback)
    rows, alike = draw(found, nouns, args.out, tested, held)
    with open(args.out / "pictures.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    report(args.out, chosen, rows, refused, alike)
    if args.list:
        write_list(args.list, rows)


def heldback(folder: Path | None) -> list[int]:
    """How the pictures of the held-back test look."""
    if folder is None:
        return []
    if not (folder / "heldback.csv").is_file():
        raise UserError(f"--heldback: there is no {folder / 'heldback.csv'}; tools/build_heldback.py makes it")
    with open(folder / "heldback.csv", newline="", encoding="utf-8") as file:
        return [int(row["hash"], 16) for row in csv.DictReader(file)]


def candidates(work: Path, chosen: list[Set], nouns: Nouns, held: list[Held]) -> tuple[list[Candidate], Counter[str]]:
    """Every picture that shows one thing that may be seen; and why others were refused, counted."""
    found: list[Candidate] = []
    refused: Counter[str] = Counter()
    for row in track(chosen, "Reading names"):
        folder = fetch(work, row.name, row.package)
        check_licence(folder, row)
        for name, words, picture in pictures_of(work, folder, row):
            noun, why = judged(words, nouns, held)
            if noun is not None:
                found.append(Candidate(row, name, noun, picture))
            else:
                refused[why] += 1
    owners: dict[int, set[str]] = defaultdict(set)
    coloured: Counter[int] = Counter()
    for one in found:
        owners[one.noun].add(one.row.name)
        coloured[one.noun] += one.row.palette == "coloured"
    kept = [c for c in found if len(owners[c.noun]) >= LEAST_SETS or coloured[c.noun]]
    refused["drawn by too few sets"] += len(found) - len(kept)
    return kept, refused


def judged(words: list[str], nouns: Nouns, held: list[Held]) -> tuple[int | None, str]:
    """The noun of the first of a picture's names that has one; None and why if it may not be seen."""
    noun = next((n for name in words if (n := nouns.shows(name)) is not None), None)
    for one in held:
        for name in words:
            if reason := one.reason(name, noun):
                return None, reason
    return (None, "names no single thing that can be seen") if noun is None else (noun, "")


def pictures_of(work: Path, folder: Path, row: Set) -> Iterator[tuple[str, list[str], Callable[[], Image.Image]]]:
    """Name, words and drawing of all pictures of a set, in a fixed order."""
    if (folder / "icons.json").is_file():
        icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        for name in sorted(icons["icons"]):
            yield name, [name], lambda name=name: render(as_svg(icons, name), SIDE)  # type: ignore[misc]
    elif row.name == "fluent3d":  # named by code points only: in words they are in another set of the same characters
        chars = json.loads((fetch(work, "noto", noto()) / "chars.json").read_text(encoding="utf-8"))
        words = {key(code): name for code, name in chars.items()}
        for path in sorted((folder / "assets").glob("*.webp")):
            if key(path.stem) in words:
                yield path.stem, [words[key(path.stem)]], lambda path=path: Image.open(path).convert("RGBA")  # type: ignore[misc]
    else:
        for path in sorted(folder.rglob("*.svg")):
            inside = path.relative_to(folder).parts
            if (
                set(inside).intersection(CLIP_ART_LEFT_OUT)
                or "usr" in inside
                and "scalable" not in inside
                and row.name == "tango"
            ):
                continue
            text = path.read_text(encoding="utf-8", errors="replace")
            title = re.search("<dc:title>([^<]{1,60})</dc:title>", text)
            words = [path.stem, *([title[1]] if title and title[1] != "Open Clip Art Library" else [])]
            yield path.stem, words, lambda text=text: render(text, SIDE)  # type: ignore[misc]


def noto() -> str:
    return next(row.package for row in sets() if row.name == "noto")


def draw(
    found: list[Candidate], nouns: Nouns, out: Path, tested: list[int], held: list[Held]
) -> tuple[list[list[str]], Counter[str]]:
    """Draw what is not there yet, and choose; returns the rows of the table and what was left out by its looks."""
    kind_of = classes(nouns, sorted({c.noun for c in found}))
    words = {noun: allowed(nouns, noun, held) for noun in {*kind_of, *kind_of.values()}}
    others: Counter[str] = Counter()
    taken: Counter[tuple[int, str]] = Counter()
    seen: set[tuple[int, int]] = set()
    rows = []
    # An order that neither favours a set nor changes from run to run.
    order = sorted(found, key=lambda c: hashlib.sha256(f"{c.row.name}/{c.name}".encode()).digest())
    for one in track(order, "Drawing"):
        if all(
            taken[one.noun, kind] >= MOST[kind]
            for kind in (["coloured"] if one.row.palette == "coloured" else ["line", "solid"])
        ):
            continue
        safe = re.sub("[^A-Za-z0-9_.-]+", "_", one.name)
        path = out / one.row.name / f"{safe}.png"
        square = drawn(one, path)
        if square is None:
            others["empty or not to be drawn"] += 1
            continue
        kind = "coloured" if one.row.palette == "coloured" else stroke(square)
        looks = leaks.picture_hash(square)
        why = "another of the thing looks the same" if (one.noun, looks) in seen else ""
        if taken[one.noun, kind] >= MOST[kind]:
            why = "enough of the thing"
        elif tested and leaks.distances([looks], tested)[0] <= leaks.NEAR:
            why = "looks like a test picture"
        if why:
            others[why] += 1
            continue
        seen.add((one.noun, looks))
        taken[one.noun, kind] += 1
        rows.append([f"{one.row.name}/{safe}.png", f"n{one.noun:08d}", words[one.noun][0], words[kind_of[one.noun]][0],
                     ";".join(words[one.noun]), one.row.name, one.row.licence, kind, f"{looks:016x}"])  # fmt: skip
    rows.sort(key=lambda row: (row[1], row[0]))
    return rows, others


def allowed(nouns: Nouns, noun: int, held: list[Held]) -> list[str]:
    """The words for a thing that no test class is told by (a *television receiver* is no telephone); at least one."""
    words = [word.replace("_", " ") for word in nouns.words[noun]]
    kept = [word for word in words if not any(one.reason(word, None) for one in held)]
    if kept or not nouns.above[noun]:
        return kept or ["thing"]
    return [f"kind of {allowed(nouns, nouns.above[noun][0], held)[0]}"]


def drawn(one: Candidate, path: Path) -> Image.Image | None:
    """The picture from the file of an earlier run, or drawn and written."""
    if path.is_file():
        with Image.open(path) as image:
            return image.convert("RGBA")
    try:
        square = cut_out(one.draw())
    except (OSError, ValueError, RuntimeError):
        return None
    if square is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with io.BytesIO() as buffer:
            square.save(buffer, "PNG")
            path.write_bytes(buffer.getvalue())
    return square


def stroke(square: Image.Image) -> str:
    """Whether a plain picture is made of lines, or of filled shapes that three erosions leave something of."""
    ink = np.asarray(square)[..., 3] > 127
    total = max(1, int(ink.sum()))
    for _ in range(4):
        padded = np.pad(ink, 1)
        ink = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return "line" if int(ink.sum()) < 0.06 * total else "solid"


def report(out: Path, chosen: list[Set], rows: list[list[str]], refused: Counter[str], alike: Counter[str]) -> None:
    """Write ``sets.csv`` (licences) and ``leaks.json`` (what was left out and why), and say how much there is."""
    used = Counter(row[5] for row in rows)
    with open(out / "sets.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["set", "package", "licence", "author", "pictures"])
        writer.writerows([s.name, s.package, s.licence, s.author, used[s.name]] for s in chosen if used[s.name])
    left = {"names": dict(refused.most_common()), "looks": dict(alike.most_common())}
    (out / "leaks.json").write_text(json.dumps(left, indent=1) + "\n", encoding="utf-8")
    kinds = Counter(row[7] for row in rows)
    print(
        f"{len(rows)} pictures of {len({row[1] for row in rows})} things in {len({row[3] for row in rows})} classes in {out}: "
        f"{', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}; from {len(used)} sets; "
        f"{sum(refused.values())} left out by their names, {alike['looks like a test picture']} by their looks"
    )


def write_list(path: Path, rows: list[list[str]]) -> None:
    """A row for each thing: what it is and which pictures of it were used, ``set/name:hash``."""
    things: dict[str, list[str]] = {}
    for picture, thing, name, kind, synonyms, *_, looks in rows:
        entry = f"{picture.removesuffix('.png')}:{looks}"
        things.setdefault(thing, [thing, name, kind, synonyms, ""])[4] += f" {entry}"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["thing", "name", "class", "synonyms", "pictures"])
    writer.writerows([*line[:4], line[4].strip()] for line in things.values())
    data = text.getvalue().encode()
    path.write_bytes(lzma.compress(data, preset=9) if path.suffix == ".xz" else data)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        stop(error)
