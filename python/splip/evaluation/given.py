"""Features of any method, scored as ours are: ``splip eval --features``."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import splip
from splip.errors import UserError, shown
from splip.evaluation import metrics, queries
from splip.evaluation.config import EvalConfig

TAKEN = ("features", "labels", "instances", "k", "metrics", "json", "per_query", "device")  # settings
NAMES = ("sketches", "photos")


def read(config: EvalConfig) -> tuple[list[torch.Tensor], list[np.ndarray], list[np.ndarray] | None]:
    """Features of sketches and photos, float32 of unit length, their labels, and what they show, if that is said.

    Raises:
        UserError: a file that does not fit.
    """
    for name, files in (("features", config.features), ("labels", config.labels), ("instances", config.instances)):
        if len(files) != 2 and (files or name != "instances"):
            raise UserError(f"--{name}: two files, of sketches and of photos, got {len(files)}")
    for field in dataclasses.fields(config):
        if field.name not in TAKEN and getattr(config, field.name) != field.default:
            raise UserError(f"--{field.name.replace('_', '-')} does not go with --features")
    features = [_features(path) for path in config.features]
    if features[0].shape[1] != features[1].shape[1]:
        widths = " and ".join(str(one.shape[1]) for one in features)
        raise UserError(f"--features: sketches and photos have {widths} components: both need the same number")
    labels = [_words(path, len(one)) for path, one in zip(config.labels, features, strict=True)]
    things = [_words(path, len(one)) for path, one in zip(config.instances, features, strict=False)]
    return features, labels, things or None


def _load(path: Path) -> np.ndarray:
    try:
        found: np.ndarray = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError):  # what numpy says of other files is of pickles
        raise UserError(f"{path}: not a .npy file of numbers or texts") from None
    if not isinstance(found, np.ndarray):
        raise UserError(f"{path}: one array in a .npy file, not an archive of several")
    return found


def _features(path: Path) -> torch.Tensor:
    rows = _load(path)
    if rows.ndim != 2 or not rows.size or rows.dtype.kind not in "fiu":
        raise UserError(f"{path}: features are numbers [rows, D], got {rows.dtype} {list(rows.shape)}")
    rows = rows.astype(np.float32)
    for what, bad in (("is not finite", ~np.isfinite(rows).all(axis=1)), ("is zero", ~rows.any(axis=1))):
        if bad.any():
            raise UserError(f"{path}: row {int(bad.argmax())} {what} ({int(bad.sum())} such rows)")
    return F.normalize(torch.from_numpy(rows), dim=1)


def _words(path: Path, rows: int) -> np.ndarray:
    """Labels as texts ``[rows]``, of a .npy file or of a text with one a line."""
    if path.suffix == ".npy":
        found = _load(path)
        if found.ndim != 1 or found.dtype.kind not in "iuU":
            raise UserError(f"{path}: labels are whole numbers or texts [rows], got {found.dtype} {list(found.shape)}")
        words = found.astype(str)
    else:
        try:
            words = np.array(path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(words) != rows:
        raise UserError(f"{path}: {len(words)} labels for {rows} rows of features")
    return words


def evaluate(config: EvalConfig, columns: list[metrics.Column], device: torch.device) -> queries.Measured:
    """All sketches among all photos; the result stands as the method ``features`` under the protocol ``given``."""
    features, labels, things = read(config)
    known = {word: i for i, word in enumerate(dict.fromkeys([*labels[0], *labels[1]]))}
    numbers = [torch.tensor([known[word] for word in words]) for words in labels]
    lonely = sorted(set(labels[0]) - set(labels[1]))
    if lonely:
        raise UserError(f"{config.labels[0]}: {shown(lonely[0])} is the label of no photo")
    if things is None:  # nothing is the same thing as anything
        same = [torch.arange(len(features[0])), torch.arange(len(features[1])) + len(features[0])]
    else:
        seen = {word: i for i, word in enumerate(dict.fromkeys([*things[0], *things[1]]))}
        same = [torch.tensor([seen[word] for word in words]) for words in things]
    sketches, photos = (one.to(device) for one in features)
    result = metrics.measure(sketches, numbers[0], same[0], photos, numbers[1], same[1], columns)
    names = [str(number) for number in range(len(sketches))]
    return queries.Measured("given", names, [str(word) for word in labels[0]], {"features": result})


def report(config: EvalConfig, measured: queries.Measured, columns: list[metrics.Column]) -> dict[str, Any]:
    """What is written as JSON."""
    result = measured.results["features"]
    return {
        "protocol": measured.protocol,
        "features": [str(path) for path in config.features],
        "labels": [str(path) for path in config.labels],
        "queries": result.queries,
        "gallery": result.gallery,
        "columns": {c.name: c.meaning for c in columns if c.name in result.query_mean},
        "order": "cosine in float32, falling; ties by gallery index",
        "metrics": config.metrics,
        "splip": splip.__version__,
        "query_mean": {"features": result.query_mean},
        "class_mean": {"features": result.class_mean},
    }
