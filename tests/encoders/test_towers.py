"""The deploy graphs of every family: constants folded, the same features."""

import pytest
import torch
from tiny_towers import NAMES
from tower_models import known_words, lively_model, pictures, very_lively_model

from splip.data.trees import MODALITIES
from splip.encoders import base, graph
from splip.errors import UserError
from splip.export import verify
from splip.models.towers.table import FAMILIES, Family

CASES = [("clip-ln", None), ("clip-at", None), ("splip", None), ("splip", 2)]
# No released backbone has such a text tower beside a visual one that takes prompts: what its graph does is tested so.
WHOLE = Family("whole-text", "", "", "")
READERS = (*FAMILIES, WHOLE)
CELLS = [(f, m, d) for f in FAMILIES for m, d in CASES if m not in f.refused]


@pytest.fixture(autouse=True)
def words(monkeypatch):
    known_words(monkeypatch)


@torch.no_grad()
@pytest.mark.parametrize(("family", "method", "depth"), CELLS, ids=[f"{f.key}-{m}-{d}" for f, m, d in CELLS])
def test_graph_equals_the_model(family, method, depth):
    model, images = very_lively_model(family, method, depth), pictures(4)
    pixels = images.permute(0, 2, 3, 1).contiguous()
    wanted = [model.encode_image(images, number) for number in range(2)]
    if method != "clip-ln":
        assert (wanted[0] - wanted[1]).abs().max() > 1e-4
    trained = set(model.trainable())
    for fused in (True, False):
        batch = pixels
        if not fused:
            batch = torch.from_numpy(base.normalise(pixels.numpy(), model.backbone.mean, model.backbone.std))
        encoders = graph.encoders(model, fused=fused)
        for number, name in enumerate(MODALITIES):
            torch.testing.assert_close(
                encoders[name](batch), wanted[number], rtol=0, atol=2e-6 if model.backbone.patches else 1e-5
            )
    assert trained == set(model.trainable())  # what is deployed shares nothing that it changes


@torch.no_grad()
@pytest.mark.parametrize("family", [f for f in FAMILIES if "clip-at" not in f.refused], ids=lambda f: f.key)
def test_half_precision_is_near(family):
    model, images = very_lively_model(family, "clip-at"), pictures(4)
    encoders = graph.encoders(model, "bf16", fused=True)
    got = encoders["photo"](images.permute(0, 2, 3, 1))
    assert torch.nn.functional.cosine_similarity(got, model.encode_photo(images)).min() > 0.995


@torch.no_grad()
@pytest.mark.parametrize(("method", "depth"), [("clip-ln", None), ("splip", None), ("maple", 2)])
@pytest.mark.parametrize("family", [f for f in READERS if "words" not in f.refused], ids=lambda f: f.key)
def test_text_graph_equals_the_model(family, method, depth):
    if method in family.refused:
        pytest.skip(family.refused[method])
    model, texts = very_lively_model(family, method, depth), ["dog", "two red cars", ""]
    if "export --text" in family.refused:
        with pytest.raises(UserError, match=f"{NAMES[family.key]} {family.refused['export --text']}"):
            graph.text_encoder(model)
        return
    encoder, tokenizer = graph.text_encoder(model), model.backbone.tokenizer
    own = [[*tokenizer.encode(text), tokenizer.eot_token_id] for text in texts]
    tokens = torch.zeros(len(texts), max(map(len, own)), dtype=torch.int64)
    for row, ids in zip(tokens, own, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    for number in range(len(MODALITIES)):
        got = encoder(tokens, torch.full((len(texts),), number))
        torch.testing.assert_close(got, model.encode_text(texts, number), rtol=0, atol=2e-6)


def run_onnx(path, feed):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)[0]


@torch.no_grad()
@pytest.mark.parametrize(
    "key", ["eva", *(pytest.param(k, marks=pytest.mark.exhaustive) for k in ("siglip", "dinov3", "convnext"))]
)
def test_onnx_and_openvino_give_the_same(key, tmp_path):
    """Of pooling by attention, inner norms and neighbours turned, halves turned, no blocks."""
    pytest.importorskip("onnxruntime")
    openvino = pytest.importorskip("openvino")
    from splip.encoders.manifest import Batch
    from splip.export import to_onnx

    family = next(f for f in FAMILIES if f.key == key)
    method = next(m for m in ("splip", "clip-at", "clip-ln") if m not in family.refused)
    model, images = very_lively_model(family, method, 1), pictures(3)
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    wanted = model.encode_photo(images).numpy()
    made = graph.encoders(model, fused=True)["photo"]
    to_onnx.write(made, tmp_path / "photo.onnx", Batch(1, 1, 8), to_onnx.OPSETS["fp32"], {})
    assert abs(run_onnx(tmp_path / "photo.onnx", {"images": pixels}) - wanted).max() <= verify.MAX_DIFFERENCE
    compiled = openvino.Core().compile_model(tmp_path / "photo.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert abs(compiled(pixels)[0] - wanted).max() <= verify.MAX_DIFFERENCE


@torch.no_grad()
def test_whole_texts_in_onnx(tmp_path):
    """A text that is seen whole is filled up inside the file, whatever its length."""
    pytest.importorskip("onnxruntime")
    from splip.encoders.manifest import Batch
    from splip.export import to_onnx

    model = very_lively_model(WHOLE, "splip", 1)
    encoder, tokenizer = graph.text_encoder(model), model.backbone.tokenizer
    to_onnx.write(encoder, tmp_path / "text.onnx", Batch(1, 1, 8), to_onnx.OPSETS["fp32"], {})
    for text in ("dog", "two red cars on a street"):
        ids = torch.tensor([[*tokenizer.encode(text), tokenizer.eot_token_id]])
        for number in range(2):
            feed = {"tokens": ids.numpy(), "modality": torch.tensor([number]).numpy()}
            got = torch.from_numpy(run_onnx(tmp_path / "text.onnx", feed))
            torch.testing.assert_close(got, model.encode_text([text], number), rtol=0, atol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.key)
def test_export_of_every_family(family, tmp_path):
    """The command: files of both engines, verified; and a search by them."""
    from splip.encoders.encoder import Encoder
    from splip.export import command
    from splip.export.config import ExportConfig

    method = next(m for m in ("splip", "clip-at", "clip-ln") if m not in family.refused)
    model = lively_model(family, method)
    torch.save(model.checkpoint(), tmp_path / "best.pt")
    text = "export --text" not in family.refused
    config = ExportConfig(
        tmp_path / "best.pt", tmp_path / "out", onnx=True, openvino=True, text=text, fuse_preprocess=True
    )
    assert command.export(config) == 0
    images = pictures(3)
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    for engine in ("onnxruntime", "openvino"):
        encoder = Encoder.load(tmp_path / "out", engine, precision="fp32" if engine == "openvino" else None)
        assert abs(encoder.encode(pixels, "sketch") - model.encode_sketch(images).numpy()).max() <= 1e-5
        if text:
            assert abs(encoder.encode_text(["dog"]) - model.encode_text(["dog"]).numpy()).max() <= 1e-5


@pytest.mark.parametrize("family", [f for f in FAMILIES if "export --text" in f.refused], ids=lambda f: f.key)
def test_text_of_an_export_is_refused_in_one_line(family, tmp_path, refused):
    method = next(m for m in ("splip", "clip-at", "clip-ln") if m not in family.refused)
    torch.save(lively_model(family, method).checkpoint(), tmp_path / "best.pt")
    said = refused("export", tmp_path / "best.pt", "--out", tmp_path / "out", "--onnx", "--text")
    assert family.refused["export --text"] in said
