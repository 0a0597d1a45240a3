"""The table of families and tasks: what it says works does, what it refuses is refused in its one line."""

import dataclasses

import pytest
import torch
from tiny_towers import NAMES, lively
from tower_models import CLASSES, known_words, pictures, settings

from splip.errors import UserError
from splip.models import build
from splip.models.clip import PromptedCLIP
from splip.models.config import BackboneConfig, LossConfig
from splip.models.towers import table
from splip.models.towers.table import FAMILIES
from splip.models.towers.text import PieceTower
from splip.train.objective import Objective

METHODS = ("zero-shot", "clip-ln", "clip-at", "maple", "splip")
CELLS = [(family, method) for family in FAMILIES for method in METHODS]
IDS = [f"{family.key}-{method}" for family, method in CELLS]


@pytest.fixture(autouse=True)
def words(monkeypatch):
    known_words(monkeypatch)


LABELS, INSTANCES, PIECES = torch.tensor([0, 1, 0, 1, 1, 0]), torch.arange(6), torch.zeros(2, 2, dtype=torch.int64)


@pytest.mark.parametrize(("family", "method"), CELLS, ids=IDS)
def test_a_training_step_changes_what_it_should(family, method):
    if method in family.refused:
        with pytest.raises(UserError) as caught:
            build(settings(family, method), CLASSES)
        assert family.refused[method] in str(caught.value) and "\n" not in str(caught.value)
        assert NAMES[family.key] in str(caught.value)
        return
    model = build(settings(family, method), CLASSES)
    lively(model.backbone.visual)
    assert model.config.method == method and not model.no_words or "words" in family.refused
    if model.trains:
        objective = Objective(model.train())
        before = {name: t.clone() for name, t in model.state_dict().items()}
        optimiser = torch.optim.SGD(model.trainable().values(), lr=0.1)
        objective(pictures(6), LABELS, INSTANCES, PIECES)["loss"].backward()
        optimiser.step()
        changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
        unchanged = set(model.trainable()) - changed
        assert unchanged <= {name for name in unchanged if _dead(name)}, sorted(unchanged)
        # Statistics of BatchNorms and all frozen weights stay to the bit.
        assert changed - set(model.trainable()) <= {"patch_mean", "batches_seen"}
        norms = [name for name in changed if name.startswith("backbone.clip.visual.")]
        assert norms and all(before[name].dim() == 1 for name in norms)
    model.eval()
    images = pictures(4)
    sketch, photo = model.encode_sketch(images), model.encode_photo(images)
    assert sketch.shape == (4, model.backbone.embed_dim)
    torch.testing.assert_close(sketch.norm(dim=1), torch.ones(4))
    plain = model.backbone.encode_visual(model.backbone.embed_patches(images))
    plain = torch.nn.functional.normalize(plain, dim=1)
    if method in ("zero-shot", "clip-ln"):
        assert torch.equal(sketch, photo)
        torch.testing.assert_close(sketch, plain)
    else:  # prompts change features
        assert (sketch - plain).abs().max() > 1e-4
        assert method == "maple" or (sketch - photo).abs().max() > 1e-6


def _dead(name):
    """Biases of what a softmax or a normalisation makes nothing of: keys' norms and the like."""
    return name.endswith("bias") or "bn3" in name


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.key)
def test_words(family):
    model = build(settings(family, "zero-shot"), CLASSES).eval()
    if "words" in family.refused:
        with pytest.raises(UserError, match=family.refused["words"]):
            model.encode_text(["dog"])
        return
    features = model.encode_text(["dog", "a dog", "cup"], 1)
    assert torch.equal(features[0], features[1]) and (features[0] - features[2]).abs().max() > 1e-3
    reader, clip = model.backbone.reader, model.backbone.clip
    alone = clip.encode_text(reader.tokenize(["photo of dog"], truncate=False))[0]
    torch.testing.assert_close(features[0], torch.nn.functional.normalize(alone, dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [f for f in FAMILIES if "splip" not in f.refused], ids=lambda f: f.key)
def test_a_checkpoint_comes_back(family, tmp_path):
    from splip.models import load_model

    model = build(settings(family, "splip"), CLASSES)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        model.patch_mean.normal_()
    torch.save(model.checkpoint(), tmp_path / "best.pt")
    loaded = load_model(tmp_path / "best.pt")
    images = pictures(2)
    assert torch.equal(loaded.encode_sketch(images), model.eval().encode_sketch(images))
    assert torch.equal(loaded.encode_text(["dog"]), model.encode_text(["dog"]))


@pytest.mark.parametrize("form", ["conditional", "permuted-triplet"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.key)
def test_jigsaw(family, form):
    made = settings(family, "clip-ln")
    made.loss = dataclasses.replace(made.loss, jigsaw=0.1, jigsaw_form=form, permutations=4, tiles=2, jigsaw_width=32)
    if form == "conditional" and "splip" in family.refused and "clip-at" in family.refused:
        with pytest.raises(UserError, match="loss.jigsaw must be 0, or its form permuted-triplet"):
            build(made, CLASSES)
        return
    objective = Objective(build(made, CLASSES).train())
    terms = objective(pictures(6), LABELS, INSTANCES, torch.tensor([[0, 1], [2, 3]]))
    assert torch.isfinite(terms["loss"]) and "jigsaw" in terms


def test_without_words_the_losses_that_need_them_are_named():
    family = next(f for f in FAMILIES if f.key == "dinov2")
    for loss, message in (
        (LossConfig(jigsaw=0), "loss.classification must be 0, because backbone timm:tiny_dinov2 has no text tower"),
        (LossConfig(jigsaw=0, classification=0), "loss.margin must be fixed, because backbone timm:tiny_dinov2"),
    ):
        with pytest.raises(UserError, match=message):
            Objective(build(settings(family, "clip-ln", loss=loss), CLASSES))


def test_whole_backbones_are_trained_of_clip_only():
    for family in FAMILIES:
        made = settings(family, "clip-ln", train_backbone=True)
        if family.key == "clip":
            build(made, CLASSES)
        else:
            with pytest.raises(UserError, match="whole towers are trained .* of CLIP ViTs only"):
                build(made, CLASSES)


def test_the_table_is_the_documentations():
    from pathlib import Path

    page = (Path(__file__).resolve().parents[3] / "docs" / "how-to" / "backbones.md").read_text(encoding="utf-8")
    assert f"\n{table.markdown()}\n" in page


def test_every_task_that_is_refused_is_one():
    assert all(set(f.refused) <= set(table.TASKS) for f in FAMILIES)
    assert {f.key for f in FAMILIES} == set(NAMES) - {"whole-text"}


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("timm:no_such_model", None, "unknown backbone timm:no_such_model: timm has no no_such_model"),
        ("timm:vit_small_patch14_dinov2@9", None, "@9 is no side of 16 to 2048 pixels"),
        ("timm:vit_small_patch14_dinov2.nowhere", None, "timm knows no nowhere of vit_small_patch14_dinov2.*lvd142m"),
        ("timm:tiny_dinov2", "nowhere", "no pretrained weights nowhere for timm:tiny_dinov2: not a file"),
        ("timm:vit_relpos_small_patch16_224", None, "its visual tower is a VisionTransformerRelPos"),
    ],
)
def test_rejects(name, pretrained, message):
    with pytest.raises(UserError, match=message):
        PromptedCLIP(BackboneConfig(name, pretrained))


def test_timm_weights_of_a_file(tmp_path):
    model = PromptedCLIP(BackboneConfig("timm:tiny_dinov2", "random", seed=3))
    torch.save(model.visual.state_dict(), tmp_path / "timm.pt")  # as timm knows them
    torch.save(model.clip.state_dict(), tmp_path / "ours.pt")  # as `plain_backbone` writes them
    assert model.identity()["pretrained"] is None
    with pytest.raises(UserError, match="timm's towers have one activation"):
        PromptedCLIP(BackboneConfig("timm:tiny_dinov2", "random", quick_gelu="true"))
    for file in ("timm.pt", "ours.pt"):
        other = PromptedCLIP(BackboneConfig("timm:tiny_dinov2", str(tmp_path / file)))
        assert other.identity()["pretrained"] == str(tmp_path / file)
        assert all(torch.equal(t, model.clip.state_dict()[n]) for n, t in other.clip.state_dict().items())
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"cannot load timm:tiny_dinov2 with pretrained weights .*bad.pt"):
        PromptedCLIP(BackboneConfig("timm:tiny_dinov2", str(tmp_path / "bad.pt")))


def test_prompts_of_siglip_go_into_the_first_places():
    model = build(settings(FAMILIES[1], "splip"), CLASSES)
    reader = model.backbone.reader
    assert isinstance(reader, PieceTower) and reader.start == 0
    plain = reader.tokenize(["sketch of dog"])[0]
    assert torch.equal(model.tokens[0, 0, 2:], plain[:-2]) and not set(model.tokens[0, 0, :2].tolist()) & set(
        reader.tokenizer.ends
    )
    assert reader.end(model.tokens[0, 0]) == 5 and reader.pooled(model.tokens[0, 0]) == 15
    assert model.tokens.shape[2] == reader.length and model.shared == 0


def test_a_tag_is_asked_for_as_timm_does(monkeypatch):
    """timm:NAME.TAG fetches the weights of the tag; random leaves the hub alone."""
    import timm

    asked = []

    def create_model(name, pretrained, **options):
        asked.append((name, pretrained, options))
        raise OSError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", create_model)
    name = "timm:vit_small_patch14_dinov2.lvd142m@224"
    for config in (BackboneConfig(name), BackboneConfig(name.replace(".lvd142m", ""), "lvd142m")):
        with pytest.raises(UserError, match="cannot load timm:vit_small.* weights lvd142m: no route to the hub"):
            PromptedCLIP(config)
    with pytest.raises(UserError, match="no route to the hub"):
        PromptedCLIP(BackboneConfig(name, "random"))
    options = {"num_classes": 0, "img_size": 224}
    assert asked == [("vit_small_patch14_dinov2.lvd142m", fetched, options) for fetched in (True, True, False)]
