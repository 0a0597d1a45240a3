"""Write the tables of the README from the committed results.

python benchmarks/report.py            # prints them
python benchmarks/report.py --update   # writes them between the markers in README.md
python benchmarks/report.py --demo demo --update   # first takes over the results of `make demo`
python benchmarks/report.py --sweep runs/ablation ablation-sample --update   # and those of a sweep
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from splip.sweep import markdown

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"


def load(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return report


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def demo() -> str:
    means = load("demo")["query_mean"]
    columns = list(next(iter(means.values())))
    rows = [[name, *(f"{100 * values[c]:.1f}" for c in columns)] for name, values in means.items()]
    rows[-1] = [f"**{cell}**" for cell in rows[-1]]
    return table(["", *columns], rows)


def kernels() -> str:
    """prompt_layernorm and patchify, one row a case: time of splip and torch, ratio, error."""
    report = load("ops-cpu")
    rows = [
        [f"`{r['op']}` {r['sizes']}", f"{r['splip_us'] / 1e3:.2f}", f"{r['torch_us'] / 1e3:.2f}", f"{r['ratio']:.2f}",
         f"{r['error']:.1e}"]
        for r in report["rows"]
    ]  # fmt: skip
    head = ["CPU, float32, medians", "splip ms", "torch ms", "torch / splip", "largest error"]
    return table(head, rows) + f"\n\n{_machine(report['machine'])}"


def search() -> str:
    """Exact top-k in a packed gallery: splip's time, and how many times longer the others take."""
    report = load("cosine_topk-cpu")
    peers = [name for name in report["rows"][0]["median_ms"] if name != "splip"]
    rows = []
    for r in report["rows"]:
        ours = r["median_ms"]["splip"]
        others = [
            f"{r['ratio'][p]:.1f}" + (f" (recall {r['recall'][p]:.2f})" if r["recall"][p] < 0.995 else "")
            for p in peers
        ]
        rows.append([f"{r['gallery']}, K={r['K']}, Q={r['Q']}", f"{ours:.1f}", f"{1e3 * r['Q'] / ours:,.0f}", *others])
    first, m = report["rows"][0], report["machine"]
    head = [f"N={first['N']:,}, D={first['D']}", "splip ms", "queries/s", *(f"{p} / splip" for p in peers)]
    return (
        table(head, rows)
        + f"\n\nMedians; splip's recall is 1. Packing {first['pack_GB_per_s']:.1f} GB/s, memory reads {m['read_GB_per_s']:.0f} GB/s,"
        + f" {m['kernels']} kernels. {_machine(m)}"
    )


def ablation() -> str:
    """The sweep over the sample data: means and spreads over seeds."""
    return markdown(load("ablation-sample")).strip()


def ablation_fg() -> str:
    """The fine-grained sweep."""
    return markdown(load("ablation-sample-fg")).strip()


def train() -> str:
    """A training step: ours, the straightforward one, and what lies between."""
    report = load("train-cpu")
    row, m = report["rows"][0], report["machine"]
    ours = row["median_ms"]["splip"]
    rows = [[name, f"{ms / 1e3:.2f}", f"{ms / ours:.1f}"] for name, ms in row["median_ms"].items()]
    where = ", ".join(f"{name} {ms / 1e3:.2f} s" for name, ms in row["where_ms"].items())
    title = f"{row['backbone']}, {row['batch']} sketches, {row['classes']} classes, CPU"
    return (
        table([f"one step: {title}", "seconds", "/ splip"], rows)
        + f"\n\nThe same loss ({row['error']:.0e} relative) and gradients ({row['gradient_error']:.0e}). A step of splip:"
        + f" {where}.\n{_machine(m)}"
    )


def evaluation() -> str:
    """All metrics of a gallery of Sketchy's size: ours, a loop over the queries, torchmetrics."""
    report = load("eval-cpu")
    first = report["rows"][0]
    names = {"splip": "splip", "loop": "a loop over the queries", "torchmetrics": "torchmetrics"}
    rows = [
        [
            names[r["candidate"]] + (f" ({r['timed_queries']} queries, multiplied up)" if r["extrapolated"] else ""),
            str(r["columns"]), f"{r['seconds']:.1f}", f"{r.get('ratio', 1):.1f}",
            f"{r['difference']:.0e}" if "difference" in r else "",
        ]
        for r in report["rows"]
    ]  # fmt: skip
    title = f"all metrics of {first['Q']:,} sketches in {first['N']:,} photos, D={first['D']}"
    return (
        table([title, "metrics", "seconds", "/ splip", "largest difference"], rows)
        + f"\n\nPeak memory {first['peak_GB']:.2f} GB, of which {first['data_GB']:.2f} GB are libraries and the embeddings."
        + f" {_machine(report['machine'])}"
    )


def _machine(m: dict[str, Any]) -> str:
    """Where and how a table was measured."""
    return f"Measured on {m['cpu']}, {m['threads']} threads, torch {m['torch']}:\n`{m['command']}`"


TABLES = {
    "demo": demo,
    "ablation": ablation,
    "ablation-fg": ablation_fg,
    "train": train,
    "evaluation": evaluation,
    "search": search,
    "kernels": kernels,
}


def updated(text: str) -> str:
    """The README with each table between its markers made anew."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda m, make=make: f"{m.group(1)}\n{make()}\n\n{m.group(2)}", text)
    return text


def take_demo(folder: Path) -> None:
    """Copy the demo's numbers to the results, and its pictures, smaller, to docs/."""
    (RESULTS / "demo.json").write_text((folder / "results.json").read_text())
    for name in ("grid", "drawings"):
        take_picture(folder / f"{name}.png", f"demo-{name}")


def take_picture(path: Path, name: str) -> None:
    """A picture for docs/, with few colours."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small.save(README.parent / "docs" / f"{name}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the tables into README.md")
    parser.add_argument("--demo", type=Path, metavar="DIR", help="take over the results of `splip demo --out DIR`")
    parser.add_argument(
        "--sweep", nargs=2, metavar=("DIR", "NAME"), help="take over a sweep's results and plot under this name"
    )
    args = parser.parse_args()
    if args.sweep:
        folder, name = Path(args.sweep[0]), args.sweep[1]
        (RESULTS / f"{name}.json").write_text((folder / "results.json").read_text())
        take_picture(folder / "plot.png", name)
    if args.demo:
        take_demo(args.demo)
    if args.update:
        README.write_text(updated(README.read_text()))
    else:
        print("\n\n".join(make() for make in TABLES.values()))


if __name__ == "__main__":
    main()
