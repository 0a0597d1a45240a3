"""Values of every query in a CSV file: for whoever wants to test a difference, and for ``splip compare``."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splip import disk
from splip.errors import UserError, short
from splip.evaluation.metrics import Result

KEYS = ("protocol", "method", "query", "class")  # columns before the metrics'


@dataclass
class Measured:
    """What a protocol gave: its queries by name and class, and the results of each method."""

    protocol: str
    queries: Sequence[str]
    classes: Sequence[str]
    results: Mapping[str, Result]


def write(path: Path, measured: Sequence[Measured]) -> None:
    """Write a row for each protocol, method and query; a column that a protocol does not have stays empty.

    Raises:
        UserError: it cannot be written.
    """
    names = list(dict.fromkeys(name for one in measured for r in one.results.values() for name in r.per_query))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk.replacing(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*KEYS, *names])
            for one in measured:
                for method, result in one.results.items():
                    columns = [result.per_query.get(name) for name in names]
                    for i, (query, label) in enumerate(zip(one.queries, one.classes, strict=True)):
                        values = ("" if c is None else repr(float(c[i])) for c in columns)
                        writer.writerow([one.protocol, method, query, label, *values])
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from None


@dataclass
class Values:
    """One column of one method under one protocol."""

    method: str
    protocol: str
    column: str
    queries: list[str]
    classes: list[str]
    values: np.ndarray  # [Q] float64


def read(path: Path, column: str | None = None, method: str | None = None, protocol: str | None = None) -> Values:
    """Read the values of a column; by default the first one, of the first method under the first protocol.

    Raises:
        UserError: no such file, column, method or protocol; not such a file, or damaged.
    """
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.reader(file)
            head = next(reader, [])
            rows = list(reader)
    except (OSError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if tuple(head[: len(KEYS)]) != KEYS or len(head) == len(KEYS) or not rows:
        raise UserError(f"{path}: not a file of `splip eval --per-query`")
    odd = next((number for number, row in enumerate(rows, 2) if len(row) != len(head)), None)
    if odd is not None:
        raise UserError(f"{path}, line {odd}: {len(rows[odd - 2])} fields, the first line has {len(head)}")
    protocol = _chosen(path, "protocol", protocol, [row[0] for row in rows])
    method = _chosen(path, "method", method, [row[1] for row in rows if row[0] == protocol])
    mine = [row for row in rows if (row[0], row[1]) == (protocol, method)]
    column = _chosen(path, "column", column, [name for i, name in enumerate(head) if i >= len(KEYS) and mine[0][i]])
    place, values = head.index(column), []
    for row in mine:
        try:
            values.append(float(row[place]))
        except ValueError:
            values.append(math.nan)
        if not math.isfinite(values[-1]):
            raise UserError(f"{path}: {column} of {row[2]} is {short(row[place])}")
    return Values(method, protocol, column, [row[2] for row in mine], [row[3] for row in mine], np.array(values))


def _chosen(path: Path, what: str, wanted: str | None, held: Sequence[str]) -> str:
    """The one that is wanted, or the first."""
    if wanted is None and held:
        return held[0]
    if wanted is None or wanted not in held:
        choices = ", ".join(dict.fromkeys(held)) or "none"
        raise UserError(f"{path}: no {what} {short(wanted)}; it has {choices}")
    return wanted
