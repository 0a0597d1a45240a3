"""``splip train``: the loop, its checkpoints, and how it goes on after a stop.

Every batch and every random number of a step come from (seed, step) alone, so a resumed run sees
what an uninterrupted one would have seen.
"""

import csv
import hashlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from splip import config as configuration
from splip import losses
from splip.config import TrainConfig
from splip.data import Items, Tree, augment, load_tree
from splip.errors import UserError
from splip.evaluate import TestSet
from splip.model import SpLIP, pick_device, read_checkpoint
from splip.pictures import Pictures, write_skipped
from splip.progress import bars, is_terminal

COLUMNS = ["step", "loss", "triplet", "classification", "lr", "seconds", "val_mAP", "val_Acc1"]


class Sampler:
    """Batches of sketches with a positive and a negative photo each.

    Args:
        sketches: of the seen classes.
        photos: of the seen classes.
        batch_size: sketches per batch.
        positives: class or instance.
        seed: of all choices.
    """

    def __init__(self, sketches: Items, photos: Items, batch_size: int, positives: str, seed: int) -> None:
        self.batch_size, self.seed, self.positives = batch_size, seed, positives
        self.labels = np.asarray(sketches.labels)
        self.photo_labels = np.asarray(photos.labels)
        self.classes = np.unique(self.photo_labels)
        self.of_class = {c: np.flatnonzero(self.photo_labels == c) for c in self.classes.tolist()}
        by_instance: dict[int, list[int]] = {}
        for i, instance in enumerate(photos.instances):
            by_instance.setdefault(instance, []).append(i)
        self.own = [np.asarray(by_instance.get(i, []), dtype=np.int64) for i in sketches.instances]
        if positives == "instance" and not all(len(own) for own in self.own):
            lacking = next(i for i, own in enumerate(self.own) if not len(own))
            raise UserError(f"positives: instance, but {sketches.paths[lacking]} has no photo (see instances.csv)")
        self.steps_per_epoch = max(1, len(self.labels) // batch_size)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions of the sketches, positive photos and negative photos of a step; each ``[B]``."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.labels))
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        rng = np.random.default_rng([self.seed, 2, step])
        positive, negative = np.empty_like(chosen), np.empty_like(chosen)
        for i, sketch in enumerate(chosen):
            label = self.labels[sketch]
            pool = self.own[sketch] if self.positives == "instance" else self.of_class[int(label)]
            positive[i] = rng.choice(pool)
            other = rng.choice(self.classes[self.classes != label])
            negative[i] = rng.choice(self.of_class[int(other)])
        return chosen, positive, negative


def train(config: TrainConfig) -> Path:
    """Train, and return the path of the best checkpoint.

    Raises:
        UserError: the data, the configuration or the run's folder do not allow it.
    """
    _check_numbers(config)
    out = config.out
    last = out / "last.pt"
    if not config.resume and (last.exists() or (out / "best.pt").exists()):
        raise UserError(f"{out} holds a run already: add --resume to go on with it, or choose another --out")
    if config.resume and not last.is_file():
        raise UserError(f"--resume: there is no {last}")
    device = pick_device(config.device)
    tree = load_tree(config.data.root, config.data)
    if len(tree.seen) < 2:
        raise UserError(f"{tree.root}: only one class to train on ({tree.seen[0]}): a negative photo needs another")
    state = read_checkpoint(last) if config.resume else None
    if state is not None:
        _same_config(state, config, last)

    texts = [tree.texts[tree.classes.index(name)] for name in tree.seen]
    model = SpLIP(config, texts).to(device)
    model.data = _data_facts(tree)
    if state is not None and state["data"] != model.data:
        changed = ", ".join(key for key, value in model.data.items() if state["data"].get(key) != value)
        raise UserError(f"--resume: the data in {tree.root} are not those of {last} any more: {changed} changed")
    sketches, photos, pictures, skipped = _load_pictures(tree, config, model.backbone.image_size)
    validation = TestSet(tree, tree.validation, config.data, model.backbone.image_size) if tree.validation else None
    skipped += validation.skipped if validation else []
    try:
        out.mkdir(parents=True, exist_ok=True)
        configuration.save(config, out / "config.yaml")
    except OSError as error:
        raise UserError(f"cannot write the run's folder {out}: {error}") from None
    write_skipped(out / "skipped.txt", skipped)
    sampler = Sampler(sketches, photos, config.batch_size, config.positives, config.seed)
    steps = config.epochs * sampler.steps_per_epoch if config.steps is None else config.steps

    trainable = model.trainable()
    print(
        f"{len(texts)} seen classes, {len(sketches)} sketches, {len(photos)} photos; "
        f"{len(tree.validation)} validation and {len(tree.unseen)} unseen classes"
    )
    print(
        f"{sum(p.numel() for p in trainable.values()):,} trainable of {sum(p.numel() for p in model.parameters()):,} "
        f"parameters; {steps} steps of {config.batch_size} sketches on {device}"
    )
    for note in tree.notes:
        print(f"note: {note}")
    if skipped:
        print(f"left out {len(skipped)} unreadable pictures, listed in {out / 'skipped.txt'}")

    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in trainable.values() if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trainable.values() if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=config.lr,
        fused=True,
    )
    start, best, seconds = 0, -1.0, 0.0
    if state is not None:
        model.restore(state, last)
        optimiser.load_state_dict(state["optimiser"])
        start, best, seconds = state["step"], state["best"], state["seconds"]
        print(f"going on after step {start}")
    if start >= steps:
        print(f"{out}: all {steps} steps are done")
        return out / "best.pt"
    _trim_log(out / "log.csv", start)

    def save(step: int) -> None:
        _write({**model.checkpoint(), "optimiser": optimiser.state_dict(), "step": step, "best": best,
                "seconds": seconds + time.monotonic() - began}, last)  # fmt: skip

    labels_of = {tree.classes.index(name): i for i, name in enumerate(tree.seen)}
    modality = torch.tensor([0] * config.batch_size + [1] * 2 * config.batch_size, device=device)
    scale = model.backbone.clip.logit_scale.exp().detach()
    if config.loss.logit_scale is not None:
        scale = torch.full_like(scale, config.loss.logit_scale)

    def batch(step: int) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], torch.Tensor]:
        positions = sampler.batch(step)
        which = (pictures[0], pictures[1], pictures[1])
        images = torch.cat([source.get(chosen) for source, chosen in zip(which, positions, strict=True)])
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        return positions, augment(images, modality.cpu() == 0, config.data.augment, generator).to(device)

    began, step = time.monotonic(), start
    model.train()
    with _log(out / "log.csv") as log, _stop_signals() as stopped, _progress() as progress:
        bar = progress.add_task("Training", total=steps, completed=start, loss=math.nan, val=math.nan)
        while step < steps and not stopped:
            lr = _learning_rate(config, step, steps)
            for group in optimiser.param_groups:
                group["lr"] = lr
            (chosen, positive, negative), images = batch(step)
            class_numbers = [sketches.labels[i] for i in chosen]
            class_numbers += [photos.labels[i] for i in (*positive, *negative)]
            labels = torch.tensor([labels_of[c] for c in class_numbers], device=device)

            features, class_texts = model(images, modality)
            sketch, near, far = features.chunk(3)
            margin: Any = config.loss.fixed_margin
            if config.loss.margin == "adaptive":
                own, other = labels[: len(chosen)], labels[2 * len(chosen) :]
                margin = model.class_similarity[own, other]
            triplet = losses.triplet(sketch, near, far, margin)
            classification = losses.classification(features, class_texts, labels, modality, scale)
            loss = config.loss.triplet * triplet + config.loss.classification * classification
            if not torch.isfinite(loss):
                raise UserError(
                    f"the loss became {loss.item()} at step {step}; the last good checkpoint is "
                    f"{last if last.is_file() else 'none'}; try a lower --lr"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            step += 1

            row: dict[str, Any] = {"step": step, "loss": f"{loss.item():.5f}", "triplet": f"{triplet.item():.5f}",
                                   "classification": f"{classification.item():.5f}", "lr": f"{lr:.3g}",
                                   "seconds": f"{seconds + time.monotonic() - began:.1f}"}  # fmt: skip
            progress.update(bar, completed=step, loss=loss.item())
            if step % config.eval_every == 0 or step == steps:
                quality = -loss.item()  # without validation classes the newest checkpoint is the best
                if validation is not None:
                    result = validation.measure_model(model.eval(), device).query_mean
                    quality = result["mAP@all"]
                    row |= {"val_mAP": f"{quality:.5f}"}
                    if "Acc@1" in result:
                        row |= {"val_Acc1": f"{result['Acc@1']:.5f}"}
                    progress.update(bar, val=100 * quality)
                    model.train()
                if quality > best or validation is None:
                    best = quality
                    _write({**model.checkpoint(), "step": step, "validation_mAP": best}, out / "best.pt")
                save(step)
                if not is_terminal():
                    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            log(row)
        if stopped:
            save(step)
    if stopped:
        print(f"stopped at step {step} of {steps}; go on with --resume", file=sys.stderr)
        raise KeyboardInterrupt
    took = seconds + time.monotonic() - began
    what = f"best validation mAP@all {100 * best:.1f}%" if validation else "no validation classes: the last step"
    print(f"{out / 'best.pt'}: {what}; {took / 60:.1f} minutes")
    return out / "best.pt"


def _check_numbers(config: TrainConfig) -> None:
    for name in ("batch_size", "eval_every", "epochs", "steps"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    for name in ("lr", "weight_decay", "warmup", "seed"):
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise UserError(f"{name} must not be negative, got {value}")


def _data_facts(tree: Tree) -> dict[str, Any]:
    """Which classes are trained on, choose the checkpoint and are held out, and which pictures there are."""
    words = {name: tree.texts[i] for i, name in enumerate(tree.classes)}
    digest = hashlib.sha256()
    for path in (*tree.sketches.paths, *tree.photos.paths):
        digest.update(os.fsencode(path.relative_to(tree.root)) + b"\0")
    return {
        "seen": [words[name] for name in tree.seen],
        "validation": [words[name] for name in tree.validation],
        "unseen": [words[name] for name in tree.unseen],
        "pictures": digest.hexdigest(),
    }


def _load_pictures(
    tree: Tree, config: TrainConfig, side: int
) -> tuple[Items, Items, tuple[Pictures, Pictures], list[Any]]:
    sketches, photos = tree.items(tree.seen)
    data = config.data
    loaded = (
        Pictures(sketches.paths, side, data.fit, data.crop_sketches, data.memory_gb, "Decoding sketches"),
        Pictures(photos.paths, side, data.fit, False, data.memory_gb, "Decoding photos"),
    )
    skipped = [*loaded[0].skipped, *loaded[1].skipped]
    sketches, photos = sketches.take(loaded[0].kept), photos.take(loaded[1].kept)
    without = sorted({tree.classes.index(n) for n in tree.seen} - (set(sketches.labels) & set(photos.labels)))
    if without:
        name = tree.classes[without[0]]
        raise UserError(f"{tree.root}: class {name} has no readable sketch or no readable photo; remove its folders")
    if len(sketches) < config.batch_size:
        raise UserError(f"batch_size {config.batch_size} is larger than the {len(sketches)} sketches to train on")
    return sketches, photos, loaded, skipped


def _learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    warmup = min(config.warmup, steps // 2)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def _same_config(state: dict[str, Any], config: TrainConfig, last: Path) -> None:
    old = configuration.from_dict(TrainConfig, state["config"], str(last))
    free = ("out:", "resume:", "device:", "data.root:", "data.memory_gb:")
    changed = [d for d in configuration.differences(old, config) if not d.startswith(free)]
    if changed:
        raise UserError(f"--resume: the settings differ from those of {last}: {'; '.join(changed)}")


def _write(state: dict[str, Any], path: Path) -> None:
    """Whole or not at all: a stop while writing leaves the previous file."""
    temporary = path.with_suffix(".tmp")
    try:
        torch.save(state, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error}") from None


def _trim_log(path: Path, step: int) -> None:
    """Drop rows after the checkpoint that training goes on from."""
    if not path.is_file():
        return
    with open(path, newline="") as file:
        rows = [r for r in csv.DictReader(file) if int(r["step"]) <= step]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@contextmanager
def _log(path: Path) -> Iterator[Any]:
    new = not path.is_file()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()

        def write(row: dict[str, Any]) -> None:
            writer.writerow(row)
            file.flush()

        yield write


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that the step in hand is finished and saved."""
    caught: list[int] = []
    names = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(s, lambda number, _: caught.append(number)) for s in names]
    except ValueError:  # not the main thread: signals are somebody else's business
        yield caught
        return
    try:
        yield caught
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)


def _progress() -> Progress:
    return bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  val mAP {task.fields[val]:.1f}%"),
        TimeRemainingColumn(),
        transient=False,
    )


if __name__ == "__main__":
    from splip.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
