"""How fast every family's encoder is beside its own library's forward pass: in one process, taking turns.

    OMP_WAIT_POLICY=passive python benchmarks/bench_towers.py --save cpu

Random weights at real sizes, float pictures that are normalised already, without prompts. `library` is open_clip's
``encode_image`` or timm's ``forward``; `training code` runs the same modules layer by layer; `deployed` is the graph that
`splip export` writes and `splip serve` runs, in torch. A ratio is the median of the rounds' ratios to the library: below 1 is
faster; in brackets the same of the processor's time, which others on a shared machine disturb less. Error: the largest difference of a feature of unit length from the library's.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bench_encoder import spread
from harness import RESULTS, machine

from splip.encoders import graph
from splip.models import build
from splip.models.config import BackboneConfig, LossConfig, TrainConfig

BACKBONES = (
    *("ViT-B-32", "ViT-B-16-SigLIP", "EVA02-B-16", "PE-Core-B-16", "timm:vit_small_patch14_dinov2@224"),
    *(
        "timm:vit_small_patch14_reg4_dinov2@224",
        "timm:vit_small_patch16_dinov3",
        "MobileCLIP2-S0",
        "convnext_base_w",
        "RN50",
    ),
)
BATCHES = (1, 8)


def measure(name: str, repeats: int) -> list[dict[str, Any]]:
    config = TrainConfig(method="zero-shot", backbone=BackboneConfig(name, "random"), loss=LossConfig(jigsaw=0))
    model = build(config, ["dog", "cup"]).eval()
    clip, S = model.backbone, model.backbone.image_size
    deployed = graph.encoders(model)["photo"]
    encoders: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "library": clip.clip.encode_image,
        "training code": lambda images: clip.encode_visual(clip.embed_patches(images)),
        "deployed": deployed,
    }
    rows = []
    for batch in BATCHES:
        images = torch.randn(batch, 3, S, S, generator=torch.Generator().manual_seed(0))
        times: dict[str, list[float]] = {encoder: [] for encoder in encoders}
        spent: dict[str, list[float]] = {encoder: [] for encoder in encoders}
        order = list(encoders)
        with torch.inference_mode():
            wanted = F.normalize(encoders["library"](images), dim=-1)
            errors = {
                key: float((F.normalize(run(images), dim=-1) - wanted).abs().max()) for key, run in encoders.items()
            }
            for round_ in range(repeats):  # the comparison above has warmed them up
                for key in order[round_ % 3 :] + order[: round_ % 3]:
                    began, used = time.perf_counter(), time.process_time()
                    encoders[key](images)
                    times[key].append(1e3 * (time.perf_counter() - began))
                    spent[key].append(time.process_time() - used)
        row: dict[str, Any] = {"backbone": name, "family": clip.visual_tower.family, "side": S, "batch": batch}
        row["ms"] = {key: spread(values) for key, values in times.items()}
        row["ratio"], row["cpu_ratio"] = ratios(times), ratios(spent)
        row["max_difference"] = errors
        rows.append(row)
        shown = "  ".join(f"{key} {row['ratio'][key]:.3f} ({row['cpu_ratio'][key]:.3f})" for key in order[1:])
        print(
            f"{name:40} {batch}  {row['ms']['library']['median']:8.1f} ms  {shown}  {max(errors.values()):.1e}",
            flush=True,
        )
    return rows


def ratios(times: dict[str, list[float]]) -> dict[str, float]:
    """Medians of the rounds' ratios to the library."""
    return {
        key: statistics.median(a / b for a, b in zip(values, times["library"], strict=True))
        for key, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, help="which (default: one or two of each family)")
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default: 15)")
    parser.add_argument("--save", metavar="TAG", help="write results/towers-TAG.json")
    args = parser.parse_args()
    rows = []
    for name in args.backbones:
        rows += measure(name, args.repeats)
        gc.collect()
        if args.save:  # what is measured is kept if the rest is stopped
            about = {"benchmark": "towers", "machine": machine("cpu"), "rows": rows}
            (RESULTS / f"towers-{args.save}.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
