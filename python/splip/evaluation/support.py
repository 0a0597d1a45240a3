"""``splip eval --support``: a method that adapts to a category by a few of its photos, shown to it with their labels."""

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splip.data.cache import Pictures
from splip.errors import UserError
from splip.evaluation.config import EvalConfig
from splip.evaluation.test_set import BATCH, Features, TestSet
from splip.models.retriever import Retriever
from splip.models.support import DualPrompt


def check(config: EvalConfig, model: Retriever) -> None:
    """Refuse what cannot be: a protocol that asks for the class, or a method that takes no photos of one.

    Raises:
        UserError: one line that names the flag.
    """
    if not config.support:
        return
    if config.support < 0:
        raise UserError(f"--support must not be negative, got {config.support}")
    if config.protocol != "fg" or tuple(config.gallery) != ("per-class",):
        raise UserError(
            "--support tells the model the class of every picture, which is the answer wherever other classes are searched: "
            "only with --protocol fg --gallery per-class"
        )
    if not isinstance(model, DualPrompt):
        raise UserError(f"--support: method {model.config.method} takes no photos of a category, only dp-clip does")


def draw(test: TestSet, size: int, seed: int) -> dict[int, np.ndarray]:
    """Up to ``size`` photos of each class, as rows of the test set's photos; a class without photos has no entry."""
    rng, labels = np.random.default_rng([seed, 5]), np.asarray(test.photos.labels)
    pools = {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}
    return {label: np.sort(rng.choice(pool, min(size, len(pool)), replace=False)) for label, pool in pools.items()}


@torch.no_grad()
def embed(
    test: TestSet, model: Retriever, size: int, seed: int, device: torch.device
) -> tuple[Features, dict[str, Any]]:
    """Sketches and photos of every class by the model adapted to that class; and what was shown, for the report.

    Raises:
        UserError: sketches of a class that has no photo.
    """
    assert isinstance(model, DualPrompt)
    shown = draw(test, size, seed)
    lacking = sorted(set(test.sketches.labels) - set(shown))
    if lacking:
        raise UserError(f"--support: class {test.tree.classes[lacking[0]]} has no readable photo to be shown")
    photos, texts = test.photo_pictures, test.tree.texts
    adapted = {label: model.adapt(photos.get(rows).to(device), texts[label]) for label, rows in shown.items()}

    def all_of(pictures: Pictures, labels: np.ndarray) -> Tensor:
        found = torch.zeros(len(labels), model.backbone.embed_dim)
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            for part in np.split(rows, range(BATCH, len(rows), BATCH)):
                found[part] = model.encode_adapted(pictures.get(part).to(device), adapted[int(label)]).cpu()
        return found

    features = Features(
        all_of(test.sketch_pictures, np.asarray(test.sketches.labels)),
        all_of(test.photo_pictures, np.asarray(test.photos.labels)),
    )
    files = [os.path.relpath(test.photos.paths[i], test.tree.root) for rows in shown.values() for i in rows]
    meaning = (
        f"the row with photos was shown up to {size} of the gallery's photos of each measured class, with their labels: it compares "
        "with no method that sees none"
    )
    return features, {"support": {"photos": size, "seed": seed, "meaning": meaning, "files": files}}
