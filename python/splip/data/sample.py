"""The sample data set: sprite sheets in the package, unpacked to a plain tree.

Sketches are line drawings by one designer (clean, warped, warped with strokes dropped), photos are
colour pictures of the same things by three other designers. ``sample_data/LICENSES.md`` credits them.
"""

import csv
import json
import shutil
from pathlib import Path

from PIL import Image

from splip.data.config import SampleConfig
from splip.errors import UserError
from splip.progress import track

FOLDER = Path(__file__).parents[1] / "sample_data"
NAME = "emoji-sketch-64"
SIDE = 64
COLUMNS = 32
SHEETS = {
    "sketch": {"1": "sketch.png", "2": "sketch_w1.png", "3": "sketch_w2.png"},
    "photo": {"noto": "noto.webp", "twemoji": "twemoji.webp", "fluent": "fluent.webp"},
}
# Seen classes that choose the checkpoint, one or two of every kind of thing.
VALIDATION = ["ball", "bag", "bird", "car", "cow", "crab", "cup", "dog", "fruit", "lamp", "lock", "airplane"]


def things() -> list[dict[str, str]]:
    """The rows of index.csv in the order of the tiles: codepoint, name, class, split, dup_group."""
    with open(FOLDER / "index.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def unpack(config: SampleConfig) -> None:
    """``splip data sample``: write the tree; running it again changes nothing."""
    if config.out.exists() and not config.out.is_dir():
        raise UserError(f"{config.out}: exists and is not a folder")
    rows = things()
    classes = json.loads((FOLDER / "classes.json").read_text(encoding="utf-8"))
    meta = json.dumps({"name": NAME, **classes, "validation": sorted(VALIDATION)}, indent=1) + "\n"
    marker = config.out / "dataset.json"
    ours = marker.is_file() and marker.read_bytes() == meta.encode()
    if config.out.is_dir() and any(config.out.iterdir()) and not ours:
        raise UserError(f"{config.out}: is not empty and does not hold the sample; choose another folder")
    config.out.mkdir(parents=True, exist_ok=True)
    marker.write_text(meta, encoding="utf-8")  # first, so that an unpacking that was stopped can be done again
    instances = []
    jobs = [(modality, tag, name) for modality, sheets in SHEETS.items() for tag, name in sheets.items()]
    for modality, tag, name in track(jobs, "Unpacking"):
        with Image.open(FOLDER / name) as sheet:
            pixels = sheet.convert("L" if modality == "sketch" else "RGB")
        for i, row in enumerate(rows):
            left, top = i % COLUMNS * SIDE, i // COLUMNS * SIDE
            path = Path(modality, row["class"], f"{row['codepoint']}-{tag}.png")
            (config.out / path).parent.mkdir(parents=True, exist_ok=True)
            pixels.crop((left, top, left + SIDE, top + SIDE)).save(config.out / path)
            instances.append((path.as_posix(), row["dup_group"] or row["codepoint"]))
    with open(config.out / "instances.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "instance"])
        writer.writerows(sorted(instances))
    shutil.copy(FOLDER / "LICENSES.md", config.out / "LICENSES.md")
    shutil.copytree(FOLDER / "licenses", config.out / "licenses", dirs_exist_ok=True)
    different = len({instance for _, instance in instances})
    print(f"{config.out}: {len(instances)} pictures of {different} things in {len(classes['classes'])} classes")
