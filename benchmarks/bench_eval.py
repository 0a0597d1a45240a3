"""All metrics of `splip eval` on a gallery of Sketchy's size, against a loop over queries and torchmetrics.

    OMP_WAIT_POLICY=passive python benchmarks/bench_eval.py --repeats 5 --save my-machine

15,229 sketches and 17,101 photos of 25 classes, made up. The loop and torchmetrics are timed on the first
100 sketches and their time is multiplied up to all of them (`extrapolated`). `difference` is the largest one
between a column's mean over those sketches and splip's. torchmetrics has five of the sixteen category columns
and the two of instances in the whole gallery; it gets scores shifted to be positive, in float64. `peak_GB` is
the peak memory of a process of its own while it measures, `data_GB` what it held before: libraries and data.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness import run, time_us

from splip.evaluation import metrics

Q, N, D, CLASSES = 15_229, 17_101, 512, 25
SUBSET = 100
KS = (100, 200)
COLUMNS = [*metrics.category_columns(KS, variants=True), *(c for c in metrics.DEFAULT if c.relevance != "class")]


def make() -> tuple[torch.Tensor, ...]:
    """Queries, labels and instances; the same of the gallery. Noise around a direction for each class."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, D, generator=generator)

    def side(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        noise = torch.randn(count, D, generator=generator)
        return F.normalize(0.4 * centres[labels] + noise, dim=1), labels

    gallery, gallery_labels = side(N)
    things = torch.randint(0, N, (Q,), generator=generator)  # the photo that each sketch was drawn from
    noise = F.normalize(torch.randn(Q, D, generator=generator), dim=1)
    queries = F.normalize(gallery[things] + noise, dim=1)
    return queries, gallery_labels[things], things, gallery, gallery_labels, torch.arange(N)


def literal(data: tuple[torch.Tensor, ...]) -> dict[str, np.ndarray]:
    """Every column of some queries, a query at a time, each line as a paper would write it."""
    queries, query_labels, query_things, gallery, labels, things = data
    scores = (queries @ gallery.T).numpy()
    rows: list[dict[str, float]] = []
    ranks = np.arange(1, N + 1)
    for q in range(len(queries)):
        order = np.argsort(-scores[q], kind="stable")
        relevant = labels.numpy()[order] == int(query_labels[q])
        same = things.numpy()[order] == int(query_things[q])
        precision, R = np.cumsum(relevant) / ranks, relevant.sum()
        row = {}
        for k in (N, *KS):
            name, h = f"mAP@{'all' if k == N else k}", relevant[:k].sum()
            envelope = np.maximum.accumulate(precision[:k][::-1])[::-1]
            s_k, s_envelope = precision[:k][relevant[:k]].sum(), envelope[relevant[:k]].sum()
            row[name], row[name + " VOC"] = s_k / max(1, min(k, R)), s_envelope / max(1, min(k, R))
            row[name + " /h"], row[name + " /k"] = s_k / max(1, h), s_k / k
            row[f"P@{k}"], row[f"P@{k} /min(k,R)"] = h / k, h / max(1, min(k, R))
            row[f"P@min({k},R)"] = relevant[: max(1, min(k, R))].mean()
        row["Acc@1"], row["Acc@5"] = float(same[0]), float(same[:5].any())
        row["Acc@1 in class"] = float(same[relevant][0])
        rows.append(row)
    return {c.name: np.array([row[c.name] for row in rows]) for c in COLUMNS}


def with_torchmetrics(data: tuple[torch.Tensor, ...]) -> dict[str, np.ndarray]:
    """The columns that torchmetrics has."""
    from torchmetrics.functional import retrieval as tm

    queries, query_labels, query_things, gallery, labels, things = data
    # Targets whose score is not positive would count as irrelevant.
    scores = (queries @ gallery.T).double() + 2
    out: dict[str, list[float]] = {}
    for score, label, thing in zip(scores, query_labels, query_things, strict=True):
        relevant, same = labels == label, things == thing
        row = {"mAP@all": tm.retrieval_average_precision(score, relevant)}
        for k in KS:
            row[f"mAP@{k} /h"] = tm.retrieval_average_precision(score, relevant, top_k=k)
            row[f"P@{k}"] = tm.retrieval_precision(score, relevant, top_k=k)
        for k in (1, 5):
            row[f"Acc@{k}"] = tm.retrieval_hit_rate(score, same, top_k=k)
        for name, value in row.items():
            out.setdefault(name, []).append(float(value))
    return {name: np.array(values) for name, values in out.items()}


def alone() -> dict[str, float]:
    """Memory in GB of a process of its own: before measuring, and at its peak."""
    code = "import bench_eval; bench_eval.report_memory()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    memory: dict[str, float] = json.loads(done.stdout)
    return memory


def report_memory() -> None:
    def peak() -> float:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20

    data = make()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak of making the data
    before = peak()
    metrics.measure(*data, COLUMNS)
    print(json.dumps({"data_GB": round(before, 3), "peak_GB": round(peak(), 3)}))


def cases(device: str, repeats: int) -> Iterator[dict[str, Any]]:
    data = tuple(part.to(device) for part in make())
    first = tuple(part[:SUBSET].cpu() for part in data[:3]) + tuple(part.cpu() for part in data[3:])
    ours = metrics.measure(*data, COLUMNS)
    candidates: dict[str, Callable[[], Any]] = {"splip": lambda: metrics.measure(*data, COLUMNS)}
    slow = {"loop": lambda: literal(first), "torchmetrics": lambda: with_torchmetrics(first)}
    times = time_us(candidates | slow, device, repeats, warmup=1)
    sizes = {"Q": Q, "N": N, "D": D, "classes": CLASSES}
    memory = alone() if device == "cpu" else {}
    seconds = times["splip"]["median"] / 1e6
    yield {
        "candidate": "splip", **sizes, "columns": len(COLUMNS), "timed_queries": Q, "extrapolated": False,
        "seconds": seconds, **memory, "mAP@all": ours.query_mean["mAP@all"], "means": ours.query_mean,
        "times_us": times["splip"],
    }  # fmt: skip
    for name, function in slow.items():
        values = function()
        spent = times[name]["median"] / 1e6 * Q / SUBSET
        differences = {c: float(abs(v.mean() - ours.per_query[c][:SUBSET].mean())) for c, v in values.items()}
        yield {
            "candidate": name, **sizes, "columns": len(values), "timed_queries": SUBSET, "extrapolated": True,
            "seconds": spent, "ratio": spent / seconds, "difference": max(differences.values()),
            "differences": differences, "times_us": times[name],
        }  # fmt: skip


if __name__ == "__main__":
    began = time.monotonic()
    run("eval", __doc__, cases)
    print(f"{time.monotonic() - began:.0f} s; rows with `extrapolated True` timed {SUBSET} of {Q} queries")
