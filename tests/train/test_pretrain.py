"""splip pretrain, its stem, and the weights that the package holds."""

import csv
import math

import pytest
import safetensors.torch
import torch
from PIL import Image, ImageDraw

from splip.data import augment
from splip.models import build, seeded
from splip.models.clip import WEIGHTS, PromptedCLIP
from splip.models.config import BackboneConfig, TrainConfig
from splip.models.stem import ConvStem
from splip.train import pretrain
from splip.train.config import PretrainConfig
from splip.train.pictures import LINE, SIDE, Batches, Pictures, thinned
from splip.train.pretrain import Prototypes, save_weights

TINY = BackboneConfig("splip-tiny")
THINGS = {"disc": "round", "ring": "round", "bar": "long", "pole": "long", "box": "square"}


@pytest.fixture
def pictures(tmp_path):
    """Five things in three classes by two designers, cut out on transparency."""
    root = tmp_path / "pictures"
    rows = []
    for thing, kind in THINGS.items():
        for number, colour in enumerate(("red", "blue")):
            image = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
            pen = ImageDraw.Draw(image)
            box = {"bar": (5, 40, 90, 56), "pole": (40, 5, 56, 90)}.get(thing, (15, 15, 80, 80))
            (pen.ellipse if kind == "round" else pen.rectangle)(box, fill=None if thing == "ring" else colour,
                                                               outline=colour, width=9)  # fmt: skip
            path = root / f"designer-{number}" / f"{thing}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
            rows.append([path.relative_to(root), thing, thing, kind])
    with open(root / "pictures.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "thing", "name", "class"], *rows])
    return root


def arguments(pictures, out, steps=6, **more):
    own = {"pictures": pictures, "out": out, "steps": steps, "text-steps": 20, "batch-size": 4, "eval-every": 3,
           "device": "cpu"} | more  # fmt: skip
    return ["pretrain", *(str(part) for key, value in own.items() for part in (f"--{key}", value))]


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(pictures, tmp_path, cli):
    code, out, err = cli(*arguments(pictures, tmp_path / "whole"))
    assert code == 0, err
    assert "10 pictures of 5 things in 3 classes" in out
    whole = safetensors.torch.load_file(tmp_path / "whole/weights.safetensors")
    with open(tmp_path / "whole/log.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3", "6"]

    # The same run, cut after three steps: its schedule is that of six.
    from splip.train import pretrain

    class Stopped(Exception):
        pass

    real = pretrain.repaint
    calls = []

    def repaint(*args):
        calls.append(1)
        if len(calls) == 4:
            raise Stopped
        return real(*args)

    pretrain.repaint = repaint
    try:
        with pytest.raises(Stopped):
            cli(*arguments(pictures, tmp_path / "cut"))
    finally:
        pretrain.repaint = real
    code, out, err = cli(*arguments(pictures, tmp_path / "cut"), "--resume")
    assert code == 0 and "going on after step 3" in out, err
    cut = safetensors.torch.load_file(tmp_path / "cut/weights.safetensors")
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []


def test_weights_are_a_backbone(pictures, tmp_path, cli):
    assert cli(*arguments(pictures, tmp_path / "run"))[0] == 0
    path = tmp_path / "run/weights.safetensors"
    model = PromptedCLIP(BackboneConfig("splip-tiny", str(path))).eval()
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        features = model.encode_visual(model.embed_patches(images))
    assert features.shape == (3, model.embed_dim) and bool(features.isfinite().all())


def test_refusals(pictures, tmp_path, cli, refused):
    assert "there is no " in refused(*arguments(tmp_path, tmp_path / "a"))
    assert cli(*arguments(pictures, tmp_path / "run"))[0] == 0
    assert "holds a run already: add --resume" in refused(*arguments(pictures, tmp_path / "run"))
    assert "other settings: lr: 0.002 -> 0.1" in refused(*arguments(pictures, tmp_path / "run", lr=0.1), "--resume")
    assert "--resume: there is no" in refused(*arguments(pictures, tmp_path / "new"), "--resume")
    (tmp_path / "run/last.safetensors").write_bytes(b"nothing")
    assert "last.safetensors: not a run of splip pretrain" in refused(
        *arguments(pictures, tmp_path / "run"), "--resume"
    )
    (pictures / "designer-0/disc.png").write_bytes(b"no picture")
    assert "disc.png: cannot be read" in refused(*arguments(pictures, tmp_path / "b"))
    (pictures / "pictures.csv").write_text("path,thing\na,b\n")
    assert "pictures.csv: no column name" in refused(*arguments(pictures, tmp_path / "b"))


def test_batches_hold_different_things_and_every_design(pictures):
    read = Pictures.read(pictures)
    assert read.names == list(THINGS) and read.classes == ["long", "round", "square"]
    batches, seen = Batches(read, 4), set()
    for seed in range(40):
        chosen, things, drawing = batches.draw(torch.Generator().manual_seed(seed))
        assert not bool(drawing.any()) and len(set(things.tolist())) == 4
        assert torch.equal(read.thing[chosen], things)
        seen |= set(chosen.tolist())
    assert seen == set(range(10))
    assert Batches(read, 99).size == 5  # no more than there are things


@pytest.fixture
def drawn(pictures):
    """The same, and of three things a drawing in lines and a solid one, under several names."""
    with open(pictures / "pictures.csv", newline="") as file:
        rows = [[*row.values(), "coloured", ""] for row in csv.DictReader(file)]
    for thing in ("ring", "box", "pole"):
        for kind, width in (("line", 9), ("solid", 60)):
            image = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
            ImageDraw.Draw(image).rectangle((12, 12, 84, 84), outline="black", width=width)
            path = pictures / kind / f"{thing}.png"
            path.parent.mkdir(exist_ok=True)
            image.save(path)
            rows.append([path.relative_to(pictures), thing, thing, THINGS[thing], kind, f"{thing};old {thing}"])
    with open(pictures / "pictures.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "thing", "name", "class", "kind", "synonyms"], *rows])
    return pictures


def test_pairs_are_a_picture_and_a_drawing_of_each_thing(drawn):
    read = Pictures.read(drawn)
    assert read.texts[0] == ["disc"]  # the first row of a thing speaks for it
    batches, lines, solid_first = Batches(read, 8, pairs=True), set(), 0
    for seed in range(60):
        chosen, things, drawing = batches.draw(torch.Generator().manual_seed(seed))
        assert drawing.tolist() == [False] * 4 + [True] * 4
        assert torch.equal(things[:4], things[4:]) and len(set(things[:4].tolist())) == 4
        assert torch.equal(read.thing[chosen], things)
        assert not bool((read.drawn[chosen[:4]] == LINE).all())
        lines |= set(things[4:][read.drawn[chosen[4:]] == LINE].tolist())
        solid_first += int((read.drawn[chosen[:4]] != 0).sum())
    assert {read.names[i] for i in lines} == {"ring", "box", "pole"}
    assert 0 < solid_first < 60  # of 240: a coloured one nine times in ten


def test_strokes_are_thinned_and_stay_where_they_are(drawn):
    ink = torch.zeros(1, 1, SIDE, SIDE)
    ink[:, :, 20:31, 10:80] = 1
    thin = thinned(ink)
    assert bool((thin <= 1).all()) and float((thin > 0.5).sum()) < 0.35 * float(ink.sum())
    rows = torch.nonzero(thin[0, 0, :, 40] > 0.5).flatten()
    assert 1 <= len(rows) <= 3 and int(rows.min()) >= 22 and int(rows.max()) <= 28  # along its middle
    read = Pictures.read(drawn)
    line = read.images[read.drawn == LINE]
    assert bool((line[:, 0] > 128).any()) and float((line[:, 0] > 128).sum()) < 0.6 * float((line[:, 3] > 128).sum())
    others = read.images[read.drawn != LINE]
    assert int(others[-1, :3].max()) == 0  # a solid picture is black, as it was


def test_a_kind_that_is_none_is_refused(drawn, tmp_path, refused):
    text = (drawn / "pictures.csv").read_text()
    (drawn / "pictures.csv").write_text(text.replace(",solid,", ",etched,"))
    assert "kind 'etched' is none of coloured, photo, line, solid" in refused(*arguments(drawn, tmp_path / "a"))


def test_a_run_by_pairs_from_the_packages_weights(drawn, tmp_path, cli):
    more = {"pair-weight": 1, "scenes": 0.5, "start": "splip-tiny", "batch-size": 8}
    code, out, err = cli(*arguments(drawn, tmp_path / "run", steps=3, **more))
    assert code == 0, err
    with open(tmp_path / "run/log.csv", newline="") as file:
        assert [float(row["pairs"]) > 0 for row in csv.DictReader(file)] == [True]
    assert (tmp_path / "run/weights.safetensors").stat().st_size < 7 * 2**20  # words are not stored


def test_a_start_that_is_not_there_is_refused(drawn, tmp_path, refused):
    said = refused(*arguments(drawn, tmp_path / "run", start="nowhere.safetensors"))
    assert "no pretrained weights nowhere.safetensors" in said


def test_what_is_adopted_gives_the_same_features():
    """With BatchNorms whose statistics are those of the pictures that it was shown, in training and in inference."""
    torch.manual_seed(0)
    start = PromptedCLIP(TINY).eval()
    model = Prototypes(PromptedCLIP(BackboneConfig("splip-tiny", "random")), 5, 3)
    images = torch.randn(64, 3, 64, 64)
    model.adopt(start, images)
    with torch.no_grad():
        want = torch.nn.functional.normalize(start.encode_visual(start.embed_patches(images)), dim=1)
        for mode in (True, False):
            torch.testing.assert_close(model.train(mode)(images), want, rtol=0, atol=1e-4)
        finished = model.eval().finished()
        got = torch.nn.functional.normalize(finished.encode_visual(finished.embed_patches(images)), dim=1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_the_pair_loss_asks_for_a_things_own_drawing():
    model = Prototypes(PromptedCLIP(BackboneConfig("splip-tiny", "random")), 5, 3)
    own = torch.eye(4, 8)
    apart = model.pair_loss(torch.cat([own, own]), 16.0)
    swapped = model.pair_loss(torch.cat([own, own.roll(1, 0)]), 16.0)
    assert float(apart) < 1e-3 and float(swapped) == pytest.approx(16.0, abs=1e-3)


def test_folding_changes_nothing():
    """BatchNorms of the stem and after the tower become part of the weights."""
    torch.manual_seed(0)
    model = Prototypes(PromptedCLIP(BackboneConfig("splip-tiny", "random")), 5, 3)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):  # statistics that are not 0 and 1
        loss = sum(model.losses(model(torch.randn(6, 3, 64, 64) * 2 + 1), torch.arange(6) % 5, torch.arange(6) % 3, 16))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        want = model(images)
        finished = model.finished()
        got = torch.nn.functional.normalize(finished.encode_visual(finished.embed_patches(images)), dim=1)
    assert isinstance(finished.visual.conv1, ConvStem)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_repainting_follows_the_generator_and_keeps_range():
    images = torch.randint(0, 256, (8, 4, SIDE, SIDE), dtype=torch.uint8)
    first, again, other = (
        augment.repaint(images, 64, torch.Generator().manual_seed(seed), 1.0, 0.5) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (8, 3, 64, 64) and float(first.min()) >= 0 and float(first.max()) <= 1
    assert images.dtype == torch.uint8  # and the pictures themselves stay
    edges = augment.repaint(images, 64, torch.Generator().manual_seed(1), 0.0, 1.0)
    assert torch.equal(edges[:, 0], edges[:, 1]) and torch.equal(edges[:, 0], edges[:, 2])  # grey


def test_drawings_are_dark_on_white_and_scenes_fill_the_ground():
    images = torch.zeros(4, 4, SIDE, SIDE, dtype=torch.uint8)
    images[:, 3, 30:60, 30:60] = 255
    images[:, 0, 40:44, 30:60] = 255  # the thinned line of the lines
    kinds = torch.tensor([True, True, False, False])
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        drawing = torch.tensor([True, False, True, False])
        made = augment.repaint(images, 64, generator, 0.0, 0.0, drawing, kinds, torch.ones(4, dtype=torch.bool), 1.0)
        assert float(made.min()) >= 0 and float(made.max()) <= 1
        for number in (0, 2):  # drawings: grey, and white at the border
            assert torch.equal(made[number, 0], made[number, 2]) and bool((made[number, :, :6, :6] == 1).all())
        for number in (1, 3):
            assert float(made[number, :, :6].std()) > 0  # a ground of shades


def test_scenes_and_outlines_need_no_pairs(pictures):
    """Each alone does what it says: shades behind things, and grey edges on white."""
    read = Pictures.read(pictures)
    batch = read.batches(5).draw(torch.Generator().manual_seed(0))

    def painted(**shares):
        config = PretrainConfig(pictures, **shares)
        return pretrain._painted(config, read, batch, torch.Generator().manual_seed(3), 0.5, torch.device("cpu"))

    corner = (slice(None), slice(None), slice(0, 4), slice(0, 4))
    assert (painted(scenes=1.0, outlines=0.0)[corner].flatten(1).std(dim=1) > 0).all()
    edges = painted(scenes=1.0, outlines=1.0)
    assert torch.equal(edges[:, 0], edges[:, 1]) and float(edges.amin(dim=(1, 2, 3)).max()) < 0.5
    assert float(edges.flatten(1).median(dim=1).values.min()) > 0.9


def test_edges_of_a_flat_picture_are_none():
    flat = torch.zeros(1, 4, SIDE, SIDE, dtype=torch.uint8)  # nothing on white
    for seed in range(20):
        drawn = augment.repaint(flat, 64, torch.Generator().manual_seed(seed), 0.0, 1.0)
        assert bool((drawn > 0.99).all())


@pytest.mark.parametrize("name", ["splip-tiny", "splip-tiny-2", "splip-tiny-3"])
def test_the_packages_weights_are_small_and_whole(tmp_path, name):
    path = WEIGHTS / f"{name}.safetensors"
    assert path.stat().st_size <= 12 * 2**20
    model = PromptedCLIP(BackboneConfig(name))
    save_weights(model, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert math.isclose(model.clip.logit_scale.item(), math.log(16), rel_tol=1e-3)


def test_the_stems_scales_and_shifts():
    """They are trained with LayerNorms, and a deployed stem has them in its weights."""
    for trained in (True, False):
        model = build(TrainConfig(method="clip-ln", backbone=TINY, train_layernorm=trained), ["ball", "box"])
        names = {n.rsplit(".", 1)[1] for n in model.trainable() if ".conv1." in n}
        assert names == ({"scale", "shift"} if trained else set())
    torch.manual_seed(0)
    stem = model.backbone.visual.conv1
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = stem(images)
        for parameter in stem.affine():
            parameter.add_(0.3 * torch.randn_like(parameter))
        changed, merged = stem(images), stem.merged()
        torch.testing.assert_close(merged(images), changed, rtol=0, atol=1e-4 * float(changed.abs().max()))
    assert not torch.allclose(before, changed, atol=0.1)
    assert sorted({n.rsplit(".", 1)[1] for n in merged.state_dict()}) == ["bias", "shift", "weight"]
    assert len(stem.affine()) == 2 * 8


def test_architectures_for_longer_runs(tmp_path):
    """The one fills what a package may hold, words aside; the other is a plain ViT as a CLIP is."""
    compact = PromptedCLIP(BackboneConfig("splip-compact", "random"))
    stored = sum(p.numel() for n, p in compact.clip.named_parameters() if n != "token_embedding.weight")
    assert 10 * 2**20 < 2 * stored < 12 * 2**20
    plain = PromptedCLIP(BackboneConfig("icon-vit", "random"))
    assert isinstance(plain.visual.conv1, torch.nn.Conv2d) and (plain.patch_size, plain.image_size) == (8, 64)
    assert (plain.visual_layers, plain.text_layers) == (12, 6)
    seeded.plant(plain.clip)  # words that the file leaves out, of a tower without a stem
    save_weights(plain, tmp_path / "plain.safetensors")
    loaded = PromptedCLIP(BackboneConfig("icon-vit", str(tmp_path / "plain.safetensors"))).clip.state_dict()
    for name, value in plain.clip.state_dict().items():
        torch.testing.assert_close(loaded[name], value, rtol=1e-3, atol=1e-4)
