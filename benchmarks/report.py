"""Write the tables of the README from the committed results.

python benchmarks/report.py            # prints them
python benchmarks/report.py --update   # writes them between the markers in README.md
python benchmarks/report.py --demo demo --update   # first takes over the results of `make demo`
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
    """Both benchmarks of the ops, one row a case: time of splip and torch, ratio, error."""
    ops, topk = load("ops-cpu"), load("cosine_topk-cpu")
    rows = [
        [f"`{r['op']}` {r['sizes']}", f"{r['splip_us'] / 1e3:.2f}", f"{r['torch_us'] / 1e3:.2f}", f"{r['ratio']:.2f}",
         f"largest error {r['error']:.1e}"]
        for r in ops["rows"]
    ]  # fmt: skip
    rows += [
        [f"`cosine_topk` Q={r['Q']} N={r['N']} D={r['D']} K={r['K']}", f"{r['splip_us'] / 1e3:.2f}",
         f"{r['torch_us'] / 1e3:.2f}", f"{r['ratio']:.2f}",
         f"recall {r['splip_recall']:.3f}, {r['splip_queries_per_s']:.0f} queries/s"]
        for r in topk["rows"]
    ]  # fmt: skip
    m = topk["machine"]
    return (
        table(["CPU, float32, medians", "splip ms", "torch ms", "torch / splip", ""], rows)
        + f"\n\nMeasured on {m['cpu']}, {m['threads']} threads, torch {m['torch']}, {m['kernels']} kernels."
    )


def ablation() -> str:
    """The sweep over the sample data: means and spreads over seeds."""
    return markdown(load("ablation-sample")).strip()


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
        + f" {where}.\n{_machine(m)} `python benchmarks/bench_train.py --save cpu`"
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
        + f" {_machine(report['machine'])}\n`python benchmarks/bench_eval.py --save cpu`"
    )


def _machine(m: dict[str, Any]) -> str:
    return f"Measured on {m['cpu']}, {m['threads']} threads, torch {m['torch']}:"


TABLES = {"demo": demo, "ablation": ablation, "train": train, "evaluation": evaluation, "kernels": kernels}


def updated(text: str) -> str:
    """The README with each table between its markers made anew."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda m, make=make: f"{m.group(1)}\n{make()}\n\n{m.group(2)}", text)
    return text


def take_demo(folder: Path) -> None:
    """Copy the demo's numbers to the results, and its pictures, smaller, to docs/."""
    from PIL import Image

    (RESULTS / "demo.json").write_text((folder / "results.json").read_text())
    for name in ("grid", "drawings"):
        with Image.open(folder / f"{name}.png") as image:
            small = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        small.save(README.parent / "docs" / f"demo-{name}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the tables into README.md")
    parser.add_argument("--demo", type=Path, metavar="DIR", help="take over the results of `splip demo --out DIR`")
    args = parser.parse_args()
    if args.demo:
        take_demo(args.demo)
    if args.update:
        README.write_text(updated(README.read_text()))
    else:
        print("\n\n".join(make() for make in TABLES.values()))


if __name__ == "__main__":
    main()
