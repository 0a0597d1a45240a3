"""The activation that weights were trained with, seen in features: against a forward pass that is written out here."""

import dataclasses
import json
import warnings

import open_clip
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from open_clip import factory

from splip.encoders.graph import encoders
from splip.encoders.manifest import Batch
from splip.errors import UserError
from splip.export import to_onnx
from splip.export.to_onnx import OPSETS
from splip.models import build, load_model
from splip.models.clip import PromptedCLIP
from splip.models.config import BackboneConfig, LossConfig, TrainConfig
from splip.models.registry import identity
from splip.train.checks import same_config
from splip.train.pretrain import save_weights

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
NAME, MARGIN = "tiny-of-both", 1e-3  # how far features with the wrong activation must be off; the right one: 1e-5
TEXTS = ["a photo of a dog", "a sketch of a palm tree"]


@pytest.fixture(autouse=True)
def both_kinds(monkeypatch):
    """An architecture that open_clip knows with either activation."""
    kinds = {NAME: TINY, f"{NAME}-quickgelu": TINY | {"quick_gelu": True}}
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", factory._MODEL_CONFIGS | kinds)


@pytest.fixture(scope="module")
def state():
    """Random weights, large enough for the activations to differ where it shows."""
    generator = torch.Generator().manual_seed(0)
    model = open_clip.CLIP(16, open_clip.CLIPVisionCfg(**TINY["vision_cfg"]), open_clip.CLIPTextCfg(**TINY["text_cfg"]))
    made = {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        norm = name.split(".")[-2:][0].startswith("ln_") and name.endswith("weight")
        made[name] = 1 + 0.1 * noise if norm else (noise * 0.15 if tensor.dim() else tensor)
    return made


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


KINDS = {True: quick_gelu, False: gelu}


def norm(x, w, name):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def blocks(x, w, prefix, act, mask=None):
    for layer in range(2):
        p = f"{prefix}transformer.resblocks.{layer}"
        q, k, v = (norm(x, w, f"{p}.ln_1") @ w[f"{p}.attn.in_proj_weight"].T + w[f"{p}.attn.in_proj_bias"]).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / 8  # one head of 64
        scores = scores if mask is None else scores + mask
        x = x + scores.softmax(-1) @ v @ w[f"{p}.attn.out_proj.weight"].T + w[f"{p}.attn.out_proj.bias"]
        wide = act(norm(x, w, f"{p}.ln_2") @ w[f"{p}.mlp.c_fc.weight"].T + w[f"{p}.mlp.c_fc.bias"])
        x = x + wide @ w[f"{p}.mlp.c_proj.weight"].T + w[f"{p}.mlp.c_proj.bias"]
    return x


def by_hand(w, images, tokens, act):
    """Unit features of images and texts."""
    patches = F.conv2d(images, w["visual.conv1.weight"], stride=16).flatten(2).transpose(1, 2)
    x = torch.cat([w["visual.class_embedding"].expand(len(images), 1, -1), patches], 1)
    x = blocks(norm(x + w["visual.positional_embedding"], w, "visual.ln_pre"), w, "visual.", act)
    seen = norm(x[:, 0], w, "visual.ln_post") @ w["visual.proj"]
    x = w["token_embedding.weight"][tokens] + w["positional_embedding"]
    x = blocks(x, w, "", act, torch.full((16, 16), float("-inf")).triu(1))
    read = norm(x, w, "ln_final")[torch.arange(len(x)), tokens.argmax(1)] @ w["text_projection"]
    return F.normalize(seen, dim=1), F.normalize(read, dim=1)


@torch.no_grad()
def check(model, w, quick):
    """The model's features are those of one activation, and far from those of the other."""
    torch.manual_seed(1)
    images, tokens = torch.randn(3, 3, 32, 32), model.tokenize(TEXTS, truncate=False)
    seen = F.normalize(model.eval().encode_visual(model.embed_patches(images)), dim=1)
    read = F.normalize(model.encode_text(tokens)[0], dim=1)
    for got, right, wrong in zip(
        (seen, read),
        by_hand(w, images, tokens, KINDS[quick]),
        by_hand(w, images, tokens, KINDS[not quick]),
        strict=True,
    ):
        torch.testing.assert_close(got, right, rtol=0, atol=1e-5)
        assert (got - wrong).abs().max() > MARGIN
    assert model.quick_gelu is quick


def archive(path, w, quick, openai=True):
    """A traced model as a TorchScript archive, with OpenAI's three numbers."""
    model = open_clip.CLIP(
        16,
        open_clip.CLIPVisionCfg(**TINY["vision_cfg"]),
        open_clip.CLIPTextCfg(**TINY["text_cfg"]),
        quick_gelu=quick,
    ).eval()
    model.load_state_dict(w)
    if openai:
        for name, number in (("input_resolution", 32), ("context_length", 16), ("vocab_size", 49408)):
            if hasattr(model, name):
                delattr(model, name)
            model.register_buffer(name, torch.tensor(number))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.trace(
            model, (torch.randn(2, 3, 32, 32), torch.ones(2, 16, dtype=torch.int64)), check_trace=False
        )
        made.save(str(path))
    return path


def made(path, **changes):
    return PromptedCLIP(BackboneConfig(**{"name": NAME, "pretrained": str(path)} | changes))


def save(path, w):
    safetensors.torch.save_file(w, path) if path.suffix == ".safetensors" else torch.save(w, path)
    return path


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("file", ["w.pt", "w.safetensors"])
def test_a_setting_decides(tmp_path, state, file, quick):
    check(made(save(tmp_path / file, state), quick_gelu=str(quick).lower()), state, quick)


@pytest.mark.parametrize("file", ["w.pt", "w.safetensors"])
def test_what_cannot_be_known_is_refused(tmp_path, state, file):
    with pytest.raises(UserError, match="cannot tell whether .* --backbone.quick_gelu true or false"):
        made(save(tmp_path / file, state))


def test_a_name_says_it(tmp_path, state):
    check(made(save(tmp_path / "w.pt", state), name=f"{NAME}-quickgelu"), state, True)
    check(made(tmp_path / "w.pt", name=f"{NAME}-quickgelu", quick_gelu="false"), state, False)


@pytest.mark.parametrize("quick", [True, False])
def test_a_configuration_beside_it_says_it(tmp_path, state, quick):
    path = save(tmp_path / "w.safetensors", state)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY | {"quick_gelu": quick}}))
    check(made(path), state, quick)


@pytest.mark.parametrize("quick", [True, False])
def test_a_configuration_of_hugging_face_says_it(tmp_path, state, quick):
    path, tower = save(tmp_path / "w.pt", state), {"hidden_size": 64, "hidden_act": "quick_gelu" if quick else "gelu"}
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": tower, "text_config": tower}))
    check(made(path), state, quick)


def test_a_configuration_of_another_model_says_nothing(tmp_path, state):
    path, wide = save(tmp_path / "w.pt", state), TINY["vision_cfg"] | {"width": 768}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY | {"vision_cfg": wide}}))
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"hidden_size": 768}, "text_config": {}}))
    with pytest.raises(UserError, match="cannot tell"):
        made(path)


@pytest.mark.parametrize(("quick", "openai"), [(True, True), (True, False), (False, False)])
def test_archives_say_it_in_their_code(tmp_path, state, quick, openai):
    check(made(archive(tmp_path / "ViT.pt", state, quick, openai)), state, quick)


def test_archives_are_read_without_being_run(tmp_path, state, monkeypatch):
    path = archive(tmp_path / "ViT.pt", state, True)
    monkeypatch.setattr(torch.jit, "load", None)
    model = made(path)
    for name, tensor in state.items():
        assert torch.equal(model.clip.state_dict()[name], tensor), name


def test_state_dict_of_openai(tmp_path, state):
    numbers = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16), "vocab_size": torch.tensor(9)}
    check(made(save(tmp_path / "w.pt", state | numbers)), state, True)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("where", ["name", "pretrained"])
def test_local_dir(tmp_path, state, where, quick):
    save(tmp_path / "open_clip_model.safetensors", state)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY | {"quick_gelu": quick}}))
    place = f"local-dir:{tmp_path}"
    config = BackboneConfig(place) if where == "name" else BackboneConfig(NAME, place)
    model = PromptedCLIP(config)
    check(model, state, quick)
    assert model.identity()["pretrained"] == place


def test_a_folder_says_nothing_to_transformers(tmp_path, state):
    """Whose options may name code to be run."""
    save(tmp_path / "open_clip_model.safetensors", state)
    for kwargs in ({"trust_remote_code": True}, {"bpe_path": "/etc/hostname"}, 5):
        for named in ({"hf_tokenizer_name": "x"}, {}):
            text = TINY["text_cfg"] | named | {"tokenizer_kwargs": kwargs}
            (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY | {"text_cfg": text}}))
            config = TrainConfig(method="zero-shot", backbone=BackboneConfig(f"local-dir:{tmp_path}"))
            with pytest.raises(UserError, match="tokenizer_kwargs is"):
                build(config, [])


def test_a_folder_is_known_by_its_architecture_too(tmp_path, state):
    """The same tensors, run otherwise, are another model."""
    found = set()
    for eps in (1e-5, 0.1):
        folder = tmp_path / str(eps)
        folder.mkdir()
        save(folder / "open_clip_model.safetensors", state)
        vision = TINY["vision_cfg"] | {"norm_kwargs": {"eps": eps}}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY | {"vision_cfg": vision}}))
        model = build(TrainConfig(method="zero-shot", backbone=BackboneConfig(f"local-dir:{folder}")), [])
        found.add(identity(model))
    assert len(found) == 2


def test_local_dir_is_refused(tmp_path, state):
    place = f"local-dir:{tmp_path}"
    for config, message in (
        (BackboneConfig(place + "/x"), "no such folder"),
        (BackboneConfig("local-dir:"), "needs the path"),
        (BackboneConfig(place, "openai"), "brings its weights: leave out --backbone.pretrained openai"),
        (BackboneConfig(place), "no open_clip_config.json in it"),
    ):
        with pytest.raises(UserError, match=message):
            PromptedCLIP(config)
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON with an open_clip model_cfg"):
        PromptedCLIP(BackboneConfig(place))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    with pytest.raises(UserError, match="no weights in it"):
        PromptedCLIP(BackboneConfig(place))
    save(tmp_path / "open_clip_model.safetensors", state)
    with pytest.raises(UserError, match="not weights of ViT-B-32: embed_dim is 16, not 512"):
        PromptedCLIP(BackboneConfig("ViT-B-32", place))


def test_a_contradiction_is_one_line(tmp_path, state):
    path = archive(tmp_path / "ViT.pt", state, True)
    with pytest.warns(RuntimeWarning, match="runs with GELU, but .* was trained with QuickGELU") as seen:
        made(path, quick_gelu="false")
    assert len(seen) == 1 and "\n" not in str(seen[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(path)


def settings(path, **changes):
    config = BackboneConfig(NAME, str(path), **changes)
    return TrainConfig(backbone=config, method="clip-ln", loss=LossConfig(jigsaw=0))


@pytest.mark.parametrize("quick", [True, False])
def test_what_this_package_writes_is_never_asked_about(tmp_path, state, quick):
    model = build(settings(save(tmp_path / "w.pt", state), quick_gelu=str(quick).lower()), ["ball", "box"])
    torch.save(model.plain_backbone(), tmp_path / "plain.pt")
    check(made(tmp_path / "plain.pt"), state, quick)
    save_weights(model.backbone, tmp_path / "w.safetensors")
    check(made(tmp_path / "w.safetensors"), {n: t.half().float() for n, t in state.items()}, quick)


@pytest.mark.parametrize("name", [NAME, f"{NAME}-quickgelu"])
def test_checkpoints_from_before_the_setting(tmp_path, state, name):
    """They are built as they were: as the architecture says, whatever stands beside the file."""
    quick = name != NAME
    config = settings(save(tmp_path / "w.pt", state), quick_gelu=str(quick).lower())
    config.backbone.name = name
    saved = build(config, ["ball", "box"]).checkpoint()
    del saved["config"]["backbone"]["quick_gelu"], saved["backbone"]["quick_gelu"]
    torch.save(saved, tmp_path / "old.pt")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY | {"quick_gelu": not quick}}))
    with pytest.warns(RuntimeWarning, match="open_clip_config.json beside it"):
        model = load_model(tmp_path / "old.pt")
    check(model.backbone, state, quick)


def test_a_run_from_before_the_setting_goes_on(tmp_path, state):
    path = save(tmp_path / "w.pt", state)
    saved = build(settings(path, quick_gelu="false"), ["ball", "box"]).checkpoint()
    del saved["config"]["backbone"]["quick_gelu"], saved["backbone"]["quick_gelu"]
    for setting in ("auto", "false"):
        config = settings(path, quick_gelu=setting)
        same_config(saved, config, tmp_path / "last.pt")
        check(PromptedCLIP(config.backbone), state, False)
    with pytest.raises(UserError, match="backbone.quick_gelu: false -> true"):
        same_config(saved, settings(path, quick_gelu="true"), tmp_path / "last.pt")


def test_a_checkpoint_keeps_its_activation(tmp_path, state):
    path = save(tmp_path / "w.pt", state)
    beside = tmp_path / "open_clip_config.json"
    beside.write_text(json.dumps({"model_cfg": TINY | {"quick_gelu": True}}))
    saved = build(settings(path), ["ball", "box"]).checkpoint()
    torch.save(saved, tmp_path / "run.pt")
    beside.unlink()
    check(load_model(tmp_path / "run.pt").backbone, state, True)
    saved["config"]["backbone"]["quick_gelu"] = "false"
    torch.save(saved, tmp_path / "run.pt")
    with pytest.raises(UserError, match="trained with another GELU"):
        load_model(tmp_path / "run.pt")


@torch.no_grad()
def test_exported_graph_keeps_the_activation(tmp_path, state):
    """Prompts folded into constants, as exports are made: the features of the model, and not those of the other GELU."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    path, images = save(tmp_path / "w.pt", state), torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    right, wrong = (
        build(dataclasses.replace(settings(path, quick_gelu=q), method="splip"), ["ball", "box"]).eval()
        for q in ("true", "false")
    )
    to_onnx.write(encoders(right, fused=True)["photo"], tmp_path / "g.onnx", Batch(1, 3, 8), OPSETS["fp32"], {})
    session = onnxruntime.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
    got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.permute(0, 2, 3, 1).numpy()})[0])
    torch.testing.assert_close(got, right.encode_photo(images), rtol=0, atol=1e-5)
    assert (got - wrong.encode_photo(images)).abs().max() > MARGIN
