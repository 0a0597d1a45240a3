"""Readers of Sketchy, TU-Berlin and QuickDraw in the layouts in which they are passed around.

Pictures come from class folders: the downloads' own, those of SAKE and ZSE-SBIR (``*_ready``), plain
trees ``{sketch,photo}/<class>/*`` and ``{train,val}/{sketch,photo}/<class>/*``. Where list files in
``zeroshot*/`` describe the split in use, they say which of the pictures count.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from splip.data.splits import Split, class_of, dataset_facts
from splip.errors import UserError
from splip.images.decode import SUFFIXES

# Sketchy's rendering without shift or scaling; the other transforms show the same drawings again.
TRANSFORM = "tx_000000000000"
PARTS = ("train", "val", "test")  # of trees that keep training and test classes apart


def _sketchy(kind: str) -> tuple[str, ...]:
    places = ("256x256/", "rendered_256x256/256x256/", "")
    return tuple(f"{place}{kind}/{TRANSFORM}{ready}" for place in places for ready in ("_ready", ""))


# Where each kind of picture may lie below the data set's folder; the first that exists counts.
# "photo" are Sketchy's 12,500 that were drawn from, "extended" is the folder that adds 60,502 to them.
FOLDERS = {
    "sketchy": {
        "sketch": (*_sketchy("sketch"), "sketch", "sketches"),
        "photo": (*_sketchy("photo"), "photo", "photos"),
        "extended": ("EXTEND_image_sketchy_ready", "EXTEND_image_sketchy", "extended_photo")
        + ("256x256/EXTEND_image_sketchy_ready", "256x256/EXTEND_image_sketchy"),
    },
    "tuberlin": {
        "sketch": ("png_ready", "png", "sketches", "sketch"),
        "photo": ("ImageResized_ready", "ImageResized", "images", "photos", "photo"),
    },
    "quickdraw": {
        "sketch": ("sketches", "QuickDraw_sketches_final", "sketch"),
        "photo": ("images", "QuickDraw_images_final", "photos", "photo"),
    },
}

# List files beside the folders; those of held-out seen sketches (_test, _val) are not read.
LISTS = {
    "sketch": re.compile(r"(sketch|png).*_(train|zero)\.txt"),
    "photo": re.compile(r"(all_photo|photo|ImageResized|image).*_(train|zero)\.txt"),
}

# A basic photo that the extended folder holds under another name: without this it would count twice.
RENAMED = {("camel", "c"): "n02437136_5405"}


@dataclass
class Listing:
    """What a folder holds of a data set: kind of picture -> class -> (what it shows, file), sorted."""

    layout: str  # which folders and lists were used
    pictures: dict[str, dict[str, list[tuple[str, Path]]]]
    absent: list[str] = field(default_factory=list)  # listed but not there
    notes: list[str] = field(default_factory=list)

    def photos(self, name: str, extended: bool = True, dedup: bool = True) -> list[tuple[str, Path]]:
        """A class's photos: the basic ones and, if ``extended``, those that were added to them.

        With ``dedup`` a thing counts once; the basic folder's file stays, since sketches pair with it.
        """
        basic, more = (self.pictures.get(kind, {}).get(name, []) for kind in ("photo", "extended"))
        photos = basic + more
        if not extended:
            photos = [(thing, path) for thing, path in basic or more if not thing.startswith("ext_")]
        once: dict[str, tuple[str, Path]] = {}
        for thing, path in photos:
            once.setdefault(thing, (thing, path))
        return list(once.values()) if dedup else photos

    @property
    def classes(self) -> list[str]:
        """Classes with pictures of both modalities, sorted."""
        return [name for name in self.pictures["sketch"] if self.photos(name)]


def files_below(folder: Path) -> list[Path]:
    """All pictures below a folder, sorted. One system call a folder: data sets hold 500,000 files."""
    found, flat = [], True
    for where, folders, names in os.walk(folder, onerror=_fail):
        kept = (n for n in names if not n.startswith(".") and os.path.splitext(n)[1].lower() in SUFFIXES)
        found += [Path(where, name) for name in sorted(kept)]
        flat = flat and not folders
    return found if flat else sorted(found)


def _fail(error: OSError) -> NoReturn:
    raise error


def class_folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def read(root: Path, dataset: str, split: Split | None, extended: bool = True) -> Listing:
    """List a data set below its own folder or the parent of that.

    Args:
        dataset: sketchy, tuberlin or quickdraw.
        split: use the list files that describe it, if there are any; None: count all pictures.
        extended: False: do not ask for Sketchy's extended photos where the basic ones have their own folder.

    Raises:
        UserError: no layout that is known, or a list file that cannot be read.
    """
    base, folders = _find(root, dataset)
    if not extended and folders["photo"]:
        folders.pop("extended", None)
    listing = Listing("", {})
    files: dict[str, dict[str, list[Path]]] = {kind: {} for kind in folders}
    mapped: set[tuple[str, str | None]] = set()
    for kind, places in folders.items():
        for place in places:
            for folder in class_folders(place):
                if folder.name.startswith("tx_"):
                    raise UserError(f"{place}: no {TRANSFORM} among the renderings, only such as {folder.name}")
                name = class_of(dataset, folder.name)
                mapped.add((folder.name, name))
                if name is not None:
                    files[kind].setdefault(name, []).extend(files_below(folder))
    for strange in sorted(folder for folder, name in mapped if name is None):
        listing.notes.append(f"folder {strange} is no class of {dataset}, left out")
    for folder_name, name in sorted((f, n) for f, n in mapped if n is not None and f != n):
        listing.notes.append(f"folder {folder_name} is the class {name}")

    words = ", ".join(place.relative_to(root).as_posix() for places in folders.values() for place in places)
    lists = _lists_of(base, split, dataset) if split else None
    if lists is not None:
        words += f"; pictures as listed in {lists.relative_to(root).as_posix()}"
        _keep_listed(files, lists, dataset, listing.absent)
    elif any(base.glob("zeroshot*/*_zero.txt")):
        listing.notes.append("the lists in zeroshot* describe other splits: every picture in the folders counts")
    listing.layout = words
    if listing.absent:
        count = f"{len(listing.absent)} listed pictures are" if len(listing.absent) > 1 else "1 listed picture is"
        listing.notes.append(f"{count} not there, left out, e.g. {listing.absent[0]}")

    for kind, classes in files.items():
        listing.pictures[kind] = {
            name: [(_thing(dataset, kind, name, path), path) for path in paths]
            for name, paths in sorted(classes.items())
            if paths
        }
    _note_classes(listing, dataset)
    more = (
        thing
        for kind in ("photo", "extended")
        for pairs in listing.pictures.get(kind, {}).values()
        for thing, _ in pairs
    )
    if dataset == "sketchy" and extended and not any(thing.startswith("ext_") for thing in more):
        listing.notes.append("no extended photos: the gallery holds the basic ones only")
    return listing


def _thing(dataset: str, kind: str, name: str, path: Path) -> str:
    """What a picture shows: in Sketchy the photo's stem, which its sketches carry before ``-<number>``."""
    if dataset != "sketchy":
        return str(path)
    stem = path.stem
    return stem.rsplit("-", 1)[0] if kind == "sketch" else RENAMED.get((name, stem), stem)


def _note_classes(listing: Listing, dataset: str) -> None:
    classes = dataset_facts(dataset)["classes"]
    without = {
        "sketches": [name for name in classes if name not in listing.pictures["sketch"]],
        "photos": [name for name in classes if not listing.photos(name)],
    }
    for what, names in without.items():
        if names:
            listing.notes.append(f"no {what} of the classes {', '.join(names)}, left out")


# ---- folders ----


def _bases(root: Path, dataset: str) -> Iterator[Path]:
    """The folder itself, and what is named like the data set one or two levels below."""
    yield root
    level = [root]
    for _ in range(2):
        level = [
            child
            for parent in level
            for child in class_folders(parent)
            if re.sub("[^a-z]", "", child.name.lower()).startswith(dataset)
        ]
        yield from level


def _find(root: Path, dataset: str) -> tuple[Path, dict[str, list[Path]]]:
    """The data set's folder, and the folders of classes for each kind of picture."""
    names = FOLDERS[dataset]
    lacking = "sketches", names["sketch"]
    for base in _bases(root, dataset):
        for parts in ([base], [base / part for part in PARTS]):
            folders = {kind: [p for part in parts if (p := _first(part, names[kind]))] for kind in names}
            if folders["sketch"] and not any(folders[kind] for kind in names if kind != "sketch"):
                lacking = "photos", names["photo"] + names.get("extended", ())
            elif folders["sketch"]:
                # The extended photos are a download of their own, often unpacked beside the rest.
                if "extended" in names and not folders["extended"] and (beside := _first(root, names["extended"])):
                    folders["extended"] = [beside]
                return base, folders
    what, places = lacking
    raise UserError(f"{root}: no {what} of {dataset}; looked here and below {dataset}*/ for {', '.join(places)}")


def _first(base: Path, names: tuple[str, ...]) -> Path | None:
    return next((base / name for name in names if (base / name).is_dir()), None)


# ---- list files ----


def _read_list(path: Path) -> list[str]:
    """Pictures of a list file, one ``<path> <id>`` a line; paths hold spaces, ids restart in every file."""
    listed = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    for number, line in enumerate(lines, start=1):
        picture, _, label = line.rstrip().rpartition(" ")
        if not line.strip():
            continue
        if "/" not in picture or not label.isdigit():
            raise UserError(f"{path}: line {number} is not `<path> <id>`: {line[:60]}")
        listed.append(picture)
    return listed


def _list_files(folder: Path, kind: str, end: str = "") -> list[Path]:
    names = [p for p in sorted(folder.glob(f"*{end}.txt")) if LISTS[kind].fullmatch(p.name)]
    return [p for p in names if "tx_" not in p.name or TRANSFORM in p.name]


def _lists_of(base: Path, split: Split, dataset: str) -> Path | None:
    """The ``zeroshot*`` folder whose test sketches are of the split's unseen classes, whatever its number."""
    for folder in sorted(base.glob("zeroshot*")):
        listed = [line for path in _list_files(folder, "sketch", "_zero") for line in _read_list(path)]
        if {class_of(dataset, line.split("/")[-2]) for line in listed} == set(split.unseen):
            return folder
    return None


def _keep_listed(files: dict[str, dict[str, list[Path]]], lists: Path, dataset: str, absent: list[str]) -> None:
    """Drop the pictures that no list names, of those classes that the lists speak of."""
    for modality in LISTS:
        wanted: dict[tuple[str, str], dict[str, str]] = {}
        for path in _list_files(lists, modality):
            for line in _read_list(path):
                *folders, name, file = line.split("/")
                more = dataset == "sketchy" and any(f.lower().startswith("extend") for f in folders)
                kind = "extended" if more else modality
                known = class_of(dataset, name)
                if known is None:
                    raise UserError(f"{path}: {name} is no class of {dataset}: {line}")
                wanted.setdefault((kind, known), {})[file] = line
        for (kind, known), lines in wanted.items():
            if kind in files:
                paths = files[kind].get(known, [])
                there = {path.name for path in paths}
                absent += [line for file, line in lines.items() if file not in there]
                files[kind][known] = [path for path in paths if path.name in lines]
