"""Repositories of the hub, through huggingface_hub itself and a stand-in that answers as the hub does."""

import json
import shutil
import sys
from pathlib import Path

import hub_server
import huggingface_hub
import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from checkpoints import save_model
from open_clip import factory

from splip import disk
from splip.encoders import Encoder
from splip.errors import UserError
from splip.gallery import Gallery
from splip.models import hub, load_model, names, read_checkpoint

FIXTURES = Path(__file__).parents[1] / "fixtures"
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
MADE = {"owner/sketches": "splip", "owner/tiny": "open_clip"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The stand-in, and a cache of its own: the client reads where both are when it is imported."""
    with hub_server.serving() as server:
        constants = huggingface_hub.constants
        home = tmp_path / "hf"
        for name in list(sys.modules):  # each module that took a copy of the address or of the cache's place
            module = sys.modules[name]
            if name.startswith("huggingface_hub"):
                for key, value in (("ENDPOINT", server.url), ("HF_HUB_CACHE", str(home / "hub"))):
                    if key in vars(module):
                        monkeypatch.setattr(module, key, value)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(huggingface_hub.HfApi, "__init__", _at(server.url, huggingface_hub.HfApi.__init__))
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        yield server
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def _at(url, init):
    def made(self, endpoint=None, *args, **options):
        init(self, endpoint or url, *args, **options)

    return made


def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


def open_clip_files(seed=0):
    """What open_clip's own push writes: its configuration, weights as tensors; and a pickle."""
    torch.manual_seed(seed)
    made = open_clip.CLIP(16, open_clip.CLIPVisionCfg(**TINY["vision_cfg"]), open_clip.CLIPTextCfg(**TINY["text_cfg"]))
    state = {name: tensor.contiguous() for name, tensor in made.state_dict().items()}
    config = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3}}
    return {
        "open_clip_config.json": json.dumps(config).encode(),
        "open_clip_model.safetensors": safetensors.torch.save(state),
        "open_clip_pytorch_model.bin": b"\x80\x04 a pickle that nobody asks for",
    }


def test_a_run_pushed_and_loaded_elsewhere(place, cli, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    save_model(run / "best.safetensors", 0)
    results = {"protocol": "zs", "queries": 6, "gallery": 4, "query_mean": {"SpLIP": {"mAP@all": 0.5}}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    args = ("push-to-hub", run, "owner/sketches", "--private", "--results", tmp_path / "results.json")
    code, out, err = cli(*args)
    commit = place.repos[("model", "owner/sketches")]["commits"][-1][0]
    assert code == 0 and out.strip() == f"hf-hub:owner/sketches@{commit}" and not err
    files = place.files("owner/sketches")
    assert set(files) == {"best.safetensors", "config.json", "README.md"}
    assert files["best.safetensors"] == (run / "best.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert card.startswith("---\nlicense: apache-2.0\n") and "hf-hub:owner/sketches" in card and "ball, box" in card
    assert "| SpLIP | 50.0 |" in card and str(tmp_path) not in card
    assert json.loads(files["config.json"])["classes"] == ["ball", "box"]
    assert place.repos[("model", "owner/sketches")]["private"]

    here, there = Encoder.load(run, device="cpu"), Encoder.load("hf-hub:owner/sketches", device="cpu")
    np.testing.assert_array_equal(here.encode(PIXELS, "sketch"), there.encode(PIXELS, "sketch"))
    assert here.identity == there.identity and commit in there.name
    place.asked.clear()
    assert Encoder.load(f"hf-hub:owner/sketches@{commit}", device="cpu").identity == here.identity
    assert not [path for method, path, _ in place.asked if method == "GET" and path.endswith(".safetensors")]  # cached


def test_a_gallery_notes_the_commit_of_its_model(place, cli, tree, tmp_path):
    old = place.put("owner/tiny", open_clip_files())
    add = ("index", "add", tree / "photo/ball", "--gallery", tmp_path / "g", "--device", "cpu")
    assert cli(*add, "--model", "hf-hub:owner/tiny")[0] == 0
    place.put("owner/tiny", open_clip_files(1))  # another model under the same name
    with Gallery.open(tmp_path / "g", device="cpu") as gallery:
        assert gallery.facts["named"] == f"hf-hub:owner/tiny@{old}"
        assert gallery.search(texts=["ball"], k=1) and old in gallery.model
    state = read_checkpoint(tmp_path / "g/model.safetensors")
    assert state["backbone"]["revision"] == old and state["config"]["backbone"]["name"] == "hf-hub:owner/tiny"
    assert (
        "cannot be compared"
        in cli("search", "--gallery", tmp_path / "g", "--text", "a", "--model", "hf-hub:owner/tiny")[2]
    )


def test_a_repository_of_open_clips(place, monkeypatch):
    place.put("owner/tiny", open_clip_files())
    model = load_model("hf-hub:owner/tiny")
    assert model.config.method == "zero-shot" and model.backbone.mean == (0.5, 0.5, 0.5)
    asked = {path.rpartition("/")[2] for method, path, _ in place.asked if method == "GET" and "resolve" in path}
    assert "open_clip_model.safetensors" in asked and "open_clip_pytorch_model.bin" not in asked
    offline(monkeypatch)
    again = load_model("hf-hub:owner/tiny")
    assert torch.equal(again.encode_photo(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)),
                       model.encode_photo(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)))  # fmt: skip


def test_a_tag_is_pinned(place, monkeypatch):
    """Weights that open_clip knows, of the commit that was first, although there is a newer one."""
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", factory._MODEL_CONFIGS | {"tiny-of-tests": TINY})
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED,
        "tiny-of-tests",
        {"shipped": {"hf_hub": "owner/tiny/", "mean": (0.1,) * 3, "std": (1.0,) * 3}},
    )
    old = place.put("owner/tiny", open_clip_files())
    place.put("owner/tiny", open_clip_files(1))
    first = load_model(f"open_clip:tiny-of-tests/shipped@{old}")
    assert first.backbone.mean == (0.1, 0.1, 0.1) and first.backbone_identity["revision"] == old
    newest = load_model("open_clip:tiny-of-tests/shipped")
    assert newest.backbone_identity["sha256"] != first.backbone_identity["sha256"]
    assert newest.backbone_identity["revision"] == place.repos[("model", "owner/tiny")]["commits"][-1][0]


def test_a_gallery_pushed_and_pulled(place, cli, refused, tree, tmp_path):
    """One that an earlier version's checkpoint made: its model goes without pickle, its vectors as they are."""
    model = tmp_path / "old.pt"
    shutil.copy(FIXTURES / "checkpoints/clip-ln.pt", model)
    gallery, copy = tmp_path / "g", tmp_path / "copy"
    assert cli("index", "add", tree / "photo", "--gallery", gallery, "--model", model, "--device", "cpu")[0] == 0
    # What was removed does not go along: its vectors lie in the files until they are compacted.
    extra = tmp_path / "extra"
    shutil.copytree(tree / "sketch/box", extra)
    assert cli("index", "add", extra, "--gallery", gallery, "--device", "cpu")[0] == 0
    assert cli("index", "remove", extra, "--gallery", gallery)[0] == 0
    assert "3 removed pictures: `splip index compact" in refused("push-to-hub", gallery, "owner/photos")
    assert cli("index", "compact", "--gallery", gallery)[0] == 0
    before = sorted(p.name for p in tmp_path.iterdir())
    code, out, _ = cli("push-to-hub", gallery, "owner/photos")
    assert code == 0 and "16 pictures' vectors, paths, labels and tags go to the hub; pictures do not" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    files = place.files("owner/photos", "dataset")
    assert {"gallery.db", "model.safetensors", "README.md"} <= set(files) and "model.pt" not in files
    code, out, _ = cli("pull-from-hub", "owner/photos", "--out", copy)
    commit = place.repos[("dataset", "owner/photos")]["commits"][-1][0]
    assert code == 0 and out == f"{copy}: 16 pictures of hf-hub:owner/photos@{commit}\n"
    with Gallery.open(gallery, device="cpu") as here, Gallery.open(copy, device="cpu") as there:
        assert "named" not in there.facts  # a path of the other machine, here
        assert there.facts["place"] == f"hf-hub:owner/photos@{commit}"
        sketches = [tree / "sketch/ball/0.png", tree / "sketch/box/1.png"]
        found = [[(m.path, m.score) for m in ms] for g in (here, there) for ms in g.search(sketches, k=5)]
        assert found[:2] == found[2:]
        assert there.identity == disk.file_hash(copy / "model.safetensors") != here.identity
    assert cli("index", "add", tree / "sketch/ball", "--gallery", copy)[0] == 0  # it grows as any
    assert "cannot be compared" in refused("search", "--gallery", copy, "--text", "a", "--model", "splip-tiny")
    assert "exists already" in refused("pull-from-hub", "owner/photos", "--out", copy)
    assert "is a gallery" in refused("search", "--gallery", gallery, "--text", "a", "--model", gallery)
    message = refused("search", "--gallery", "hf-hub:owner/photos", "--text", "a")
    assert "`splip pull-from-hub owner/photos --out FOLDER` brings it here" in message


def test_a_gallery_that_was_damaged_on_the_way(place, cli, refused, tree, tmp_path):
    gallery = tmp_path / "g"
    assert cli("index", "add", tree / "photo", "--gallery", gallery, "--model", "splip-tiny", "--device", "cpu")[0] == 0
    assert cli("push-to-hub", gallery, "owner/photos")[0] == 0
    files = dict(place.files("owner/photos", "dataset"))
    rows = bytearray(files["vectors/000001.f32"])
    rows[5] ^= 1
    for change in ({"vectors/000001.f32": bytes(rows)}, {"gallery.db": b"nothing"}, {"model.safetensors": b"nothing"}):
        place.put("owner/photos", {**files, **change}, "dataset")
        message = refused("pull-from-hub", "owner/photos", "--out", tmp_path / "copy")
        assert "damaged" in message or "not" in message
        assert not (tmp_path / "copy").exists() and not list(tmp_path.glob(".copy*"))


def test_files_of_a_repository_stay_in_their_folder(place, tmp_path, refused, cli):
    """Names that lead elsewhere, or are of nobody's use, are not asked for."""
    files = {
        "best.safetensors": b"x",
        "../../evil": b"",
        "vectors/../../evil": b"",
        "/etc/evil": b"",
        "a/b.safetensors": b"",
    }
    place.put("owner/odd", files | {"..": b"", ".cache": b"", "[a].txt": b"", "*": b""})
    assert hub.look(hub.repository("owner/odd")).files == ["best.safetensors"]
    assert cli("pull-from-hub", "owner/odd", "--out", tmp_path / "out")[0] == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["best.safetensors"]
    assert "best.safetensors: not a splip checkpoint" in refused("export", "hf-hub:owner/odd", "--out", tmp_path / "e")
    assert not [path for _, path, _ in place.asked if "evil" in path]


@pytest.mark.exhaustive
def test_an_export_pushed_and_loaded(place, cli, refused, tmp_path):
    pytest.importorskip("onnxruntime")
    made = tmp_path / "exported"
    assert cli("export", "splip-tiny", "--onnx", "--out", made)[0] == 0  # of a model without training, by its name
    assert cli("push-to-hub", made, "owner/exported")[0] == 0
    assert set(place.files("owner/exported")) == {"export.json", "photo.onnx", "sketch.onnx", "README.md"}
    assert "made of | `open_clip:splip-tiny`" in place.files("owner/exported")["README.md"].decode()
    encoder, own = Encoder.load("hf-hub:owner/exported", device="cpu"), Encoder.load("splip-tiny", device="cpu")
    assert encoder.identity == own.identity
    np.testing.assert_allclose(encoder.encode(PIXELS, "photo"), own.encode(PIXELS, "photo"), atol=1e-4)
    with pytest.raises(UserError, match="this export holds no text tower"):
        encoder.encode_text(["a horse"])
    assert "is an export: give the checkpoint it was made of" in refused("export", made, "--out", tmp_path / "again")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/none", "no such model on the hub, or one that this token may not read"),
        ("owner/empty", "holds no checkpoint"),
        ("owner/empty@v9", "no such revision"),
        ("owner/photos", "is a gallery; `splip pull-from-hub owner/photos --out FOLDER`"),
    ],
)
def test_repositories_that_are_no_model(place, name, message):
    place.put("owner/empty", {"README.md": b"nothing"})
    place.put("owner/photos", {"gallery.db": b""})
    with pytest.raises(UserError, match=message):
        names.resolve(f"hf-hub:{name}")


def test_who_may_do_what(place, refused, monkeypatch, tmp_path):
    save_model(tmp_path / "best.safetensors", 0)
    place.put("owner/secret", {"best.safetensors": b""}, private=True)
    push = ("push-to-hub", tmp_path / "best.safetensors", "owner/sketches")
    monkeypatch.setenv("HF_TOKEN", hub_server.READER)
    assert "owner/sketches: the token may not do this" in refused(*push)
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    assert "the token is not valid" in refused(*push)
    monkeypatch.delenv("HF_TOKEN")
    place.asked.clear()
    assert "no token: `hf auth login`, or set HF_TOKEN" in refused(*push) and not place.asked
    with pytest.raises(
        UserError, match="owner/secret: no such model on the hub, or one that is private: `hf auth login`"
    ):
        names.resolve("hf-hub:owner/secret")
    assert ("model", "owner/sketches") not in place.repos


def test_an_upload_that_breaks_off(place, cli, refused, tmp_path):
    save_model(tmp_path / "best.safetensors", 0)
    push = ("push-to-hub", tmp_path / "best.safetensors", "owner/sketches")
    place.fail = ("/commit/", 1, None)
    assert "owner/sketches: the hub did not answer as it should" in refused(*push)
    assert place.files("owner/sketches") == {}
    assert cli(*push)[0] == 0 and "best.safetensors" in place.files("owner/sketches")


def test_without_a_network(place, monkeypatch):
    place.put("owner/tiny", open_clip_files())
    with monkeypatch.context() as patch:
        offline(patch)
        with pytest.raises(
            UserError, match="owner/tiny: is not in the cache, and cannot be downloaded: HF_HUB_OFFLINE is set"
        ):
            names.resolve("hf-hub:owner/tiny")
    wanted = Encoder.load("hf-hub:owner/tiny", device="cpu").encode(PIXELS, "photo")
    place.fail = ("/", 10**6, None)  # nothing answers any more
    np.testing.assert_array_equal(Encoder.load("hf-hub:owner/tiny", device="cpu").encode(PIXELS, "photo"), wanted)
    with pytest.raises(UserError, match="owner/other: is not in the cache, and cannot be downloaded: "):
        names.resolve("hf-hub:owner/other")


def test_no_message_holds_a_token(place, monkeypatch, caplog, capsys):
    token = hub_server.TOKEN

    def fail(*_, **__):
        raise RuntimeError(f"Bearer {token}\nand hf_anotherone12345 at https://user:{token}@host")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", fail)
    with pytest.raises(UserError) as error:
        hub.look(hub.repository("owner/name"))
    text = str(error.value) + caplog.text + "".join(capsys.readouterr())
    assert token not in text and "hf_another" not in text and "***" in text and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "name", "a/b/c", "../b", "a/..", "a/b@", "a/b@../c", "a b/c", "a/b@x y", "http://a/b"]
)
def test_what_is_no_repository(text):
    with pytest.raises(UserError, match="a repository of the hub is OWNER/NAME"):
        hub.repository(text)
    name, at, revision = text.partition("@")
    with pytest.raises(UserError, match="a repository of the hub is OWNER/NAME"):  # as a checkpoint may say it
        hub.Repository(name, revision if at else None)
