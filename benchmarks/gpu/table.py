"""The Markdown table of whatever a report holds."""

from typing import Any


def ceilings_line(ceiling: dict[str, Any]) -> list[str]:
    units = {"copy_GB_per_s": ("copy", "GB/s"), "read_GB_per_s": ("read", "GB/s"), "bf16_TFLOP_per_s": ("bf16", "TFLOP/s"),
             "fp16_TFLOP_per_s": ("fp16", "TFLOP/s"), "int8_TOP_per_s": ("int8", "TOP/s")}  # fmt: skip
    said = [f"{name} {ceiling[key]:.0f} {unit}" for key, (name, unit) in units.items() if key in ceiling]
    return [f"Ceilings measured in this run: {', '.join(said)}.", ""] if said else []


def peers_of(row: dict[str, Any]) -> str:
    """How many times as long each peer takes, with its recall where it is not 1."""
    found = []
    for name, took in row["times"].items():
        if name == "splip":
            continue
        if "median" not in took:
            found.append(f"{name}: {took['error']}")
            continue
        missed = row.get("peers_recall", {}).get(name, 1)
        found.append(f"{name} {row['ratio'][name]:.2f}x" + (f" (recall {missed:.3f})" if missed < 1 else ""))
    return ", ".join(found)


def rows_table(rows: list[dict[str, Any]]) -> list[str]:
    earlier, published = (any(row.get(key) for row in rows) for key in ("to_baseline", "published"))
    heads = ["op", "sizes", "ms", "of the floor", "bound", "against", "recall"]
    heads += ["LiteTopK says"] * published + ["earlier / now"] * earlier
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in rows:
        cells = [row["op"], row["sizes"], f"{row['ms']:.3f}", f"{row['of_floor']:.0%}", row["bound"], peers_of(row)]
        cells.append(f"{row['recall']:g}" if "recall" in row else "")
        cells += [f"{row['published']:.2f}x" if row.get("published") else ""] * published
        cells += [f"{row['to_baseline']:.2f}" if row.get("to_baseline") else ""] * earlier
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def sweep_table(dtype: str, swept: dict[str, Any]) -> list[str]:
    ways = list(dict.fromkeys(way for row in swept["queries"].values() for way in row["ms"]))
    lines = ["", f"| {dtype}, ms by Q | {' | '.join(ways)} | of the floor |", "| --- |" + " --- |" * (len(ways) + 1)]
    for Q, row in swept["queries"].items():
        cells = [f"{row['ms'][way]:.3f}" if way in row["ms"] else "" for way in ways]
        lines.append(f"| {Q} | {' | '.join(cells)} | {row['of_floor']:.0%} |")
    return lines


def markdown(report: dict[str, Any]) -> str:
    machine, stages = report.get("machine", {}), report.get("stages", {})
    lines = [f"# {machine.get('gpu') or 'no GPU'}, torch {machine.get('torch')}", ""]
    lines += ceilings_line(report.get("ceilings", {}))
    if report.get("rows"):
        lines += rows_table(report["rows"])
    for dtype, swept in stages.get("sweep", {}).get("found", {}).items():
        if isinstance(swept, dict) and "queries" in swept:
            lines += sweep_table(dtype, swept)
    lines += ["", *(f"- skipped {s['stage']}: {s['why']}" for s in report.get("skipped", []))]
    for name, stage in stages.items():
        said = stage.get("error") or stage.get("skipped") or stage["found"].get("summary")
        said = said or ("ended" if stage["wrong"] else "ended well")
        lines.append(f"- {name} ({stage['seconds']} s): {said}")
        lines += [f"  - WRONG: {what}" for what in stage["wrong"]]
    return "\n".join(lines) + "\n"


def against_baseline(row: dict[str, Any], baseline: dict[str, Any]) -> None:
    """Put the ratio to an earlier run's median into the row, if that run had the case."""
    for earlier in baseline.get("rows", []):
        if (earlier["op"], earlier["sizes"]) == (row["op"], row["sizes"]):
            row |= {"baseline_ms": earlier["ms"], "to_baseline": earlier["ms"] / row["ms"]}
            return
