import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import draw
from PIL import Image

from splip import images, pictures, train
from splip.evaluate import embed
from splip.index import Gallery
from splip.model import load_model


@pytest.fixture
def checkpoint(settings):
    return train.train(settings)


@pytest.fixture
def gallery(checkpoint, tree, tmp_path, cli):
    folder = tmp_path / "gallery"
    code, out, err = cli("index", tree / "photo", "--checkpoint", checkpoint, "--gallery", folder)
    assert code == 0, err
    assert "16 photos" in out
    return folder


def test_search_equals_a_full_ranking(gallery, tree):
    opened = Gallery.load(gallery)
    sketch = tree / "sketch" / "cone" / "1.png"
    matches = opened.search_files([sketch], k=16)[0]
    model = load_model(gallery / "model.pt")
    photos = pictures.Pictures(images.find([tree / "photo"]), 64)
    features = embed(photos, model.encode_photo, torch.device("cpu"))
    query = embed(pictures.Pictures([sketch], 64), model.encode_sketch, torch.device("cpu"))
    scores = (query @ features.T)[0]
    assert len({m.path for m in matches}) == 16
    assert [m.score for m in matches] == sorted((m.score for m in matches), reverse=True)
    for match in matches:
        assert match.path == photos.paths[match.index].absolute()
        assert match.score == pytest.approx(float(scores[match.index]), abs=1e-5)


def test_search_prints_and_draws(gallery, tmp_path, cli):
    draw(tmp_path / "my.png", 4, "black", 3, size=(90, 60))  # a drawing that no folder holds
    code, out, _ = cli(
        "search", "--gallery", gallery, "--sketch", tmp_path / "my.png", "-k", "5", "--grid", tmp_path / "o.png"
    )
    lines = out.splitlines()
    assert code == 0 and lines[0] == str(tmp_path / "my.png") and len(lines) == 6
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3", "4", "5"]
    assert all(line.split()[2].endswith(".jpg") for line in lines[1:])
    assert Image.open(tmp_path / "o.png").width > 500
    code, out, _ = cli("search", "--gallery", gallery, "--sketch", tmp_path / "my.png", tmp_path / "my.png", "--json")
    report = json.loads(out)
    assert len(report) == 2 and len(report[0]["matches"]) == 10 and report[0]["matches"][0]["rank"] == 1


def test_unreadable_photos_are_listed(checkpoint, tree, tmp_path, cli):
    (tree / "photo" / "box" / "cut.jpg").write_bytes((tree / "photo" / "box" / "0.jpg").read_bytes()[:300])
    (tree / "photo" / "box" / "zero.png").touch()
    code, out, _ = cli("index", tree / "photo", "--checkpoint", checkpoint, "--gallery", tmp_path / "g")
    assert code == 0 and "16 photos" in out and "left out 2 unreadable pictures" in out
    skipped = (tmp_path / "g" / "skipped.txt").read_text()
    assert "cut.jpg\t" in skipped and "zero.png\tthe file is empty" in skipped


def test_odd_file_names(checkpoint, tree, tmp_path, cli):
    odd = [b"caf\xe9.png", "a\u2028b.png".encode(), b"two\nlines.png"]
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in odd:
        shutil.copy(tree / "sketch" / "ball" / "0.png", folder / os.fsdecode(name))
    (folder / os.fsdecode(b"bad\xe9.png")).touch()
    gallery = tmp_path / "g"
    assert cli("index", folder, "--checkpoint", checkpoint, "--gallery", gallery)[0] == 0
    found = Gallery.load(gallery).search_files([tree / "sketch" / "ball" / "0.png"], k=3)[0]
    assert {os.fsencode(m.path.name) for m in found} == set(odd) and all(m.path.is_file() for m in found)
    assert b"bad\xe9.png" in (gallery / "skipped.txt").read_bytes()


def test_existing_gallery_is_kept(gallery, checkpoint, tree, refused, cli):
    before = (gallery / "gallery.json").read_bytes()
    args = ("index", tree / "photo" / "box", "--checkpoint", checkpoint, "--gallery", gallery)
    assert "exists already; add --overwrite" in refused(*args)
    assert (gallery / "gallery.json").read_bytes() == before
    assert cli(*args, "--overwrite")[0] == 0
    assert len(Gallery.load(gallery)) == 2
    assert not [p for p in gallery.parent.iterdir() if p.name.startswith(".gallery")]
    (gallery / "gallery.json").unlink()
    assert "exists already; and is not a gallery" in refused(*args, "--overwrite")


def test_bad_index_input(checkpoint, tree, tmp_path, refused):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"x")
    options = ("--checkpoint", checkpoint, "--gallery", tmp_path / "g")
    assert "no pictures in" in refused("index", tmp_path / "empty", *options)
    assert "nowhere: no such folder" in refused("index", tmp_path / "nowhere", *options)
    assert "batch_size must be at least 1" in refused("index", tree / "photo", *options, "--batch-size", "0")
    assert "none of the 1 pictures can be read" in refused("index", tmp_path / "bad", *options)
    other = ("--checkpoint", tmp_path / "no.pt", "--gallery", tmp_path / "g")
    assert "no checkpoint" in refused("index", tree / "photo", *other)
    assert not (tmp_path / "g").exists()


def test_bad_searches(gallery, tree, tmp_path, refused):
    sketch = tree / "sketch" / "cone" / "1.png"
    assert "k must be between 1 and the gallery's 16 photos, got 17" in refused(
        "search", "--gallery", gallery, "--sketch", sketch, "-k", "17"
    )
    assert "got 0" in refused("search", "--gallery", gallery, "--sketch", sketch, "-k", "0")
    assert "no such file" in refused("search", "--gallery", gallery, "--sketch", tmp_path / "no.png")
    (tmp_path / "zero.png").touch()
    assert "zero.png: the file is empty" in refused("search", "--gallery", gallery, "--sketch", tmp_path / "zero.png")
    Image.new("RGB", (30, 30), "white").save(tmp_path / "white.png")
    assert "nothing is drawn" in refused("search", "--gallery", gallery, "--sketch", tmp_path / "white.png")
    assert "not a gallery" in refused("search", "--gallery", tmp_path, "--sketch", sketch)
    grid = tmp_path / "o.unknown"
    assert "cannot write picture" in refused("search", "--gallery", gallery, "--sketch", sketch, "--grid", grid)


def test_damaged_galleries(gallery, tree, refused):
    search = ("search", "--gallery", gallery, "--sketch", tree / "sketch" / "cone" / "1.png")
    vectors = np.load(gallery / "vectors.npy")
    np.save(gallery / "vectors.npy", vectors[:3])
    assert "damaged gallery: 3 vectors, 16 paths" in refused(*search)
    (gallery / "vectors.npy").write_bytes(b"")
    assert "damaged gallery" in refused(*search)
    np.save(gallery / "vectors.npy", vectors)
    meta = json.loads((gallery / "gallery.json").read_text())
    for change, message in (({"count": 0}, "the gallery is empty"), ({"format": 9}, "gallery format 9")):
        (gallery / "gallery.json").write_text(json.dumps({**meta, **change}))
        assert message in refused(*search)
    (gallery / "gallery.json").write_text(json.dumps(meta))
    (gallery / "model.pt").write_bytes(b"other")
    assert "model.pt is not the model" in refused(*search)


def test_eval_verb(checkpoint, settings, tmp_path, cli, refused, tree):
    report, grid = tmp_path / "r.json", tmp_path / "g.png"
    code, out, err = cli("eval", "--checkpoint", checkpoint, "--baselines", "--json", report, "--grid", grid)
    assert code == 0, err
    for row in ("chance", "raw pixels", "HOG", "plain splip-tiny", "SpLIP", "mAP@all"):
        assert row in out
    values = json.loads(report.read_text())
    assert values["queries"] == 6 and values["gallery"] == 4 and values["classes"] == ["box", "cone"]
    assert values["query_mean"]["raw pixels"]["mAP@all"] > values["query_mean"]["chance"]["mAP@all"]
    assert grid.stat().st_size > 1000
    # A tree whose unseen classes were trained on is not a zero-shot test.
    run = settings.out.parent / "other"
    train.train(dataclasses.replace(settings, out=run, data=dataclasses.replace(settings.data, unseen=("box",))))
    copy = tmp_path / "copy"
    shutil.copytree(tree, copy)
    for folder in ("sketch", "photo"):
        shutil.rmtree(copy / folder / "box")
        (copy / folder / "ball").rename(copy / folder / "box")
    (copy / "dataset.json").write_text('{"classes": {"box": "ball"}}')
    args = ("eval", "--checkpoint", run / "best.pt", "--root", copy)
    assert "was trained on classes to be measured: ball" in refused(*args)
    (copy / "dataset.json").write_text('{"classes": {"box": "pole"}}')
    assert "was chosen by classes to be measured: pole" in refused(*args)
