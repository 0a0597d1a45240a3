"""What is exported gives the features that training code gives, or is refused or set aside."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawing import draw

import splip.export
from splip import disk
from splip.data.config import DataConfig
from splip.data.trees import MODALITIES
from splip.encoders import base, cuda, graph, manifest, tensorrt_runtime
from splip.encoders.encoder import Encoder
from splip.encoders.manifest import Batch
from splip.errors import UserError
from splip.export import command, to_onnx, to_openvino, to_tensorrt, verify
from splip.export.config import ExportConfig
from splip.models import build, load_model
from splip.models.config import BackboneConfig, LossConfig, PromptConfig, TrainConfig

TINY = BackboneConfig(name="splip-tiny")
S, D = 64, 256
# Everything that decides what a layer does with its prompts; the tiny towers have 4 visual and 2 text layers.
MODELS = {
    "splip": {},
    "splip depth 3": {"prompts": PromptConfig(depth=3)},
    "splip depth 1": {"prompts": PromptConfig(depth=1)},
    "splip depth 0": {"prompts": PromptConfig(depth=0)},
    "splip words only": {"prompts": PromptConfig(layer_tokens=0)},
    "from random weights": {"train_backbone": True},
    "clip-at": {"method": "clip-at"},
    "maple": {"method": "maple", "loss": LossConfig(jigsaw=0)},
    "maple depth 1": {"method": "maple", "loss": LossConfig(jigsaw=0), "prompts": PromptConfig(depth=1)},
    "clip-ln": {"method": "clip-ln"},
    "zero-shot": {"method": "zero-shot"},
}


def make(**changes):
    """A model whose prompts, norms and averages are far from where they start, so that each of them matters."""
    torch.manual_seed(1)
    model = build(TrainConfig(backbone=TINY, **changes), ["dog", "palm tree", "cup"])
    with torch.no_grad():
        model.patch_mean.normal_()
        for name, parameter in model.named_parameters():
            if ".ln_" in name or name.startswith(("visual_norm", "text_norm")):
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif name.startswith(("b_v", "b_vt", "modality_tokens", "coupled")):
                parameter.mul_(8)
        if changes.get("train_backbone"):
            model.visual_norm.running_mean.normal_()
            model.visual_norm.running_var.uniform_(0.5, 2)
    return model.eval()


def save(model, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.checkpoint(), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(make(), tmp_path_factory.mktemp("run") / "best.pt")


@pytest.fixture(scope="module")
def exported(checkpoint):
    """ONNX and OpenVINO files of the checkpoint that take uint8 pixels."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    pytest.importorskip("tokenizers")
    out = checkpoint.parent / "exported"
    config = ExportConfig(checkpoint, out, onnx=True, openvino=True, text=True, fuse_preprocess=True)
    assert command.export(config) == 0
    return out


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, S, S, 3), dtype=np.uint8)


def as_training(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


# ---- the graph ----


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("fused", [False, True], ids=["float", "uint8"])
def test_graph_equals_the_model(changes, fused):
    model, images = make(**changes), pixels(5)
    batch = torch.from_numpy(images)
    if not fused:
        batch = torch.from_numpy(base.normalise(images, model.backbone.mean, model.backbone.std))
    encoders = graph.encoders(model, fused=fused)
    for number, name in enumerate(MODALITIES):
        wanted = model.encode_image(as_training(images), number)
        torch.testing.assert_close(encoders[name](batch), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_text_graph_equals_the_model(changes):
    """Whatever comes before the words is folded in, also where later layers have no prompts."""
    model, texts = make(**changes), ["dog", "two red cars on a street", ""]
    encoder = graph.text_encoder(model)
    own = [[*model.backbone.tokenizer.encode(text), model.backbone.tokenizer.eot_token_id] for text in texts]
    tokens = torch.zeros(len(texts), max(map(len, own)), dtype=torch.int64)
    for row, ids in zip(tokens, own, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    for number in range(len(MODALITIES)):
        got = encoder(tokens, torch.full((len(texts),), number))
        torch.testing.assert_close(got, model.encode_text(texts, number), rtol=0, atol=1e-6)
    both = encoder(tokens[[0, 0]], torch.tensor([0, 1]))
    if changes.get("method", "splip") == "splip":
        assert (both[0] - both[1]).abs().max() > 1e-3  # prompted as sketches or as photos


@pytest.mark.parametrize(
    ("changes", "folded", "carried"),
    [
        ({}, [True] * 4, None),
        ({"prompts": PromptConfig(depth=3)}, [True, True, False, False], 2),
        ({"prompts": PromptConfig(depth=1)}, [False] * 4, 0),
        ({"method": "clip-at"}, [False] * 4, 0),
        ({"method": "clip-ln"}, [False] * 4, None),
    ],
    ids=str,
)
def test_only_what_is_overwritten_is_folded(changes, folded, carried):
    encoder = graph.encoders(make(**changes))["photo"]
    assert [block.keys is not None for block in encoder.blocks] == folded
    assert encoder.carried_from == carried


@pytest.mark.parametrize("name", ["splip", "splip depth 3", "clip-at", "maple"])
def test_prompts_matter_in_every_layer(name):
    """A layer whose prompts were forgotten would pass a comparison in which they change nothing."""
    batch = torch.from_numpy(pixels(2))
    encoder = graph.encoders(make(**MODELS[name]), fused=True)["sketch"]
    whole = encoder(batch)
    for block in encoder.blocks:
        keys, values = block.keys, block.values
        if keys is not None:
            block.keys = block.values = None
            assert (encoder(batch) - whole).abs().max() > 1e-4
            block.keys, block.values = keys, values
    if encoder.carried_from is not None:
        encoder.carried.zero_()
        assert (encoder(batch) - whole).abs().max() > 1e-4


def test_layer_scale_and_quick_gelu():
    from open_clip.transformer import LayerScale, QuickGELU

    model = make()
    for block in model.backbone.visual.transformer.resblocks:
        block.ls_1, block.ls_2 = LayerScale(192, 0.5), LayerScale(192, 0.3)
        block.mlp.gelu = QuickGELU()
    images = pixels(3)
    got = graph.encoders(model, fused=True)["photo"](torch.from_numpy(images))
    torch.testing.assert_close(got, model.encode_photo(as_training(images)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_keeps_what_must_stay_exact(precision):
    model, images = make(train_backbone=True), pixels(16)
    encoder = graph.encoders(model, precision, fused=True)["photo"]
    dtypes = {name: t.dtype for name, t in encoder.state_dict().items()}
    half = {name for name, dtype in dtypes.items() if dtype != torch.float32}
    assert all(
        ("weights." in n and "norm" not in n) or n.startswith(("embed.", "stem.")) or "blocks." in n for n in half
    )
    assert (
        dtypes["pool.norm.weight"]
        == dtypes["pool.projection"]
        == dtypes["blocks.0.weights.norm_1.weight"]
        == torch.float32
    )
    got, wanted = encoder(torch.from_numpy(images)), model.encode_photo(as_training(images))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.norm(dim=1), torch.ones(16))
    assert F.cosine_similarity(got, wanted).min() > 0.999


def test_both_modalities_share_their_weights():
    encoders = graph.encoders(make())
    pointers = [{p.data_ptr() for p in encoders[name].blocks[0].weights.parameters()} for name in MODALITIES]
    assert pointers[0] == pointers[1]


def test_refuses_prompts_of_each_image():
    with pytest.raises(UserError, match="conditioning: instance cannot be exported"):
        graph.encoders(make(prompts=PromptConfig(conditioning="instance")))


def test_refuses_blocks_it_does_not_know():
    model = make()
    model.backbone.visual.transformer.resblocks[1].mlp.add_module("ln", torch.nn.LayerNorm(8))
    with pytest.raises(UserError, match="its MLP is made of c_fc, gelu, c_proj, ln"):
        graph.encoders(model)


# ---- ONNX ----


def onnx_session(path):
    return pytest.importorskip("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("precision", "fused"), [("fp32", True), pytest.param("fp16", False, marks=pytest.mark.exhaustive)]
)
def test_onnx_at_every_batch_size(precision, fused, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = make(prompts=PromptConfig(depth=3))
    encoder = graph.encoders(model, precision, fused)["photo"]
    path = tmp_path / "photo.onnx"
    assert to_onnx.write(encoder, path, Batch(1, 8, 64), 20, {"identity": "x"}) == ["photo.onnx"]
    session = onnx_session(path)
    for count in (1, 2, 3, 8, 33):
        images = pixels(count, count)
        feed = images if fused else base.normalise(images, model.backbone.mean, model.backbone.std)
        got = session.run(None, {"images": feed})[0]
        tolerance = 1e-5 if precision == "fp32" else 5e-3
        assert got.dtype == np.float32 and got.shape == (count, D)
        np.testing.assert_allclose(got, model.encode_photo(as_training(images)).numpy(), rtol=0, atol=tolerance)
    file = onnx.load(path)
    assert [(o.domain, o.version) for o in file.opset_import] == [("", 20)] and not file.functions
    (shape,) = [[d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in file.graph.input]
    assert shape == (["batch", S, S, 3] if fused else ["batch", 3, S, S])
    assert {p.key: p.value for p in file.metadata_props}["identity"] == "x"
    assert not any(node.metadata_props for node in file.graph.node), "the tracer's file names"
    assert sum(node.op_type == "LayerNormalization" for node in file.graph.node) == 10


@pytest.mark.exhaustive
def test_onnx_in_bfloat16_is_valid(tmp_path):
    onnx = pytest.importorskip("onnx")
    encoder = graph.encoders(make(), "bf16", True)["sketch"]
    to_onnx.write(encoder, tmp_path / "sketch.onnx", Batch(1, 8, 64), to_onnx.check_opset(None, "bf16"), {})
    file = onnx.load(tmp_path / "sketch.onnx")
    onnx.checker.check_model(file, full_check=True)
    assert any(t.data_type == onnx.TensorProto.BFLOAT16 for t in file.graph.initializer)
    assert sum(node.op_type == "Attention" for node in file.graph.node) == 4  # one fused kernel a layer
    assert file.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize(("opset", "precision"), [(17, "fp32"), (24, "fp32"), (21, "bf16")])
def test_refuses_opsets(opset, precision):
    with pytest.raises(UserError, match="--opset must be between"):
        to_onnx.check_opset(opset, precision)


@pytest.fixture(scope="module")
def quantised(checkpoint):
    """An 8-bit file of the checkpoint's photo encoder."""
    pytest.importorskip("onnxruntime")
    model, folder = load_model(checkpoint), checkpoint.parent
    to_onnx.write(graph.encoders(model, fused=True)["photo"], folder / "exact.onnx", Batch(1, 8, 64), 20, {})
    to_onnx.quantise(folder / "exact.onnx", folder / "int8.onnx", pixels(16, 1))
    return folder / "int8.onnx"


@pytest.mark.exhaustive
def test_int8_is_symmetric_and_spares_the_head(quantised, checkpoint):
    onnx = pytest.importorskip("onnx")
    file = onnx.load(quantised)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in file.graph.initializer}
    nodes = [n for n in file.graph.node if n.op_type == "QuantizeLinear"]
    assert nodes and all((values[n.input[2]] == 0).all() and values[n.input[2]].dtype == np.int8 for n in nodes)
    products = [n for n in file.graph.node if n.op_type == "MatMul"]
    makers = {out: n.op_type for n in file.graph.node for out in n.output}
    assert all(makers.get(name) != "DequantizeLinear" for name in products[-1].input)
    assert (
        sum(makers.get(n.input[1]) == "DequantizeLinear" for n in products) == 17
    )  # 4 or 5 a block; the stem convolves
    got = onnx_session(quantised).run(None, {"images": pixels(8, 2)})[0]
    wanted = load_model(checkpoint).encode_photo(as_training(pixels(8, 2))).numpy()
    assert (got * wanted).sum(axis=1).min() > 0.9


# ---- OpenVINO ----


@pytest.mark.exhaustive
def test_openvino_equals_the_model(exported, checkpoint):
    openvino = pytest.importorskip("openvino")
    model = load_model(checkpoint)
    compiled = openvino.Core().compile_model(exported / "sketch.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for count in (1, 2, 3, 8, 33):
        images = pixels(count, count)
        wanted = model.encode_sketch(as_training(images)).numpy()
        np.testing.assert_allclose(compiled(images)[0], wanted, rtol=0, atol=1e-5)


@pytest.mark.exhaustive
def test_openvino_keeps_its_head_out_of_bfloat16(exported, checkpoint):
    openvino = pytest.importorskip("openvino")
    if not to_openvino.has_bf16():
        pytest.skip("OpenVINO has no bfloat16 on this CPU")
    request = openvino.Core().compile_model(exported / "sketch.xml", "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    sums = [op for op in request.get_runtime_model().get_ordered_ops() if op.get_rt_info()["layerType"] == "Reduce"]
    assert len(sums) == 2 and all(op.get_rt_info()["runtimePrecision"].astype(str) == "f32" for op in sums)


# ---- TensorRT ----


@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_tensorrt_rtx_builds(precision, tmp_path):
    """A real parse and a real build; it needs no GPU."""
    pytest.importorskip("tensorrt_rtx")
    encoder = graph.encoders(make(prompts=PromptConfig(depth=3)), precision, True)["photo"]
    to_onnx.write(encoder, tmp_path / "photo.onnx", Batch(1, 4, 16), to_onnx.OPSETS[precision], {})
    check_engine(tmp_path / "photo.onnx", tmp_path / "photo.engine", ("8.9",))


@pytest.mark.exhaustive
def test_tensorrt_rtx_builds_int8(quantised, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    check_engine(quantised, tmp_path / "photo.engine", ())


def check_engine(source, path, capabilities):
    metadata = to_tensorrt.write(source, path, [S, S, 3], Batch(1, 4, 16), capabilities=capabilities)
    assert path.stat().st_size > 100_000
    assert tensorrt_runtime.read_metadata(path) == metadata
    assert metadata.batch == [1, 4, 16] and metadata.onnx_sha256 == disk.file_hash(source)
    if capabilities or not cuda.gpus():
        assert metadata.capabilities == list(capabilities)


def test_tensorrt_says_what_it_cannot_read(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    (tmp_path / "photo.onnx").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"cannot read photo.onnx: .+"):
        to_tensorrt.write(tmp_path / "photo.onnx", tmp_path / "photo.engine", [S, S, 3], Batch(1, 4, 16))
    assert not (tmp_path / "photo.engine").exists()


def test_tensorrt_rtx_names_the_gpus_it_builds_for():
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(UserError, match=r"--compute-capability 9.9: TensorRT-RTX .* builds for 7.5, 8.0, 8.6"):
        to_tensorrt.need(("9.9",), False, None)
    if not cuda.gpus():
        with pytest.raises(UserError, match="--timing-cache needs a GPU"):
            to_tensorrt.need((), False, Path("cache"))


def test_full_tensorrt_needs_a_gpu(monkeypatch):
    """Its builder would crash the interpreter; a stand-in is enough, because it must not be touched."""
    full = type(sys)("tensorrt")
    full.__version__ = "11.4.0"
    monkeypatch.setitem(sys.modules, "tensorrt", full)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr(cuda, "gpus", lambda: ())
    with pytest.raises(tensorrt_runtime.Unavailable, match="TensorRT 11.4.0 builds on a GPU only"):
        to_tensorrt.need((), False, None)


# ---- the command ----


@pytest.mark.exhaustive
def test_export_folder(exported, checkpoint):
    names = {p.name for p in exported.iterdir()}
    files = {f"{m}.{e}" for m in MODALITIES for e in ("onnx", "xml", "bin")} | {"text.onnx", "tokenizer.json"}
    assert names == files | {"export.json", "README.md"} and files == set(
        json.loads((exported / "export.json").read_text())["sha256"]
    )
    about = json.loads((exported / "export.json").read_text())
    assert about["identity"] == disk.file_hash(checkpoint) and about["name"] == "best.pt (splip-tiny, splip)"
    assert about["input"] == {"name": "images", "dtype": "uint8", "shape": ["batch", S, S, 3]}
    assert about["output"] == {"name": "features", "dtype": "float32", "shape": ["batch", D]}
    assert about["batch"] == [1, 8, 64] and about["opset"] == 20 and about["precision"] == "fp32"
    assert about["verification"] == {"pictures": "sample", "sketches": 64, "photos": 256}
    assert about["versions"]["torch"] == torch.__version__.split("+")[0] and "onnx" in about["versions"]
    for kind in ("onnx", "openvino"):
        fidelity = about["engines"][kind]["fidelity"]["fp32"]
        assert (
            fidelity["max_difference"] < 1e-5
            and fidelity["top10"] > 0.99
            and about["engines"][kind]["status"] == "verified"
        )
    assert about["sha256"]["photo.onnx"] == disk.file_hash(exported / "photo.onnx")
    card = (exported / "README.md").read_text()
    assert about["identity"] in card and "| openvino | fp32 | verified |" in card and "`text.onnx`" in card
    assert about["text"]["max_difference"] < 1e-5 and about["text"]["texts"] > 5


@pytest.mark.parametrize("own", [False, True], ids=["sample", "folder"])
def test_what_calibrates_does_not_verify(checkpoint, tmp_path, monkeypatch, own):
    """int8 on the pictures that it was tuned on would look better than it is."""
    pytest.importorskip("nncf")
    pytest.importorskip("onnxruntime")
    source = Path("sample")
    if own:
        source = tmp_path / "pictures"
        for number in range(12):
            draw(source / f"{number}.png", number % 6, "blue", number, (40 + number, 40))
    loaded, real = [], verify.load

    def load(*args, **options):
        loaded.append(real(*args, **options))
        if len(loaded) == 2:
            raise UserError("that will do")
        return loaded[0]

    monkeypatch.setattr(verify, "load", load)
    with pytest.raises(UserError, match="that will do"):
        command.export(ExportConfig(checkpoint, tmp_path / "out", precision="int8", images=source, calibration=source))
    for modality in MODALITIES:
        checks, tunes = ({picture.tobytes() for picture in part[modality]} for part in loaded)
        assert len(checks) > 2 and len(tunes) > 2 and not checks & tunes, modality


@pytest.mark.exhaustive
def test_int8_is_measured(checkpoint, tmp_path, cli):
    pytest.importorskip("nncf")
    pytest.importorskip("onnxruntime")
    args = ["--onnx", "--openvino", "--precision", "int8", "--calibration", "sample", "--out", tmp_path / "out"]
    code, out, _ = cli("export", checkpoint, *args)
    assert code == 0 and out.count("int8: cosine min") == 2 and "Statistics" not in out
    for engine in ("onnxruntime", "openvino"):
        encoder = Encoder.load(tmp_path / "out", engine, device="cpu")
        assert encoder.precision == "int8"
        wanted = load_model(checkpoint).encode_sketch(as_training(pixels(4))).numpy()
        assert (encoder.encode(pixels(4), "sketch") * wanted).sum(axis=1).min() > 0.9
    assert (tmp_path / "out" / "photo.bin").stat().st_size < 0.5 * 10_200_000  # a quarter, and what is not quantised


@pytest.mark.exhaustive
def test_bfloat16_is_measured_where_it_can_be(checkpoint, tmp_path):
    """The same graph in torch; that the file holds it, OpenVINO tells."""
    pytest.importorskip("openvino")
    code = command.export(ExportConfig(checkpoint, tmp_path / "out", onnx=True, precision="bf16"))
    about = manifest.read(tmp_path / "out")
    assert code == (0 if "onnx" in about.engines else 1)
    figures = about.engines.get("onnx", None) or about.rejected["onnx"]
    fidelity = figures.fidelity if code == 0 else figures["fidelity"]
    assert fidelity["bf16"]["min_cosine"] > 0.999 and about.opset == 23


@pytest.mark.exhaustive
def test_bad_files_are_set_aside(checkpoint, tmp_path, cli, monkeypatch):
    """Weights that differ by a little: exit code 1, nothing that could be taken for a good file."""
    pytest.importorskip("onnxruntime")
    right = graph.encoders

    def wrong(*args, **options):
        made = right(*args, **options)
        weights = made["photo"].pool.projection  # the model's own memory
        made["photo"].pool.projection = weights + 0.05 * torch.randn(weights.shape)
        return made

    monkeypatch.setattr(graph, "encoders", wrong)
    code, out, err = cli("export", checkpoint, "--onnx", "--out", tmp_path / "out")
    assert code == 1 and "REJECTED" in out and "export failed: onnx in fp32: a feature differs by" in err
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"photo.onnx.rejected", "sketch.onnx.rejected", "export.json", "README.md"}
    with pytest.raises(UserError, match="holds no engine that passed its verification"):
        Encoder.load(tmp_path / "out")
    assert "Rejected: onnx" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.exhaustive
def test_a_bad_text_tower_is_set_aside(checkpoint, tmp_path, cli, monkeypatch):
    """What the images need stays."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tokenizers")
    right = graph.text_encoder

    def wrong(model):
        made = right(model)
        made.position.add_(0.05 * torch.randn_like(made.position))
        return made

    monkeypatch.setattr(graph, "text_encoder", wrong)
    code, out, err = cli("export", checkpoint, "--onnx", "--text", "--out", tmp_path / "out")
    assert code == 1 and "text fp32" in out and "export failed: text in fp32: a feature of a text differs by" in err
    assert (tmp_path / "out" / "text.onnx.rejected").is_file() and not (tmp_path / "out" / "text.onnx").exists()
    encoder = Encoder.load(tmp_path / "out", device="cpu")
    with pytest.raises(UserError, match="holds no text tower"):
        encoder.encode_text(["dog"])


@pytest.mark.exhaustive
def test_a_failed_export_does_not_replace_a_good_one(checkpoint, tmp_path, cli, monkeypatch):
    pytest.importorskip("onnxruntime")
    assert cli("export", checkpoint, "--out", tmp_path / "out")[0] == 0
    before = (tmp_path / "out" / "export.json").read_bytes()
    monkeypatch.setattr(verify, "MAX_DIFFERENCE", 0.0)
    assert cli("export", checkpoint, "--out", tmp_path / "out", "--overwrite")[0] == 1
    assert (tmp_path / "out" / "export.json").read_bytes() == before
    assert (tmp_path / "out.rejected" / "photo.onnx.rejected").is_file()


@pytest.mark.exhaustive
def test_without_tensorrt_the_onnx_is_written_and_the_code_is_3(tmp_path, capsys, monkeypatch):
    """And the preprocessing that the folder names is the checkpoint's."""
    pytest.importorskip("onnxruntime")
    model = make(data=DataConfig(fit="crop", crop_sketches=True), method="clip-at")
    path, out = save(model, tmp_path / "run" / "best.pt"), tmp_path / "out"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr(sys, "argv", ["splip-export", str(path), "--trt", "--batch", "2:4:8", "--out", str(out)])
    assert splip.export.main() == 3
    said = capsys.readouterr()
    assert "onnx fp32: cosine min 1.000000" in said.out
    assert "no engine was built, the ONNX files are in" in said.err and "pip install 'splip[trt-rtx]'" in said.err
    about = manifest.read(out)
    assert about.engines["onnx"].status == "verified"
    assert (about.fit, about.crop_sketches, about.fused, about.batch) == ("crop", True, False, [2, 4, 8])
    assert about.mean == list(model.backbone.mean) and about.std == list(model.backbone.std)
    assert "with mean 0.48145466, 0.4578275, 0.40821073" in (out / "README.md").read_text()


@pytest.mark.exhaustive
def test_tensorrt_engines_are_marked_as_not_run(checkpoint, tmp_path, cli):
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("onnxruntime")
    args = (
        "--trt",
        "--precision",
        "fp16",
        "--compute-capability",
        "8.6",
        "--fuse-preprocess",
        "--out",
        tmp_path / "out",
    )
    code, out, _ = cli("export", checkpoint, *args)
    assert code == 0
    built = manifest.read(tmp_path / "out").engines["tensorrt"]
    if not cuda.gpus():
        assert built.status == "built, not run" and "tensorrt fp16: built, not run" in out
        assert "| tensorrt | fp16 | built, not run |" in (tmp_path / "out" / "README.md").read_text()
        with pytest.raises(UserError, match="TensorRT needs an NVIDIA GPU"):
            Encoder.load(tmp_path / "out", "tensorrt")


def test_a_full_disk_leaves_nothing(checkpoint, tmp_path, cli, monkeypatch):
    pytest.importorskip("onnxruntime")

    def full(model, path, *args, **options):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(to_onnx, "write", full)
    (tmp_path / "place").mkdir()
    code, _, err = cli("export", checkpoint, "--out", tmp_path / "place" / "out")
    assert code == 2 and err.endswith(": the disk is full\n") and err.count("\n") == 1
    assert list((tmp_path / "place").iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--batch", "8:1:64"], "--batch must be min:opt:max"),
        (["--batch", "0:1:2"], "--batch must be min:opt:max"),
        (["--batch", "many"], "--batch must be min:opt:max"),
        (["--opset", "9"], "--opset must be between 18 and 23"),
        (["--precision", "int8"], "needs --calibration"),
        (["--calibration", "sample"], "--calibration is for --precision int8"),
        (["--precision", "int8", "--calibration", "nowhere"], "nowhere: no such folder of pictures"),
        (["--images", "nowhere"], "nowhere: no such folder of pictures"),
        (["--precision", "int4"], "invalid choice 'int4'"),
        (["--compute-capability", "8.9"], "--compute-capability needs --trt"),
        (["--hardware-compatible", "same"], "--hardware-compatible needs --trt"),
        (["--trt", "--compute-capability", "1.0"], "--compute-capability 1.0: TensorRT-RTX"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_bad_arguments(checkpoint, tmp_path, refused, args, message):
    for package in ("onnxruntime", *(["tensorrt_rtx"] if "1.0" in args else [])):
        pytest.importorskip(package)
    assert message in refused("export", checkpoint, "--out", tmp_path / "out", *args)
    assert not (tmp_path / "out").exists()


def test_what_is_no_model_is_said_before_what_is_not_installed(tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "no checkpoint" in refused("export", tmp_path / "none.pt", "--out", tmp_path / "out")


@pytest.mark.exhaustive
def test_bad_places_and_checkpoints(checkpoint, exported, tmp_path, refused):
    assert "exists already; add --overwrite" in refused("export", checkpoint, "--out", exported)
    assert "is not an export" in refused("export", checkpoint, "--out", checkpoint.parent, "--overwrite")
    assert "no checkpoint" in refused("export", tmp_path / "none.pt", "--out", tmp_path / "out")
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    assert "not a splip checkpoint" in refused("export", tmp_path / "bad.pt", "--out", tmp_path / "out")
    instance = save(make(prompts=PromptConfig(conditioning="instance")), tmp_path / "instance.pt")
    assert "cannot be exported" in refused("export", instance, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("package", "args", "extra"),
    [
        ("onnx", [], "splip[onnx]"),
        ("onnxruntime", [], "splip[onnx]"),
        ("openvino", ["--openvino"], "splip[openvino]"),
        ("tokenizers", ["--text"], "splip[text]"),
        ("nncf", ["--openvino", "--precision", "int8", "--calibration", "sample"], "splip[int8]"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_missing_packages_are_named(checkpoint, tmp_path, refused, monkeypatch, package, args, extra):
    for other in {"onnx", "onnxscript", "openvino"} - {package}:
        pytest.importorskip(other)
    monkeypatch.setitem(sys.modules, package, None)
    message = refused("export", checkpoint, "--out", tmp_path / "out", *args)
    assert package in message and extra in message


# ---- verification ----


@pytest.mark.exhaustive
def test_pictures_to_verify_with(tree, exported, tmp_path):
    about = manifest.read(exported)
    found = verify.load(tree, about, {"sketch": 5, "photo": 100})
    assert found["sketch"].shape == (5, S, S, 3) and found["photo"].shape == (8, S, S, 3)
    other = verify.load(tree, about, {"sketch": 100, "photo": 100}, part=1)
    mine = {p.tobytes() for p in verify.load(tree, about, {"sketch": 100, "photo": 100})["photo"]}
    assert len(other["sketch"]) == 12 and len(other["photo"]) == 8 and mine
    sheets = verify.load(None, about, verify.COUNTS)
    assert sheets["sketch"].shape == (64, S, S, 3) and sheets["photo"].shape == (256, S, S, 3)
    assert len({p.tobytes() for p in sheets["photo"]}) > 200
    with pytest.raises(UserError, match="at least four pictures"):
        (tmp_path / "few").mkdir()
        verify.load(tmp_path / "few", about, verify.COUNTS)


def test_fidelity_of_known_features():
    eye = np.eye(12, dtype=np.float32)
    wanted = {"sketch": eye, "photo": eye}
    same = verify.compare(wanted, wanted)
    assert (same.min_cosine, same.max_difference, same.top1, same.top10) == (1, 0, 1, 1) and not same.failure("fp32")
    swapped = verify.compare(wanted, {"sketch": eye, "photo": eye[[1, 0, *range(2, 12)]]})
    assert swapped.top1 == pytest.approx(10 / 12) and swapped.min_cosine == 0 and swapped.mean_cosine == 22 / 24
    assert "differs by 1.0e+00" in swapped.failure("fp32") and "cosine" in swapped.failure("bf16")
    assert swapped.failure("int8") is None
    broken = verify.compare(wanted, {"sketch": eye, "photo": eye * np.nan})
    assert "not finite" in broken.failure("int8")
    assert broken.to_dict()["min_cosine"] is None and same.to_dict()["finite"] is True


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(checkpoint, tmp_path, refused):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "Permission denied" in refused("export", checkpoint, "--out", tmp_path / "locked" / "out")


def test_gpu_check_runs_or_says_why_not():
    from splip.export import gpu_check

    found = gpu_check.gpu_check(("splip-tiny",), ("fp16",))
    if cuda.gpus() and "skipped" not in found:
        assert found["rows"][0].get("passed"), found
    else:
        assert found["skipped"]
