"""The icon study: does SpLIP's mechanism help, beyond what its losses and LayerNorms give, on nouns and designers never seen?

    python tools/build_icon_study.py --icons icons --pictures pictures --out study
    splip pretrain --pictures study/plain ... --out runs/plain      # both commands: docs/icon-study.md
    python benchmarks/icon_study.py --study study --plain runs/plain/weights.safetensors --lines runs/lines/weights.safetensors

What is compared, what is tuned and how often, the primary endpoint and the rule that decides are fixed in this file and in
docs/icon-study.md; both were committed before any run. Tuning sees validation nouns alone, on the backbone that never saw a line; unseen
nouns are measured once for each final run. What is finished in --out is used again.
"""

import argparse
import contextlib
import csv
import json
import multiprocessing
import os
import statistics
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import harness
import numpy as np

from splip.config import from_dict, merge, read
from splip.errors import UserError
from splip.evaluation.compare import interval, over_classes
from splip.evaluation.config import EvalConfig
from splip.evaluation.queries import read as read_queries
from splip.models.config import TrainConfig
from splip.models.names import LAST, in_folder

COMMON: dict[str, Any] = {
    "backbone": {"name": "icon-vit-16"},
    "data": {"augment": "strong", "crop_sketches": True},
    "loss": {
        "classification": 0.1,
        "jigsaw_width": 64,
        "tiles": 2,
        "permutations": 23,
        "negatives": "semi-hard",
    },
    "steps": 150,
    "batch_size": 32,
    "warmup": 20,
    "eval_every": 50,
    "eval_prompts": False,
}
# Row: configuration, what it is called, changes.
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "splip": ("ablations/full", "SpLIP", {}),
    "no-prompts": ("ablations/no-prompts", "SpLIP's losses without prompts", {}),
    "vpt-deep": ("vpt-deep", "free tokens in each layer, SpLIP's losses", {}),
    "clip-at": ("clip-at", "CLIP-AT", {}),
    "clip-ln": ("clip-ln", "LayerNorms", {}),
    "all-weights": ("clip-ln", "all weights", {"train_backbone": True}),
    "maple": ("maple", "MaPLe", {}),
    "instance": ("ablations/instance", "SpLIP, prompts from each image", {}),
}
# The same number of trials for each row: rates of what is new, and of LayerNorms.
PROMPTS = [(lr, norm) for lr in (1e-3, 3e-3, 1e-2) for norm in (3e-3, 1e-2)]
NORMS = [(1e-3, norm) for norm in (1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 3e-2)]
WEIGHTS = [(lr, lr) for lr in (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)]
TRIALS = {row: PROMPTS for row in ROWS} | {"no-prompts": NORMS, "clip-ln": NORMS, "all-weights": WEIGHTS}
TUNING_SEED = 100
SEEDS = (0, 1, 2)
PRIMARY = ("splip", "no-prompts", "plain")
LEAST_COST = 0.5  # percent mAP that removing the prompts at test must cost
SAMPLES = 10_000
Task = tuple[TrainConfig, bool]


def settings(row: str, rates: tuple[float, float], seed: int, study: Path, weights: Path, out: Path) -> TrainConfig:
    config, _, changes = ROWS[row]
    values = merge(merge(read(config), COMMON), changes)
    values = merge(values, {"lr": rates[0], "layernorm_lr": rates[1], "seed": seed, "out": str(out)})
    values = merge(values, {"data": {"root": str(study / "data")}, "backbone": {"pretrained": str(weights)}})
    return from_dict(TrainConfig, values, row)


def run(task: Task) -> str:
    """Train one run, and measure unseen nouns if it is a final one; returns what went wrong, or nothing."""
    from splip.evaluation.evaluate import evaluate
    from splip.train.loop import train

    config, final = task
    done = config.out / "done"
    if done.is_file():
        return ""
    config.out.mkdir(parents=True, exist_ok=True)
    with open(config.out / "output.txt", "a", encoding="utf-8") as output, contextlib.redirect_stdout(output):
        try:
            config.resume = in_folder(config.out, LAST).is_file()
            best = train(config)
            if final:
                files = {"json": config.out / "eval.json", "per_query": config.out / "queries.csv"}
                evaluate(EvalConfig(str(best), **files))
            done.touch()
        except UserError as error:
            return f"{config.out}: {error}"
        except Exception:
            traceback.print_exc(file=output)
            return f"{config.out}: failed, see output.txt"
    return ""


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def runs(tasks: list[Task], jobs: int) -> None:
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), one_thread) as pool:
        failed = []
        for number, problem in enumerate(pool.map(run, tasks), 1):
            print(f"{number}/{len(tasks)} {tasks[number - 1][0].out} {problem}", flush=True)
            failed += [problem] if problem else []
    if failed:
        raise UserError(f"{len(failed)} of {len(tasks)} runs failed: {failed[0]}")


def validation(out: Path) -> float:
    """The best mAP on the validation nouns that a run logged."""
    with open(out / "log.csv", newline="", encoding="utf-8") as file:
        return max(float(line["val_mAP"]) for line in csv.DictReader(file) if line["val_mAP"])


def tuning(out: Path, row: str) -> list[Path]:
    return [out / "tuning" / row / f"{lr:g}-{norm:g}" for lr, norm in TRIALS[row]]


def tuned(out: Path, row: str) -> tuple[float, float]:
    """The rates that did best on the validation nouns."""
    found = [validation(folder) for folder in tuning(out, row)]
    return TRIALS[row][found.index(max(found))]


def final(out: Path, backbone: str, row: str, seed: int) -> Path:
    return out / backbone / row / f"seed-{seed}"


def collect(out: Path, rows: list[str], backbones: list[str]) -> dict[str, Any]:
    """All numbers of the study."""
    found: dict[str, Any] = {"tuning": {}, "backbones": {}}
    for row in rows:
        trials = [
            {"lr": lr, "layernorm_lr": norm, "val_mAP": validation(folder)}
            for (lr, norm), folder in zip(TRIALS[row], tuning(out, row), strict=True)
        ]
        found["tuning"][row] = {"trials": trials, "chosen": tuned(out, row)}
    for backbone in backbones:
        given = json.loads((out / backbone / "plain.json").read_text(encoding="utf-8"))["query_mean"]
        given = {name.split(" (")[0]: values for name, values in given.items() if name != "zero-shot"}  # the plain one
        part: dict[str, Any] = {"untrained": given, "rows": {}, "differences": {}}
        for row in rows:
            reports = [
                json.loads((final(out, backbone, row, s) / "eval.json").read_text(encoding="utf-8")) for s in SEEDS
            ]
            part["rows"][row] = {"label": ROWS[row][1], "seeds": [report["query_mean"] for report in reports]}
        for row in rows:
            if row != "splip":
                part["differences"][f"splip - {row}"] = difference(out, backbone, "splip", row)
        found["backbones"][backbone] = part
    return found


def difference(out: Path, backbone: str, ours: str, other: str) -> dict[str, Any]:
    """Mean over seeds of what each unseen query gains, and an interval over nouns."""
    values, classes = {}, None
    for row in (ours, other):
        read_ = [read_queries(final(out, backbone, row, seed) / "queries.csv", "mAP@all", None, None) for seed in SEEDS]
        order = [dict(zip(one.queries, one.values, strict=True)) for one in read_]
        values[row] = np.array([[by[query] for query in read_[0].queries] for by in order]).mean(axis=0)
        classes = read_[0].classes
    gain = values[ours] - values[other]
    labels = np.unique(np.array(classes), return_inverse=True)[1]
    return {"mAP@all": float(gain.mean()), "over_classes": interval(over_classes(gain, labels, SAMPLES, 0))}


def decide(found: dict[str, Any]) -> dict[str, Any]:
    """The rule that was fixed before: the interval lies above 0, and without its prompts SpLIP loses enough."""
    ours, other, backbone = PRIMARY
    part = found["backbones"][backbone]
    gain = part["differences"][f"{ours} - {other}"]
    cost = 100 * statistics.mean(
        r["SpLIP"]["mAP@all"] - r["SpLIP, prompts removed"]["mAP@all"] for r in part["rows"][ours]["seeds"]
    )
    helps = gain["over_classes"][0] > 0 and cost > LEAST_COST
    return {"difference": gain, "removing_costs": cost, "helps": helps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("study"), help="folder of tools/build_icon_study.py")
    parser.add_argument("--plain", type=Path, required=True, help="weights of the backbone that never saw a line")
    parser.add_argument("--lines", type=Path, help="weights of the backbone that saw a tenth of lines")
    parser.add_argument("--out", type=Path, default=Path("runs/icon-study"), help="folder of the runs")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="(default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--report", action="store_true", help="train nothing: write the JSON of what is there")
    args = parser.parse_args()
    backbones = {"plain": args.plain} | ({"lines": args.lines} if args.lines else {})
    if not args.report:
        runs(
            [
                (settings(row, rates, TUNING_SEED, args.study, args.plain, folder), False)
                for row in args.rows
                for rates, folder in zip(TRIALS[row], tuning(args.out, row), strict=True)
            ],
            args.jobs,
        )
        runs(
            [
                (settings(row, tuned(args.out, row), seed, args.study, weights, final(args.out, name, row, seed)), True)
                for row in args.rows
                for name, weights in backbones.items()
                for seed in SEEDS
            ],
            args.jobs,
        )
        for name, weights in backbones.items():
            untrained(args.study, weights, args.out / name)
    found = collect(args.out, args.rows, list(backbones))
    if set(PRIMARY[:2]) <= set(args.rows):
        found["decision"] = decide(found)
        print(json.dumps(found["decision"], indent=1))
    for name in backbones:
        with open(args.plain.parent.parent / name / "log.csv", newline="", encoding="utf-8") as file:
            found["backbones"][name]["pretraining"] = list(csv.DictReader(file))[-1]
    report = {"machine": harness.machine("cpu"), "study": json.loads((args.study / "leaks.json").read_text())} | found
    path = harness.RESULTS / "icon-study.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(path)


def untrained(study: Path, weights: Path, out: Path) -> None:
    """The plain backbone, HOG, raw pixels and chance."""
    from splip.evaluation.evaluate import evaluate
    from splip.train.loop import train

    if (out / "plain.json").is_file():
        return
    values = merge(
        merge(read("zero-shot"), COMMON), {"out": str(out / "untrained"), "data": {"root": str(study / "data")}}
    )
    values = merge(values, {"backbone": {"pretrained": str(weights)}})
    best = train(from_dict(TrainConfig, values, "zero-shot"))
    evaluate(EvalConfig(str(best), baselines=True, json=out / "plain.json"))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
