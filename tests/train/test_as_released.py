"""clip-at-as-released: what CLIP-AT's released code does, setting by setting."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from splip import config
from splip.errors import UserError
from splip.evaluation.metrics import measure
from splip.models import build
from splip.models.config import BackboneConfig, LossConfig, PromptConfig, TrainConfig
from splip.train import checks, loop
from splip.train.objective import Objective

CLASSES = ["dog", "palm", "cup"]
PARTS = ("attention-inputs", "class-token", "positions", "projection")
LEFT_OPEN = ("in_proj_weight", "in_proj_bias", "visual.class_embedding", "visual.positional_embedding", "visual.proj")


def released(name="splip-tiny"):
    loaded = config.load(TrainConfig, "clip-at-as-released")
    return dataclasses.replace(loaded, backbone=dataclasses.replace(loaded.backbone, name=name))


def step(model):
    """A forward and a backward pass of the loss."""
    objective = Objective(model)
    images = torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0] + [0, 1, 2, 0] + [1, 2, 0, 2])
    terms = objective(images, labels, torch.arange(12), objective.pieces(4, torch.Generator().manual_seed(1)))
    terms["loss"].backward()
    return images, terms


def test_what_its_freezing_leaves_open():
    """Its code freezes what is called weight or bias; of the visual tower these have other names."""
    model = build(released(), CLASSES)
    step(model)
    for name, parameter in model.named_parameters():
        visual = name.startswith("backbone.clip.visual.")
        leaf = name.rpartition(".")[2]
        theirs = visual and (leaf not in ("weight", "bias") or ".ln_" in name)  # the stem's scale and shift included
        assert theirs == (visual and (".ln_" in name or name.endswith((*LEFT_OPEN, ".scale", ".shift")))), name
        text_norm = not visual and ".ln_" in name
        assert parameter.requires_grad == (theirs or text_norm or name == "modality_tokens.tokens"), name
        if visual:
            assert (parameter.grad is not None) == theirs, name


def test_its_rates():
    """All that is trained of CLIP has one rate, the prompts another; both stay as they are."""
    settings = released()
    model = build(settings, CLASSES)
    groups = loop._parameter_groups(model.trainable(), settings)
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: group["peak"] for group in groups for p in group["params"]}
    assert set(rates) == set(model.trainable()) and len(rates) == sum(len(group["params"]) for group in groups)
    assert {name for name, rate in rates.items() if rate == 1e-4} == {"modality_tokens.tokens"}
    assert {rate for name, rate in rates.items() if name.startswith("backbone.")} == {1e-6}
    assert [loop._learning_rate(settings, i, 100) for i in (0, 50, 99)] == [1.0] * 3
    warm = dataclasses.replace(settings, warmup=10)
    assert [loop._learning_rate(warm, i, 100) for i in (0, 9, 10, 99)] == [0.1, 1.0, 1.0, 1.0]


def test_a_matrix_of_the_backbone_decays():
    settings = dataclasses.replace(released(), weight_decay=0.1)
    model = build(settings, CLASSES)
    groups = loop._parameter_groups(model.trainable(), settings)
    decays = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    visual = model.backbone.visual
    assert id(visual.proj) in decays and id(visual.transformer.resblocks[0].attn.in_proj_weight) in decays
    assert id(visual.ln_post.weight) not in decays and id(visual.class_embedding) not in decays


def test_its_loss():
    """The triplet in cosine distance with a margin of 0.2 is half of ours with 0.4; no texts."""
    model = build(released(), CLASSES)
    images, terms = step(model)
    assert set(terms) == {"loss", "triplet"}
    model.eval()
    sketch, positive, negative = (model.encode_image(p, k) for p, k in zip(images.chunk(3), (0, 1, 1), strict=True))

    def distance(a, b):
        return 1 - F.cosine_similarity(a, b)

    want = F.triplet_margin_with_distance_loss(sketch, positive, negative, distance_function=distance, margin=0.2)
    torch.testing.assert_close(terms["triplet"], 2 * want)


def test_its_pixels():
    """Normalised with ImageNet's numbers, whatever the backbone was trained with; the backbone's identity is its weights'."""
    theirs = build(released("splip-tiny-2"), CLASSES)
    plain = build(TrainConfig(method="clip-at", backbone=BackboneConfig(name="splip-tiny-2"), loss=LossConfig(jigsaw=0)), CLASSES)  # fmt: skip
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    want = plain.backbone.embed_patches((images / 255 - mean) / std)
    torch.testing.assert_close(theirs.backbone.embed_patches(images), want, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain.backbone.embed_patches(images), want, atol=1e-2)
    assert theirs.backbone_identity["sha256"] == plain.backbone_identity["sha256"]


def test_its_prompts_start():
    tokens = build(released(), CLASSES).modality_tokens.tokens
    assert 0.9 < float(tokens.detach().std()) < 1.1
    usual = build(TrainConfig(method="clip-at", backbone=BackboneConfig(name="splip-tiny"), loss=LossConfig(jigsaw=0)), CLASSES)  # fmt: skip
    assert 0.018 < float(usual.modality_tokens.tokens.detach().std()) < 0.022


def test_its_validation_gallery(settings, tree):
    """One photo for each sketch, drawn from its class: a photo that is drawn twice counts twice."""
    settings = dataclasses.replace(settings, eval_gallery="paired-photo", seed=3)
    found = checks.tree_of(settings)
    made = checks.validation(settings, found, 16)
    assert len(made.counted) == len(made.sketches) > len(set(made.counted.tolist()))
    sketches = F.normalize(torch.randn(len(made.sketches), 8), dim=1)
    photos = F.normalize(torch.randn(len(made.photos), 8), dim=1)
    rows = made.counted.tolist()
    labels = torch.tensor(made.photos.labels)[rows], torch.tensor(made.photos.instances)[rows]
    want = measure(
        sketches, torch.tensor(made.sketches.labels), torch.tensor(made.sketches.instances), photos[rows], *labels
    )
    assert made.measure(sketches, photos).query_mean == want.query_mean
    assert sorted(np.asarray(made.photos.labels)[rows].tolist()) == sorted(made.sketches.labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"eval_gallery": "paired-photo", "setting": "fine-grained"},
            "eval_gallery: paired-photo is a gallery of classes",
        ),
        ({"method": "zero-shot", "train_also": ("projection",)}, "zero-shot trains nothing: leave out --train-also"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        checks.check_settings(TrainConfig(**changes))


def test_backbones_that_cannot_be():
    with pytest.raises(UserError, match="train_backbone trains all weights: leave out train_also"):
        build(
            TrainConfig(backbone=BackboneConfig(name="splip-tiny"), train_also=PARTS[:1], train_backbone=True), CLASSES
        )
    clip_ln = TrainConfig(
        method="clip-ln", loss=LossConfig(jigsaw=0, margin="fixed", classification=0), train_also=PARTS[1:2]
    )
    timm = BackboneConfig(name="timm:vit_tiny_patch16_224", pretrained="random")
    with pytest.raises(
        UserError, match="train_also: the visual tower of backbone timm:vit_tiny_patch16_224 has no part class-token"
    ):
        build(dataclasses.replace(clip_ln, backbone=timm), CLASSES)
    with pytest.raises(UserError, match="prompts.visual_std must not be negative, got -1"):
        build(TrainConfig(backbone=BackboneConfig(name="splip-tiny"), prompts=PromptConfig(visual_std=-1.0)), CLASSES)
