"""Word embeddings that are made again: the same bits everywhere, and files without them."""

import hashlib

import pytest
import safetensors.torch
import torch

from splip.errors import UserError
from splip.models import seeded
from splip.models.clip import PromptedCLIP
from splip.models.config import BackboneConfig
from splip.train.pretrain import save_weights


def by_hand(seed: int, place: int) -> float:
    """A value in Python's own whole numbers, which have no width."""
    mask = 2**64 - 1
    z = ((place + (seed << 32) + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    z ^= z >> 31
    return (sum((z >> 16 * quarter) & 0xFFFF for quarter in range(4)) - 131070) / 2**21


def test_the_bits_are_pinned():
    """splitmix64's own first output for seed 0, values by hand, and all bytes of a table of CLIP's size."""
    assert by_hand(0, 0) == (0xE220 + 0xA839 + 0x7B1D + 0xCDAF - 131070) / 2**21
    for seed in (0, 7):
        made = seeded.values(seed, 3, 5)
        assert made.flatten().tolist() == [by_hand(seed, place) for place in range(15)]
    table = seeded.values(0, 49408, 64)
    assert table.dtype == torch.float32
    digest = hashlib.sha256(table.numpy().astype("<f4").tobytes()).hexdigest()
    assert digest == "a7c19d9d65479a33d972881aaa9abecaf1ff06f09a07b0e70521bcc01b6f16eb"


def test_the_values_are_about_normal():
    table = seeded.values(0, 2000, 64)
    assert abs(float(table.mean())) < 2e-4 and 0.017 < float(table.std()) < 0.019
    rows = torch.nn.functional.normalize(table[:500], dim=1)
    assert float((rows @ rows.T - torch.eye(500)).abs().max()) < 0.7  # words are told apart
    assert not torch.equal(table, seeded.values(1, 2000, 64))


def test_a_file_without_words_gives_the_same_model(tmp_path):
    model = PromptedCLIP(BackboneConfig("splip-tiny", "random"))
    save_weights(model, tmp_path / "whole.safetensors")
    seeded.plant(model.text)
    save_weights(model, tmp_path / "short.safetensors")
    saved = (tmp_path / "whole.safetensors").stat().st_size - (tmp_path / "short.safetensors").stat().st_size
    assert saved > 2 * 49408 * 64 - 1000  # two bytes a value
    again = PromptedCLIP(BackboneConfig("splip-tiny", str(tmp_path / "short.safetensors")))
    assert torch.equal(again.text.token_embedding.weight, seeded.values(0, 49408, 64))
    other = model.text.state_dict()
    assert all(torch.equal(t, other[n].half().float()) for n, t in again.text.state_dict().items() if "visual" not in n
               and t.is_floating_point() and n != seeded.TENSOR and n != "attn_mask")  # fmt: skip


def test_a_way_that_is_not_known_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    model = PromptedCLIP(BackboneConfig("splip-tiny", "random"))
    seeded.plant(model.text)
    save_weights(model, path)
    state = safetensors.torch.load_file(path)
    assert seeded.TENSOR not in state
    for said in ("2:0", "1:-3", "1:99999999999", "x"):
        safetensors.torch.save_file(state, path, {seeded.KEY: said})
        with pytest.raises(UserError, match="word embeddings are made in a way"):
            PromptedCLIP(BackboneConfig("splip-tiny", str(path)))
    safetensors.torch.save_file(state, path)  # and words that nothing speaks of are missing
    with pytest.raises(UserError, match="cannot load splip-tiny"):
        PromptedCLIP(BackboneConfig("splip-tiny", str(path)))
