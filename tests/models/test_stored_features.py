"""Checkpoints made once give the features that they gave then: what was learned keeps its meaning."""

from pathlib import Path

import build_stored_features as stored
import numpy as np
import pytest

from splip.encoders.encoder import Encoder
from splip.models import load_model

FOLDER = Path(__file__).parents[1] / "fixtures" / "checkpoints"


@pytest.fixture(scope="module")
def wanted():
    with np.load(FOLDER / "features.npz") as file:
        return dict(file)


def test_every_method_is_stored(wanted):
    methods = {load_model(FOLDER / f"{name}.pt").config.method for name in stored.MODELS}
    assert methods == {"splip", "zero-shot", "clip-ln", "clip-at", "maple"}
    assert len(wanted) == 4 * len(stored.MODELS)


@pytest.mark.parametrize("name", stored.MODELS)
def test_features_are_those_of_then(wanted, name):
    model = load_model(FOLDER / f"{name}.pt")
    found = stored.features(model)
    for what, value in found.items():
        np.testing.assert_allclose(value, wanted[f"{name} {what}"], rtol=0, atol=2e-5, err_msg=what)
    # Each part of the model has its say in them.
    assert np.abs(found["sketch images"] - found["photo images"]).max() > 1e-3 or model.config.method in (
        "zero-shot", "clip-ln", "maple",
    )  # fmt: skip


def test_the_deploy_graph_gives_them_too(wanted):
    encoder = Encoder.load(FOLDER / "splip.pt", device="cpu")
    pixels = stored.pictures(encoder.image_size).transpose(0, 2, 3, 1)
    for modality in ("sketch", "photo"):
        got = encoder.encode(np.ascontiguousarray(pixels), modality)
        np.testing.assert_allclose(got, wanted[f"splip {modality} images"], rtol=0, atol=2e-5)
        texts = encoder.encode_text(stored.TEXTS, modality)
        np.testing.assert_allclose(texts, wanted[f"splip {modality} texts"], rtol=0, atol=2e-5)
