"""What ``splip search`` says of its answers."""

import json

import numpy as np
import pytest
from PIL import Image

from splip.cli import answers
from splip.cli.main import main
from splip.encoders import Encoder
from splip.gallery import Gallery
from splip.images import grid


@pytest.fixture(scope="module")
def encoder():
    return Encoder.load("splip-tiny-3", device="cpu")


@pytest.fixture(autouse=True)
def loaded(encoder, monkeypatch):
    """Loading takes a second, and each command would."""
    monkeypatch.setattr(Encoder, "load", classmethod(lambda *_, **__: encoder))
    monkeypatch.setattr(Encoder, "close", lambda _: None)


@pytest.fixture(scope="module")
def gallery(sample, encoder, tmp_path_factory):
    names = ["guitar", "camel", "elephant", "leaf", "star", "train", "pen", "shirt"]
    pictures = [path for name in names for path in sorted((sample / "photo" / name).glob("*.png"))[:9]]
    with Gallery.create(tmp_path_factory.mktemp("g") / "gallery", "splip-tiny-3", encoder=encoder) as made:
        made.add(pictures)
    return made.folder


def ask(gallery, *arguments):
    return main(["search", "--gallery", str(gallery), "--device", "cpu", "--k", "3", *map(str, arguments)])


def drawing(sample, name):
    return sorted((sample / "sketch" / name).glob("*-1.png"))[0]


def test_lines_and_marks(gallery, sample, capsys):
    assert ask(gallery, "--sketch", drawing(sample, "guitar"), drawing(sample, "wine_glass")) == 0
    there, missing = capsys.readouterr().out.split(str(drawing(sample, "wine_glass")))
    assert "probably not: any of these" not in there and "  /" in there.splitlines()[1]
    lines = missing.splitlines()
    assert lines[1].startswith("       probably not: any of these; what fits scores 0.")
    assert len(lines) == 5 and all("? /" in line for line in lines[2:])


def test_words_that_were_never_shown(gallery, capsys):
    assert ask(gallery, "--text", "a red helicopter", "elephants") == 0
    out = capsys.readouterr().out
    assert out.count("this model has never been shown the word 'helicopter'; it knows 1,223 nouns") == 1
    assert "elephants" in out and "'elephants'" not in out
    assert ask(gallery, "--text", "zeppelin:0.5", "elephant:2", "--not-text", "blimp", "--json") == 0
    (answer,) = json.loads(capsys.readouterr().out)["queries"]
    assert answer["unknown_words"] == ["zeppelin", "blimp"] and answer["cutoff"] is None
    assert [m["likely"] for m in answer["matches"]] == [None] * 3


def test_json_says_the_same(gallery, sample, capsys):
    assert ask(gallery, "--sketch", drawing(sample, "guitar"), "--json") == 0
    (answer,) = json.loads(capsys.readouterr().out)["queries"]
    assert answer["unknown_words"] == [] and 0 < answer["cutoff"] < 1
    assert [m["likely"] for m in answer["matches"]] == [m["score"] >= answer["cutoff"] for m in answer["matches"]]


def test_heat_over_the_grid(gallery, sample, tmp_path, capsys):
    plain, why = tmp_path / "plain.png", tmp_path / "why.png"
    query = ("--sketch", drawing(sample, "guitar"), "--text", "guitar")
    assert ask(gallery, *query, "--grid", plain) == 0 and ask(gallery, *query, "--grid", why, "--explain") == 0
    with Image.open(plain) as a, Image.open(why) as b:
        assert b.width == a.width and b.height > a.height  # the legend
        one, two = (np.asarray(image.convert("RGB"), dtype=int)[: a.height] for image in (a, b))
    cells = [grid.GAP, *(grid.GAP * 3 + grid.CELL + c * (grid.CELL + grid.GAP) for c in range(3))]
    for x in cells:
        red = two[:, x : x + grid.CELL, 0] - two[:, x : x + grid.CELL, 2]
        assert red.max() > 100 and (one != two)[:, x : x + grid.CELL].any()
    assert ask(gallery, "--text", "guitar", "--grid", why, "--explain") == 0  # a query without a picture
    weighted = ("--photo", f"{drawing(sample, 'star')}:0.5", "--not-sketch", drawing(sample, "pen"))
    assert ask(gallery, *weighted, "--grid", why, "--explain") == 0


def test_explain_needs_a_grid(gallery, sample, capsys):
    assert ask(gallery, "--sketch", drawing(sample, "guitar"), "--explain") == 2
    assert "--explain draws into the picture of --grid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "box", "red"),
    [
        ((100, 100), (0.0, 0.0, 1.0, 1.0), (0.75, 0.25)),
        ((200, 100), (0.0, -0.5, 1.0, 1.5), (0.75, 0.0)),  # padded above and below: the upper half is partly outside
        ((200, 100), (0.25, 0.0, 0.75, 1.0), (0.625, 0.25)),  # the middle was cropped out
    ],
)
def test_heat_lies_where_the_box_says(size, box, red):
    """The upper right quarter of what the model saw is hot."""
    heat = np.zeros((8, 8), np.float32)
    heat[1:3, 5:7] = 1
    drawn = np.asarray(answers.cover(Image.new("RGB", size, "white"), heat, box), dtype=int)
    blue = drawn[..., 2]  # white stays white
    row, column = np.unravel_index(blue.argmin(), blue.shape)
    assert column / drawn.shape[1] == pytest.approx(red[0], abs=0.1)
    assert row / drawn.shape[0] == pytest.approx(red[1], abs=0.13)
    assert drawn.shape[1] == answers.SIDE and drawn.shape[0] * size[0] == pytest.approx(answers.SIDE * size[1])
    assert blue[-1, 0] > 250 and blue[-1, -1] > 250
