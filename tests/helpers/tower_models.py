"""Models of every family for tests of what is deployed, far from where random weights start."""

import dataclasses
import functools

import open_clip
import torch
from tiny_towers import NAMES, SIDE, Words, lively

from splip.models import build
from splip.models.config import BackboneConfig, LossConfig, PromptConfig, TrainConfig

CLASSES = ["dog", "palm tree", "cup"]


_tokenizer = functools.cache(open_clip.get_tokenizer)  # each takes a fifth of a second to make


def known_words(monkeypatch):
    """SigLIP's tokenizer cannot be here: words by another that has the same interface. CLIP's is made once."""
    monkeypatch.setattr("splip.models.towers.pieces.load", lambda *_: Words())
    monkeypatch.setattr("open_clip.get_tokenizer", _tokenizer)


def settings(family, method, **changes):
    text = "words" not in family.refused
    loss = LossConfig(
        classification=1.0 if text else 0.0, margin="adaptive" if text else "fixed", jigsaw=0, fixed_margin=4
    )
    prompts = PromptConfig(text_tokens=2, template="{modality} of")
    backbone = BackboneConfig(NAMES[family.key], "random")
    made = TrainConfig(method=method, backbone=backbone, loss=loss, prompts=prompts)
    return dataclasses.replace(made, **changes)


def lively_model(family, method, depth=None):
    """In eval mode. Backbone weights are as its seed makes them, so that a checkpoint can be loaded again."""
    torch.manual_seed(1)
    config = settings(family, method)
    config.prompts.depth = depth
    model = build(config, CLASSES)
    with torch.no_grad():
        model.patch_mean.normal_()
        for name, parameter in model.trainable().items():
            scale = 0.2 if name.startswith("backbone.") else 0.05
            parameter.add_(torch.randn_like(parameter) * scale)
            if name.startswith(("b_v", "b_vt", "modality_tokens", "coupled")):
                parameter.mul_(8)
    return model.eval()


def very_lively_model(family, method, depth=None):
    """The same, and no weight of the visual tower is where random weights start: for comparisons in one process."""
    model = lively_model(family, method, depth)
    lively(model.backbone.visual)
    return model


def pictures(count, seed=0):
    """uint8 ``[N, 3, S, S]``, no two alike."""
    images = torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))
    for number in range(count):
        images[number, :, : 4 * (number % 8)] //= 3
    return images.to(torch.uint8)
