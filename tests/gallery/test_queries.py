"""What all galleries do with queries: the model, loaded late and the right one, and queries as vectors."""

import threading
import time

import numpy as np
import pytest
from gallery_faults import DIM, MODEL, PixelEncoder, paint
from PIL import Image

from splip.encoders.encoder import Encoder
from splip.errors import UserError
from splip.gallery import Filter
from splip.gallery.queries import QueryEncoder, checked


class Asked(QueryEncoder):
    """A gallery of nothing, which remembers what it was asked."""

    def search_vectors(self, vectors, k=10, filter=None):
        self.asked = vectors, k, filter
        return []

    def vector(self, id):
        raise KeyError(id)

    def close(self):
        self.close_encoder()


@pytest.fixture
def make(tmp_path):
    facts = {"dim": DIM, "model": PixelEncoder().name, "identity": PixelEncoder().identity, "decoding": 2}

    def create(encoder=None, **changes):
        return Asked("here", facts | changes, lambda: tmp_path / "model.pt", encoder=encoder)

    return create


def test_the_model_is_loaded_once_when_it_is_needed_and_closed(make, monkeypatch, tmp_path):
    loaded, closed = [], []

    def load(path, engine, *, device):
        time.sleep(0.05)
        loaded.append((path, engine, device))
        encoder = PixelEncoder()
        encoder.close = lambda: closed.append(encoder)
        return encoder

    monkeypatch.setattr(Encoder, "load", load)
    with make() as gallery:
        assert not loaded
        threads = [threading.Thread(target=lambda: gallery.encoder) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert loaded == [(tmp_path / "model.pt", "auto", "auto")] and not closed
        encoder = gallery.encoder
    assert closed == [encoder]
    gallery.close()
    assert closed == [encoder]


def test_a_given_encoder_stays_open(make):
    encoder, closed = PixelEncoder(), []
    encoder.close = lambda: closed.append(encoder)
    with make(encoder) as gallery:
        assert gallery.encoder is encoder
    assert not closed


def test_another_model_is_refused(make, monkeypatch):
    with pytest.raises(UserError, match="here was made with .*, not with .*: vectors of two models"):
        make(PixelEncoder(b"other"))
    with pytest.raises(UserError, match=f"here: vectors of width 7, model of {DIM}"):
        make(PixelEncoder(MODEL), dim=7)
    monkeypatch.setattr(Encoder, "load", lambda *_, **__: PixelEncoder(b"other"))
    with pytest.raises(UserError, match="cannot be compared"):
        make().encoder  # noqa: B018


def test_queries_as_vectors(make, tmp_path):
    paint(tmp_path / "a.png", 1)
    paint(tmp_path / "b.png", 2)
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    gallery = make(PixelEncoder())
    one, two = gallery.embed(photos=[a]), gallery.embed(photos=[b])
    assert one.shape == (1, DIM) and one.dtype == np.float32
    for same in (str(a), a.read_bytes(), Image.open(a)):
        np.testing.assert_array_equal(gallery.embed(photos=[same]), one)
    np.testing.assert_array_equal(gallery.embed(sketches=[a], photos=[b]), np.concatenate([one, two]))
    words = gallery.embed(texts=["red", "blue"])
    mixed = 0.75 * np.concatenate([one, two]) + 0.25 * words
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    np.testing.assert_allclose(gallery.embed(photos=[a, b], texts=["red", "blue"], text_weight=0.25), mixed, atol=1e-6)
    assert gallery.embed().shape == (0, DIM)
    gallery.search(photos=[a], k=3, filter=Filter(labels=("x",)))
    vectors, k, filter = gallery.asked
    np.testing.assert_array_equal(vectors, one)
    assert k == 3 and filter == Filter(labels=("x",))


def test_queries_that_cannot_be_answered(make, tmp_path):
    Image.new("RGB", (20, 20), "white").save(tmp_path / "white.png")
    gallery = make(PixelEncoder())
    for given, message in (
        (
            {"sketches": tmp_path / "white.png", "photos": tmp_path / "white.png"},
            "a sketch and a photo are two queries",
        ),
        ({"sketches": "a red car"}, "cannot read picture a red car: no such file; words are searched for as a text"),
        ({"photos": np.zeros((4, 4))}, r"an array as a picture must be uint8 .*, got float64 \[4, 4\]"),
        ({"photos": np.zeros((4, 4, 2), np.uint8)}, r"got uint8 \[4, 4, 2\]"),
        ({"photos": np.zeros((1, 4, 4, 3), np.uint8)}, r"got uint8 \[1, 4, 4, 3\]"),
        ({"texts": ["a"], "text_weight": 1.5}, "text_weight must be between 0 and 1"),
        ({"photos": [tmp_path / "white.png"], "texts": ["a", "b"]}, "2 texts for 1 pictures"),
        ({"sketches": [tmp_path / "white.png"]}, "white.png: nothing is drawn on it"),
        ({"photos": [tmp_path / "none.png"]}, "none.png"),
        ({"vectors": np.ones((1, DIM)), "texts": ["a"]}, "vectors cannot be combined"),
    ):
        with pytest.raises(UserError, match=message):
            gallery.search(**given)


def test_what_a_search_is_asked_is_checked():
    few, one = Filter(labels=("x",)), np.ones((1, 3))
    queries, filters = checked(np.ones((2, 3), np.float64)[:, ::-1], 3, 1, few)
    assert queries.dtype == np.float32 and queries.flags.c_contiguous and filters == [few, few]
    assert checked(one, 3, 7, [None], 7)[1] == [None]
    for vectors, k, filter, most, message in (
        (np.ones(3), 1, None, None, r"vectors must be \[Q, 3\], got \[3\]"),
        (np.ones((1, 4)), 1, None, None, r"got \[1, 4\]"),
        (np.full((1, 3), np.inf), 1, None, None, "finite"),
        (one, 0, None, None, "k must be at least 1, got 0"),
        (one, 0, None, 7, "k must be between 1 and 7, got 0"),
        (one, 8, None, 7, "k must be between 1 and 7, got 8"),
        (one, 1, [None, None], None, "2 filters for 1 queries"),
    ):
        with pytest.raises(UserError, match=message):
            checked(vectors, 3, k, filter, most)
