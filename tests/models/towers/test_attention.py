"""Who looks at the prompts, in every family: beside the library's own attention."""

import pytest
import torch
from tiny_towers import NAMES
from tower_models import known_words, pictures, very_lively_model

from splip.models.towers.table import FAMILIES

TAKES = [f for f in FAMILIES if "clip-at" not in f.refused]


@pytest.fixture(autouse=True)
def words(monkeypatch):
    known_words(monkeypatch)


@torch.no_grad()
@pytest.mark.parametrize("family", TAKES, ids=lambda f: f.key)
def test_attention_on_the_slots(family, monkeypatch):
    """The weights that the block itself gives its values, caught where it attends."""
    clip = very_lively_model(family, "clip-ln").backbone
    tower, patches = clip.visual_tower, clip.embed_patches(pictures(3))
    prompts = [torch.randn(2, clip.visual_width) * 0.5 for _ in range(2)]
    caught = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watch(q, k, v, *args, **options):
        caught.append((q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1))
        return attend(q, k, v, *args, **options)

    if family.key != "clip":  # nn.MultiheadAttention attends elsewhere; tests/models/test_prompts.py looks there
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
        clip.encode_visual(patches, prompts)
        monkeypatch.undo()
        first = slice(0, 1) if tower.front else slice(2, None)
        want = [float(c[:, :, first, tower.front : tower.front + 2].sum(dim=-1).mean()) for c in caught[:2]]
        torch.testing.assert_close(clip.slot_attention(patches, prompts), torch.tensor(want), rtol=1e-4, atol=1e-5)
    states = clip.patch_states(patches)
    x, _ = tower.start(patches)
    assert states.shape == (tower.layers, clip.visual_width) and NAMES[family.key] == clip.config.name
    torch.testing.assert_close(states[0], x[:, tower.tokens - tower.patches :].mean(dim=(0, 1)), rtol=1e-4, atol=1e-5)
