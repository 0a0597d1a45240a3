"""``splip train``: the loop, its checkpoints, and how it goes on after a stop.

Every batch and every random number of a step come from (seed, step) alone, so a resumed run sees
what an uninterrupted one would have seen, and several processes share the batches that one would see.
"""

import contextlib
import csv
import hashlib
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from splip import config as _config
from splip import disk, distributed
from splip.config import differences, from_dict
from splip.data.trees import Items, Tree, load_tree, unpaired
from splip.errors import UserError
from splip.evaluation.test_set import TestSet
from splip.images.decode import write_skipped
from splip.models.checkpoint import pick_device, read_checkpoint
from splip.models.config import TrainConfig
from splip.models.retriever import SpLIP
from splip.progress import bars, is_terminal, stop_signals
from splip.train.batches import Feed, Part
from splip.train.objective import TERMS, Objective

COLUMNS = ["step", "loss", *TERMS, "lr", "seconds", "val_mAP", "val_Acc1"]
# Settings that change nothing about a model: resumed runs, and the machines of one run, may have others.
FREE = ("out:", "resume:", "device:", "data.root:", "data.memory_gb:", "data.cache:", "tensorboard:")


def train(config: TrainConfig) -> Path:
    """Train, and return the path of the best checkpoint.

    Started by torchrun, the processes share each batch.

    Raises:
        UserError: the data, the configuration or the run's folder do not allow it.
    """
    _check_settings(config)
    device = pick_device(config.device)
    if not distributed.is_launched():
        return _train(config, device)
    device = distributed.start(device)
    try:
        return _train(config, device)
    finally:
        distributed.stop()


def _train(config: TrainConfig, device: torch.device) -> Path:
    out, first = config.out, distributed.rank() == 0
    last = out / "last.pt"
    state = distributed.from_first(lambda: _before(config, last))
    tree = load_tree(config.data.root, config.data)
    tree.seen = _share_of_classes(tree.seen, config)
    if len(tree.seen) < 2:
        raise UserError(f"{tree.root}: only one class to train on ({tree.seen[0]}): classes are told apart by others")
    if state is not None:
        _same_config(state, config, last)

    model = SpLIP(config, [tree.texts[tree.classes.index(name)] for name in tree.seen]).to(device)
    feed = Feed(tree, config, model.backbone.image_size, device)
    model.data = _data_facts(tree, feed)
    if state is not None and state["data"] != model.data:
        changed = ", ".join(key for key, value in model.data.items() if state["data"].get(key) != value)
        raise UserError(f"--resume: the data in {tree.root} are not those of {last} any more: {changed} changed")
    _same_everywhere(config, model.data)
    validation: TestSet | None = None  # in the first process: it measures

    def build() -> None:
        nonlocal validation
        validation = _validation(config, tree, model.backbone.image_size)

    distributed.from_first(build)
    distributed.barrier()  # nobody writes before everybody has checked
    writer = None
    if first:
        try:
            out.mkdir(parents=True, exist_ok=True)
            _config.save(config, out / "config.yaml")
        except OSError as error:
            raise UserError(f"cannot write the run's folder {out}: {error}") from None
        writer = _tensorboard(out) if config.tensorboard else None
    skipped = [*feed.skipped, *(validation.skipped if validation else [])]

    trainable = model.trainable()
    steps = config.epochs * feed.sampler.steps_per_epoch if config.steps is None else config.steps
    steps = steps if trainable else 0
    if first:
        write_skipped(out / "skipped.txt", skipped)
        _announce(config, tree, feed, model, steps, device, len(skipped))

    objective = Objective(model)
    parallel: Any = objective
    if distributed.size() > 1 and trainable:
        with warnings.catch_warnings():
            # Newer versions of torch rename broadcast_buffers; older ones know no other name.
            warnings.simplefilter("ignore", FutureWarning)
            parallel = DistributedDataParallel(
                objective,
                device_ids=[device.index] if device.type == "cuda" else None,
                broadcast_buffers=False,  # they follow from averages over all processes
                find_unused_parameters=not config.loss.classification or config.prompts.depth == 0,
            )
    optimiser = torch.optim.AdamW(_parameter_groups(trainable, config), lr=config.lr, fused=True) if trainable else None
    start, best, seconds = 0, -math.inf, 0.0
    if state is not None:
        model.restore(state, last)
        try:
            if optimiser is not None:
                optimiser.load_state_dict(state["optimiser"])
            start, best, seconds = int(state["step"]), float(state["best"]), float(state["seconds"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"{type(error).__name__}: {str(error)[:120]}"
            raise UserError(f"{last}: not the end of a run, or damaged ({reason})") from None
        _say(f"going on after step {start}")
        if start >= steps:
            _say(f"{out}: all {steps} steps are done")
            return out / "best.pt"
    _trim_log(out / "log.csv", start)
    began, step = time.monotonic(), start

    def save(quality: float | None = None) -> None:
        """last.pt, and best.pt if ``quality`` is given and the best so far."""
        nonlocal best
        better = quality is not None and quality > best
        best = quality if better and quality is not None else best
        if not first:
            return
        weights = model.checkpoint()
        if better:
            _write({**weights, "step": step, "validation": best}, out / "best.pt")
        _write({**weights, "optimiser": optimiser.state_dict() if optimiser else {}, "step": step, "best": best,
                "seconds": seconds + time.monotonic() - began}, last)  # fmt: skip

    def measure(row: dict[str, Any]) -> float | None:
        """Quality on the validation classes, in the first process; without any, the newest is the best."""
        _check_weights(trainable, step, last)
        if not tree.validation:
            return float(step)
        quality = None
        if validation is not None:
            result = validation.measure_model(model.eval(), device).query_mean
            quality = result["Acc@1" if config.setting == "fine-grained" else "mAP@all"]
            row |= {"val_mAP": f"{result['mAP@all']:.5f}"}
            row |= {"val_Acc1": f"{result['Acc@1']:.5f}"} if "Acc@1" in result else {}
            model.train()
        distributed.barrier()
        return quality

    if not trainable:  # zero-shot
        row: dict[str, Any] = {}
        save(measure(row))
        _say(
            f"{out / 'best.pt'}: {config.method} has nothing to train; validation mAP@all {row.get('val_mAP', 'none')}"
        )
        return out / "best.pt"

    model.train()
    with _log(out / "log.csv", writer) as log, stop_signals() as caught, _progress() as progress:
        bar = progress.add_task("Training", total=steps, completed=start, loss=math.nan, val=math.nan)
        stopped = False
        for part in feed.batches(start, steps, objective):
            rate = _learning_rate(config, step, steps)
            lr = config.lr * rate
            for group in optimiser.param_groups if optimiser else ():
                group["lr"] = group["peak"] * rate
            terms = _forward_backward(parallel, objective, part, config.accumulate)
            values = distributed.mean(torch.stack([*terms.values(), torch.tensor(float(bool(caught)), device=device)]))
            numbers = dict(zip([*terms, "stop"], values.tolist(), strict=True))
            if not math.isfinite(numbers["loss"]):
                bad = [str(path) for each in distributed.gather(feed.files(part)) for path in each]
                if first:
                    disk.write_text(out / "bad_batch.txt", "".join(f"{f}\n" for f in bad), "surrogateescape")
                raise UserError(
                    f"the loss became {numbers['loss']} at step {step}; its {len(bad)} pictures are listed in "
                    f"{out / 'bad_batch.txt'}; {_last_good(last)}; try a lower --lr"
                )
            assert optimiser is not None
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1

            row = {"step": step, **{name: f"{numbers[name]:.5f}" for name in terms}, "lr": f"{lr:.3g}",
                   "seconds": f"{seconds + time.monotonic() - began:.1f}"}  # fmt: skip
            progress.update(bar, completed=step, loss=numbers["loss"])
            if step % config.eval_every == 0 or step == steps:
                feed.share_skipped()
                save(measure(row))
                if "val_mAP" in row:
                    progress.update(bar, val=100 * float(row["val_mAP"]))
                if first and not is_terminal():
                    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            if first:
                log(row)
                if feed.news():
                    write_skipped(out / "skipped.txt", [*feed.skipped, *(validation.skipped if validation else [])])
            if numbers["stop"]:
                stopped = step < steps
                break
        if stopped and step % config.eval_every:
            _check_weights(trainable, step, last)
            save()
    if stopped:
        if first:
            print(f"stopped at step {step} of {steps}; go on with --resume", file=sys.stderr)
        raise KeyboardInterrupt
    took = seconds + time.monotonic() - began
    metric = "Acc@1" if config.setting == "fine-grained" else "mAP@all"
    what = f"best validation {metric} {100 * best:.1f}%" if validation else "no validation classes: the last step"
    _say(f"{out / 'best.pt'}: {what}; {took / 60:.1f} minutes")
    if feed.skipped and first:
        print(f"left out {len(feed.skipped)} unreadable pictures, listed in {out / 'skipped.txt'}")
    return out / "best.pt"


def _before(config: TrainConfig, last: Path) -> dict[str, Any] | None:
    """The checkpoint to go on from; a new run must not lie in the folder of another."""
    if not config.resume and (last.exists() or (config.out / "best.pt").exists()):
        raise UserError(f"{config.out} holds a run already: add --resume to go on with it, or choose another --out")
    if config.resume and not last.is_file():
        raise UserError(f"--resume: there is no {last}")
    return read_checkpoint(last) if config.resume else None


def _same_everywhere(config: TrainConfig, data: dict[str, Any]) -> None:
    """Processes with other settings or other pictures would drift apart unseen."""
    for number, (settings, found) in enumerate(distributed.gather((config, data))):
        changed = [d for d in differences(config, settings) if not d.startswith(FREE)]
        changed += [f"{key} in {config.data.root}" for key, value in data.items() if found.get(key) != value]
        if changed:
            own = distributed.rank()
            raise UserError(f"processes {own} and {number} must train the same model; different: {'; '.join(changed)}")


def _validation(config: TrainConfig, tree: Tree, side: int) -> TestSet | None:
    if not tree.validation:
        return None
    made = TestSet(tree, tree.validation, config.data, side)
    if config.setting == "fine-grained":
        lacking = unpaired(made.sketches, made.photos)
        if len(lacking) == len(made.sketches):
            raise UserError(f"setting: fine-grained, but no validation sketch of {tree.root} has its photo")
    return made


def _say(text: str) -> None:
    if distributed.rank() == 0:
        print(text)


def _announce(
    config: TrainConfig, tree: Tree, feed: Feed, model: SpLIP, steps: int, device: torch.device, skipped: int
) -> None:
    print(
        f"{config.method}, {config.setting}: {len(tree.seen)} seen classes, {len(feed.sketches)} sketches, "
        f"{len(feed.photos)} photos; {len(tree.validation)} validation and {len(tree.unseen)} unseen classes"
    )
    processes = f" in {distributed.size()} processes" if distributed.size() > 1 else ""
    print(
        f"{sum(p.numel() for p in model.trainable().values()):,} trainable of "
        f"{sum(p.numel() for p in model.parameters()):,} parameters; {steps} steps of {config.batch_size} sketches "
        f"on {device}{processes}"
    )
    for note in (*tree.notes, *feed.notes):
        print(f"note: {note}")
    if skipped:
        print(f"left out {skipped} unreadable pictures, listed in {config.out / 'skipped.txt'}")


def _check_weights(weights: dict[str, torch.nn.Parameter], step: int, last: Path) -> None:
    """A finite loss can have a gradient that is not; what it broke must not be saved."""
    for name, weight in weights.items():
        if not bool(torch.isfinite(weight).all()):
            raise UserError(f"{name} became infinite or not a number before step {step}; {_last_good(last)}")


def _last_good(last: Path) -> str:
    return f"the last good checkpoint is {last if last.is_file() else 'none'}"


def _forward_backward(parallel: Any, objective: Objective, part: Part, accumulate: int) -> dict[str, Tensor]:
    """Gradients of one step, computed in ``accumulate`` parts; returns the mean of the terms, detached."""
    B = len(part.pieces)
    mean = objective.average(part.images) if accumulate > 1 else None
    total: dict[str, Tensor] = {}
    for number in range(accumulate):
        rows = torch.arange(number, B, accumulate, device=part.images.device)
        triplets = torch.cat([rows, rows + B, rows + 2 * B]) if accumulate > 1 else slice(None)
        # Gradients are exchanged once, with the last part.
        last = number == accumulate - 1
        wait = contextlib.nullcontext() if last or parallel is objective else parallel.no_sync()
        with wait:
            terms = parallel(
                part.images[triplets], part.labels[triplets], part.instances[triplets],
                part.pieces[rows] if accumulate > 1 else part.pieces, mean,
            )  # fmt: skip
            (terms["loss"] / accumulate).backward()
        for name, value in terms.items():
            total[name] = total.get(name, 0) + value.detach() / accumulate
    return total


# ---- classes and settings ----


def _share_of_classes(seen: list[str], config: TrainConfig) -> list[str]:
    """A seeded share of the seen classes; at least two."""
    if config.data.class_fraction == 1:
        return seen
    rng = np.random.default_rng([config.data.split_seed, 3])
    count = min(len(seen), max(2, round(config.data.class_fraction * len(seen))))
    return sorted(rng.choice(seen, count, replace=False).tolist())


def _check_settings(config: TrainConfig) -> None:
    for name in ("batch_size", "eval_every", "epochs", "steps", "accumulate", "per_class"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    for name in ("lr", "weight_decay", "warmup", "seed"):
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise UserError(f"{name} must not be negative, got {value}")
    for name in TERMS:
        if not 0 <= getattr(config.loss, name) < math.inf:
            raise UserError(f"loss.{name} must not be negative, got {getattr(config.loss, name)}")
    for name in ("sample_fraction", "class_fraction"):
        if not 0 < getattr(config.data, name) <= 1:
            raise UserError(f"data.{name} must be between 0 and 1, got {getattr(config.data, name)}")
    if config.method == "zero-shot" and config.train_backbone:
        raise UserError("method zero-shot trains nothing: leave out --train-backbone")
    if config.method != "zero-shot" and not any(getattr(config.loss, name) for name in TERMS):
        raise UserError("all weights of the loss are 0: nothing to train for")
    if config.loss.divergence and config.per_class < 2:
        raise UserError("loss.divergence compares the triplets of a class: set per_class to 2 or more")
    if config.layernorm_lr is not None and not 0 <= config.layernorm_lr < math.inf:
        raise UserError(f"layernorm_lr must not be negative, got {config.layernorm_lr}")
    parts = config.accumulate * int(os.environ.get("WORLD_SIZE", "1"))
    if config.batch_size % parts:
        raise UserError(f"batch_size {config.batch_size} is not a multiple of {parts} (processes x accumulate)")
    if config.loss.divergence and parts > 1:
        raise UserError("loss.divergence compares classes over the whole batch: one process, and accumulate 1")
    if config.tensorboard:
        _tensorboard(None)


def _tensorboard(folder: Path | None) -> Any:
    """A TensorBoard writer; without a folder, only whether there can be one."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError('--tensorboard needs TensorBoard: pip install "splip[tensorboard]"') from None
    return None if folder is None else SummaryWriter(str(folder))


def _data_facts(tree: Tree, feed: Feed) -> dict[str, Any]:
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


def _parameter_groups(trainable: dict[str, torch.nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not; the backbone's LayerNorms may have a rate of their own."""
    peak = config.lr if config.layernorm_lr is None else config.layernorm_lr
    norms = {n for n in trainable if n.startswith("backbone.") and (".ln_" in n or n.endswith((".scale", ".shift")))}
    groups = [
        {
            "params": [p for n, p in trainable.items() if p.dim() > 1],
            "weight_decay": config.weight_decay,
            "peak": config.lr,
        },
        {
            "params": [p for n, p in trainable.items() if p.dim() <= 1 and n not in norms],
            "weight_decay": 0.0,
            "peak": config.lr,
        },
        {"params": [p for n, p in trainable.items() if n in norms], "weight_decay": 0.0, "peak": peak},
    ]
    return [group for group in groups if group["params"]]


def _learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth; as a share of the peak rate."""
    warmup = min(config.warmup, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def _same_config(state: dict[str, Any], config: TrainConfig, last: Path) -> None:
    old = from_dict(TrainConfig, state["config"], str(last))
    changed = [d for d in differences(old, config) if not d.startswith(FREE)]
    if changed:
        raise UserError(f"--resume: the settings differ from those of {last}: {'; '.join(changed)}")


def _write(state: dict[str, Any], path: Path) -> None:
    """Whole or not at all: a stop while writing leaves the previous file."""
    try:
        with disk.replacing(path) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {path}: {error}") from None


def _trim_log(path: Path, step: int) -> None:
    """Drop rows after the checkpoint that training goes on from."""
    if not path.is_file() or distributed.rank() != 0:
        return
    with open(path, newline="") as file:
        rows = [r for r in csv.DictReader(file) if int(r["step"]) <= step]
    with disk.replacing(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@contextmanager
def _log(path: Path, writer: Any) -> Iterator[Any]:
    """A function that writes a row to log.csv, and to TensorBoard if there is a writer."""
    if distributed.rank() != 0:
        yield None
        return
    new = not path.is_file()
    with open(path, "a", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            table.writeheader()

        def write(row: dict[str, Any]) -> None:
            table.writerow(row)
            file.flush()
            for name, value in row.items() if writer is not None else ():
                if name not in ("step", "seconds"):
                    writer.add_scalar(
                        ("validation/" if name.startswith("val") else "train/") + name, float(value), row["step"]
                    )

        try:
            yield write
        finally:
            if writer is not None:
                writer.close()


def _progress() -> Progress:
    return bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  val mAP {task.fields[val]:.1f}%"),
        TimeRemainingColumn(),
        transient=False,
    )
