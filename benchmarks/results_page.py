"""Write docs/results.md, its plots and its pictures, from benchmarks/results/sample.json.

python benchmarks/results_page.py                        # the page and the plots
python benchmarks/results_page.py --runs runs/results    # also the grids of sample_results.py's runs
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import report
import report_models

COLUMNS = ["mAP@all", "P@10", "Acc@1", "Acc@5"]
TITLES = {"no-outlines": "The backbone that never saw a line", "splip-tiny": "splip-tiny"}
UNLEARNED = {"chance": "chance", "raw pixels": "raw pixels", "HOG": "HOG, no learning", "plain": "plain backbone"}
SIZE = """## Size

Backbones of two sizes, pre-trained on the same number of pictures with outlines, a tenth of what the packaged one saw; one
seed, unseen classes:

"""
BUDGET = """

So few pictures are not enough for the larger one, which has hardly begun to learn; with this budget, smaller is better. A
trend that says more about size wants a GPU.
"""
LABELS = {"full": "**SpLIP**", "clip-at": "CLIP-AT", "clip-at-fg": "CLIP-AT, fine-grained", "maple": "MaPLe",
          "clip-ln": "normalisation alone (`clip-ln`)"}  # fmt: skip


def label(row: dict[str, Any]) -> str:
    return LABELS.get(row["name"], row["label"])


def methods(group: dict[str, Any], protocol: str, columns: list[str]) -> str:
    """What learns nothing, then the methods: metrics, trained numbers, time."""
    rows = []
    for name, values in group.get("unlearned", {}).get(protocol, {"rows": {}})["rows"].items():
        rows.append([UNLEARNED[name], *(report.percent(values[c]) for c in columns), "0", ""])
    for row in group["rows"]:
        if protocol in row:
            seconds = f"{statistics.median(row['seconds']):.0f}"
            rows.append(
                [label(row), *(report.percent(row[protocol][c]) for c in columns), f"{row['trainable']:,}", seconds]
            )
    return report.table(["", *columns, "trained", "seconds"], rows)


def ablations(data: dict[str, Any]) -> str:
    group, rows = data["groups"]["ablations"], []
    full = next(r for r in data["groups"]["no-outlines"]["rows"] if r["name"] == "full")
    for row in [full, *group["rows"]]:
        name = "SpLIP, everything" if row is full else row["label"]
        rows.append([name, *(report.percent(row["zs"][c]) for c in COLUMNS), f"{row['trainable']:,}"])
    return report.table(["", *COLUMNS, "trained"], rows)


def tuning(data: dict[str, Any]) -> str:
    rows = [[r["name"], report.percent(r["mAP@all"]), report.percent(r["Acc@1"])] for r in data["tuning"]]
    return report.table(["", "mAP@all", "Acc@1"], rows)


def scaling(data: dict[str, Any]) -> str:
    """Backbones of several sizes, plain and with SpLIP; nothing where none were trained."""
    if not data["scaling"]:
        return ""
    rows = []
    for r in data["scaling"]:
        found = [report.percent(r[key][metric]) for key in ("plain", "SpLIP") for metric in ("mAP@all", "Acc@1")]
        rows.append([r["name"], f"{r['visual_parameters'] / 1e6:.1f} M", f"{96 * r['steps']:,}", *found])
    head = ["", "visual tower", "pictures", "plain mAP@all", "plain Acc@1", "SpLIP mAP@all", "SpLIP Acc@1"]
    return SIZE + report.table(head, rows) + BUDGET


# ---- plots ----


def _axes(width: float, height: float, count: int = 1) -> Any:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "splip"
    figure, axes = plt.subplots(1, count, figsize=(width, height), layout="constrained", squeeze=False)
    for one in axes[0]:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(True, alpha=0.3)
        one.set_axisbelow(True)
    return figure, axes[0]


def _save(figure: Any, name: str) -> None:
    from matplotlib import pyplot as plt

    figure.savefig(report.PICTURES / f"results-{name}.svg", metadata={"Date": None})
    plt.close(figure)


def plot_ablations(data: dict[str, Any]) -> None:
    """Bars of mean mAP@all and Acc@1, lines for the standard deviation over seeds."""
    full = next(r for r in data["groups"]["no-outlines"]["rows"] if r["name"] == "full")
    plain = data["groups"]["no-outlines"]["unlearned"]["zs"]["rows"]["plain"]
    rows = [full, *data["groups"]["ablations"]["rows"]]
    figure, axes = _axes(10, 0.36 * len(rows) + 1.2, 2)
    names = ["SpLIP, everything", *(r["label"] for r in rows[1:])]
    for one, metric in zip(axes, ("mAP@all", "Acc@1"), strict=True):
        means = [100 * statistics.mean(r["zs"][metric]) for r in rows]
        spread = [100 * statistics.stdev(r["zs"][metric]) if len(r["zs"][metric]) > 1 else 0.0 for r in rows]
        one.barh(range(len(rows)), means, xerr=spread, color=["#c1121f", *["#457b9d"] * (len(rows) - 1)], capsize=3)
        one.axvline(100 * plain[metric], color="#1d3557", linestyle="--", linewidth=1, label="plain backbone")
        one.axvline(means[0], color="#c1121f", linewidth=0.8)
        one.set_yticks(range(len(rows)), names if one is axes[0] else [""] * len(rows))
        one.invert_yaxis()
        one.set_xlim(0.8 * 100 * plain[metric])
        one.set_xlabel(f"{metric}, percent")
        one.grid(False, axis="y")
    axes[0].legend(frameon=False, loc="lower right", fontsize=8)
    _save(figure, "ablations")


def plot_curves(data: dict[str, Any]) -> None:
    """mAP@all on the validation classes against steps; a band from the least to the greatest of the seeds."""
    figure, axes = _axes(10, 3.6, 2)
    colours = {"full": "#c1121f", "clip-ln": "#1d3557", "clip-at": "#2a9d8f", "maple": "#b08968"}
    for one, (name, title) in zip(axes, TITLES.items(), strict=True):
        for row in data["groups"][name]["rows"]:
            steps = [point[0] for point in row["curves"][0]]
            values = [[100 * curve[i][1] for curve in row["curves"]] for i in range(len(steps))]
            colour = colours[row["name"]]
            one.plot(steps, [statistics.mean(v) for v in values], marker="o", markersize=3, color=colour,
                     label=label(row).strip("*").replace("`", ""), linewidth=2.2 if row["name"] == "full" else 1.2)  # fmt: skip
            one.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15)
        one.set_title(title, fontsize=10)
        one.set_xlabel("step")
        one.set_ylabel("mAP@all, validation classes, percent")
    axes[0].legend(frameon=False, fontsize=8)
    _save(figure, "curves")


# ---- the page ----


def page(data: dict[str, Any]) -> str:
    groups = data["groups"]
    blind, tiny = groups["no-outlines"], groups["splip-tiny"]
    zs = blind["unlearned"]["zs"]
    gzs = next(p for p in blind["unlearned"] if p.startswith("gzs"))
    in_class, among_all = (
        next(p for p in blind["unlearned"] if p.startswith("fg") and p.endswith(e)) for e in ("per-class", "all")
    )
    machine = data["machine"]
    text = (Path(__file__).parent / "results_page.md").read_text(encoding="utf-8")
    facts = {
        "seeds": str(len(data["seeds"])),
        "queries": str(zs["queries"]),
        "gallery": str(zs["gallery"]),
        "gzs_gallery": str(blind["unlearned"][gzs]["gallery"]),
        "steps": str(data["common"]["steps"]),
        "blind_zs": methods(blind, "zs", COLUMNS),
        "tiny_zs": methods(tiny, "zs", COLUMNS),
        "blind_gzs": methods(blind, gzs, COLUMNS),
        "tiny_gzs": methods(tiny, gzs, COLUMNS),
        "fine_in_class": methods(groups["fine-grained"] | {"unlearned": blind["unlearned"]}, in_class,
                                 ["Acc@1 in class", "Acc@5 in class"]),
        "fine_all": methods(groups["fine-grained"] | {"unlearned": blind["unlearned"]}, among_all, ["Acc@1", "Acc@5", "Acc@10"]),
        "ablations": ablations(data),
        "tuning": tuning(data),
        "start": report_models.start(),
        "size": scaling(data),
        "gain_map": report.gain(blind, "full", "mAP@all"),
        "gain_acc": report.gain(blind, "full", "Acc@1"),
        "norm_map": report.gain(blind, "clip-ln", "mAP@all"),
        "norm_acc": report.gain(blind, "clip-ln", "Acc@1"),
        "prompt_map": report.gain(blind, "maple", "mAP@all"),
        "tiny_gain_map": report.gain(tiny, "full", "mAP@all"),
        "tiny_gain_acc": report.gain(tiny, "full", "Acc@1"),
        "machine": f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, {data['jobs']} runs at a time",
    }  # fmt: skip
    for name, value in facts.items():
        text = text.replace("{" + name + "}", value)
    return text.replace("\n\n\n", "\n\n")


def take_pictures(runs: Path) -> None:
    for group in TITLES:
        for which in ("best", "median", "worst"):
            report.take_picture(runs / group / "pictures-zs" / f"{which}.png", f"results-{group}-{which}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder of sample_results.py's runs, for their pictures")
    args = parser.parse_args()
    data = report.load("sample")
    if args.runs:
        take_pictures(args.runs)
    plot_ablations(data)
    plot_curves(data)
    (report.DOCS / "results.md").write_text(page(data), encoding="utf-8")
    print(report.DOCS / "results.md")


if __name__ == "__main__":
    main()
