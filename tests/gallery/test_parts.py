"""Queries of several parts: weights, what is not meant, and what makes no query."""

import numpy as np
import pytest
from gallery_faults import MODEL, PixelEncoder, paint

from splip.errors import UserError
from splip.gallery import Gallery
from splip.gallery.parts import Part, between, mix, name, weighted


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    paths = [tmp_path_factory.mktemp("photos") / f"{n}.png" for n in range(12)]
    for n, path in enumerate(paths):
        paint(path, n)
    return paths


@pytest.fixture(scope="module")
def gallery(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    (folder / "model").write_bytes(MODEL)
    with Gallery.create(folder / "gallery", folder / "model", encoder=PixelEncoder()) as made:
        made.add(photos)
        yield made


def test_the_sum_of_weighted_vectors(gallery, photos):
    parts = [
        Part("text", "red", 0.3),
        Part("photo", photos[2]),
        Part("sketch", str(photos[5]), 2),
        Part("item", 4, -0.5),
    ]
    got = gallery.compose(parts)
    vectors = [
        gallery.embed(texts=["red"]),
        *(gallery.embed(photos=[photos[n]]) for n in (2, 5)),
        gallery.vector(4)[None],
    ]
    want = 0.3 * vectors[0] + vectors[1] + 2 * vectors[2] - 0.5 * vectors[3]
    assert got.dtype == np.float32 and got.shape == (1, gallery.dim)
    np.testing.assert_allclose(got, want / np.linalg.norm(want), atol=1e-6)
    np.testing.assert_allclose(
        gallery.compose([Part("photo", photos[2], 7)]), vectors[1], atol=1e-6
    )  # one alone: no weight


def test_what_is_not_meant_falls(gallery, photos):
    near, other = photos[3].read_bytes(), photos[8]

    def rank(*parts):
        found = gallery.search_vectors(gallery.compose([Part("photo", near), *parts]), 12)[0]
        return [m.path for m in found].index(other)

    plain = rank()
    assert rank(Part("photo", other)) <= 1  # like both: these two come first
    assert rank(Part("photo", other, -0.5)) == 11 >= plain


def test_refusals(gallery, photos):
    for parts, message in (
        ([], "nothing to search for"),
        ([Part("text", "red", -1)], "only things that are not looked for"),
        ([Part("text", "red", 0)], "weight of text 'red':0: a number other than 0"),
        ([Part("text", "red", float("nan"))], "weight of text 'red':nan"),
        ([Part("text", "red"), Part("text", "red", -1)], "cancel out: text 'red', not text 'red':1"),
        ([Part("sound", "moo")], "not 'sound'"),
        ([Part("text", photos[0])], "a text of a query must be words"),
        ([Part("item", 99)], "item '99': there is no such item"),
        ([Part("photo", "none.png")], "none.png: no such file"),
        ([Part("text", "red", "2")], "weight of a text: a number, not str"),
        ([Part("item", "4")], "an item of a query is a number, not str"),
    ):
        with pytest.raises(UserError, match=message):
            gallery.compose(parts)
    with pytest.raises(UserError, match="cancel out"):
        mix([Part("item", 1), Part("item", 2)], np.array([[1, 0], [-1, 0.01]], np.float32))


def test_weights_behind_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:2").touch()
    assert weighted("a.png", False) == ("a.png", 1) and weighted("a.png", True) == ("a.png", -0.5)
    assert weighted("a.png:0.25", False) == ("a.png", 0.25) and weighted("red:2", True) == ("red", -2)
    assert weighted("a:2", False) == ("a:2", 1) and weighted("a:2:3", False) == ("a:2", 3)  # a file that is called so
    assert weighted("C:picture.png", False) == ("C:picture.png", 1) and weighted(":3", False) == (":3", 1)
    for plain in ("16:9", "clock at 12:30", "a:nan", "x:-1", "x" * 300 + ": y", "café:²"):
        assert weighted(plain, False, words=True) == (plain, 1)
    assert weighted("at 12:30:2", False, words=True) == ("at 12:30:2", 1) and weighted("red:.5", True, words=True) == (
        "red",
        -0.5,
    )
    assert weighted("x" * 300 + ":2", False)[1] == 2  # a name that no file can have
    for wrong in ("a.png:0", "a.png:1001", "a.png:-1"):
        with pytest.raises(UserError, match="a weight is above 0"):
            weighted(wrong, False)
    assert name(Part("photo", "c.jpg", -0.3)) == "not photo 'c.jpg':0.3" and name(Part("text", "red")) == "text 'red'"


def test_pictures_and_their_words_are_mixed():
    rng = np.random.default_rng(0)
    pictures, words = (
        v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.standard_normal((2, 5, 8)).astype("f4")
    )
    for weight in (0.0, 0.3, 1.0):
        mixed = between(pictures, words, weight)
        assert mixed.dtype == np.float32 and mixed.shape == (5, 8)
        want = (1 - weight) * pictures.astype(float) + weight * words
        np.testing.assert_allclose(mixed, want / np.linalg.norm(want, axis=1, keepdims=True), atol=1e-6)
        np.testing.assert_array_equal(between(pictures[2], words[2], weight), mixed[2])
    assert not between(pictures, -pictures, 0.5).any(), "nothing is left, and nothing is not a number"
