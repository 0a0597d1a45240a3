"""``splip train``: the loop, its checkpoints, and how it goes on after a stop.

Every batch and every random number of a step come from (seed, step) alone, so a resumed run sees
what an uninterrupted one would have seen, and several processes share the batches that one would see.
"""

import contextlib
import math
import sys
import time
import warnings
from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from splip import config as _config
from splip import disk, distributed
from splip.data.trees import Tree
from splip.errors import UserError
from splip.evaluation import prompts
from splip.evaluation.test_set import BATCH, TestSet
from splip.images.decode import write_skipped
from splip.models import rotation
from splip.models.checkpoint import pick_device, read_checkpoint, write_checkpoint
from splip.models.config import TrainConfig
from splip.models.names import BEST, LAST, in_folder
from splip.models.registry import build
from splip.models.retriever import Retriever
from splip.models.tensors import restore_optimiser
from splip.progress import is_terminal, stop_signals
from splip.train import checks, log
from splip.train.batches import Feed, Part
from splip.train.objective import Objective
from splip.train.precision import Scaler

AXES = 1024  # sketches, and photos, whose principal axes are those of a backbone's vectors


def train(config: TrainConfig) -> Path:
    """Train, and return the path of the best checkpoint.

    Started by torchrun, the processes share each batch.

    Raises:
        UserError: the data, the configuration or the run's folder do not allow it.
        KeyboardInterrupt: a signal stopped it; last.safetensors holds how far it came.
    """
    checks.check_settings(config)
    device = pick_device(config.device)
    if not distributed.is_launched():
        return Run(config, device).train()
    device = distributed.start(device)
    try:
        return Run(config, device).train()
    finally:
        distributed.stop()


class Run:
    """One process's part in a run: the model, the data, how far it came, and the files of the run's folder.

    Args:
        config: whose numbers are in order, see :func:`splip.train.checks.check_settings`.
        device: of this process.

    Raises:
        UserError: the data or the run's folder do not allow it; nothing was written then.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config, self.device, self.first = config, device, distributed.rank() == 0
        self.out, self.last, self.best_file = config.out, config.out / LAST, config.out / BEST
        state = distributed.from_first(lambda: checks.before(config))
        source = in_folder(config.out, LAST)  # last.pt, if an earlier version began the run
        self.resumed = state is not None
        self.tree = tree = checks.tree_of(config)
        if state is not None:
            checks.same_config(state, config, source)
        self.scaler = Scaler(config.precision, device)
        if self.scaler.on and device.type == "cpu":
            _say("note: float16 is slow on a processor; bf16 and fp32 are not")
        self.model = build(config, [tree.texts[tree.classes.index(name)] for name in tree.seen]).to(device)
        self.feed = Feed(tree, config, self.model.backbone.image_size, device)
        self.model.data = checks.data_facts(tree, self.feed)
        if state is not None:
            checks.same_data(state, self.model.data, tree.root, source)
        checks.same_everywhere(config, self.model.data)
        self.validation: TestSet | None = None  # in the first process: it measures
        distributed.from_first(self._make_validation)
        distributed.barrier()  # nobody writes before everybody has checked
        self.events = self._make_folder() if self.first else None

        self.trainable = self.model.trainable()
        steps = config.epochs * self.feed.sampler.steps_per_epoch if config.steps is None else config.steps
        self.steps = steps if self.trainable else 0
        if self.first:
            self._list_skipped()
            _announce(config, tree, self.feed, self.model, self.steps, device, len(self._skipped()))
        if state is None and self.model.rotation is not None:
            rotation.turn(self.model.backbone, self.model.rotation, distributed.from_first(self._axes))
        self.objective = Objective(self.model)
        if state is None and self.trainable:
            self.model.start(self.feed.part(0, self.objective).images)
        self.parallel: Any = self.objective
        if distributed.size() > 1 and self.trainable:
            self.parallel = _parallel(self.objective, config, device)
        self.optimiser = None
        if self.trainable:
            groups = _parameter_groups(self.trainable, config)
            self.optimiser = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        self.step, self.best, self.seconds = 0, -math.inf, 0.0
        if state is not None:
            self._restore(state, source)
        self.began = time.monotonic()

    # ---- before the first step ----

    @torch.no_grad()
    def _axes(self) -> Tensor:
        """The principal axes of the training pictures, as the backbone sees them without prompts: ``[D, D]``."""
        clip, found = self.model.backbone, []
        for pictures in self.feed.some(AXES):
            for part in pictures.split(BATCH):
                features = clip.encode_visual(clip.embed_patches(part.to(self.device)))
                found.append(torch.nn.functional.normalize(features.float(), dim=1).cpu())
        return rotation.principal_axes(torch.cat(found))

    def _make_validation(self) -> None:
        self.validation = checks.validation(self.config, self.tree, self.model.backbone.image_size)

    def _make_folder(self) -> Any:
        """The run's folder with its config.yaml; returns TensorBoard's writer, if there is to be one."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            _config.save(self.config, self.out / "config.yaml")
            old = in_folder(self.out)
            if old != self.best_file and old.is_file():  # of an earlier version; what follows need not be better
                write_checkpoint(read_checkpoint(old), self.best_file)
        except OSError as error:
            raise UserError(f"cannot write the run's folder {self.out}: {error}") from None
        return log.need_tensorboard()(str(self.out)) if self.config.tensorboard else None

    def _restore(self, state: dict[str, Any], source: Path) -> None:
        """Go on from where the run stopped."""
        self.model.restore(state, source)
        try:
            if self.optimiser is not None:
                restore_optimiser(self.optimiser, state["optimiser"])
                self.scaler.restore(state)
            self.step, self.best, self.seconds = int(state["step"]), float(state["best"]), float(state["seconds"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"{type(error).__name__}: {str(error)[:120]}"
            raise UserError(f"{source}: not the end of a run, or damaged ({reason})") from None
        _say(f"going on after step {self.step}")

    # ---- the run ----

    def train(self) -> Path:
        """All steps that are left; returns the path of the best checkpoint."""
        if self.resumed and self.step >= self.steps:
            _say(f"{self.out}: all {self.steps} steps are done")
            return self.best_file
        log.trim(self.out / "log.csv", self.step, log.columns(self.config.loss))
        if not self.trainable:  # zero-shot
            row: log.Row = {}
            self._save(self._measure(row))
            found = f"validation mAP@all {row.get('val_mAP', 'none')}"
            _say(f"{self.best_file}: {self.config.method} has nothing to train; {found}")
            return self.best_file
        if self._all_steps():
            if self.first:
                print(f"stopped at step {self.step} of {self.steps}; go on with --resume", file=sys.stderr)
            raise KeyboardInterrupt
        metric = "Acc@1" if self.config.setting == "fine-grained" else "mAP@all"
        best = f"best validation {metric} {100 * self.best:.1f}%" if self.validation else None
        _say(f"{self.best_file}: {best or 'no validation classes: the last step'}; {self._took() / 60:.1f} minutes")
        if self.feed.skipped:
            _say(f"left out {len(self.feed.skipped)} unreadable pictures, listed in {self.out / 'skipped.txt'}")
        return self.best_file

    def _all_steps(self) -> bool:
        """Train until the last step or a signal; returns whether a signal stopped it before."""
        every, stopped = self.config.eval_every, False
        names = log.columns(self.config.loss)
        self.model.train()
        with log.writing(self.out / "log.csv", names, self.events) as write, stop_signals() as caught, \
                log.progress() as progress:  # fmt: skip
            bar = progress.add_task("Training", total=self.steps, completed=self.step, loss=math.nan, val=math.nan)
            for part in self.feed.batches(self.step, self.steps, self.objective):
                row, stop = self._one_step(part, caught)
                progress.update(bar, completed=self.step, loss=float(row["loss"]))
                if self.step % every == 0 or self.step == self.steps:
                    self.feed.share_skipped()
                    self._save(self._measure(row))
                    if "val_mAP" in row:
                        progress.update(bar, val=100 * float(row["val_mAP"]))
                    if self.first and not is_terminal():
                        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                write(row)
                if self.first and self.feed.news():
                    self._list_skipped()
                if stop:
                    stopped = self.step < self.steps
                    break
            if stopped and self.step % every:
                checks.check_weights(self.trainable, self.step, self.last)
                self._save()
        return stopped

    def _one_step(self, part: Part, caught: Sized) -> tuple[log.Row, bool]:
        """Forward, backward and the optimiser; returns the step's row of log.csv, and whether to stop after it.

        Args:
            part: this process's part of the batch.
            caught: not empty: this process was told to stop. Then all stop after the same step.
        """
        config, optimiser = self.config, self.optimiser
        assert optimiser is not None
        rate = _learning_rate(config, self.step, self.steps)
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * rate
        terms = _forward_backward(self.parallel, self.objective, part, config.accumulate, self.scaler)
        stop = torch.tensor(float(len(caught) > 0), device=self.device)
        values = distributed.mean(torch.stack([*terms.values(), stop]))
        numbers = dict(zip([*terms, "stop"], values.tolist(), strict=True))
        if not math.isfinite(numbers["loss"]):
            self._refuse(part, numbers["loss"])
        if config.clip_gradient is not None:
            self.scaler.unscale(optimiser)
            torch.nn.utils.clip_grad_norm_(self.trainable.values(), config.clip_gradient)
        skipped = self.scaler.step(optimiser)
        optimiser.zero_grad(set_to_none=True)
        self.step += 1
        if skipped:
            _say(f"step {self.step}: {skipped}")
        row = {"step": self.step, **{name: f"{numbers[name]:.5f}" for name in terms}}
        return {**row, "lr": f"{config.lr * rate:.3g}", "seconds": f"{self._took():.1f}"}, numbers["stop"] > 0

    def _refuse(self, part: Part, loss: float) -> None:
        """A loss that is no number: say which pictures made it, before any weight is changed."""
        bad = [str(path) for each in distributed.gather(self.feed.files(part)) for path in each]
        file = self.out / "bad_batch.txt"
        if self.first:
            disk.write_text(file, "".join(f"{f}\n" for f in bad), "surrogateescape")
        raise UserError(
            f"the loss became {loss} at step {self.step}; its {len(bad)} pictures are listed in {file}; "
            f"{checks.last_good(self.last)}; try a lower --lr"
        )

    # ---- what it reached, and what stays of it ----

    def _measure(self, row: log.Row) -> float | None:
        """Quality on the validation classes, in the first process; without any, the newest is the best."""
        checks.check_weights(self.trainable, self.step, self.last)
        if not self.tree.validation:
            return float(self.step)
        quality = None
        if self.validation is not None:
            self.model.eval()
            result = self.validation.measure_model(self.model, self.device).query_mean
            quality = result["Acc@1" if self.config.setting == "fine-grained" else "mAP@all"]
            row |= {"val_mAP": f"{result['mAP@all']:.5f}"}
            row |= {"val_Acc1": f"{result['Acc@1']:.5f}"} if "Acc@1" in result else {}
            if self.config.eval_prompts and prompts.written(self.model):
                for change in prompts.CHANGES:
                    found = self.validation.measure_model(self.model, self.device, change).query_mean
                    row |= {f"val_mAP_{change}": f"{found['mAP@all']:.5f}"}
                row |= {"val_attention": f"{prompts.attention(self.validation, self.model, self.device)['mean']:.5f}"}
            self.model.train()
        distributed.barrier()
        return quality

    def _save(self, quality: float | None = None) -> None:
        """last.safetensors, and best.safetensors if ``quality`` is given and the best so far."""
        better = quality is not None and quality > self.best
        self.best = quality if better and quality is not None else self.best
        if not self.first:
            return
        weights = self.model.checkpoint()
        if better:
            write_checkpoint({**weights, "step": self.step, "validation": self.best}, self.best_file)
        optimiser = self.optimiser.state_dict() if self.optimiser else {}
        reached = {"step": self.step, "best": self.best, "seconds": self._took(), **self.scaler.state()}
        write_checkpoint({**weights, "optimiser": optimiser, **reached}, self.last)

    def _took(self) -> float:
        """Seconds of training, those before a stop too."""
        return self.seconds + time.monotonic() - self.began

    def _skipped(self) -> list[Any]:
        return [*self.feed.skipped, *(self.validation.skipped if self.validation else [])]

    def _list_skipped(self) -> None:
        write_skipped(self.out / "skipped.txt", self._skipped())


def _parallel(objective: Objective, config: TrainConfig, device: torch.device) -> DistributedDataParallel:
    """The objective with gradients that are means over all processes."""
    with warnings.catch_warnings():
        # Newer versions of torch rename broadcast_buffers; older ones know no other name.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            objective,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,  # they follow from averages over all processes
            find_unused_parameters=not config.loss.classification or config.prompts.depth == 0,
        )


def _say(text: str) -> None:
    if distributed.rank() == 0:
        print(text)


def _announce(
    config: TrainConfig, tree: Tree, feed: Feed, model: Retriever, steps: int, device: torch.device, skipped: int
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


def _forward_backward(
    parallel: Any, objective: Objective, part: Part, accumulate: int, scaler: Scaler
) -> dict[str, Tensor]:
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
            scaler.scale(terms["loss"] / accumulate).backward()
        for name, value in terms.items():
            total[name] = total.get(name, 0) + value.detach() / accumulate
    return total


def _parameter_groups(trainable: dict[str, torch.nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not; what is trained of a backbone may have a rate of its own."""
    peak = config.lr if config.layernorm_lr is None else config.layernorm_lr
    norms = {n for n in trainable if n.startswith("backbone.")}
    if config.train_backbone:
        norms = {n for n in norms if ".ln_" in n or n.endswith((".scale", ".shift"))}
    others = set() if config.train_backbone else {n for n in norms if trainable[n].dim() > 1}  # of train_also
    groups = [
        {
            "params": [p for n, p in trainable.items() if p.dim() > 1 and n not in others],
            "weight_decay": config.weight_decay,
            "peak": config.lr,
        },
        {
            "params": [p for n, p in trainable.items() if p.dim() <= 1 and n not in norms],
            "weight_decay": 0.0,
            "peak": config.lr,
        },
        {"params": [p for n, p in trainable.items() if n in norms - others], "weight_decay": 0.0, "peak": peak},
        {"params": [trainable[n] for n in sorted(others)], "weight_decay": config.weight_decay, "peak": peak},
    ]
    return [group for group in groups if group["params"]]


def _learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth, or the rate itself; as a share of the peak rate."""
    warmup = min(config.warmup, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))
