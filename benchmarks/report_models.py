"""Tables about models: what prompts do, sizes of vectors, families of backbones; benchmarks/report.py writes them."""

import statistics
from typing import Any

from tables import load, machine, percent, table


def worlds() -> str:
    """What each row reached in the two worlds, over seeds: own prompts, swapped, removed."""
    report, parts = load("worlds"), []
    for world, title in (("two_objects", "Two objects"), ("planted", "Planted teacher")):
        found: dict[str, list[Any]] = {}
        for one in report[world]:
            found.setdefault(one["row"], []).append(one)

        def cells(runs: list[Any], key: str, metric: str) -> str:
            return percent([one[key][metric] / 100 for one in runs]) if key in runs[0] else ""

        rows = [
            [name, *(cells(runs, key, metric) for key in ("own", "swapped", "removed") for metric in ("AUC", "mAP"))]
            for name, runs in found.items()
        ]
        parts.append(table([f"**{title}**", "AUC", "mAP", "swapped: AUC", "mAP", "removed: AUC", "mAP"], rows))
    settings = report["settings"]
    return "\n\n".join(parts) + (
        f"\n\nUnseen classes; {len(settings['seeds'])} seeds, {settings['steps']} steps. {machine(report['machine'])}"
    )


def start() -> str:
    """SpLIP less one thing, on the validation classes."""
    report, rows = load("start"), []
    columns = ("val_mAP", "val_Acc1", "val_mAP_removed", "val_mAP_swapped", "val_attention")
    for row in report["rows"]:
        cells = [percent([r[c] for r in row["runs"]]) if row["runs"][0][c] is not None else "" for c in columns]
        rows.append([row["label"], *cells])
    head = ["", "mAP@all", "Acc@1", "prompts removed", "prompts swapped", "attention on prompts"]
    return table(head, rows) + f"\n\nValidation classes, {len(report['seeds'])} seeds. {machine(report['machine'])}"


def rivals() -> str:
    """SpLIP with each loss of another method, on the validation classes, and how far each seed is from SpLIP alone."""
    report, rows = load("rivals"), []
    base = {run["seed"]: run["val_mAP"] for run in report["rows"][0]["runs"]}
    for row in report["rows"]:
        setting = ", ".join(f"`loss.{name}: {value:g}`" for name, value in row["loss"].items())
        gains = [f"{100 * (run['val_mAP'] - base[run['seed']]):+.1f}" for run in row["runs"]]
        cells = [percent([run[c] for run in row["runs"]]) for c in ("val_mAP", "val_Acc1")]
        rows.append([row["label"], setting, *cells, ", ".join(gains) if row["loss"] else ""])
    head = ["", "setting", "mAP@all", "Acc@1", "mAP@all, seed by seed"]
    one = "; where no spread is said, the first alone" if any(len(row["runs"]) == 1 for row in report["rows"]) else ""
    seeds = f"{len(report['seeds'])} seeds{one}"
    return table(head, rows) + f"\n\nValidation classes, {seeds}. {machine(report['machine'])}"


def rivals_fine() -> str:
    """DP-CLIP's prompts, shown photos of the class or not, beside LayerNorms alone."""
    report, rows = load("rivals"), []
    names = {
        "clip-ln": "LayerNorms alone (`clip-ln`)",
        "dp-clip": "prompts (`--prompts.no-channel-scales`)",
        "dp-clip-scales": "prompts and scales (`dp-clip`)",
    }
    for name, runs in report["fine"].items():
        method, shown = name.split()
        columns = [name for name in runs[0] if name != "seed"]
        photos = "1 photo" if shown == "1" else f"{shown} photos"
        told = f", **shown {photos} of each class**" if shown != "0" else ""
        rows.append([names[method] + told, *(percent([run[c] for run in runs]) for c in columns)])
    return (
        table(["fine-grained", *columns], rows)
        + f"\n\nValidation classes, {len(report['seeds'])} seeds, the same runs as above."
    )


def dimensions() -> str:
    """mAP@all at each size: float32 of every run, and the smaller forms of two."""
    rows = load("dimensions-cpu")["rows"]
    found = {(r["loss"], r["form"], r["dimensions"]): f"{100 * r['mAP@all']:.1f}" for r in rows}
    sizes = sorted({r["dimensions"] for r in rows})
    names = {
        ("plain", "float32"): "plain training, cut all the same",
        ("not turned", "float32"): "`loss.matryoshka`, `--loss.no-rotate`",
        ("turned", "float32"): "plain training, turned afterwards",
        ("matryoshka", "float32"): "**`loss.matryoshka`**",
        ("matryoshka", "int8"): "the same in 8-bit numbers",
        ("matryoshka", "binary"): "the same in bits",
        ("plain", "binary"): "plain training in bits",
    }
    lines = [[text, *(found[(*key, size)] for size in sizes)] for key, text in names.items()]
    return table(["components", *map(str, sizes)], lines)


def towers() -> str:
    """Every family's encoder beside its own library's forward pass."""
    report = load("towers-cpu")
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    for r in report["rows"]:
        by_name.setdefault(f"`{r['backbone']}`", {})[r["batch"]] = r
    rows = []
    for name, batches in by_name.items():
        ratios = [
            f"{r['ratio'][key]:.2f} ({r['cpu_ratio'][key]:.2f})"
            for r in batches.values()
            for key in ("training code", "deployed")
        ]
        error = max(r["max_difference"]["deployed"] for r in batches.values())
        rows.append([name, *ratios, f"{error:.0e}"])
    sizes = next(iter(by_name.values()))
    head = ["", *(f"batch {b}, {what}" for b in sizes for what in ("training code", "deployed")), "largest difference"]
    return (
        table(head, rows)
        + "\n\nTime as a share of the library's own forward pass (open_clip's or timm's, float32): below 1 is faster; in brackets"
        + " the processor's time, which others on the machine disturb less. Medians of rounds that take turns, random weights, without"
        + f" prompts. {machine(report['machine'])}"
    )


def families() -> str:
    """What each family of backbones can do, from the list that the tests run."""
    from splip.models.towers.table import markdown

    return markdown()


def icon_study() -> str:
    """What each row of the icon study gave on unseen nouns, and what the rule says."""
    report, parts = load("icon-study"), []
    for name, part in report["backbones"].items():
        rows = []
        for label, values in part["untrained"].items():
            rows.append([label, f"{100 * values['mAP@all']:.1f}", f"{100 * values['P@10']:.1f}", "", "", ""])
        for key, row in part["rows"].items():
            own, *others = [
                [seed[method] for seed in row["seeds"]] for method in row["seeds"][0]
            ]  # the method, its prompts removed, swapped
            lost = [
                f"{100 * (statistics.mean(s['mAP@all'] for s in other) - statistics.mean(s['mAP@all'] for s in own)):+.2f}"
                for other in others
            ]
            gain = part["differences"].get(f"splip - {key}")
            low, high = gain["over_classes"] if gain else (0, 0)
            ahead = f"{100 * gain['mAP@all']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})" if gain else ""
            cells = [percent([seed[metric] for seed in own]) for metric in ("mAP@all", "P@10")]
            rows.append([row["label"], *cells, *(lost or ["", ""]), ahead])
        head = [f"**{name}**", "mAP@all", "P@10", "prompts removed", "swapped", "SpLIP less this, mAP@all"]
        parts.append(table(head, rows))
    gain, cost = report["decision"]["difference"], report["decision"]["removing_costs"]
    low, high = (100 * bound for bound in gain["over_classes"])
    helps = "**help**" if report["decision"]["helps"] else "**do not help**"
    verdict = (
        f"SpLIP less its own losses without prompts, on *plain*: {100 * gain['mAP@all']:+.2f} points of mAP@all, 95% interval "
        f"{low:+.2f} to {high:+.2f}; taking the prompts out of the trained model costs {cost:.2f}. By the rule, the prompts {helps}."
    )
    return "\n\n".join(
        [verdict, *parts, "Unseen nouns, three seeds; intervals over nouns. " + machine(report["machine"])]
    )


def icon_tuning() -> str:
    """Every trial of the icon study, on the validation nouns."""
    rows = []
    for row, one in load("icon-study")["tuning"].items():
        trials = [
            f"{'**' if [t['lr'], t['layernorm_lr']] == list(one['chosen']) else ''}{t['lr']:g}, {t['layernorm_lr']:g}: "
            f"{100 * t['val_mAP']:.1f}{'**' if [t['lr'], t['layernorm_lr']] == list(one['chosen']) else ''}"
            for t in one["trials"]
        ]
        rows.append([row, *trials])
    return table(["rates of what is new, of LayerNorms: mAP@all", *map(str, range(1, 7))], rows)
