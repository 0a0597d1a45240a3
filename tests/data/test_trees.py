import json
import shutil

import pytest

from splip.data.config import DataConfig
from splip.data.trees import load_tree, normal_name, paired, prompt_name, unpaired
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


def test_equal_names_in_two_classes_are_two_things(tree):
    """Instances are counted within their class: 'a' of the boxes is not 'a' of the balls."""
    lines = [
        f"{kind}/{name}/0.{end},a" for name in ("box", "ball") for kind, end in (("sketch", "png"), ("photo", "jpg"))
    ]
    (tree / "instances.csv").write_text("\n".join(["path,instance", *lines]) + "\n")
    loaded = load_tree(tree, DataConfig())
    things = {}
    for name in ("box", "ball"):
        sketches, photos = loaded.items([name])
        things[name] = {sketches.instances[0], photos.instances[0]}
        assert len(things[name]) == 1 and paired(sketches, photos).tolist() == [True, False, False]
    assert things["box"] != things["ball"]


def test_class_of_one_modality_is_left_out(tree):
    shutil.rmtree(tree / "photo" / "dash")
    loaded = load_tree(tree, DataConfig())
    assert "dash" not in loaded.classes and loaded.notes == ["class dash has no photos, left out"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(unseen=("box", "zebra")), "no pictures for the unseen classes zebra"),
        (DataConfig(validation=("zebra",)), "no pictures for the validation classes zebra"),
        (DataConfig(unseen=("box",), validation=("box",)), "classes both validation and unseen: box"),
    ],
)
def test_unknown_classes(tree, config, message):
    with pytest.raises(UserError, match=message):
        load_tree(tree, config)


def test_spellings_of_a_class(tree):
    """One class, however its folders are spelt; no half of it can be seen and the other unseen."""
    (tree / "photo" / "red_ball").rename(tree / "photo" / "Red ball")
    loaded = load_tree(tree, DataConfig(unseen=("red-ball", "cone")))
    assert loaded.unseen == ["cone", "red_ball"] and "Red ball" not in loaded.classes
    assert "photo/Red ball read as class red_ball" in loaded.notes
    assert len(loaded.items(["red_ball"])[1]) == 2


def test_validation_classes(tree):
    assert load_tree(tree, DataConfig(unseen=("box",), validation_classes=0)).validation == []
    assert len(load_tree(tree, DataConfig(unseen=("box",), validation_classes=3)).validation) == 3
    with pytest.raises(UserError, match="data.validation_classes must be between 0 and 6, got 7"):
        load_tree(tree, DataConfig(unseen=("box",), validation_classes=7))
    (tree / "dataset.json").write_text('{"unseen": ["box"], "validation": ["ball"]}')
    assert load_tree(tree, DataConfig()).validation == ["ball"]
    assert load_tree(tree, DataConfig(validation_classes=0)).validation == []


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
    assert prompt_name("car_(sedan)") == "car (sedan)"
    assert normal_name("T-Shirt") == normal_name("t_shirt")


def parted(tree):
    """The same pictures as {train,val}/{sketch,photo}/<class>/*."""
    root = tree.parent / "parted"
    for modality in ("sketch", "photo"):
        for folder in (tree / modality).iterdir():
            shutil.copytree(
                folder, root / ("val" if folder.name in ("box", "cone") else "train") / modality / folder.name
            )
    return root


def test_folders_train_and_val(tree):
    root = parted(tree)
    loaded = load_tree(root, DataConfig())
    assert loaded.unseen == ["box", "cone"] and len(loaded.seen) + len(loaded.validation) == 6
    assert (len(loaded.sketches), len(loaded.photos)) == (24, 16)
    assert load_tree(root, DataConfig(unseen=("ball",))).unseen == ["ball"]
    shutil.copytree(root / "train/sketch/ball", root / "val/sketch/ball")
    with pytest.raises(UserError, match="classes in train/ and outside it: ball; name the unseen ones"):
        load_tree(root, DataConfig())
    # With a split of its own the folders are just a pool.
    loaded = load_tree(root, DataConfig(unseen=("ball",)))
    assert len(loaded.items(["ball"])[0]) == 6
    (root / "dataset.json").write_text('{"unseen": ["dash"]}')
    assert load_tree(root, DataConfig()).unseen == ["dash"]
    shutil.rmtree(root / "val/photo")
    with pytest.raises(UserError, match="val: expected sketch/<class>/ and photo/<class>/, but there is no photo/"):
        load_tree(root, DataConfig())


def test_trees_have_no_named_split(tree):
    loaded = load_tree(tree, DataConfig())
    assert (loaded.dataset, loaded.split) == ("tree", "")
    with pytest.raises(UserError, match="--data.split 2: only sketchy, tuberlin and quickdraw have splits"):
        load_tree(tree, DataConfig(split="2"))


def test_unpaired_sketches(tree):
    (tree / "instances.csv").write_text("path,instance\nsketch/box/0.png,a\nphoto/box/1.jpg,a\n")
    loaded = load_tree(tree, DataConfig())
    left = unpaired(*loaded.items(["box"]))
    assert [p.name for p in left] == ["1.png", "2.png"]


def test_captions(tree):
    path = tree / "captions.txt"
    path.write_bytes("\ufeffbox\ta cardboard  box\r\n\nRed ball\tépicé ball\n".encode())
    loaded = load_tree(tree, DataConfig(captions=path))
    words = dict(zip(loaded.classes, loaded.texts, strict=True))
    assert (words["box"], words["red_ball"], words["red-box"]) == ("a cardboard box", "épicé ball", "red box")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"box\tbox\ncaf\xe9\tcup\n", r"captions.txt: line 2 is not UTF-8"),
        (b"box a box\n", r"captions.txt: line 1 is not `class<TAB>words`: box a box"),
        (b"\n\nbox\t \n", r"line 3 is not `class<TAB>words`"),
        (b"zebra\tstripes\n", r"captions.txt: line 1: no class zebra"),
        (b"red_ball\tx\nred ball\ty\n", r"line 2 names the class red_ball again"),
    ],
)
def test_malformed_captions(tree, data, message):
    (tree / "captions.txt").write_bytes(data)
    with pytest.raises(UserError, match=message):
        load_tree(tree, DataConfig(captions=tree / "captions.txt"))


def test_missing_captions(tree):
    with pytest.raises(UserError, match="none.txt: cannot read the captions: No such file"):
        load_tree(tree, DataConfig(captions=tree / "none.txt"))


def test_nested_and_hidden_pictures(tree):
    folder = tree / "photo" / "box"
    (folder / "a").mkdir()
    for name in ("a/1.jpg", "b.JPEG", "._b.jpg", "notes.txt"):
        (folder / name).touch()
    loaded = load_tree(tree, DataConfig())
    names = [p.relative_to(folder).as_posix() for p in loaded.items(["box"])[1].paths]
    assert names == ["0.jpg", "1.jpg", "a/1.jpg", "b.JPEG"]


def test_check_verb(cli, tree):
    (tree / "photo" / "box" / "bad.png").write_bytes(b"x")
    code, out, _ = cli("data", "check", "--root", tree)
    assert code == 0 and "8 classes, 24 sketches, 17 photos" in out
    code, out, _ = cli("data", "check", "--root", tree, "--decode")
    assert (
        code == 1
        and "bad.png: not a picture, damaged, or of a format that is not read" in out
        and "unreadable pictures: 1 of 41" in out
    )
