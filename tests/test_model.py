import dataclasses

import pytest
import torch

from splip.config import BackboneConfig, PromptConfig, TrainConfig
from splip.errors import UserError
from splip.model import SpLIP, load_model, read_checkpoint

TINY = BackboneConfig(name="splip-tiny")
CLASSES = ["dog", "palm tree", "cup"]


def make(**changes):
    return SpLIP(TrainConfig(backbone=TINY, **changes), CLASSES)


def batch():
    return torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8), torch.tensor([0, 1, 1, 0, 1, 0])


def test_features_have_unit_length():
    images, texts = make()(*batch())
    assert images.shape == (6, 128) and texts.shape == (2, 3, 128)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(6))
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(2, 3))


@pytest.mark.parametrize("train_backbone", [False, True])
def test_exactly_the_intended_parameters_learn(train_backbone):
    model = make(train_backbone=train_backbone)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    images, modality = batch()
    features, texts = model(images, modality)
    (features.sum(0) @ torch.randn(128) + (texts * torch.randn(2, 3, 128)).sum()).backward()
    torch.optim.SGD(model.trainable().values(), lr=1.0).step()
    for name, parameter in model.named_parameters():
        norm = ".ln_" in name
        intended = norm or name.startswith(("b_t.", "b_v.", "b_vt."))
        if train_backbone:
            intended = name not in ("backbone.clip.logit_scale", "backbone.clip.token_embedding.weight")
        assert parameter.requires_grad == intended, name
        assert (parameter.grad is not None) == intended, name
        assert torch.equal(parameter, before[name]) != intended, name


@pytest.mark.parametrize(
    ("prompts", "tokens"),
    [
        (PromptConfig(), 6),  # [SOS] sketch of a, and two of the layers
        (PromptConfig(words=False), 2),
        (PromptConfig(layer_tokens=0), 4),
        (PromptConfig(words=False, layer_tokens=0), None),
        (PromptConfig(text_tokens=0), 6),
        (PromptConfig(template="a {modality}", layer_tokens=3), 6),
        (PromptConfig(depth=2), 6),
        (PromptConfig(depth=0), None),
    ],
    ids=str,
)
def test_prompt_settings(prompts, tokens):
    model = make(prompts=prompts).eval()
    for layers in model.visual_prompts():
        if tokens is None:
            assert layers is None
        else:
            assert [tuple(p.shape) for p in layers] == [(tokens, 128)] * (prompts.depth or 4)
    assert model.encode_sketch(batch()[0]).shape == (6, 128)


def test_all_off_is_plain_clip():
    model = make(prompts=PromptConfig(text_tokens=0, words=False, layer_tokens=0)).eval()
    images, _ = batch()
    with torch.no_grad():
        plain = model.backbone.encode_visual(model.backbone.embed_patches(images))
    assert torch.equal(model.encode_photo(images), torch.nn.functional.normalize(plain, dim=-1))


def test_a_batch_in_training_is_what_inference_gives():
    """With one step's averages as the constants, inference repeats the training features."""
    model = make()
    images, modality = batch()
    features, _ = model(images, modality)
    model.eval()
    torch.testing.assert_close(model.encode_sketch(images[modality == 0]), features[modality == 0])
    torch.testing.assert_close(model.encode_photo(images[modality == 1]), features[modality == 1])
    assert not torch.allclose(model.encode_sketch(images), model.encode_photo(images))


def test_gradients_can_be_repeated():
    """Bit for bit with several threads and a batch large enough for them, without torch's deterministic mode."""
    torch.use_deterministic_algorithms(False)
    images = torch.randint(0, 256, (192, 3, 64, 64), dtype=torch.uint8)
    modality, direction = torch.arange(192) % 2, torch.randn(192, 128)
    runs = []
    for _ in range(3):
        model = make()
        features, _ = model(images, modality)
        (features * direction).sum().backward()
        runs.append({name: p.grad for name, p in model.trainable().items() if p.grad is not None})
    for other in runs[1:]:
        for name, grad in runs[0].items():
            assert torch.equal(grad, other[name]), name


def test_average_patch_embedding():
    model = make(prompts=PromptConfig(ema=0.6))
    first, second, third = (batch() for _ in range(3))
    means = []
    for images, modality in (first, second, third):
        model(images, modality)
        means.append(model.backbone.embed_patches(images)[modality == 0].mean(0))
    plain_two = (means[0] + means[1]) / 2  # an average until the decay is the slower
    torch.testing.assert_close(model.patch_mean[0], 0.6 * plain_two + 0.4 * means[2])


def test_visual_layers_take_the_matching_text_layer():
    """Four visual and two text layers: 0, 0, 1, 1."""
    model = make(prompts=PromptConfig(words=False)).eval()
    a, b, c, d = model.visual_prompts()[0]
    assert torch.equal(a, b) and torch.equal(c, d) and not torch.equal(a, c)


def test_margin_between_classes():
    similarity = make().class_similarity
    torch.testing.assert_close(similarity.diagonal(), torch.ones(3))
    assert torch.equal(similarity, similarity.T) or torch.allclose(similarity, similarity.T)


def test_encode_text():
    model = make().eval()
    assert model.encode_text(["a house", "zebra"]).shape == (2, 128)


@pytest.mark.parametrize("train_backbone", [False, True])
def test_checkpoint(tmp_path, train_backbone):
    model = make(train_backbone=train_backbone)
    images, modality = batch()
    for _ in range(2):
        features, _ = model(images, modality)
        features.sum().backward()
        torch.optim.SGD(model.trainable().values(), lr=0.1).step()
    torch.save(model.checkpoint(), tmp_path / "c.pt")
    loaded = load_model(tmp_path / "c.pt")
    assert torch.equal(loaded.encode_sketch(images), model.eval().encode_sketch(images))
    state = read_checkpoint(tmp_path / "c.pt")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert not frozen & set(state["trainable"])
    if not train_backbone:
        assert (tmp_path / "c.pt").stat().st_size < 400_000


def test_checkpoint_of_another_backbone(tmp_path):
    state = make().checkpoint()
    other = SpLIP(TrainConfig(backbone=dataclasses.replace(TINY, seed=1)), CLASSES)
    with pytest.raises(UserError, match="trained on another backbone: splip-tiny .*seed 0.* is splip-tiny .*seed 1"):
        other.restore(state, "c.pt")


def test_checkpoint_of_other_settings():
    state = make().checkpoint()
    with pytest.raises(UserError, match="c.pt: holds other parameters.*b_v"):
        make(prompts=PromptConfig(words=False)).restore(state, "c.pt")
    with pytest.raises(UserError, match=r"c.pt: b_t.*has shape"):
        make(prompts=PromptConfig(text_tokens=3)).restore(state, "c.pt")


@pytest.mark.parametrize("content", [b"", b"junk", None], ids=["empty", "junk", "foreign"])
def test_not_a_checkpoint(tmp_path, content):
    path = tmp_path / "c.pt"
    torch.save({"weights": 1}, path) if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match="c.pt: not a splip checkpoint"):
        load_model(path)
    with pytest.raises(UserError, match="no checkpoint"):
        load_model(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (PromptConfig(template="a picture of"), "template must contain"),
        (PromptConfig(depth=9), "depth must be between 0 and 4 for splip-tiny, got 9"),
        (PromptConfig(text_tokens=-1), "must not be negative"),
        (PromptConfig(text_tokens=28), "prompt for 'dog' is longer than the backbone's 32 tokens"),
    ],
    ids=["template", "depth", "tokens", "length"],
)
def test_rejects(prompts, message):
    with pytest.raises(UserError, match=message):
        make(prompts=prompts)
