"""``splip compare``: whether two methods differ by more than the choice of queries, or of classes, explains."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from splip import disk
from splip.errors import UserError
from splip.evaluation.config import CompareConfig
from splip.evaluation.queries import Values, read

CHUNK = 1 << 24  # numbers that are drawn at once
LEVEL = (2.5, 97.5)  # percentiles


def compare(config: CompareConfig) -> dict[str, Any]:
    """``splip compare``; returns what it writes as JSON.

    Raises:
        UserError: the files do not hold the same queries, or not what is asked for.
    """
    if config.samples < 100:
        raise UserError(f"--samples must be at least 100, got {config.samples}")
    if len(config.methods) not in (0, 1, 2):
        raise UserError(f"--methods: one for both files or one for each, got {len(config.methods)}")
    methods: list[str | None] = list(config.methods) or [None]
    methods = methods * 2 if len(methods) == 1 else methods
    a, b = (
        read(path, config.column, method, config.protocol)
        for path, method in zip((config.a, config.b), methods, strict=True)
    )
    first, second = _paired(config.a, a, config.b, b)
    difference = second - first
    report: dict[str, Any] = {
        "column": a.column,
        "protocol": a.protocol,
        "a": {"file": str(config.a), "method": a.method, "mean": float(first.mean())},
        "b": {"file": str(config.b), "method": b.method, "mean": float(second.mean())},
        "queries": len(difference),
        "classes": len(set(a.classes)),
        "difference": float(difference.mean()),
        "better": int((difference > 0).sum()),
        "worse": int((difference < 0).sum()),
        "samples": config.samples,
        "seed": config.seed,
        "over_queries": interval(over_queries(difference, config.samples, config.seed)),
    }
    labels = np.unique(np.array(a.classes), return_inverse=True)[1]
    report["over_classes"] = (
        interval(over_classes(difference, labels, config.samples, config.seed)) if report["classes"] > 1 else None
    )
    _print(report)
    if config.json is not None:
        try:
            disk.write_text(config.json, json.dumps(report, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {config.json}: {error}") from None
    return report


def _paired(first: Path, a: Values, second: Path, b: Values) -> tuple[np.ndarray, np.ndarray]:
    """The values of both in the order of the first."""
    if a.column != b.column:
        raise UserError(f"{first} has {a.column} and {second} {b.column}: name one with --column")
    if a.protocol != b.protocol:
        raise UserError(f"{first} has the protocol {a.protocol} and {second} {b.protocol}: name one with --protocol")
    place = {query: i for i, query in enumerate(b.queries)}
    if len(place) != len(b.queries) or len(set(a.queries)) != len(a.queries):
        raise UserError(f"{second if len(place) != len(b.queries) else first}: a query stands there twice")
    odd = sorted(set(a.queries) ^ set(place))
    if odd:
        raise UserError(f"{first} and {second}: {len(odd)} queries are in one of them only, e.g. {odd[0]}")
    order = [place[query] for query in a.queries]
    strange = next((q for q, c, i in zip(a.queries, a.classes, order, strict=True) if c != b.classes[i]), None)
    if strange is not None:
        raise UserError(f"{first} and {second}: {strange} is of another class in each")
    return a.values, b.values[order]


def over_queries(difference: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Means ``[samples]`` of differences ``[Q]``, of as many queries drawn with replacement."""
    rng, Q, means = np.random.default_rng(seed), len(difference), []
    step = max(1, CHUNK // Q)
    for start in range(0, samples, step):
        drawn = rng.integers(Q, size=(min(step, samples - start), Q))
        means.append(difference[drawn].mean(axis=1))
    return np.concatenate(means)


def over_classes(difference: np.ndarray, labels: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """The same of classes drawn with replacement, each with all of its queries: for what holds of classes to come.

    Args:
        difference: ``[Q]``.
        labels: ``[Q]`` int64, 0 to C - 1.
    """
    rng = np.random.default_rng(seed)
    total, count = np.bincount(labels, weights=difference), np.bincount(labels)
    drawn = rng.integers(len(count), size=(samples, len(count)))
    means: np.ndarray = total[drawn].sum(axis=1) / count[drawn].sum(axis=1)
    return means


def interval(means: np.ndarray) -> list[float]:
    """95% of resampled means lie between these."""
    low, high = np.percentile(means, LEVEL)
    return [float(low), float(high)]


def _print(report: dict[str, Any]) -> None:
    for name in ("a", "b"):
        one = report[name]
        print(f"{name.upper()}  {one['method']}, {one['file']}: {report['column']} {100 * one['mean']:.2f}")
    print(
        f"B - A = {100 * report['difference']:+.2f} over {report['queries']} queries of {report['classes']} classes "
        f"({report['protocol']}); {report['better']} better, {report['worse']} worse"
    )
    for name, what in (("over_queries", "queries"), ("over_classes", "classes")):
        if report[name] is None:
            print(f"95% over {what}: one is too few")
            continue
        low, high = (100 * bound for bound in report[name])
        verdict = "includes 0" if low <= 0 <= high else "does not include 0"
        print(f"95% over {what}: {low:+.2f} to {high:+.2f}, {verdict}")
