"""What must be so before a run may begin, or go on: its settings, its data, its folder."""

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splip import distributed
from splip.config import differences, from_dict
from splip.data.trees import Items, Tree, load_tree, unpaired
from splip.errors import UserError
from splip.evaluation import protocols
from splip.evaluation.test_set import TestSet
from splip.models.activation import as_recorded
from splip.models.checkpoint import read_checkpoint
from splip.models.config import BEFORE, TrainConfig, as_saved, unnamed
from splip.models.names import LAST, in_folder
from splip.models.registry import METHODS
from splip.train import log, terms
from splip.train.batches import Feed
from splip.train.rivals import elastic

# Settings that change nothing about a model: resumed runs, and the machines of one run, may have others.
FREE = ("out:", "resume:", "device:", "data.root:", "data.memory_gb:", "data.cache:", "tensorboard:", "eval_prompts:")


def check_settings(config: TrainConfig) -> None:
    """Refuse settings that no run can have, before anything is read.

    Raises:
        UserError: one line that names the setting.
    """
    for name in ("batch_size", "eval_every", "epochs", "steps", "accumulate", "per_class"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    for name in ("lr", "layernorm_lr", "weight_decay", "warmup", "seed"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise UserError(f"{name} must not be negative, got {value}")
    if config.clip_gradient is not None and not 0 < config.clip_gradient < math.inf:
        raise UserError(f"clip_gradient must be greater than 0, got {config.clip_gradient}")
    for name in ("sample_fraction", "class_fraction"):
        if not 0 < getattr(config.data, name) <= 1:
            raise UserError(f"data.{name} must be between 0 and 1, got {getattr(config.data, name)}")
    if not 0 <= config.data.partial <= 1:
        raise UserError(f"data.partial must be between 0 and 1, got {config.data.partial}")
    if config.data.partial and config.data.fit == "pad-black":
        raise UserError("data.partial with data.fit pad-black: black borders would be taken for lines")
    if not 0 < config.data.partial_least <= 1:
        raise UserError(f"data.partial_least must be above 0 and at most 1, got {config.data.partial_least}")
    method = METHODS[config.method]
    method.check(config)
    terms.check(config.loss)
    elastic.check(config)
    if method.trains and not any(terms.weights(config.loss).values()):
        raise UserError("all weights of the loss are 0: nothing to train for")
    if config.loss.divergence and config.per_class < 2:
        raise UserError("loss.divergence compares the triplets of a class: set per_class to 2 or more")
    if config.eval_gallery == "paired-photo" and config.setting == "fine-grained":
        raise UserError(
            "eval_gallery: paired-photo is a gallery of classes, and the setting fine-grained asks for things"
        )
    parts = config.accumulate * int(os.environ.get("WORLD_SIZE", "1"))
    if config.batch_size % parts:
        raise UserError(f"batch_size {config.batch_size} is not a multiple of {parts} (processes x accumulate)")
    if config.loss.divergence and parts > 1:
        raise UserError("loss.divergence compares classes over the whole batch: one process, and accumulate 1")
    if config.loss.consistency and config.batch_size // parts < 3:
        raise UserError(f"loss.consistency compares the pairs of a batch: 3 at least, got {config.batch_size // parts}")
    if config.tensorboard:
        log.need_tensorboard()


def before(config: TrainConfig) -> dict[str, Any] | None:
    """The checkpoint to go on from; a new run must not lie in the folder of another."""
    last, best = in_folder(config.out, LAST), in_folder(config.out)
    if not config.resume and (last.exists() or best.exists()):
        raise UserError(f"{config.out} holds a run already: add --resume to go on with it, or choose another --out")
    if config.resume and not last.is_file():
        raise UserError(f"--resume: there is no {last}")
    return read_checkpoint(last) if config.resume else None


def tree_of(config: TrainConfig) -> Tree:
    """The data set, with the share of seen classes that is trained on.

    Raises:
        UserError: the data are not as the settings say, or fewer than two classes are seen.
    """
    tree = load_tree(config.data.root, config.data)
    tree.seen = _share_of_classes(tree.seen, config)
    if len(tree.seen) < 2:
        raise UserError(f"{tree.root}: only one class to train on ({tree.seen[0]}): classes are told apart by others")
    return tree


def _share_of_classes(seen: list[str], config: TrainConfig) -> list[str]:
    """A seeded share of the seen classes; at least two."""
    if config.data.class_fraction == 1:
        return seen
    rng = np.random.default_rng([config.data.split_seed, 3])
    count = min(len(seen), max(2, round(config.data.class_fraction * len(seen))))
    return sorted(rng.choice(seen, count, replace=False).tolist())


def data_facts(tree: Tree, feed: Feed) -> dict[str, Any]:
    """Which classes are trained on, choose the checkpoint and are held out, and which pictures there are.

    Batches are drawn from the pictures that are known to be readable: they count too.
    """
    words = {name: tree.texts[i] for i, name in enumerate(tree.classes)}

    def digest(*lists: Items) -> str:
        names = hashlib.sha256()
        for path in (path for items in lists for path in items.paths):
            names.update(os.fsencode(path.relative_to(tree.root)) + b"\0")
        return names.hexdigest()

    return {
        "dataset": tree.dataset,
        "split": tree.split,
        "seen": [words[name] for name in tree.seen],
        "validation": [words[name] for name in tree.validation],
        "unseen": [words[name] for name in tree.unseen],
        "pictures": digest(tree.sketches, tree.photos),
        "pictures to draw from": digest(feed.sketches, feed.photos),
    }


def same_config(state: dict[str, Any], config: TrainConfig, last: Path) -> None:
    """A run goes on with the settings that it began with, but for those that change nothing."""
    old = from_dict(TrainConfig, as_saved(state["config"]), str(last))
    old.backbone = as_recorded(old.backbone, state["backbone"])
    config.backbone = as_recorded(config.backbone, state["backbone"])  # so that what was built is built again
    for part, name in unnamed(state["config"]):  # nor could its command name them
        setattr(getattr(config, part), name, BEFORE[part][name])
    changed = [d for d in differences(old, config) if not d.startswith(FREE)]
    if changed:
        raise UserError(f"--resume: the settings differ from those of {last}: {'; '.join(changed)}")


def same_data(state: dict[str, Any], facts: dict[str, Any], root: Path, last: Path) -> None:
    """A run goes on with the data that it began with: another split would leak test classes unseen."""
    if state["data"] != facts:
        changed = ", ".join(key for key, value in facts.items() if state["data"].get(key) != value)
        raise UserError(f"--resume: the data in {root} are not those of {last} any more: {changed} changed")


def same_everywhere(config: TrainConfig, data: dict[str, Any]) -> None:
    """Processes with other settings or other pictures would drift apart unseen."""
    for number, (settings, found) in enumerate(distributed.gather((config, data))):
        changed = [d for d in differences(config, settings) if not d.startswith(FREE)]
        changed += [f"{key} in {config.data.root}" for key, value in data.items() if found.get(key) != value]
        if changed:
            own = distributed.rank()
            raise UserError(f"processes {own} and {number} must train the same model; different: {'; '.join(changed)}")


def validation(config: TrainConfig, tree: Tree, side: int) -> TestSet | None:
    """The pictures of the validation classes; None: there are no such classes."""
    if not tree.validation:
        return None
    gallery = None
    if config.eval_gallery == "paired-photo":
        gallery = protocols.build("zs", ("paired-photo",), tree, tree.validation, config.seed)[0].gallery
    made = TestSet(tree, tree.validation, config.data, side, gallery)
    if config.setting == "fine-grained":
        lacking = unpaired(made.sketches, made.photos)
        if len(lacking) == len(made.sketches):
            raise UserError(f"setting: fine-grained, but no validation sketch of {tree.root} has its photo")
    return made


def check_weights(weights: dict[str, torch.nn.Parameter], step: int, last: Path) -> None:
    """A finite loss can have a gradient that is not; what it broke must not be saved."""
    for name, weight in weights.items():
        if not bool(torch.isfinite(weight).all()):
            raise UserError(f"{name} became infinite or not a number before step {step}; {last_good(last)}")


def last_good(last: Path) -> str:
    """For messages."""
    return f"the last good checkpoint is {last if last.is_file() else 'none'}"
