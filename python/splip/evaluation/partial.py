"""``splip eval --partial``: what is found while somebody still draws.

Each sketch is shown as its first strokes, by share of their length, and searched with as the page does. For every share: Acc@k,
mAP@all where classes are searched, and the rank of the first right photo. Over the shares: m@A, the mean ranking percentile
(N - rank) / (N - 1), and m@B, the mean of 1 / rank, as Bhunia et al. (Sketch Less for More, CVPR 2020) name them.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from splip import disk
from splip.data.config import DataConfig
from splip.data.strokes import Drawing, Folder, check_shares, show, traced
from splip.errors import UserError
from splip.evaluation import metrics, plots
from splip.evaluation.config import EvalConfig
from splip.evaluation.test_set import BATCH, TestSet, View, embed
from splip.images.decode import least_side, read
from splip.models.retriever import Retriever
from splip.progress import track

SCORES = 1 << 23  # in one matrix product
NEVER = 1 << 40  # the rank of what is not there
MEANING = {
    "rank": "rank of the first right photo, from 1",
    "percentile": "(N - rank) / (N - 1), N photos that are searched",
    "reciprocal": "1 / rank",
    "m@A": "area under percentile against share: the mean over the shares",
    "m@B": "area under reciprocal against share: the mean over the shares",
}


def check_absent(config: EvalConfig) -> None:
    """Refuse settings of unfinished drawings where none are measured."""
    plain = EvalConfig()
    for name in ("shares", "strokes", "frame"):
        if getattr(config, name) != getattr(plain, name):
            raise UserError(f"--{name} goes with --partial")


def check(config: EvalConfig) -> list[float]:
    """The shares.

    Raises:
        UserError: settings that say nothing about unfinished drawings.
    """
    for name in ("baselines", "dimensions", "duplicates", "grid", "per_query", "support"):
        if getattr(config, name):
            raise UserError(f"--{name.replace('_', '-')} does not go with --partial")
    if config.metrics != "standard":
        raise UserError(f"--metrics {config.metrics} does not go with --partial")
    return check_shares(config.shares)


@dataclass
class Parts:
    """The sketches of a test that have strokes, as vectors at each share."""

    features: Tensor  # [shares, Q, D] float32
    rows: np.ndarray  # [Q] int64, their positions among the sketches of the test
    strokes: str  # where they come from


def measure(
    config: EvalConfig, model: Retriever, data: DataConfig, test: TestSet, views: Sequence[View], device: torch.device
) -> dict[str, Any]:
    """All protocols; returns what ``results.json`` says of them."""
    shares = check(config)
    if not test.tree.drawn:
        raise UserError(f"--partial: {test.tree.root} holds no sketches that somebody drew")
    parts = _embed(config, model, data, test, shares, device)
    photos = embed(test.photo_pictures, lambda images: model.encode_image(images, 1, 1), device, "Embedding photos")
    lacking = len(test.sketches) - len(parts.rows)
    if lacking:
        print(f"left out {lacking} of {len(test.sketches)} sketches, which have no strokes")
    sets = [_measure_view(view, parts, photos, shares, config.k or (1, 5, 10)) for view in views]
    print(f"strokes: {parts.strokes}; frame: {config.frame}")
    return {
        "partial": {
            "shares": shares,
            "strokes": parts.strokes,
            "frame": config.frame,
            "without_strokes": lacking,
            "meaning": MEANING,
            "results": sets,
        }
    }


def _embed(
    config: EvalConfig, model: Retriever, data: DataConfig, test: TestSet, shares: list[float], device: torch.device
) -> Parts:
    side, crop = model.backbone.image_size, data.crop_sketches
    folder = Folder(config.strokes) if config.strokes is not None else None
    # In the frame of the whole, it is cropped once: a drawing of strokes is in that frame as it is.
    whole = config.frame == "whole"
    known = _find(test, folder) if folder is not None else []
    found: list[list[Tensor]] = [[] for _ in shares]
    rows: list[int] = []
    with torch.no_grad():
        for start in track(range(0, len(test.sketches), BATCH), "Drawing"):
            drawings: list[Drawing] = []
            for i in range(start, min(start + BATCH, len(test.sketches))):
                drawing = known[i] if folder is not None else _traced(test, i, side, crop, whole)
                if drawing is not None:
                    drawings.append(drawing)
                    rows.append(i)
            for number, share in enumerate(shares if drawings else []):
                pixels = np.stack([show(d, share, side, data.fit, crop and not whole) for d in drawings])
                images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)
                found[number].append(model.encode_image(images, 0, 0).float().cpu())
    if not rows:
        where = f"--strokes {config.strokes}" if folder is not None else f"{test.tree.root}"
        raise UserError(f"{where}: no strokes of any of the {len(test.sketches)} sketches")
    source = "traced" if folder is None else str(config.strokes)
    return Parts(torch.stack([torch.cat(each) for each in found]), np.array(rows), source)


def _traced(test: TestSet, i: int, side: int, crop: bool, whole: bool) -> Drawing | None:
    image = read(test.sketches.paths[i], least=least_side(side, crop))
    try:
        return traced(image, crop and whole)
    except UserError:  # blank
        return None


def _find(test: TestSet, folder: Folder) -> list[Drawing | None]:
    """The strokes of each sketch, in the order of the test."""
    drawings: list[Drawing | None] = [None] * len(test.sketches)
    labels = np.asarray(test.sketches.labels)
    for label in sorted(set(test.sketches.labels)):
        places = np.flatnonzero(labels == label).tolist()
        stems = [test.sketches.paths[i].stem for i in places]
        for i, drawing in zip(places, folder.find(test.tree.classes[label], stems), strict=True):
            drawings[i] = drawing
    return drawings


# ---- ranks ----


def first_ranks(
    sketches: Tensor, photos: Tensor, right: np.ndarray, pool: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The rank of the first right photo of each sketch, and how many photos it was sought among.

    Falling float32 scores, equal ones by gallery index, as in :mod:`splip.evaluation.metrics`.

    Args:
        sketches: ``[Q, D]`` float32.
        photos: ``[N, D]`` float32.
        right: ``[Q, N]`` bool. A row without any, or with none that is searched, comes behind all photos.
        pool: ``[Q, N]`` bool, the photos that are searched; None: all.

    Returns:
        Both ``[Q]`` int64.
    """
    ranks = []
    step = max(1, SCORES // max(1, len(photos)))
    for start in range(0, len(sketches), step):
        rows = slice(start, start + step)
        scores = (sketches[rows] @ photos.T).cpu().numpy()
        searched = np.ones_like(scores, dtype=bool) if pool is None else pool[rows]
        own = np.where(right[rows] & searched, scores, -np.inf)
        place = own.argmax(axis=1)[:, None]  # of equal ones the first
        best = np.take_along_axis(own, place, axis=1)
        before = (scores > best) | ((scores == best) & (np.arange(scores.shape[1]) < place))
        found = np.isfinite(best[:, 0])
        ranks.append(np.where(found, 1 + (before & searched).sum(axis=1), NEVER))
    sizes = np.full(len(sketches), len(photos)) if pool is None else pool.sum(axis=1)
    return np.concatenate(ranks), sizes


def summary(ranks: np.ndarray, sizes: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """Means over the sketches at one share.

    Args:
        ranks: ``[Q]`` int64.
        sizes: ``[Q]`` int64, photos that each was sought among.
        ks: of Acc@k.
    """
    accuracy = {f"Acc@{k}": float((ranks <= k).mean()) for k in ks}
    ranks = np.minimum(ranks, sizes + 1)  # of what is not there: behind all photos
    return {
        **accuracy,
        "median rank": float(np.median(ranks)),
        "mean rank": float(ranks.mean()),
        "percentile": float(np.where(sizes > 1, np.maximum(sizes - ranks, 0) / np.maximum(sizes - 1, 1), 1.0).mean()),
        "reciprocal": float((1 / ranks).mean()),
    }


def _measure_view(view: View, parts: Parts, photos: Tensor, shares: list[float], ks: Sequence[int]) -> dict[str, Any]:
    """One protocol: a row for each share, and the areas."""
    protocol = view.protocol
    place = {row: i for i, row in enumerate(parts.rows.tolist())}
    kept = [i for i, row in enumerate(view.rows.tolist()) if row in place]
    if not kept:
        raise UserError(f"{protocol.name}: none of its sketches has strokes")
    at = [place[row] for row in view.rows[kept].tolist()]
    sketches, gallery = view.sketches.take(kept), view.photos
    features = photos[view.columns].to(view.device)
    same = np.asarray(sketches.labels)[:, None] == np.asarray(gallery.labels)
    right, pool = same, None
    if protocol.instances:
        right = same & (np.asarray(sketches.instances)[:, None] == np.asarray(gallery.instances))
        pool = same if protocol.in_class else None
    rows = []
    for number, share in enumerate(shares):
        queries = parts.features[number, at].to(view.device)
        row = {"share": share, **summary(*first_ranks(queries, features, right, pool), ks)}
        if not protocol.instances:
            ids = [torch.tensor(v) for v in (sketches.labels, sketches.instances, gallery.labels, gallery.instances)]
            found = metrics.measure(queries, ids[0], ids[1], features, ids[2], ids[3], [metrics.map_column()])
            row["mAP@all"] = found.query_mean["mAP@all"]
        rows.append(row)
    areas = {
        name: float(np.mean([row[of] for row in rows])) for name, of in (("m@A", "percentile"), ("m@B", "reciprocal"))
    }
    target = "the very photo" if protocol.instances else "a photo of the class"
    counts = {"queries": len(kept), "gallery": len(gallery), "unpaired": view.unpaired}
    facts = {"protocol": protocol.name, "target": target, **counts, **areas}
    _print(facts, rows)
    return {**facts, "rows": rows}


# ---- what is shown and written ----


def _print(facts: dict[str, Any], rows: list[dict[str, float]]) -> None:
    table = Table()
    names = [name for name in rows[0] if name != "share"]
    for head in ("share", *names):
        table.add_column(head, justify="right")
    for row in rows:
        cells = [f"{row[n]:.1f}" if n.endswith("rank") else f"{100 * row[n]:.1f}" for n in names]
        table.add_row(f"{100 * row['share']:.0f}%", *cells)
    console = Console()
    title = f"{facts['protocol']}: {facts['queries']} unfinished sketches in {facts['gallery']} photos, for {facts['target']}"
    console.print(title, style="italic", highlight=False)
    console.print(table)
    console.print(
        f"m@A {100 * facts['m@A']:.1f}, m@B {100 * facts['m@B']:.1f}; percent but for ranks",
        style="dim",
        highlight=False,
    )


def write(config: EvalConfig, report: dict[str, Any]) -> None:
    """partial.csv and partial.png in ``--out``."""
    if config.out is None:
        return
    sets = report["partial"]["results"]
    text = io.StringIO()
    names = list(dict.fromkeys(name for one in sets for row in one["rows"] for name in row))
    writer = csv.DictWriter(text, ["protocol", *names], lineterminator="\n")
    writer.writeheader()
    for one in sets:
        writer.writerows({"protocol": one["protocol"], **row} for row in one["rows"])
    try:
        disk.write_text(config.out / "partial.csv", text.getvalue())
    except OSError as error:
        raise UserError(f"cannot write {config.out}: {error}") from None
    lines = {
        f"{name}, {one['protocol']}": [row[name] for row in one["rows"]]
        for one in sets
        for name in one["rows"][0]
        if name.startswith("Acc@")
    }
    title = f"Found while it is drawn: {sets[0]['queries']} sketches"
    plots.curves(config.out / "partial.png", report["partial"]["shares"], lines, "share of the strokes, percent", title)
