import copy
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawing import draw
from runs import at_step_two, power_cut, rows

from splip import config
from splip.errors import UserError
from splip.evaluation.test_set import TestSet as Measured
from splip.models import build, load_model
from splip.models.checkpoint import read_checkpoint
from splip.models.config import BEFORE, BackboneConfig, LossConfig, PromptConfig, TrainConfig
from splip.train import batches, log, loop, losses
from splip.train.objective import Objective
from splip.train.precision import Scaler


def same(a, b):
    assert set(a["trainable"]) == set(b["trainable"])
    for part in ("trainable", "buffers"):
        for name, value in a[part].items():
            assert torch.equal(value, b[part][name]), name


def test_run(settings, capsys):
    best = loop.train(settings)
    run = settings.out
    assert best == run / "best.safetensors"
    assert config.load(TrainConfig, str(run / "config.yaml")) == settings
    log = rows(run)
    assert [int(r["step"]) for r in log] == [1, 2, 3, 4]
    assert [bool(r["val_mAP"]) for r in log] == [False, True, False, True]
    state = read_checkpoint(best)
    assert state["classes"] == ["ball", "dash", "red box", "red ball", "slash"]
    assert "5 seen classes" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_loss_falls(settings):
    """Overfits a handful of pictures."""
    data = dataclasses.replace(settings.data, augment="none")
    settings = dataclasses.replace(settings, steps=40, lr=3e-3, eval_every=40, data=data, train_backbone=True)
    loop.train(settings)
    losses = [float(r["loss"]) for r in rows(settings.out)]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])


def test_prompts_alone_learn(settings):
    """With everything else fixed the loss falls, and it rises again when what was learned is taken out."""
    data = dataclasses.replace(settings.data, augment="none")
    changes = {"steps": 40, "lr": 1e-2, "eval_every": 40, "train_layernorm": False, "train_text_layernorm": False}
    settings = dataclasses.replace(settings, data=data, loss=LossConfig(jigsaw=0.0), **changes)
    loop.train(settings)
    learned = [float(r["triplet"]) for r in rows(settings.out)]
    fixed = dataclasses.replace(settings, out=settings.out / "fixed", lr=1e-12)
    loop.train(fixed)  # the same batches
    unlearned = [float(r["triplet"]) for r in rows(fixed.out)]
    assert np.mean(learned[-10:]) < 0.8 * np.mean(unlearned[-10:])


@pytest.mark.parametrize("train_backbone", [False, True])
def test_resume_is_bit_equal(settings, tmp_path, train_backbone, monkeypatch):
    settings = dataclasses.replace(settings, train_backbone=train_backbone)
    loop.train(settings)
    whole = read_checkpoint(settings.out / "last.safetensors")

    # The same run, stopped after two of four steps.
    again = dataclasses.replace(settings, out=tmp_path / "again")
    with at_step_two(monkeypatch, power_cut), pytest.raises(RuntimeError, match="power cut"):
        loop.train(again)
    assert read_checkpoint(again.out / "last.safetensors")["step"] == 2
    loop.train(dataclasses.replace(again, resume=True))
    same(read_checkpoint(again.out / "last.safetensors"), whole)
    assert (
        read_checkpoint(again.out / "best.safetensors")["step"]
        == read_checkpoint(settings.out / "best.safetensors")["step"]
    )
    keep = [c for c in log.columns(settings.loss) if c != "seconds"]
    assert [[r[c] for c in keep] for r in rows(again.out)] == [[r[c] for c in keep] for r in rows(settings.out)]
    loop.train(dataclasses.replace(again, resume=True))  # nothing left to do, and no error


def test_a_run_of_an_earlier_version_goes_on(settings, tmp_path, monkeypatch):
    """Its last.pt and best.pt are read as they are; what follows is what would have followed."""
    settings = dataclasses.replace(settings, method="clip-ln")
    settings.prompts = PromptConfig(**BEFORE["prompts"])
    settings.loss = dataclasses.replace(settings.loss, **BEFORE["loss"])
    loop.train(settings)
    whole = read_checkpoint(settings.out / "last.safetensors")
    old = dataclasses.replace(settings, out=tmp_path / "old")
    with at_step_two(monkeypatch, power_cut), pytest.raises(RuntimeError, match="power cut"):
        loop.train(old)
    for name in ("best", "last"):
        state = read_checkpoint(old.out / f"{name}.safetensors")
        for part, names in BEFORE.items():  # which that version had no name for; the command has today's defaults
            for unknown in names:
                del state["config"][part][unknown]
        torch.save(state, old.out / f"{name}.pt")
        (old.out / f"{name}.safetensors").unlink()
    with pytest.raises(UserError, match="holds a run already: add --resume"):
        loop.train(old)
    monkeypatch.setattr(loop.Run, "_measure", lambda self, row: None)  # nothing better comes
    today = dataclasses.replace(old, prompts=PromptConfig(), loss=LossConfig(), resume=True)
    loop.train(today)
    last = read_checkpoint(old.out / "last.safetensors")
    assert last["step"] == 4
    same(last, whole)
    best = read_checkpoint(old.out / "best.safetensors")
    assert best["step"] == read_checkpoint(old.out / "best.pt")["step"] == 2


def test_resume_between_two_evaluations(settings, tmp_path, monkeypatch):
    """A signal stops a run anywhere; what follows is what would have followed."""
    loop.train(settings)
    whole = read_checkpoint(settings.out / "last.safetensors")
    again = dataclasses.replace(settings, out=tmp_path / "again")
    with at_step_two(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        loop.train(again)
    assert read_checkpoint(again.out / "last.safetensors")["step"] == 3
    loop.train(dataclasses.replace(again, resume=True))
    same(read_checkpoint(again.out / "last.safetensors"), whole)


def test_resume_refuses_other_data(settings):
    """A split or a picture that changed between two halves of a run would leak test classes unseen."""
    loop.train(settings)
    longer = dataclasses.replace(settings, resume=True)
    added = settings.data.root / "sketch" / "box" / "new.png"
    shutil.copy(settings.data.root / "sketch" / "box" / "0.png", added)
    with pytest.raises(UserError, match="not those of .*last.safetensors any more: pictures changed"):
        loop.train(longer)
    added.unlink()
    (settings.data.root / "dataset.json").write_text('{"classes": {"ball": "globe"}}')
    with pytest.raises(UserError, match="any more: seen changed"):
        loop.train(longer)


def test_resume_refuses_other_settings(settings):
    loop.train(settings)
    changed = dataclasses.replace(settings, lr=0.5, resume=True)
    with pytest.raises(UserError, match="the settings differ from those of .*last.safetensors: lr: 0.001 -> 0.5"):
        loop.train(changed)


def test_folder_of_another_run(settings):
    loop.train(settings)
    with pytest.raises(UserError, match="holds a run already: add --resume"):
        loop.train(settings)
    with pytest.raises(UserError, match="there is no .*last.safetensors"):
        loop.train(dataclasses.replace(settings, out=settings.out / "new", resume=True))


def test_unreadable_pictures_are_left_out(settings, capsys):
    root = settings.data.root
    (root / "sketch" / "ball" / "0.png").write_bytes(b"")
    (root / "photo" / "pole" / "0.jpg").write_bytes(b"junk")
    loop.train(settings)
    listed = (settings.out / "skipped.txt").read_text()
    assert "sketch/ball/0.png\tthe file is empty" in listed and "photo/pole/0.jpg\tnot a picture" in listed
    assert "left out 2 unreadable pictures" in capsys.readouterr().out


def test_class_without_readable_pictures(settings):
    for path in (settings.data.root / "photo" / "ball").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="class ball has no readable sketch or no readable photo"):
        loop.train(settings)


def test_class_with_one_instance(settings):
    for kind, keep in (("sketch", "0.png"), ("photo", "0.jpg")):
        for path in (settings.data.root / kind / "ball").iterdir():
            if path.name != keep:
                path.unlink()
    loop.train(settings)


def test_one_class_to_train_on(settings):
    for kind in ("sketch", "photo"):
        for folder in (settings.data.root / kind).iterdir():
            if folder.name not in ("ball", "box"):
                shutil.rmtree(folder)
    data = dataclasses.replace(settings.data, unseen=("box",), validation=())
    with pytest.raises(UserError, match=r"only one class to train on \(ball\)"):
        loop.train(dataclasses.replace(settings, data=data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 99}, "batch_size 99 is larger than the 15 sketches"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"lr": -1.0}, "lr must not be negative, got -1.0"),
        ({"seed": -1}, "seed must not be negative"),
        ({"loss": LossConfig(jigsaw=-1)}, "loss.jigsaw must not be negative"),
        ({"loss": LossConfig(0, 0, 0)}, "all weights of the loss are 0"),
        ({"loss": LossConfig(divergence=0.1)}, "set per_class to 2 or more"),
        ({"loss": LossConfig(divergence=0.1), "per_class": 2, "accumulate": 2}, "over the whole batch"),
        ({"layernorm_lr": -1.0}, "layernorm_lr must not be negative"),
        ({"loss": LossConfig(permutations=1)}, "loss.permutations must be between 2 and"),
        ({"method": "zero-shot", "train_backbone": True}, "zero-shot trains nothing"),
    ],
    ids=str,
)
def test_numbers(settings, changes, message):
    with pytest.raises(UserError, match=message):
        loop.train(dataclasses.replace(settings, **changes))
    assert not (settings.out / "last.safetensors").exists()
    if "batch_size" in changes:  # nothing stands in the way of a second try
        loop.train(settings)


def test_best_is_not_the_last(settings, monkeypatch):
    """Worse on the validation classes: best.safetensors stays, and a run that goes on knows how good it was."""
    values = iter([0.8, 0.5])
    settings = dataclasses.replace(settings, eval_prompts=False)

    def measure(self, model, device, change=None):
        return SimpleNamespace(query_mean={"mAP@all": next(values), "Acc@1": 0.0})

    monkeypatch.setattr(Measured, "measure_model", measure)
    loop.train(settings)
    best, last = (read_checkpoint(settings.out / f"{name}.safetensors") for name in ("best", "last"))
    assert (best["step"], best["validation"]) == (2, 0.8) and (last["step"], last["best"]) == (4, 0.8)


def test_loss_that_is_not_a_number(settings, monkeypatch):
    real = losses.triplet
    calls = []

    def broken(*args):
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setattr(losses, "triplet", broken)
    with pytest.raises(
        UserError,
        match="the loss became nan at step 3; its 12 pictures are listed in .*bad_batch.txt; the last good checkpoint is .*last.safetensors",
    ):
        loop.train(settings)
    assert read_checkpoint(settings.out / "last.safetensors")["step"] == 2

    files = (settings.out / "bad_batch.txt").read_text().splitlines()
    assert len(files) == 12 and all(Path(f).is_file() for f in files)
    assert [Path(f).parent.parent.name for f in files] == ["sketch"] * 4 + ["photo"] * 8


def test_weights_that_are_not_numbers_are_never_saved(settings, monkeypatch):
    """A finite loss with a broken gradient: the checkpoint of the step before stays."""
    step = torch.optim.AdamW.step
    calls = []

    def broken(self, *args):
        step(self, *args)
        calls.append(1)
        if len(calls) == 4:
            self.param_groups[0]["params"][0].data.fill_(float("nan"))

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    with pytest.raises(
        UserError,
        match=r"became infinite or not a number before step 4; the last good checkpoint is .*last.safetensors",
    ):
        loop.train(settings)
    assert read_checkpoint(settings.out / "last.safetensors")["step"] == 2


def test_instance_positives(settings):
    with pytest.raises(UserError, match="positives: instance, but .* has no photo of the same instance, nor have 14"):
        loop.train(dataclasses.replace(settings, positives="instance"))
    with pytest.raises(UserError, match="setting: fine-grained, but .*/0.png has no photo"):
        loop.train(dataclasses.replace(settings, setting="fine-grained"))


def pair(root):
    """instances.csv: sketch i shows what photo i % 2 shows."""
    lines = ["path,instance"]
    for folder in sorted((root / "sketch").iterdir()):
        lines += [f"sketch/{folder.name}/{i}.png,{i % 2}" for i in range(3)]
        lines += [f"photo/{folder.name}/{i}.jpg,{i}" for i in range(2)]
    (root / "instances.csv").write_text("\n".join(lines) + "\n")


def configured(settings, *names, **changes):
    """The settings with shipped configurations on top."""
    values = config.to_dict(settings)
    for name in names:
        values = config.merge(values, config.read(name))
    return config.from_dict(TrainConfig, config.merge(values, changes), "test")


OVERLAYS = [name for name in config.shipped() if name.startswith("ablations/")]
METHODS = ["zero-shot", "clip-ln", "clip-at", "clip-at-fg", "clip-at-as-released", "maple", "dp-clip"]
# One of each kind; the others differ from them in a number or a switch.
USUAL = ["full", "instance", "layer-tokens-1", "loss-class", "no-layernorm", "no-prompts", "semi-hard"]
USUAL = [*METHODS, *(f"ablations/{name}" for name in USUAL)]
RARE = [pytest.param(name, marks=pytest.mark.exhaustive) for name in OVERLAYS if name not in USUAL]


@pytest.mark.parametrize("name", [*USUAL, *RARE])
def test_every_shipped_row_trains(settings, name):
    """Each ablation and baseline: two steps, a checkpoint that loads, other features than before."""
    pair(settings.data.root)
    row = configured(settings, name, steps=2, batch_size=4)
    row.accumulate = min(row.accumulate, 2)
    if name in ("ablations/depth-6", "ablations/depth-9"):  # deeper than the tiny backbone
        row.backbone.name = "ViT-S-32-alt"
    best = loop.train(row)
    model = load_model(best)
    assert model.config.method == row.method
    side = model.backbone.image_size
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    features = model.encode_sketch(images)
    assert torch.isfinite(features).all()
    fresh = build(row, model.classes).eval()
    fresh.remember(model.patch_mean)
    assert torch.equal(fresh.encode_sketch(images), features) == (name == "zero-shot")
    trained, before = set(model.trainable()), dict(fresh.named_parameters())
    for parameter, value in model.named_parameters():  # what is to learn has moved, the rest has not
        if not row.loss.classification and parameter.startswith(
            ("backbone.clip.transformer", "backbone.clip.ln_final")
        ):
            continue  # nothing reads the texts
        assert torch.equal(value, before[parameter]) == (parameter not in trained), parameter


@pytest.mark.parametrize("name", ["sketchy-1", "sketchy-2", "tuberlin", "quickdraw", "sketchy-fg"])
def test_shipped_experiments(name):
    loaded = config.load(TrainConfig, name)
    assert loaded.backbone.pretrained == "openai" and loaded.batch_size == 192 and loaded.epochs == 60
    assert (loaded.setting == "fine-grained") == (name == "sketchy-fg") == (not loaded.data.extended)


def test_fine_grained_run(settings, capsys):
    pair(settings.data.root)
    (settings.data.root / "photo" / "ball" / "1.jpg").write_bytes(b"broken")
    with pytest.raises(UserError, match="photo/ball has photos of one instance: no negative"):
        loop.train(dataclasses.replace(settings, setting="fine-grained"))
    draw(settings.data.root / "photo" / "ball" / "9.jpg", 0, "red", 3)
    loop.train(dataclasses.replace(settings, setting="fine-grained"))
    assert "1 sketches left out: their photo is unreadable" in capsys.readouterr().out
    state = read_checkpoint(settings.out / "best.safetensors")
    assert state["validation"] == pytest.approx(max(float(r["val_Acc1"] or 0) for r in rows(settings.out)), abs=1e-5)


def test_accumulated_parts_are_the_whole_batch(settings, tmp_path):
    """But for the stem, which gets no gradient through the average patch embedding then."""
    settings = dataclasses.replace(settings, train_stem=False)
    loop.train(settings)
    parts = dataclasses.replace(settings, accumulate=2, out=tmp_path / "parts")
    loop.train(parts)
    for a, b in zip(rows(settings.out), rows(parts.out), strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=2e-3)
    with pytest.raises(UserError, match="batch_size 4 is not a multiple of 3"):
        loop.train(dataclasses.replace(settings, accumulate=3))


def test_gradients_of_parts_are_those_of_the_whole():
    """Not only in direction, which is all that Adam sees; but for what makes the patch embeddings."""
    model = build(TrainConfig(backbone=BackboneConfig(name="splip-tiny")), ["ball", "box", "dash"])
    images = torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0, 0, 1, 2, 0, 1, 2, 0, 2])
    made = []
    for accumulate in (1, 2):
        objective = Objective(copy.deepcopy(model))
        pieces = objective.pieces(4, torch.Generator().manual_seed(0))
        part = batches.Part(images, labels, torch.arange(12), pieces, None)
        terms = loop._forward_backward(objective, objective, part, accumulate, Scaler("fp32", torch.device("cpu")))
        made.append((terms, {n: p.grad for n, p in objective.model.trainable().items() if ".conv1." not in n}))
    for name, value in made[0][0].items():
        torch.testing.assert_close(made[1][0][name], value, rtol=1e-4, atol=1e-5, msg=name)
    for name, grad in made[0][1].items():
        torch.testing.assert_close(made[1][1][name], grad, rtol=1e-3, atol=1e-5, msg=name)


def test_batches_made_in_advance(settings):
    made = []

    def make(step):
        made.append(step)
        return step

    for depth in (0, 1, 2, 5):
        made.clear()
        assert list(batches.ahead(make, 3, 9, depth)) == list(range(3, 9)) == sorted(made)


def test_share_of_the_data(settings, capsys):
    pair(settings.data.root)
    for i in range(3, 9):
        draw(settings.data.root / "sketch" / "ball" / f"{i}.png", 0, "black", i)
    half = configured(settings, data={"sample_fraction": 0.5, "class_fraction": 0.6}, batch_size=2)
    loop.train(half)
    assert "3 seen classes" in capsys.readouterr().out
    assert len(read_checkpoint(settings.out / "best.safetensors")["classes"]) == 3


def test_layernorms_may_have_a_rate_of_their_own(settings):
    still = dataclasses.replace(settings, layernorm_lr=0.0, steps=3)
    state = read_checkpoint(loop.train(still))
    fresh = build(still, state["classes"]).trainable()
    for name, value in state["trainable"].items():
        norm = name.startswith("backbone.")  # all that is trained of it
        assert torch.equal(value, fresh[name]) == norm, name


def test_gradient_is_clipped(settings, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def watched(self, *args):
        gradients = [p.grad.norm() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack(gradients).norm()))
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    for number, limit in enumerate((None, 0.25)):
        loop.train(dataclasses.replace(settings, steps=2, clip_gradient=limit, out=settings.out / str(number)))
    assert min(norms[:2]) > 0.3 and norms[2:] == pytest.approx([0.25, 0.25], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "learn"),
    [
        ({"train_stem": True, "train_layernorm": False}, {"visual.conv1"}),
        ({"train_stem": False}, {"visual.ln", "visual.transformer"}),
    ],
    ids=["the stem alone", "LayerNorms alone"],
)
def test_stem_and_layernorms_apart(settings, changes, learn):
    config = dataclasses.replace(settings, method="clip-ln", train_text_layernorm=False, **changes)
    config.loss.jigsaw = 0
    names = {name.removeprefix("backbone.clip.") for name in build(config, ["a", "b"]).trainable()}
    assert {next((start for start in learn if name.startswith(start)), name) for name in names} == learn


def test_log_says_what_the_prompts_do(settings):
    loop.train(settings)
    measured = [r for r in rows(settings.out) if r["val_mAP"]]
    for row in measured:
        assert 0 < float(row["val_attention"]) < 1
        assert 0 < float(row["val_mAP_removed"]) <= 1 and 0 < float(row["val_mAP_swapped"]) <= 1
    off = dataclasses.replace(settings, eval_prompts=False, out=settings.out / "off")
    loop.train(off)
    assert [r["loss"] for r in rows(off.out)] == [r["loss"] for r in rows(settings.out)]  # looking changes nothing
    assert all(r["val_mAP_removed"] == r["val_attention"] == "" for r in rows(off.out))


def test_resume_a_log_of_before(settings, monkeypatch):
    """It has fewer columns; rows that follow have them all."""
    with at_step_two(monkeypatch, power_cut), pytest.raises(RuntimeError, match="power cut"):
        loop.train(settings)
    file = settings.out / "log.csv"
    fewer = [c for c in log.columns(settings.loss) if not c.startswith("val_mAP_") and c != "val_attention"]
    old = [{name: row[name] for name in fewer} for row in rows(settings.out)]
    file.write_text("\n".join([",".join(fewer), *(",".join(row.values()) for row in old)]) + "\n")
    loop.train(dataclasses.replace(settings, resume=True))
    found = rows(settings.out)
    assert [r["step"] for r in found] == ["1", "2", "3", "4"] and None not in found[-1]
    assert found[1]["val_mAP_removed"] == "" and found[1]["val_mAP"] == old[1]["val_mAP"]
    assert float(found[3]["val_mAP_removed"]) > 0


def test_resume_refuses_other_batches(settings, monkeypatch):
    """Pictures kept in memory are known to be readable; decoded for every use, they are all drawn from."""
    (settings.data.root / "sketch" / "ball" / "0.png").write_bytes(b"")
    loop.train(settings)
    lazy = dataclasses.replace(settings, resume=True, data=dataclasses.replace(settings.data, memory_gb=0.0))
    with pytest.raises(UserError, match="any more: pictures to draw from changed"):
        loop.train(lazy)


def test_all_seen_classes(settings, capsys):
    """Nothing held out: the last step is the best."""
    data = dataclasses.replace(settings.data, validation=(), validation_classes=0)
    best = loop.train(dataclasses.replace(settings, data=data))
    assert "6 seen classes" in capsys.readouterr().out
    assert read_checkpoint(best)["step"] == 4


def test_fine_grained_validation_needs_pairs(settings):
    pair(settings.data.root)
    lines = (settings.data.root / "instances.csv").read_text().splitlines()
    kept = [line for line in lines if "photo/pole" not in line]
    (settings.data.root / "instances.csv").write_text("\n".join(kept) + "\n")
    with pytest.raises(UserError, match="no validation sketch of .* has its photo"):
        loop.train(dataclasses.replace(settings, setting="fine-grained"))
    assert not settings.out.exists()


def test_tensorboard(settings):
    loop.train(dataclasses.replace(settings, tensorboard=True))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(settings.out)).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [e.step for e in events.Scalars("validation/val_mAP")] == [2, 4]


@pytest.mark.exhaustive
def test_cache_gives_the_same_run(settings, tmp_path):
    (settings.data.root / "sketch" / "ball" / "0.png").write_bytes(b"broken")
    loop.train(settings)
    for out in ("first", "second"):  # written, then read
        cached = configured(settings, data={"cache": str(tmp_path / "cache")}, out=str(tmp_path / out))
        loop.train(cached)
        same(read_checkpoint(cached.out / "last.safetensors"), read_checkpoint(settings.out / "last.safetensors"))
        assert "sketch/ball/0.png" in (cached.out / "skipped.txt").read_text()


def test_picture_that_breaks_in_the_middle_of_an_epoch(settings, capsys):
    """Decoded for every use: what cannot be read is replaced in its batch, counted and listed."""
    data = dataclasses.replace(settings.data, memory_gb=0.0)
    (settings.data.root / "photo" / "ball" / "0.jpg").write_bytes(b"broken")
    (settings.data.root / "sketch" / "dash" / "1.png").write_bytes(b"")
    loop.train(dataclasses.replace(settings, data=data, steps=6, batch_size=8))
    assert "left out 2 unreadable pictures, listed in" in capsys.readouterr().out
    listed = (settings.out / "skipped.txt").read_text()
    assert "photo/ball/0.jpg\tnot a picture" in listed and "sketch/dash/1.png\tthe file is empty" in listed


@pytest.mark.exhaustive
@pytest.mark.parametrize("train_backbone", [False, True])
def test_two_processes_are_one(settings, tmp_path, train_backbone):
    """torchrun with two processes: the same losses as one process with the same global batch, and the same buffers.

    From random weights, BatchNorms over the batches of both processes too: their averages are buffers.
    """
    run = dict(steps=6, eval_every=3, lr=1e-3, warmup=0, train_backbone=train_backbone, out=tmp_path / "of-1")
    loop.train(dataclasses.replace(settings, **run))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["splip.train", "--data.root", settings.data.root, "--data.unseen", "box", "cone"]
    command += ["--data.validation", "pole", "--backbone.name", "splip-tiny", "--device", "cpu"]
    command += ["--batch-size", "4", "--steps", "6", "--eval-every", "3", "--lr", "1e-3", "--warmup", "0"]
    command += ["--out", tmp_path / "of-2", *(["--train-backbone"] if train_backbone else [])]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best validation") == 1  # only the first process speaks
    curves = {
        n: [[float(r[c]) for c in ("loss", "triplet", "classification", "jigsaw")] for r in rows(tmp_path / f"of-{n}")]
        for n in (1, 2)
    }
    assert curves[1][0] != curves[1][-1]
    np.testing.assert_allclose(curves[1], curves[2], rtol=2e-3, atol=2e-4)
    a, b = (read_checkpoint(tmp_path / f"of-{n}" / "last.safetensors") for n in (1, 2))
    assert ("visual_norm.running_var" in a["buffers"]) == train_backbone
    for name, value in a["buffers"].items():
        # Some gradients are 0 but for rounding (what a BatchNorm takes away, what all keys share), and Adam makes steps
        # of them: of all weights, the stem's too, when all are trained. A wrong average would be off by ten times this.
        near = {"patch_mean": 1e-2, "visual_norm.running_mean": 5e-3, "text_norm.running_mean": 5e-3}.get(name, 5e-4)
        near = near if train_backbone else 1e-5
        torch.testing.assert_close(value, b["buffers"][name], rtol=1e-4, atol=near, msg=name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_resumes(settings, signal_number):
    settings = dataclasses.replace(settings, steps=5000, eval_every=5000)
    args = ["--data.root", settings.data.root, "--out", settings.out, "--backbone.name", "splip-tiny"]
    args += ["--batch-size", "4", "--steps", "5000", "--eval-every", "5000", "--device", "cpu"]
    command = [sys.executable, "-m", "splip.train", *map(str, args)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        deadline = time.monotonic() + 120
        log = settings.out / "log.csv"
        while time.monotonic() < deadline and not (log.is_file() and log.read_text().count("\n") > 3):
            time.sleep(0.1)
        os.kill(process.pid, signal_number)
        error = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "go on with --resume" in error and "Traceback" not in error
    step = read_checkpoint(settings.out / "last.safetensors")["step"]
    assert step == int(rows(settings.out)[-1]["step"]) >= 3
