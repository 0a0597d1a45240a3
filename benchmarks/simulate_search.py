"""Predict how long an exact search over many hosts takes, before anything is bought; and write the tables of docs/scale.md.

python benchmarks/simulate_search.py --rows 1e9 --hosts 1 2 4 8          # p50 and p99 of one query
python benchmarks/simulate_search.py --rows 1e9 --hosts 4 --queries 32 --slow 0.01 --slow-factor 10
python benchmarks/simulate_search.py --rows 1e8 --hosts 4 --bandwidth 28 --multiply 590 --hop-ms 2   # four small machines
python benchmarks/simulate_search.py --measured benchmarks/results/cluster-cpu.json --bandwidth 28 --multiply 590
python benchmarks/simulate_search.py --update                             # docs/scale.md

A search reads every vector of a shard once, for all queries of a batch together: a shard takes about the longer of reading
its bytes and multiplying them. Shards on a host share its bandwidth. The front waits for the slowest shard, so with S shards the
median search sees what one shard in S does, and a straggler that is rare on one host is common over all of them.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
SIZES = (10**6, 10**7, 10**8, 10**9, 10**10)
DIM = 512
ROW_EXTRA = 16  # bytes of scales and norms that the scan reads beside a row of bytes
USED = 0.8  # of a memory, for vectors


@dataclass(frozen=True)
class Cluster:
    """Hosts that search a gallery together.

    The defaults are a server of today as we assume it, measured nowhere here; but the front's times are those measured with
    Ray on two cores (``cluster-cpu.json``, the small gallery), rounded.
    """

    rows: float = 1e9
    dim: int = DIM
    hosts: int = 4
    shards_per_host: int = 1
    queries: int = 1  # in a batch
    bandwidth: float = 250.0  # GB/s that the scan of a host reaches
    multiply: float = 19_000.0  # G byte products/s that it reaches
    hop_ms: float = 4.5  # there and back
    per_query_ms: float = 0.38  # of the front, for each query: it merges and looks the photos up
    per_shard_ms: float = 0.05  # of the front, for each shard: it sends and reads one after the other
    jitter: float = 0.1  # standard deviation of the logarithm of a shard's time
    slow: float = 0.001  # share of a shard's scans that take slow_factor times as long
    slow_factor: float = 5.0

    @property
    def shards(self) -> int:
        return self.hosts * self.shards_per_host

    def scan_ms(self) -> float:
        """One shard's scan, without stragglers."""
        rows = self.rows / self.shards
        read = rows * (self.dim + ROW_EXTRA) / (self.bandwidth / self.shards_per_host * 1e9)
        multiplied = rows * self.dim * self.queries / (self.multiply / self.shards_per_host * 1e9)
        return 1e3 * math.hypot(read, multiplied)  # they overlap in part; near the crossing this fits better than max

    def times_ms(self, trials: int = 20_000, seed: int = 0) -> np.ndarray:
        """Simulated searches, float64 ``[trials]``."""
        rng = np.random.default_rng(seed)
        worst = np.zeros(trials)
        for _ in range(self.shards):
            factor = np.exp(self.jitter * rng.standard_normal(trials))
            factor[rng.random(trials) < self.slow] *= self.slow_factor
            worst = np.maximum(worst, factor)
        times: np.ndarray = self.scan_ms() * worst + self.hop_ms + self.per_shard_ms * self.shards
        return times + self.per_query_ms * self.queries

    def quantiles(self, trials: int = 20_000, seed: int = 0) -> tuple[float, float]:
        """p50 and p99 in ms."""
        p50, p99 = np.quantile(self.times_ms(trials, seed), [0.5, 0.99])
        return float(p50), float(p99)


@dataclass(frozen=True)
class Prices:
    """What docs/scale.md assumes; no offer of anybody's."""

    host: float = 4.0  # $ an hour: 64 cores, 512 GB of memory
    host_memory: float = 512.0  # GB
    host_cores: int = 64
    gpu: float = 3.0  # $ an hour: one with 80 GB of memory
    gpu_memory: float = 80.0
    gpu_images: float = 4_000.0  # ViT-B/32 pictures a second on that GPU, decoding included
    disk: float = 0.08  # $ a GB and month


# ---- measured points ----


def load(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return report


def scans() -> list[dict[str, Any]]:
    """The measured scans that the model is about: random rows, few results."""
    rows = load("cosine_topk-cpu")["rows"]
    return [r for r in rows if r["gallery"] == "random" and r["K"] == 10 and r["D"] == DIM]


def this_machine() -> Cluster:
    """The machine of the committed results: what its scans reach, reading and multiplying."""
    found = scans()
    reading = max(r["N"] * (r["D"] + ROW_EXTRA) / r["median_ms"]["splip"] / 1e6 for r in found if r["Q"] == 1)
    multiplying = max(r["Q"] * r["N"] * r["D"] / r["median_ms"]["splip"] / 1e6 for r in found)
    own = {"hop_ms": 0, "per_query_ms": 0, "per_shard_ms": 0, "jitter": 0, "slow": 0}
    return Cluster(hosts=1, bandwidth=reading, multiply=multiplying, **own)


def measured(report: dict[str, Any]) -> Iterator[tuple[dict[str, Any], float, float | None]]:
    """The searches of ``bench_cluster.py``: settings of a cluster, median and, where it was kept, p99 in ms."""
    for row in report.get("rows", []):
        for batch in row.get("batches", []):
            settings = {"rows": row["rows"], "dim": row["dim"], "shards_per_host": row["shards"]}
            times = batch["cluster_ms"]
            yield settings | {"queries": batch["queries"]}, times["median"], times.get("p99")


def compare(report: dict[str, Any], cluster: Cluster) -> str:
    """Predicted beside measured, for shards that were all on one machine."""
    rows = []
    for settings, p50, p99 in measured(report):
        guess = replace(cluster, hosts=1, **settings)
        a, b = guess.quantiles()
        sizes = [f"{settings['rows']:,}", f"{settings['dim']}", f"{settings['queries']}", f"{guess.shards}"]
        rows.append(
            [*sizes, f"{a:.1f} / {b:.1f}", f"{p50:.1f} / {'-' if p99 is None else f'{p99:.1f}'}", f"{p50 / a:.2f}"]
        )
    if not rows:
        raise SystemExit("no searches in the measured file")
    head = [
        "vectors",
        "D",
        "queries",
        "shards",
        "predicted p50 / p99, ms",
        "measured p50 / p99, ms",
        "measured / predicted",
    ]
    return table(head, rows)


# ---- the page ----


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def size(count: float) -> str:
    """10^6 and the like."""
    return f"10^{round(math.log10(count))}"


def gigabytes(value: float) -> str:
    return (
        f"{value / 1e12:.1f} TB"
        if value >= 1e12
        else f"{value / 1e9:.0f} GB"
        if value >= 1e10
        else f"{value / 1e9:.1f} GB"
    )


def duration(seconds: float) -> str:
    for name, length in (("years", 365.25 * 86400), ("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {name}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def money(value: float) -> str:
    return f"${value:,.0f}" if value >= 10 else f"${value:.2f}"


def disk_bytes() -> float:
    """Of a photo in a gallery: float rows, packed rows, database; measured."""
    row = next(r for r in load("index-cpu")["rows"] if r["case"] == "open")
    assert row["dim"] == DIM
    return float(row["disk_MB"]) * 1e6 / float(row["rows"])


def hosts_for(rows: float, prices: Prices) -> int:
    return max(1, math.ceil(rows * (DIM + ROW_EXTRA) / (USED * prices.host_memory * 1e9)))


def gpus_for(rows: float, prices: Prices, width: int) -> int:
    return max(1, math.ceil(rows * DIM * width / (USED * prices.gpu_memory * 1e9)))


def room(prices: Prices) -> str:
    """Bytes and machines."""
    rows = [
        [
            size(n),
            gigabytes(n * disk_bytes()),
            gigabytes(n * (DIM + ROW_EXTRA)),
            str(hosts_for(n, prices)),
            gigabytes(n * DIM * 4),
            str(gpus_for(n, prices, 4)),
            gigabytes(n * DIM * 2),
        ]
        for n in SIZES
    ]
    head = ["photos", "gallery on disk", "read by a CPU search (int8)", f"hosts of {prices.host_memory:.0f} GB"]
    head += ["float32 on GPUs", f"GPUs of {prices.gpu_memory:.0f} GB", "for comparison: bf16"]
    note = f"On disk: **{disk_bytes():,.0f} bytes a photo**, measured with 10^6 (float rows, packed rows, paths and labels)."
    return table(head, rows) + f"\n\n{note}"


def waiting(prices: Prices) -> str:
    """Time of a batch: measured where it was, the scan's arithmetic else."""
    here, rows = this_machine(), []
    for n in SIZES:
        cells = []
        for q in (1, 32):
            known = [r["median_ms"]["splip"] for r in scans() if (r["Q"], r["N"]) == (q, n)]
            guess = replace(here, rows=n, queries=q).scan_ms()
            cells.append(f"**{known[0]:.1f} ms**" if known else duration(guess / 1e3))
        one = Cluster(rows=n, hosts=hosts_for(n, prices))
        simulated = [replace(one, queries=q).quantiles() for q in (1, 32)]
        cells += [str(one.hosts), *(f"{duration(a / 1e3)} / {duration(b / 1e3)}" for a, b in simulated)]
        rows.append([size(n), *cells])
    head = ["photos", "2 cores, 1 query", "2 cores, 32 queries", "hosts", "1 query, p50 / p99", "32 queries, p50 / p99"]
    alone = next(r for r in load("encoder-cpu")["rows"] if r["engine"] == "torch fp32" and r["backbone"] == "ViT-B-32")
    return (
        table(head, rows)
        + "\n\nThe scan alone; encoding a query comes before it:"
        + f" **{alone['ms']['1']['median']:.0f} ms** for ViT-B/32 on two cores with torch."
    )


def embedding(prices: Prices) -> str:
    """Time and money to embed, and money to hold and search."""
    engines = {r["engine"]: r for r in load("encoder-cpu")["rows"] if r["backbone"] == "ViT-B-32"}
    two = max(r["images_per_s"]["32"] for name, r in engines.items() if name in ("torch fp32", "openvino fp32"))
    many = two * prices.host_cores / load("encoder-cpu")["machine"]["cores"]
    rows = []
    for n in SIZES:
        hosts = hosts_for(n, prices)
        month = 730 * prices.host * hosts + n * disk_bytes() / 1e9 * prices.disk
        cells = [duration(n / rate) for rate in (two, many, prices.gpu_images, 16 * prices.gpu_images)]
        rows.append([size(n), *cells, money(month), money(month / n * 1e6)])
    head = [
        "photos",
        f"2 cores, {two:.0f}/s measured",
        f"1 host, {many:,.0f}/s",
        f"1 GPU, {prices.gpu_images:,.0f}/s",
        "16 GPUs",
    ]
    head += ["hosts and disk, a month", "a month and million"]
    costs = [1e6 / many / 3600 * prices.host, 1e6 / prices.gpu_images / 3600 * prices.gpu]
    return (
        table(head, rows)
        + f"\n\nA million photos cost {money(costs[0])} to embed on such hosts and {money(costs[1])} on such GPUs."
    )


def fan_out(prices: Prices) -> str:
    """A thousand million photos on more and more hosts, with and without stragglers."""
    rows = []
    for hosts in (1, 2, 4, 8, 16, 32, 64):
        cells = []
        for slow in (0.0, 0.001, 0.01):
            a, b = Cluster(rows=1e9, hosts=hosts, slow=slow).quantiles()
            cells.append(f"{a:.0f} / {b:.0f}")
        fits = "yes" if hosts >= hosts_for(1e9, prices) else "no"
        rows.append([str(hosts), fits, *cells])
    head = ["hosts", "fits", "no stragglers", "1 scan in 1,000 is 5 times slower", "1 in 100"]
    return table(head, rows)


def checks(_: Prices) -> str:
    """The model beside what was measured."""
    here, rows = this_machine(), []
    for r in scans():
        guess, found = replace(here, rows=r["N"], queries=r["Q"]).scan_ms(), r["median_ms"]["splip"]
        rows.append([f"{r['N']:,}", str(r["Q"]), "1", f"{guess:.1f}", f"{found:.1f}", f"{found / guess:.2f}"])
    text = table(["vectors", "queries", "shards", "predicted, ms", "measured, ms", "measured / predicted"], rows)
    if (RESULTS / "cluster-cpu.json").is_file() and any(measured(load("cluster-cpu"))):
        names = ("hop_ms", "per_query_ms", "per_shard_ms", "jitter")
        small = replace(here, **{name: getattr(Cluster, name) for name in names})
        text += "\n\nShards on one machine, `cluster-cpu.json`:\n\n" + compare(load("cluster-cpu"), small)
    return text


TABLES: dict[str, Callable[[Prices], str]] = {
    "room": room,
    "waiting": waiting,
    "embedding": embedding,
    "fan-out": fan_out,
    "checks": checks,
}


def updated(text: str, prices: Prices | None = None) -> str:
    """The page with each table between its markers made anew."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda m, make=make: f"{m.group(1)}\n{make(prices or Prices())}\n\n{m.group(2)}", text)  # type: ignore[misc]
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default, prices = Cluster(), Prices()
    parser.add_argument("--rows", type=float, default=default.rows, help="vectors in all (default: 1e9)")
    parser.add_argument("--hosts", type=int, nargs="+", default=[default.hosts], help="one or more numbers to compare")
    parser.add_argument("--queries", type=int, default=default.queries, help="in a batch (default: 1)")
    parser.add_argument("--dim", type=int, default=default.dim, help="width of a vector (default: 512)")
    parser.add_argument("--shards-per-host", type=int, default=1, help="that share its bandwidth (default: 1)")
    parser.add_argument("--bandwidth", type=float, default=default.bandwidth, help="GB/s that a host's scan reaches")
    parser.add_argument("--multiply", type=float, default=default.multiply, help="G byte products/s that it reaches")
    parser.add_argument("--hop-ms", type=float, default=default.hop_ms, help="there and back")
    parser.add_argument("--per-query-ms", type=float, default=default.per_query_ms, help="of the front, for each query")
    parser.add_argument("--per-shard-ms", type=float, default=default.per_shard_ms, help="of the front, for each shard")
    parser.add_argument("--jitter", type=float, default=default.jitter, help="sigma of a shard's lognormal time")
    parser.add_argument("--slow", type=float, default=default.slow, help="share of scans that are stragglers")
    parser.add_argument(
        "--slow-factor", type=float, default=default.slow_factor, help="how many times slower those are"
    )
    parser.add_argument("--trials", type=int, default=20_000, help="simulated searches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measured", type=Path, metavar="FILE", help="JSON of a small cluster to compare with")
    parser.add_argument("--update", action="store_true", help="write the tables into docs/scale.md")
    for name, what in (("host", "$ an hour of a host"), ("gpu", "$ an hour of a GPU"), ("disk", "$ a GB and month")):
        parser.add_argument(f"--price-{name}", type=float, default=getattr(prices, name), help=f"{what}; for --tables")
    parser.add_argument("--tables", action="store_true", help="print the tables of docs/scale.md, at other prices")
    args = parser.parse_args()
    positive = ("rows", "queries", "dim", "shards_per_host", "bandwidth", "multiply", "slow_factor", "trials")
    wrong = [n for n in positive if getattr(args, n) <= 0]
    wrong += [n for n in ("hop_ms", "per_query_ms", "per_shard_ms", "jitter", "slow") if getattr(args, n) < 0]
    if wrong or min(args.hosts) < 1 or args.slow > 1:
        parser.error(f"out of range: {', '.join(wrong) or 'hosts or slow'}")
    if args.update:
        PAGE.write_text(updated(PAGE.read_text()))
        return 0
    if args.tables:
        prices = replace(prices, host=args.price_host, gpu=args.price_gpu, disk=args.price_disk)
        print("\n\n".join(make(prices) for make in TABLES.values()))
        return 0
    cluster = Cluster(**{f.name: getattr(args, f.name) for f in fields(Cluster) if f.name != "hosts"})
    if args.measured:
        try:
            report = json.loads(args.measured.read_text())
        except (OSError, ValueError) as error:
            parser.error(f"--measured {args.measured}: {error}")
        print(compare(report, cluster))
        return 0
    rows = []
    for hosts in args.hosts:
        one = replace(cluster, hosts=hosts)
        p50, p99 = one.quantiles(args.trials, args.seed)
        held = gigabytes(one.rows * (one.dim + ROW_EXTRA) / hosts)
        rows.append(
            [str(hosts), held, f"{one.scan_ms():.1f}", f"{p50:.1f}", f"{p99:.1f}", f"{1e3 * one.queries / p50:,.1f}"]
        )
    print(table(["hosts", "memory of each", "scan, ms", "p50, ms", "p99, ms", "queries/s"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
