"""Why a photo matches, over HTTP."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from serving import (
    BOX,
    BOX_SVG,
    FakeEncoder,
    FakeGallery,
    found,
    real_gallery,
    refused,
    running,
    sketch,
    wait_until,
)

from splip.gallery.gallery import Gallery


def ask(client, **body):
    return client.post("/v1/explain", json=body)


def test_heat_stands_where_the_lines_are(client):
    first = client.post("/v1/search", json={**BOX, "k": 1}).json()["matches"][0]
    answer = ask(client, **BOX, photo=first["id"])
    body = answer.json()
    assert answer.status_code == 200 and body["photo"] == first["id"]
    assert body["score"] == pytest.approx(first["score"], abs=1e-5)
    heat = np.array(body["heat"])
    assert body["grid"] == body["query_grid"] == [4, 4] and heat.shape == np.array(body["query_heat"]).shape == (4, 4)
    assert heat.max() == 1 and heat.min() >= 0 and body["strongest"] > 0 and body["by"] == "removal"
    assert heat[1:3, 1:3].max() < heat[0].max()  # a box is empty in the middle
    left, top, right, bottom = body["box"]
    assert right - left >= 1 and bottom - top >= 1
    assert {"decode", "prepare", "wait", "encode", "explain", "total"} == set(body["timing_ms"])


def test_queries_of_every_kind(client):
    assert client.get("/v1/gallery").json()["explains"] is True
    for query in ({"text": "box"}, {"id": 2}, {"like": [{"text": "box"}]}):
        body = ask(client, **query, photo=2).json()
        assert body["query_grid"] is body["query_heat"] is None and len(body["heat"]) == 4
    both = ask(client, **BOX, text="cone", like=[{"id": 3, "weight": -0.25}], photo=2).json()
    assert both["query_grid"] == [4, 4]
    assert both["score"] != ask(client, **BOX, photo=2).json()["score"]
    assert ask(client, svg=BOX_SVG, photo=2).json()["query_grid"] == [4, 4]


def test_what_cannot_be_explained(client):
    refused(ask(client, **BOX, photo=999), 404, "not_found")
    refused(ask(client, id=999, photo=1), 404, "not_found")
    refused(ask(client, **BOX), 422, "invalid")
    refused(ask(client, photo=1), 422, "invalid")
    refused(ask(client, strokes=[], photo=1), 422, "blank")
    refused(ask(client, **BOX, photo=1, unknown=2), 422, "invalid")
    refused(client.post("/v1/explain", content=b"x"), 415, "media_type")
    assert "too long for this model" in refused(ask(client, text="x" * 350, photo=1), 422, "invalid")
    assert "cancel out" in refused(
        ask(client, text="cone", like=[{"text": "cone", "weight": -1}], photo=1), 422, "invalid"
    )


def test_a_file_that_is_gone_and_a_model_that_cannot_tell(gallery):
    with running(gallery) as client:
        gallery.items[2].path.unlink()
        refused(ask(client, **BOX, photo=2), 404, "gone")
        gallery.encoder.explains_by = None
        assert client.get("/v1/gallery").json()["explains"] is False
        refused(ask(client, **BOX, photo=1), 404, "unsupported")


class Slow(FakeEncoder):
    """Waits for ``go`` within each batch of an explanation, which are larger than all others here."""

    def __init__(self):
        super().__init__()
        self.go, self.explaining = threading.Event(), threading.Event()

    def encode(self, pixels, modality):
        if len(pixels) > 8:
            self.explaining.set()
            assert self.go.wait(30)
        return super().encode(pixels, modality)


@pytest.fixture
def slow(gallery):
    meanings, gallery.encoder = gallery.encoder.meanings, Slow()
    gallery.encoder.meanings = meanings
    return gallery


@contextmanager
def explained(client, status):
    """Asked for meanwhile in a thread; the answer has this status."""
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(ask, client, **BOX, photo=2)
        assert client.service.gallery.encoder.explaining.wait(10)
        yield answer
        client.service.gallery.encoder.go.set()
        assert answer.result(30).status_code == status


def test_explanations_leave_the_threads_of_uploads_alone(slow):
    with running(slow, threads=1, max_batch=4) as client, explained(client, 200), ThreadPoolExecutor(1) as threads:
        second = threads.submit(ask, client, **BOX, photo=3)  # waits for the first
        wait_until(lambda: client.service.explanations._taken_on.total() == 2)
        assert found(client.post("/v1/search", files={"image": sketch()}))
        slow.encoder.go.set()
        assert second.result(30).status_code == 200


def test_an_explanation_that_takes_too_long_ends_and_is_held_until_then(slow):
    with running(slow, timeout_s=3.0, max_batch=4, max_queue=2, max_per_client=1) as client:
        with explained(client, 503) as answer:
            assert answer.result(30).json()["error"] == "timeout"
            said = refused(client.post("/v1/search", json=BOX), 429, "busy")  # it still works on it
            assert "from this address" in said
        wait_until(lambda: not client.service.batcher._taken_on)
        assert slow.encoder.batches.count(16) == 1  # and not on the other batches of it
        client.service.config.timeout_s = 15.0
        assert found(client.post("/v1/search", json=BOX))


def test_a_real_gallery(tmp_path):
    with Gallery.open(real_gallery(tmp_path) / "gallery", device="cpu") as gallery, running(gallery) as client:
        first = client.post("/v1/search", json={**BOX, "k": 1}).json()["matches"][0]
        body = ask(client, **BOX, photo=first["id"]).json()
        assert body["score"] == pytest.approx(first["score"], abs=1e-4) and body["grid"] == [4, 4]
        dot = {"strokes": [[[20, 20]]], "canvas": [60, 60]}  # one dot is a drawing
        assert found(client.post("/v1/search", json=dot)) and ask(client, **dot, photo=1).status_code == 200


def test_the_fake_is_as_the_real_one(tmp_path):
    assert FakeGallery(tmp_path).encoder.explains_by in ("patches", "removal")
