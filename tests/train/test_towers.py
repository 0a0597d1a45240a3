"""Runs on backbones without words, without patches: from the pictures to a checkpoint that finds photos."""

import dataclasses

import pytest
import torch
from tiny_towers import NAMES

from splip.encoders.encoder import Encoder
from splip.models import load_model
from splip.models.config import BackboneConfig, LossConfig
from splip.train.loop import train


@pytest.mark.parametrize(
    ("key", "method", "loss"),
    [
        (
            "dinov2-reg",
            "clip-at",
            LossConfig(classification=0, margin="fixed", tiles=2, permutations=4, jigsaw_width=32),
        ),
        ("mobile", "clip-ln", LossConfig(jigsaw_form="permuted-triplet", permutations=4, tiles=2)),
    ],
    ids=["no words", "no patches"],
)
def test_a_run(settings, key, method, loss, capsys, cli):
    backbone = BackboneConfig(NAMES[key], "random")
    train(dataclasses.replace(settings, backbone=backbone, method=method, loss=loss, steps=2, eval_every=2, lr=0.01))
    model = load_model(settings.out / "best.safetensors")
    assert model.backbone_identity["name"] == NAMES[key]
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    encoder = Encoder.load(settings.out / "best.safetensors", device="cpu")
    got = torch.from_numpy(encoder.encode(images.permute(0, 2, 3, 1).numpy(), "sketch"))
    torch.testing.assert_close(got, model.encode_sketch(images), rtol=0, atol=1e-5)
    code, out, err = cli("eval", "--checkpoint", settings.out / "best.safetensors", "--baselines", "--device", "cpu")
    assert code == 0, err
    assert f"plain {NAMES[key]}" in out


def test_refusals_are_one_line(settings, refused):
    args = [
        "--data.root",
        settings.data.root,
        "--out",
        settings.out,
        "--device",
        "cpu",
        "--steps",
        1,
        "--batch-size",
        4,
    ]
    said = refused("train", *args, "--backbone.name", NAMES["dinov2"])
    assert "has no text tower, and method splip makes its prompts of texts" in said
    said = refused("train", *args, "--backbone.name", NAMES["dinov2"], "--method", "clip-at")
    assert "loss.classification must be 0, because backbone timm:tiny_dinov2 has no text tower" in said
    said = refused("train", *args, "--backbone.name", NAMES["resnet"])
    assert "takes no prompts: its visual tower is convolutional" in said
