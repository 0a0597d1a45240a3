import dataclasses

import pytest
import torch

from splip.errors import UserError
from splip.models import Retriever, build, load_model, register
from splip.models.checkpoint import read_checkpoint
from splip.models.config import BackboneConfig, LossConfig, PromptConfig, TrainConfig
from splip.train.objective import Objective

TINY = BackboneConfig(name="splip-tiny")
CLASSES = ["dog", "palm tree", "cup"]


def make(**changes):
    return build(TrainConfig(backbone=TINY, **changes), CLASSES)


def batch():
    return torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8), torch.tensor([0, 1, 1, 0, 1, 0])


def test_features_have_unit_length():
    images, texts = make()(*batch())
    assert images.shape == (6, 256) and texts.shape == (2, 3, 256)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(6))
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(2, 3))


def learn(model, lr=1.0):
    """One step on the whole objective."""
    objective = Objective(model)
    images = torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8)
    labels, things = torch.tensor([0, 1, 2, 0] * 2 + [1, 2, 0, 2]), torch.arange(12)
    terms = objective(images, labels, things, objective.pieces(4, torch.Generator().manual_seed(0)))
    terms["loss"].backward()
    torch.optim.SGD(model.trainable().values(), lr=lr).step()
    return terms


VISUAL_NORMS = ("backbone.clip.visual.",)
TEXT_NORMS = ("backbone.clip.transformer.", "backbone.clip.ln_final.")
MAPS = ("b_t.", "b_v.", "b_vt.", "jigsaw.")


def test_a_text_loses_its_article():
    """The template ends with one: "photo of a a horse" is nothing that anybody wrote."""
    model = build(TrainConfig(backbone=TINY), CLASSES).eval()
    bare = model.encode_text(["horse", "apple", "red  car", "a", "thermos"])
    assert torch.equal(model.encode_text(["a horse", "An apple", " the red  car", "a", "thermos"]), bare)


@pytest.mark.parametrize(
    ("changes", "norms", "others"),
    [
        ({}, VISUAL_NORMS + TEXT_NORMS, MAPS),
        ({"train_text_layernorm": False}, VISUAL_NORMS, MAPS),
        ({"train_layernorm": False, "train_text_layernorm": False}, (), MAPS),
        ({"prompts": PromptConfig(text_tokens=0)}, VISUAL_NORMS + TEXT_NORMS, ("b_v.", "b_vt.", "jigsaw.")),
        ({"prompts": PromptConfig(conditioning="instance")}, VISUAL_NORMS + TEXT_NORMS, MAPS),
        ({"loss": LossConfig(jigsaw=0)}, VISUAL_NORMS + TEXT_NORMS, MAPS[:3]),
        ({"loss": LossConfig(jigsaw_form="permuted-triplet")}, VISUAL_NORMS + TEXT_NORMS, MAPS[:3]),
        ({"setting": "fine-grained"}, VISUAL_NORMS + TEXT_NORMS, MAPS),
        ({"method": "clip-ln", "loss": LossConfig(jigsaw=0)}, VISUAL_NORMS + TEXT_NORMS, ()),
        ({"method": "clip-at", "loss": LossConfig(jigsaw=0)}, VISUAL_NORMS + TEXT_NORMS, ("modality_tokens.",)),
        (
            {"method": "maple", "loss": LossConfig(jigsaw=0), "train_layernorm": False, "train_text_layernorm": False},
            (),
            ("coupled.",),
        ),
    ],
    ids=str,
)
def test_exactly_the_intended_parameters_learn(changes, norms, others):
    """Every parameter of the model by name: those meant to learn have a gradient and change, no other does."""
    model = make(**changes)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learn(model)
    for name, parameter in model.named_parameters():
        normalises = ".ln_" in name or name.endswith((".scale", ".shift"))
        intended = (normalises and name.startswith(norms)) if name.startswith("backbone.") else False
        intended |= name.startswith(others) if others else False
        assert parameter.requires_grad == intended, name
        assert (parameter.grad is not None) == intended, name
        # A key's bias shifts all scores of a softmax alike: its gradient is 0 but for rounding.
        changed = not torch.equal(parameter, before[name])
        assert changed == intended, name


def test_parameters_that_learn_from_random_weights():
    model = make(train_backbone=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learn(model)
    for name, parameter in model.named_parameters():
        intended = name not in ("backbone.clip.logit_scale", "backbone.clip.token_embedding.weight")
        assert parameter.requires_grad == intended, name
        assert torch.equal(parameter, before[name]) != intended, name


def test_zero_shot_learns_nothing():
    model = make(method="zero-shot", prompts=PromptConfig(template="a photo of a")).eval()
    assert not model.trainable()
    images, _ = batch()
    plain = model.backbone.encode_visual(model.backbone.embed_patches(images))
    assert torch.equal(model.encode_sketch(images), torch.nn.functional.normalize(plain, dim=-1))


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
            assert [tuple(p.shape) for p in layers] == [(tokens, 192)] * (prompts.depth or 4)
    assert model.encode_sketch(batch()[0]).shape == (6, 256)


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


@pytest.mark.exhaustive
def test_gradients_can_be_repeated(two_threads):
    """Bit for bit with several threads and a batch large enough for them, without torch's deterministic mode."""
    torch.use_deterministic_algorithms(False)
    images = torch.randint(0, 256, (192, 3, 64, 64), dtype=torch.uint8)
    modality, direction = torch.arange(192) % 2, torch.randn(192, 256)
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
    """Cosines of the plain backbone's own texts, by open_clip's pass."""
    model = make()
    with torch.no_grad():
        texts = model.backbone.tokenize([f"a photo of a {name}" for name in CLASSES], truncate=False)
        plain = torch.nn.functional.normalize(model.backbone.clip.encode_text(texts), dim=-1)
    assert (plain @ plain.T - torch.eye(3)).abs().max() > 0.01
    torch.testing.assert_close(model.class_similarity, plain @ plain.T)


def test_encode_text():
    """A name's features are those of a class of that name, of the modality asked for."""
    model = make().eval()
    with torch.no_grad():
        texts = model.constants().texts
        for modality in (0, 1):
            torch.testing.assert_close(model.encode_text(["a cup", "dog"], modality), texts[modality, [2, 0]])
    assert (texts[0] - texts[1]).abs().max() > 1e-3  # sketches and photos are prompted otherwise


def test_texts_that_share_a_beginning():
    """What the texts of a modality have in common runs once; the features are those of whole texts of 77."""
    model = make().eval()
    means = torch.randn(2, 16, 192)
    with torch.no_grad():
        got = model.condition_modalities(means)
        assert 1 < model.shared < model.tokens.shape[2]
        for m, kind in enumerate(("sketch", "photo")):
            texts = [f"X X X X {kind} of a {name}" for name in CLASSES]
            whole = model.backbone.tokenize(texts, truncate=False)
            assert whole.shape[1] == model.backbone.text.context_length > model.tokens.shape[2]
            prompts = [model.b_t(means[m])] * 2
            features, _ = model.backbone.encode_text(whole, prompts)
            torch.testing.assert_close(got.texts[m], torch.nn.functional.normalize(features, dim=-1))


def test_pooled_states_are_means_over_all_classes():
    """B_vt sees the mean of W_l at [EOS] and over the words, whatever way W_l was computed."""
    model = make().eval()
    means = torch.randn(2, 16, 192)
    with torch.no_grad():
        _, pooled = model._encode_classes(model.tokens, model.shared, means)
        for m in range(2):
            _, hidden = model.backbone.encode_text(model.tokens[m], [model.b_t(means[m])] * 2)
            for layer, states in zip(pooled, hidden, strict=True):
                eos = model.tokens[m].argmax(1)
                ends = torch.stack([h[e] for h, e in zip(states, eos, strict=True)]).mean(0)
                words = torch.stack([h[5:e].mean(0) for h, e in zip(states, eos, strict=True)]).mean(0)
                torch.testing.assert_close(layer.at_eos[m], ends)
                torch.testing.assert_close(layer.over_words[m], words)


@pytest.mark.parametrize("name", ["one", "much longer name of a class"])
def test_one_class(name):
    """With one class everything up to [EOS] is shared."""
    model = build(TrainConfig(backbone=TINY), [name]).eval()
    features, _ = model.backbone.encode_text(model.tokens[1], [model.b_t(model.patch_mean[1])] * 2)
    torch.testing.assert_close(model.encode_text([name]), torch.nn.functional.normalize(features, dim=-1))


def test_instance_conditioning():
    """Each image's prompts follow from itself: the rest of the batch makes no difference."""
    model = make(prompts=PromptConfig(conditioning="instance"))
    images, modality = batch()
    features, texts = model(images, modality)
    assert texts.shape == (6, 3, 256)
    model.eval()
    torch.testing.assert_close(model.encode_sketch(images[:1]), features[:1])
    torch.testing.assert_close(model.encode_photo(images[1:3]), features[1:3])
    assert not torch.allclose(texts[0], texts[3])


def test_instance_conditioning_of_equal_images_is_modality_conditioning():
    """If all images are the same, an image is its modality's mean."""
    images, modality = batch()
    images = images[:1].expand(6, -1, -1, -1)
    each, mean = (make(prompts=PromptConfig(conditioning=c)) for c in ("instance", "modality"))
    torch.testing.assert_close(each(images, modality)[0], mean(images, modality)[0])


def test_two_images():
    """As many images as modalities, in any order, are still images."""
    images = batch()[0][:2]
    model = make()
    swapped = model(images.flip(0), torch.tensor([1, 0]))[0]
    model = make()
    torch.testing.assert_close(model(images, torch.tensor([0, 1]))[0], swapped.flip(0))
    frozen = {"prompts": PromptConfig(conditioning="instance", text_tokens=0), "train_text_layernorm": False}
    model = make(**frozen).eval()
    sketches, photos = model.encode_sketch(images), model.encode_photo(images)
    fresh = make(**frozen).eval()
    assert torch.equal(photos, fresh.encode_photo(images)) and not torch.equal(sketches, photos)


def test_averages_are_kept_whatever_the_conditioning():
    images, modality = batch()
    each, mean = (make(prompts=PromptConfig(conditioning=c)) for c in ("instance", "modality"))
    each(images, modality), mean(images, modality)
    assert torch.equal(each.patch_mean, mean.patch_mean) and each.batches_seen == 1


def test_depth_zero_is_no_prompts():
    model = make(prompts=PromptConfig(depth=0))
    assert model.b_t is model.b_v is model.b_vt is None and model.text_tokens == 0
    assert model.backbone.tokenizer.decode(model.tokens[0, 0].tolist()).startswith("<start_of_text>sketch of a dog")


def test_constants_move_with_the_model():
    model = make().eval()
    model.constants()
    assert model.to("meta").constants().texts.device.type == "meta"


def test_clip_at_prompts_are_shallow():
    model = make(method="clip-at", loss=LossConfig(jigsaw=0)).eval()
    sketch, photo = model.visual_prompts()
    assert [tuple(p.shape) for p in sketch] == [(3, 192)] and not torch.equal(sketch[0], photo[0])
    assert model.text_tokens == 0


def test_deep_tokens_are_free_and_begin_at_the_patches():
    plain = make(method="clip-at", prompts=PromptConfig(visual_tokens=2), loss=LossConfig(jigsaw=0)).eval()
    one = make(method="vpt-deep", prompts=PromptConfig(visual_tokens=2, depth=1), loss=LossConfig(jigsaw=0)).eval()
    with torch.no_grad():
        one.deep_tokens[0].tokens.copy_(plain.modality_tokens.tokens)
    images, labels = batch()
    assert torch.equal(one(images, labels)[0], plain(images, labels)[0])  # in one layer it is CLIP-AT

    deep = make(method="vpt-deep", prompts=PromptConfig(visual_tokens=2)).eval()
    assert len(deep.deep_tokens) == deep.backbone.visual_layers
    before = [layer.tokens.clone() for layer in deep.deep_tokens]
    deep.start(images)
    states = deep.backbone.patch_states(deep.backbone.embed_patches(images))
    for layer, old in zip(deep.deep_tokens, before, strict=True):
        torch.testing.assert_close(layer.tokens - old, states.mean(dim=0).expand_as(old))
    with torch.no_grad():  # each layer's own tokens are written there, and each modality's
        features = deep(images, labels)[0]
        deep.deep_tokens[-1].tokens[1] = torch.randn(2, 192)
    moved = (deep(images, labels)[0] - features).abs().amax(dim=1) > 1e-6
    assert moved.tolist() == (labels == 1).tolist()
    trained = {name for name, p in deep.named_parameters() if p.requires_grad and "deep" in name}
    assert len(trained) == deep.backbone.visual_layers
    assert make(method="vpt-deep", prompts=PromptConfig(depth=0)).eval().visual_prompts() == [None, None]


def test_maple_prompts_are_coupled():
    prompts = PromptConfig(text_tokens=2, depth=9, template="of a")
    model = make(method="maple", prompts=prompts, loss=LossConfig(jigsaw=0)).eval()
    sketch, photo = model.visual_prompts()
    assert [tuple(p.shape) for p in sketch] == [(2, 192)] * 2  # the text tower has two layers
    assert all(torch.equal(a, b) for a, b in zip(sketch, photo, strict=True))
    for number, (text, visual) in enumerate(zip(model.coupled.text, sketch, strict=True)):
        torch.testing.assert_close(visual, model.coupled.couple[number](text))
    # It starts as "a photo of a <class>": the first tokens are those words.
    embedding = model.backbone.text.token_embedding.weight
    ids = model.backbone.tokenize(["a photo"])[0, 1:3]
    assert torch.equal(model.coupled.text[0], embedding[ids])


def test_texts_that_never_change_are_computed_once():
    frozen = {"train_text_layernorm": False, "loss": LossConfig(jigsaw=0)}
    model = make(method="clip-at", **frozen)
    first, second = (model(*batch())[1] for _ in range(2))
    assert first is second and not first.requires_grad
    assert model(*batch())[0].requires_grad
    learned = make(method="clip-at", loss=LossConfig(jigsaw=0))
    assert learned(*batch())[1].requires_grad


def test_backbone_of_a_run(tmp_path):
    """What was trained from random weights, without its BatchNorms, as weights to start from: the same features."""
    model = make(
        train_backbone=True, method="clip-ln", loss=LossConfig(jigsaw=0), prompts=PromptConfig(template="of a")
    )
    for _ in range(3):
        learn(model, lr=0.1)
    torch.save(model.eval().plain_backbone(), tmp_path / "backbone.pt")
    again = build(
        TrainConfig(
            backbone=dataclasses.replace(TINY, pretrained=str(tmp_path / "backbone.pt")),
            method="zero-shot",
            prompts=PromptConfig(template="of a"),
        ),
        CLASSES,
    ).eval()
    images, _ = batch()
    torch.testing.assert_close(again.encode_photo(images), model.encode_photo(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.encode_text(CLASSES), model.encode_text(CLASSES), rtol=1e-4, atol=1e-5)


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
    assert torch.equal(state["buffers"]["permutations"], model.permutations)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert not frozen & set(state["trainable"])
    if not train_backbone:
        weights = sum(p.numel() for p in model.trainable().values()) + sum(b.numel() for b in state["buffers"].values())
        assert (tmp_path / "c.pt").stat().st_size < 4.1 * weights + 60_000


def test_checkpoint_of_another_backbone(tmp_path):
    state = make().checkpoint()
    other = build(TrainConfig(backbone=dataclasses.replace(TINY, pretrained="random", seed=1)), CLASSES)
    with pytest.raises(UserError, match="trained on another backbone: splip-tiny .*package.* is splip-tiny .*seed 1"):
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
        (PromptConfig(template="{modality}s of a"), "has 5 tokens for sketches and 4 for photos"),
        (PromptConfig(ema=3.0), "prompts.ema must be between 0 and 1"),
        (PromptConfig(text_tokens=-1), "prompts.text_tokens must be at least 0, got -1"),
        (PromptConfig(text_tokens=28), "prompt for 'dog' is longer than the backbone's 32 tokens"),
    ],
    ids=["template", "depth", "plural", "ema", "tokens", "length"],
)
def test_rejects(prompts, message):
    with pytest.raises(UserError, match=message):
        make(prompts=prompts)


def test_prompts_of_another_size(plugged):
    """A method that writes more than it has slots for would overwrite words."""

    @register("wide")
    class Wide(Retriever):
        def make_prompts(self):
            self.text_tokens = 2

        def write_text(self, groups, patches):
            return [torch.zeros(groups, 3, self.backbone.text_width)]

    @register("flat")
    class Flat(Retriever):
        def write_visual(self, modality, summary):
            return [torch.zeros(2, 4, 192), torch.zeros(4, 192)]

    with pytest.raises(ValueError, match=r"Wide.write_text: layer 0 has prompts \[2, 3, 64\], expected \[2, 2, 64\]"):
        make(method="wide")(*batch())
    with pytest.raises(ValueError, match=r"Flat.write_visual: layer 1 has prompts \[4, 192\], expected \[2, 4, 192\]"):
        make(method="flat")(*batch())
