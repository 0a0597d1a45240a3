"""Why a photo is found: shares add up to the score, and each belongs to the patch that it is said to."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import AttentionPoolLatent
from tower_models import known_words, pictures, very_lively_model

from splip import images
from splip.data.trees import MODALITIES
from splip.encoders import explain, explanation, graph
from splip.encoders.blocks import Pool
from splip.encoders.encoder import Encoder
from splip.encoders.explanation import Share
from splip.errors import UserError
from splip.models import build
from splip.models.config import BackboneConfig, LossConfig, TrainConfig
from splip.models.towers.base import Head
from splip.models.towers.table import FAMILIES

CASES = [("clip-ln", None), ("clip-at", 1), ("splip", 2)]
CELLS = [(f, m, d) for f in FAMILIES for m, d in CASES if m not in f.refused]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(3)
    model = build(TrainConfig(backbone=BackboneConfig(name="splip-tiny")), ["dog", "cat"])
    path = tmp_path_factory.mktemp("explained") / "best.pt"
    torch.save(model.checkpoint(), path)
    return Encoder.load(path, device="cpu")


def parts_encoder(family, method, depth, monkeypatch, modality="photo"):
    known_words(monkeypatch)
    deployed = graph.encoders(very_lively_model(family, method, depth), fused=True)[modality]
    if not isinstance(deployed, graph.DeployEncoder):
        pytest.skip("a convolutional tower")
    return deployed, explain.PartsEncoder(deployed)


@torch.no_grad()
@pytest.mark.parametrize(("family", "method", "depth"), CELLS, ids=[f"{f.key}-{m}-{d}" for f, m, d in CELLS])
def test_parts_add_up_to_the_features(family, method, depth, monkeypatch):
    deployed, parts = parts_encoder(family, method, depth, monkeypatch)
    pixels = pictures(3).permute(0, 2, 3, 1).contiguous()
    got = parts(pixels)
    assert got.shape == (3, 1 + deployed.grid**2, deployed.embed_dim)
    torch.testing.assert_close(got.sum(dim=1), deployed(pixels), rtol=0, atol=1e-5)
    assert got[:, 1:].norm(dim=2).min() > 1e-4  # no patch is left out


@torch.no_grad()
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.key in ("clip", "siglip")], ids=lambda f: f.key)
def test_a_part_belongs_to_its_patch(family, monkeypatch):
    """Where patches change places, and take their positions with them, so do their parts."""
    deployed, parts = parts_encoder(family, "clip-at", 1, monkeypatch)
    pixels = pictures(1).permute(0, 2, 3, 1).contiguous()
    g, p = deployed.grid, deployed.patch
    order = torch.randperm(g * g, generator=torch.Generator().manual_seed(1))
    tiles = pixels.view(1, g, p, g, p, 3).permute(0, 1, 3, 2, 4, 5).reshape(1, g * g, p, p, 3)
    moved = tiles[:, order].view(1, g, g, p, p, 3).permute(0, 1, 3, 2, 4, 5).reshape(pixels.shape)
    before = parts(pixels)
    deployed.position = deployed.position[order]
    after = parts(moved)
    torch.testing.assert_close(after[:, 0], before[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(after[:, 1:], before[:, 1:][:, order], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["token", "avg"])
@pytest.mark.parametrize("queries", [1, 3])
def test_parts_add_up_behind_several_learned_queries(kind, queries):
    torch.manual_seed(5)
    latent = AttentionPoolLatent(8, num_heads=2, latent_len=queries, pool_type=kind, norm_layer=torch.nn.LayerNorm)
    latent.latent.mul_(40)  # queries that look at different tokens
    for weight in latent.mlp.parameters():
        weight.normal_()
    pool = Pool(
        Head("map", norm=None, after=None, project=[], latent=latent), torch.nn.Identity(), sum_head=False
    ).eval()
    x = torch.randn(4, 7, 8)
    parts = explain._pooled(pool, x, 6)
    assert parts.shape == (4, 7, 8)
    torch.testing.assert_close(parts.sum(dim=1), pool(x), rtol=0, atol=1e-5)


def test_removal_of_what_adds_up_is_exact():
    """Where cells do not depend on each other, each gets what it is worth, in whatever order they came."""
    pixels = np.full((12, 12, 3), 255, np.uint8)
    worth = np.arange(16).reshape(4, 4)
    pixels[..., 0] -= np.kron(worth, np.ones((3, 3), np.uint8)).astype(np.uint8)

    def encode(batch):
        return ((255 - batch[..., 0].astype(np.float32)).sum(axis=(1, 2)) / 9)[:, None] + 2

    got = explanation.by_removal(encode, pixels, np.ones(1, np.float32))
    np.testing.assert_allclose(got.patches, worth, atol=1e-5)
    assert got.rest == pytest.approx(2) and got.score == pytest.approx(worth.sum() + 2)
    np.testing.assert_allclose(got.heat(), worth / 15, atol=1e-6)


def test_removal_shares_what_two_did_together():
    def encode(batch):  # worth something only where both corners are there
        return ((batch[:, 0, 0, 0] < 9) & (batch[:, -1, -1, 0] < 9)).astype(np.float32)[:, None]

    got = explanation.by_removal(encode, np.zeros((8, 8, 3), np.uint8), np.ones(1, np.float32))
    assert got.score == 1 and got.patches[0, 0] == got.patches[3, 3] == 0.5 and got.patches.sum() == 1


def test_heat_is_of_what_speaks_for_the_match():
    assert Share(np.array([[-1.0, 0.5], [2.0, 0.0]], np.float32), 0.1).heat().tolist() == [[0, 0.25], [1, 0]]
    assert Share(np.full((2, 2), -0.3, np.float32), 1.0).heat().tolist() == [[0, 0], [0, 0]]


def drawn(side, dots):
    pixels = np.full((side, side, 3), 255, np.uint8)
    for row, column in dots:
        pixels[row : row + 9, column : column + 9] = 0
    return pixels


@pytest.mark.parametrize("dimensions", [None, 256])
def test_an_encoder_explains_the_score_that_it_gives(encoder, dimensions):
    e = encoder if dimensions is None else encoder.sized(dimensions)
    side = e.image_size
    sketch, photo = drawn(side, [(3, 40)]), drawn(side, [(5, 38), (50, 2)])
    score = float(e.encode(sketch[None], "sketch")[0] @ e.encode(photo[None], "photo")[0])
    got = e.explain(sketch, photo)
    assert e.explains_by == "removal"  # a stem that mixes all patches
    assert got.score == pytest.approx(score, abs=1e-5)
    assert got.query.score == pytest.approx(score, abs=1e-5)
    empty = [
        (row, column)
        for row in range(4)
        for column in range(4)
        if (photo[row * 16 :, column * 16 :][:16, :16] > 0).all()
    ]
    assert len(empty) > 8 and all(abs(got.photo.patches[cell]) < 1e-6 for cell in empty)
    words = e.explain_query(e.encode_text(["dog"])[0], photo)
    assert words.query is None and words.photo.score == words.score
    with pytest.raises(UserError, match="no sums over the patches"):
        e.parts(photo[None], "photo")


def test_an_encoder_of_plain_patches_explains_in_one_pass(tmp_path, monkeypatch):
    torch.manual_seed(4)
    model = build(TrainConfig(backbone=BackboneConfig(name="icon-vit-16")), ["dog", "cat"])
    torch.save(model.checkpoint(), tmp_path / "best.pt")
    e = Encoder.load(tmp_path / "best.pt", device="cpu")
    pixels = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3)).astype(np.uint8)
    assert e.explains_by == "patches"
    for modality in MODALITIES:
        parts = e.parts(pixels, modality)
        np.testing.assert_allclose(parts.sum(axis=1), e.encode(pixels, modality), atol=1e-5)
    got = e.explain(pixels[0], pixels[1])
    score = float(e.encode(pixels[:1], "sketch")[0] @ e.encode(pixels[1:], "photo")[0])
    assert got.photo.patches.shape == (4, 4) and got.score == pytest.approx(score, abs=1e-5)
    np.testing.assert_allclose(got.photo.patches.ravel(), parts[1, 1:] @ e.encode(pixels[:1], "sketch")[0], atol=1e-5)
    with pytest.raises(ValueError, match="images must be"):
        e.parts(pixels[:, :32], "photo")


@pytest.mark.parametrize("fit", ["pad", "pad-black", "crop", "stretch"])
@pytest.mark.parametrize("size", [(90, 40), (40, 90), (64, 64), (200, 3)])
def test_the_box_is_what_the_square_covers(fit, size):
    """A column of another colour stands in the square where the box says that it does."""
    image = Image.new("RGB", size, (200, 40, 40))
    left, top, right, bottom = explanation.box(image, 64, fit)
    square = images.square(image, 64, fit)
    inside = np.argwhere((square == (200, 40, 40)).all(axis=2))
    (y0, x0), (y1, x1) = inside.min(axis=0), inside.max(axis=0) + 1
    for low, high, first, last in ((left, right, x0, x1), (top, bottom, y0, y1)):
        # of the square's 64 pixels, those between 0 and 1 of the picture
        assert max(0, (0 - low) / (high - low) * 64) == pytest.approx(first, abs=0.01)
        assert min(64, (1 - low) / (high - low) * 64) == pytest.approx(last, abs=0.01)
    if fit == "crop":
        assert (right - left) * size[0] == pytest.approx((bottom - top) * size[1])  # a square of the picture


def test_shorter_vectors_are_explained_as_they_are(tmp_path):
    torch.manual_seed(5)
    loss = LossConfig(matryoshka=(32, 64))
    model = build(TrainConfig(backbone=BackboneConfig(name="icon-vit-16"), loss=loss), ["dog", "cat"])
    torch.save(model.checkpoint(), tmp_path / "best.pt")
    e = Encoder.load(tmp_path / "best.pt", device="cpu", dimensions=32)
    pixels = np.random.default_rng(1).integers(0, 255, (2, 64, 64, 3)).astype(np.uint8)
    assert e.parts(pixels, "photo").shape == (2, 17, 32)
    np.testing.assert_allclose(e.parts(pixels, "photo").sum(axis=1), e.encode(pixels, "photo"), atol=1e-5)
    score = float(e.encode(pixels[:1], "sketch")[0] @ e.encode(pixels[1:], "photo")[0])
    assert e.explain(pixels[0], pixels[1]).score == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize(("fit", "blank"), [("pad", 255), ("crop", 40)])
def test_whatever_engine_encodes_can_explain(encoder, fit, blank):
    """An engine that only encodes: cells come into an empty picture, white where models see white borders."""
    seen = []

    class Engine:
        precision = "fp32"

        def __call__(self, pixels, modality):
            seen.append(pixels)
            found = np.stack([pixels[:, 0, 0, 0], np.full(len(pixels), 100)], axis=1).astype(np.float32)
            return found / np.linalg.norm(found, axis=1, keepdims=True)

        def close(self): ...

    about = dataclasses.replace(encoder._runner.about, image_size=128, embed_dim=2, dimensions=[2], fit=fit)
    e = Encoder("export", "onnxruntime", Engine(), about, high=16)
    photo = np.full((128, 128, 3), 40, np.uint8)
    photo[:32, :32] = 200
    photo[32:64, :32] = 0
    photo[64:96, :32] = 0
    photo[96:, :32] = 0
    got = e.explain_towards(np.array([1, 0], np.float32), photo)
    assert e.explains_by == "removal" and abs(got.patches.ravel()[1:]).max() == 0
    assert got.score == pytest.approx(200 / np.hypot(200, 100), abs=1e-6)
    empty = seen[0][0]
    assert abs(int(empty[0, 0, 0]) - blank) <= 12 and (empty == empty[0, 0]).all()
    assert sum(map(len, seen)) == 2 + 2 * 15 and max(map(len, seen)) == 16
