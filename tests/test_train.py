import contextlib
import csv
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from splip import config, train
from splip.data import Items
from splip.errors import UserError
from splip.model import read_checkpoint


def rows(run):
    with open(run / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def same(a, b):
    assert set(a["trainable"]) == set(b["trainable"])
    for part in ("trainable", "buffers"):
        for name, value in a[part].items():
            assert torch.equal(value, b[part][name]), name


@contextlib.contextmanager
def at_step_two(monkeypatch, happening):
    """Something happens when the batch of step 2 is drawn."""
    batch = train.Sampler.batch

    def draw(self, step):
        if step == 2:
            happening()
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(train.Sampler, "batch", draw)
        yield


def power_cut():
    raise RuntimeError("power cut")


def test_run(settings, capsys):
    best = train.train(settings)
    run = settings.out
    assert best == run / "best.pt"
    assert config.load(config.TrainConfig, str(run / "config.yaml")) == settings
    log = rows(run)
    assert [int(r["step"]) for r in log] == [1, 2, 3, 4]
    assert [bool(r["val_mAP"]) for r in log] == [False, True, False, True]
    state = read_checkpoint(best)
    assert state["classes"] == ["ball", "dash", "red box", "red ball", "slash"]
    assert "5 seen classes" in capsys.readouterr().out


def test_loss_falls(settings):
    """Overfits a handful of pictures."""
    data = dataclasses.replace(settings.data, augment="none")
    settings = dataclasses.replace(settings, steps=60, lr=3e-3, eval_every=60, data=data, train_backbone=True)
    train.train(settings)
    losses = [float(r["loss"]) for r in rows(settings.out)]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])


@pytest.mark.parametrize("train_backbone", [False, True])
def test_resume_is_bit_equal(settings, tmp_path, train_backbone, monkeypatch):
    settings = dataclasses.replace(settings, train_backbone=train_backbone)
    train.train(settings)
    whole = read_checkpoint(settings.out / "last.pt")

    # The same run, stopped after two of four steps.
    again = dataclasses.replace(settings, out=tmp_path / "again")
    with at_step_two(monkeypatch, power_cut), pytest.raises(RuntimeError, match="power cut"):
        train.train(again)
    assert read_checkpoint(again.out / "last.pt")["step"] == 2
    train.train(dataclasses.replace(again, resume=True))
    same(read_checkpoint(again.out / "last.pt"), whole)
    assert read_checkpoint(again.out / "best.pt")["step"] == read_checkpoint(settings.out / "best.pt")["step"]
    keep = [c for c in train.COLUMNS if c != "seconds"]
    assert [[r[c] for c in keep] for r in rows(again.out)] == [[r[c] for c in keep] for r in rows(settings.out)]
    train.train(dataclasses.replace(again, resume=True))  # nothing left to do, and no error


def test_resume_between_two_evaluations(settings, tmp_path, monkeypatch):
    """A signal stops a run anywhere; what follows is what would have followed."""
    train.train(settings)
    whole = read_checkpoint(settings.out / "last.pt")
    again = dataclasses.replace(settings, out=tmp_path / "again")
    with at_step_two(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        train.train(again)
    assert read_checkpoint(again.out / "last.pt")["step"] == 3
    train.train(dataclasses.replace(again, resume=True))
    same(read_checkpoint(again.out / "last.pt"), whole)


def test_resume_refuses_other_data(settings):
    """A split or a picture that changed between two halves of a run would leak test classes unseen."""
    train.train(settings)
    longer = dataclasses.replace(settings, resume=True)
    added = settings.data.root / "sketch" / "box" / "new.png"
    shutil.copy(settings.data.root / "sketch" / "box" / "0.png", added)
    with pytest.raises(UserError, match="not those of .*last.pt any more: pictures changed"):
        train.train(longer)
    added.unlink()
    (settings.data.root / "dataset.json").write_text('{"classes": {"ball": "globe"}}')
    with pytest.raises(UserError, match="any more: seen changed"):
        train.train(longer)


def test_resume_refuses_other_settings(settings):
    train.train(settings)
    changed = dataclasses.replace(settings, lr=0.5, resume=True)
    with pytest.raises(UserError, match="the settings differ from those of .*last.pt: lr: 0.001 -> 0.5"):
        train.train(changed)


def test_folder_of_another_run(settings):
    train.train(settings)
    with pytest.raises(UserError, match="holds a run already: add --resume"):
        train.train(settings)
    with pytest.raises(UserError, match="there is no .*last.pt"):
        train.train(dataclasses.replace(settings, out=settings.out / "new", resume=True))


def test_unreadable_pictures_are_left_out(settings, capsys):
    root = settings.data.root
    (root / "sketch" / "ball" / "0.png").write_bytes(b"")
    (root / "photo" / "pole" / "0.jpg").write_bytes(b"junk")
    train.train(settings)
    listed = (settings.out / "skipped.txt").read_text()
    assert "sketch/ball/0.png\tthe file is empty" in listed and "photo/pole/0.jpg\tnot a picture" in listed
    assert "left out 2 unreadable pictures" in capsys.readouterr().out


def test_class_without_readable_pictures(settings):
    for path in (settings.data.root / "photo" / "ball").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="class ball has no readable sketch or no readable photo"):
        train.train(settings)


def test_class_with_one_instance(settings):
    for kind, keep in (("sketch", "0.png"), ("photo", "0.jpg")):
        for path in (settings.data.root / kind / "ball").iterdir():
            if path.name != keep:
                path.unlink()
    train.train(settings)


def test_one_class_to_train_on(settings):
    for kind in ("sketch", "photo"):
        for folder in (settings.data.root / kind).iterdir():
            if folder.name not in ("ball", "box"):
                shutil.rmtree(folder)
    data = dataclasses.replace(settings.data, unseen=("box",), validation=())
    with pytest.raises(UserError, match=r"only one class to train on \(ball\)"):
        train.train(dataclasses.replace(settings, data=data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 99}, "batch_size 99 is larger than the 15 sketches"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"lr": -1.0}, "lr must not be negative, got -1.0"),
        ({"seed": -1}, "seed must not be negative"),
    ],
    ids=str,
)
def test_numbers(settings, changes, message):
    with pytest.raises(UserError, match=message):
        train.train(dataclasses.replace(settings, **changes))
    # Nothing stands in the way of a second try.
    assert not (settings.out / "last.pt").exists()
    train.train(settings)


def test_loss_that_is_not_a_number(settings, monkeypatch):
    real = train.losses.triplet
    calls = []

    def broken(*args):
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setattr(train.losses, "triplet", broken)
    with pytest.raises(UserError, match="the loss became nan at step 3; the last good checkpoint is .*last.pt"):
        train.train(settings)
    assert read_checkpoint(settings.out / "last.pt")["step"] == 2


def test_instance_positives(settings):
    with pytest.raises(UserError, match="positives: instance, but .* has no photo"):
        train.train(dataclasses.replace(settings, positives="instance"))


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
    step = read_checkpoint(settings.out / "last.pt")["step"]
    assert step == int(rows(settings.out)[-1]["step"]) >= 3


# ---- the sampler ----


def items(labels, instances):
    return Items([f"{i}.png" for i in range(len(labels))], labels, instances)


def sampler(positives="class", batch_size=6):
    sketches = items([0] * 6 + [1] * 6 + [2] * 6, [*range(18)])
    photos = items([0] * 4 + [1] * 1 + [2] * 5 + [0] * 2, [0, 1, 2, 3, 6, 12, 13, 14, 15, 16, 4, 5])
    if positives == "instance":
        sketches = sketches.take([0, 1, 2, 3, 6, 12, 13, 14])
    return train.Sampler(sketches, photos, batch_size, positives, seed=0), sketches, photos


def test_batches_are_right_and_repeatable():
    drawn, sketches, photos = sampler()
    seen = []
    for step in range(drawn.steps_per_epoch):
        sketch, positive, negative = drawn.batch(step)
        for s, p, n in zip(sketch, positive, negative, strict=True):
            assert photos.labels[p] == sketches.labels[s] != photos.labels[n]
        seen += sketch.tolist()
        assert all(np.array_equal(a, b) for a, b in zip(drawn.batch(step), (sketch, positive, negative), strict=True))
    assert sorted(seen) == list(range(18))  # an epoch visits every sketch once
    assert not np.array_equal(drawn.batch(0)[0], drawn.batch(3)[0])


def test_instance_batches():
    drawn, sketches, photos = sampler("instance", 4)
    for step in range(4):
        sketch, positive, _ = drawn.batch(step)
        for s, p in zip(sketch, positive, strict=True):
            assert photos.instances[p] == sketches.instances[s]
