"""Vectors made smaller: cut where training allows it, 8-bit, and bits; by whichever engine they come."""

import numpy as np
import pytest
import torch
from checkpoints import save_model

from splip import disk
from splip.encoders import compact
from splip.encoders.encoder import Encoder
from splip.errors import UserError
from splip.models import load_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "nested.pt", 0, sizes=(32, 64))


def pixels(count):
    return np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_vectors(count=20, dim=64):
    return unit(np.random.default_rng(0).standard_normal((count, dim))).astype(np.float32)


def test_first_components():
    vectors = random_vectors()
    np.testing.assert_allclose(compact.first(vectors, 16), unit(vectors[:, :16]), rtol=1e-6)
    assert compact.first(vectors, 64) is vectors and (compact.first(np.zeros((1, 8), np.float32), 4) == 0).all()


def test_int8_keeps_cosines_and_uses_its_range():
    vectors = random_vectors()
    found = compact.int8(vectors)
    assert found.dtype == np.int8 and (np.abs(found.astype(int)).max(axis=1) == 127).all()
    floats = unit(found.astype(np.float32))
    assert np.abs(floats @ floats.T - vectors @ vectors.T).max() < 0.01
    assert (compact.int8(np.zeros((1, 8), np.float32)) == 0).all() and compact.int8(vectors[:0]).shape == (0, 64)


def test_bits_are_the_signs():
    vectors = random_vectors()
    found = compact.ubinary(vectors)
    assert found.dtype == np.uint8 and found.shape == (20, 8)
    for vector, row in zip(vectors, found, strict=True):
        assert "".join(f"{byte:08b}" for byte in row) == "".join("1" if value > 0 else "0" for value in vector)
    signed = compact.binary(vectors)
    assert signed.dtype == np.int8 and (signed.astype(int) == found.astype(int) - 128).all()
    with pytest.raises(ValueError, match="multiple of 8, got 12"):
        compact.ubinary(vectors[:, :12])


def test_an_encoder_of_shorter_vectors(checkpoint):
    whole = Encoder.load(checkpoint, device="cpu")
    assert whole.dimensions == load_model(checkpoint).dimensions == (32, 64, 256)
    assert whole.embed_dim == 256 and whole.identity == disk.file_hash(checkpoint)
    for size in (32, 64):
        short = Encoder.load(checkpoint, device="cpu", dimensions=size)
        assert short.embed_dim == size and short.identity == f"{whole.identity}/{size}"
        assert short.name == f"nested.pt (splip-tiny, splip), {size} of 256 dimensions"
        for modality in ("sketch", "photo"):
            got, want = (e.encode(pixels(3), modality) for e in (short, whole))
            np.testing.assert_allclose(got, unit(want[:, :size]), atol=1e-6)
            got, want = (e.encode_text(["dog", "cup"], modality) for e in (short, whole))
            np.testing.assert_allclose(got, unit(want[:, :size]), atol=1e-6)
        again = short.sized(256)
        assert (again.embed_dim, again.identity, again.name) == (256, whole.identity, whole.name)
        assert np.array_equal(again.encode(pixels(2), "photo"), whole.encode(pixels(2), "photo"))
    assert Encoder.load(checkpoint, dimensions=256).identity == whole.identity


def test_sizes_that_were_not_trained(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"nested.pt: was not trained for 48 dimensions, only for 32, 64, 256$"):
        Encoder.load(checkpoint, dimensions=48)
    plain = save_model(tmp_path / "plain.pt", 0)
    with pytest.raises(UserError, match="for 64 dimensions, only for 256; other sizes take a training with --loss.mat"):
        Encoder.load(plain, dimensions=64)


def test_a_checkpoint_of_before(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    assert state["config"]["loss"].pop("matryoshka") == [32, 64]
    torch.save(state, tmp_path / "old.pt")
    assert load_model(tmp_path / "old.pt").dimensions == (256,)
