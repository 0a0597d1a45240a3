"""Train and measure every method on the sample data; benchmarks/results_page.py makes docs/results.md of it.

    python benchmarks/sample_results.py --sample sample --no-outlines runs/no-outlines/weights.safetensors --out runs/results
    python benchmarks/results_page.py --runs runs/results

Two backbones: the packaged one, whose pre-training showed a fifth of its pictures as outlines, and one that never saw a
line (`splip pretrain --outlines 0`). What is finished in --out is used again. Nothing is chosen by the unseen classes:
settings were tuned, and checkpoints are chosen, by the validation classes.
"""

import argparse
import contextlib
import csv
import json
import multiprocessing
import os
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import harness

from splip.config import find, from_dict, merge, read
from splip.errors import UserError
from splip.evaluation.config import EvalConfig
from splip.models.config import TrainConfig
from splip.models.names import LAST, in_folder

# Chosen on the validation classes, see TUNING. The paper's rate for prompts, ten times that for normalisation layers; the
# weight of the class loss (alpha, of which the paper says that it was searched) and hard negatives serve all methods alike.
# CLIP-AT's own rates are meant for a hundred times the steps.
COMMON = {
    "steps": 100,
    "eval_every": 25,
    "lr": 1e-3,
    "layernorm_lr": 1e-2,
    "loss": {"classification": 0.1, "negatives": "semi-hard"},
}
METHODS = ["clip-ln", "clip-at", "maple", "ablations/full"]
FINE = ["clip-ln", "clip-at-fg", "ablations/full"]
ABLATIONS = [
    f"ablations/{name}"
    for name in ("loss-class", "loss-triplet", "loss-adaptive", "no-b_t", "no-b_vt", "no-prompts", "no-layernorm")
]
# What was tried on the validation classes, with one seed: (row, what it changes).
TUNING: dict[str, tuple[str, dict[str, Any]]] = {
    "SpLIP, as in the tables": ("ablations/full", {}),
    "class loss weighed 1": ("ablations/full", {"loss": {"classification": 1.0}}),
    "class loss weighed 0": ("ablations/full", {"loss": {"classification": 0.0}}),
    "random negatives": ("ablations/full", {"loss": {"negatives": "random"}}),
    "normalisation at 1e-3": ("ablations/full", {"layernorm_lr": 1e-3}),
    "normalisation at 3e-2": ("ablations/full", {"layernorm_lr": 3e-2}),
    "prompts at 1e-2": ("ablations/full", {"lr": 1e-2}),
    "one text and one layer token, in the first layer": (
        "ablations/full",
        {"prompts": {"text_tokens": 1, "layer_tokens": 1, "depth": 1}},
    ),
    "clip-ln at 3e-2": ("clip-ln", {"layernorm_lr": 3e-2}),
    "clip-ln, class loss weighed 1": ("clip-ln", {"loss": {"classification": 1.0}}),
    "MaPLe, tokens at 1e-2": ("maple", {"lr": 1e-2}),
    "all weights at 3e-4": ("clip-ln", {"train_backbone": True, "lr": 3e-4, "layernorm_lr": 3e-4}),
}
# folder: backbone, setting, rows, protocols
GROUPS = {
    "no-outlines": ("no outlines", "category", METHODS, ("zs", "gzs", "fg")),
    "splip-tiny": ("splip-tiny", "category", METHODS, ("zs", "gzs", "fg")),
    "fine-grained": ("no outlines", "fine-grained", FINE, ("fg",)),
    "ablations": ("no outlines", "category", ABLATIONS, ("zs",)),
}
Task = tuple[TrainConfig, tuple[str, ...]]


def settings(
    row: str, setting: str, seed: int, sample: Path, weights: Path | None, out: Path, last: dict[str, Any] | None = None
) -> TrainConfig:
    """The sample's configuration, the row's, what all rows share, and the last changes."""
    values = merge(read("sample"), read(row))
    values = merge(values, COMMON)
    if row == "ablations/loss-class":  # what is alone needs no weight
        values = merge(values, {"loss": {"classification": 1.0}})
    if row == "ablations/loss-triplet":
        values = merge(values, {"loss": {"classification": 0.0}})
    if row == "clip-at-fg":  # its f-divergence compares several triplets of a class
        values = merge(values, {"loss": {"negatives": "random"}})
    values = merge(values, {"seed": seed, "out": str(out), "setting": setting, "data": {"root": str(sample)}})
    if weights is not None:
        values = merge(values, {"backbone": {"pretrained": str(weights)}})
    values = merge(values, last or {})
    return from_dict(TrainConfig, values, row)


def run(task: Task) -> str:
    """Train and measure one run; returns what went wrong, or nothing."""
    from splip.evaluation.evaluate import evaluate
    from splip.train.loop import train

    config, protocols = task
    config.out.mkdir(parents=True, exist_ok=True)
    with open(config.out / "output.txt", "a", encoding="utf-8") as output, contextlib.redirect_stdout(output):
        try:
            files = {protocol: config.out / f"eval-{protocol}.json" for protocol in protocols}
            done = config.out / "done"
            if not done.is_file() or not all(file.is_file() for file in files.values()):
                config.resume = in_folder(config.out, LAST).is_file()
                best = train(config)
                for protocol, file in files.items():
                    evaluate(EvalConfig(str(best), protocol=protocol, prompts=False, json=file))
                done.touch()
        except UserError as error:
            return f"{config.out}: {error}"
        except Exception:
            traceback.print_exc(file=output)
            return f"{config.out}: failed, see output.txt"
    return ""


def start(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def collect(folder: Path, row: str, seeds: list[int], protocols: tuple[str, ...]) -> dict[str, Any]:
    """What the runs of a row gave, a number a seed; learning curves on the validation classes."""
    from splip.models import read_checkpoint

    label = find(row).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    found: dict[str, Any] = {"name": row.split("/")[-1], "label": label, "seconds": [], "curves": []}
    for seed in seeds:
        run = folder / found["name"] / f"seed-{seed}"
        with open(run / "log.csv", newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        found["seconds"].append(float(lines[-1]["seconds"]))
        points = [line for line in lines if line["val_mAP"]]
        found["curves"].append([[int(x["step"]), float(x["val_mAP"]), float(x["val_Acc1"])] for x in points])
        state = read_checkpoint(in_folder(run))
        found["trainable"] = sum(p.numel() for n, p in state["trainable"].items() if not n.startswith("jigsaw."))
        for protocol in protocols:
            report = json.loads((run / f"eval-{protocol}.json").read_text())
            for result in report["results"]:
                own = found.setdefault(result["protocol"], {})
                for metric, value in next(iter(result["query_mean"].values())).items():
                    own.setdefault(metric, []).append(value)
    return found


def tried(folder: Path) -> list[dict[str, Any]]:
    """The best of each tuning run on the validation classes."""
    rows = []
    for number, name in enumerate(TUNING):
        with open(folder / f"{number:02}" / "log.csv", newline="", encoding="utf-8") as file:
            lines = [line for line in csv.DictReader(file) if line["val_mAP"]]
        best = max(lines, key=lambda line: float(line["val_mAP"]))
        rows.append({"name": name, "mAP@all": float(best["val_mAP"]), "Acc@1": float(best["val_Acc1"])})
    return rows


def scaled(name: str, weights: Path, folder: Path) -> dict[str, Any]:
    """A backbone of another size, plain and with SpLIP, on the unseen classes."""
    from splip.evaluation.evaluate import evaluate
    from splip.models.clip import PromptedCLIP
    from splip.models.config import BackboneConfig

    with contextlib.redirect_stdout(sys.stderr):
        found = evaluate(EvalConfig(str(in_folder(folder)), prompts=False, baselines=True))["query_mean"]
    with open(weights.parent / "log.csv", newline="", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    parameters = PromptedCLIP(BackboneConfig(name, "random")).visual.parameters()
    plain = next(values for key, values in found.items() if key.startswith("plain"))
    return {
        "name": name,
        "visual_parameters": sum(p.numel() for p in parameters),
        "steps": int(last["step"]),
        "minutes": float(last["seconds"]) / 60,
        "plain": plain,
        "SpLIP": found["SpLIP"],
    }


def unlearned(folder: Path, protocols: tuple[str, ...]) -> dict[str, Any]:
    """Chance, raw pixels, HOG and the plain backbone; beside them the pictures of a SpLIP run."""
    from splip.evaluation.evaluate import evaluate

    best, found = in_folder(folder / "full/seed-0"), {}
    for protocol in protocols:
        out = folder / f"pictures-{protocol}"
        file = out / "results.json"
        if not file.is_file():
            with contextlib.redirect_stdout(sys.stderr):
                evaluate(EvalConfig(str(best), protocol=protocol, prompts=False, baselines=True, out=out))
        for result in json.loads(file.read_text())["results"]:
            names = [n for n in result["query_mean"] if n != "SpLIP"]
            about = {key: result[key] for key in ("queries", "gallery", "meaning")}
            rows = {"plain" if n.startswith("plain") else n: result["query_mean"][n] for n in names}
            found[result["protocol"]] = about | {"rows": rows}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, default=Path("sample"), help="folder of `splip data sample`")
    parser.add_argument(
        "--no-outlines", type=Path, required=True, metavar="FILE", help="weights of the second backbone"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/results"), help="folder of the runs")
    parser.add_argument("--scaling", nargs="*", default=[], metavar="NAME=FILE", help="backbones of several sizes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each with its share of cores (default: 2)")
    parser.add_argument("--save", default="sample", help="name of the JSON in benchmarks/results (default: sample)")
    args = parser.parse_args()
    tasks: list[Task] = []
    for group, (backbone, setting, rows, protocols) in GROUPS.items():
        weights = args.no_outlines if backbone == "no outlines" else None
        for seed in args.seeds:
            for row in rows:
                out = args.out / group / row.split("/")[-1] / f"seed-{seed}"
                tasks.append((settings(row, setting, seed, args.sample, weights, out), protocols))
    for number, (row, last) in enumerate(TUNING.values()):
        out = args.out / "tuning" / f"{number:02}"
        tasks.append((settings(row, "category", args.seeds[0], args.sample, args.no_outlines, out, last), ()))
    sizes = [(name, Path(file)) for name, _, file in (pair.partition("=") for pair in args.scaling)]
    for name, weights in sizes:
        last = {"backbone": {"name": name}}
        out = args.out / "scaling" / name
        tasks.append((settings("ablations/full", "category", args.seeds[0], args.sample, weights, out, last), ()))
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, spawn, start, (threads,)) as pool:
        for number, problem in enumerate(pool.map(run, tasks), 1):
            print(f"{number}/{len(tasks)} {tasks[number - 1][0].out} {problem}", flush=True)
            if problem:
                pool.shutdown(cancel_futures=True)
                sys.exit(problem)
    report: dict[str, Any] = {"machine": harness.machine("cpu"), "seeds": args.seeds, "jobs": args.jobs, "groups": {}}
    report["common"] = COMMON
    for group, (backbone, setting, rows, protocols) in GROUPS.items():
        folder = args.out / group
        report["groups"][group] = {
            "backbone": backbone,
            "setting": setting,
            "rows": [collect(folder, row, args.seeds, protocols) for row in rows],
        }
        if "ablations/full" in rows and setting == "category":
            report["groups"][group]["unlearned"] = unlearned(folder, protocols)
    report["tuning"] = tried(args.out / "tuning")
    report["scaling"] = [scaled(name, weights, args.out / "scaling" / name) for name, weights in sizes]
    path = harness.RESULTS / f"{args.save}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
