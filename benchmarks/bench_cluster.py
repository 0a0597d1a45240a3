"""Three Ray nodes on this machine against one process: the same answers, the time that a batch takes, the embedding rate.

    OMP_WAIT_POLICY=passive python benchmarks/bench_cluster.py --save cpu

`search`: 200,000 x 512 in three shards; every id and score is compared with those of one process, bit for bit, and the
time of a batch with that of one process on the same processors. `overhead`: the same with so few rows that the search
itself takes no time. `embed`: pictures through the model, one process against three workers that share its processors,
counted from the moment that all workers are ready; the processes take turns.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import numpy as np
from bench_index import checkpoint, make_pictures
from cluster_faults import fill, nodes, pairs
from harness import RESULTS, machine

from splip.cluster import embedding
from splip.cluster.ray import Cluster, import_ray
from splip.cluster.shards import open_sharded
from splip.encoders.encoder import Encoder
from splip.gallery.catalog import Filter
from splip.gallery.gallery import Gallery

CASES = ("search", "overhead", "embed")
BATCHES = (1, 8, 32)
K = 24


def milliseconds(search: Any, repeats: int) -> dict[str, float]:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        search()
        times.append(1000 * (time.perf_counter() - began))
    times.sort()
    at = {"p10": 0.1, "p90": 0.9, "p99": 0.99}
    return {"median": statistics.median(times)} | {name: times[int(len(times) * share)] for name, share in at.items()}


def searching(place: Path, rows: int, dim: int, cluster: Cluster, repeats: int, case: str) -> dict[str, Any]:
    """Equality, and the time of batches; the candidates take turns by batch size."""
    fill(place / case, rows, dim, segment_rows=262_144)
    rng = np.random.default_rng(1)
    report: dict[str, Any] = {"case": case, "rows": rows, "dim": dim, "k": K, "shards": 3, "batches": []}
    with Gallery.open(place / case) as local:
        began = time.perf_counter()
        with open_sharded(place / case, cluster, shards=3) as sharded:
            report["start_s"] = time.perf_counter() - began
            compared = 0
            for count, k in ((1, 1), (32, K), (64, 200)):
                for filter in (None, Filter(labels=("3",))):
                    queries = rng.standard_normal((count, dim)).astype(np.float32)
                    there, here = (g.search_vectors(queries, k, filter) for g in (sharded, local))
                    assert pairs(there) == pairs(here), (
                        f"{count} queries, k {k}, {filter}: other answers than one process"
                    )
                    compared += sum(map(len, here))
            report["equal_results"] = compared
            for count in BATCHES:
                queries = rng.standard_normal((count, dim)).astype(np.float32)
                one = milliseconds(lambda: local.search_vectors(queries, K), repeats)
                three = milliseconds(lambda: sharded.search_vectors(queries, K), repeats)
                extra = three["median"] - one["median"]
                report["batches"].append({"queries": count, "one_ms": one, "cluster_ms": three, "extra_ms": extra})
    return report


def embedding_rates(
    model: Path, place: Path, folder: Path | None, cluster: Cluster, count: int, repeats: int
) -> dict[str, Any]:
    """Pictures a second; both ways write the gallery."""
    pictures = sorted(folder.rglob("*.jpg"))[:count] if folder is not None else []
    if len(pictures) < count:
        pictures = make_pictures(folder or place / "pictures", count)
    encoder = Encoder.load(model)
    rates: dict[str, list[float]] = {"one": [], "cluster": []}
    for turn in range(repeats):
        with Gallery.create(place / f"one-{turn}", model, encoder=encoder) as gallery:
            done = gallery.add(pictures)
            rates["one"].append(done.encoded / done.seconds)
        with Gallery.create(place / f"cluster-{turn}", model, encoder=encoder) as gallery:
            moments: list[tuple[float, int]] = []
            done = embedding.add(
                gallery,
                pictures,
                cluster,
                segment_pictures=512,
                notify=lambda done: moments.append((time.monotonic(), done.committed)),
            )
            gallery.refresh()
            assert len(gallery) == done.new + done.duplicates == count and not gallery.check().damage
            # Once all workers have answered, and before the last ones are waited for.
            middle = [m for m in moments if m[1] >= 512 * 6]
            first, last = (middle if len(middle) > 3 else moments)[0], moments[-1]
            rates["cluster"].append((last[1] - first[1]) / (last[0] - first[0]))
            start, whole = done.start_seconds, done.seconds
    encoder.close()
    best = {name: max(values) for name, values in rates.items()}
    return {
        "case": "embed",
        "model": encoder.name,
        "pictures": count,
        "workers": done.workers,
        "one_process_per_s": rates["one"],
        "cluster_per_s": rates["cluster"],
        "share": best["cluster"] / best["one"],
        "worker_start_s": start,
        "whole_s": whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=CASES, help="default: all; --save keeps the others"
    )
    parser.add_argument("--folder", type=Path, help="where pictures are made, or taken from if there are enough")
    parser.add_argument("--model", default="splip-tiny", help="architecture or checkpoint (default: splip-tiny)")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=2, help="turns of the embedding (default: 2)")
    parser.add_argument("--searches", type=int, default=50, help="timed searches of each batch size (default: 50)")
    parser.add_argument("--quick", action="store_true", help="a few of everything, to try the script")
    parser.add_argument("--save", metavar="TAG", help="write results/cluster-TAG.json")
    args = parser.parse_args()
    if args.quick:
        args.pictures, args.rows, args.repeats, args.searches = 600, 20_000, 1, 5
    rows = []
    with tempfile.TemporaryDirectory() as temporary, nodes() as (_, cluster):
        place = Path(temporary)
        for case, count in (("search", args.rows), ("overhead", 3000)):
            if case not in args.cases:
                continue
            row = searching(place, count, 512, cluster, args.searches, case)
            rows.append(row)
            print(f"{case}: {count:,} x 512 in 3 shards, {row['equal_results']:,} results equal those of one process")
            for batch in row["batches"]:
                one, three = batch["one_ms"]["median"], batch["cluster_ms"]["median"]
                print(f"  {batch['queries']:3d} queries: {one:.2f} ms, {three:.2f} ms with the cluster", flush=True)
        if "embed" in args.cases:
            model = checkpoint(args.model, place)
            row = embedding_rates(model, place, args.folder, cluster, args.pictures, args.repeats)
            rows.append(row)
            print(
                f"embed: {row['share']:.0%} of one process's rate: {row['cluster_per_s']} of {row['one_process_per_s']}/s"
            )
    if args.save:
        path = RESULTS / f"cluster-{args.save}.json"
        if path.exists():
            rows += [row for row in json.loads(path.read_text())["rows"] if row["case"] not in args.cases]
        about = machine("cpu") | {"ray": import_ray().__version__, "nodes": 3}
        path.write_text(json.dumps({"benchmark": "cluster", "machine": about, "rows": rows}, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
