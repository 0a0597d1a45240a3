"""Rows of settings trained for a table: each run once, with one thread, going on where it was stopped."""

import contextlib
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import harness

from splip.models.config import TrainConfig
from splip.models.names import LAST, in_folder


def run(config: TrainConfig) -> None:
    """Train one run, unless it is there; what it prints goes into its output.txt."""
    import torch

    from splip.train.loop import train

    torch.set_num_threads(1)
    done = config.out / "done"
    if done.is_file():
        return
    config.out.mkdir(parents=True, exist_ok=True)
    with open(config.out / "output.txt", "a", encoding="utf-8") as output, contextlib.redirect_stdout(output):
        config.resume = in_folder(config.out, LAST).is_file()
        train(config)
    done.touch()


def run_all(configs: Sequence[TrainConfig], jobs: int) -> None:
    """Train some runs, so many at a time."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for number, _ in enumerate(pool.map(run, configs), 1):
            print(f"{number}/{len(configs)} {configs[number - 1].out}", flush=True)


def write(name: str, report: dict[str, Any]) -> None:
    """Write a report to benchmarks/results."""
    path = harness.RESULTS / f"{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(path)
