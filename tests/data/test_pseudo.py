"""Sketches that are lines of photos."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from drawing import draw as draw_shape
from PIL import Image

from splip.data import pseudo
from splip.data.config import DataConfig
from splip.data.trees import load_tree
from splip.errors import UserError
from splip.evaluation.test_set import TestSet
from splip.models import load_model
from splip.train import loop
from splip.train.batches import Feed
from splip.train.objective import Objective


def disc(side=64):
    """A red disc on blue."""
    y, x = np.mgrid[:side, :side]
    inside = (y - side / 2) ** 2 + (x - side / 2) ** 2 < (side / 3) ** 2
    pixels = np.where(inside[..., None], (200, 30, 30), (40, 60, 160)).astype(np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None], torch.from_numpy(inside)


@pytest.mark.parametrize("side", [64, 224])
def test_lines_lie_where_colours_change(side):
    photo, inside = disc(side)
    out = pseudo.draw(photo.expand(8, -1, -1, -1), torch.Generator().manual_seed(0))
    assert out.shape == (8, 3, side, side) and out.dtype == torch.uint8
    assert torch.equal(out[:, 0], out[:, 1]) and torch.equal(out[:, 0], out[:, 2])  # grey
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    off = ((y - side / 2) ** 2 + (x - side / 2) ** 2).float().sqrt() - side / 3
    near = off.abs() < side / 10
    for sketch in out[:, 0]:
        dark = sketch < 200
        assert dark[near].float().mean() > 0.03, "no line"
        assert dark[~near].float().mean() < 0.02, "ink where there is no edge"


def test_a_plain_photo_has_no_lines():
    photo = torch.full((2, 3, 64, 64), 90, dtype=torch.uint8)
    assert (pseudo.draw(photo, torch.Generator().manual_seed(0)) == 255).all()


def test_the_same_numbers_make_the_same_sketch():
    photos = torch.cat([disc()[0]] * 6)
    whole = pseudo.draw(photos, torch.Generator().manual_seed(3))
    assert torch.equal(whole, pseudo.draw(photos, torch.Generator().manual_seed(3)))
    assert not torch.equal(whole, pseudo.draw(photos, torch.Generator().manual_seed(4)))
    assert not torch.equal(whole[0], whole[1])  # each its own
    rows = torch.tensor([4, 1])  # this process's part of the batch
    assert torch.equal(pseudo.draw(photos[rows], torch.Generator().manual_seed(3), rows, 6), whole[rows])


def test_sketches_stay_on_the_device_of_the_photos():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        photos = torch.empty(3, 3, 96, 96, dtype=torch.uint8, device="cuda")
        out = pseudo.draw(photos, torch.Generator().manual_seed(0))
        assert out.device.type == "cuda" and out.shape == photos.shape


@pytest.fixture
def photos(tree):
    """The tree's photos, and no sketches."""
    shutil.rmtree(tree / "sketch")
    return tree


def test_classes_are_folders(photos, tmp_path):
    tree = load_tree(photos, DataConfig(sketches="pseudo", unseen=("box", "cone")))
    assert not tree.drawn and tree.sketches.paths == tree.photos.paths and tree.unseen == ["box", "cone"]
    assert tree.sketches.instances == tree.photos.instances
    bare = shutil.copytree(photos / "photo", tmp_path / "bare")
    again = load_tree(bare, DataConfig(sketches="pseudo", unseen=("box", "cone")))
    assert again.classes == tree.classes and len(again.photos) == len(tree.photos)
    shutil.copy(bare / "box/0.jpg", bare / "loose.jpg")
    assert load_tree(bare, DataConfig(sketches="pseudo")).notes == [f"1 photos of {bare} lie in no folder, left out"]


def test_parts_of_a_tree_are_no_classes(tree, tmp_path):
    for part, names in (("train", ("ball", "dash")), ("val", ("box", "cone"))):
        for kind in ("sketch", "photo"):
            for name in names:
                shutil.copytree(tree / kind / name, tmp_path / "parts" / part / kind / name)
    loaded = load_tree(tmp_path / "parts", DataConfig(sketches="pseudo"))
    assert loaded.drawn and loaded.unseen == ["box", "cone"] and "train" not in loaded.classes


def test_photos_in_no_folder_are_dealt_to_groups(tmp_path):
    for i in range(33):
        draw_shape(tmp_path / f"{i:02}.jpg", i % 6, "red", i)
    tree = load_tree(tmp_path, DataConfig(sketches="pseudo"))
    assert tree.classes == ["group 01", "group 02", "group 03", "group 04"]
    labels = dict(zip([p.stem for p in tree.photos.paths], tree.photos.labels, strict=True))
    assert [labels[f"{i:02}"] for i in range(5)] == [0, 1, 2, 3, 0]  # neighbours apart
    assert "33 photos in no folders" in tree.notes[0]
    for path in list(tmp_path.glob("*.jpg"))[15:]:
        path.unlink()
    with pytest.raises(UserError, match="15 photos: at least 16 are needed, or two folders of them"):
        load_tree(tmp_path, DataConfig(sketches="pseudo"))


def test_a_run_on_photos_alone(photos, settings, cli):
    data = dataclasses.replace(settings.data, sketches="pseudo", augment="none")
    run = dataclasses.replace(settings, data=data, positives="instance")
    best = loop.train(run)
    assert load_model(best).config.data.sketches == "pseudo"
    # The first third of a batch is drawn from photos: here from the positives, which are of the same instance.
    feed = Feed(load_tree(photos, data), run, 64, torch.device("cpu"))
    part = feed.part(0, Objective(load_model(best)))
    sketches, positives, _ = part.images.chunk(3)
    assert torch.equal(sketches, pseudo.draw(positives, torch.Generator().manual_seed(0)))
    assert part.instances[:4].tolist() == part.instances[4:8].tolist()
    code, out, err = cli("eval", "--checkpoint", best)
    assert code == 0 and "mAP@all" in out and "lines of the photos stand for them" in out, err


def test_real_sketches_are_measured_on(tree, settings):
    """Where there are any; what is trained on are the photos' own."""
    data = dataclasses.replace(settings.data, sketches="pseudo")
    loaded = load_tree(tree, data)
    assert loaded.drawn
    test = TestSet(loaded, ["pole"], data, 64)
    assert all("sketch" in p.parts for p in test.sketches.paths) and not isinstance(test.sketch_pictures, pseudo.Drawn)
    feed = Feed(loaded, dataclasses.replace(settings, data=data), 64, torch.device("cpu"))
    assert all("photo" in p.parts for p in feed.sketches.paths) and feed.pictures[0] is feed.pictures[1]


def test_drawn_pictures_are_the_same_each_time(photos):
    paths = sorted(photos.rglob("*.jpg"))[:3]
    pictures = pseudo.Drawn(paths, 64)
    whole = pictures.get(range(3))
    assert torch.equal(pictures.get([2]), whole[2:]) and whole.shape == (3, 3, 64, 64)
    with Image.open(paths[0]) as image:
        assert image.size != (64, 64)  # decoded and made square first
