"""How fast words become a vector: every engine in one run, taking turns, each beside its error.

    OMP_WAIT_POLICY=passive python benchmarks/bench_text.py --save cpu

Random weights; texts of two to eight words, all different, tokenised within the time. `open_clip` is the plain tower as
users run it, on 77 tokens a text; `training code` is the prompted tower; the others have what comes before the words
folded into constants. Error: the largest difference of a feature from the training code's.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from bench_encoder import make_checkpoint, spread
from harness import RESULTS, machine

from splip.encoders import manifest
from splip.encoders.encoder import Encoder
from splip.encoders.text import TextTower
from splip.export import command
from splip.export.config import ExportConfig
from splip.models import load_model

COUNTS = (1, 8, 32)
WORDS = ["old", "small", "red", "horse", "dog", "house", "in", "under", "the", "tree", "street", "water", "sky", "with"]


def texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(count)]


def measure(args: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    checkpoint, folder = work / "best.pt", work / "exported"
    make_checkpoint(args.backbone, checkpoint, None)
    if command.export(ExportConfig(checkpoint, folder, onnx=True, openvino=True, text=True)) != 0:
        raise SystemExit(f"{folder}: the export failed its verification")
    model = load_model(checkpoint)
    plain = model.backbone.clip
    tokenizer = open_clip.get_tokenizer(args.backbone)

    def open_clip_text(some: list[str]) -> np.ndarray:
        with torch.inference_mode():
            return F.normalize(plain.encode_text(tokenizer(some)), dim=-1).numpy()

    encoders: dict[str, Callable[[list[str]], np.ndarray]] = {
        "open_clip": open_clip_text,
        "training code": lambda some: model.encode_text(some).numpy(),
        "torch": Encoder.load(checkpoint, device="cpu").encode_text,
    }
    about = manifest.read(folder)
    assert about.text is not None
    for engine in ("onnxruntime", "openvino"):
        tower = TextTower(folder, about, about.text, engine)
        encoders[engine] = lambda some, tower=tower: tower.encode_text(some, "photo")
    probe = texts(64, 0)
    wanted = model.encode_text(probe).numpy()
    times: dict[tuple[str, int], list[float]] = {}
    for round_ in range(args.repeats + 1):  # the first warms up
        for count in COUNTS:
            some = texts(count, 1 + round_)
            for name, encode in encoders.items():
                began = time.perf_counter()
                encode(some)
                if round_:
                    times.setdefault((name, count), []).append(1e3 * (time.perf_counter() - began))
    rows = []
    base = {str(count): statistics.median(times["open_clip", count]) for count in COUNTS}
    for name, encode in encoders.items():
        ms = {str(count): spread(times[name, count]) for count in COUNTS}
        row = {"engine": name, "ms": ms, "speedup": {c: base[c] / ms[c]["median"] for c in ms}}
        # The plain tower computes something else.
        row["max_difference"] = None if name == "open_clip" else float(np.abs(encode(probe) - wanted).max())
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="ViT-B-32", help="open_clip architecture (default: ViT-B-32)")
    parser.add_argument("--repeats", type=int, default=20, help="rounds (default: 20)")
    parser.add_argument("--save", metavar="TAG", help="write results/text-TAG.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        rows = measure(args, Path(work))
    for row in rows:
        ms = "  ".join(
            f"{m['median']:8.1f} ({m['p10']:.1f}-{m['p90']:.1f}) {row['speedup'][c]:5.2f}x"
            for c, m in row["ms"].items()
        )
        print(f"{row['engine']:14}{ms}  {row['max_difference'] or 0:.1e}")
    if args.save:
        path = RESULTS / f"text-{args.save}.json"
        about = {"benchmark": "text", "backbone": args.backbone, "machine": machine("cpu"), "rows": rows}
        path.write_text(json.dumps(about, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
