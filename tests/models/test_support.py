"""Prompts made of a few pictures of a category."""

import pytest
import torch
import torch.nn.functional as F

from splip.encoders import Encoder
from splip.errors import UserError
from splip.models import build
from splip.models.checkpoint import write_checkpoint
from splip.models.config import BackboneConfig, LossConfig, PromptConfig, TrainConfig
from splip.models.support import SupportPrompts, draw_support
from splip.train.objective import Objective

LABELS = torch.tensor([0, 1, 0, 0])


def make(**changes):
    loss = changes.pop("loss", LossConfig(jigsaw=0.0, margin="fixed"))
    settings = {"method": "dp-clip", "setting": "fine-grained", "loss": loss, **changes}
    return build(TrainConfig(backbone=BackboneConfig(name="splip-tiny"), **settings), ["dog", "palm", "cup"])


def pictures(count):
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)


def test_who_supports_whom():
    """Itself first, then those of its class that follow; where there are too few, the rest does not count."""
    places, present = draw_support(LABELS, 2)
    assert [sorted(p[k].tolist()) for p, k in zip(places, present, strict=True)] == [[0, 2], [1], [2, 3], [0, 3]]
    places, present = draw_support(LABELS, 9)
    assert places.shape == (4, 4) and present.sum(dim=1).tolist() == [3, 1, 3, 3]


def test_a_support_is_a_set():
    """Neither the order of its pictures nor what is not of the class counts."""
    reader = SupportPrompts(64, 3).eval()
    patches, present = torch.randn(1, 6, 64), torch.tensor([[True] * 4 + [False] * 2])
    tokens = reader(patches, present)
    assert tokens.shape == (1, 3, 64)
    order = torch.tensor([2, 0, 3, 1, 4, 5])
    torch.testing.assert_close(reader(patches[:, order], present), tokens)
    torch.testing.assert_close(reader(patches[:, :4], present[:, :4]), tokens)
    other = torch.cat([patches[:, :4], torch.randn(1, 2, 64)], dim=1)
    torch.testing.assert_close(reader(other, present), tokens)
    assert not torch.allclose(reader(other, torch.ones_like(present)), tokens)
    assert not torch.allclose(tokens[0, 0], tokens[0, 1], atol=1e-3)


def test_training_shows_the_drawn_negatives():
    """What an image gets in training is what `adapt` gives for its class's negatives; its positive is not among them."""
    model = make(
        loss=LossConfig(triplet=1.0, classification=0.0, jigsaw=1.0, jigsaw_form="permuted-triplet", permutations=5)
    )
    images, labels, B = pictures(12), LABELS.repeat(3), 4
    patches, kinds = model.backbone.embed_patches(images), (torch.arange(12) >= B).long()
    more = model.backbone.embed_patches(pictures(12))
    both, modality = torch.cat([patches, more]), torch.cat([kinds, kinds])
    got = model.condition(both, modality, model.average(patches, kinds), labels).prompts[0]
    assert got.shape == (24, 3, model.backbone.visual_width)
    for i in range(B):
        same = [j for j in range(B) if LABELS[j] == LABELS[i]]
        assert len(same) <= model.config.prompts.support
        want = model.adapt(images[8:][same], "x").prompts[0]
        for image in range(i, 24, B):  # the sketch, its photos, and their shuffled copies
            torch.testing.assert_close(got[image], want, atol=1e-5, rtol=1e-4)


def test_a_batch_trains_it():
    model = make()
    objective = Objective(model)
    things = torch.tensor([0, 1, 2, 3] + [0, 1, 2, 3] + [4, 5, 6, 7])
    terms = objective(pictures(12), LABELS.repeat(3), things, objective.pieces(4, torch.Generator().manual_seed(0)))
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.support.named_parameters() if "in_proj_bias" not in n)  # fmt: skip
    trained = {n for n in model.trainable() if not n.startswith("backbone.")}
    assert trained == {f"support.{n}" for n, _ in model.support.named_parameters()}


def test_scales_of_channels():
    """f' = f (1 + S t) at unit length: in training by the label's text, for a known category by its name; at first none."""
    model = make(prompts=PromptConfig(channel_scales=True, template="a photo of a"))
    images, labels, kinds = pictures(12), LABELS.repeat(3), (torch.arange(12) >= 4).long()
    patches = model.backbone.embed_patches(images)
    mean = model.average(patches, kinds)
    assert torch.equal(model.condition(patches, kinds, mean, labels).scales, torch.ones(12, model.backbone.embed_dim))
    with torch.no_grad():
        model.scales.weight.normal_(std=0.5)
    conditions = model.condition(patches, kinds, mean, labels)
    features, _ = model.encode(patches, kinds, conditions)
    plain = F.normalize(model.backbone.encode_visual(patches, conditions.prompts), dim=1)
    text = model.eval().encode_text(["dog", "palm"])
    for row in range(12):
        want = F.normalize(plain[row] * (1 + model.scales.weight @ text[int(labels[row])]), dim=0)
        torch.testing.assert_close(features[row], want, atol=1e-5, rtol=1e-4)
    adapted = model.adapt(images[8:9], "a palm")
    torch.testing.assert_close(adapted.scales, 1 + model.scales.weight.detach() @ text[1])
    model.patch_mean.normal_()
    assert not torch.allclose(model.encode_adapted(images[:1], adapted), model.encode_sketch(images[:1]), atol=1e-2)
    conditions.scales.sum().backward()
    assert model.scales.weight.grad.abs().sum() > 0


def test_in_bfloat16():
    model = make(prompts=PromptConfig(channel_scales=True, template="a photo of a"), precision="bf16")
    objective = Objective(model)
    terms = objective(pictures(12), LABELS.repeat(3), torch.arange(12), objective.pieces(4, torch.Generator()))
    terms["loss"].backward()
    assert torch.isfinite(terms["loss"]) and model.support.queries.grad is not None


def test_where_no_category_is_known():
    """The average photo of training is the support, for sketches and photos alike: the model can be exported and searched."""
    model = make().eval()
    model.patch_mean.normal_()
    sketch, photo = model.visual_prompts()
    assert torch.equal(sketch[0], photo[0]) and len(sketch) == 1
    present = torch.ones(1, model.backbone.patches, dtype=torch.bool)
    torch.testing.assert_close(photo[0], model.support(model.patch_mean[1:], present)[0])


def test_prompts_start_around_the_patches():
    model = make()
    images = pictures(12)
    model.start(images)
    state = model.backbone.patch_states(model.backbone.embed_patches(images))[0]
    torch.testing.assert_close(model.support.project.bias.detach(), state)


def test_a_gallery_takes_the_average_photo(tmp_path):
    """What searches and exports run is the model without a category."""
    model = make().eval()
    model.patch_mean.normal_()
    model.data = {"seen": model.classes, "validation": [], "unseen": [], "pictures": ""}
    write_checkpoint({**model.checkpoint(), "step": 1, "validation": 0.0}, tmp_path / "best.safetensors")
    encoder, images = Encoder.load(tmp_path / "best.safetensors", "torch"), pictures(2)
    found = encoder.encode(images.permute(0, 2, 3, 1).contiguous().numpy(), "photo")
    torch.testing.assert_close(torch.as_tensor(found), model.encode_photo(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"setting": "category"}, "method dp-clip is told the category .* it needs setting: fine-grained"),
        ({"prompts": PromptConfig(depth=0)}, "method dp-clip without prompts is clip-ln"),
        ({"prompts": PromptConfig(support=0)}, "prompts.support must be at least 1, got 0"),
        ({"backbone": "RN50"}, "takes no prompts"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    name = changes.pop("backbone", None)
    with pytest.raises(UserError, match=message):
        if name:
            backbone = BackboneConfig(name="timm:resnet18", pretrained="random")
            build(TrainConfig(method="dp-clip", setting="fine-grained", backbone=backbone), ["dog", "cup"])
        make(**changes)
