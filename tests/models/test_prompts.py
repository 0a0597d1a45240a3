"""Where prompts start, what the switches of their maps change, and who looks at them."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from splip.models import build
from splip.models.config import BEFORE, BackboneConfig, PromptConfig, TrainConfig, as_saved
from splip.models.prompts import LayersToVision, VisionToText

TINY = BackboneConfig(name="splip-tiny")
CLASSES = ["dog", "palm tree", "cup"]
OF_BEFORE = PromptConfig(start="random", text_std=None, words_norm=False)


def make(prompts=None, **changes):
    return build(TrainConfig(backbone=TINY, prompts=prompts or PromptConfig(), **changes), CLASSES)


def pictures(count=12):
    """Smooth ones: noise is like no picture, and its patches have states of their own."""
    small = torch.randint(0, 256, (count, 3, 6, 6), dtype=torch.uint8).float()
    return F.interpolate(small, (64, 64), mode="bicubic").clamp(0, 255).to(torch.uint8)


def harm(model, images):
    """How far the prompts move the features of a model in eval mode: one minus the mean cosine."""
    plain = model.encode_image(images, 1, None)
    return 1 - float((model.encode_image(images, 1) * plain).sum(dim=1).mean())


def test_prompts_start_where_they_do_no_harm():
    images = pictures()
    started, random = make(), make(OF_BEFORE)
    for model in (started, random):
        model.start(images)
    state = started.backbone.patch_states(started.backbone.embed_patches(images)).mean(dim=0)
    for prompts in started.eval().visual_prompts():
        assert F.cosine_similarity(torch.cat(prompts), state, dim=-1).min() > 0.95
    assert harm(started, images) < 0.2 * harm(random.eval(), images)


def test_the_old_start_stays():
    """Nothing of the data reaches it."""
    model = make(OF_BEFORE)
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.start(pictures())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_text_tokens_start_as_large_as_embeddings():
    model, images = make(PromptConfig(text_std=0.03)), pictures()
    model.start(images)
    patches = model.backbone.embed_patches(images)
    mean = model.average(patches, torch.tensor([0] * 4 + [1] * 8))
    tokens = torch.stack(model.write_text(2, mean))
    assert float(tokens[0].detach().std()) == pytest.approx(0.03, rel=1e-4)
    small = make(OF_BEFORE)
    assert float(small.write_text(2, mean)[0].detach().std()) < 0.003


def test_words_tell_the_modalities_apart():
    """Without the LayerNorm the bias of B_v outweighs what a word says."""

    def likeness(prompts):
        model = make(prompts)
        words = model.b_v(model.backbone.text.token_embedding(model.word_ids))
        return float(F.cosine_similarity(words[0, 1], words[1, 1], dim=0))  # "sketch" and "photo"

    assert likeness(OF_BEFORE) > 0.8
    assert abs(likeness(PromptConfig())) < 0.5


def test_states_of_patches_are_those_before_each_layer():
    model, images = make(), pictures(3)
    clip = model.backbone
    patches = clip.embed_patches(images)
    visual = clip.visual
    x = torch.cat([visual.class_embedding.expand(3, 1, -1), patches], dim=1)
    x = visual.ln_pre(x + visual.positional_embedding)
    found = clip.patch_states(patches)
    assert found.shape == (clip.visual_layers, clip.visual_width)
    for block, state in zip(visual.transformer.resblocks, found, strict=True):
        torch.testing.assert_close(state, x[:, 1:].mean(dim=(0, 1)), rtol=1e-4, atol=1e-4)
        x = block(x)
    many = torch.cat([patches] * 43)  # more than are computed at a time
    torch.testing.assert_close(clip.patch_states(many), found, rtol=1e-4, atol=1e-4)


def test_attention_on_the_slots():
    """As torch's own attention gives it."""
    model, images = make(PromptConfig(depth=3)).eval(), pictures(3)
    clip = model.backbone
    patches, prompts = clip.embed_patches(images), model.visual_prompts()[0]
    visual, want = clip.visual, []
    x = torch.cat([visual.class_embedding.expand(3, 1, -1), patches], dim=1)
    x = visual.ln_pre(x + visual.positional_embedding)
    for layer, prompt in enumerate(prompts):
        rest = x[:, 1:] if layer == 0 else x[:, 1 + len(prompt) :]
        x = torch.cat([x[:, :1], prompt.expand(3, -1, -1), rest], dim=1)
        block = visual.transformer.resblocks[layer]
        y = block.ln_1(x)
        _, shares = block.attn(y, y, y, need_weights=True)
        want.append(float(shares[:, 0, 1 : 1 + len(prompt)].sum(dim=1).mean()))
        x = block(x)
    found = clip.slot_attention(patches, prompts)
    torch.testing.assert_close(found, torch.tensor(want), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conditioning", ["modality", "instance"])
def test_prompts_removed_and_swapped(conditioning):
    model, images = make(PromptConfig(conditioning=conditioning)), pictures(3)
    model(images, torch.tensor([0, 1, 0]))  # averages
    with torch.no_grad():
        model.b_v.project.weight *= 20
    model.eval()
    plain = model.backbone.encode_visual(model.backbone.embed_patches(images))
    torch.testing.assert_close(model.encode_image(images, 0, None), F.normalize(plain, dim=1))
    own = model.encode_image(images, 0)
    assert torch.equal(model.encode_image(images, 0, 0), own)
    swapped = model.encode_image(images, 0, 1)
    assert torch.equal(swapped, model.encode_image(images, 1))
    assert not torch.allclose(swapped, own, atol=1e-3)


@pytest.mark.parametrize(
    ("switch", "visual"),
    [({"words_start": False}, 5), ({"pooling": "all"}, 6), ({"activation": "relu"}, 6), ({"words_norm": False}, 6)],
    ids=str,
)
def test_switches(switch, visual):
    """Each changes the prompts, and what it is meant to change."""
    default, changed = make().eval(), make(PromptConfig(**switch)).eval()
    a, b = default.visual_prompts()[0][1], changed.visual_prompts()[0][1]
    assert len(a) == 6 and len(b) == visual
    if switch == {"words_start": False}:
        torch.testing.assert_close(b, a[1:])
    elif switch == {"pooling": "all"}:
        torch.testing.assert_close(b[:4], a[:4])
        assert not torch.allclose(b[4:], a[4:], atol=1e-3)
    else:
        assert not torch.allclose(b, a, atol=1e-3)


def test_all_token_pooling_is_the_mean_of_a_text():
    model = make(PromptConfig(pooling="all")).eval()
    shared, tokens = model.shared, model.tokens
    G, C, M = tokens.shape
    hidden = [(torch.randn(G, shared, 8), torch.randn(G, C, M - shared, 8))]
    (pooled,) = model.summarise(tokens, shared, hidden)
    want = torch.zeros(G, 8)
    for g in range(G):
        for c in range(C):
            states = torch.cat([hidden[0][0][g], hidden[0][1][g, c]])[: int(tokens[g, c].argmax()) + 1]
            want[g] += states.mean(dim=0) / C
    torch.testing.assert_close(pooled.at_eos, want)
    torch.testing.assert_close(pooled.over_words, want)


def test_activations():
    torch.manual_seed(1)
    patches = torch.randn(9, 16)
    map_ = VisionToText(9, 16, 8, 2, "relu")
    x = map_.over_patches(map_.norm(patches).T).T.relu()
    torch.testing.assert_close(map_(patches), map_.project(map_.widen(x).relu()))
    map_ = LayersToVision(8, 16, 2, "relu")
    a, b = torch.randn(8), torch.randn(8)
    x = map_.reduce(torch.cat([map_.norm(a), map_.norm(b)])).relu()
    torch.testing.assert_close(map_(a, b).flatten(), map_.expand(x))


def test_checkpoints_of_before_have_the_settings_of_before():
    values = dataclasses.asdict(TrainConfig())
    for part, names in BEFORE.items():
        for name in names:
            del values[part][name]
    found = as_saved(values)
    assert found["prompts"]["words_norm"] is False and found["loss"]["margin_floor"] is None
    values["prompts"]["words_norm"] = True
    assert as_saved(values)["prompts"]["words_norm"] is True
    assert as_saved({"prompts": 3}) == {"prompts": 3}  # damaged: told by who reads it
