"""How fast a picture becomes a vector: every engine of this machine in one run, taking turns, each beside its error.

    OMP_WAIT_POLICY=passive python benchmarks/bench_encoder.py --int8 --save cpu

Random weights, prompts drawn at random too, so that they change the features. Every engine has a process of its own;
one works at a time. `start_s` is from starting that process to the first vector, imports included; `rss_GB` is what
it then holds, `peak_GB` the most it held after all batches. Latency is from uint8 pixels to the vector.

`open_clip fp32` is the plain backbone as users run it; `plain` rows are our graph of the same backbone without
prompts: what prompts cost once they are folded is the ratio to those. `training code` computes the prompts' tokens
along. Fidelity is against the training code in float32, on 64 sketches and 256 photos of the sample data.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, machine

from splip.encoders import manifest, openvino
from splip.export import command, verify
from splip.export.config import ExportConfig
from splip.models import SpLIP
from splip.models.config import BackboneConfig, PromptConfig, TrainConfig

WORKER = Path(__file__).with_name("encoder_worker.py")
BATCHES = (1, 8, 32)
CALLS = {1: 4, 8: 1, 32: 1}  # a round: the small batch several times


@dataclass
class Candidate:
    """An engine, its process and what was measured of it."""

    name: str
    job: dict[str, Any]
    compare: bool = True  # with the prompted model; the plain ones compute something else
    process: Any = None
    start_s: float = 0.0
    rss_GB: float = 0.0
    times: dict[int, list[float]] = field(default_factory=dict)

    def start(self) -> None:
        began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.rss_GB = self.ask(self.job)["rss_GB"]
        self.start_s = time.monotonic() - began

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: its process ended with code {self.process.wait()}; see above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def measure(self, batch: int) -> None:
        self.times.setdefault(batch, []).extend(self.ask({"time": batch, "calls": CALLS[batch]})["ms"])

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def make_checkpoint(backbone: str, path: Path, depth: int | None) -> None:
    """A model whose prompts are not near zero, or that has none."""
    torch.manual_seed(0)
    model = SpLIP(
        TrainConfig(backbone=BackboneConfig(name=backbone), prompts=PromptConfig(depth=depth)), ["dog", "cup"]
    )
    with torch.no_grad():
        model.patch_mean.normal_()
        for module in (model.b_v, model.b_vt):
            for parameter in module.parameters() if module is not None else ():
                parameter.mul_(8)
    torch.save(model.checkpoint(), path)


def prepare(args: argparse.Namespace, work: Path) -> dict[str, Path]:
    """Checkpoints and exports of the prompted and the plain model."""
    paths = {}
    for name, depth in (("prompted", None), ("plain", 0)):
        paths[name] = work / f"{name}.pt"
        make_checkpoint(args.backbone, paths[name], depth)
        folder = paths[f"{name} files"] = work / name
        config = ExportConfig(paths[name], folder, onnx=name == "prompted", openvino=True, fuse_preprocess=True)
        if command.export(config) == command.FAILED:
            raise SystemExit(f"{folder}: the export failed its verification")
    if args.int8:
        paths["int8 files"] = work / "int8"
        command.export(
            ExportConfig(
                paths["prompted"],
                paths["int8 files"],
                openvino=True,
                precision="int8",
                calibration=args.calibration,
                fuse_preprocess=True,
            )
        )
    return paths


def candidates(args: argparse.Namespace, paths: dict[str, Path], side: int) -> list[Candidate]:
    common = {"threads": args.threads, "side": side, "batches": list(args.batches)}

    def engine(name: str, path: str, which: str, precision: str | None, compare: bool = True) -> Candidate:
        job = {"kind": "engine", "path": str(paths[path]), "engine": which, "precision": precision, **common}
        return Candidate(name, job, compare)

    prompted = str(paths["prompted"])
    found = [
        Candidate("open_clip fp32", {"kind": "open_clip", "backbone": args.backbone, **common}, compare=False),
        Candidate("training code fp32", {"kind": "training code", "path": prompted, **common}),
        engine("torch fp32", "prompted", "torch", "fp32"),
        engine("torch fp32, plain", "plain", "torch", "fp32", compare=False),
        engine("torch bf16", "prompted", "torch", "bf16"),
    ]
    if args.compile:
        found.append(engine("compile fp32", "prompted", "compile", "fp32"))
        found.append(engine("compile bf16", "prompted", "compile", "bf16"))
    found += [
        engine("onnxruntime fp32", "prompted files", "onnxruntime", None),
        engine("openvino fp32", "prompted files", "openvino", "fp32"),
        engine("openvino fp32, plain", "plain files", "openvino", "fp32", compare=False),
        engine("openvino bf16", "prompted files", "openvino", "bf16"),
        engine("openvino bf16, plain", "plain files", "openvino", "bf16", compare=False),
    ]
    if args.int8:
        found.append(engine("openvino int8", "int8 files", "openvino", None))
    return found


def spread(values: list[float]) -> dict[str, float]:
    values = sorted(values)
    return {
        "median": statistics.median(values),
        "p10": values[len(values) // 10],
        "p90": values[len(values) * 9 // 10],
        "min": values[0],
    }


def measure(args: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    paths = prepare(args, work)
    about = manifest.read(paths["prompted files"])
    pixels = verify.load(None, about, verify.COUNTS)
    np.savez(work / "pictures.npz", **pixels)
    found = candidates(args, paths, about.image_size)
    for candidate in found:
        candidate.start()
    features = {}
    for candidate in found:
        if candidate.compare:
            out = work / "features.npz"
            candidate.ask({"pictures": str(work / "pictures.npz"), "out": str(out)})
            with np.load(out) as values:
                features[candidate.name] = {name: values[name] for name in values.files}
    for round_ in range(args.repeats + 1):  # the first warms up
        for batch in args.batches:
            for candidate in found:
                candidate.measure(batch)
        if round_ == 0:
            for candidate in found:
                candidate.times.clear()
        print(f"round {round_} of {args.repeats}", file=sys.stderr)
    base = {batch: statistics.median(found[0].times[batch]) for batch in args.batches}
    rows = []
    for candidate in found:
        ms = {str(batch): spread(candidate.times[batch]) for batch in args.batches}
        fidelity = None
        if candidate.compare:
            fidelity = verify.compare(features["training code fp32"], features[candidate.name]).to_dict()
        row = {
            "engine": candidate.name,
            "backbone": args.backbone,
            "ms": ms,
            "speedup": {str(batch): base[batch] / ms[str(batch)]["median"] for batch in args.batches},
            "images_per_s": {str(batch): 1e3 * batch / ms[str(batch)]["median"] for batch in args.batches},
            "start_s": round(candidate.start_s, 3),
            "rss_GB": round(candidate.rss_GB, 3),
            "peak_GB": round(candidate.ask({"memory": True})["peak_GB"], 3),
            "fidelity": fidelity,
        }
        rows.append(row)
        candidate.stop()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="ViT-B-32", help="open_clip architecture (default: ViT-B-32)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every engine")
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default: 15)")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, choices=BATCHES)
    parser.add_argument("--compile", action="store_true", help="also torch.compile: a minute and a C++ compiler more")
    parser.add_argument("--int8", action="store_true", help="also NNCF int8")
    parser.add_argument("--calibration", type=Path, default=Path("sample"), help="pictures for int8 (default: sample)")
    parser.add_argument("--quick", action="store_true", help="the tiny backbone and three rounds, to see that it runs")
    parser.add_argument("--save", metavar="TAG", help="write results/encoder-TAG.json")
    args = parser.parse_args()
    if args.quick:
        args.backbone, args.repeats = "splip-tiny", 3
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as work:
        rows = measure(args, Path(work))
    head = f"{'engine':22}" + "".join(f"{f'b={b} ms':>9} (p10-p90){'x':>6}" for b in args.batches)
    print(f"{head}  start s  RSS GB  cosine min   top-10")
    for row in rows:
        times = ""
        for batch in map(str, args.batches):
            ms = row["ms"][batch]
            between = f"({ms['p10']:.0f}-{ms['p90']:.0f})"
            times += f"{ms['median']:9.1f} {between:>9}{row['speedup'][batch]:6.2f}"
        f = row["fidelity"]
        quality = f"{f['min_cosine']:10.6f}  {f['top10']:7.2%}" if f else ""
        print(f"{row['engine']:22}{times}{row['start_s']:9.1f}{row['rss_GB']:8.2f}  {quality}")
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"encoder-{args.save}.json"
        info = machine("cpu") | {"amx": openvino.has_amx(), "packages": command.versions()}
        path.write_text(json.dumps({"benchmark": "encoder", "machine": info, "rows": rows}, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
