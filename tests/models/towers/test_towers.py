"""Every family against its own library, and the table of what each can do."""

import pytest
import torch
from tiny_towers import NAMES, SIDE, Words, lively

from splip.models.clip import PromptedCLIP
from splip.models.config import BackboneConfig
from splip.models.towers import pieces
from splip.models.towers.table import FAMILIES
from splip.models.towers.text import PieceTower

KEYS = [family.key for family in FAMILIES]
LARGE = [
    "ViT-B-16-SigLIP", "ViT-B-16-SigLIP2", "EVA02-B-16", "PE-Core-B-16", "PE-Core-T-16-384", "MobileCLIP2-S0", "MobileCLIP2-B",
    "convnext_base_w", "RN50", "timm:vit_small_patch14_dinov2@224", "timm:vit_small_patch14_reg4_dinov2@224",
    "timm:vit_small_patch16_dinov3",
]  # fmt: skip
TEXTS = ["a photo of a dog", "a sketch of a palm tree", "x"]


def backbone(name):
    model = PromptedCLIP(BackboneConfig(name, "random")).eval()
    lively(model.clip.visual)
    if model.text_tower is not None and isinstance(model.text_tower, PieceTower):
        model.text_tower._made = Words()
    return model


@pytest.fixture(scope="module", params=[*KEYS, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in LARGE)])
def model(request):
    return backbone(NAMES.get(request.param, request.param))


def pixels(model, count=3):
    S = model.image_size
    noise = torch.randint(0, 256, (count, 3, S, S), generator=torch.Generator().manual_seed(0))
    noise[0] //= 8
    noise[1, :, : S // 2] = 200
    return noise.to(torch.uint8)


def normalised(model, images):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    return (images / 255 - mean) / std


@torch.no_grad()
def test_without_prompts_images_are_the_librarys_own(model):
    images = pixels(model)
    want = model.clip.encode_image(normalised(model, images))
    assert want.shape == (3, model.embed_dim) and (want[0] - want[1]).abs().max() > 1e-3
    assert torch.equal(
        model.encode_visual(model.embed_patches(normalised(model, images))), want
    )  # the same modules run
    features, tokens = model.encode_visual_tokens(model.embed_patches(images))
    assert tokens.shape == (3, model.visual_tower.tokens, model.visual_width)
    torch.testing.assert_close(features, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


@torch.no_grad()
def test_without_prompts_texts_are_the_librarys_own(model):
    if model.text_tower is None:
        pytest.skip("no text tower")
    whole = model.tokenize(TEXTS, truncate=False)
    want = model.clip.encode_text(whole)
    assert torch.equal(model.encode_text(whole)[0], want)
    tokens = model.tokenize(TEXTS)
    assert (tokens.shape[1] < whole.shape[1]) == model.text_tower.causal
    torch.testing.assert_close(model.encode_text(tokens)[0], want, rtol=1e-5, atol=1e-5)
    groups = torch.stack([tokens, tokens.flip(0)])
    features, hidden = model.encode_groups(groups, model.text_tower.shared(groups))
    torch.testing.assert_close(features, torch.stack([want, want.flip(0)]), rtol=1e-5, atol=1e-5)
    assert sum(part.shape[-2] for part in hidden[-1]) == tokens.shape[1]


@torch.no_grad()
def test_prompts_are_written_as_if_by_hand(model):
    """The library's own blocks on a sequence with the slots in it: positions turned by hand, for patches only."""
    tower = model.visual_tower
    if tower.no_prompts:
        pytest.skip(tower.no_prompts)
    n, images = 2, pixels(model)
    prompts = [torch.randn(n, model.visual_width) * 0.5 for _ in range(2)]
    patches = model.embed_patches(images)
    x, rope = tower.start(patches)
    trunk = getattr(tower, "trunk", None)
    blocks = tower.module.transformer.resblocks if trunk is None else trunk.blocks
    for layer, block in enumerate(blocks):
        if layer < 2:
            # Behind all that is before the patches: elsewhere than the tower writes them, and the same.
            before = tower.tokens - tower.patches
            rest = x[:, before + (n if layer else 0) :]
            x = torch.cat([x[:, :before], prompts[layer].expand(3, -1, -1), rest], dim=1)
        if rope is None:
            x = block(x)
        else:
            block.attn.num_prefix_tokens += n
            x = block(x, rope=rope)
            block.attn.num_prefix_tokens -= n
    before = tower.tokens - tower.patches
    x = torch.cat([x[:, :before], x[:, before + n :]], dim=1)
    got, tokens = model.encode_visual_tokens(patches, prompts)
    torch.testing.assert_close(tokens, x, rtol=1e-4, atol=1e-5 * x.abs().max().item())
    want = tower.finish(x, None)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * want.abs().max().item())
    plain = model.encode_visual(patches)
    assert (got - plain).abs().max() > 2e-4 * plain.abs().max()  # two slots, among hundreds of patches in large towers
    each = [p.expand(3, -1, -1).contiguous() for p in prompts]
    torch.testing.assert_close(model.encode_visual(patches, each), got, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_text_prompts_replace_the_placeholders(model):
    if model.text_tower is None:
        pytest.skip("no text tower")
    reader, text, m = model.text_tower, model.text, 2
    tokens = model.tokenize(TEXTS, m)
    plain = model.tokenize(TEXTS)
    start, M = reader.start, tokens.shape[1]
    text_itself = plain[0, start : int(reader.end(plain)[0]) + 1]
    assert torch.equal(tokens[0, start + m : start + m + len(text_itself)], text_itself)  # moved back by the slots
    prompts = [torch.randn(m, model.text_width) for _ in range(2)]
    position = text.positional_embedding[:M]
    x = text.token_embedding(tokens) + position
    for layer, block in enumerate(text.transformer.resblocks):
        if layer < 2:
            x[:, start : start + m] = prompts[layer] + (0 if layer else position[start : start + m])
        x = block(x, attn_mask=None if text.attn_mask is None else text.attn_mask[:M, :M])
    pooled = text.ln_final(x)[torch.arange(3), reader.pooled(tokens)]
    projection = text.text_projection
    want = projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection
    got, hidden = model.encode_text(tokens, prompts)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hidden[-1], x, rtol=1e-4, atol=1e-5)
    if not reader.causal:  # padding is seen: a text that ends earlier is another one
        short = model.tokenize(TEXTS)[:, : M - 2]
        assert (model.encode_text(short)[0] - model.encode_text(plain)[0]).abs().max() > 1e-4


def test_a_missing_tokenizer_is_one_line_and_images_need_none(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = PromptedCLIP(BackboneConfig(NAMES["siglip"], "random")).eval()
    assert model.encode_visual(model.embed_patches(pixels(model))).shape == (3, model.embed_dim)
    with pytest.raises(
        pieces.NoTokenizer, match=r"the tokenizer splip-tests/none is not here .*fetch its tokenizer.json"
    ):
        model.tokenize(TEXTS)


def test_sizes_are_those_of_the_tower():
    assert {PromptedCLIP(BackboneConfig(NAMES[key], "random")).image_size for key in KEYS} == {SIDE}


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("ViT-B-16-SigLIP", 0.5, 0.5),
        ("MobileCLIP2-S0", 0.0, 1.0),
        ("EVA02-B-16", 0.48145466, 0.26862954),
        ("x", None, None),
    ],
)
def test_pixels_of_a_file_are_those_of_its_architecture(name, mean, std):
    """open_clip knows them of tags alone: SigLIP's weights from a file would get CLIP's."""
    from splip.models.towers.families import _agreed

    found = _agreed(name)
    assert (found["mean"][0], found["std"][0]) == (mean, std) if mean is not None else found == {}
