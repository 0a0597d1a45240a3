"""What ideas of other methods give here, on the sample's validation classes. Unseen classes are not looked at.

    splip data sample --out sample
    python benchmarks/bench_rivals.py --sample sample --out runs/rivals    # three quarters of an hour on one core

Losses beside SpLIP's own: the sample's settings and one shipped configuration on top (``splip train --config sample --config
ablations/icon``), each idea at two values of its one weight: all that was run. Then DP-CLIP's prompts, in the fine-grained
setting, beside LayerNorms alone.
"""

import argparse
from pathlib import Path
from typing import Any

import harness
import trainings
from bench_start import best

from splip.config import find, from_dict, merge, read
from splip.evaluation.config import EvalConfig
from splip.evaluation.evaluate import evaluate
from splip.models.config import TrainConfig

# The configuration of a row, and the one setting of the loss that it tries.
ROWS: dict[str, tuple[str, dict[str, float]]] = {
    "full": ("full", {}),
    "elastic 0.5": ("elastic", {"elastic": 0.5}),
    "elastic 1": ("elastic", {"elastic": 1.0}),
    "icon 0.1": ("icon", {"icon": 0.1}),
    "icon 1": ("icon", {"icon": 1.0}),
    "consistency 1": ("consistency", {"consistency": 1.0}),
    "consistency 10": ("consistency", {"consistency": 10.0}),
}
FINE = {"setting": "fine-grained", "per_class": 4}
# Fine-grained: a configuration, and what is changed.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip-ln": ("clip-ln", {}),
    "dp-clip": ("dp-clip", {"prompts": {"channel_scales": False}}),
    "dp-clip-scales": ("dp-clip", {}),
}
SUPPORT = (1, 3)


def settings(row: str, seed: int, sample: Path, out: Path) -> TrainConfig:
    if row in ROWS:
        overlay, loss = ROWS[row]
        values = merge(merge(read("sample"), read(f"ablations/{overlay}")), {"loss": loss})
    else:
        overlay, change = OTHERS[row]
        values = merge(merge(merge(read("sample"), read(overlay)), FINE), change)
    return from_dict(TrainConfig, merge(values, {"seed": seed, "out": str(out), "data": {"root": str(sample)}}), row)


def measured(out: Path, **asked: Any) -> dict[str, dict[str, float]]:
    """Means over queries of every row that `splip eval` has for a run, on the validation classes."""
    report = evaluate(EvalConfig(str(out), classes="validation", prompts=False, device="cpu", **asked))
    found: dict[str, dict[str, float]] = report["query_mean"]
    return found


def finished(folder: Path, seeds: list[int]) -> list[int]:
    """The seeds of a row whose run has come to its end."""
    return [seed for seed in seeds if (folder / f"seed-{seed}" / "done").is_file()]


def others(seeds: list[int], folders: dict[str, Path]) -> dict[str, Any]:
    """DP-CLIP's prompts without and with photos of each class, beside LayerNorms alone."""
    fine: dict[str, list[dict[str, float]]] = {}
    asked: dict[str, Any] = {"protocol": "fg", "gallery": ("per-class",)}
    for row in OTHERS:
        for seed in finished(folders[row], seeds):
            for shown in (0, *SUPPORT) if row != "clip-ln" else (0,):
                found = list(measured(folders[row] / f"seed-{seed}", support=shown, **asked).values())
                fine.setdefault(f"{row} {shown}", []).append({"seed": seed, **found[1 if shown else 0]})
    return {"fine": fine}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, default=Path("sample"), help="folder of `splip data sample`")
    parser.add_argument("--out", type=Path, default=Path("runs/rivals"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="(default: 0 1)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each (default: 1)")
    parser.add_argument("--written", action="store_true", help="train nothing: write down what is finished")
    parser.add_argument("--save", default="rivals", help="name of the JSON in benchmarks/results (default: rivals)")
    args = parser.parse_args()
    folders = {row: args.out / row.replace(" ", "-") for row in (*ROWS, *OTHERS)}
    tasks = [(row, seed, args.sample, folders[row] / f"seed-{seed}") for seed in args.seeds for row in folders]
    tasks = [] if args.written else tasks
    trainings.run_all([settings(*task) for task in tasks], args.jobs)
    report: dict[str, Any] = {"machine": harness.machine("cpu"), "seeds": args.seeds, "rows": []}
    for row, (overlay, loss) in ROWS.items():
        label = find(f"ablations/{overlay}").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        runs = [{"seed": seed, **best(folders[row] / f"seed-{seed}")} for seed in finished(folders[row], args.seeds)]
        report["rows"].append({"name": row, "label": label, "loss": loss, "runs": runs})
    report |= others(args.seeds, folders)
    trainings.write(args.save, report)


if __name__ == "__main__":
    main()
