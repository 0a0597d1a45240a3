import json
import shutil

import pytest
import torch

from splip.config import DataConfig
from splip.data import augment, load_tree, prompt_name
from splip.errors import UserError


def test_plain_tree(tree):
    loaded = load_tree(tree, DataConfig(unseen=("cone", "box")))
    assert loaded.classes == sorted(["ball", "box", "slash", "dash", "cone", "pole", "red_ball", "red-box"])
    assert loaded.texts[loaded.classes.index("red_ball")] == "red ball"
    assert loaded.unseen == ["box", "cone"] and len(loaded.validation) == 1
    assert not {*loaded.seen} & {*loaded.unseen, *loaded.validation}
    assert len(loaded.seen) + len(loaded.validation) == 6
    sketches, photos = loaded.items(["cone"])
    assert len(sketches) == 3 and len(photos) == 2
    assert {p.parent.name for p in sketches.paths + photos.paths} == {"cone"}
    assert len(set(loaded.sketches.instances) & set(loaded.photos.instances)) == 0


def test_chosen_split_follows_the_seed(tree):
    one, same = load_tree(tree, DataConfig()), load_tree(tree, DataConfig())
    others = {tuple(load_tree(tree, DataConfig(split_seed=s)).unseen) for s in range(1, 6)}
    assert one.unseen == same.unseen and len(one.unseen) == 2 and len(others) > 1


def test_dataset_json_and_instances(tree):
    meta = {"classes": {"box": "cardboard box"}, "seen": ["ball", "dash"], "unseen": ["box"], "validation": ["dash"]}
    (tree / "dataset.json").write_text(json.dumps(meta))
    (tree / "instances.csv").write_text("path,instance\nsketch/box/0.png,a\nphoto/box/1.jpg,a\n")
    loaded = load_tree(tree, DataConfig())
    assert (loaded.seen, loaded.validation, loaded.unseen) == (["ball"], ["dash"], ["box"])
    assert loaded.texts[loaded.classes.index("box")] == "cardboard box"
    sketches, photos = loaded.items(["box"])
    assert sketches.instances[0] == photos.instances[1] and sketches.instances[0] != photos.instances[0]


def test_class_of_one_modality_is_left_out(tree):
    shutil.rmtree(tree / "photo" / "dash")
    loaded = load_tree(tree, DataConfig())
    assert "dash" not in loaded.classes and loaded.notes == ["class dash has no photos, left out"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(unseen=("box", "zebra")), "no pictures for the unseen classes zebra"),
        (DataConfig(validation=("zebra",)), "no pictures for the validation classes zebra"),
        (DataConfig(unseen=("box",), validation=("box",)), "no pictures for the validation classes box"),
    ],
)
def test_unknown_classes(tree, config, message):
    with pytest.raises(UserError, match=message):
        load_tree(tree, config)


def test_overlapping_split(tree):
    (tree / "dataset.json").write_text('{"seen": ["box", "ball"], "unseen": ["box"]}')
    with pytest.raises(UserError, match="both seen and unseen: box"):
        load_tree(tree, DataConfig())


def test_wrong_trees(tree, tmp_path):
    for root, message in (
        (None, "no data: --data.root"),
        (tmp_path / "none", "none: no such folder"),
        (tree / "photo", r"there is no sketch/"),
    ):
        with pytest.raises(UserError, match=message):
            load_tree(root, DataConfig())
    shutil.rmtree(tree / "photo")
    (tree / "photo").mkdir()
    with pytest.raises(UserError, match="no class has pictures in both"):
        load_tree(tree, DataConfig())


def test_one_class_only(tree):
    for folder in [*(tree / "sketch").iterdir()][1:]:
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="only one class"):
        load_tree(tree, DataConfig())


def test_validation_classes_are_seen_ones(tree):
    (tree / "dataset.json").write_text('{"seen": ["ball", "dash"], "validation": ["pole"], "unseen": ["box"]}')
    loaded = load_tree(tree, DataConfig())
    assert (loaded.seen, loaded.validation, loaded.unseen) == (["ball", "dash"], ["pole"], ["box"])


def test_what_is_not_seen_is_unseen(tree):
    (tree / "dataset.json").write_text('{"seen": ["ball", "dash", "pole"]}')
    loaded = load_tree(tree, DataConfig())
    assert loaded.unseen == sorted(["box", "slash", "cone", "red_ball", "red-box"])
    (tree / "dataset.json").write_text(json.dumps({"seen": loaded.classes}))
    with pytest.raises(UserError, match="calls every class seen"):
        load_tree(tree, DataConfig())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"classes": ["a"]}', "classes must map folder names to words"),
        ('{"unseen": null}', "unseen must be a list of class names"),
        ('{"seen": 3}', "seen must be a list"),
        ("[]", "expected an object"),
    ],
)
def test_malformed_dataset_json(tree, text, message):
    (tree / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_tree(tree, DataConfig())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"path,instance\nsketch/box/0.png,\n", "line 2 lacks a path or an instance"),
        (b"path,instance\ncaf\xe9,1\n", "not a CSV file in UTF-8"),
    ],
)
def test_malformed_instances(tree, data, message):
    (tree / "instances.csv").write_bytes(data)
    with pytest.raises(UserError, match=message):
        load_tree(tree, DataConfig())


def test_bad_side_files(tree):
    (tree / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="dataset.json: not valid JSON"):
        load_tree(tree, DataConfig())
    (tree / "dataset.json").unlink()
    (tree / "instances.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="instances.csv: expected the columns path,instance"):
        load_tree(tree, DataConfig())


def test_prompt_names():
    assert prompt_name("hot-air_balloon") == "hot air balloon"


def test_check_verb(cli, tree):
    (tree / "photo" / "box" / "bad.png").write_bytes(b"x")
    code, out, _ = cli("data", "check", "--root", tree)
    assert code == 0 and "8 classes, 24 sketches, 17 photos" in out
    code, out, _ = cli("data", "check", "--root", tree, "--decode")
    assert code == 1 and "bad.png: not a picture, or damaged" in out and "unreadable pictures: 1 of 41" in out


@pytest.mark.parametrize("strength", ["none", "light", "strong"])
def test_augment(strength):
    images = torch.full((8, 3, 32, 32), 255, dtype=torch.uint8)
    images[:, :, 8:24, 8:24] = torch.tensor([200, 30, 90], dtype=torch.uint8).view(1, 3, 1, 1)
    is_sketch = torch.arange(8) < 4
    images[:4, :, 8:24, 8:24] = 0
    first, again, other = (augment(images, is_sketch, strength, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert first.shape == images.shape and first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert torch.equal(first, images) == (strength == "none")
    assert torch.equal(first, other) == (strength == "none")
    sketches = first[:4].int()
    assert (sketches.amax(1) == sketches.amin(1)).all()  # sketches stay grey
    assert (first[:, :, 0, 0] == 255).float().mean() > 0.8  # the background stays white
