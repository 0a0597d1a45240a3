"""Galleries of shorter vectors: what is kept is theirs, and nothing else can be compared with it."""

import json

import numpy as np
import pytest
from checkpoints import save_model

from splip.encoders.encoder import Encoder
from splip.errors import UserError
from splip.gallery.gallery import Gallery


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "nested.pt", 0, sizes=(32, 64))


@pytest.fixture
def gallery(model, tree, tmp_path, cli):
    folder = tmp_path / "gallery"
    add = ("index", "add", tree / "photo", "--model", model, "--gallery", folder, "--dimensions", "32")
    code, out, err = cli(*add)
    assert code == 0 and "16 pictures (16 new)" in out, err
    return folder


def test_searches_use_the_size_of_the_gallery(gallery, model, tree, cli):
    sketch = tree / "sketch" / "cone" / "1.png"
    with Gallery.open(gallery) as opened:
        assert opened.dim == 32 and opened.model == "nested.pt (splip-tiny, splip), 32 of 256 dimensions"
        encoder = Encoder.load(model)
        pixels = np.stack([opened.prepare(sketch, "sketch")])
        head = encoder.encode(pixels, "sketch")[0, :32]
        photos = {item.id: opened.vector(item.id) for item in opened.items()}
        assert all(np.isclose(np.linalg.norm(vector), 1) for vector in photos.values())
        scores = {id: vector @ head / np.linalg.norm(head) for id, vector in photos.items()}
        found = opened.search([sketch], k=16)[0]
        assert [m.id for m in found] == sorted(scores, key=lambda id: (-round(scores[id], 6), id))
        assert [m.score for m in found] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-5)
        assert opened.search(texts=["cone"], k=1)[0][0].score == pytest.approx(
            max(vector @ encoder.sized(32).encode_text(["cone"])[0] for vector in photos.values()), abs=1e-5
        )
    answer = json.loads(cli("search", "--gallery", gallery, "--sketch", sketch, "--json", "-k", "16")[1])
    assert [m["id"] for m in answer["queries"][0]["matches"]] == [m.id for m in found]
    code, out, _ = cli("index", "check", "--gallery", gallery)  # the checkpoint's copy is known by its own hash
    assert code == 0 and "in order" in out


def test_more_pictures_come_at_that_size(gallery, model, tree, tmp_path, cli, refused):
    add = ("index", "add", tree / "sketch", "--gallery", gallery)
    assert cli(*add)[0] == 0 and cli(*add, "--dimensions", "32")[0] == 0
    message = "has vectors of 32 dimensions; --dimensions 64 takes a new gallery"
    assert message in refused(*add, "--dimensions", "64")
    new = ("index", "add", tree / "photo", "--model", model, "--gallery", tmp_path / "new", "--dimensions", "48")
    assert "was not trained for 48 dimensions, only for 32, 64, 256" in refused(*new)
    assert not (tmp_path / "new").exists()


def test_vectors_of_another_size_are_refused(gallery, model, tmp_path):
    with Gallery.open(gallery) as opened, pytest.raises(UserError, match=r"vectors must be \[Q, 32\], got \[1, 64\]"):
        opened.search_vectors(np.ones((1, 64), np.float32))
    whole = Encoder.load(model)
    for encoder in (whole, whole.sized(64)):  # either can give what the gallery needs
        with Gallery.open(gallery, encoder=encoder) as opened:
            assert opened.encoder.embed_dim == 32 and encoder.embed_dim != 32
    with Gallery.create(tmp_path / "whole", model, encoder=whole.sized(64), dimensions=256) as made:
        assert made.dim == 256 and made.identity == whole.identity
        assert {opened.identity, made.identity} == {whole.identity, f"{whole.identity}/32"}
    other = save_model(tmp_path / "other.pt", 1)  # has no such size
    with pytest.raises(UserError, match="vectors of two models cannot be compared"):
        Gallery.open(gallery, encoder=Encoder.load(other))
