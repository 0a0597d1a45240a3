import open_clip
import pytest
import torch

from splip.errors import UserError
from splip.models import hub
from splip.models.clip import PromptedCLIP
from splip.models.config import BackboneConfig

TEXTS = ["a photo of a dog", "a sketch of a palm tree", "x"]


@pytest.fixture(
    scope="module", params=["ViT-B-32", pytest.param("ViT-B-16", marks=pytest.mark.exhaustive), "splip-tiny"]
)
def model(request):
    return PromptedCLIP(BackboneConfig(name=request.param)).eval()


def normalised(model, images):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    return (images / 255 - mean) / std


@torch.no_grad()
def test_without_prompts_images_are_open_clips_own(model):
    images = torch.randint(0, 256, (2, 3, model.image_size, model.image_size), dtype=torch.uint8)
    want = model.clip.encode_image(normalised(model, images))
    # The same modules run: equal bits.
    assert torch.equal(model.encode_visual(model.embed_patches(normalised(model, images))), want)
    # The fused preprocessing sums the patch embedding in another order.
    got = model.encode_visual(model.embed_patches(images))
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(unit(got, dim=1), unit(want, dim=1), rtol=0, atol=1e-6)


@torch.no_grad()
def test_without_prompts_texts_are_open_clips_own(model):
    want = model.clip.encode_text(model.tokenizer(TEXTS))
    assert torch.equal(model.encode_text(model.tokenize(TEXTS, truncate=False))[0], want)
    unit = torch.nn.functional.normalize
    short = model.tokenize(TEXTS)
    assert short.shape[1] < model.tokenizer(TEXTS).shape[1]
    torch.testing.assert_close(unit(model.encode_text(short)[0], dim=1), unit(want, dim=1), rtol=0, atol=1e-6)


def straightforward(block, x, prompts, replace, mask=None):
    """A prompted block with cat and the block's own modules."""
    x = torch.cat([x[:, :1], prompts.expand(len(x), -1, -1), x[:, 1 + replace :]], dim=1)
    return block(x, attn_mask=mask)


@torch.no_grad()
def test_visual_prompts_are_written_before_each_layer():
    model = PromptedCLIP(BackboneConfig(name="splip-tiny")).eval()
    patches = model.embed_patches(torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8))
    shared = [torch.randn(5, model.visual_width) for _ in range(3)]  # the fourth layer keeps what the third left
    x = torch.cat([model.visual.class_embedding.expand(3, 1, -1), patches], 1) + model.visual.positional_embedding
    x = model.visual.ln_pre(x)
    for layer, block in enumerate(model.visual.transformer.resblocks):
        x = straightforward(block, x, shared[layer], 5 if layer else 0) if layer < 3 else block(x)
    want = model.visual.ln_post(x[:, 0]) @ model.visual.proj
    torch.testing.assert_close(model.encode_visual(patches, shared), want, rtol=1e-5, atol=1e-5)
    own = [p.expand(3, -1, -1).contiguous() for p in shared]
    torch.testing.assert_close(model.encode_visual(patches, own), want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_text_prompts_replace_the_placeholders():
    model = PromptedCLIP(BackboneConfig(name="splip-tiny")).eval()
    tokens = model.tokenize(["X X sketch of a dog", "X X sketch of a palm tree"])
    other = model.tokenize(["Y Z sketch of a dog", "Y Z sketch of a palm tree"])
    prompts = [torch.randn(2, 64) for _ in range(2)]
    text, M = model.text, tokens.shape[1]
    x = text.token_embedding(tokens)
    x[:, 1:3] = prompts[0]
    x = x + text.positional_embedding[:M]
    for layer, block in enumerate(text.transformer.resblocks):
        if layer:
            x = torch.cat([x[:, :1], prompts[layer].expand(2, -1, -1), x[:, 3:]], 1)
        x = block(x, attn_mask=text.attn_mask[:M, :M])
    eos = text.ln_final(x)[torch.arange(2), tokens.argmax(1)]
    got, hidden = model.encode_text(tokens, prompts)
    torch.testing.assert_close(got, eos @ text.text_projection, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden[-1], x, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.encode_text(other, prompts)[0], got)  # the placeholder words themselves are never seen


def test_random_weights_follow_the_seed():
    one, same, other = (PromptedCLIP(BackboneConfig("splip-tiny", "random", s)).identity() for s in (0, 0, 1))
    assert one == same and one["sha256"] != other["sha256"]


def test_a_tiny_backbone_without_a_choice_is_the_packages_own():
    """splip-tiny comes trained: any seed gives the same weights, and they are not random."""
    one, other = (PromptedCLIP(BackboneConfig("splip-tiny", seed=seed)).identity() for seed in (0, 1))
    assert one["sha256"] == other["sha256"] and one["pretrained"] == "package"
    assert one["sha256"] != PromptedCLIP(BackboneConfig("splip-tiny", "random")).identity()["sha256"]


@pytest.mark.parametrize("name", ["splip-tiny", pytest.param("ViT-B-32", marks=pytest.mark.exhaustive)])
def test_pretrained_file_goes_through_open_clips_loader(name, tmp_path):
    trained = PromptedCLIP(BackboneConfig(name, "random", seed=7)).clip.state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in trained.items()}}, tmp_path / "w.pt")
    model = PromptedCLIP(BackboneConfig(name, pretrained=str(tmp_path / "w.pt"), quick_gelu="false"))
    for key, value in trained.items():
        assert torch.equal(model.clip.state_dict()[key], value), key


def test_pretrained_tag_goes_through_open_clips_loader(monkeypatch, tmp_path):
    """--pretrained openai: the tag's file reaches open_clip, prepared and activated as those weights need."""
    asked = {}

    def create_model(name, pretrained, **options):
        asked.update(name=name, pretrained=pretrained, **options)
        raise OSError("no route to the hub")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    monkeypatch.setattr(hub, "look", lambda wanted: hub.Found("c" * 40, ["open_clip_model.safetensors", "README.md"]))
    monkeypatch.setattr(hub, "download", lambda wanted, found, files: tmp_path if found.commit == "c" * 40 else None)
    with pytest.raises(UserError, match="cannot load ViT-B-32 with pretrained weights openai: no route to the hub"):
        PromptedCLIP(BackboneConfig(name="ViT-B-32", pretrained="openai"))
    assert asked.pop("force_preprocess_cfg")["mean"] == open_clip.OPENAI_DATASET_MEAN
    file = str(tmp_path / "open_clip_model.safetensors")
    assert asked == {"name": "ViT-B-32", "pretrained": file, "quick_gelu": True}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BackboneConfig(name="ViT-Q-99"), "unknown backbone ViT-Q-99"),
        (BackboneConfig(name="ViT-B-32", pretrained="nowhere"), "no pretrained weights nowhere for ViT-B-32.*openai"),
        (
            BackboneConfig(name="vit_relpos_medium_patch16_cls_224"),
            "backbone vit_relpos_medium_patch16_cls_224 is not supported: its visual tower is a VisionTransformerRelPos",
        ),
    ],
    ids=["name", "tag", "unsupported"],
)
def test_rejects(config, message):
    with pytest.raises(UserError, match=message):
        PromptedCLIP(config)


def test_damaged_weights_file(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot load splip-tiny with pretrained weights .*w.pt"):
        PromptedCLIP(BackboneConfig(name="splip-tiny", pretrained=str(tmp_path / "w.pt")))


def test_image_shape_is_checked():
    model = PromptedCLIP(BackboneConfig(name="splip-tiny"))
    with pytest.raises(ValueError, match=r"images must be \[B, 3, 64, 64\], got \[1, 3, 32, 32\]"):
        model.embed_patches(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
