"""What the losses of other methods give SpLIP here: each beside SpLIP's own, on the sample's validation classes.

    splip data sample --out sample
    python benchmarks/bench_rivals.py --sample sample --out runs/rivals    # half an hour on one core

Every row has the sample's settings and one shipped configuration on top (``splip train --config sample --config
ablations/icon``), each idea at two values of its one weight: all that was run. Unseen classes are not looked at.
"""

import argparse
import contextlib
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import harness
from bench_start import best

from splip.config import find, from_dict, merge, read
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


def run(task: tuple[str, int, Path, Path]) -> None:
    """Train one row with one seed, unless it is there."""
    import torch

    from splip.train.loop import train

    row, seed, sample, out = task
    torch.set_num_threads(1)
    overlay, loss = ROWS[row]
    values = merge(merge(read("sample"), read(f"ablations/{overlay}")), {"loss": loss})
    values = merge(values, {"seed": seed, "out": str(out), "data": {"root": str(sample)}})
    config = from_dict(TrainConfig, values, row)
    if (out / "done").is_file():
        return
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "output.txt", "a", encoding="utf-8") as output, contextlib.redirect_stdout(output):
        config.resume = (out / "last.safetensors").is_file()
        train(config)
    (out / "done").touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, default=Path("sample"), help="folder of `splip data sample`")
    parser.add_argument("--out", type=Path, default=Path("runs/rivals"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="(default: 0 1)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each (default: 1)")
    parser.add_argument("--save", default="rivals", help="name of the JSON in benchmarks/results (default: rivals)")
    args = parser.parse_args()
    folders = {row: args.out / row.replace(" ", "-") for row in ROWS}
    tasks = [(row, seed, args.sample, folders[row] / f"seed-{seed}") for seed in args.seeds for row in ROWS]
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        for number, _ in enumerate(pool.map(run, tasks), 1):
            print(f"{number}/{len(tasks)} {tasks[number - 1][3]}", flush=True)
    report: dict[str, Any] = {"machine": harness.machine("cpu"), "seeds": args.seeds, "rows": []}
    for row, (overlay, loss) in ROWS.items():
        label = find(f"ablations/{overlay}").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        runs = [best(folders[row] / f"seed-{seed}") for seed in args.seeds]
        report["rows"].append({"name": row, "label": label, "loss": loss, "runs": runs})
    path = harness.RESULTS / f"{args.save}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
