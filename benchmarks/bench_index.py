"""Galleries: pictures a second against the engine alone, and the time and memory that opening a large one takes.

    OMP_WAIT_POLICY=passive python benchmarks/bench_index.py --save my-machine
    OMP_WAIT_POLICY=passive python benchmarks/bench_index.py --models exported --engine openvino --save openvino

Indexing: `--pictures` made-up JPEGs of 256 x 256 go through `Gallery.add` into a new gallery. Beside it the engine's own
rate: the same batches, prepared before, one encode after the other; both turn by turn, `--repeats` times, medians.
Models: splip-tiny and ViT-B-32 with random weights, or checkpoints and export folders by their paths.
Photographs: `--photographs` made-up JPEGs and `--heics` HEICs of 12 megapixels with EXIF, as cameras write them: reading, decoding
(one thread and several) and encoding alone, and all of it together, turn by turn (made_photographs.py).
Opening: a gallery of `--rows` made-up vectors of width 512, in a process of its own that imports everything first;
then the first search. Memory: what the process gained, apart by its own (anonymous) and mapped files.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_photographs
import numpy as np
import torch
from harness import RESULTS, machine
from PIL import Image

from splip.encoders.encoder import Encoder
from splip.gallery.gallery import Gallery
from splip.models import build
from splip.models.config import BackboneConfig, TrainConfig

BLOCK = 65_536  # vectors that are made and committed at a time
CLASSES = 1000


def checkpoint(backbone: str, folder: Path) -> Path:
    """A checkpoint of random weights; an existing path is taken as it is."""
    if Path(backbone).exists():
        return Path(backbone)
    torch.manual_seed(0)
    model = build(TrainConfig(backbone=BackboneConfig(name=backbone)), ["horse", "dog"])
    path = folder / f"{backbone}.pt"
    torch.save(model.checkpoint(), path)
    return path


def make_pictures(folder: Path, count: int) -> list[Path]:
    """JPEGs of 256 x 256 with the statistics of photos: smooth noise, about 15 kB each."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{n // 1000:03d}" / f"{n:06d}.jpg" for n in range(count)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        grain = rng.integers(-6, 7, (256, 256, 1), dtype=np.int16)
        smooth = np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC), dtype=np.int16)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(path, quality=85)
    return paths


def fill(folder: Path, rows: int, dim: int, model: Path, encoder: Any) -> None:
    """A gallery of made-up vectors, written through the storage: noise around a direction for each class."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLASSES, dim), dtype=np.float32)
    with Gallery.create(folder, model, encoder=encoder) as gallery:
        for first in range(0, rows, BLOCK):
            labels = rng.integers(0, CLASSES, min(BLOCK, rows - first))
            vectors = 0.4 * centres[labels] + rng.standard_normal((len(labels), dim), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            with gallery.catalog.writing() as db:
                places = gallery.append(db, vectors)
                db.executemany(
                    "INSERT INTO items (path, label, size, mtime_ns, hash, segment, row) VALUES (?, ?, 0, 0, ?, ?, ?)",
                    [
                        (f"/photos/{label:03d}/{n:08d}.jpg".encode(), f"class {label}", n.to_bytes(16, "big"), *place)
                        for n, (label, place) in enumerate(zip(labels.tolist(), places, strict=True), first)
                    ],
                )
        gallery.write_packs()


# ---- indexing ----


def indexing(model: Path, engine: str, pictures: list[Path], batch: int, repeats: int, place: Path) -> dict[str, Any]:
    encoder = Encoder.load(model, engine)
    loaded = [encoder.prepare(Image.open(path).convert("RGB"), "photo") for path in pictures[: 8 * batch]]
    batches = [np.stack(loaded[i : i + batch]) for i in range(0, len(loaded) - batch + 1, batch)] or [np.stack(loaded)]
    encoder.encode(batches[0], "photo")
    alone, added, busy = [], [], []
    for _ in range(repeats):
        began, done = time.perf_counter(), 0
        while done < len(pictures):
            pixels = batches[done // batch % len(batches)]
            encoder.encode(pixels, "photo")
            done += len(pixels)
        alone.append(done / (time.perf_counter() - began))
        shutil.rmtree(place / "gallery", ignore_errors=True)
        with Gallery.create(place / "gallery", model, encoder=encoder) as gallery:
            report = gallery.add(pictures, batch_size=batch)
        assert report.new == len(pictures), report
        added.append(len(pictures) / report.seconds)
        busy.append(report.encode_seconds / report.seconds)
        with Gallery.open(place / "gallery", write=True, encoder=encoder) as gallery:
            again = gallery.add(pictures, batch_size=batch)
    return {
        "case": "add",
        "model": encoder.name,
        "engine": encoder.engine,
        "precision": encoder.precision,
        "pictures": len(pictures),
        "batch": batch,
        "pictures_per_s": statistics.median(added),
        "engine_alone_per_s": statistics.median(alone),
        "share": statistics.median(added) / statistics.median(alone),
        "encoder_busy": statistics.median(busy),
        "unchanged_per_s": len(pictures) / again.seconds,
        "runs": {"added": added, "alone": alone},
    }


# ---- opening ----


def memory() -> dict[str, float]:
    """Resident memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "RssAnon", "RssFile")))
    return {name: int(value.split()[0]) / 1024 for name, value in facts.items()}


def open_alone(folder: str, searches: int) -> None:
    """In a process of its own: open, search, and print what that took."""
    query = np.random.default_rng(1).standard_normal((1, 512), dtype=np.float32)
    with tempfile.TemporaryDirectory() as place:  # load code and start threads before anything is measured
        fill(Path(place) / "small", 1000, 512, Path(place) / "none", stub())
        with Gallery.open(Path(place) / "small", device="cpu") as gallery:
            gallery.search_vectors(query)
    before, began = memory(), time.perf_counter()
    opened = Gallery.open(folder, device="cpu")
    opened_s, after_open = time.perf_counter() - began, memory()
    began = time.perf_counter()
    opened.search_vectors(query)
    first_s, after_first = time.perf_counter() - began, memory()
    times = []
    for _ in range(searches):
        began = time.perf_counter()
        opened.search_vectors(query)
        times.append(time.perf_counter() - began)
    gained = {"open": after_open, "first_search": after_first, "searches": memory()}
    report = {
        "rows": len(opened),
        "open_s": opened_s,
        "first_search_s": first_s,
        "search_ms": 1000 * statistics.median(times),
        "gained_MB": {when: {name: now[name] - before[name] for name in before} for when, now in gained.items()},
    }
    print(json.dumps(report))


def stub() -> Any:
    """What a gallery wants to know of an encoder that nobody asks to encode."""
    return SimpleNamespace(embed_dim=512, identity="made up", name="made up", close=lambda: None)


def opening(rows: int, place: Path) -> dict[str, Any]:
    began = time.perf_counter()
    fill(place / "large", rows, 512, place / "none", stub())
    filled = time.perf_counter() - began
    code = f"import bench_index; bench_index.open_alone({str(place / 'large')!r}, 20)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    size = sum(path.stat().st_size for path in (place / "large").rglob("*") if path.is_file())
    return {"case": "open", "dim": 512, "fill_s": filled, "disk_MB": size / 1e6, **json.loads(done.stdout)}


def of_photographs(args: argparse.Namespace, place: Path) -> list[dict[str, Any]]:
    rows = []
    for form, count in (("JPEG", args.photographs), ("HEIF", args.heics)):
        paths = made_photographs.make(place / form, form, count) if count else []
        for model in args.models if count else ():
            source = checkpoint(model, place)
            row = made_photographs.measure(source, args.engine, paths, args.batch, args.repeats, place, args.threads)
            print(made_photographs.told(row), flush=True)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["splip-tiny", "ViT-B-32"], help="architectures or paths")
    parser.add_argument("--engine", default="auto", help="see splip.engines (default: auto)")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--photographs", type=int, default=64, help="JPEGs of 12 megapixels; 0: none")
    parser.add_argument("--heics", type=int, default=16, help="HEICs of 12 megapixels; 0: none")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="that decode photographs")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the gallery that is opened; 0: none")
    parser.add_argument("--folder", type=Path, help="where pictures and galleries are made (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="a few of everything, to try the script")
    parser.add_argument("--save", metavar="TAG", help="write results/index-TAG.json")
    args = parser.parse_args()
    if args.quick:
        args.pictures, args.repeats, args.rows = min(args.pictures, 200), 1, min(args.rows, 40_000)
        args.photographs, args.heics = min(args.photographs, 8), min(args.heics, 2)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        place = Path(temporary)
        rows += of_photographs(args, place)
        pictures = make_pictures(place / "pictures", args.pictures)
        for model in args.models if args.pictures else ():
            # A slow model would take hours for all pictures and learn nothing from it.
            some = pictures if model == "splip-tiny" else pictures[: max(1000, args.pictures // 10)]
            row = indexing(checkpoint(model, place), args.engine, some, args.batch, args.repeats, place)
            print(
                f"{row['model']}, {row['engine']} {row['precision']}: {row['pictures_per_s']:.0f} pictures/s,", end=" "
            )
            print(f"{row['share']:.0%} of the engine's own {row['engine_alone_per_s']:.0f}/s; ", end="")
            print(
                f"the encoder was busy {row['encoder_busy']:.0%}; unchanged {row['unchanged_per_s']:.0f}/s", flush=True
            )
            rows.append(row)
        if args.rows:
            row = opening(args.rows, place)
            anon, mapped = row["gained_MB"]["searches"]["RssAnon"], row["gained_MB"]["searches"]["RssFile"]
            print(f"{row['rows']:,} x {row['dim']} ({row['disk_MB']:.0f} MB): open {row['open_s']:.3f} s,", end=" ")
            print(f"first search {row['first_search_s']:.3f} s, then {row['search_ms']:.1f} ms;", end=" ")
            print(f"memory: {anon:.0f} MB of its own, {mapped:.0f} MB mapped")
            rows.append(row)
    if args.save:
        path = RESULTS / f"index-{args.save}.json"
        report = {"benchmark": "index", "machine": machine("cpu"), "rows": rows}
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
