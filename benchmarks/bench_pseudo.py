"""What lines of photos are worth as sketches to train on, measured on sketches that somebody drew.

    splip data sample --out sample
    python benchmarks/bench_pseudo.py --sample sample --out runs/pseudo    # five minutes on two cores

Every row has the sample's settings, and is measured on the drawn sketches of the validation classes. ``drawn`` trains on
drawn sketches, ``pseudo`` on lines of the photos (``--config pseudo``), ``plain`` is the backbone as it comes. Who has no
sketches cannot choose a checkpoint by them: so the last one is measured beside the best. Unseen classes are not looked at.
"""

import argparse
import csv
import os
from pathlib import Path
from typing import Any

import harness
import trainings

from splip.config import from_dict, merge, read
from splip.models.config import TrainConfig

ROWS = {
    "plain": ("the backbone as it comes", ["sample", "zero-shot"]),
    "drawn": ("trained on drawn sketches", ["sample"]),
    "pseudo": ("trained on lines of the photos", ["sample", "pseudo"]),
}
KEPT = {"mAP@all": "val_mAP", "Acc@1": "val_Acc1"}


def settings(row: str, seed: int, sample: Path, out: Path) -> TrainConfig:
    values: dict[str, Any] = {}
    for name in ROWS[row][1]:
        values = merge(values, read(name))
    values = merge(values, {"seed": seed, "out": str(out), "eval_prompts": False, "data": {"root": str(sample)}})
    return from_dict(TrainConfig, values, row)


def plain(sample: Path, out: Path) -> dict[str, float]:
    """What nothing was learned for: the run has no log.csv."""
    import torch

    from splip.data import load_tree
    from splip.evaluation import TestSet
    from splip.models import load_model

    model = load_model(out / "best.safetensors", torch.device("cpu"))
    tree = load_tree(sample, model.config.data)
    test = TestSet(tree, tree.validation, model.config.data, model.backbone.image_size)
    found = test.measure_model(model, torch.device("cpu")).query_mean
    return {name: round(found[name], 5) for name in KEPT}


def trained(out: Path) -> dict[str, dict[str, float]]:
    """What log.csv says of the checkpoint that is kept and of the last one."""
    with open(out / "log.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["val_mAP"]]
    chosen = {"best": max(rows, key=lambda one: float(one["val_mAP"])), "last": rows[-1]}
    return {
        which: {"step": int(row["step"]), **{name: float(row[column]) for name, column in KEPT.items()}}
        for which, row in chosen.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, default=Path("sample"), help="folder of `splip data sample`")
    parser.add_argument("--out", type=Path, default=Path("runs/pseudo"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="(default: 0 1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--save", default="pseudo", help="name of the JSON in benchmarks/results (default: pseudo)")
    args = parser.parse_args()
    tasks = [
        (row, seed, args.sample, args.out / row / f"seed-{seed}")
        for row in ROWS
        for seed in (args.seeds if row != "plain" else args.seeds[:1])
    ]
    trainings.run_all([settings(*task) for task in tasks], args.jobs)
    rows: list[dict[str, Any]] = []
    for name, (label, _) in ROWS.items():
        folders = [out for row, _, _, out in tasks if row == name]
        runs: list[Any] = [plain(args.sample, folders[0])] if name == "plain" else [trained(out) for out in folders]
        rows.append({"name": name, "label": label, "runs": runs})
    report = {"machine": harness.machine("cpu"), "seeds": args.seeds, "classes": "validation", "rows": rows}
    trainings.write(args.save, report)


if __name__ == "__main__":
    main()
