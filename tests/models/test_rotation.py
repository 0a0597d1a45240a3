"""Vectors turned to the axes of the training pictures: no cosine changes, and a checkpoint comes back turned."""

import pytest
import torch
from checkpoints import save_model
from runs import at_step_two, power_cut

from splip.encoders.encoder import Encoder
from splip.errors import UserError
from splip.models import build, load_model
from splip.models.checkpoint import read_checkpoint
from splip.models.config import BackboneConfig, LossConfig, TrainConfig
from splip.models.rotation import principal_axes, turn
from splip.train import loop


def images(count=6):
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)


def test_axes_come_by_what_they_say():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 3, generator=generator) @ torch.randn(3, 16, generator=generator)  # three axes say all
    axes = principal_axes(features)
    torch.testing.assert_close(axes.T @ axes, torch.eye(16, dtype=torch.float64))
    turned = features.double() @ axes
    said = turned.square().sum(dim=0)
    assert (said[:-1] >= said[1:] - 1e-9).all() and said[3:].max() < 1e-6 * said[2]
    torch.testing.assert_close(turned[:, :3] @ turned[:, :3].T, features.double() @ features.double().T)
    assert torch.equal(principal_axes(features.flip(0)).round(decimals=6)[:, :3], axes.round(decimals=6)[:, :3])


def test_a_turned_model_has_the_same_cosines_and_comes_back(tmp_path):
    path = save_model(tmp_path / "tiny.pt", 0, sizes=(32,))
    plain, model = load_model(path), load_model(path)
    axes = torch.linalg.qr(torch.randn(256, 256, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    pictures = images()
    before = [model.encode_sketch(pictures), model.encode_photo(pictures), model.encode_text(["dog", "cup"])]
    turn(model.backbone, model.rotation, axes)
    model.eval()  # forgets what was computed before
    after = [model.encode_sketch(pictures), model.encode_photo(pictures), model.encode_text(["dog", "cup"])]
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old @ axes.float(), rtol=1e-4, atol=1e-5)
        assert (new - old).abs().max() > 0.01
    torch.testing.assert_close(after[0] @ after[2].T, before[0] @ before[2].T, rtol=1e-4, atol=1e-5)
    torch.save(model.checkpoint(), tmp_path / "turned.pt")
    again = load_model(tmp_path / "turned.pt")
    assert torch.equal(again.encode_photo(pictures), after[1]) and torch.equal(again.rotation, model.rotation)
    assert again.backbone_identity == plain.backbone_identity  # the backbone is known by what it was
    short = Encoder.load(tmp_path / "turned.pt", device="cpu", dimensions=32)
    head = after[1][:, :32] / after[1][:, :32].norm(dim=1, keepdim=True)
    got = short.encode(pictures.permute(0, 2, 3, 1).contiguous().numpy(), "photo")
    torch.testing.assert_close(torch.from_numpy(got), head, rtol=1e-4, atol=1e-5)
    state = torch.load(tmp_path / "turned.pt", weights_only=True)
    for wrong, message in (
        (state["buffers"]["rotation"] * 1.1, "holds no rotation"),
        (torch.eye(8), "expected .256, 256"),
    ):
        torch.save({**state, "buffers": {**state["buffers"], "rotation": wrong}}, tmp_path / "wrong.pt")
        with pytest.raises(UserError, match=f"wrong.pt: rotation .*{message}"):
            load_model(tmp_path / "wrong.pt")


def test_a_training_begins_at_the_axes_of_its_pictures(settings):
    settings.loss.matryoshka = (16, 64)
    run = loop.Run(settings, torch.device("cpu"))
    fresh = build(settings, run.model.classes).backbone
    found = torch.cat([fresh.encode_visual(fresh.embed_patches(part)) for part in run.feed.some(1000)])
    assert [len(part) for part in run.feed.some(1000)] == [15, 10]
    axes = principal_axes(torch.nn.functional.normalize(found, dim=1)).float()
    rank = 20  # of 25 pictures: behind them the axes are any
    torch.testing.assert_close(run.model.rotation[:, :rank], axes[:, :rank], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(run.model.backbone.visual.proj, fresh.visual.proj @ run.model.rotation)


def test_a_resumed_run_is_turned_once(settings, tmp_path, monkeypatch):
    settings.loss.matryoshka, settings.train_backbone, settings.loss.jigsaw = (16, 64), True, 0.0
    loop.train(settings)
    whole = read_checkpoint(settings.out / "last.safetensors")
    settings.out = tmp_path / "again"
    with at_step_two(monkeypatch, power_cut), pytest.raises(RuntimeError):
        loop.train(settings)
    settings.resume = True
    loop.train(settings)
    again = read_checkpoint(settings.out / "last.safetensors")
    assert "backbone.clip.visual.proj" in again["trainable"] and not torch.equal(
        again["buffers"]["rotation"], torch.eye(256)
    )
    for part in ("trainable", "buffers"):
        for name, value in whole[part].items():
            assert torch.equal(value, again[part][name]), name


def test_what_is_not_turned():
    config = TrainConfig(backbone=BackboneConfig(name="splip-tiny"))
    assert build(config, ["dog"]).rotation is None
    config.loss = LossConfig(matryoshka=(16,), rotate=False)
    model = build(config, ["dog"])
    assert model.rotation is None and "rotation" not in model.checkpoint()["buffers"]
