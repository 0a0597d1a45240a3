"""The service under load: requests a second with and without dynamic batching, and the page's latency in a browser.

    OMP_WAIT_POLICY=passive python benchmarks/bench_serve.py --save my-machine
    OMP_WAIT_POLICY=passive python benchmarks/bench_serve.py --backbone exported --engine openvino --page no

A gallery of 100,000 made-up vectors, ``splip serve`` as a process of its own, and clients in another, each with its
next drawing as soon as the last is answered, over connections that stay open. ``batching`` off is ``--max-batch 1``,
the same service otherwise; the two take turns. ``page``: Chromium draws strokes on the page; from pen-up (the event in
the page) to the photos of the whole drawing in the document, and to the frame that shows them.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench_index import checkpoint, fill
from bench_search import drawings
from harness import RESULTS, machine

from splip.encoders.encoder import Encoder

WATCH = """() => {
  window.penUps = [];
  let up = 0;
  addEventListener("pointerdown", () => { up = 0; }, true);  // an answer that never came is not the next one's
  addEventListener("pointerup", (event) => { if (event.target.id === "canvas") up = performance.now(); }, true);
  const real = window.fetch;
  window.fetch = async (...given) => {
    const mine = up;  // a search that was sent after the pen went up answers for the whole drawing
    const answer = await real(...given);
    if (mine && String(given[0]).endsWith("v1/search")) {
      up = 0;
      const seen = new MutationObserver(() => {
        seen.disconnect();
        const inDocument = performance.now() - mine;
        requestAnimationFrame(() => setTimeout(() => window.penUps.push([inDocument, performance.now() - mine])));
      });
      seen.observe(document.getElementById("results"), {subtree: true, childList: true, characterData: true, attributes: true});
    }
    return answer;
  };
}"""


@contextmanager
def served(gallery: Path, engine: str, max_batch: int, window: float) -> Iterator[str]:
    """``splip serve`` on a free port, ready; yields its address."""
    options = ["--engine", engine, "--max-batch", str(max_batch), "--window-ms", str(window), "--max-queue", "1024"]
    command = [sys.executable, "-m", "splip", "serve", "--gallery", str(gallery), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith("http")), None)
        if line is None:
            raise SystemExit("splip serve did not start")
        address = line.split()[0]
        for _ in range(1200):
            try:
                with urllib.request.urlopen(f"{address}/readyz"):
                    break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def load(address: str, clients: int, seconds: float, warm: float) -> list[float]:
    """Latencies in ms of the searches that end within ``seconds`` after ``warm``; runs in a process of its own."""
    host, port = address.removeprefix("http://").split(":")
    sketches = drawings(16)
    head = "POST /v1/search?k=24 HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {}\r\n\r\n"
    requests = [head.format(len(sketch)).encode() + sketch for sketch in sketches]
    times: list[float] = []
    began = time.perf_counter()

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while True:
            start = time.perf_counter()
            if start - began > warm + seconds:
                break
            writer.write(requests[number % len(requests)])
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(answer.decode())
            lines = answer.lower().split(b"\r\n")
            await reader.readexactly(next(int(line[15:]) for line in lines if line.startswith(b"content-length:")))
            if start - began > warm:
                times.append(1000 * (time.perf_counter() - start))
            number += 1
        writer.close()

    async def everybody() -> None:
        await asyncio.gather(*map(client, range(clients)))

    asyncio.run(everybody())
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (95, 99)}
    return {"p50": statistics.median(ordered), **at}


def stages(address: str) -> dict[str, float]:
    """Mean ms of each stage, and the mean batch, from the service's metrics."""
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")]
    values = {name: float(value) for name, value in lines}
    out = {}
    for name in ("decode", "prepare", "wait", "encode", "search", "lookup"):
        count = values[f'splip_stage_seconds_count{{stage="{name}"}}']
        out[name] = 1000 * values[f'splip_stage_seconds_sum{{stage="{name}"}}'] / max(count, 1)
    out["batch"] = values["splip_batch_size_sum"] / max(values["splip_batch_size_count"], 1)
    return out


def throughput(gallery: Path, engine: str, window: float, clients: int, seconds: float, rounds: int) -> dict[str, Any]:
    """One row: the service without and with batching, by turns."""
    found: dict[str, Any] = {}
    for _ in range(rounds):
        for name, max_batch in (("off", 1), ("on", 32)):
            with served(gallery, engine, max_batch, window) as address, get_context("spawn").Pool(1) as pool:
                times = pool.apply(load, (address, clients, seconds, min(2.0, seconds)))
                result = {"requests_per_s": len(times) / seconds, "ms": spread(times), "mean": stages(address)}
                found.setdefault(name, []).append(result)
    row: dict[str, Any] = {"clients": clients}
    for name, results in found.items():
        results.sort(key=lambda r: r["requests_per_s"])
        row[name] = results[len(results) // 2]
        row[name]["all_requests_per_s"] = [r["requests_per_s"] for r in results]
    row["gain"] = row["on"]["requests_per_s"] / row["off"]["requests_per_s"]
    return row


def page(gallery: Path, engine: str, window: float, strokes: int, chromium: str) -> dict[str, Any]:
    """Pen-up to the new results, in a real Chromium."""
    from playwright.sync_api import sync_playwright

    with served(gallery, engine, 32, window) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        tab.goto(address)
        tab.wait_for_timeout(500)
        tab.evaluate(WATCH)
        box = tab.locator("#canvas").bounding_box()
        assert box is not None
        for number in range(strokes):
            if number % 8 == 0:
                tab.keyboard.press("Delete")  # a new drawing
            x, y = 0.15 + 0.08 * (number % 8), 0.2 + 0.05 * (number * 5 % 11)
            tab.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
            tab.mouse.down()
            tab.mouse.move(box["x"] + box["width"] * (x + 0.2), box["y"] + box["height"] * (1 - y), steps=20)
            tab.mouse.up()
            tab.wait_for_timeout(400)
        measured = tab.evaluate("window.penUps")
        version = browser.version
        browser.close()
    if len(measured) < strokes // 2:
        raise SystemExit(f"the page showed {len(measured)} answers for {strokes} strokes")
    return {
        "chromium": version,
        "strokes": len(measured),
        "document_ms": spread([a for a, _ in measured]),
        "frame_ms": spread([b for _, b in measured]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="splip-tiny", help="architecture, a checkpoint or an export folder")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, help="of each pair, the median counts (default: 3)")
    parser.add_argument("--window-ms", type=float, default=3.0)
    parser.add_argument("--strokes", type=int, default=40, help="on the page (default: 40)")
    parser.add_argument("--page", choices=("yes", "no"), default="yes")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    parser.add_argument("--quick", action="store_true", help="a small gallery and a second each, to try the script")
    parser.add_argument("--save", metavar="TAG", help="write results/serve-TAG.json")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.seconds, args.rounds, args.strokes = 2000, 1.0, 1, 10
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        model = checkpoint(args.backbone, Path(temporary))
        gallery = Path(temporary) / "gallery"
        encoder = Encoder.load(model)
        fill(gallery, args.rows, encoder.embed_dim, model, encoder)
        encoder.close()
        for clients in args.clients:
            row = throughput(gallery, args.engine, args.window_ms, clients, args.seconds, args.rounds)
            rows.append(row)
            for name in ("off", "on"):
                ms, mean = row[name]["ms"], row[name]["mean"]
                print(
                    f"{clients:3} clients, batching {name:3} {row[name]['requests_per_s']:7.1f}/s  "
                    f"p50 {ms['p50']:.1f}  p95 {ms['p95']:.1f}  p99 {ms['p99']:.1f} ms  batch {mean['batch']:.1f}",
                    flush=True,
                )
            print(f"{clients:3} clients, gain {row['gain']:.2f}", flush=True)
        report: dict[str, Any] = {
            "benchmark": "serve",
            "machine": {**machine("cpu"), "cores_free": len(os.sched_getaffinity(0))},
            "model": model.name,
            "engine": args.engine,
            "gallery": args.rows,
            "window_ms": args.window_ms,
            "rows": rows,
        }
        if args.page == "yes":
            report["page"] = page(gallery, args.engine, args.window_ms, args.strokes, args.chromium)
            print("page", json.dumps(report["page"]), flush=True)
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"serve-{args.save}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
