"""Do explanations point at what matters, and what do they cost.

    splip data sample --out sample
    python benchmarks/bench_explain.py --sample sample    # three minutes on two cores

A drawing and a photo of the same thing, of each validation class. The photo's cells are taken away in the order of an
explanation, the strongest first (deletion: the score should fall at once), and put into an empty picture in the same order
(insertion: it should rise at once). Each is the mean score over all steps; the larger the difference, the better the order.
``parts`` of a model whose stem mixes patches are not what splip shows: they are here to say why. A plain Vision Transformer
that was trained (--plain) shows what they are worth where they are shown.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np

PAIRS = 5  # of each class


def masked(pixels: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The picture with some of its cells ``[n, P]`` on white."""
    side = round(there.shape[1] ** 0.5)
    cell = len(pixels) // side
    shown = np.kron(there.reshape(-1, side, side), np.ones((1, cell, cell), bool))[..., None]
    return np.where(shown, pixels, 255).astype(np.uint8)


def curves(score: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray, heat: np.ndarray) -> tuple[float, float]:
    """Mean scores while cells go, and while they come, the strongest first."""
    order, n = np.argsort(-heat.ravel(), kind="stable"), heat.size
    gone = np.ones((n + 1, n), bool)
    for step, cell in enumerate(order):
        gone[step + 1 :, cell] = False
    return float(score(masked(pixels, gone)).mean()), float(score(masked(pixels, ~gone)).mean())


def faithful(name: str, sample: Path) -> dict[str, Any]:
    import torch

    from splip import images
    from splip.encoders import Encoder
    from splip.encoders.explain import PartsEncoder
    from splip.encoders.explanation import by_removal, share

    encoder = Encoder.load(name, device="cpu")
    parts = PartsEncoder(encoder._runner._plain["photo"])  # type: ignore[union-attr]  # also where splip does not show them
    random, found = np.random.default_rng(0), {}  # type: ignore[var-annotated]
    for label in json.loads((sample / "dataset.json").read_text(encoding="utf-8"))["validation"]:
        for drawing in sorted((sample / "sketch" / label).glob("*-1.png"))[:PAIRS]:
            photo = sample / "photo" / label / drawing.name.replace("-1.png", "-noto.png")
            sketch = encoder.prepare(images.read(drawing), "sketch")
            pixels = np.ascontiguousarray(encoder.prepare(images.read(photo), "photo"))
            asked = encoder.encode(sketch[None], "sketch")[0]

            def score(batch: np.ndarray, asked: np.ndarray = asked) -> np.ndarray:
                made: np.ndarray = encoder.encode(batch, "photo") @ asked
                return made

            removal = by_removal(lambda batch: encoder.encode(batch, "photo"), pixels, asked)
            grey, side = pixels.min(axis=2) < 245, len(removal.patches)
            cell = len(pixels) // side
            with torch.inference_mode():
                sums = share(parts(torch.from_numpy(pixels[None].copy()))[0].numpy(), asked)
            maps = {
                "at random": random.random((side, side)),
                "where there is ink": grey.reshape(side, cell, side, cell).mean(axis=(1, 3)),
                "parts": sums.patches,
                "removal": removal.patches,
            }
            for kind, heat in maps.items():
                found.setdefault(kind, []).append(curves(score, pixels, heat))
    rows = {kind: np.array(values).mean(axis=0) for kind, values in found.items()}
    pairs = len(next(iter(found.values())))
    table = {k: {"deletion": round(float(d), 3), "insertion": round(float(i), 3)} for k, (d, i) in rows.items()}
    return {"pairs": pairs, "shown": encoder.explains_by, "orders": table}


def cost(repeats: int) -> dict[str, Any]:
    """Processor time of one photo, ViT-B/32 with random weights on two threads, beside encoding it; they take turns."""
    from splip.encoders import Encoder

    encoder = Encoder.load("open_clip:ViT-B-32/random", device="cpu", threads=2)
    pixels = np.random.default_rng(0).integers(0, 255, (encoder.image_size, encoder.image_size, 3)).astype(np.uint8)
    towards = encoder.encode(pixels[None], "sketch")[0]
    work = {
        "encode": lambda: encoder.encode(pixels[None], "photo"),
        "explain": lambda: encoder.explain_towards(towards, pixels),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    wall: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, run in work.items():
            began, start = time.process_time(), time.perf_counter()
            run()
            wall[name].append(1000 * (time.perf_counter() - start))
            times[name].append(1000 * (time.process_time() - began))
    settled = {name: values[2:] for name, values in times.items()}
    return {
        "threads": 2,
        "cpu_ms": {name: round(statistics.median(values), 1) for name, values in settled.items()},
        "least_cpu_ms": {name: round(min(values), 1) for name, values in settled.items()},
        "wall_ms": {name: round(statistics.median(values[2:]), 1) for name, values in wall.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, required=True)
    parser.add_argument("--plain", type=Path, help="a checkpoint of a plain Vision Transformer of 64 pixels")
    parser.add_argument("--repeats", type=int, default=22)
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "explain.json")
    args = parser.parse_args()
    document: dict[str, Any] = {"machine": harness.machine("cpu"), "vit-b-32": cost(args.repeats)}
    print(f"ViT-B/32, one photo, milliseconds: {document['vit-b-32']}")
    named = {"splip-tiny": "open_clip:splip-tiny", "splip-tiny-3": "open_clip:splip-tiny-3"}
    if args.plain:
        named["a plain ViT"] = str(args.plain)
    for title, name in named.items():
        document[title] = row = faithful(name, args.sample)
        print(f"\n{title}, {row['pairs']} pairs; splip shows {row['shown']}")
        for kind, values in row["orders"].items():
            gap = values["insertion"] - values["deletion"]
            print(f"{kind:20s} deletion {values['deletion']:.3f}  insertion {values['insertion']:.3f}  gap {gap:.3f}")
    args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
