"""Write the tables of the README and of docs/ from the committed results.

python benchmarks/report.py            # prints them
python benchmarks/report.py --update   # writes them between the markers in README.md and docs/
python benchmarks/report.py --demo demo --update   # first takes over the results of `make demo`
"""

import argparse
import re
import statistics
from pathlib import Path
from typing import Any

import report_models
import report_training
from tables import RESULTS, load, machine, percent, table

README = Path(__file__).parent.parent / "README.md"
DOCS = README.parent / "docs"
PICTURES = DOCS / "pictures"
FLAT = "FAISS IndexFlatIP"


def demo() -> str:
    means = load("demo")["query_mean"]
    columns = list(next(iter(means.values())))
    rows = [[name, *(f"{100 * values[c]:.1f}" for c in columns)] for name, values in means.items()]
    rows = [[f"**{cell}**" for cell in row] if row[0] == "SpLIP" else row for row in rows]
    return table(["", *columns], rows)


def results() -> str:
    """mAP@all and Acc@1 of the methods on both backbones; docs/results.md has the rest."""
    groups, rows = load("sample")["groups"], {}
    for name in ("no-outlines", "splip-tiny"):
        for row, values in groups[name]["unlearned"]["zs"]["rows"].items():
            rows.setdefault(row, []).extend(percent(values[m]) for m in ("mAP@all", "Acc@1"))
        for row in groups[name]["rows"]:
            cells = [percent(row["zs"][m]) for m in ("mAP@all", "Acc@1")]
            rows.setdefault({"full": "SpLIP"}.get(row["name"], f"`{row['name']}`"), []).extend(cells)
    head = ["", "never saw a line: mAP@all", "Acc@1", "splip-tiny: mAP@all", "Acc@1"]
    gains = {
        row: [gain(groups[g], row, m) for g in ("no-outlines", "splip-tiny") for m in ("mAP@all", "Acc@1")]
        for row in ("full", "clip-ln")
    }
    ours, norms = gains["full"], gains["clip-ln"]
    return table(head, [[name.replace("plain", "plain backbone"), *cells] for name, cells in rows.items()]) + (
        f"\n\nSpLIP against the plain backbone: {ours[0]} mAP@all and {ours[1]} Acc@1 where no line was seen, {ours[2]} and "
        f"{ours[3]} on splip-tiny; its LayerNorms alone (`clip-ln`): {norms[0]} and {norms[1]}, {norms[2]} and {norms[3]}."
    )


def gain(group: dict[str, Any], name: str, metric: str) -> str:
    """How far a row of the results is above the plain backbone, in percent of it."""
    row = next(r for r in group["rows"] if r["name"] == name)
    plain = group["unlearned"]["zs"]["rows"]["plain"][metric]
    return f"{100 * (statistics.mean(row['zs'][metric]) / plain - 1):+.0f}%"


def kernels() -> str:
    """prompt_layernorm and patchify, one row a case: time of splip and torch, ratio, error."""
    report = load("ops-cpu")
    rows = [
        [f"`{r['op']}` {r['sizes']}", r["dtype"], r["part"], f"{r['splip_us'] / 1e3:.2f}", f"{r['ratio']:.2f}",
         f"{r['in_place_us'] / r['splip_us']:.2f}" if "in_place_us" in r else "", f"{r['error']:.1e}"]
        for r in report["rows"]
    ]  # fmt: skip
    head = ["CPU, medians", "", "", "splip ms", "torch / splip", "in place / splip", "largest difference"]
    return table(head, rows) + f"\n\n{machine(report['machine'])}"


def unpacked() -> str:
    """Searches of a gallery that is not packed: how many times splip's CPU time torch takes."""
    report = load("unpacked-cpu")
    levels = list(dict.fromkeys(r["level"] for r in report["rows"]))
    ratios = {(r["level"], r["Q"]): r["ratio"] for r in report["rows"]}
    counts = sorted({r["Q"] for r in report["rows"]})
    rows = [[f"`{level}`", *(f"{ratios[level, Q]:.1f}" for Q in counts)] for level in levels]
    N, D, K = (report["rows"][0][key] for key in "NDK")
    return (
        table(["Q", *map(str, counts)], rows)
        + f"\n\nN={N:,}, D={D}, K={K}; torch's CPU time / splip's, medians of turns. "
        + machine(report["machine"])
    )


def search(name: str = "cosine_topk-cpu") -> str:
    """Exact top-k in a packed gallery: splip's time, and how many times longer the others take."""
    report = load(name)
    m, rows = report["machine"], []
    for r in report["rows"]:
        ours = r["median_ms"]["splip"]
        best = min((p for p in r["ratio"] if p not in ("splip", FLAT)), key=lambda p: r["ratio"][p])
        recall = f", recall {r['recall'][best]:.2f}" if r["recall"][best] < 0.995 else ""
        ceilings = [f"{100 * r[share]:.0f}%" for share in ("read_share", "multiply_share") if share in r]
        rows.append(
            [f"{r['gallery']}, N={r['N']:,}, D={r['D']}, K={r['K']}", str(r["Q"]), f"{ours:.1f}"]
            + [f"{1e3 * r['Q'] / ours:,.0f}", *ceilings]
            + [f"{r['ratio'][FLAT]:.1f}", f"{r['ratio'][best]:.1f} ({best}{recall})"]
        )
    known = "read_GB_per_s" in m  # the ceilings of the machine, which a level below its own has none of
    shares = ["of reading", "of multiplying"] if known else []
    head = ["", "Q", "splip ms", "queries/s", *shares, f"{FLAT} / splip", "best other / splip"]
    ceilings_of = (
        f" `of reading` and `of multiplying`: share of this machine's ceilings, {m['read_GB_per_s']:.0f} GB/s and "
        f"{m['multiply_G_per_s']:,.0f} G byte products/s."
        if known
        else ""
    )
    return (
        table(head, rows)
        + f"\n\nMedians; splip's recall is 1.{ceilings_of} Packing "
        + f"{max(r['pack_GB_per_s'] for r in report['rows']):.1f} GB/s, {m['kernels']} kernels. {machine(m)}"
    )


def exact() -> str:
    """The README's sentence on searches: one query on the CPU, one and many on a card."""
    cpu, gpu = load("cosine_topk-cpu"), load("gpu/h100")
    first = cpu["rows"][0]
    card = {r["sizes"]: r["ms"] for r in gpu["rows"] if r["op"] == "cosine_topk"}
    one, many = (card[f"Q={Q} N=10,000,000 D=512 K=10 int8"] for Q in (1, 256))
    return (
        f"Searches are exact. The {first['K']} best of {first['N']:,} photos take {first['median_ms']['splip']:.0f} ms on "
        f"{cpu['machine']['threads']} CPU threads, {first['ratio'][FLAT]:.0f} times less than FAISS's exact index; of 10,000,000"
        f"\nthey take {one:.1f} ms on {gpu['machine']['gpu']}, and {256e3 / many:,.0f} queries a second are answered in batches of 256."
    )


def plot_search(path: Path) -> None:
    """Queries per second against batch size, log axes, of the first gallery of the search results."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    report = load("cosine_topk-cpu")
    first = report["rows"][0]
    same = [r for r in report["rows"] if all(r[key] == first[key] for key in ("gallery", "N", "D", "K"))]
    plt.rcParams["svg.hashsalt"] = "splip"
    figure, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
    axes.set_prop_cycle(color=["#1d3557", "#457b9d", "#2a9d8f", "#8ab17d", "#6d597a", "#b08968", "#7f8c8d", "#adb5bd"])
    for name in first["median_ms"]:
        x, y = [r["Q"] for r in same], [1e3 * r["Q"] / r["median_ms"][name] for r in same]
        style = {"color": "#c1121f", "linewidth": 2.8, "zorder": 5} if name == "splip" else {"linewidth": 1.2}
        recall = min(r["recall"][name] for r in same)
        label = "splip, exact" if name == "splip" else name + (f" (recall {recall:.2f})" if recall < 0.995 else "")
        axes.plot(x, y, marker="o", markersize=4, label=label, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([r["Q"] for r in same], [str(r["Q"]) for r in same])
    axes.set_xlabel("queries at a time")
    axes.set_ylabel("queries per second")
    axes.set_title(
        f"Top-{first['K']} of {first['N']:,} vectors, D = {first['D']}, {report['machine']['threads']} CPU threads"
    )
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


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
        + f" {where}.\n{machine(m)}"
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
        + f" {machine(report['machine'])}"
    )


def encoder() -> str:
    """Latency of every engine, beside how faithful it is."""
    report = load("encoder-cpu")
    rows = []
    for r in report["rows"]:
        f = r["fidelity"]
        batches = [f"{r['ms'][b]['median']:.1f} ({r['speedup'][b]:.1f}x)" for b in r["ms"]]
        faith = [f"{f['min_cosine']:.6f}", f"{100 * f['top10']:.1f}%"] if f else ["", ""]
        rows.append([r["engine"], *batches, f"{r['start_s']:.1f}", f"{r['rss_GB']:.1f}", *faith])
    first = report["rows"][0]
    head = [f"{first['backbone']}, CPU", *(f"batch {b}, ms" for b in first["ms"])]
    head += ["cold start, s", "RSS, GB", "smallest cosine", "same top 10"]
    return (
        table(head, rows)
        + "\n\nMedians from uint8 pixels to the vector, random weights; in brackets, how many times faster than open_clip in eager"
        + f" float32. `plain`: without prompts. {machine(report['machine'])}"
    )


def texts() -> str:
    """Latency of every engine on texts, beside its error."""
    report = load("text-cpu")
    rows = []
    for r in report["rows"]:
        batches = [f"{r['ms'][b]['median']:.1f} ({r['speedup'][b]:.1f}x)" for b in r["ms"]]
        error = "" if not r["max_difference"] else f"{r['max_difference']:.0e}"
        rows.append([r["engine"], *batches, error])
    counts = report["rows"][0]["ms"]
    head = [f"{report['backbone']}, CPU", *(f"{b} text{'s' * (b != '1')}, ms" for b in counts), "largest difference"]
    return (
        table(head, rows)
        + "\n\nMedians from two to eight words to the vector, random weights. `open_clip` is the plain tower; `training code`"
        + f" computes prompts and template along, the others have them folded in. {machine(report['machine'])}"
    )


def answers() -> str:
    """From PNG bytes to ten paths, by stage."""
    reports = [load("search-cpu"), load("search-openvino-cpu")]
    rows = []
    for r in (r for report in reports for r in report["rows"]):
        ms = r["ms"]
        stages = [f"{ms[s]['p50']:.1f}" if s in ms else "" for s in ("decode", "prepare", "encode", "search", "lookup")]
        total = " / ".join(f"{ms['total'][p]:.1f}" for p in ("p50", "p95", "p99"))
        case = {"one": "one query", "filtered": "one query, one label of 1,000", "batch": "32 queries"}[r["case"]]
        name = f"{r['model'].split(' (')[0]}, {r['engine']} {r['precision']}"
        rows.append([name, f"{r['N']:,}", case, *stages, total, f"{r['queries_per_s']:.0f}"])
    head = ["", "photos", "", "decode", "prepare", "encode", "search", "lookup", "total p50 / p95 / p99", "queries/s"]
    second = f"`{reports[1]['machine']['command']}`, on an export of a ViT-B/32"
    return table(head, rows) + f"\n\nms; stages are medians. {machine(reports[0]['machine'])}, and\n{second}."


def galleries() -> str:
    """Indexing against the engine alone, and opening a large gallery."""
    report = load("index-cpu")
    rows = [
        [
            r["model"].split(" (")[0],
            f"{r['pictures']:,}",
            f"{r['pictures_per_s']:.0f}",
            f"{r['engine_alone_per_s']:.0f}",
        ]
        + [f"{100 * r['share']:.0f}%", f"{r['unchanged_per_s']:,.0f}"]
        for r in report["rows"]
        if r["case"] == "add"
    ]
    head = ["`splip index add`", "pictures", "pictures/s", "engine alone", "share", "unchanged pictures/s"]
    text = table(head, rows)
    for r in report["rows"]:
        if r["case"] == "open":
            text += (
                f"\n\nOpening {r['rows']:,} vectors of width {r['dim']}: {1e3 * r['open_s']:.0f} ms; the first search, which maps"
                f" them, {1e3 * r['first_search_s']:.0f} ms, later ones {r['search_ms']:.1f} ms."
            )
    return text + f" {machine(report['machine'])}"


def service() -> str:
    """Requests a second with and without dynamic batching, and the page's latency."""
    report = load("serve-cpu")
    rows = [
        [str(r["clients"])]
        + [f"{r[name]['requests_per_s']:.0f}" for name in ("off", "on")]
        + [f"{r['gain']:.2f}"]
        + [" / ".join(f"{r['on']['ms'][p]:.0f}" for p in ("p50", "p95", "p99"))]
        for r in report["rows"]
    ]
    head = ["clients", "requests/s, batching off", "on", "on / off", "ms with batching, p50 / p95 / p99"]
    page, text = report.get("page"), table(head, rows)
    text += f"\n\n{report['model'].removesuffix('.pt')}, {report['gallery']:,} vectors."
    if page:
        text += (
            f" The page, from pen-up to the new photos on the screen: p50 {page['frame_ms']['p50']:.0f} ms,"
            f" p95 {page['frame_ms']['p95']:.0f} ms ({page['strokes']} strokes, Chromium {page['chromium'].split('.')[0]})."
        )
    return text + f" {machine(report['machine'])}"


def cluster() -> str:
    """Searches and embedding by three Ray nodes on one machine, beside one process; and what kills did."""
    report, faults = load("cluster-cpu"), load("cluster_faults")
    rows, embed = [], next(r for r in report["rows"] if r["case"] == "embed")
    for r in report["rows"]:
        for b in r.get("batches", ()):
            one, all_, extra = b["one_ms"]["median"], b["cluster_ms"]["median"], b["extra_ms"]
            rows.append([f"{r['rows']:,} x {r['dim']}", str(b["queries"]), f"{one:.1f}", f"{all_:.1f}", f"{extra:.1f}"])
    head = ["exact search, three shards, the same answers", "queries", "one process ms", "cluster ms", "more ms"]
    whole = statistics.median(r["whole_again_s"] for r in faults["runs"] if "whole_again_s" in r)
    embedded, single = statistics.median(embed["cluster_per_s"]), statistics.median(embed["one_process_per_s"])
    return (
        table(head, rows)
        + f"\n\nMedians. Embedding {embed['pictures']:,} pictures: {embedded:,.0f} a second by {embed['workers']} workers "
        + f"after start-up, {single:,.0f} in one process on the same cores. {len(faults['runs'])} kills of nodes, of the "
        + "process that hands out work and of shards (`tools/cluster_faults.py`): nothing lost, nothing twice; searches "
        + f"whole again after {whole:.0f} s. {machine(report['machine'])}"
    )


def gpu() -> str:
    """Searches and the other ops on a card: the share of what it reads, copies or multiplies at most, and torch."""
    report = load("gpu/h100")
    rows = []
    for row in report["rows"]:
        others = {n: t["median"] for n, t in row["times"].items() if n.startswith("torch") and "median" in t}
        if not others or "torch.compile" in others:
            continue
        peer = min(others, key=lambda n: others[n])
        sizes = row["sizes"]
        if row["op"] == "cosine_topk":
            Q = int(sizes.split()[0].removeprefix("Q="))
            if Q not in GPU_QUERIES or not any(part in sizes for part in GPU_GALLERIES):
                continue
            speed = f"{1000 * Q / row['ms']:,.0f}"
        else:
            speed = ""
        found = row.get("peers_recall", {}).get(peer, 1)
        said = f"{others[peer] / row['ms']:.1f} ({peer}{f', recall {found:.2f}' if found < 0.995 else ''})"
        rows.append(
            [
                f"`{row['op']}` {sizes}",
                f"{row['ms']:.2f}",
                speed,
                f"{row['of_floor']:.0%} {GPU_BOUND[row['bound']]}",
                said,
            ]
        )
    ceiling, card = report["ceilings"], report["machine"]
    return (
        table(["", "ms", "queries/s", "of the card's", "fastest of torch / splip"], rows)
        + f"\n\n{card['gpu']}, CUDA {card['cuda']}, torch {card['torch']}. The card reads {ceiling['read_GB_per_s']:,.0f} GB/s, copies"
        f"\n{ceiling['copy_GB_per_s']:,.0f} GB/s and multiplies at {ceiling['bf16_TFLOP_per_s']:.0f} TFLOP/s (bf16) and"
        f" {ceiling['int8_TOP_per_s']:.0f} TOP/s (int8), measured in the same run:\n`python benchmarks/gpu_suite.py --out DIR`"
    )


def commands() -> str:
    """Seconds of short commands, beside what an import of torch alone takes."""
    report = load("commands-cpu")
    rows = [[f"`{r['command']}`", f"{r['cpu_s']:.2f}", f"{r['wall_s']:.2f}"] for r in report["rows"]]
    return (
        table(["", "processor, s", "wall, s"], rows)
        + "\n\nMedians of processes that take turns; a gallery of an export, which needs no torch. "
        + machine(report["machine"])
    )


GPU_QUERIES = (1, 8, 32, 256, 1024, 4096)
GPU_GALLERIES = ("N=10,000,000 D=512 K=10 float16", "N=10,000,000 D=512 K=10 int8", "N=4,000,000 D=768 K=10 float16",
                 "N=4,000,000 D=768 K=10 int8", "N=1,000,000 D=512 K=10 bfloat16")  # fmt: skip
GPU_BOUND = {"memory": "bandwidth", "arithmetic": "multiplying"}


TABLES = {
    "worlds": report_models.worlds,
    "demo": demo,
    "dimensions": report_models.dimensions,
    "results": results,
    "exact": exact,
    "train": train,
    "memory": report_training.memory,
    "partial": report_training.partial,
    "pseudo": report_training.pseudo,
    "evaluation": evaluation,
    "search": search,
    "search-avx2": lambda: search("cosine_topk-avx2-cpu"),
    "unpacked": unpacked,
    "kernels": kernels,
    "gpu": gpu,
    "encoder": encoder,
    "texts": texts,
    "towers": report_models.towers,
    "icon-study": report_models.icon_study,
    "icon-tuning": report_models.icon_tuning,
    "rivals": report_models.rivals,
    "rivals-fine": report_models.rivals_fine,
    "families": report_models.families,
    "answers": answers,
    "galleries": galleries,
    "service": service,
    "commands": commands,
    "cluster": cluster,
}


def pages() -> list[Path]:
    """Where tables may be: the README and the pages of docs/."""
    return [README, *sorted(DOCS.rglob("*.md"))]


def updated(text: str) -> str:
    """A page with each table between its markers made anew."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda m, make=make: f"{m.group(1)}\n{make()}\n\n{m.group(2)}", text)
    return text


def take_demo(folder: Path) -> None:
    """Copy the demo's numbers to the results, and its pictures, smaller, to docs/pictures/."""
    (RESULTS / "demo.json").write_text((folder / "results.json").read_text())
    for name in ("grid", "drawings"):
        take_picture(folder / f"{name}.png", f"demo-{name}")


def take_picture(path: Path, name: str) -> None:
    """A picture for docs/pictures/, with few colours."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small.save(PICTURES / f"{name}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the tables into README.md and docs/")
    parser.add_argument("--demo", type=Path, metavar="DIR", help="take over the results of `splip demo --out DIR`")
    args = parser.parse_args()
    if args.demo:
        take_demo(args.demo)
    if args.update:
        plot_search(PICTURES / "search.svg")
        for path in pages():
            before = path.read_text(encoding="utf-8")
            if (after := updated(before)) != before:
                path.write_text(after, encoding="utf-8")
                print(path)
    else:
        print("\n\n".join(make() for make in TABLES.values()))


if __name__ == "__main__":
    main()
