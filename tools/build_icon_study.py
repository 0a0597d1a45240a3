"""The data of the icon study: nouns in colours and in lines, and what a backbone may see before.

Photos are coloured designs, sketches are line designs, both of named things. Three walls stand between what is learned and
what is tested:

- **Nouns.** Unseen and validation nouns are whole groups of WordNet (a *kind of*), and no picture of them, of what is called
  by their words, or of what is a kind of them is ever shown to a backbone or trained on.
- **Designers.** Test photos and test sketches are by designers of whom neither the backbone nor the training sees anything.
- **Tracings.** Sets of one family (Streamline's colours and Streamline's lines) never stand on both sides of a search: a line
  design that is a coloured one without its fill would be found by any copy machine.

    python tools/build_heldback.py --out heldback
    python tools/build_icons.py --out icons --heldback heldback
    python tools/build_pictures.py --out pictures
    python tools/build_icon_study.py --icons icons --pictures pictures --out study

It writes study/data (a tree with its split), study/plain and study/lines (to pre-train on: coloured pictures alone, and with
one in ten a line drawing), sets.csv with the licences of what is used, and leaks.json with what was left out, and why.
"""

import argparse
import csv
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from icon_names import Nouns, split
from icon_packages import sets, stop, wordnet
from PIL import Image

from splip.data import leaks
from splip.errors import UserError

TEST_PHOTOS = ("fluent-emoji", "fluent-emoji-flat", "fluent3d", "fluent-color", "openclipart", "icon-park")
TEST_SKETCHES = ("ph", "solar", "hugeicons", "iconoir", "carbon", "la", "pepicons-print", "pepicons-pencil", "guidance")
# Designers of coloured sets draw lines, too; those lines are nobody's sketches here.
FAMILIES = ("fluent", "icon-park", "streamline", "pepicons", "material-symbols", "openclipart", "meteocons", "noto",
            "flat-color-icons", "tango", "mingcute", "healthicons")  # fmt: skip
LINED = ("streamline-freehand-color",)  # coloured by its palette, drawn in lines: no backbone without lines sees it
# Nouns that WordNet reads out of a name and no picture of them shows, found by looking: adam is a skull in game-icons.
LEFT_OUT = {"adam", "automaton", "buttocks", "system", "stock", "hole", "stick", "office", "hail", "water", "wind", "building",
            "food", "seat", "background", "atom", "molecule", "metro", "sunrise", "snow", "rain", "card", "field", "pack", "tray"}  # fmt: skip
# build_pictures.py has all of these, and under finer names.
EMOJI = ("noto", "noto-v1", "twemoji", "emojione", "fxemoji", "streamline-emojis")
LEAST = {"test": (3, 4), "seen": (3, 4)}  # photos and sketches of a noun
UNSEEN, VALIDATION = 60, 18  # nouns, at least
MOST = 24  # pictures of a noun and a side
DRAWN_SHARE = 0.1  # of what the second backbone sees


@dataclass(frozen=True)
class Picture:
    """A picture of a noun (WordNet's offset): where it lies, of which set and licence, how it looks."""

    path: Path
    noun: int
    group: str
    set: str
    licence: str
    looks: int

    @property
    def test(self) -> bool:
        return self.set in TEST_PHOTOS or self.set in TEST_SKETCHES


class Words:
    """What belongs to some nouns: their words, what means the same, and what is a kind of them."""

    def __init__(self, nouns: Nouns, held: Iterable[int]) -> None:
        self.nouns, self.held = nouns, set(held)
        self.words = {word: noun for noun in self.held for word in nouns.words[noun] if "_" not in word}

    def reason(self, name: str, noun: int | None) -> str | None:
        """Why a picture of this name, that shows this, must not be seen; None: it may."""
        for word in split(name):
            if (single := self.nouns.singular(word)) in self.words:
                return f"'{word}' is {self.nouns.name(self.words[single])}"
        if noun is None:
            return None
        if related := self.nouns.ancestors(noun) & self.held:
            return f"{self.nouns.name(noun)} is a kind of {self.nouns.name(min(related))}"
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--icons", type=Path, default=Path("icons"), help="folder of build_icons.py")
    parser.add_argument("--pictures", type=Path, default=Path("pictures"), help="folder of build_pictures.py")
    parser.add_argument("--work", type=Path, default=Path("build/art"), help="where packages are kept")
    parser.add_argument("--out", type=Path, default=Path("study"), help="folder for data/, plain/ and lines/")
    args = parser.parse_args()
    nouns = Nouns(wordnet(args.work))
    photos, sketches = sides(args.icons)
    parts = divide(nouns, photos, sketches)
    refused: Counter[str] = Counter()
    data = choose(nouns, photos, sketches, parts, refused)
    write_tree(args.out / "data", data, parts, nouns)
    held = Words(nouns, [*parts["unseen"], *parts["validation"]])
    tested = [p.looks for side in data.values() for p in side if p.test]
    plain = [*emoji(args.pictures, nouns, held, tested, refused), *coloured(args.icons, held, tested, refused)]
    drawn = sorted(lines(args.icons, held, tested, refused), key=lambda row: mixed(row["path"]))
    known = {row["noun"] for row in plain}
    drawn = [row for row in drawn if row["noun"] in known]  # the same things, so that only the drawings differ
    shown = {"plain": plain, "lines": [*plain, *drawn[: round(len(plain) * DRAWN_SHARE / (1 - DRAWN_SHARE))]]}
    for name, rows in shown.items():
        write_pictures(args.out / name, one_key(rows))
    report(args.out, data, parts, shown, refused)


def rows_of(folder: Path, maker: str) -> list[dict[str, str]]:
    table = folder / "pictures.csv"
    if not table.is_file():
        raise UserError(f"there is no {table}; tools/{maker} makes it")
    with open(table, newline="", encoding="utf-8") as file:
        return [row | {"file": str((folder / row["path"]).resolve())} for row in csv.DictReader(file)]


def family(name: str) -> str:
    return next((one for one in FAMILIES if name == one or name.startswith(f"{one}-")), name)


def sides(icons: Path) -> tuple[list[Picture], list[Picture]]:
    """What may be a photo and what may be a sketch: nothing whose family colours what it draws."""
    made: dict[str, list[Picture]] = {"coloured": [], "line": []}
    rows = rows_of(icons, "build_icons.py")
    colourers = {family(row["set"]) for row in rows if row["kind"] == "coloured"}
    for row in rows:
        if row["kind"] == "line" and family(row["set"]) in colourers or row["kind"] not in made or row["set"] in LINED:
            continue
        noun, looks = int(row["thing"][1:]), int(row["hash"], 16)
        made[row["kind"]].append(Picture(Path(row["file"]), noun, row["class"], row["set"], row["licence"], looks))
    return made["coloured"], made["line"]


def divide(nouns: Nouns, photos: Sequence[Picture], sketches: Sequence[Picture]) -> dict[str, list[int]]:
    """Nouns that are seen, for validation, and unseen: whole groups of nouns, in an order that a hash decides."""
    count: dict[int, Counter[tuple[bool, int]]] = defaultdict(Counter)
    for side, pictures in enumerate((photos, sketches)):
        for picture in pictures:
            count[picture.noun][picture.test, side] += 1
    group = {p.noun: p.group for p in (*photos, *sketches)}
    enough = {
        part: {n for n, c in count.items() if all(c[part == "test", s] >= LEAST[part][s] for s in (0, 1))}
        for part in LEAST
    }
    enough = {part: {n for n in found if nouns.name(n) not in LEFT_OUT} for part, found in enough.items()}
    members: dict[str, set[int]] = defaultdict(set)
    for noun in enough["test"] | enough["seen"]:
        members[group[noun]].add(noun)
    parts: dict[str, list[int]] = {"unseen": [], "validation": [], "seen": []}
    for name in sorted(members, key=mixed):
        able = members[name] & enough["test"]
        if able and len(parts["unseen"]) < UNSEEN:
            parts["unseen"] += able
        elif able and len(parts["validation"]) < VALIDATION:
            parts["validation"] += able
        else:
            parts["seen"] += members[name] & enough["seen"]
    held = Words(nouns, [*parts["unseen"], *parts["validation"]])
    parts["seen"] = [n for n in parts["seen"] if not any(held.reason(w, n) for w in nouns.words[n])]
    validation = Words(nouns, parts["unseen"])
    parts["validation"] = [n for n in parts["validation"] if not any(validation.reason(w, n) for w in nouns.words[n])]
    return {part: sorted(found) for part, found in parts.items()}


def choose(
    nouns: Nouns,
    photos: Sequence[Picture],
    sketches: Sequence[Picture],
    parts: dict[str, list[int]],
    refused: Counter[str],
) -> dict[str, list[Picture]]:
    """The pictures of the study: of seen nouns by some designers, of all others by others; none that look alike across."""
    tested = {n for part in ("unseen", "validation") for n in parts[part]}
    seen = set(parts["seen"])
    data: dict[str, list[Picture]] = {}
    for side, pictures in (("photo", photos), ("sketch", sketches)):
        test = capped(p for p in pictures if p.noun in tested and p.test)
        near = [p.looks for p in test]
        own = [p for p in pictures if p.noun in seen and not p.test]
        alike = far(own, near)
        refused[f"{side} of a seen noun looks like a test picture"] += len(own) - len(alike)
        data[side] = test + capped(alike)
    return data


def far(pictures: Sequence[Picture], near: Sequence[int]) -> list[Picture]:
    distances = leaks.distances([p.looks for p in pictures], list(near))
    return [p for p, d in zip(pictures, distances, strict=True) if d > leaks.NEAR]


def mixed(name: str) -> bytes:
    """A key of an order that neither favours a set nor changes from run to run."""
    return hashlib.sha256(name.encode()).digest()


def capped(pictures: Iterable[Picture]) -> list[Picture]:
    taken: Counter[int] = Counter()
    found = []
    for picture in sorted(pictures, key=lambda p: mixed(f"{p.set}/{p.path.name}")):
        taken[picture.noun] += 1
        if taken[picture.noun] <= MOST:
            found.append(picture)
    return found


def write_tree(out: Path, data: dict[str, list[Picture]], parts: dict[str, list[int]], nouns: Nouns) -> None:
    """sketch/ and photo/ with a folder for each noun, on white, and dataset.json with the split."""
    names = {noun: nouns.words[noun][0] for part in parts.values() for noun in part}
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    names = {noun: f"{name}_{noun}" if name in twice else name for noun, name in names.items()}
    for side, pictures in data.items():
        for picture in pictures:
            folder = out / side / names[picture.noun]
            folder.mkdir(parents=True, exist_ok=True)
            with Image.open(picture.path) as image:
                drawn = image.convert("RGBA")
            white = Image.new("RGBA", drawn.size, "white")
            white.alpha_composite(drawn)
            white.convert("RGB").save(folder / f"{picture.set}__{picture.path.stem}.png")
    facts = {part: sorted(names[n] for n in found) for part, found in parts.items()}
    facts["seen"] = sorted({*facts["seen"], *facts["validation"]})
    words = {names[noun]: nouns.name(noun) for part in parts.values() for noun in part}
    (out / "dataset.json").write_text(json.dumps({**facts, "classes": words}, indent=1) + "\n", encoding="utf-8")


def emoji(
    folder: Path, nouns: Nouns, held: Words, tested: Sequence[int], refused: Counter[str]
) -> list[dict[str, str]]:
    """Coloured emoji that a backbone may see."""
    rows = rows_of(folder, "build_pictures.py")
    made = [{**row, "set": row["designer"], "kind": "coloured", "synonyms": ""} for row in rows]
    made = [row for row in made if row["set"] not in TEST_PHOTOS]
    return _shown(made, [nouns.shows(row["name"]) for row in made], held, tested, refused)


def coloured(folder: Path, held: Words, tested: Sequence[int], refused: Counter[str]) -> list[dict[str, str]]:
    """Coloured icons by designers who are not among the emoji and are not tested."""
    return _icons(folder, "coloured", held, tested, refused, {*TEST_PHOTOS, *LINED, *EMOJI})


def lines(folder: Path, held: Words, tested: Sequence[int], refused: Counter[str]) -> list[dict[str, str]]:
    """Line icons by designers who are not tested, neither by their lines nor by their colours."""
    return _icons(folder, "line", held, tested, refused, {*TEST_SKETCHES, *TEST_PHOTOS})


def _icons(
    folder: Path, kind: str, held: Words, tested: Sequence[int], refused: Counter[str], without: set[str]
) -> list[dict[str, str]]:
    families = {family(name) for name in without} if kind == "line" else set()
    rows = [r for r in rows_of(folder, "build_icons.py") if r["kind"] == kind and r["set"] not in without]
    rows = [r for r in rows if family(r["set"]) not in families]
    return _shown(rows, [int(row["thing"][1:]) for row in rows], held, tested, refused)


def _shown(
    rows: list[dict[str, str]],
    shows: Sequence[int | None],
    held: Words,
    tested: Sequence[int],
    refused: Counter[str],
) -> list[dict[str, str]]:
    """Those that a backbone may see, by their names and by their looks."""
    kept = []
    near = leaks.distances([int(row["hash"], 16) for row in rows], list(tested))
    for row, noun, distance in zip(rows, shows, near, strict=True):
        why = held.reason(row["name"], noun)
        if why is None and distance <= leaks.NEAR:
            why = "looks like a test picture"
        if why is None:
            kept.append(row | {"noun": "" if noun is None else str(noun)})
        else:
            refused[f"pre-training: {why}"] += 1
    return kept


def one_key(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Emoji are told apart by code points and icons by nouns: an icon of a noun joins its plainest emoji."""
    plainest: dict[str, dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: len(row["name"])):
        if row["noun"] and row.get("designer"):
            plainest.setdefault(row["noun"], row)
    made = []
    for row in rows:
        key = row if row.get("designer") else plainest.get(row["noun"], row)
        made.append(row | {name: key[name] for name in ("thing", "name", "class")})
    return made


def write_pictures(out: Path, rows: Sequence[dict[str, str]]) -> None:
    """The table that ``splip pretrain --pictures`` reads, with paths to the pictures where they lie."""
    out.mkdir(parents=True, exist_ok=True)
    columns = ("path", "thing", "name", "class", "synonyms", "set", "kind")
    with open(out / "pictures.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(
            [os.path.relpath(row["file"], out.resolve()), *(row[name] for name in columns[1:])]
            for row in sorted(rows, key=lambda row: (row["thing"], row["set"], row["path"]))
        )


def report(
    out: Path,
    data: dict[str, list[Picture]],
    parts: dict[str, list[int]],
    shown: dict[str, list[dict[str, str]]],
    refused: Counter[str],
) -> None:
    """Write ``sets.csv`` and ``leaks.json``, and say how much there is."""
    used = Counter(p.set for side in data.values() for p in side)
    learned = Counter(row["set"] for row in shown["lines"])
    about = {row.name: row for row in sets()}
    with open(out / "sets.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["set", "package", "licence", "author", "used as", "pictures of the study", "pre-training"])
        for name in sorted(used | learned):
            role = "test" if name in (*TEST_PHOTOS, *TEST_SKETCHES) else "training"
            one = about[name]
            writer.writerow([name, one.package, one.licence, one.author, role, used[name], learned[name]])
    counts = Counter(
        (part, side) for part, found in parts.items() for side in data for p in data[side] if p.noun in set(found)
    )
    facts = {
        "nouns": {part: len(found) for part, found in parts.items()},
        "pictures": {f"{part} {side}s": count for (part, side), count in sorted(counts.items())},
        "pre-training": {name: len(rows) for name, rows in shown.items()},
        "left out": dict(refused.most_common()),
    }
    (out / "leaks.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in facts.items() if k != "left out"}, indent=1))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        stop(error)
