"""``splip pretrain``: a small CLIP from pictures and their names.

By itself no sketch is ever shown to it; with ``--outlines`` and ``--pair-weight`` edges and line icons are.

That is what CLIP is to sketches, and what makes an adaptation to sketches measurable. Contrasting a batch with its
captions learns nothing from a few thousand pictures, so the visual tower learns by prototypes: the cosine with one
learned vector for each thing and one for each class, a BatchNorm before it that keeps features apart, and pictures
that never look the same twice. The text tower is fitted afterwards to the embeddings of the things that its texts name.
"""

import copy
import csv
import math
import sys
import time
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from splip import config as _config
from splip import disk
from splip.config import differences, from_dict, to_dict
from splip.data.augment import repaint
from splip.data.config import DataConfig
from splip.data.trees import load_tree
from splip.errors import UserError
from splip.evaluation.test_set import TestSet
from splip.models import seeded, tensors
from splip.models.activation import metadata
from splip.models.checkpoint import pick_device
from splip.models.clip import WEIGHTS, PromptedCLIP
from splip.models.config import BackboneConfig
from splip.models.names import LAST, in_folder
from splip.models.stem import ConvStem, as_affine, match_statistics
from splip.progress import bars, is_terminal, stop_signals, track
from splip.train.config import PretrainConfig
from splip.train.pictures import COLOURED, LINE, Drawn, Pictures

FORMAT = 1
COLUMNS = ["step", "loss", "things", "classes", "pairs", "lr", "seconds", "val_mAP", "val_Acc1"]
TEMPLATES = ("{}", "a photo of a {}", "a picture of a {}", "photo of a {}", "a sketch of a {}", "sketch of a {}",
             "a drawing of a {}")  # fmt: skip


class Prototypes(nn.Module):
    """The visual tower with what it is trained by.

    Args:
        backbone: with random weights; its stem, if it has one, gets BatchNorms for training.
        things, classes: how many prototypes of each.
    """

    def __init__(self, backbone: PromptedCLIP, things: int, classes: int) -> None:
        super().__init__()
        visual = backbone.visual
        if isinstance(visual.conv1, ConvStem):
            visual.conv1 = ConvStem(backbone.visual_width, visual.conv1.channels, normalised=True)
        self.backbone = backbone
        self.norm = nn.BatchNorm1d(backbone.visual_width)
        self.things = nn.Parameter(torch.randn(things, backbone.embed_dim) * 0.02)
        self.classes = nn.Parameter(torch.randn(classes, backbone.embed_dim) * 0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Unit-length embeddings ``[B, D]`` of normalised float32 ``[B, 3, S, S]``."""
        patches = self.backbone.embed_patches(images)
        return F.normalize(self.backbone.encode_visual(patches, norm=self.norm), dim=1)

    @torch.no_grad()
    def adopt(self, start: PromptedCLIP, images: Tensor) -> None:
        """Take over a finished backbone: the same features, and BatchNorms as if they had been trained with it.

        Args:
            images: ``[B, 3, S, S]`` float32, normalised: some hundred pictures, whose statistics they start from.
        """
        mine = self.backbone
        stem = mine.visual.conv1
        before = {n: p for n, p in start.clip.state_dict().items() if not n.startswith("visual.conv1.")}
        mine.clip.load_state_dict(before, strict=not isinstance(stem, ConvStem))
        if isinstance(stem, ConvStem):
            stem.adopt(start.visual.conv1, images)
        else:
            stem.load_state_dict(start.visual.conv1.state_dict())
        tokens: list[Tensor] = []
        mine.encode_visual(mine.embed_patches(images), norm=lambda x: tokens.append(x) or x)  # type: ignore[func-returns-value]
        match_statistics(self.norm, tokens[0])

    def losses(self, features: Tensor, things: Tensor, kinds: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Cross-entropies against the prototypes of things and of classes."""
        by_thing = scale * features @ F.normalize(self.things, dim=1).T
        by_class = 0.7 * scale * features @ F.normalize(self.classes, dim=1).T
        return (
            F.cross_entropy(by_thing, things, label_smoothing=0.05),
            F.cross_entropy(by_class, kinds, label_smoothing=0.05),
        )

    def pair_loss(self, features: Tensor, scale: float) -> Tensor:
        """Cross-entropy of finding each picture's drawing in the batch, and each drawing's picture.

        Args:
            features: ``[2 T, D]``: T pictures, then drawings of the same T things.
        """
        shown, drawings = features.chunk(2)
        logits = scale * shown @ drawings.T
        own = torch.arange(len(shown), device=features.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    def visual_parameters(self) -> list[nn.Parameter]:
        return [*self.backbone.visual.parameters(), *self.norm.parameters(), self.things, self.classes]

    @torch.no_grad()
    def finished(self) -> PromptedCLIP:
        """The backbone in eval mode with all BatchNorms folded away."""
        made = copy.deepcopy(self.backbone).eval()
        visual, norm = made.visual, self.norm
        if isinstance(visual.conv1, ConvStem):
            visual.conv1 = visual.conv1.folded()
        scale, shift = as_affine(norm)
        visual.ln_post.weight.mul_(scale)
        visual.ln_post.bias.mul_(scale).add_(shift)
        return made


def pretrain(config: PretrainConfig) -> Path:
    """Train both towers, and return the path of the weights.

    Raises:
        UserError: the pictures, the settings or the run's folder do not allow it.
    """
    last, weights = config.out / LAST, config.out / "weights.safetensors"
    state = _before(config, in_folder(config.out, LAST))
    device = pick_device(config.device)
    backbone = PromptedCLIP(BackboneConfig(config.backbone, "random", config.seed))
    backbone.need_last_norm()
    if not backbone.reader.causal:
        raise UserError(f"backbone {config.backbone}: splip pretrain fits causal text towers only")
    validation = _Validation(config.sample, backbone.image_size) if config.sample else None
    pictures = Pictures.read(config.pictures)
    pictures.images = pictures.images.to(device)
    torch.manual_seed(config.seed)
    model = Prototypes(backbone, len(pictures.names), len(pictures.classes)).to(device)
    model = model.to(memory_format=torch.channels_last)
    if config.start is not None and state is None:
        _start_from(config, pictures, model, device)
    averaged = copy.deepcopy(model).eval()
    config.out.mkdir(parents=True, exist_ok=True)
    _config.save(config, config.out / "config.yaml")
    parameters = model.visual_parameters()
    print(
        f"{config.backbone}: {len(pictures.images)} pictures of {len(pictures.names)} things in "
        f"{len(pictures.classes)} classes; {sum(p.numel() for p in parameters):,} parameters; {config.steps} steps of "
        f"{config.batch_size} pictures on {device}"
    )
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)
    start, seconds = 0, 0.0
    if state is not None:
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        tensors.restore_optimiser(optimiser, state["optimiser"])
        start, seconds = state["step"], state["seconds"]
        print(f"going on after step {start}")
    _train_visual(config, pictures, model, averaged, optimiser, validation, device, start, seconds, last)
    finished = averaged.finished().to(device)
    seeded.plant(finished.text)
    _fit_text(config, pictures, finished, device)
    save_weights(finished, weights)
    print(f"{weights}: {weights.stat().st_size / 2**20:.1f} MB")
    if validation is not None:
        print("validation classes: " + validation.words(finished, device))
    return weights


def _start_from(config: PretrainConfig, pictures: Pictures, model: Prototypes, device: torch.device) -> None:
    """Begin with trained weights, and with the means of their embeddings as prototypes."""
    packaged = WEIGHTS / f"{config.start}.safetensors"
    weights = str(packaged) if packaged.is_file() else config.start
    start = PromptedCLIP(BackboneConfig(config.backbone, weights, config.seed)).to(device).eval()
    generator = torch.Generator().manual_seed(config.seed)
    first = pictures.batches(512, config.pair_weight > 0).draw(generator)
    images = _painted(config, pictures, first, generator, 0.5, device)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (start.mean, start.std))
    model.adopt(start, (images - mean) / std)
    means = _mean_embeddings(pictures, start, device)
    with torch.no_grad():
        model.things.copy_(means)
        model.classes.copy_(F.normalize(_by_class(means, pictures), dim=1))


def _painted(
    config: PretrainConfig,
    pictures: Pictures,
    batch: Drawn,
    generator: torch.Generator,
    grown: float,
    device: torch.device,
) -> Tensor:
    """The pictures of a batch as they are shown, ``[B, 3, S, S]`` 0 to 1."""
    side = int(open_clip.get_model_config(config.backbone)["vision_cfg"]["image_size"])
    outlines = config.outlines if grown >= 0.5 else 0.0
    if not config.pair_weight and not config.scenes:
        return repaint(pictures.shown(batch.chosen), side, generator, grown, outlines)
    if config.pair_weight:  # half of the batch are drawings already
        outlines = 0.0
    images, kinds = pictures.images[batch.chosen.to(pictures.images.device)], pictures.drawn[batch.chosen]
    line, plain = kinds == LINE, kinds != COLOURED
    return repaint(images, side, generator, grown, outlines, batch.drawing, line, plain, config.scenes)


def _before(config: PretrainConfig, last: Path) -> dict[str, Any] | None:
    if not config.resume:
        if last.exists():
            raise UserError(f"{config.out} holds a run already: add --resume to go on with it, or choose another --out")
        return None
    if not last.is_file():
        raise UserError(f"--resume: there is no {last}")
    try:
        state = _read(last)
        ours, theirs = config, from_dict(PretrainConfig, state["config"], str(last))
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{last}: not a run of splip pretrain, or damaged ({type(error).__name__}: {reason})") from None
    free = ("start:", "out:", "resume:", "device:", "pictures:", "sample:", "compile:", "eval_every:", "text_steps:")
    changed = [d for d in differences(theirs, ours) if not d.startswith(free)]
    ours.start = theirs.start  # which a run that goes on does not load again
    if changed:
        raise UserError(f"--resume: {last} was made with other settings: {'; '.join(changed)}")
    return state


def _read(last: Path) -> dict[str, Any]:
    """How far a run came; files of earlier versions are torch's."""
    if last.name != LAST:
        old: dict[str, Any] = torch.load(last, map_location="cpu", weights_only=True)
        return old
    parts, state = tensors.read(last)
    return state | parts | {"optimiser": tensors.deep_optimiser(parts["optimiser"], state["optimiser"])}


def _train_visual(
    config: PretrainConfig,
    pictures: Pictures,
    model: Prototypes,
    averaged: Prototypes,
    optimiser: torch.optim.Optimizer,
    validation: "_Validation | None",
    device: torch.device,
    start: int,
    seconds: float,
    last: Path,
) -> None:
    """The visual tower; ``averaged`` ends as the moving average of the weights."""
    batches, began = pictures.batches(config.batch_size, config.pair_weight > 0), time.monotonic()
    run: Any = torch.compile(model) if config.compile else model
    clip = model.backbone
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (clip.mean, clip.std))
    # What is saved, so neither a mask of infinities nor a counter.
    live, mirror = ([t for t in m.state_dict().values() if t.is_floating_point()] for m in (model, averaged))

    def save(step: int) -> None:
        moments, groups = tensors.flat_optimiser(optimiser.state_dict())
        parts = {"model": model.state_dict(), "averaged": averaged.state_dict(), "optimiser": moments}
        took = seconds + time.monotonic() - began
        facts = {"format": FORMAT, "config": to_dict(config), "optimiser": groups, "step": step, "seconds": took}
        tensors.save(last, parts, facts)

    log = config.out / "log.csv"
    if not start:
        disk.write_text(log, ",".join(COLUMNS) + "\n")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("loss {task.fields[loss]:.3f}"))  # fmt: skip
    model.train()
    step = start
    with stop_signals() as stop, bars(*columns, lines=False) as progress:
        bar = progress.add_task("Training", total=config.steps, completed=start, loss=math.nan)
        while step < config.steps and not stop:
            # Every random number of a step comes from (seed, step), so a resumed run is the same run.
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            batch = batches.draw(generator)
            # A picture is easy to know at first, unless one knows much already.
            grown = min(1.0, (0.25 if config.start is None else 0.6) + 2 * step / config.steps)
            images = _painted(config, pictures, batch, generator, grown, device)
            rate = min(1.0, (step + 1) / max(1, config.warmup))
            rate *= 0.02 + 0.98 * (1 + math.cos(math.pi * step / config.steps)) / 2
            for group in optimiser.param_groups:
                group["lr"] = config.lr * rate
            images = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
            things, kinds = batch.things.to(device), pictures.kind[batch.things].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                features = run(images)
            features = features.float()
            by_thing, by_class = model.losses(features, things, kinds, config.scale)
            by_pair = model.pair_loss(features, config.scale) if batches.pairs else torch.zeros_like(by_thing)
            loss = by_thing + config.class_weight * by_class + config.pair_weight * by_pair
            if not bool(torch.isfinite(loss)):
                raise UserError(f"the loss became {loss.item()} at step {step}; try a lower --lr")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.visual_parameters(), 1.0)
            optimiser.step()
            step += 1
            with torch.no_grad():  # a plain mean of the steps until the decay is the slower
                torch._foreach_lerp_(mirror, live, 1 - min(config.ema, step / (step + 20)))
            progress.update(bar, completed=step, loss=loss.item())
            if step % config.eval_every == 0 or step == config.steps:
                save(step)
                row: dict[str, Any] = {"step": step, "loss": f"{loss.item():.4f}", "things": f"{by_thing.item():.4f}",
                       "classes": f"{by_class.item():.4f}", "pairs": f"{by_pair.item():.4f}", "lr": f"{config.lr * rate:.3g}",
                       "seconds": f"{seconds + time.monotonic() - began:.1f}"}  # fmt: skip
                if validation is not None:
                    row |= validation.measure(averaged.finished().to(device), device)
                with open(log, "a", newline="", encoding="utf-8") as file:
                    csv.DictWriter(file, COLUMNS).writerow(row)
                if not is_terminal():
                    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if stop:
        save(step)
        print(f"stopped at step {step} of {config.steps}; go on with --resume", file=sys.stderr)
        raise KeyboardInterrupt


class _Validation:
    """The sample's validation classes: sketches among photos. Nothing is learned from them."""

    def __init__(self, sample: Path, side: int) -> None:
        data = DataConfig(root=sample, crop_sketches=True)
        tree = load_tree(sample, data)
        self.test = TestSet(tree, tree.validation, data, side)

    def measure(self, backbone: PromptedCLIP, device: torch.device) -> dict[str, str]:
        def encode(images: Tensor) -> Tensor:
            return F.normalize(backbone.encode_visual(backbone.embed_patches(images)), dim=1)

        features = self.test.embed_alike(encode, device)
        found = self.test.measure(features.sketches, features.photos).query_mean
        return {"val_mAP": f"{found['mAP@all']:.5f}", "val_Acc1": f"{found['Acc@1']:.5f}"}

    def words(self, backbone: PromptedCLIP, device: torch.device) -> str:
        found = self.measure(backbone, device)
        return f"mAP@all {100 * float(found['val_mAP']):.1f}, Acc@1 {100 * float(found['val_Acc1']):.1f}"


def _fit_text(config: PretrainConfig, pictures: Pictures, clip: PromptedCLIP, device: torch.device) -> None:
    """Train the text tower alone: a text finds the mean embedding of what it names, among all others.

    Word embeddings stay as they are: random vectors tell words apart as well as trained ones, and a word that no
    picture was named by keeps one, too.
    """
    means = _mean_embeddings(pictures, clip, device)
    targets = torch.cat([means, F.normalize(_by_class(means, pictures), dim=1)])
    names = [word for words in pictures.texts for word in words] + pictures.classes
    of = [number for number, words in enumerate(pictures.texts) for _ in words]
    of += range(len(means), len(targets))
    target = torch.tensor(of, device=device)
    text = clip.text
    trained = [*text.transformer.parameters(), *text.ln_final.parameters(), text.positional_embedding]
    trained += [text.text_projection] if isinstance(text.text_projection, nn.Parameter) else []
    for parameter in clip.parameters():
        parameter.requires_grad = False
    for parameter in trained:
        parameter.requires_grad = True
    optimiser = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.05)
    tokens = [clip.tokenize([t.format(name) for name in names], truncate=False).to(device) for t in TEMPLATES]
    generator = torch.Generator().manual_seed(config.seed)
    size = min(256, len(names))
    for step in track(range(config.text_steps), "Fitting texts"):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * (1 + math.cos(math.pi * step / config.text_steps)) / 2 * min(1, (step + 1) / 50)
        chosen = torch.randperm(len(names), generator=generator)[:size].to(device)
        template = int(torch.randint(len(TEMPLATES), (1,), generator=generator))
        ids = tokens[template][chosen]
        ids = ids[:, : int(ids.argmax(dim=1).max()) + 1]
        # As one group of texts: its gradient has a fixed order of summation, so a run can be repeated.
        features = F.normalize(clip.encode_groups(ids.unsqueeze(0), shared=1)[0][0], dim=1)
        loss = F.cross_entropy(config.scale * features @ targets.T, target[chosen])
        loss = loss + (1 - (features * targets[target[chosen]]).sum(dim=1)).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        clip.clip.logit_scale.fill_(math.log(config.scale))


@torch.no_grad()
def _mean_embeddings(pictures: Pictures, clip: PromptedCLIP, device: torch.device) -> Tensor:
    """Mean embedding ``[things, D]`` over a thing's pictures, on white, unit length."""
    total = torch.zeros(len(pictures.names), clip.embed_dim, device=device)
    for numbers in torch.arange(len(pictures.images)).split(256):
        rgba = pictures.shown(numbers).to(device).float() / 255
        flat = rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]
        flat = F.interpolate(flat, (clip.image_size, clip.image_size), mode="bilinear", antialias=True)
        features = clip.encode_visual(clip.embed_patches((255 * flat).round().to(torch.uint8)))
        total.index_add_(0, pictures.thing[numbers].to(device), F.normalize(features, dim=1))
    return F.normalize(total, dim=1)


def _by_class(means: Tensor, pictures: Pictures) -> Tensor:
    kind = pictures.kind.to(means.device)
    return torch.zeros(len(pictures.classes), means.shape[1], device=means.device).index_add_(0, kind, means)


def save_weights(clip: PromptedCLIP, path: Path) -> None:
    """All weights of a backbone as a float16 safetensors file, but word embeddings that can be made again."""
    state = {name: tensor.detach().cpu() for name, tensor in clip.clip.state_dict().items()}
    state, words = seeded.without_words(state)
    halves = {n: (t.half() if t.is_floating_point() else t).contiguous() for n, t in state.items()}
    about = (metadata(clip.config, clip.quick_gelu) or {}) | words
    with disk.replacing(path) as file:
        file.write(safetensors.torch.save(halves, about or None))
