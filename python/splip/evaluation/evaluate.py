"""``splip eval``: retrieval on held-out classes under a named protocol, beside baselines that learn nothing."""

import csv
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import splip
from splip import disk
from splip.data.config import DataConfig
from splip.data.trees import Tree, load_tree
from splip.errors import UserError
from splip.evaluation import given, metrics, partial, plots, prompts, protocols, queries, support
from splip.evaluation.baselines import backbone_words, chance, hog, mean, need_hog, plain_backbone, raw_pixels
from splip.evaluation.config import EvalConfig
from splip.evaluation.presets import PRESETS
from splip.evaluation.protocols import Protocol
from splip.evaluation.test_set import Features, TestSet, View
from splip.images import grid
from splip.models.checkpoint import pick_device
from splip.models.names import Model, resolve
from splip.models.registry import identity, load_model
from splip.models.retriever import Retriever


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """``splip eval``; returns what it writes as results.json."""
    if config.baselines:
        need_hog()
    if config.out is not None:
        plots.need()
        if config.out.exists() and not config.out.is_dir():
            raise UserError(f"{config.out}: exists and is not a folder")
    if any(k < 1 for k in config.k):
        raise UserError(f"--k must be at least 1, got {min(config.k)}")
    if config.protocol == "fg" and config.metrics in PRESETS:
        raise UserError(f"--metrics {config.metrics} is about classes; the protocol fg asks for the very photo")
    (partial.check if config.partial else partial.check_absent)(config)
    device = pick_device(config.device)
    if config.features or config.labels or config.instances:
        return _given(config, device)
    if config.model is None:
        raise UserError("nothing to measure: give --model, or --features and --labels")
    model = load_model(found := resolve(config.model), device)
    sizes = _sizes(config, model)
    support.check(config, model)
    data = _test_data(config, model.config.data)
    if config.duplicates:
        if config.protocol != "zs" or config.gallery or data.dataset == "tree":
            raise UserError("--duplicates is for the protocol zs on a benchmark, which holds photos twice")
        data = replace(data, dedup=False)
    tree = load_tree(data.root, data)
    names = list(getattr(tree, config.classes))
    if not names:
        raise UserError(f"{tree.root}: no {config.classes} classes")
    chosen, leaked = _protocols(config, model, data, tree, names)
    photos, sketches = (
        np.unique(np.concatenate(parts)) for parts in zip(*((p.gallery, p.queries) for p in chosen), strict=True)
    )
    test = TestSet(tree, names, data, model.backbone.image_size, photos, sketches)
    if test.skipped:
        print(f"left out {len(test.skipped)} unreadable pictures: " + ", ".join(str(s.path) for s in test.skipped))
    if not tree.drawn:
        print("note: there are no sketches: lines of the photos stand for them, which says little about real drawings")
    views = [View(test, p, device) for p in chosen]
    if config.partial:
        return _partial(config, found, model, data, views, leaked)
    features, looked = _embed(config, test, model, sizes, device)
    ours = _name(model)
    own = features[ours][0]

    measured = []
    for view in views:
        columns = _columns(config, data, view.protocol)
        rows = {n: mean([view.measure(f, columns) for f in fs], view.sketches.labels) for n, fs in features.items()}
        print_table(_title(view), rows)
        _say_whose(config)
        if view.unpaired:
            print(f"left out {view.unpaired} sketches whose own photo cannot be read")
        measured.append((view, rows))
    asked = {c.name: c.meaning for view, _ in measured for c in _columns(config, data, view.protocol)}
    _say_looked(looked)
    sets = [_facts(view, rows, ours) for view, rows in measured]
    report = _report(config, found, model, test, leaked, asked, looked, sets)
    if config.json is not None:
        write_json(config.json, report)
    if config.per_query is not None:
        queries.write(config.per_query, [_by_query(view, rows, ours) for view, rows in measured])
    if config.grid is not None:
        grid.save(config.grid, views[0].grid_rows(views[0].spread(), own), _title(views[0]))
    if config.out is not None:
        write_json(config.out / "results.json", report)
        for view, rows in measured:
            # One protocol writes into the folder itself, several into one each.
            folder = config.out if len(measured) == 1 else config.out / view.protocol.name.replace(":", "-")
            _write_set(folder, view, rows, ours, own, config.seed)
        print(f"{config.out}: results.json, tables and pictures")
    return report


def _given(config: EvalConfig, device: torch.device) -> dict[str, Any]:
    """``--features``: what anybody's method found."""
    if config.support:
        raise UserError("--support adapts a model: it goes with --model, not with --features")
    columns = _columns(config, DataConfig(), None)
    measured = given.evaluate(config, columns, device)
    report = given.report(config, measured, columns)
    result = measured.results["features"]
    print_table(
        f"{result.queries} sketches in {result.gallery} photos, {len(result.per_class)} classes", measured.results
    )
    _say_whose(config)
    if config.json is not None:
        write_json(config.json, report)
    if config.per_query is not None:
        queries.write(config.per_query, [measured])
    return report


def _partial(
    config: EvalConfig, found: Model, model: Retriever, data: DataConfig, views: list[View], leaked: list[str]
) -> dict[str, Any]:
    """``--partial``: unfinished sketches."""
    test = views[0].test
    report = {
        "dataset": test.tree.dataset,
        "split": test.tree.split,
        "classes": config.classes,
        "skipped": [str(s.path) for s in test.skipped],
        "leaked": leaked,
        "method": model.config.method,
        "checkpoint": {"file": found.name, "sha256": identity(model, found.path)},
        "backbone": model.backbone_identity,
        "splip": splip.__version__,
        **partial.measure(config, model, data, test, views, views[0].device),
    }
    if config.json is not None:
        write_json(config.json, report)
    if config.out is not None:
        write_json(config.out / "results.json", report)
        partial.write(config, report)
        print(f"{config.out}: results.json, partial.csv and partial.png")
    return report


def _protocols(
    config: EvalConfig, model: Retriever, data: DataConfig, tree: Tree, names: list[str]
) -> tuple[list[Protocol], list[str]]:
    """What is measured, and the classes that the checkpoint knows."""
    chosen = protocols.build(config.protocol, config.gallery, tree, names, config.seed)
    if config.duplicates:
        chosen = [one for p in chosen for one in protocols.both_counts(p, tree)]
    leaked = _leaked(config, model, data, tree, names)
    if leaked:
        chosen += [protocols.without(p, tree, leaked) for p in chosen]
    return chosen, leaked


def _by_query(view: View, rows: dict[str, metrics.Result], ours: str) -> queries.Measured:
    root, tree = view.test.tree.root, view.test.tree
    names = [os.path.relpath(path, root) for path in view.sketches.paths]
    ordered = {ours: rows[ours], **rows}  # `splip compare` takes the first
    return queries.Measured(view.protocol.name, names, [tree.classes[label] for label in view.sketches.labels], ordered)


def _say_looked(looked: dict[str, Any]) -> None:
    """What was shown to the model, and who looks at its prompts."""
    if "support" in looked:
        print(f"note: {looked['support']['meaning']}")
    if "slot_attention" in looked:
        shares = looked["slot_attention"]
        print(
            f"attention on the prompts {100 * shares['mean']:.1f}%, {100 * shares['uniform']:.1f}% if on all tokens alike"
        )


def _say_whose(config: EvalConfig) -> None:
    if config.metrics in PRESETS:
        which = "queries" if PRESETS[config.metrics].mean == "query_mean" else "classes"
        print(f"columns of {PRESETS[config.metrics].whose}; its means are over {which}")


def _sizes(config: EvalConfig, model: Retriever) -> list[int]:
    """The sizes of vectors to be measured besides the whole ones.

    Raises:
        UserError: the checkpoint was not trained for one.
    """
    for size in config.dimensions:
        if size not in model.dimensions:
            held = ", ".join(map(str, model.dimensions))
            raise UserError(f"--dimensions {size}: {config.model} was trained for {held} (see --loss.matryoshka)")
    return [size for size in dict.fromkeys(config.dimensions) if size != model.dimensions[-1]]


def _report(
    config: EvalConfig,
    found: Model,
    model: Retriever,
    test: TestSet,
    leaked: list[str],
    columns: dict[str, str],
    looked: dict[str, Any],
    sets: list[dict[str, Any]],
) -> dict[str, Any]:
    """What results.json says."""
    ours = _name(model)
    return {
        "protocol": sets[0]["protocol"],
        "dataset": test.tree.dataset,
        "split": test.tree.split,
        "classes": sets[0]["classes"],
        "queries": sets[0]["queries"],
        "gallery": sets[0]["gallery"],
        "sketches": "drawn" if test.tree.drawn else "pseudo",
        "skipped": [str(s.path) for s in test.skipped],
        "leaked": leaked,
        "columns": {name: text for name, text in columns.items() if any(name in s["query_mean"][ours] for s in sets)},
        "order": "cosine in float32, falling; ties by gallery index",
        "metrics": config.metrics,
        "seed": config.seed,
        "method": model.config.method,
        "dimensions": list(model.dimensions),
        "checkpoint": {"file": found.name, "sha256": identity(model, found.path)},
        "backbone": model.backbone_identity,
        "splip": splip.__version__,
        **looked,
        "query_mean": sets[0]["query_mean"],
        "class_mean": sets[0]["class_mean"],
        "results": sets,
    }


def _name(model: Retriever) -> str:
    return model.title or model.config.method


def _embed(
    config: EvalConfig, test: TestSet, model: Retriever, sizes: list[int], device: torch.device
) -> tuple[dict[str, list[Features]], dict[str, Any]]:
    """Features of every row of the table; and what looks at the prompts, for the report."""
    features: dict[str, list[Features]] = {}
    if config.baselines:
        features["chance"] = list(chance(test))
        features["raw pixels"] = [raw_pixels(test)]
        features["HOG"] = [hog(test)]
        features[f"plain {backbone_words(model)}"] = [plain_backbone(test, model, device)]
    own = test.embed_model(model, device, bars=True)
    features |= {_name(model): [own], **{f"{_name(model)}, {size}": [own.first(size)] for size in sizes}}
    told: dict[str, Any] = {}
    if config.support:
        adapted, told = support.embed(test, model, config.support, config.seed, device)
        shown = "1 photo" if config.support == 1 else f"{config.support} photos"
        features[f"{_name(model)}, shown {shown} of each class"] = [adapted]
    if not config.prompts or not prompts.written(model):
        return features, told
    for change in prompts.CHANGES:
        features[f"{_name(model)}, prompts {change}"] = [test.embed_model(model, device, True, change)]
    return features, {**told, "slot_attention": prompts.attention(test, model, device)}


def _test_data(config: EvalConfig, trained: DataConfig) -> DataConfig:
    """The data settings of the checkpoint, changed to the data set to be tested on."""
    # Decoded pictures may be used again, but an evaluation elsewhere makes no folder it was not told of.
    cache = trained.cache if trained.cache is not None and trained.cache.is_dir() else None
    data = replace(trained, root=config.root or trained.root, cache=cache)
    if config.protocol == "fg":
        data = replace(data, extended=False)  # Sketchy's other photos were not drawn by anyone
    if config.dataset is None and config.split is None:
        return data
    dataset = config.dataset or trained.dataset
    if config.root is None and dataset != trained.dataset:
        raise UserError(f"--dataset {dataset}: --root must name its folder")
    # Lists of classes belong to the data set that training was given.
    split = config.split or (trained.split if dataset == trained.dataset else None)
    return replace(data, dataset=dataset, split=split, unseen=(), validation=())


def _same_data_set(data: DataConfig, trained: DataConfig) -> bool:
    if data.dataset != trained.dataset:
        return False
    # A benchmark is the same wherever it lies; of a tree only the folder is known.
    return data.dataset != "tree" or (
        data.root is not None and trained.root is not None and data.root.resolve() == trained.root.resolve()
    )


def _leaked(config: EvalConfig, model: Retriever, data: DataConfig, tree: Tree, names: list[str]) -> list[str]:
    """Classes to be measured that the checkpoint knows.

    Raises:
        UserError: it knows any of the data set that it was trained on, or all of another one.
    """
    same = _same_data_set(data, model.config.data)
    found = protocols.leaks(tree, names, model.data, validation=not (same and config.classes == "validation"))
    leaked = [n for n in names if any(n in classes for classes in found.values())]
    if leaked and (same or len(leaked) == len(names)):
        how, classes = next(iter(found.items()))
        words = sorted(tree.texts[tree.classes.index(n)] for n in classes)
        raise UserError(f"{config.model} {how} classes to be measured: {', '.join(words)}")
    if leaked:
        print(
            f"note: {config.model} knows {len(leaked)} of the {len(names)} classes from its own data set: "
            f"{', '.join(leaked)}; results follow with and without them"
        )
    return leaked


def _columns(config: EvalConfig, data: DataConfig, protocol: Protocol | None) -> list[metrics.Column]:
    if protocol is not None and protocol.instances:
        return [metrics.accuracy_column(k, protocol.in_class) for k in config.k or (1, 5, 10)]
    if config.metrics in PRESETS:
        preset = PRESETS[config.metrics]
        return preset.columns(config.k or preset.ks)
    instances = [c for c in metrics.DEFAULT if c.relevance != "class"]
    variants = config.metrics == "all"
    if not config.k and data.dataset == "tree" and not variants:
        return list(metrics.DEFAULT)
    ks = config.k or ((10,) if data.dataset == "tree" else (100, 200))
    return metrics.category_columns(ks, variants) + instances


def _title(view: View) -> str:
    p = view.protocol
    return f"{p.name}, {len(p.classes)} classes: {len(view.sketches)} sketches in {len(view.photos)} photos"


def _gallery_lines(view: View) -> list[str]:
    root = view.test.tree.root
    return [os.path.relpath(path, root) for path in view.photos.paths]


def _facts(view: View, rows: dict[str, metrics.Result], ours: str) -> dict[str, Any]:
    """One protocol's part of results.json."""
    listed = hashlib.sha256("".join(line + "\n" for line in _gallery_lines(view)).encode("utf-8", "surrogateescape"))
    return {
        "protocol": view.protocol.name,
        "meaning": view.protocol.meaning,
        "classes": view.protocol.classes,
        "queries": len(view.sketches),
        "gallery": len(view.photos),
        "gallery_sha256": listed.hexdigest(),
        "unpaired": view.unpaired,
        "query_mean": {name: r.query_mean for name, r in rows.items()},
        "class_mean": {name: r.class_mean for name, r in rows.items()},
        "per_class": {view.test.tree.classes[label]: values for label, values in rows[ours].per_class.items()},
    }


def _write_set(
    folder: Path, view: View, rows: dict[str, metrics.Result], ours: str, features: Features, seed: int
) -> None:
    """The files of one protocol: per_class.csv, gallery.txt and the pictures."""
    result, tree = rows[ours], view.test.tree
    sketches, photos = np.bincount(view.sketches.labels), np.bincount(view.photos.labels, minlength=len(tree.classes))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = {"encoding": "utf-8", "errors": "surrogateescape"}
        with disk.replacing(folder / "per_class.csv", "w", newline="", **text) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["method", "class", "sketches", "photos", *result.query_mean])
            for name, r in rows.items():
                for label, values in r.per_class.items():
                    counts = [sketches[label], photos[label]]
                    writer.writerow([name, tree.classes[label], *counts, *(f"{v:.6f}" for v in values.values())])
        lines = "".join(line + "\n" for line in _gallery_lines(view))
        disk.write_text(folder / "gallery.txt", lines, "surrogateescape")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}") from None
    if not view.protocol.in_class:  # else every photo is of the right class
        share, names, columns = view.confusion(result)
        plots.confusion(
            folder / "confusion.png", share, names, columns, f"Classes of the ten best photos\n{_title(view)}"
        )
    for which, chosen in view.by_precision(result, seed).items():
        title = f"The {len(chosen)} sketches of {which} average precision ({view.protocol.name}, {ours})"
        grid.save(folder / f"{which}.png", view.grid_rows(chosen, features, result.ap), title)


def write_json(path: Path, report: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.write_text(path, json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from None


def print_table(title: str, rows: Mapping[str, metrics.Result]) -> None:
    """Means over queries, and below them means over classes; many columns stand upright."""
    names = list(next(iter(rows.values())).query_mean)
    table = Table()
    if len(names) > 7:
        caption = "percent: mean over queries / mean over classes"
        for head in ("", *rows):
            table.add_column(head, justify="right" if head else "left")
        for name in names:
            cells = (f"{100 * r.query_mean[name]:.1f} / {100 * r.class_mean[name]:.1f}" for r in rows.values())
            table.add_row(name, *cells)
    else:
        caption = "percent: means over queries, below the line over classes"
        for head in ("", *names):
            table.add_column(head, justify="right" if head else "left")
        for which in ("query_mean", "class_mean"):
            for name, result in rows.items():
                table.add_row(name, *(f"{100 * v:.1f}" for v in getattr(result, which).values()))
            table.add_section()
    console = Console()
    console.print(title, style="italic", highlight=False)
    console.print(table)
    console.print(caption, style="dim", highlight=False)
