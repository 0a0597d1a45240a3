import csv
import hashlib
import json

import pytest
from PIL import Image

from splip.data import sample
from splip.data.config import DataConfig, SampleConfig
from splip.data.trees import load_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "a sample"
    sample.unpack(SampleConfig(root))
    return root


def digest(root):
    parts = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        parts.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return parts.hexdigest()


def test_what_is_in_it(tree):
    loaded = load_tree(tree, DataConfig())
    assert len(loaded.classes) == 102 and len(loaded.sketches) == len(loaded.photos) == 738 * 3
    assert len(loaded.unseen) == 24 and len(loaded.seen) == 66 and len(loaded.validation) == 12
    sketches, photos = loaded.items(loaded.unseen)
    assert len(sketches) == len(photos) == 564
    assert set(loaded.sketches.instances) == set(loaded.photos.instances)
    assert loaded.texts[loaded.classes.index("waterbird")] == "water bird"
    assert {Image.open(p).size for p in loaded.photos.paths[:50]} == {(64, 64)}


def test_split_is_the_one_of_the_index(tree):
    meta = json.loads((tree / "dataset.json").read_text())
    for row in sample.things():
        assert row["class"] in meta[row["split"]]
    assert set(meta["validation"]) <= set(meta["seen"]) and not set(meta["seen"]) & set(meta["unseen"])


def test_near_duplicates_share_an_instance(tree):
    with open(tree / "instances.csv", newline="") as file:
        instance = {r["path"]: r["instance"] for r in csv.DictReader(file)}
    groups = [r for r in sample.things() if r["dup_group"]]
    assert groups
    for row in groups:
        twin = f"photo/{row['class']}/{row['dup_group']}-noto.png"
        assert instance[f"sketch/{row['class']}/{row['codepoint']}-1.png"] == instance[twin]


def test_deterministic_and_repeatable(tree, tmp_path):
    sample.unpack(SampleConfig(tmp_path / "other"))
    before = digest(tree)
    assert digest(tmp_path / "other") == before
    sample.unpack(SampleConfig(tree))
    assert digest(tree) == before


def test_licences_travel_along(tree):
    text = (tree / "LICENSES.md").read_text()
    for word in ("OpenMoji", "CC BY-SA 4.0", "Noto", "Apache License 2.0", "Twemoji", "CC BY 4.0", "Fluent", "MIT"):
        assert word in text
    for name in ("Apache-2.0.txt", "MIT.txt", "CC-BY-SA-4.0.txt"):
        assert (tree / "licenses" / name).stat().st_size > 500


@pytest.mark.exhaustive
def test_stopped_unpacking_is_done_again(tree, tmp_path, monkeypatch):
    def stop(items, label):
        yield from items[:2]
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "track", stop)
    with pytest.raises(KeyboardInterrupt):
        sample.unpack(SampleConfig(tmp_path / "s"))
    monkeypatch.undo()
    sample.unpack(SampleConfig(tmp_path / "s"))
    assert digest(tmp_path / "s") == digest(tree)


def test_a_tree_of_ones_own_is_left_alone(tmp_path, refused):
    (tmp_path / "dataset.json").write_text('{"unseen": ["box"]}')
    assert "does not hold the sample" in refused("data", "sample", "--out", tmp_path)
    assert (tmp_path / "dataset.json").read_text() == '{"unseen": ["box"]}'


def test_foreign_folder_is_left_alone(tmp_path, refused):
    (tmp_path / "letter.txt").write_text("dear")
    assert "is not empty and does not hold the sample" in refused("data", "sample", "--out", tmp_path)
    assert "exists and is not a folder" in refused("data", "sample", "--out", tmp_path / "letter.txt")
