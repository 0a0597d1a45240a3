"""One class for every engine: the same features, no silent change of engine, one line for whatever is wrong."""

import contextlib
import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from splip import disk, images
from splip.data.cache import Pictures
from splip.data.config import DataConfig
from splip.data.trees import MODALITIES
from splip.encoders import base, cuda, manifest, onnxruntime, openvino, tensorrt_runtime, text
from splip.encoders.encoder import Encoder, _candidates
from splip.encoders.tensorrt_runtime import Metadata
from splip.errors import UserError
from splip.export import command
from splip.export.config import ExportConfig
from splip.models import build, load_model
from splip.models.config import BackboneConfig, LossConfig, PromptConfig, TrainConfig

S, D = 64, 256


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(1)
    data, loss = DataConfig(fit="stretch", crop_sketches=True), LossConfig(matryoshka=(32, 64))
    config = TrainConfig(backbone=BackboneConfig(name="splip-tiny"), data=data, loss=loss)
    model = build(config, ["dog", "palm tree"])
    model.patch_mean.normal_()
    path = tmp_path_factory.mktemp("run") / "best.pt"
    torch.save(model.checkpoint(), path)
    return path


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(checkpoint)


@pytest.fixture(scope="module")
def exported(checkpoint):
    """A folder of ONNX and OpenVINO files that take normalised images."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    out = checkpoint.parent / "exported"
    pytest.importorskip("tokenizers")
    assert command.export(ExportConfig(checkpoint, out, onnx=True, openvino=True, text=True, batch="1:4:16")) == 0
    return out


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of the export that a test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "exported"))


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, S, S, 3), dtype=np.uint8)


def features(model, arrays, modality):
    return model.encode_image(torch.from_numpy(arrays).permute(0, 3, 1, 2), MODALITIES.index(modality)).numpy()


# ---- the same everywhere ----


def load(engine, checkpoint, request):
    return Encoder.load(checkpoint if engine == "torch" else request.getfixturevalue("exported"), engine, device="cpu")


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_every_engine_gives_the_models_features(engine, checkpoint, model, request):
    encoder = load(engine, checkpoint, request)
    assert (encoder.engine, encoder.image_size, encoder.embed_dim) == (engine, S, D)
    assert (encoder.fit, encoder.crop_sketches) == ("stretch", True)
    assert encoder.identity == disk.file_hash(checkpoint) and encoder.name == "best.pt (splip-tiny, splip)"
    assert encoder.precision == ("bf16" if engine == "openvino" and openvino.has_amx() else "fp32")
    for modality in MODALITIES:
        for count in (0, 1, 3, 70):  # 70: more than the largest batch
            got = encoder.encode(pixels(count, count), modality)
            assert got.dtype == np.float32 and got.shape == (count, D) and got.flags.c_contiguous
            wanted = features(model, pixels(count, count), modality) if count else got
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 if encoder.precision == "fp32" else 2e-2)
    strided = pixels(6)[::2]
    np.testing.assert_allclose(encoder.encode(strided, "photo"), encoder.encode(strided.copy(), "photo"), atol=1e-6)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_threads_may_share_an_encoder(engine, checkpoint, request):
    encoder = load(engine, checkpoint, request)
    jobs = [(pixels(1 + n % 5, n), MODALITIES[n % 2]) for n in range(24)]
    alone = [encoder.encode(*job) for job in jobs]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda job: encoder.encode(*job), jobs))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_an_export_is_cut_to_the_sizes_of_its_checkpoint(copy, checkpoint):
    about = manifest.read(copy)
    assert about.dimensions == [32, 64, 256] and "the first 32, 64 components" in (copy / "README.md").read_text()
    want = Encoder.load(checkpoint, device="cpu", dimensions=32)
    for engine in ("onnxruntime", "openvino"):
        short = Encoder.load(copy, engine, device="cpu", dimensions=32)
        assert short.identity == want.identity and short.dimensions == want.dimensions
        got = short.encode(pixels(4), "sketch")
        assert got.shape == (4, 32) and (got * want.encode(pixels(4), "sketch")).sum(axis=1).min() > 0.999
        got, texts = (e.encode_text(["dog", "cup"]) for e in (short, want))
        np.testing.assert_allclose(got, texts, atol=1e-5)
        with pytest.raises(UserError, match="was not trained for 128 dimensions, only for 32, 64, 256$"):
            Encoder.load(copy, engine, device="cpu", dimensions=128)
    dataclasses.replace(about, dimensions=[]).save(copy)  # as written before there were sizes
    old = Encoder.load(copy, "onnxruntime", device="cpu")
    assert old.dimensions == (256,) and old.embed_dim == 256


def test_torch_in_bfloat16(checkpoint, model):
    encoder = Encoder.load(checkpoint, precision="bf16", device="cpu")
    got, wanted = encoder.encode(pixels(8), "sketch"), features(model, pixels(8), "sketch")
    assert encoder.precision == "bf16" and (got * wanted).sum(axis=1).min() > 0.999
    assert not np.array_equal(got, wanted)


@pytest.mark.exhaustive
def test_compiled(checkpoint, model):
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    encoder = Encoder.load(checkpoint, "compile", device="cpu")
    wanted = features(model, pixels(3), "photo")
    np.testing.assert_allclose(encoder.encode(pixels(3), "photo"), wanted, rtol=0, atol=1e-5)


def test_prompts_of_each_image(tmp_path):
    """They cannot be folded; torch computes them along."""
    config = TrainConfig(backbone=BackboneConfig(name="splip-tiny"), prompts=PromptConfig(conditioning="instance"))
    model = build(config, ["dog", "palm tree"]).eval()
    torch.save(model.checkpoint(), tmp_path / "best.pt")
    encoder = Encoder.load(tmp_path / "best.pt", device="cpu")
    for modality in MODALITIES:
        got = encoder.encode(pixels(3), modality)
        np.testing.assert_allclose(got, features(model, pixels(3), modality), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="conditioning: instance runs in engine torch and fp32 only"):
        Encoder.load(tmp_path / "best.pt", precision="bf16")


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_texts(engine, checkpoint, model, request):
    encoder = load(engine, checkpoint, request)
    texts = ["dog", "a red cup", *(f"{n} birds in {n} trees" for n in range(80))]  # more than are taken at once
    for number, modality in enumerate(MODALITIES):
        got, wanted = encoder.encode_text(texts, modality), model.encode_text(texts, number).numpy()
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)
    assert encoder.encode_text([]).shape == (0, D)
    with pytest.raises(UserError, match=r"\.\.\.' has 40 tokens, 23 fit"):
        encoder.encode_text(["word " * 40])
    with pytest.raises(ValueError, match="modality must be"):
        encoder.encode_text(["dog"], "music")
    with ThreadPoolExecutor(4) as pool:  # while pictures are encoded
        found = list(
            pool.map(
                lambda n: encoder.encode_text([texts[n]]) if n % 2 else encoder.encode(pixels(1), "photo"), range(12)
            )
        )
    np.testing.assert_allclose(np.concatenate(found[1::2]), wanted[1:12:2], rtol=0, atol=2e-6)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_either_engine_reads_texts(engine, exported, model):
    about = manifest.read(exported)
    got = text.TextTower(exported, about, about.text, engine, threads=1).encode_text(["dog", "a red cup"], "sketch")
    np.testing.assert_allclose(got, model.encode_text(["dog", "a red cup"], 0), rtol=0, atol=2e-6)


def test_texts_of_exports_that_have_none(copy):
    about = json.loads((copy / manifest.FILE).read_text())
    (copy / "text.onnx").write_bytes((copy / "text.onnx").read_bytes()[:-1])
    encoder = Encoder.load(copy, "onnxruntime", device="cpu")
    assert encoder.encode(pixels(1), "photo").shape == (1, D)  # the images' files are whole
    with pytest.raises(UserError, match=r"text.onnx: damaged"):
        encoder.encode_text(["dog"])
    del about["text"]  # of a version before
    (copy / manifest.FILE).write_text(json.dumps(about))
    with pytest.raises(UserError, match="holds no text tower: export the checkpoint again, with --text"):
        Encoder.load(copy, "onnxruntime", device="cpu").encode_text(["dog"])


def test_preparing_is_what_training_does(checkpoint, exported, tmp_path):
    """One definition of how a file becomes pixels, and one of how pixels become numbers."""
    path = tmp_path / "drawing.png"
    drawing = Image.new("RGB", (90, 50), "white")
    drawing.paste((20, 40, 60), (30, 10, 50, 35))
    drawing.save(path)
    for encoder in (Encoder.load(checkpoint), Encoder.load(exported, "onnxruntime", device="cpu")):
        for modality, crop in (("sketch", True), ("photo", False)):
            trained = Pictures([path], S, "stretch", crop).get([0])[0].permute(1, 2, 0).numpy()
            assert np.array_equal(encoder.prepare(images.read(path), modality), trained)
    backbone = load_model(checkpoint).backbone
    wanted = backbone.visual.conv1(torch.from_numpy(base.normalise(pixels(2), backbone.mean, backbone.std)))
    got = backbone.embed_patches(torch.from_numpy(pixels(2)).permute(0, 3, 1, 2))
    torch.testing.assert_close(got, wanted.flatten(2).transpose(1, 2), rtol=0, atol=1e-5)


def test_batches_fit_an_engines_profile():
    """Below its smallest batch the last image fills up, above its largest the batch is split."""
    seen = []

    class Runner:
        precision = "fp16"

        def __call__(self, part, modality):
            seen.append(len(part))
            return np.repeat(part[:, 0, 0, :1].astype(np.float32), D, axis=1)

    about = dataclasses.replace(ABOUT, batch=[4, 8, 8])
    encoder = Encoder(Path("x"), "tensorrt", Runner(), about, low=4, high=8)
    arrays = pixels(18)
    got = encoder.encode(arrays, "photo")
    assert seen == [8, 8, 4] and np.array_equal(got[:, 0], arrays[:, 0, 0, 0])


ABOUT = manifest.Manifest(
    format=manifest.FORMAT, splip="", identity="", name="", image_size=S, embed_dim=D, fit="pad", crop_sketches=False,
    mean=[], std=[], fused=True, batch=[1, 1, 1], precision="fp16", opset=20, engines={}, sha256={}, model={},
    verification={}, versions={},
)  # fmt: skip


def test_closed(checkpoint):
    encoder = Encoder.load(checkpoint)
    encoder.close()
    for call in (lambda: encoder.encode(pixels(1), "photo"), lambda: encoder.encode_text(["dog"])):
        with pytest.raises(RuntimeError, match="was closed"):
            call()
    encoder.close()


# ---- without torch ----


def test_importing_is_light():
    code = (
        "import sys, splip.encoders.encoder\n"
        "print(sorted({'torch', 'open_clip', 'onnxruntime', 'openvino', 'tyro', 'yaml', 'rich'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "[]\n"


WITHOUT_TORCH = """
import importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "open_clip", "tyro", "yaml", "rich"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
import numpy as np
from pathlib import Path
from PIL import Image
from splip.encoders.encoder import Encoder
from splip.errors import UserError

folder, checkpoint, arrays, out = sys.argv[1:]
arrays = np.load(arrays)
found = {}
for engine in ("onnxruntime", "openvino"):
    encoder = Encoder.load(folder, engine, device="cpu", precision="fp32", threads=1)
    for modality in ("sketch", "photo"):
        found[f"{engine} {modality}"] = encoder.encode(arrays, modality)
    found[f"{engine} text"] = encoder.encode_text(["a dog", "palm tree"])
    assert encoder.prepare(Image.new("RGB", (9, 9)), "sketch").shape == (64, 64, 3)
np.savez(out, **found)
try:
    Encoder.load(checkpoint)
except UserError as error:
    print(error)
assert "torch" not in sys.modules
"""


def test_an_export_runs_without_torch(exported, checkpoint, model, tmp_path):
    np.save(tmp_path / "arrays.npy", pixels(3))
    args = [exported, checkpoint, tmp_path / "arrays.npy", tmp_path / "found.npz"]
    run = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *map(str, args)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "a checkpoint needs PyTorch and open_clip" in run.stdout
    found = np.load(tmp_path / "found.npz")
    for key in found.files:
        kind = key.split()[1]
        wanted = model.encode_text(["dog", "palm tree"]) if kind == "text" else features(model, pixels(3), kind)
        np.testing.assert_allclose(found[key], wanted, rtol=0, atol=1e-5)


# ---- which engine ----


def test_auto(checkpoint, exported, copy, monkeypatch):
    assert Encoder.load(checkpoint).engine == "torch"
    monkeypatch.setattr(cuda, "gpus", lambda: ())
    assert Encoder.load(exported).engine == "openvino"
    monkeypatch.setattr("splip.encoders.encoder.installed", lambda package: package != "openvino")
    assert Encoder.load(exported).engine == "onnxruntime"
    monkeypatch.setattr("splip.encoders.encoder.installed", lambda package: False)
    with pytest.raises(UserError, match=r"holds onnx, openvino, and nothing here runs that .*splip\[openvino\]"):
        Encoder.load(exported)


def test_auto_on_a_gpu_asks_for_the_gpu_first(exported, monkeypatch):
    about = manifest.read(exported)
    about.engines["tensorrt"] = about.engines["onnx"]
    monkeypatch.setattr(cuda, "gpus", lambda: (cuda.Gpu(0, "a GPU", (8, 9)),))
    monkeypatch.setattr("splip.encoders.encoder.installed", lambda package: True)
    providers = [onnxruntime.CUDA_PROVIDER, "CPUExecutionProvider"]
    monkeypatch.setattr(pytest.importorskip("onnxruntime"), "get_available_providers", lambda: providers)
    on_gpu = [("tensorrt", 0), ("onnxruntime", 0)]
    on_cpu = [("openvino", None), ("onnxruntime", None)]
    assert _candidates(about, "auto") == on_gpu + on_cpu
    assert _candidates(about, "cuda") == on_gpu
    assert _candidates(about, "cpu") == on_cpu
    providers.pop(0)
    assert _candidates(about, "auto") == [("tensorrt", 0), *on_cpu]


def test_auto_says_why_it_took_another(copy, monkeypatch):
    monkeypatch.setattr(cuda, "gpus", lambda: ())
    about = manifest.read(copy)
    (copy / "sketch.xml").unlink()
    with pytest.warns(RuntimeWarning, match="sketch.xml: is missing; .*; trying onnxruntime"):
        assert Encoder.load(copy).engine == "onnxruntime"
    assert about.engines


def test_bfloat16_only_with_amx(exported, copy, monkeypatch):
    about = manifest.read(copy)
    about.engines["openvino"].precisions = ["bf16", "fp32"]
    about.save(copy)
    for amx, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(openvino, "has_amx", lambda amx=amx: amx)
        assert Encoder.load(copy, "openvino").precision == precision
    assert Encoder.load(exported, "openvino", precision="fp32").precision == "fp32"
    with pytest.raises(UserError, match="openvino runs fp32 or bf16, got precision fp16"):
        Encoder.load(exported, "openvino", precision="fp16")
    with pytest.raises(UserError, match="was exported in fp32, engine onnxruntime cannot run it in bf16"):
        Encoder.load(exported, "onnxruntime", precision="bf16")


def test_openvino_reads_onnx_and_keeps_a_cache(copy, model, tmp_path):
    about = manifest.read(copy)
    del about.engines["openvino"]
    about.save(copy)
    encoder = Encoder.load(copy, "openvino", cache=tmp_path / "cache", threads=1)
    np.testing.assert_allclose(encoder.encode(pixels(2), "photo"), features(model, pixels(2), "photo"), atol=1e-5)
    assert any((tmp_path / "cache").iterdir())


def test_threads_reach_the_engines(exported, checkpoint):
    before = torch.get_num_threads()
    try:
        Encoder.load(checkpoint, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert Encoder.load(exported, "openvino", threads=1)._runner._settings["INFERENCE_NUM_THREADS"] == 1
    session = Encoder.load(exported, "onnxruntime", device="cpu", threads=1)._runner._session("photo")
    assert session.get_session_options().intra_op_num_threads == 1


def test_onnxruntime_never_falls_back(exported, monkeypatch):
    """A session that quietly runs elsewhere than asked is an error."""
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(cuda, "gpus", lambda: ())
    has_cuda = onnxruntime.CUDA_PROVIDER in ort.get_available_providers()
    with pytest.raises(UserError, match="no NVIDIA GPU, or no driver" if has_cuda else "has no CUDAExecutionProvider"):
        Encoder.load(exported, "onnxruntime", device="cuda")

    class Session:
        def __init__(self, *args, **options):
            pass

        def disable_fallback(self):
            pass

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(cuda, "gpus", lambda: (cuda.Gpu(0, "a GPU", (8, 9)),))
    monkeypatch.setattr(
        ort, "get_available_providers", lambda: [onnxruntime.CUDA_PROVIDER, onnxruntime.TENSORRT_PROVIDER]
    )
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(ort, "InferenceSession", Session)
    for engine, provider in (
        ("onnxruntime", onnxruntime.CUDA_PROVIDER),
        ("onnxruntime-tensorrt", onnxruntime.TENSORRT_PROVIDER),
    ):
        with pytest.raises(UserError, match=f"could not start {provider} and would run on CPUExecutionProvider"):
            Encoder.load(exported, engine, device="cuda")


# ---- what can be wrong ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "abacus"}, "unknown engine abacus: choose auto, torch"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"device": "tpu"}, "no device tpu"),
        ({"device": "cuda:x"}, "no device cuda:x"),
        ({"engine": "onnxruntime"}, "engine onnxruntime runs exports, .* is a checkpoint"),
        ({"precision": "int4"}, "precision must be one of fp32, fp16, bf16, got int4"),
    ],
    ids=str,
)
def test_bad_arguments(checkpoint, arguments, message):
    with pytest.raises(UserError, match=message):
        Encoder.load(checkpoint, **arguments)


def test_bad_places(checkpoint, exported, tmp_path):
    with pytest.raises(UserError, match="not an export"):
        Encoder.load(tmp_path)
    with pytest.raises(UserError, match="no checkpoint"):
        Encoder.load(tmp_path / "none.pt")
    with pytest.raises(UserError, match="engine torch runs checkpoints, .* is an export"):
        Encoder.load(exported, "torch")
    with pytest.raises(UserError, match="engine openvino runs on the CPU here, not on cuda:1"):
        Encoder.load(exported, "openvino", device="cuda:1")
    with pytest.raises(UserError, match="engine tensorrt runs on a GPU, not on the CPU"):
        Encoder.load(exported, "tensorrt", device="cpu")
    with pytest.raises(UserError, match="holds onnx, openvino; engine tensorrt needs `splip export --trt`"):
        Encoder.load(exported, "tensorrt")


@pytest.mark.parametrize(
    ("arrays", "modality", "message"),
    [
        (pixels(1)[0], "photo", r"must be uint8 \[B, 64, 64, 3\], got uint8 \[64, 64, 3\]"),
        (pixels(1).transpose(0, 3, 1, 2), "photo", r"got uint8 \[1, 3, 64, 64\]"),
        (pixels(1).astype(np.float32), "photo", "got float32"),
        (pixels(1), "drawing", "modality must be sketch or photo, got 'drawing'"),
    ],
    ids=str,
)
def test_bad_images(checkpoint, arrays, modality, message):
    with pytest.raises(ValueError, match=message):
        Encoder.load(checkpoint).encode(arrays, modality)


def flip(path):
    """Change one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_damaged_files(copy):
    flip(copy / "photo.onnx")
    with pytest.raises(UserError, match="photo.onnx: damaged, or not the file that was exported"):
        Encoder.load(copy, "onnxruntime")
    (copy / "photo.onnx").write_bytes((copy / "photo.onnx").read_bytes()[:1000])
    about = manifest.read(copy)
    about.sha256["photo.onnx"] = disk.file_hash(copy / "photo.onnx")  # exported so, by whatever wrote it
    about.save(copy)
    with pytest.raises(UserError, match="photo.onnx: onnxruntime cannot load it"):
        Encoder.load(copy, "onnxruntime", device="cpu").encode(pixels(1), "photo")
    flip(copy / "sketch.bin")
    with pytest.raises(UserError, match="sketch.bin: damaged"):
        Encoder.load(copy, "openvino")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(format=99), "export format 99, this version reads 1"),
        (lambda values: values.pop("engines"), "damaged: KeyError"),
        (lambda values: values.pop("identity"), "damaged: TypeError"),
        (lambda values: values["engines"].update(onnx=3), "damaged: TypeError"),
    ],
)
def test_damaged_manifest(copy, change, message):
    values = json.loads((copy / "export.json").read_text())
    change(values)
    (copy / "export.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        Encoder.load(copy)


def test_a_manifest_that_is_no_json(copy):
    (copy / "export.json").write_text("{")
    with pytest.raises(UserError, match="export.json: damaged"):
        Encoder.load(copy)


@pytest.mark.parametrize(("engine", "extra"), [("onnxruntime", "splip[onnx]"), ("openvino", "splip[openvino]")])
def test_missing_packages_are_named(exported, monkeypatch, engine, extra):
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(UserError, match=engine) as caught:
        Encoder.load(exported, engine)
    assert extra in str(caught.value)


# ---- TensorRT engines ----


def an_engine(folder, **changes):
    """A file with a sidecar that fits it; no library would take it."""
    path = folder / "photo.engine"
    path.write_bytes(b"plan" * 100)
    values = {
        "flavour": "tensorrt-rtx", "version": "1.7.1", "capabilities": ["8.9"], "hardware": "none",
        "version_compatible": False, "batch": [2, 4, 8], "onnx_sha256": "", "engine_sha256": disk.file_hash(path),
    }  # fmt: skip
    metadata = Metadata(**(values | changes))
    metadata.save(path)
    return path, metadata


ADA, AMPERE, TURING = (
    cuda.Gpu(0, name, cap) for name, cap in (("Ada", (8, 9)), ("Ampere", (8, 0)), ("Turing", (7, 5)))
)


@pytest.mark.parametrize(
    ("changes", "version", "gpu", "message"),
    [
        ({}, "1.7.1", ADA, None),
        ({}, "1.8.0", ADA, "was built with tensorrt-rtx 1.7.1, here is 1.8.0; run `splip export --trt` again"),
        ({"version_compatible": True}, "1.8.0", ADA, None),
        ({}, "1.7.1", TURING, "for GPUs of compute capability 8.9; Turing has 7.5"),
        ({"hardware": "ampere+"}, "1.7.1", AMPERE, None),
        ({"hardware": "ampere+"}, "1.7.1", TURING, "Turing has 7.5"),
        ({"capabilities": []}, "1.7.1", TURING, None),
    ],
    ids=str,
)
def test_engines_fit_one_version_and_gpu(tmp_path, changes, version, gpu, message):
    path, metadata = an_engine(tmp_path, **changes)
    if message is None:
        return tensorrt_runtime.check_fits(metadata, path, version, gpu)
    with pytest.raises(UserError, match=message):
        tensorrt_runtime.check_fits(metadata, path, version, gpu)


def test_damaged_engines(tmp_path):
    with pytest.raises(UserError, match="no engine"):
        tensorrt_runtime.read_metadata(tmp_path / "photo.engine")
    path, metadata = an_engine(tmp_path)
    assert tensorrt_runtime.read_metadata(path) == metadata
    flip(path)
    with pytest.raises(UserError, match="photo.engine: damaged"):
        tensorrt_runtime.read_metadata(path)
    tensorrt_runtime.sidecar(path).write_text("[]")
    with pytest.raises(UserError, match="photo.engine.json: damaged"):
        tensorrt_runtime.read_metadata(path)
    tensorrt_runtime.sidecar(path).unlink()
    with pytest.raises(UserError, match="photo.engine.json: is missing"):
        tensorrt_runtime.read_metadata(path)


def test_engines_need_a_gpu(tmp_path, monkeypatch):
    """Said before the library is asked: its runtime would end the interpreter."""
    path, _ = an_engine(tmp_path)
    monkeypatch.setattr(cuda, "gpus", lambda: ())
    monkeypatch.setattr(tensorrt_runtime, "load_library", lambda flavour: pytest.fail("must not be reached"))
    with pytest.raises(tensorrt_runtime.Unavailable, match="needs an NVIDIA GPU"):
        tensorrt_runtime.Engine(path)


def test_batches_outside_the_profile(tmp_path):
    engine = tensorrt_runtime.Engine.__new__(tensorrt_runtime.Engine)  # its checks come before the GPU
    engine.path, engine.metadata = an_engine(tmp_path)
    for count in (1, 9):
        with pytest.raises(UserError, match=f"was built for batches of 2 to 8 images, got {count}"):
            engine.run(pixels(count))


def test_the_driver_is_asked_once():
    assert cuda.gpus() is cuda.gpus()
    if not cuda.gpus():
        with pytest.raises(RuntimeError, match="no CUDA driver"):
            cuda.Device(0)


class FakeGpu:
    """Stands in for the GPU and for TensorRT: memory is host memory, the "engine" gives each image's mean colour."""

    def __init__(self, monkeypatch):
        self.memory, self.shapes, self.addresses = {}, {}, {}
        self.closed, self.pointers = False, itertools.count(1000)
        library = type(sys)("tensorrt_rtx")
        library.__version__ = "1.7.1"
        library.ILogger = type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0})
        library.Runtime = lambda logger: self
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)
        monkeypatch.setattr(cuda, "gpus", lambda: (ADA,))
        monkeypatch.setattr(cuda, "Device", lambda number: self)
        self.stream = 7

    # the device
    def current(self):
        return contextlib.nullcontext()

    def allocate(self, size):
        pointer = next(self.pointers)
        self.memory[pointer] = np.zeros(size, np.uint8)
        return pointer

    def free(self, pointer):
        del self.memory[pointer]

    def upload(self, pointer, array):
        self.memory[pointer][: array.nbytes] = array.reshape(-1).view(np.uint8)

    def download(self, array, pointer):
        array.reshape(-1).view(np.uint8)[:] = self.memory[pointer][: array.nbytes]

    def wait(self):
        pass

    def close(self):
        self.closed = True

    # the library's runtime, engine and context
    def deserialize_cuda_engine(self, plan):
        return self if plan.startswith(b"plan") else None

    def get_tensor_shape(self, name):
        return (-1, D)

    def create_execution_context(self):
        return self

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return shape[1:] == (S, S, 3)

    def set_tensor_address(self, name, pointer):
        self.addresses[name] = pointer

    def execute_async_v3(self, stream):
        shape = self.shapes["images"]
        given = self.memory[self.addresses["images"]][: np.prod(shape)].reshape(shape)
        means = given.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)
        out = np.repeat(means[:, None], D, axis=1)
        self.memory[self.addresses["features"]][: out.nbytes] = out.reshape(-1).view(np.uint8)
        return stream == 7


def test_running_an_engine(tmp_path, monkeypatch):
    """Buffers, shapes and addresses around a library that is not here."""
    gpu = FakeGpu(monkeypatch)
    path, _ = an_engine(tmp_path)
    engine = tensorrt_runtime.Engine(path)
    for count in (2, 8, 3):
        got = engine.run(pixels(count, count))
        assert got.shape == (count, D) and got.dtype == np.float32
        np.testing.assert_allclose(got[:, 0], pixels(count, count).mean(axis=(1, 2, 3)), rtol=1e-6)
    assert len(gpu.memory) == 2, "buffers that became too small are given back"
    with pytest.raises(UserError, match=r"does not take images of shape \[2, 32, 32, 3\]"):
        engine.run(pixels(2)[:, :32, :32].copy())
    engine.close()
    assert not gpu.memory and gpu.closed
    path, _ = an_engine(tmp_path, version="9.9")
    with pytest.raises(UserError, match="was built with tensorrt-rtx 9.9, here is 1.7.1"):
        tensorrt_runtime.Engine(path)


def test_an_engine_that_the_library_refuses(tmp_path, monkeypatch):
    gpu = FakeGpu(monkeypatch)
    path, metadata = an_engine(tmp_path)
    path.write_bytes(b"other")
    dataclasses.replace(metadata, engine_sha256=disk.file_hash(path)).save(path)
    with pytest.raises(UserError, match="photo.engine: tensorrt-rtx 1.7.1 refuses it: it gives no reason"):
        tensorrt_runtime.Engine(path)
    assert gpu.closed


@pytest.mark.parametrize("how", ["base.import_engine('openvino')", "to_openvino.need(int8=False)"])
def test_openvino_tells_nobody_that_it_is_used(how, tmp_path):
    """Left alone, its import writes an identity into the user's home and sends an event with it."""
    pytest.importorskip("openvino")
    code = f"import os, sys; from splip.encoders import base; from splip.export import to_openvino; {how}; print(sys.modules['openvino_telemetry'], os.listdir())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={"HOME": str(tmp_path)}
    )
    assert done.stdout == "None []\n", done.stderr
