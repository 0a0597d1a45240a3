"""The corpus builder: which names stand for things, what is held back, and the packages that it reads."""

import json
import struct
import zlib

import build_icons
import icon_packages
import numpy as np
import pytest
from icon_names import classes, split
from PIL import Image, ImageDraw

from splip.errors import UserError


@pytest.mark.parametrize(
    ("name", "noun"),
    [
        ("cat", 5),
        ("cat-bold-duotone", 5),
        ("CatFace02", 5),
        ("cats", 5),
        ("mice", 11),  # an irregular plural, and the first of two senses
        ("computer-mouse-24-filled", 12),
        ("spinning-wheel", 7),  # one noun of two words, not its last
        ("bumbershoot", 10),
        ("cat-and-wheel", None),  # two things
        ("cat-off", None),  # of an interface
        ("nurse", None),  # people are left out
        ("note", None),  # nothing that can be seen
        ("quuxes", None),
        ("12", None),
    ],
)
def test_what_a_name_shows(nouns, name, noun):
    assert nouns.shows(name) == noun


def test_words_of_names():
    assert split("CatFace_01") == ["cat", "face", "01"]
    assert split("line-md:x2") == ["line", "md", "x", "2"]


def test_what_is_held_back(nouns):
    held = [nouns.held("unseen"), nouns.held("validation")]

    def why(*names):
        return build_icons.judged(list(names), nouns, held)

    assert why("cat") == (5, "")
    assert why("bears")[1] == "'bear' is a bear"  # a plural
    assert why("grizzly")[1] == "grizzly is a kind of bear"
    assert why("bumbershoot")[1] == "umbrella is another word for umbrella"
    assert why("cat", "a cat beneath an umbrella")[0] is None  # any word of any name
    assert why("something")[1].startswith("names no single thing")
    assert build_icons.allowed(nouns, 13, held) == ["tv"]  # 'receiver' is a word of phones


def test_classes_are_the_nearest_kinds_that_are_large(nouns):
    assert classes(nouns, [5, 11, 6, 7], least=2) == {5: 2, 11: 2, 6: 6, 7: 6}


def test_strokes_are_told_from_shapes():
    line, solid = (Image.new("RGBA", (96, 96), (0, 0, 0, 0)) for _ in range(2))
    ImageDraw.Draw(line).ellipse((10, 10, 86, 86), outline="black", width=7)
    ImageDraw.Draw(solid).ellipse((10, 10, 86, 86), fill="black")
    assert build_icons.stroke(line) == "line" and build_icons.stroke(solid) == "solid"


def test_drawing_is_capped_deterministic_and_goes_on(nouns, tmp_path, monkeypatch):
    row = icon_packages.Set("set", "p@1", "MIT", "coloured", "yes", "somebody")
    monkeypatch.setitem(build_icons.MOST, "coloured", 3)
    drawn = []

    def picture(number):
        def make():
            drawn.append(number)
            pixels = np.random.default_rng(number).integers(0, 255, (96, 96, 4), dtype=np.uint8)
            pixels[..., 3] = 255
            return Image.fromarray(pixels)

        return make

    found = [build_icons.Candidate(row, f"cat-{n}", 5, picture(n)) for n in range(6)]
    held = [nouns.held(split) for split in ("unseen", "validation")]
    rows, _ = build_icons.draw(found, nouns, tmp_path / "out", [0], held)
    assert len(rows) == 3 and len(drawn) == 3
    again, _ = build_icons.draw(found[::-1], nouns, tmp_path / "out", [0], held)
    assert again == rows and len(drawn) == 3  # nothing is drawn twice
    tested = [int(rows[0][-1], 16)]
    left, why = build_icons.draw(found, nouns, tmp_path / "out", tested, held)
    assert rows[0] not in left and why["looks like a test picture"] >= 1
    build_icons.write_list(tmp_path / "list.csv", rows)
    assert f"set/{rows[0][0].split('/')[1][:-4]}:{rows[0][-1]}" in (tmp_path / "list.csv").read_text()


def test_the_table_of_sets_is_open_and_pinned():
    rows = icon_packages.sets()
    assert len(rows) > 100 and len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.use in ("yes", "no", "share-alike", "reserved") and ("@" in row.package[1:] or "=" in row.package)
        assert row.use != "yes" or not row.licence.startswith(("GPL", "CC-BY-SA", "CC-BY-NC"))


def test_a_licence_that_changed_is_refused(tmp_path):
    (tmp_path / "info.json").write_text(json.dumps({"license": {"spdx": "GPL-3.0"}}))
    row = icon_packages.Set("set", "p@1", "MIT", "plain", "yes", "somebody")
    with pytest.raises(UserError, match=r"info.json: the licence is GPL-3.0, icon_sets.csv says MIT"):
        icon_packages.check_licence(tmp_path, row)


def test_qt_resources(tmp_path):
    """A file of a folder with two entries, one of them compressed, made by hand."""
    names, data, tree = b"", b"", b""
    places = []
    for name in ("animals", "cat.svg", "dog.png"):
        places.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    starts = []
    for body in (b"\0\0\0\4" + zlib.compress(b"meow"), b"woof"):
        starts.append(len(data))
        data += struct.pack(">I", len(body)) + body
    tree += struct.pack(">IHII", 0, 2, 1, 1)  # the root: one child, node 1
    tree += struct.pack(">IHII", places[0], 2, 2, 2)  # animals: two children from node 2
    tree += struct.pack(">IHHHI", places[1], 1, 0, 0, starts[0])
    tree += struct.pack(">IHHHI", places[2], 0, 0, 0, starts[1])
    head = struct.pack(">4s4I", b"qres", 1, 20, 20 + len(tree), 20 + len(tree) + len(data))
    path = tmp_path / "a.rcc"
    path.write_bytes(head + tree + data + names)
    assert list(icon_packages.qt_resources(path)) == [("/animals/cat.svg", b"meow"), ("/animals/dog.png", b"woof")]
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="not a Qt resource file"):
        list(icon_packages.qt_resources(path))
