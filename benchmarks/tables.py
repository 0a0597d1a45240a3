"""What tables of committed results share."""

import json
import statistics
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def load(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return report


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(values: list[float] | float) -> str:
    """``31.2 ± 0.4``: mean and standard deviation."""
    if isinstance(values, float):
        return f"{100 * values:.1f}"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def machine(m: dict[str, Any]) -> str:
    """Where and how a table was measured."""
    return f"Measured on {m['cpu']}, {m['threads']} threads, torch {m['torch']}:\n`{m['command']}`"
