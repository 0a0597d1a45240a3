"""Where prompts start, and what is left without each part: SpLIP less one thing, on the sample's validation classes.

    splip data sample --out sample
    python benchmarks/bench_start.py --sample sample --out runs/start    # six minutes on two cores

Every row has the sample's settings (``splip train --config sample --config ablations/...``). Unseen classes are not looked at.
"""

import argparse
import csv
import os
from pathlib import Path
from typing import Any

import harness
import trainings

from splip.config import find, from_dict, merge, read
from splip.models.config import TrainConfig

ROWS = ["full", "no-prompts", "as-before", "margin-no-floor"]
KEPT = ("val_mAP", "val_Acc1", "val_mAP_removed", "val_mAP_swapped", "val_attention")


def settings(row: str, seed: int, sample: Path, out: Path) -> TrainConfig:
    values = merge(read("sample"), read(f"ablations/{row}"))
    return from_dict(TrainConfig, merge(values, {"seed": seed, "out": str(out), "data": {"root": str(sample)}}), row)


def best(out: Path) -> dict[str, float | None]:
    """What log.csv says of the checkpoint that is kept."""
    with open(out / "log.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["val_mAP"]]
    row = max(rows, key=lambda one: float(one["val_mAP"]))
    return {"step": int(row["step"]), **{name: float(row[name]) if row[name] else None for name in KEPT}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, default=Path("sample"), help="folder of `splip data sample`")
    parser.add_argument("--out", type=Path, default=Path("runs/start"), help="folder of the runs")
    parser.add_argument(
        "--rows", nargs="+", default=ROWS, help="of python/splip/configs/ablations (default: the table's)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="(default: 0 1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--save", default="start", help="name of the JSON in benchmarks/results (default: start)")
    args = parser.parse_args()
    tasks = [(row, seed, args.sample, args.out / row / f"seed-{seed}") for seed in args.seeds for row in args.rows]
    trainings.run_all([settings(*task) for task in tasks], args.jobs)
    report: dict[str, Any] = {"machine": harness.machine("cpu"), "seeds": args.seeds, "rows": []}
    for row in args.rows:
        label = find(f"ablations/{row}").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        runs = [best(args.out / row / f"seed-{seed}") for seed in args.seeds]
        report["rows"].append({"name": row, "label": label, "runs": runs})
    trainings.write(args.save, report)


if __name__ == "__main__":
    main()
