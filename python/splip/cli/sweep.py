"""``splip sweep``: a row of configurations, each trained and measured over seeds, as a table and a plot."""

import contextlib
import json
import os
import statistics
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from splip import __version__, disk, plugins
from splip.cli.config import SweepConfig
from splip.config import differences, find, from_dict, load, merge, read, shipped
from splip.errors import UserError
from splip.evaluation import plots
from splip.models.config import TrainConfig
from splip.models.names import LAST, in_folder
from splip.progress import bars


@dataclass
class Row:
    """One configuration of a sweep."""

    name: str  # of the folder
    label: str  # in the table: the first comment of its file
    settings: dict[str, Any]


def sweep(config: SweepConfig) -> Path:
    """Train what is not there yet, measure it, and write the table; returns its path.

    Raises:
        UserError: a configuration is wrong, or every run failed.
    """
    plots.need()
    if not config.seeds or config.jobs < 1:
        raise UserError("a sweep needs at least one seed and one job")
    rows = _rows(config)
    tasks = []
    for row in rows:
        for seed in config.seeds:
            out = config.out / row.name / f"seed-{seed}"
            values = merge(row.settings, {"seed": seed, "out": str(out)})
            tasks.append((from_dict(TrainConfig, values, row.name), config.protocol))
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the sweep's folder {config.out}: {error}") from None
    print(f"{len(rows)} configurations x {len(config.seeds)} seeds, {config.jobs} at a time; logs in {config.out}")
    threads = max(1, (os.cpu_count() or 1) // config.jobs)
    failed: dict[str, str] = {}
    # A process of its own for the runs: what one leaves behind does not reach the next.
    with (
        ProcessPoolExecutor(config.jobs, get_context("spawn"), _start, (threads, tuple(plugins.loaded))) as pool,
        bars() as progress,
    ):
        bar = progress.add_task("Sweep", total=len(tasks))
        for (task, _), reason in zip(tasks, pool.map(_run, tasks), strict=True):
            progress.advance(bar)
            if reason:
                failed[str(task.out)] = reason
                print(f"{task.out}: {reason}")
    report = _collect(config, rows, failed)
    table = config.out / "table.md"
    disk.write_text(table, markdown(report))
    disk.write_text(config.out / "results.json", json.dumps(report, indent=1) + "\n")
    metric, metrics = config.metric, report["rows"][0]["metrics"]
    if metric not in metrics:
        raise UserError(f"--metric {metric}: measured were {', '.join(metrics)}; the table is in {table}")
    shown = [(row["label"], row["metrics"][metric]) for row in report["rows"]]
    title = f"{report['queries']:,} sketches in {report['gallery']:,} photos, {len(config.seeds)} seeds"
    plots.sweep(config.out / "plot.png", shown, metric, title)
    print(table.read_text(encoding="utf-8"))
    return table


def _rows(config: SweepConfig) -> list[Row]:
    names = []
    for pattern in config.rows:
        matching = [name for name in shipped() if fnmatch(name, pattern)]
        names += matching if matching else [pattern]
    base: dict[str, Any] = {}
    for name in config.config:
        base = merge(base, read(name))
    last = _settings(config.set)
    rows: dict[str, Row] = {}
    for name in names:
        file = find(name)
        short = file.stem
        values = merge(merge(base, read(name)), last)
        from_dict(TrainConfig, values, str(file))
        if short in rows:
            raise UserError(f"--rows: two configurations are called {short}")
        comment = next(iter(file.read_text(encoding="utf-8").splitlines()), "")
        rows[short] = Row(short, comment[2:] if comment.startswith("# ") else short, values)
    if not rows:
        raise UserError("--rows names no configuration")
    # The others are compared with the first.
    return sorted(rows.values(), key=lambda row: row.name != "full")


def _settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``a.b=1`` as ``{"a": {"b": 1}}``."""
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set takes KEY=VALUE, got '{pair}'")
        try:
            nested: Any = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError):
            nested = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        out = merge(out, nested)
    return out


def _start(threads: int, files: tuple[Path, ...]) -> None:
    """Make a process ready for runs: with the plugins of this one."""
    import torch

    torch.set_num_threads(threads)
    for file in files:
        plugins.load_plugin(file)


def _run(task: tuple[TrainConfig, str]) -> str:
    """Train and measure one run in this process; returns what went wrong, or nothing."""
    from splip.evaluation.config import EvalConfig
    from splip.evaluation.evaluate import evaluate
    from splip.train.loop import train

    config, protocol = task
    done = config.out / f"eval-{protocol}.json"
    settings = config.out / "config.yaml"
    if settings.is_file():
        before = load(TrainConfig, str(settings))
        changed = [d for d in differences(before, config) if not d.startswith(("resume:", "device:"))]
        if changed:
            return f"holds a run with other settings: {'; '.join(changed)}; choose another --out"
    if done.is_file():
        return ""
    config.out.mkdir(parents=True, exist_ok=True)
    with open(config.out / "output.txt", "a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        try:
            config.resume = in_folder(config.out, LAST).is_file()
            best = train(config)
            unfinished = done.with_suffix(".tmp")
            evaluate(EvalConfig(str(best), device=config.device, protocol=protocol, prompts=False, json=unfinished))  # type: ignore[arg-type]
            unfinished.replace(done)
        except UserError as error:
            return str(error)
        except Exception:
            traceback.print_exc(file=file)
            return f"failed, see {config.out / 'output.txt'}"
    return ""


def _collect(config: SweepConfig, rows: list[Row], failed: dict[str, str]) -> dict[str, Any]:
    report: dict[str, Any] = {
        "splip": __version__,
        "protocol": config.protocol,
        "seeds": list(config.seeds),
        "rows": [],
    }
    for row in rows:
        results = []
        for seed in config.seeds:
            file = config.out / row.name / f"seed-{seed}" / f"eval-{config.protocol}.json"
            if file.is_file():
                results.append(json.loads(file.read_text(encoding="utf-8")))
        if not results:
            continue
        values = [next(iter(r["query_mean"].values())) for r in results]
        report |= {key: results[0][key] for key in ("queries", "gallery")}
        report["rows"].append(
            {"name": row.name, "label": row.label, "metrics": {m: [v[m] for v in values] for m in values[0]}}
        )
    if not report["rows"]:
        raise UserError(f"every run failed; {next(iter(failed.items()))[0]}: {next(iter(failed.values()))}")
    report["failed"] = failed
    return report


def markdown(report: dict[str, Any]) -> str:
    """A table of means, and the standard deviation over seeds."""
    columns = list(report["rows"][0]["metrics"])
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for row in report["rows"]:
        cells = []
        for values in row["metrics"].values():
            spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{100 * statistics.mean(values):.1f}{spread}")
        lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
    counts = [len(next(iter(row["metrics"].values()))) for row in report["rows"]]
    seeds = str(max(counts)) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    lines.append("")
    lines.append(
        f"Percent, {report['queries']:,} sketches in {report['gallery']:,} photos, protocol {report['protocol']}; "
        + ("one seed." if seeds == "1" else f"mean and standard deviation of {seeds} seeds.")
    )
    lines += ["", *(f"Failed: {out}: {reason}" for out, reason in report.get("failed", {}).items())]
    return "\n".join(lines).rstrip() + "\n"
