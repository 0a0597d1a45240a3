"""``/v1/embeddings``: the shape that OpenAI's clients know, the vectors of the model, the limits of every other route."""

import base64
import threading

import numpy as np
import pytest
from serving import BEARER, BOX_SVG, SHAPES, TOKEN, metric, running, sketch, unit, wait_until

from splip.encoders import compact
from splip.images import decode
from splip.serve import queries
from splip.serve.schemas import Embeddings, Failed, Models

URL, ID = "/v1/embeddings", "splip-000000000000"


def data_url(kind="box", media="image/png", data=None):
    return f"data:{media};base64," + base64.b64encode(sketch(kind) if data is None else data).decode()


def ask(client, input, **options):
    answer = client.post(URL, json={"model": "splip", "input": input, **options})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    Embeddings.model_validate(body)
    assert [one["index"] for one in body["data"]] == list(range(len(body["data"]))) and body["model"] == ID
    return [one["embedding"] for one in body["data"]]


def failed(answer, status, code, kind="invalid_request_error"):
    assert answer.status_code == status, answer.text
    error = Failed.model_validate(answer.json()).error
    assert (error.code, error.type) == (code, kind) and set(answer.json()) == {"error"}
    return error.message


def by_encoder(client, kind, modality):
    """The vector that the model itself gives for a drawn shape."""
    encoder = client.service.gallery.encoder
    image = queries.read_picture(sketch(kind), (None, decode.DECODING))
    return encoder.encode(encoder.prepare(image, modality)[None], modality)[0]


# ---- what is answered ----


def test_pictures_and_texts_in_every_form(client):
    box, ball = by_encoder(client, "box", "photo"), client.service.gallery.encoder.meanings["ball"]
    for given, wanted in (
        ("ball", [ball]),
        (["ball", {"text": "ball"}], [ball, ball]),
        ({"image": data_url()}, [box]),
        (data_url(), [box]),
        ([data_url(), "ball", {"image": base64.b64encode(sketch()).decode()}], [box, ball, box]),
    ):
        np.testing.assert_allclose(ask(client, given), wanted, atol=1e-7)
    drawn = ask(client, data_url(data=BOX_SVG.encode(), media="image/svg+xml"), modality="sketch")[0]
    assert np.dot(drawn, box) > 0.7 and np.isclose(np.linalg.norm(drawn), 1)


def test_a_photo_of_the_gallery_has_the_vector_that_the_gallery_keeps(client):
    gallery = client.service.gallery
    data = gallery.items[3].path.read_bytes()
    vector = ask(client, {"image": data_url(data=data, media="image/jpeg")}, modality="photo")[0]
    np.testing.assert_allclose(vector, gallery.vectors[3], atol=1e-6)


def test_what_a_picture_and_a_text_are_taken_for(client, monkeypatch):
    encoder, seen = client.service.gallery.encoder, []
    encode, encode_text = encoder.encode, encoder.encode_text
    monkeypatch.setattr(
        encoder, "encode", lambda pixels, modality: (seen.append(modality), encode(pixels, modality))[1]
    )
    monkeypatch.setattr(encoder, "encode_text", lambda texts, m: (seen.append((m, texts)), encode_text(texts, m))[1])
    ask(client, [data_url(), "cone one"])
    ask(client, [data_url(), "cone one"], modality="sketch")
    ask(client, ["cone one"], modality="sketch")  # is kept
    assert sorted(map(str, seen)) == sorted(
        map(str, ["photo", ("photo", ["cone one"]), "sketch", ("sketch", ["cone one"])])
    )


@pytest.mark.parametrize("size", [64, 16])
def test_forms_and_sizes(client, size):
    whole = np.stack([by_encoder(client, kind, "photo") for kind in SHAPES[:3]])
    head = unit(whole[:, :size])
    given = [data_url(kind) for kind in SHAPES[:3]]
    np.testing.assert_allclose(ask(client, given, dimensions=size), head, atol=1e-6)
    texts = ask(client, given, dimensions=size, encoding_format="base64")
    found = np.stack([np.frombuffer(base64.b64decode(text), "<f4") for text in texts])
    np.testing.assert_allclose(found, head, atol=1e-6)
    for form in ("int8", "binary", "ubinary"):
        wanted = getattr(compact, form)(found).tolist()
        assert ask(client, given, dimensions=size, encoding_format=form) == wanted
        # OpenAI's client asks for base64 by itself
        assert ask(client, given, dimensions=size, embedding_type=form, encoding_format="base64") == wanted


def test_models(client):
    listed = client.get("/v1/models").json()
    Models.model_validate(listed)
    about = listed["data"][0]
    assert about["id"] == ID and about["dimensions"] == [12, 16, 64] and about["text"] is True
    assert client.get("/v1/models/splip").json() == client.get(f"/v1/models/{ID}").json() == about
    assert ID in failed(client.get("/v1/models/gpt-5"), 404, "model_not_found")
    assert client.get("/v1/gallery").json()["dimensions"] == [12, 16, 64]


def test_they_go_through_the_batches(gallery):
    """Vectors and searches that come together are encoded together, and what is only encoded is not searched."""
    with running(gallery, window_ms=3_600, max_batch=4) as client:
        gallery.encoder.batches.clear()
        before = metric(client, 'splip_stage_seconds_count{stage="search"}')
        ask(client, [data_url(kind) for kind in SHAPES[:4]])
        assert gallery.encoder.batches == [4]
        assert metric(client, 'splip_stage_seconds_count{stage="search"}') == before
        assert metric(client, 'splip_stage_seconds_count{stage="encode"}') >= 4
        answers = []
        both = [
            threading.Thread(target=lambda: answers.append(ask(client, [data_url()] * 3, modality="sketch"))),
            threading.Thread(
                target=lambda: answers.append(client.post("/v1/search?k=2", content=sketch(), headers=PNG).json())
            ),
        ]
        gallery.encoder.batches.clear()
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert sum(gallery.encoder.batches) == 4
        search = next(a for a in answers if isinstance(a, dict))
        assert [m["label"] for m in search["matches"]] == ["box", "box"]


PNG = {"Content-Type": "image/png"}


# ---- what is refused ----


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({}, "input: write it as", "input"),
        ([], "input: write it as", "input"),
        ({"input": []}, "input: at least one", "input"),
        ({"input": ""}, "input.0: an empty text", "input.0"),
        ({"input": ["ball", "  "]}, "input.1: an empty text", "input.1"),
        ({"input": [1, 2, 3]}, "input.0: numbers of tokens are not taken: send the text", "input.0"),
        ({"input": [[1, 2], [3]]}, "input.0: numbers of tokens are not taken", "input.0"),
        ({"input": None}, "input.0: not a text", "input.0"),
        ({"input": {"image": "https://example.org/a.png"}}, "input.0: addresses are not fetched", "input.0"),
        ({"input": {"image": "data:image/png;base64,%%%"}}, "input.0: image is not valid base64", "input.0"),
        ({"input": [{"image": "x", "text": "y"}]}, 'input.0: an object has one key, "image" or "text"', "input.0"),
        ({"input": [{"picture": "x"}]}, "input.0: an object has one key", "input.0"),
        ({"input": "x" * 401}, "input.0.text: String should have at most 400 characters", "input.0.text"),
        ({"input": "ball", "dimensions": 32}, "dimensions: this model's vectors have 12, 16, 64, got 32", "dimensions"),
        ({"input": "ball", "dimensions": 0}, "dimensions: ", "dimensions"),
        (
            {"input": "ball", "dimensions": 12, "embedding_type": "binary"},
            "dimensions: bits come in bytes",
            "dimensions",
        ),
        ({"input": "ball", "encoding_format": "float16"}, "encoding_format: ", "encoding_format"),
        ({"input": "ball", "modality": "text"}, "modality: ", "modality"),
        ({"input": "ball", "task": "x"}, "task: Extra inputs", "task"),
    ],
)
def test_requests_that_make_no_sense(client, body, message, param):
    answer = client.post(URL, json=body)
    assert failed(answer, 400, "invalid").startswith(message)
    assert answer.json()["error"]["param"] == param


def test_pictures_that_cannot_be_read(client):
    bad = {"image": data_url(data=b"no picture")}
    answer = client.post(URL, json={"input": ["ball", bad]})
    assert failed(answer, 400, "unreadable").startswith("input.1: cannot read picture")
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    huge = client.post(URL, json={"input": {"image": data_url(data=file.getvalue())}})
    assert "input.0: the picture has 9000 x 9000 pixels" in failed(huge, 413, "too_large")
    file = BytesIO()
    Image.new("L", (64, 64), 255).save(file, "PNG")
    white = {"image": data_url(data=file.getvalue())}
    assert "blank" in failed(client.post(URL, json={"input": white, "modality": "sketch"}), 400, "blank")
    assert len(ask(client, white, modality="photo")[0]) == 64


def test_no_request_asks_for_more_than_it_may(client):
    most = client.service.config.max_queries
    assert len(ask(client, ["ball"] * most)) == most
    for given in (["ball"] * (most + 1), [[1] * 100] * 100, list(range(5000)), [{"text": "x"}] * (most + 1)):
        answer = client.post(URL, json={"input": given})
        assert (answer.status_code, answer.json()["error"]["code"]) in ((400, "invalid"), (413, "too_large")), (
            answer.text
        )
        assert "input: at most" in answer.text or "the JSON holds more" in answer.text
    assert failed(client.post(URL, content=b"[" * 100_000, headers=JSON), 413, "too_large")
    assert failed(client.post(URL, content=b"{", headers=JSON), 400, "invalid").startswith("Invalid JSON")
    assert failed(client.post(URL, content=b"x"), 415, "media_type")
    large = b'{"input": "' + b"x" * client.service.max_body + b'"}'
    assert failed(client.post(URL, content=large, headers=JSON), 413, "too_large")
    assert failed(client.get(URL), 405, "method")


JSON = {"Content-Type": "application/json"}


def test_the_queue_and_the_clock(gallery):
    with running(gallery, max_queue=4, max_per_client=2, timeout_s=0.5) as client:
        assert "from this address" in failed(
            client.post(URL, json={"input": ["a", "b", "c"]}), 429, "busy", "rate_limit_error"
        )
        gallery.encoder.hold.clear()
        answer = client.post(URL, json={"input": data_url()})
        assert answer.headers["retry-after"] == "1"
        failed(answer, 503, "timeout", "server_error")
        gallery.encoder.hold.set()
        wait_until(lambda: client.service.batcher._taken_on == 0)
        client.service.config.timeout_s = 15.0
        assert len(ask(client, data_url())) == 1


def test_one_that_fails_leaves_nothing_behind(gallery):
    with running(gallery) as client:
        for _ in range(3):
            given = [data_url(data=b"no picture"), *[data_url(kind) for kind in SHAPES]]
            failed(client.post(URL, json={"input": given}), 400, "unreadable")
        wait_until(lambda: client.service.batcher._taken_on == 0)
        batcher = client.service.batcher
        assert (batcher._coming, batcher._waiting, len(batcher._clients)) == (0, [], 0)


def test_the_token(gallery):
    with running(gallery, token=TOKEN, protect="all") as client:
        for answer in (client.post(URL, json={"input": "ball"}), client.get("/v1/models")):
            failed(answer, 401, "token", "authentication_error")
        assert client.post(URL, json={"input": "ball"}, headers=BEARER).status_code == 200


def test_a_model_without_text(gallery, monkeypatch):
    from splip.errors import UserError

    def refuse(texts, modality="photo"):
        raise UserError("no text tower")

    monkeypatch.setattr(gallery.encoder, "encode_text", refuse)
    with running(gallery) as client:
        message = failed(client.post(URL, json={"input": "ball"}), 400, "invalid")
        assert message == "input.0: this gallery's model does not understand text"


def test_the_document_describes_it(client):
    schema = client.get("/openapi.json").json()
    body = schema["paths"][URL]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/Embed"}
    embed = schema["components"]["schemas"]["Embed"]
    assert embed["required"] == ["input"] and embed["properties"]["input"]["anyOf"][-1]["maxItems"] == 64
    assert "error" in schema["components"]["schemas"]["Failed"]["properties"]
    assert {"/v1/models", "/v1/models/{id}"} <= set(schema["paths"])


# ---- a real client, and a real model ----


def test_openais_own_client(client):
    """As it comes: it asks for base64 without being told, reads our errors and lists our model."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=client.address + "/v1", api_key="none", max_retries=0) as them:
        assert [model.id for model in them.models.list()] == [ID]
        made = them.embeddings.create(model=ID, input=["ball", data_url()])
        assert made.model == ID and made.usage.total_tokens == 0
        np.testing.assert_allclose(made.data[0].embedding, client.service.gallery.encoder.meanings["ball"], atol=1e-7)
        box = by_encoder(client, "box", "photo")
        np.testing.assert_allclose(made.data[1].embedding, box, atol=1e-7)
        drawn = them.embeddings.create(
            model="splip", input=[{"image": data_url()}], dimensions=16, extra_body={"modality": "sketch"}
        )
        head = unit(by_encoder(client, "box", "sketch")[None, :16])[0]
        np.testing.assert_allclose(drawn.data[0].embedding, head, atol=1e-6)
        plain = them.embeddings.create(model="splip", input="ball", encoding_format="float")
        assert plain.data[0].embedding == made.data[0].embedding
        bits = them.embeddings.create(model="splip", input="ball", extra_body={"embedding_type": "ubinary"})
        assert bits.data[0].embedding == compact.ubinary(np.array(made.data[0].embedding, np.float32)).tolist()
        with pytest.raises(openai.NotFoundError, match="this service has splip-000000000000") as missing:
            them.embeddings.create(model="gpt-5", input="ball")
        assert missing.value.code == "model_not_found" and missing.value.param == "model"
        with pytest.raises(openai.BadRequestError, match=r"input\.0: an empty text") as bad:
            them.embeddings.create(model="splip", input=[""])
        assert bad.value.code == "invalid" and bad.value.type == "invalid_request_error"


def test_openais_client_and_the_token(gallery):
    openai = pytest.importorskip("openai")
    with running(gallery, token=TOKEN, protect="all") as client:
        for key in (TOKEN, "wrong"):
            with openai.OpenAI(base_url=client.address + "/v1", api_key=key, max_retries=0) as them:
                if key == TOKEN:
                    assert len(them.embeddings.create(model="splip", input="ball").data) == 1
                    continue
                with pytest.raises(openai.AuthenticationError) as error:
                    them.embeddings.create(model="splip", input="ball")
                assert error.value.code == "token"


def test_a_gallery_of_shorter_vectors(tmp_path):
    """A real model: its service gives the sizes up to the gallery's, and a picture's vector is the gallery's own."""
    from checkpoints import save_model
    from drawing import draw

    from splip.gallery.gallery import Gallery

    model = save_model(tmp_path / "nested.pt", 0, sizes=(16, 32, 64))
    draw(tmp_path / "photo.png", 1, "blue", 2)
    with Gallery.create(tmp_path / "gallery", model, dimensions=32) as made:
        made.add([tmp_path / "photo.png"])
    url = data_url(data=(tmp_path / "photo.png").read_bytes())
    with Gallery.open(tmp_path / "gallery") as gallery, running(gallery) as client:
        about = client.get("/v1/models").json()["data"][0]
        assert about["dimensions"] == [16, 32]

        def vector(input, **options):
            answer = client.post(URL, json={"input": input, **options})
            assert answer.status_code == 200, answer.text
            return np.array(answer.json()["data"][0]["embedding"])

        np.testing.assert_allclose(vector(url), gallery.vector(1), atol=1e-6)
        np.testing.assert_allclose(vector(url, dimensions=16), unit(gallery.vector(1)[None, :16])[0], atol=1e-6)
        words = gallery.encoder.encode_text(["a dog"], "sketch")[0]
        np.testing.assert_allclose(vector("a dog", modality="sketch"), words, atol=1e-6)
        answer = client.post(URL, json={"input": url, "dimensions": 64})
        assert failed(answer, 400, "invalid") == "dimensions: this model's vectors have 16, 32, got 64"
