"""Tables about training and its sketches: parts of them, lines of photos, memory; benchmarks/report.py writes them."""

import statistics
from typing import Any

from tables import load, machine, percent, table

SHARES = (0.1, 0.3, 0.5, 0.7, 1.0)
KINDS = {
    "traced": "traced, all sketches",
    "strokes": "strokes, clean sketches",
    "strokes, whole frame": "the same, in the frame of the whole",
}


def partial() -> str:
    """Acc@5 at some shares and the areas, for a photo of the class and for the very photo."""
    report, parts = load("partial"), []
    for target, title in (("class", "A photo of the class"), ("photo", "The very photo")):
        rows, before = [], None
        for row in report["rows"]:
            if row["runs"] == before:  # a model that does not crop knows one frame
                continue
            before = row["runs"]
            runs = [run[target] for run in row["runs"]]
            at = [{one["share"]: one for one in run["rows"]} for run in runs]
            cells = [percent([one[share]["Acc@5"] for one in at]) for share in SHARES]
            median = statistics.mean(one[0.5]["median rank"] for one in at)
            rows.append([row["label"], KINDS[row["strokes"]], *cells, f"{median:.0f}", *_areas(runs)])
        head = [f"**{title}**", "sketches", *(f"{share:.0%}" for share in SHARES), "median rank at 50%", "m@A", "m@B"]
        parts.append(table(head, rows))
    first = report["rows"][0]["runs"][0]
    return "\n\n".join(parts) + (
        f"\n\nAcc@5 at shares of the strokes; validation classes, {first['photo']['gallery']} photos, "
        f"{len(report['seeds'])} seed. {machine(report['machine'])}"
    )


def _areas(runs: list[dict[str, float]]) -> list[str]:
    return [percent([run[name] for run in runs]) for name in ("m@A", "m@B")]


def pseudo() -> str:
    """Drawn sketches and lines of photos to train on; measured on drawn ones."""
    report, rows = load("pseudo"), []
    for row in report["rows"]:
        for which in ("best", "last") if row["name"] != "plain" else ("",):
            runs = [run[which] if which else run for run in row["runs"]]
            chosen = {"best": "best on the drawn ones", "last": "the last", "": ""}[which]
            rows.append(
                [row["label"], chosen, *(percent([run[name] for run in runs]) for name in ("mAP@all", "Acc@1"))]
            )
    head = ["", "checkpoint", "mAP@all", "Acc@1"]
    return (
        table(head, rows)
        + f"\n\nValidation classes, seeds {', '.join(map(str, report['seeds']))}. {machine(report['machine'])}"
    )


def memory() -> str:
    """What a step holds and takes: run at small batches, computed for the paper's."""
    report, lines = load("memory-cpu"), []
    for precision, found in report["precisions"].items():
        for row in found["run"]:
            total = sum(row[name] for name in ("step", "weights", "optimiser", "pictures"))
            said = [f"{total / 1e9:.2f}", _seconds(row, 1), "run"]
            lines.append([f"{precision}, {row['batch']} sketches", *said])
        end, last = found["computed"], found["run"][-1]["batch"]
        known = [name for name in ("step_off", "seconds_off") if end[name] is not None]
        off = " and ".join(f"{100 * end[name]:.1f}%" for name in known)
        said = [f"**{end['bytes'] / 1e9:.1f}**", _seconds(end, 0), f"computed; at {last} sketches off by {off}"]
        lines.append([f"{precision}, {end['batch']} sketches", *said])
    head = [f"one step of SpLIP, {report['backbone']}, 104 classes", "GB", "seconds of one core", ""]
    return table(head, lines) + f"\n\n{machine(report['machine'])}"


def _seconds(row: dict[str, Any], digits: int) -> str:
    """Empty where the time was not taken."""
    return "" if row["seconds"] is None else f"{row['seconds']:.{digits}f}"
