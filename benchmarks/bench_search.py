"""From the bytes of a drawn PNG to the paths of its ten best pictures, stage by stage.

    OMP_WAIT_POLICY=passive python benchmarks/bench_search.py --save my-machine
    OMP_WAIT_POLICY=passive python benchmarks/bench_search.py --models exported --engine openvino --save openvino

Galleries of 100,000 and 1,000,000 made-up vectors, written through the storage, of the width that the model answers with.
One query after the other: decode (PNG to RGB), prepare (to a square), encode, search (both passes over the vectors and
the merge), lookup (paths, labels and tags from the database), total; median, 95th and 99th percentile in ms, and queries
a second. `filtered`: the same with one label of a thousand. `batch`: 32 queries at a time, decoded one after the other.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_index import checkpoint, fill
from harness import RESULTS, machine
from PIL import Image, ImageDraw

from splip import images
from splip.encoders.encoder import Encoder
from splip.gallery import catalog
from splip.gallery.catalog import Filter
from splip.gallery.gallery import Gallery

STAGES = ("decode", "prepare", "encode", "search", "lookup", "total")
BATCH = 32


def drawings(count: int) -> list[bytes]:
    """PNGs of 400 x 400 with a few strokes, as a page sends them."""
    rng, made = np.random.default_rng(0), []
    for _ in range(count):
        image = Image.new("L", (400, 400), 255)
        pen = ImageDraw.Draw(image)
        for _ in range(8):
            steps = rng.integers(-12, 13, (40, 2)).cumsum(axis=0) + rng.integers(60, 340, 2)
            pen.line([tuple(map(int, point)) for point in steps], 0, 4)
        file = io.BytesIO()
        image.save(file, "PNG")
        made.append(file.getvalue())
    return made


class Lookup:
    """Time spent in the database for results."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._real: Callable[..., Any] = catalog.items_at

    def __enter__(self) -> "Lookup":
        def timed(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return self._real(*args)
            finally:
                self.seconds += time.perf_counter() - began

        catalog.items_at = timed
        return self

    def __exit__(self, *_: object) -> None:
        catalog.items_at = self._real  # type: ignore[assignment]


def spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {
        name: ordered[min(len(ordered) - 1, int(len(ordered) * share))]
        for name, share in (("p95", 0.95), ("p99", 0.99))
    }
    return {"p50": statistics.median(ordered), **at}


def one_by_one(gallery: Gallery, sketches: list[bytes], queries: int, filter: Filter | None) -> dict[str, Any]:
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    warm = max(3, queries // 20)
    began = 0.0
    for number in range(-warm, queries):
        if number == 0:
            began = time.perf_counter()
        with Lookup() as lookup:
            marks = [time.perf_counter()]
            image = images.read(sketches[number % len(sketches)])
            marks.append(time.perf_counter())
            pixels = gallery.encoder.prepare(image, "sketch")[None]
            marks.append(time.perf_counter())
            vector = gallery.encoder.encode(np.ascontiguousarray(pixels), "sketch")
            marks.append(time.perf_counter())
            (matches,) = gallery.search_vectors(vector, 10, filter)
            marks.append(time.perf_counter())
        assert len(matches) == 10 and matches[0].path
        if number < 0:
            continue
        stages = [1000 * (b - a) for a, b in zip(marks, marks[1:], strict=False)]
        stages[3] -= 1000 * lookup.seconds
        values = [*stages, 1000 * lookup.seconds, 1000 * (marks[-1] - marks[0])]
        for stage, value in zip(STAGES, values, strict=True):
            times[stage].append(value)
    rate = queries / (time.perf_counter() - began)
    return {"queries": queries, "queries_per_s": rate, "ms": {stage: spread(values) for stage, values in times.items()}}


def in_batches(gallery: Gallery, sketches: list[bytes], queries: int) -> dict[str, Any]:
    some = [sketches[n % len(sketches)] for n in range(BATCH)]
    gallery.search(sketches=some)
    times, rounds = [], max(3, queries // BATCH)
    for _ in range(rounds):
        began = time.perf_counter()
        gallery.search(sketches=some)
        times.append(1000 * (time.perf_counter() - began))
    return {
        "queries": rounds * BATCH,
        "queries_per_s": 1000 * BATCH / statistics.median(times),
        "ms": {"total": spread(times)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["splip-tiny", "ViT-B-32"], help="architectures or paths")
    parser.add_argument("--engine", default="auto", help="see splip.engines (default: auto)")
    parser.add_argument("--device", default="cpu", help="of the encoder and the search (default: cpu)")
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--folder", type=Path, help="where galleries are made (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="a few of everything, to try the script")
    parser.add_argument("--save", metavar="TAG", help="write results/search-TAG.json")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.queries = [20_000], 20
    sketches, rows = drawings(64), []
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        place = Path(temporary)
        for name in args.models:
            path = checkpoint(name, place)
            encoder = Encoder.load(path, args.engine, device=args.device)
            for count in args.rows:
                folder = place / f"{Path(name).name}-{count}"
                fill(folder, count, encoder.embed_dim, path, encoder)
                with Gallery.open(folder, device=args.device, encoder=encoder) as gallery:
                    cases = {
                        "one": one_by_one(gallery, sketches, args.queries, None),
                        "filtered": one_by_one(gallery, sketches, args.queries, Filter(labels=("class 7",))),
                        "batch": in_batches(gallery, sketches, args.queries),
                    }
                for case, values in cases.items():
                    row = {
                        "model": encoder.name,
                        "engine": encoder.engine,
                        "precision": encoder.precision,
                        "case": case,
                    }
                    rows.append(row | {"N": count, "D": encoder.embed_dim, **values})
                    stages = "  ".join(
                        f"{stage} {ms['p50']:.2f}/{ms['p95']:.2f}/{ms['p99']:.2f}" for stage, ms in values["ms"].items()
                    )
                    print(f"{encoder.name} N={count:,} {case}: {values['queries_per_s']:.1f} queries/s;", end=" ")
                    print(f"ms p50/p95/p99: {stages}", flush=True)
    if args.save:
        file = RESULTS / f"search-{args.save}.json"
        report = {"benchmark": "search", "machine": machine(args.device), "rows": rows}
        file.write_text(json.dumps(report, indent=1) + "\n")
        print(file)


if __name__ == "__main__":
    main()
