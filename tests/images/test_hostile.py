"""Files that are damaged, or made to do harm: one line, exit code 2, and nothing of what they ask for."""

import contextlib
import copy
import json
import os
import pickle
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import draw

from splip import disk
from splip.encoders import base, manifest
from splip.encoders.encoder import Encoder
from splip.errors import UserError, one_line, short
from splip.models import load_model
from splip.models.checkpoint import write_checkpoint

CHECKPOINTS = Path(__file__).parents[1] / "fixtures" / "checkpoints"
GOOD = CHECKPOINTS / "clip-at.pt"
NORM = "modality_tokens.tokens"


def line(error):
    """A message as it is printed."""
    text = one_line(str(error.value))
    assert "\n" not in text and len(text) < 1100
    return text


# ---- checkpoints ----


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture(scope="module")
def state():
    return torch.load(GOOD, weights_only=True)


def test_files_that_are_no_checkpoints(tmp_path, refused):
    raw, path, mark = GOOD.read_bytes(), tmp_path / "best.pt", tmp_path / "mark"
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02]q\x00(h\x00h\x00e.")
        archive.writestr("archive/version", "3")
    torch.save({"format": 2, "trainable": {}, "more": Payload(mark)}, tmp_path / "inside.pt")
    hostile = {
        "empty": b"",
        "text": b"not a zip",
        "zeros": bytes(4096),
        "cut": raw[: len(raw) // 2],
        "cut at the end": raw[:-40],
        "pickle": pickle.dumps(Payload(mark)),
        "zip": (tmp_path / "other.zip").read_bytes(),
        "pickle inside": (tmp_path / "inside.pt").read_bytes(),
    }
    for name, data in hostile.items():
        path.write_bytes(data)
        with pytest.raises(UserError, match="best.pt: not a splip checkpoint"):
            load_model(path)
        if name in ("cut", "pickle inside"):
            assert "best.pt" in refused("export", path, "--out", tmp_path / "out")
    assert not mark.exists()
    with pytest.raises(UserError, match="no checkpoint"):
        load_model(tmp_path / "none")
    with pytest.raises(UserError, match="best.pt: not a splip checkpoint"):  # its folder, as that of a run
        load_model(tmp_path)


WRONG = [None, 3, True, "x", [], [1], {1: 2}, float("nan"), 10**30, torch.zeros(2)]


@pytest.mark.parametrize("part", ["format", "config", "classes", "data", "backbone", "trainable", "buffers"])
def test_parts_of_another_type(state, tmp_path, part):
    path = tmp_path / "best.pt"
    for wrong in WRONG:
        torch.save({**state, part: wrong}, path)
        with pytest.raises(UserError, match="best.pt: (not a splip checkpoint|checkpoint format [13])") as error:
            load_model(path)
        line(error)
    torch.save({key: value for key, value in state.items() if key != part}, path)
    with pytest.raises(UserError, match="best.pt: not a splip checkpoint"):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["classes"].append(3), "classes are"),
        (lambda s: s["data"].pop("seen"), "data.seen is None"),
        (lambda s: s["data"].update(unseen="box"), "data.unseen is 'box'"),
        (lambda s: s["backbone"].update(sha256=3), "backbone.sha256 is 3"),
        (lambda s: s["backbone"].update(sha256="0" * 64), "was trained on another backbone"),
        (lambda s: s["trainable"].update({NORM: [1.0]}), "modality_tokens.tokens is no plain tensor"),
        (lambda s: s["trainable"].update({NORM: s["trainable"][NORM].to_sparse()}), "is no plain tensor"),
        (lambda s: s["trainable"].update({NORM: s["trainable"][NORM].to("meta")}), "is no plain tensor"),
        (lambda s: s["trainable"].update({NORM: s["trainable"][NORM] * float("nan")}), "that are not finite"),
        (lambda s: s["trainable"].update({NORM: s["trainable"][NORM].bool()}), "holds torch.bool"),
        (lambda s: s["trainable"].update({NORM: torch.zeros(3)}), r"has shape \[3\], expected \[2, 3, 192\]"),
        (lambda s: s["trainable"].pop(NORM), "holds other parameters"),
        (lambda s: s["trainable"].update(more=torch.zeros(1)), "holds other parameters.*more"),
        (lambda s: s["buffers"].pop("patch_mean"), "lacks patch_mean"),
        (lambda s: s["buffers"].update(batches_seen=torch.zeros(3)), r"batches_seen has shape \[3\]"),
        (lambda s: s["config"].update(speed=3), "unknown key 'speed'"),
        (lambda s: s["config"].update(seed=2**70), "seed is too large"),
        (lambda s: s["config"].update(method=["x"] * 10**6), "method must be str"),
        (lambda s: s["config"].update(method="x" * 10**6), "method 'xx.*xx' of .* is not known here"),
        (lambda s: s["config"]["prompts"].update(visual_tokens=10**9), "must be at most 1000, got 1000000000"),
        (lambda s: s["config"]["loss"].update(jigsaw_width=32 * 10**6), "a multiple of 32 and at most 8192"),
        (lambda s: s["config"]["backbone"].update(name="../../x"), r"unknown backbone \.\./\.\./x"),
        (lambda s: s["config"]["backbone"].update(pretrained="/etc/hostname"), "cannot load splip-tiny"),
    ],
)
def test_checkpoints_that_do_not_fit_themselves(state, tmp_path, change, message):
    changed = copy.deepcopy(state)
    change(changed)
    torch.save(changed, tmp_path / "best.pt")
    with pytest.raises(UserError, match=message) as error:
        load_model(tmp_path / "best.pt")
    line(error)


# ---- the same as safetensors ----


def packed(tensors=(), facts=None, header=None, length=None, tail=b""):
    """A file of that format by hand: ``tensors`` are (name, dtype, shape, bytes)."""
    entries, data = {}, b""
    for name, dtype, shape, raw in tensors:
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    if facts is not None:
        entries["__metadata__"] = {"splip": facts if isinstance(facts, str) else json.dumps(facts)}
    text = header if header is not None else json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data + tail


def one(name, dtype="F32", shape=(2,), raw=bytes(8)):
    return packed([(name, dtype, list(shape), raw)], {"format": 2})


HOSTILE = {
    "empty": b"",
    "nine bytes": bytes(8) + b"{",
    "pickle": pickle.dumps([1]),
    "no facts": packed([("trainable.x", "F32", [1], bytes(4))]),
    "metadata of another kind": packed(header=b'{"__metadata__": {"splip": 3}}'),
    "metadata that is none": packed(header=b'{"__metadata__": 3}'),
    "header of a list": packed(header=b"[]"),
    "header cut": packed(header=b'{"__metadata__": {"splip": "{}"'),
    "header of another encoding": packed(header=b'{"\xff": 1}'),
    "header too long for its file": packed(header=b"{}", length=1 << 40),
    "header of the largest length": packed(header=b"{}", length=2**64 - 1),
    "header of a gigabyte": packed(header=b"{}" + b" " * (17 << 20)),
    "header too deep": packed(header=b'{"a":' * 10**5),
    "facts too deep": packed(facts="[" * 10**5),
    "facts of a list": packed(facts="[1]"),
    "facts that are no number": packed(facts='{"format": NaN}'),
    "facts of many digits": packed(facts='{"format": ' + "9" * 10**6 + "}"),
    "facts of 10**25": packed(facts='{"format": ' + "9" * 25 + "}"),
    "tensor past the end": one("trainable.x", shape=(1000,)),
    "tensor of 2**60": one("trainable.x", shape=(2**30, 2**30)),
    "tensor of negative size": one("trainable.x", shape=(-1,)),
    "tensor of no kind": one("trainable.x", dtype="F99"),
    "tensor of eight bits": one("trainable.x", dtype="F8_E4M3", shape=(8,)),
    "tensor of no part": one("x"),
    "tensor of another part": one("secret.x"),
    "bytes behind the last": packed(facts={"format": 2}, tail=b"more"),
}


REASONS = {  # found before anything is read that is too large, or made a tensor of
    "header too long for its file": "a header of 1,099,511,627,776 bytes",
    "header of the largest length": "a header of 18,446,744,073,709,551,615 bytes",
    "header of a gigabyte": "a header of 17,825,794 bytes",
    "facts of many digits": "a number of too many digits",
    "tensor of eight bits": "'trainable.x' holds torch.float8",
    "tensor of another part": r"tensors of \['secret'\]",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_safetensors_that_are_no_checkpoints(tmp_path, refused, name):
    path = tmp_path / "best.safetensors"
    path.write_bytes(HOSTILE[name])
    reason = f".*{REASONS.get(name, '')}"
    with pytest.raises(UserError, match=f"best.safetensors: not a splip checkpoint{reason}") as error:
        load_model(path)
    line(error)
    if name in ("pickle", "no facts"):
        draw(tmp_path / "photos" / "0.png", 0, "blue", 0)
        message = refused("index", "add", tmp_path / "photos", "--gallery", tmp_path / "g", "--model", path)
        assert "not a splip checkpoint" in message and "named open_clip:NAME@FILE" in message
        assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("part", ["format", "config", "classes", "data", "backbone"])
def test_facts_of_another_type(state, tmp_path, part):
    path = tmp_path / "best.safetensors"
    for wrong in (None, 3, True, "x", [], [1], 2**62, ""):
        write_checkpoint({**state, part: wrong}, path)
        with pytest.raises(
            UserError, match="best.safetensors: (not a splip checkpoint|checkpoint format [0-9])"
        ) as error:
            load_model(path)
        line(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["trainable"].update({NORM: s["trainable"][NORM] * float("inf")}), "that are not finite"),
        (lambda s: s["trainable"].update({NORM: s["trainable"][NORM].bool()}), "holds torch.bool"),
        (lambda s: s["trainable"].update({NORM: s["trainable"][NORM].to(torch.bfloat16) * float("nan")}), "not finite"),
        (lambda s: s["trainable"].update({NORM: torch.zeros(3)}), r"has shape \[3\], expected \[2, 3, 192\]"),
        (lambda s: s["trainable"].pop(NORM), "holds other parameters"),
        (lambda s: s["buffers"].clear(), "lacks batches_seen"),
        (lambda s: s["backbone"].update(sha256="0" * 64), "was trained on another backbone"),
        (lambda s: s["config"].update(seed=2**63), "seed is too large"),
        (lambda s: s["config"]["prompts"].update(visual_tokens=10**9), "must be at most 1000, got 1000000000"),
        (lambda s: s.update(classes=[]), r"classes are \[\]"),
    ],
)
def test_safetensors_that_do_not_fit_themselves(state, tmp_path, change, message):
    changed = copy.deepcopy(state)
    change(changed)
    write_checkpoint(changed, tmp_path / "best.safetensors")
    with pytest.raises(UserError, match=message) as error:
        load_model(tmp_path / "best.safetensors")
    line(error)


# ---- configurations ----

LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(30))])


@pytest.mark.parametrize(
    "text",
    [
        "lr: 2001-99-99",
        "lr: !!float x",
        "seed: !!int ''",
        "resume: !!bool maybe",
        "out: !!timestamp x",
        "out: !!python/object/apply:os.system ['true']",
        "lr: " + "[" * 5000,
        "lr: " + "9" * 5000,
        "lr: " + "9" * 400,
        "seed: 99999999999999999999",
        'out: "a\\0b"',
        "? {a: b}\n: 1",
        "&a [*a]",
        "prompts: &a\n  text_tokens: *a",
        "data:\n  unseen: &a [*a]",
        '"a\\nb": 1',
        f"{'x' * 5000}: 1",
        f"method: {'x' * 5000}",
        LAUGHS,
        f"{LAUGHS}\nmethod: *a30",
        "method: {a: &a [x, x], b: &b [*a, *a, *a, *a, *a, *a], c: &c [*b, *b, *b, *b, *b], d: [*c, *c, *c, *c]}",
        "steps: true",
        "\x00",
        "x: " + "y" * (1 << 20),
    ],
    ids=lambda text: repr(text[:30]),
)
def test_configurations(tmp_path, refused, text):
    (tmp_path / "c.yaml").write_text(text)
    assert len(refused("train", "--config", tmp_path / "c.yaml", "--out", tmp_path / "out")) < 1200
    assert not (tmp_path / "out").exists()


def test_values_in_messages_are_short():
    deep = [1]
    for _ in range(10_000):
        deep = [deep]
    for value in (deep, "x" * 10**6, list(range(10**5)), 10**4000, {i: i for i in range(1000)}):
        assert len(short(value)) < 300
    assert one_line("a\nb\x1b[2J\u202e") == "a\\nb\\x1b[2J\\u202e" and len(one_line("é" * 5000)) == 1003


# ---- exports ----


@pytest.fixture
def export(tmp_path):
    """An export whose files are of the test's making; returns how to write it."""
    model = load_model(GOOD)
    about = base.describe(GOOD, model)
    about.fused, about.opset, folder = False, 18, tmp_path / "export"
    folder.mkdir()

    def write(change=None, files=()):
        names = [*files] or ["x.onnx"]
        about.engines = {"onnx": manifest.Built({m: names for m in manifest.MODALITIES}, ["fp32"], "verified")}
        about.sha256 = {n: disk.file_hash(folder / n) for n in names if (folder / n).is_file()}
        about.save(folder)
        if change is not None:
            values = json.loads((folder / manifest.FILE).read_text())
            change(values)
            (folder / manifest.FILE).write_text(json.dumps(values))
        return folder

    return write


def set_files(name):
    return lambda v: v["engines"]["onnx"].update(files={"sketch": [name], "photo": [name]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(image_size=100_000), "image_size is 100000"),
        (lambda v: v.update(image_size=0), "image_size is 0"),
        (lambda v: v.update(image_size=True), "image_size is True"),
        (lambda v: v.update(image_size=64.0), "image_size is 64.0"),
        (lambda v: v.update(embed_dim=10**9), "embed_dim is 1000000000"),
        (lambda v: v.update(embed_dim="256"), "embed_dim is '256'"),
        (lambda v: v.update(dimensions=[64, 128]), r"dimensions is \[64, 128\]"),
        (lambda v: v.update(dimensions=[64, 64, 256]), "dimensions is"),
        (lambda v: v.update(dimensions=[[64], 256]), "dimensions is"),
        (lambda v: v.update(dimensions=256), "dimensions is 256"),
        (lambda v: v.update(std=[0, 0.2, 0.2]), "std is"),
        (lambda v: v.update(std=[0.2, 0.2]), "std is"),
        (lambda v: v.update(std=[0.2, 0.2, float("nan")]), "std is"),
        (lambda v: v.update(std=0.2), "std is 0.2"),
        (lambda v: v.update(mean=[0.5, "x", 0.5]), "mean is"),
        (lambda v: v.update(mean=[float("inf")] * 3), "mean is"),
        (lambda v: v.update(batch=[1, 8]), "batch is"),
        (lambda v: v.update(batch=[8, 4, 64]), "batch is"),
        (lambda v: v.update(batch=[0, 8, 64]), "batch is"),
        (lambda v: v.update(batch=[1, 8, 10**9]), "batch is"),
        (lambda v: v.update(fit="squash"), "fit is 'squash'"),
        (lambda v: v.update(crop_sketches=1), "crop_sketches is 1"),
        (lambda v: v.update(fused="no"), "fused is 'no'"),
        (lambda v: v.update(precision="fp64"), "precision is 'fp64'"),
        (lambda v: v.update(name=["x"] * 10**5), "name is"),
        (lambda v: v.update(identity=None), "identity is None"),
        (lambda v: v.update(sha256=["x"]), "sha256 is"),
        (lambda v: v.update(sha256={"x.onnx": 3}), "sha256 is"),
        (lambda v: v.update(versions=[]), "versions is"),
        (lambda v: v.update(engines=[]), "damaged: AttributeError"),
        (lambda v: v.update(engines={"onnx": {}}), "damaged: TypeError"),
        (lambda v: v.update(engines={"onnx": None}), "damaged: TypeError"),
        (lambda v: v.update(format="1"), "export format 1"),
        (lambda v: v.pop("mean"), "damaged: TypeError"),
        (set_files("../../etc/passwd"), "files of 'onnx' are"),
        (set_files("/etc/passwd"), "files of 'onnx' are"),
        (set_files(".."), "files of 'onnx' are"),
        (set_files("a\\b"), "files of 'onnx' are"),
        (set_files("a\0b"), "files of 'onnx' are"),
        (set_files(""), "files of 'onnx' are"),
        (set_files(3), "files of 'onnx' are"),
        (lambda v: v["engines"]["onnx"].update(files={"sketch": ["x.onnx"]}), "files of 'onnx' are"),
        (lambda v: v["engines"]["onnx"].update(files={"sketch": [], "photo": []}), "files of 'onnx' are"),
        (lambda v: v["engines"]["onnx"].update(files=["x.onnx"]), "files of 'onnx' are"),
        (lambda v: v["engines"]["onnx"].update(precisions="fp32"), "precisions of 'onnx' are"),
        (lambda v: v["engines"]["onnx"].update(status=3), "status of 'onnx' is 3"),
        (lambda v: v.update(text={"files": ["../x"], "length": 77, "end": 1}), "files of the text tower are"),
        (lambda v: v.update(text={"files": ["x"], "length": 10**9, "end": 1}), "the text tower takes"),
        (lambda v: v.update(text={"files": ["x"], "length": 77, "end": -1}), "the text tower takes"),
        (lambda v: v.update(text=3), "damaged: TypeError"),
    ],
)
def test_manifests(export, change, message):
    folder = export(change)
    with pytest.raises(UserError, match=f"export.json: .*{message}") as error:
        Encoder.load(folder, "onnxruntime", device="cpu")
    line(error)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "[" * 10**5, "{}", '{"format": 1}', '{"format": ' + "9" * 5000 + "}"]
)
def test_manifests_that_are_none(tmp_path, refused, text):
    (tmp_path / manifest.FILE).write_text(text)
    with pytest.raises(UserError, match=r"export.json: (damaged|export format)"):
        manifest.read(tmp_path)
    draw(tmp_path / "photos" / "0.png", 0, "blue", 0)
    args = ["index", "add", tmp_path / "photos", "--gallery", tmp_path / "gallery", "--model", tmp_path]
    assert "export.json" in refused(*args)


def test_a_manifest_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / manifest.FILE, "wb") as file:
        file.truncate(1 << 36)
    with pytest.raises(UserError, match="export.json: damaged: 68,719,476,736 bytes"):
        manifest.read(tmp_path)


def doubling(path, constant, times=None):
    """A small ONNX file that doubles a tensor again and again: while it is opened, or while it runs.

    To some 2 GB: more than the tests allow, and no more than a machine has where nothing holds it back.
    """
    times = times or (27 if constant else 15)
    onnx = pytest.importorskip("onnx")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes, start = [], [onnx.numpy_helper.from_array(np.ones(4, np.float32), "d0")]
    if not constant:
        start = [onnx.numpy_helper.from_array(np.array([-1], np.int64), "flat")]
        nodes = [make.make_node("Reshape", ["images", "flat"], ["d0"])]
    nodes += [make.make_node("Concat", [f"d{i}"] * 2, [f"d{i + 1}"], axis=0) for i in range(times)]
    start.append(onnx.numpy_helper.from_array(np.array([1, 256], np.int64), "shape"))
    nodes += [
        make.make_node("ReduceMean", [f"d{times}"], ["mean"], keepdims=0),
        make.make_node("Expand", ["mean", "shape"], ["features"]),
    ]
    inputs = [make.make_tensor_value_info("images", kind, ["batch", 3, 64, 64])]
    outputs = [make.make_tensor_value_info("features", kind, [1, 256])]
    opset = [make.make_opsetid("", 18)]
    model = make.make_model(make.make_graph(nodes, "g", inputs, outputs, start), opset_imports=opset, ir_version=9)
    onnx.save(model, path)


@contextlib.contextmanager
def watched():
    """Memory must not grow by more than what a file may take, in this process, and its limits stay as they were."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    Path("/proc/self/clear_refs").write_text("5")  # what other tests of this process needed is not this file's
    start = peak()
    yield
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert peak() - start < 2 << 30


def peak():
    """The most memory that this process has held, bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("constant", [True, False], ids=["opened", "run"])
def test_files_that_would_fill_the_memory(export, tmp_path, monkeypatch, engine, constant):
    pytest.importorskip(engine)
    monkeypatch.setattr(base, "SPARE", 1 << 30)
    (tmp_path / "export").mkdir(exist_ok=True)
    doubling(tmp_path / "export" / "x.onnx", constant)
    encoder = Encoder.load(export(files=["x.onnx"]), engine, device="cpu")
    with watched(), pytest.raises(UserError, match=r"x.onnx: .*cannot (load|be run)") as error:
        encoder.encode(np.zeros((1, 64, 64, 3), np.uint8), "sketch")
    line(error)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_file_that_is_no_model(export, tmp_path, engine):
    pytest.importorskip(engine)
    for data in (b"", b"ONNX", bytes(5000)):
        (tmp_path / "export" / "x.onnx").write_bytes(data)
        encoder = Encoder.load(export(files=["x.onnx"]), engine, device="cpu")
        with pytest.raises(UserError, match="x.onnx: .*cannot"):
            encoder.encode(np.zeros((1, 64, 64, 3), np.uint8), "sketch")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_features_of_another_width(export, tmp_path, engine):
    pytest.importorskip(engine)
    doubling(tmp_path / "export" / "x.onnx", True, 2)
    folder = export(lambda v: v.update(embed_dim=128, dimensions=[128]), ["x.onnx"])
    with pytest.raises(UserError, match=r"x.onnx: gives float32 \[1, 256\] for one input, not float32 \[1, 128\]"):
        Encoder.load(folder, engine, device="cpu").encode(np.zeros((1, 64, 64, 3), np.uint8), "sketch")
    good = export(files=["x.onnx"])
    assert (Encoder.load(good, engine, device="cpu").encode(np.zeros((1, 64, 64, 3), np.uint8), "photo") == 1).all()
