"""What ``--model`` may say: every form finds its model, the same model is the same under all its names."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoints import save_model

from splip import disk
from splip.encoders import Encoder
from splip.errors import UserError
from splip.gallery import Gallery
from splip.models import build, load_model, names, read_checkpoint
from splip.models.checkpoint import write_checkpoint
from splip.models.clip import PromptedCLIP
from splip.models.config import BackboneConfig, TrainConfig
from splip.models.registry import identity

FIXTURES = Path(__file__).parents[1] / "fixtures"
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def packaged():
    return Encoder.load("splip-tiny", device="cpu")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", BackboneConfig("ViT-B-32", "laion2b_s34b_b79k")),
        ("open_clip:ViT-B-32/openai@abc123", BackboneConfig("ViT-B-32", "openai", revision="abc123")),
        ("open_clip:splip-tiny", BackboneConfig("splip-tiny")),
        ("open_clip:splip-tiny/random", BackboneConfig("splip-tiny", "random")),
        ("timm:vit_small_patch14_dinov2.lvd142m@224", BackboneConfig("timm:vit_small_patch14_dinov2.lvd142m@224")),
        ("vit-b-32", BackboneConfig("ViT-B-32", "laion2b_s34b_b79k")),
        ("local-dir:/a/b c", BackboneConfig("local-dir:/a/b c")),
    ],
)
def test_names_of_backbones(name, wanted):
    found = names.resolve(name)
    assert (found.kind, found.backbone, found.path) == ("backbone", wanted, None)
    assert names.resolve(found.name) == found  # what is noted finds the same again


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:", "needs a name after it"),
        ("open_clip:ViT-B-32", "open_clip:ViT-B-32 names no weights: open_clip:ViT-B-32/TAG"),
        ("open_clip:ViT-B-32/a/b", "cannot be meant"),
        ("open_clip:ViT-B-32/openai@", "cannot be meant"),
        ("open_clip:ViT-B-32@nowhere.safetensors", "no file nowhere.safetensors"),
        ("timm:vit_small_patch14_dinov2", "names no weights: timm:NAME.TAG"),
        ("hf-hub:owner", "a repository of the hub is OWNER/NAME"),
        ("hf-hub:../name", "a repository of the hub is OWNER/NAME"),
        ("hf-hub:owner/name@", "a repository of the hub is OWNER/NAME"),
        ("hf-hub:owner/na me", "a repository of the hub is OWNER/NAME"),
        ("vit-b-23", "no such file or folder, and no name of a model; did you mean vit-b-32"),
        ("nothing", "no checkpoint nothing: .*`splip models` lists some"),
        ("runs/none", "no checkpoint runs/none: no such file or folder$"),
    ],
)
def test_names_that_cannot_be_meant(name, message):
    with pytest.raises(UserError, match=message):
        names.resolve(name)


def test_what_a_folder_is(tmp_path, monkeypatch):
    run, export = tmp_path / "run", tmp_path / "exported"
    run.mkdir()
    export.mkdir()
    with pytest.raises(UserError, match=r"no checkpoint \(best.safetensors\) and not an export"):
        names.resolve(run)
    (run / "best.pt").touch()
    assert names.resolve(run).path == run / "best.pt"
    (run / "best.safetensors").touch()
    assert names.resolve(str(run)) == names.Model("checkpoint", str(run), run / "best.safetensors")
    (export / "export.json").touch()
    assert names.resolve(export) == names.Model("export", str(export), export)
    for file, message in (("open_clip_config.json", "is named local-dir:"), ("gallery.db", "is a gallery")):
        (tmp_path / file).touch()
        with pytest.raises(UserError, match=message):
            names.resolve(tmp_path)
        (tmp_path / file).unlink()
    # What is there goes before a preset.
    monkeypatch.chdir(tmp_path)
    assert names.resolve("vit-b-32").kind == "backbone" and names.is_name("vit-b-32")
    shutil.copytree(export, "vit-b-32")
    assert names.resolve("vit-b-32").kind == "export" and not names.is_name("vit-b-32")


def test_a_preset_embeds_as_its_backbone_does(packaged):
    clip = PromptedCLIP(BackboneConfig("splip-tiny")).eval()
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(clip.encode_visual(clip.embed_patches(images)), dim=1)
        text, _ = clip.encode_text(clip.tokenize(["photo of a horse"]))
    for modality in ("sketch", "photo"):
        np.testing.assert_allclose(packaged.encode(PIXELS, modality), wanted, atol=2e-6)
    np.testing.assert_allclose(packaged.encode_text(["a horse"])[0], text[0] / text[0].norm(), atol=2e-6)
    assert packaged.name == "open_clip:splip-tiny" and packaged.path == "open_clip:splip-tiny"


def test_one_model_under_many_names(packaged, tmp_path):
    """The package's weights, in a file of another precision and kind, in open_clip's layout, in a checkpoint."""
    clip = PromptedCLIP(BackboneConfig("splip-tiny")).clip
    state = {name: tensor.clone().contiguous() for name, tensor in clip.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    load_model("splip-tiny")
    write_checkpoint(load_model("splip-tiny").checkpoint(), tmp_path / "zero.safetensors")
    for name in (
        f"open_clip:splip-tiny@{tmp_path}/w.safetensors", f"open_clip:splip-tiny@{tmp_path}/w.pt",
        str(tmp_path / "zero.safetensors"),
    ):  # fmt: skip
        encoder = Encoder.load(name, device="cpu")
        assert encoder.identity == packaged.identity and encoder.embed_dim == 256, name
    state["logit_scale"] += 1
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    other = Encoder.load(f"open_clip:splip-tiny@{tmp_path}/w.safetensors", device="cpu")
    assert other.identity != packaged.identity
    # The file of a checkpoint of before says what it is, as galleries noted it.
    old = FIXTURES / "checkpoints/zero-shot.pt"
    assert Encoder.load(old, device="cpu").identity == disk.file_hash(old)


def test_what_changes_features_changes_the_identity():
    config = TrainConfig(method="zero-shot", backbone=BackboneConfig("splip-tiny"))
    found = {identity(build(config, []))}
    for change in (
        lambda c: setattr(c.backbone, "quick_gelu", "true"), lambda c: setattr(c.data, "fit", "crop"),
        lambda c: setattr(c.data, "crop_sketches", not c.data.crop_sketches),
        lambda c: setattr(c.prompts, "template", "a {modality} of a"),
        lambda c: (setattr(c.backbone, "pretrained", "random"), setattr(c.backbone, "seed", 3)),
    ):  # fmt: skip
        other = TrainConfig(method="zero-shot", backbone=BackboneConfig("splip-tiny"))
        change(other)
        found.add(identity(build(other, [])))
    assert len(found) == 6
    model = build(config, [])
    model.backbone.visual.transformer.resblocks[0].attn.num_heads = 3  # the same tensors, other features
    assert identity(model) not in found
    free = TrainConfig(method="zero-shot", backbone=BackboneConfig("splip-tiny"), seed=5, epochs=3)
    assert identity(build(free, ["horse"])) in found


def test_a_gallery_of_a_preset_keeps_its_model(cli, refused, tree, tmp_path):
    gallery = tmp_path / "g"
    code, out, _ = cli("index", "add", tree / "photo", "--gallery", gallery, "--model", "splip-tiny", "--device", "cpu")
    assert code == 0 and "16 pictures" in out
    assert (gallery / "model.safetensors").stat().st_size < 50_000
    with Gallery.open(gallery, device="cpu") as opened:
        assert opened.facts["named"] == "open_clip:splip-tiny" == opened.model
        assert opened.search(sketches=[tree / "sketch/ball/0.png"], k=2) and opened.search(texts=["ball"], k=2)
        assert not opened.check().damage
    state = read_checkpoint(gallery / "model.safetensors")
    assert state["classes"] == [] and state["trainable"] == {} and state["config"]["method"] == "zero-shot"
    found = cli("search", "--gallery", gallery, "--text", "ball", "--model", "open_clip:splip-tiny")
    assert found[0] == 0
    assert "cannot be compared" in refused(
        "search", "--gallery", gallery, "--text", "ball", "--model", "open_clip:splip-tiny/random"
    )
    (gallery / "model.safetensors").write_bytes(b"other")
    assert cli("index", "check", "--gallery", gallery)[0] == 1


def test_a_gallery_of_a_run_names_its_folder(cli, tree, tmp_path):
    (tmp_path / "run").mkdir()
    path = save_model(tmp_path / "run/best.safetensors", 0)
    args = ("index", "add", tree / "photo/ball", "--gallery", tmp_path / "g", "--device", "cpu")
    assert cli(*args, "--model", tmp_path / "run")[0] == 0
    assert (tmp_path / "g/model.safetensors").read_bytes() == path.read_bytes()
    with Gallery.open(tmp_path / "g") as opened:
        assert opened.identity == disk.file_hash(path) and opened.model == "best.safetensors (splip-tiny, splip)"
    assert cli(*args, "--model", path)[0] == 0


def test_checkpoints_of_both_kinds_are_one_model(tmp_path):
    """What was trained before and is written again gives the same features."""
    for old in sorted((FIXTURES / "checkpoints").glob("*.pt")):
        state = read_checkpoint(old)
        write_checkpoint(state, tmp_path / "new.safetensors")
        with safetensors.safe_open(tmp_path / "new.safetensors", "pt") as file:  # any program reads it
            assert set(file.keys()) == {f"{p}.{n}" for p in ("trainable", "buffers") for n in state[p]}
            assert json.loads(file.metadata()["splip"])["classes"] == state["classes"]
        again = read_checkpoint(tmp_path / "new.safetensors")
        assert all(torch.equal(again[p][n], t) for p in ("trainable", "buffers") for n, t in state[p].items())
        assert {k: v for k, v in again.items() if k not in ("trainable", "buffers")} == {
            k: v for k, v in state.items() if k not in ("trainable", "buffers")
        }


def test_a_preset_is_measured_as_any(cli, refused, tree, tmp_path):
    out = tmp_path / "r.json"
    code, _, err = cli("eval", "--model", "splip-tiny", "--root", tree, "--json", out, "--device", "cpu")
    assert code == 0, err
    report = json.loads(out.read_text())
    assert report["checkpoint"] == {"file": "open_clip:splip-tiny", "sha256": Encoder.load("splip-tiny").identity}
    assert report["method"] == "zero-shot" and report["leaked"] == []
    assert "data.root" in refused("eval", "--model", "splip-tiny")


def test_names_and_encoders_import_nothing_heavy():
    """`splip --help` is quick, and an export runs where neither torch nor what the command line takes is."""
    heavy = {"torch", "open_clip", "huggingface_hub", "safetensors", "tyro", "yaml", "rich"}
    code = (
        "import sys; from splip.models import names; from splip.encoders import Encoder; names.resolve('vit-b-32')\n"
        f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_for_a_process_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").touch()
    assert names.absolute("local-dir:folder") == f"local-dir:{tmp_path}/folder"
    assert names.absolute("open_clip:ViT-B-32@weights.bin") == f"open_clip:ViT-B-32@{tmp_path}/weights.bin"
    assert names.absolute("open_clip:ViT-B-32/openai@0123abc") == "open_clip:ViT-B-32/openai@0123abc"
    assert names.absolute("splip-tiny-2") == "splip-tiny-2"
    assert names.absolute("runs/mine") == tmp_path / "runs/mine"
