"""Trees of sketches and photos, and their splits.

A tree is ``{sketch,photo}/<class>/*``, or ``{train,val}/{sketch,photo}/<class>/*``: one pool of classes,
of which those in ``val`` are unseen. Two files at its root are optional: ``dataset.json`` names the
split and how classes are written in prompts, ``instances.csv`` (``path,instance``) says which
pictures show the same thing. ``splip.data.datasets`` reads the data sets of the papers.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from splip.data import cache, datasets, pseudo
from splip.data.config import CheckConfig, DataConfig
from splip.data.splits import Split, class_of, dataset_facts, find_split, normal_name, prompt_name
from splip.errors import UserError, shown
from splip.report import Report

MODALITIES = ("sketch", "photo")  # their order is their number everywhere
SHOWN = 20  # absent files that `data check` names


@dataclass
class Items:
    """Pictures of one modality with their labels; parallel lists."""

    paths: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)  # position in Tree.classes
    instances: list[int] = field(default_factory=list)  # equal numbers show the same thing

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, positions: list[int]) -> "Items":
        columns = (self.paths, self.labels, self.instances)
        return Items(*([column[i] for i in positions] for column in columns))  # type: ignore[arg-type]

    def of(self, labels: set[int]) -> "Items":
        return self.take([i for i, label in enumerate(self.labels) if label in labels])


@dataclass
class Tree:
    """A data set: classes, their split, and the pictures of both modalities."""

    root: Path
    classes: list[str]  # folder names, or the data set's own names of its classes; sorted
    texts: list[str]  # how the class is written in a prompt
    seen: list[str]  # trained on
    validation: list[str]  # seen classes held out to choose a checkpoint
    unseen: list[str]  # test classes
    sketches: Items
    photos: Items
    notes: list[str]  # what was left out and why, and which folders were taken for which class
    dataset: str = "tree"
    split: str = ""  # name of the split, if it has one
    drawn: bool = True  # False: there are no sketches, the photos stand for them (splip.data.pseudo)

    def items(self, names: list[str]) -> tuple[Items, Items]:
        """Sketches and photos of these classes."""
        labels = {self.classes.index(name) for name in names}
        return self.sketches.of(labels), self.photos.of(labels)


def paired(sketches: Items, photos: Items) -> np.ndarray:
    """Which sketches have a photo of the same instance, ``[len(sketches)]`` bool."""
    return np.isin(sketches.instances, photos.instances)


def unpaired(sketches: Items, photos: Items) -> list[Path]:
    """Sketches of which no photo shows the same thing."""
    return [path for path, found in zip(sketches.paths, paired(sketches, photos), strict=True) if not found]


def load_tree(root: Path | None, config: DataConfig, need_split: bool = True) -> Tree:
    """List a data set's pictures and settle its split.

    Args:
        need_split: False: all classes are seen, and none has to be there.

    Raises:
        UserError: the folder is missing or holds no such data set, the split names unknown, missing or
            overlapping classes, or the file of captions is malformed.
    """
    if root is None:
        raise UserError("no data: --data.root names the folder of a data set, such as one with sketch/ and photo/")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    tree = (_load_plain if config.dataset == "tree" else _load_named)(root, config, need_split)
    if config.captions is not None:
        tree.texts = _captions(config.captions, tree)
    return tree


def _load_named(root: Path, config: DataConfig, need_split: bool) -> Tree:
    """Sketchy, TU-Berlin or QuickDraw, under the class names of its own list."""
    name = config.dataset
    split = find_split(name, config.split)
    # Classes that are chosen by hand are another split: its queries are not those of the lists.
    own = bool(config.unseen)
    listing = datasets.read(root, name, None if own else split, config.extended)
    classes, notes = listing.classes, listing.notes
    if not classes:
        raise UserError(f"{root}: no class of {name} has both sketches and photos in {listing.layout}")
    sketches, photos, twice = Items(), Items(), 0
    numbers: dict[tuple[int, str], int] = {}
    for label, folder in enumerate(classes):
        chosen = listing.photos(folder, config.extended, config.dedup)
        twice += len(listing.photos(folder, config.extended, dedup=False)) - len(chosen)
        for items, pairs in ((sketches, listing.pictures["sketch"][folder]), (photos, chosen)):
            for thing, path in pairs:
                items.paths.append(path)
                items.labels.append(label)
                items.instances.append(numbers.setdefault((label, thing), len(numbers)))
    if twice:
        notes.append(f"{twice} photos lie in both the basic and the extended folder, counted once")
    texts = [prompt_name(folder) for folder in classes]
    tree = Tree(root, classes, texts, classes, [], [], sketches, photos, notes, name, "" if own else split.name)
    if need_split:
        tree.seen, tree.validation, tree.unseen = _named_split(root, classes, split, config)
    return tree


def _named_split(
    root: Path, classes: list[str], split: Split, config: DataConfig
) -> tuple[list[str], list[str], list[str]]:
    missing = sorted(set(split.unseen) - set(classes))
    if missing and not config.unseen:
        raise UserError(f"{root}: no pictures for the unseen classes of {split.name}: {', '.join(missing)}")
    unseen, validation = (
        tuple(class_of(split.dataset, name) or name for name in names) for names in (config.unseen, config.validation)
    )
    meta = {"seen": [name for name in split.seen if name in set(classes)], "unseen": list(split.unseen)}
    return _split(root, classes, meta, replace(config, unseen=unseen, validation=validation))


def _load_plain(root: Path, config: DataConfig, need_split: bool) -> Tree:
    if config.split is not None:
        raise UserError(f"--data.split {config.split}: only sketchy, tuberlin and quickdraw have splits with a name")
    parts = [root]
    if not any((root / m).is_dir() for m in MODALITIES):
        parts = [root / part for part in datasets.PARTS if (root / part).is_dir()] or parts
    if config.sketches == "pseudo" and not any(all((p / m).is_dir() for m in MODALITIES) for p in parts):
        return _load_photos(root, config, need_split)
    found: dict[str, dict[str, list[Path]]] = {m: {} for m in MODALITIES}
    parts_of: dict[str, set[str]] = {}  # class -> the parts that hold it
    spelling: dict[str, str] = {}  # wine_glass and "wine glass" are one class, under the name that comes first
    notes: list[str] = []
    for part in parts:
        missing = [m for m in MODALITIES if not (part / m).is_dir()]
        if missing:
            raise UserError(f"{part}: expected sketch/<class>/ and photo/<class>/, but there is no {missing[0]}/")
        for modality in MODALITIES:
            for folder in datasets.class_folders(part / modality):
                files = datasets.files_below(folder)
                if files:
                    name = spelling.setdefault(normal_name(folder.name), folder.name)
                    if name != folder.name:
                        notes.append(f"{folder.relative_to(root)} read as class {name}")
                    found[modality].setdefault(name, []).extend(files)
                    parts_of.setdefault(name, set()).add(part.name)
    sketch_classes, photo_classes = set(found["sketch"]), set(found["photo"])
    classes = sorted(sketch_classes & photo_classes)
    notes += [f"class {name} has no photos, left out" for name in sorted(sketch_classes - photo_classes)]
    notes += [f"class {name} has no sketches, left out" for name in sorted(photo_classes - sketch_classes)]
    if not classes:
        raise UserError(f"{root}: no class has pictures in both sketch/<class>/ and photo/<class>/")

    meta = _read_meta(root)
    instances = _read_instances(root)
    numbers: dict[str, int] = {}
    items = {}
    for modality in MODALITIES:
        items[modality] = Items()
        for label, name in enumerate(classes):
            for path in found[modality][name]:
                # Without instances.csv every picture is a thing of its own.
                instance = instances.get(path.relative_to(root).as_posix(), str(path)) if instances else str(path)
                items[modality].paths.append(path)
                items[modality].labels.append(label)
                items[modality].instances.append(numbers.setdefault(f"{name}/{instance}", len(numbers)))
    texts = [meta.get("classes", {}).get(name, prompt_name(name)) for name in classes]
    tree = Tree(root, classes, texts, classes, [], [], items["sketch"], items["photo"], notes)
    if need_split:
        if len(parts) > 1 and not (config.unseen or meta.get("unseen") or meta.get("seen")):
            meta |= _split_of_parts(root, classes, parts_of)
        tree.seen, tree.validation, tree.unseen = _split(root, classes, meta, config)
    return tree


def _load_photos(root: Path, config: DataConfig, need_split: bool) -> Tree:
    """A folder of photos: each is its own sketch, too."""
    found, notes = pseudo.photos(root)
    classes, meta, items = sorted(found), _read_meta(root), Items()
    for label, name in enumerate(classes):
        for path in found[name]:
            items.paths.append(path)
            items.labels.append(label)
            items.instances.append(len(items.instances))
    texts = [meta.get("classes", {}).get(name, prompt_name(name)) for name in classes]
    tree = Tree(root, classes, texts, classes, [], [], items, items.take(list(range(len(items)))), notes, drawn=False)
    if need_split:
        tree.seen, tree.validation, tree.unseen = _split(root, classes, meta, config)
    return tree


def _split_of_parts(root: Path, classes: list[str], parts_of: dict[str, set[str]]) -> dict[str, list[str]]:
    """Classes in train/ are seen and the others unseen; with a class in both that is no zero-shot split."""
    seen = [name for name in classes if "train" in parts_of[name]]
    both = [name for name in seen if len(parts_of[name]) > 1]
    if both:
        raise UserError(
            f"{root}: classes in train/ and outside it: {', '.join(both)}; name the unseen ones with --data.unseen"
        )
    return {"seen": seen, "unseen": [name for name in classes if name not in set(seen)]}


def _captions(path: Path, tree: Tree) -> list[str]:
    """Words for prompts from lines of ``class<TAB>words``; classes that no line names keep theirs."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot read the captions: {error.strerror}") from None
    known = {normal_name(name): name for name in tree.classes}
    words: dict[str, str] = {}
    for number, raw in enumerate(lines, start=1):
        try:
            line = raw.decode("utf-8-sig").strip("\r ")
        except UnicodeDecodeError:
            raise UserError(f"{path}: line {number} is not UTF-8") from None
        if not line:
            continue
        label, _, text = (part.strip() for part in line.partition("\t"))
        if not text:
            raise UserError(f"{path}: line {number} is not `class<TAB>words`: {line[:60]}")
        # Classes of a known data set that happen not to be there are no mistake.
        name = known.get(normal_name(label)) if tree.dataset == "tree" else class_of(tree.dataset, label)
        name = label if label in known.values() else name
        if name is None:
            raise UserError(f"{path}: line {number}: no class {label}")
        if name in words:
            raise UserError(f"{path}: line {number} names the class {name} again")
        words[name] = " ".join(text.split())
    return [words.get(name, text) for name, text in zip(tree.classes, tree.texts, strict=True)]


def _read_meta(root: Path) -> dict[str, Any]:
    path = root / "dataset.json"
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(meta, dict):
        raise UserError(f"{path}: expected an object with the keys classes, seen, validation, unseen")
    texts = meta.get("classes", {})
    if not isinstance(texts, dict) or not all(isinstance(v, str) for v in texts.values()):
        raise UserError(f"{path}: classes must map folder names to words")
    for key in ("seen", "validation", "unseen"):
        names = meta.get(key, [])
        if not isinstance(names, list) or not all(isinstance(v, str) for v in names):
            raise UserError(f"{path}: {key} must be a list of class names")
    return meta


def _read_instances(root: Path) -> dict[str, str]:
    path = root / "instances.csv"
    if not path.is_file():
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames is None or not {"path", "instance"} <= set(reader.fieldnames):
                raise UserError(f"{path}: expected the columns path,instance")
            rows = [(row["path"], row["instance"]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8: {error}") from None
    for number, (name, instance) in enumerate(rows, start=2):
        if not name or not instance:
            raise UserError(f"{path}: line {number} lacks a path or an instance")
    return dict(rows)


def _split(
    root: Path, classes: list[str], meta: dict[str, Any], config: DataConfig
) -> tuple[list[str], list[str], list[str]]:
    if len(classes) < 2:
        raise UserError(f"{root}: only one class ({classes[0]}): a split into seen and unseen needs at least two")
    if config.split_seed < 0 or not 0 <= config.unseen_fraction < 1:
        raise UserError("data.split_seed must not be negative, and data.unseen_fraction must be between 0 and 1")
    rng = np.random.default_rng(config.split_seed)
    own = {normal_name(name): name for name in classes}

    def spelt(names: Iterable[str]) -> list[str]:
        """As the folders spell them."""
        return [own.get(normal_name(name), name) for name in names]

    unseen = spelt(config.unseen) or spelt(meta.get("unseen", []))
    _known(root, "unseen", unseen, classes)
    # A split that names its seen classes leaves the others out; validation classes are seen ones.
    seen = spelt(meta.get("seen", [])) if not config.unseen else []
    if seen:
        seen = sorted({*seen, *spelt(meta.get("validation", []))})
    _known(root, "seen", seen, classes)
    if not unseen:
        pool = [name for name in classes if name not in set(seen)]
        if not pool:
            raise UserError(f"{root}: dataset.json calls every class seen: none is left to test on")
        count = min(len(classes) - 1, max(1, round(config.unseen_fraction * len(classes)))) if not seen else len(pool)
        unseen = sorted(rng.choice(pool, count, replace=False).tolist())
    overlap = sorted(set(seen) & set(unseen))
    if overlap:
        raise UserError(f"{root}: classes both seen and unseen: {', '.join(overlap)}")
    seen = sorted(seen) or [name for name in classes if name not in set(unseen)]
    validation = spelt(config.validation)
    tested = sorted(set(validation) & set(unseen))
    if tested:
        raise UserError(f"{root}: classes both validation and unseen: {', '.join(tested)}")
    if not validation and config.validation_classes is None:
        validation = [v for v in spelt(meta.get("validation", [])) if v in seen]
    _known(root, "validation", validation, seen)
    if not validation:
        few = 0 if len(seen) < 6 else min(12, len(seen) // 6)
        count = few if config.validation_classes is None else config.validation_classes
        if not 0 <= count < len(seen):
            raise UserError(f"data.validation_classes must be between 0 and {len(seen) - 1}, got {count}")
        validation = sorted(rng.choice(seen, count, replace=False).tolist())
    seen = [name for name in seen if name not in set(validation)]
    if not seen:
        raise UserError(f"{root}: no seen class is left to train on")
    return seen, sorted(validation), sorted(unseen)


def _known(root: Path, what: str, names: list[str], classes: list[str]) -> None:
    strange = sorted(set(names) - set(classes))
    if strange:
        raise UserError(f"{root}: no pictures for the {what} classes {', '.join(strange)}")


# ---- splip data check ----


def check(config: CheckConfig) -> Report:
    """``splip data check``: what a data set holds. Its code is 1 if something is missing or cannot be read."""
    if not config.root.is_dir():
        raise UserError(f"{config.root}: no such folder")
    report = Report(root=str(config.root), dataset=config.dataset)
    paths, complete = (_check_plain if config.dataset == "tree" else _check_named)(config, report)
    if config.decode:
        skipped = cache.Pictures(paths, 8, memory_gb=math.inf, label="Decoding").skipped
        for error in skipped:
            print(f"  unreadable: {shown(error.path)}: {error.reason}")
        print(f"  unreadable pictures: {len(skipped)} of {len(paths)}")
        report["unreadable"] = [{"path": str(error.path), "reason": error.reason} for error in skipped]
        complete = complete and not skipped
    report["complete"] = complete
    report.code = 0 if complete else 1
    return report


def _check_plain(config: CheckConfig, report: Report) -> tuple[list[Path], bool]:
    tree = load_tree(config.root, DataConfig(split=config.split), need_split=False)
    print(f"{config.root}: {len(tree.classes)} classes, {len(tree.sketches)} sketches, {len(tree.photos)} photos")
    for kind, items in (("sketches", tree.sketches), ("photos", tree.photos)):
        counts = Counter(items.labels).values()
        print(f"  {kind} per class: {min(counts)} to {max(counts)}; {len(set(items.instances))} instances")
    paired = set(tree.sketches.instances) & set(tree.photos.instances)
    report |= {"classes": len(tree.classes), "sketches": len(tree.sketches), "photos": len(tree.photos)}
    report["paired_instances"] = len(paired)
    print(f"  instances with sketches and photos: {len(paired)}")
    if len(tree.classes) > 1:
        tree = load_tree(config.root, DataConfig())
        report |= {"seen": tree.seen, "validation": tree.validation, "unseen": tree.unseen}
        for kind, names in (("seen", tree.seen), ("validation", tree.validation), ("unseen", tree.unseen)):
            print(f"  {kind} ({len(names)}): {', '.join(names)}")
    else:
        print("  only one class: nothing to split")
    report["notes"] = list(tree.notes)
    for note in tree.notes:
        print(f"  note: {note}")
    return tree.sketches.paths + tree.photos.paths, True


def _check_named(config: CheckConfig, report: Report) -> tuple[list[Path], bool]:
    """What is there beside what was published; unlike load_tree it bears with missing classes."""
    split, facts = find_split(config.dataset, config.split), dataset_facts(config.dataset)
    extended = config.extended or config.dataset != "sketchy"
    listing = datasets.read(config.root, config.dataset, split, extended)
    there = set(listing.classes)

    def photos(names: Iterable[str], extended: bool = extended, dedup: bool = True) -> int:
        return sum(len(listing.photos(name, extended, dedup)) for name in names)

    sketches = {name: listing.pictures["sketch"].get(name, []) for name in facts["classes"]}
    queries, basic = sum(len(sketches[name]) for name in split.unseen), facts.get("basic_per_class", 0)
    rows: list[tuple[str, int, int | None]] = [
        ("classes", len(there), len(facts["classes"])),
        ("seen classes", len(there & {*split.seen}), len(split.seen)),
        ("unseen classes", len(there & {*split.unseen}), len(split.unseen)),
        ("sketches", sum(map(len, sketches.values())), None),
        ("photos", photos(facts["classes"]), facts.get("photos") if extended else basic * len(sketches)),
        ("queries: sketches of unseen classes", queries, split.expected.get("queries")),
    ]
    if extended:
        rows.append(("gallery: photos of unseen classes", photos(split.unseen), split.expected.get("gallery")))
        if listing.pictures.get("extended") and listing.pictures["photo"]:
            found = photos(split.unseen, dedup=False)
            rows.append(("gallery with duplicates", found, split.expected.get("gallery_with_duplicates")))
    if config.dataset == "sketchy":
        things = {(name, thing) for name in split.unseen for thing, _ in listing.photos(name, extended=False)}
        paired = sum((name, thing) in things for name in split.unseen for thing, _ in sketches[name])
        rows.append(("fine-grained: basic photos", len(things), basic * len(split.unseen)))
        rows.append(("fine-grained: sketches of those", paired, split.expected.get("queries")))

    report |= {"split": split.name, "layout": listing.layout, "notes": list(listing.notes)}
    report["counts"] = [{"what": what, "found": found, "expected": expected} for what, found, expected in rows]
    report["absent"] = [str(path) for path in listing.absent]
    print(f"{config.root}: {config.dataset}, split {split.name}: {split.source}")
    print(f"  layout: {listing.layout}")
    print(f"  {'':36} {'found':>9} {'expected':>9}")
    complete = not listing.absent
    for what, found, expected in rows:
        short = 0 if expected is None else expected - found
        verdict = f"  {short} missing" if short > 0 else f"  {-short} more" if short < 0 else ""
        print(f"  {what:36} {found:9,} {'-' if expected is None else format(expected, ','):>9}{verdict}")
        complete = complete and short <= 0
    for note in listing.notes:
        print(f"  note: {note}")
    for path in listing.absent[:SHOWN]:
        print(f"  not there: {path}")
    if len(listing.absent) > SHOWN:
        print(f"  not there: {len(listing.absent) - SHOWN} more")
    kinds = [kind.values() for kind in listing.pictures.values()]
    return [path for classes in kinds for pairs in classes for _, path in pairs], complete
