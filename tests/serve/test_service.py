import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import serve_faults as faults
from drawing import draw
from PIL import Image
from serving import (
    BEARER,
    BOX,
    BOX_SVG,
    SHAPES,
    TOKEN,
    found,
    metric,
    real_gallery,
    refused,
    running,
    sketch,
    wait_until,
)

from splip.errors import UnreadablePicture, UserError
from splip.images import svg
from splip.serve import connection, queries, thumbnails
from splip.serve import process as serve
from splip.serve.config import ServeConfig
from splip.serve.metrics import JsonLines, Lines, Telemetry

# ---- searching ----


def test_a_drawing_finds_its_shape(client):
    answer = client.post("/v1/search?k=3", content=sketch("box"), headers={"Content-Type": "image/png"})
    assert found(answer) == ["box"] * 3
    body = answer.json()
    first = body["matches"][0]
    facts = {"taken", "camera", "width", "height", "bytes", "modified", "missing", "copies", "copies_count"}
    assert set(first) == {"id", "score", "likely", "label", "tags", "name", "path", *facts}
    assert Path(first["path"]).is_file() and first["name"] == Path(first["path"]).name
    assert {"decode", "prepare", "wait", "encode", "search", "lookup", "total"} == set(body["timing_ms"])
    assert all(value >= 0 for value in body["timing_ms"].values()) and body["batch"] == 1
    scores = [match["score"] for match in body["matches"]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("kind", SHAPES)
def test_every_form_of_a_query_finds_the_same(client, kind):
    data = sketch(kind)
    answers = [
        client.post("/v1/search?k=5", content=data, headers={"Content-Type": "image/png"}),
        client.post("/v1/search?k=5", content=data, headers={"Content-Type": "application/octet-stream"}),
        client.post("/v1/search", files={"image": data}, data={"k": "5"}),
        client.post("/v1/search", json={"image": base64.b64encode(data).decode(), "k": 5}),
        client.post("/v1/search", json={"image": "data:image/png;base64," + base64.b64encode(data).decode(), "k": 5}),
    ]
    assert found(answers[0])[0] == kind
    assert len({json.dumps(answer.json()["matches"]) for answer in answers}) == 1


def test_strokes_and_svg(client):
    for strokes in (BOX, {**BOX, "canvas": [60, 60]}, {"strokes": BOX["strokes"]}):
        assert found(client.post("/v1/search", json={**strokes, "k": 4})) == ["box"] * 4
    assert found(client.post("/v1/search", json={"svg": BOX_SVG, "k": 4})) == ["box"] * 4
    assert found(client.post("/v1/search", files={"image": ("a.svg", BOX_SVG)}, data={"k": "4"})) == ["box"] * 4
    raw = client.post("/v1/search?k=4", content=BOX_SVG.encode(), headers={"Content-Type": "image/svg+xml"})
    assert found(raw) == ["box"] * 4


def test_text_alone_beside_and_against_a_drawing(client):
    def ask(**query):
        return found(client.post("/v1/search", json={"k": 4, **query}))

    assert ask(text="cone") == ["cone"] * 4
    assert ask(text="cone", text_weight=0.0, **BOX) == ["box"] * 4
    assert ask(text="  cone ", text_weight=1.0, **BOX) == ["cone"] * 4
    assert set(ask(text="cone", text_weight=0.5, k=8, **BOX)) == {"box", "cone"}


def test_filters(client):
    answer = client.post("/v1/search", json={**BOX, "labels": ["cone", "ball"], "k": 20})
    assert set(found(answer)) == {"cone", "ball"} and len(found(answer)) == 8
    answer = client.post("/v1/search?label=cone&label=ball&tag=colour=blue&k=20", files={"image": sketch("box")})
    assert len(found(answer)) == 4
    assert {match["tags"]["colour"] for match in answer.json()["matches"]} == {"blue"}
    assert set(found(client.post("/v1/search", json={**BOX, "labels": ["Cone"]}))) == {"cone"}
    for label, want in (("cane", "did you mean 'cone'?"), ("nothing", "there are 'ball', 'box',")):
        said = refused(client.post("/v1/search", json={**BOX, "labels": [label]}), 422, "invalid")
        assert f"no picture has the label '{label}'" in said and want in said
    assert found(client.post("/v1/search", json={**BOX, "tags": {"colour": "red"}})) == []


def test_more_like_this(client):
    answer = client.post("/v1/search", json={"id": 3, "k": 4})
    assert answer.json()["matches"][0]["id"] == 3 and set(found(answer)) == {"slash"}
    assert answer.json()["matches"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert client.post("/v1/search?id=3&k=4").json()["matches"] == answer.json()["matches"]
    refused(client.post("/v1/search", json={"id": 999}), 404, "not_found")


def test_more_and_less_like_others(client):
    """A query of several parts: their vectors are summed, and what is not meant falls."""

    def ask(**query):
        return client.post("/v1/search", json={"k": 200, **query})

    def scores(**query):
        return {m["id"]: m["score"] for m in ask(**query).json()["matches"]}

    cone = ask(text="cone").json()["matches"][0]["id"]
    box, word, one = scores(**BOX), scores(text="ball"), scores(id=cone)
    got = scores(**BOX, like=[{"text": " ball ", "weight": 0.5}, {"id": cone, "weight": -0.25}])
    want = {id: box[id] + 0.5 * word[id] - 0.25 * one[id] for id in got}
    length = want[next(iter(got))] / got[next(iter(got))]
    assert want == pytest.approx({id: length * score for id, score in got.items()}, abs=1e-4)
    assert found(ask(like=[{"text": "cone"}], k=4)) == ["cone"] * 4
    assert set(found(ask(like=[{"text": "cone"}, {"id": cone, "weight": 3}], k=4))) == {"cone"}
    assert found(ask(**BOX, like=[{"text": "cone", "weight": 5}], k=4)) == ["cone"] * 4
    assert found(ask(text="cone", like=[{"text": "cone", "weight": -0.9}, {"text": "ball"}], k=4)) == ["ball"] * 4
    refused(ask(**BOX, like=[{"id": 999}]), 404, "not_found")
    assert "more than 4 texts" in refused(ask(**BOX, like=[{"text": f"{n}"} for n in range(5)]), 422, "invalid")
    assert "cancel out" in refused(ask(text="cone", like=[{"text": "cone", "weight": -1}]), 422, "invalid")
    assert "not looked for" in refused(ask(like=[{"text": "cone", "weight": -1}]), 422, "invalid")
    for wrong, words in (
        ({"weight": 1}, "either an id or a text"),
        ({"id": 1, "text": "a"}, "either an id or a text"),
        ({"text": " "}, "either an id or a text"),
        ({"id": 1, "weight": 0}, "not 0"),
        ({"id": 1, "weight": 101}, "weight"),
        ({"id": "1_0"}, "plain digits"),
        ({"image": "x"}, "image"),
    ):
        assert words in refused(ask(**BOX, like=[wrong]), 422, "invalid")
    assert "like" in refused(ask(**BOX, like=[{"id": 1}] * 17), 422, "invalid")
    full = [{"id": cone, "text": None, "weight": 1.0}] * 16
    body = {"queries": [{**BOX, "like": full, "tags": {"colour": "blue"}} for _ in range(16)]}
    assert client.post("/v1/search/batch", json=body).status_code == 200


def test_several_queries_each_with_its_answer(client):
    asked = [{**BOX, "k": 2}, {"text": "cone", "k": 3}, {"id": 999}, {"image": "!"}, {"strokes": []}, {"id": 1, "k": 1}]
    answers = client.post("/v1/search/batch", json={"queries": asked}).json()["answers"]
    assert [len(a["matches"]) if "matches" in a else a["error"] for a in answers] == [
        2, 3, "not_found", "invalid", "blank", 1,
    ]  # fmt: skip
    alone = client.post("/v1/search", json=asked[0]).json()
    assert answers[0]["matches"] == alone["matches"]
    refused(client.post("/v1/search/batch", json={"queries": []}), 422, "invalid")
    refused(client.post("/v1/search/batch", json={"queries": [BOX] * 65}), 422, "invalid")
    refused(client.post("/v1/search/batch", content=b"x"), 415, "media_type")


@pytest.mark.parametrize(
    "query, words",
    [
        ({}, "empty query"),
        ({"k": 5}, "empty query"),
        ({**BOX, "id": 1}, "one picture a query"),
        ({**BOX, "k": 0}, "k:"),
        ({**BOX, "k": 201}, "k: at most 200"),
        ({**BOX, "text_weight": 1.5, "text": "a"}, "text_weight"),
        ({**BOX, "unknown": 1}, "unknown"),
        ({**BOX, "modality": "painting"}, "modality"),
        ({**BOX, "labels": ["\ud800"]}, "JSON"),
        ({**BOX, "labels": ["a\0"]}, "labels"),
        ({"strokes": [[[0, 1e400]]]}, "strokes"),
        ({"strokes": [[[0]]]}, "strokes"),
        ({"strokes": [[[0, 0], [1, 1]]], "canvas": [0, 5]}, "canvas"),
        ({"strokes": [[[0, 0]] * 20_001]}, "more than 20000 points"),
        ({"strokes": [[[0, 0], [1000, 1000]] * 9000], "stroke_width": 1000}, "too long"),
        ({"image": "not base64"}, "base64"),
        ({"svg": "<html></html>"}, "svg"),
        ({"text": "x" * 401}, "text"),
        ({"text": "x" * 350}, "too long for this model"),
    ],
)
def test_queries_that_make_no_sense(client, query, words):
    body = json.dumps(query).encode()  # as it is: httpx refuses infinities
    answer = client.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert words in refused(answer, 422, "invalid")


def test_requests_that_make_no_sense(client):
    png = {"Content-Type": "image/png"}
    refused(client.post("/v1/search", content=b"{", headers={"Content-Type": "application/json"}), 422, "invalid")
    refused(client.post("/v1/search", content=b"", headers=png), 422, "unreadable")
    refused(client.post("/v1/search", content=b"words", headers={"Content-Type": "text/plain"}), 415, "media_type")
    refused(client.post("/v1/search?q=1", content=sketch(), headers=png), 422, "invalid")
    refused(client.post("/v1/search?k=1&k=2", content=sketch(), headers=png), 422, "invalid")
    refused(client.post("/v1/search?tag=colour", content=sketch(), headers=png), 422, "invalid")
    refused(client.post("/v1/search", files={"picture": sketch()}), 422, "invalid")
    refused(client.post("/v1/search", files=[("image", sketch()), ("image", sketch())]), 400, "invalid")
    refused(client.post("/v1/search", content=b"x", headers={"Content-Type": "multipart/form-data"}), 400, "invalid")
    refused(client.get("/v1/search"), 405, "method")
    refused(client.get("/v2"), 404, "not_found")


def test_a_blank_drawing(client):
    white = faults.encoded(Image.new("RGB", (40, 40), "white"), "PNG")
    clear = faults.encoded(Image.new("RGBA", (40, 40), (0, 0, 0, 0)), "PNG")
    for data in (white, clear, BOX_SVG.replace("#000", "#fff").encode()):
        assert "blank" in refused(client.post("/v1/search", files={"image": data}), 422, "blank")
    # A white photo is a photo.
    assert found(client.post("/v1/search", files={"image": white}, data={"modality": "photo"}))
    refused(client.post("/v1/search", json={"strokes": [[]]}), 422, "blank")


def test_formats(client):
    image = Image.open(io.BytesIO(sketch("cone")))
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF"):
        assert found(client.post("/v1/search?k=1", files={"image": faults.encoded(image, form)})) == ["cone"], form
    for form in ("TIFF", "PPM", "ICO", "TGA"):
        refused(client.post("/v1/search?k=1", files={"image": faults.encoded(image, form)}), 422, "unreadable")


def test_large_pictures_are_read_as_they_are(client):
    """Shrinking the very large before the model's own preparation changes nothing that counts."""
    image = Image.open(io.BytesIO(sketch("cone"))).resize((5000, 4375), Image.Resampling.NEAREST)
    answer = client.post("/v1/search?k=4", files={"image": faults.encoded(image, "PNG")})
    assert found(answer) == ["cone"] * 4


# ---- files ----


def test_pictures_and_thumbnails(client):
    path = Path(client.post("/v1/search", json={"id": 2, "k": 1}).json()["matches"][0]["path"])
    answer = client.get("/v1/images/2")
    assert answer.content == path.read_bytes() and answer.headers["Content-Type"] == "image/jpeg"
    small = client.get("/v1/thumbnails/2?size=128")
    assert max(Image.open(io.BytesIO(small.content)).size) == 64, "a small picture is not enlarged"
    for first in (answer, small):
        assert "sandbox" in first.headers["Content-Security-Policy"]
        assert "private" in first.headers["Cache-Control"]
        again = client.get(first.url, headers={"If-None-Match": first.headers["ETag"]})
        assert again.status_code == 304 and not again.content
    refused(client.get("/v1/thumbnails/2?size=100"), 422, "invalid")
    before = metric(client, 'splip_thumbnails_total{source="made"}')
    client.get("/v1/thumbnails/2?size=128")
    assert metric(client, 'splip_thumbnails_total{source="made"}') == before


def test_only_pictures_are_sent(gallery, tmp_path):
    with running(gallery) as client:

        def swap(content):
            path = gallery.item(1).path
            path.unlink(missing_ok=True)
            content(path)
            for kind in ("images", "thumbnails"):
                refused(client.get(f"/v1/{kind}/1"), 404, "gone")

        before = client.get("/v1/images/1").headers["ETag"]
        swap(lambda path: None)
        swap(os.mkfifo)
        gallery.item(1).path.unlink()
        swap(lambda path: path.write_text("<script>alert(1)</script>"))
        swap(lambda path: path.write_text(BOX_SVG))
        swap(lambda path: path.symlink_to("/etc/passwd"))
        gallery.item(1).path.unlink()
        draw(gallery.item(1).path, 2, "green", 1)
        changed = client.get("/v1/images/1", headers={"If-None-Match": before})
        assert changed.status_code == 200, "another file is another version"


def test_thumbnails_are_small_upright_and_forgotten(tmp_path):
    image = Image.new("RGB", (1200, 600), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # stands on its side
    image.save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGBA", (600, 300), (0, 0, 255, 128)).save(tmp_path / "b.png")
    kept = thumbnails.Thumbnails(3000, 10**7, Telemetry())
    sizes = {}
    for side in (128, 256):
        for name in ("a.jpg", "b.png"):
            data = kept.get(thumbnails.File(tmp_path / name), side)
            sizes[name, side] = Image.open(io.BytesIO(data)).size
    assert sizes == {("a.jpg", 128): (64, 128), ("a.jpg", 256): (128, 256), ("b.png", 128): (128, 64), ("b.png", 256): (256, 128)}  # fmt: skip
    assert kept._bytes <= 3000 and len(kept._kept) < 4
    with pytest.raises(UnreadablePicture, match="gone"):
        thumbnails.File(tmp_path / "c.png")


# ---- limits ----


def test_bodies_that_are_too_large(gallery):
    with running(gallery, max_body_mb=0.1) as client:
        refused(client.post("/v1/search", files={"image": bytes(150_000)}), 413, "too_large")

        def chunks():
            for _ in range(8):
                yield bytes(20_000)

        answer = client.post("/v1/search", content=chunks(), headers={"Content-Type": "image/png"})
        assert answer.request.headers["Transfer-Encoding"] == "chunked"
        refused(answer, 413, "too_large")
        assert found(client.post("/v1/search", json=BOX))


def test_a_bomb_is_refused_by_its_header():
    data = faults.png_of_size(50_000, 50_000)
    assert len(data) < 1000
    with pytest.raises(queries.TooLarge, match="pixels"):
        queries.check_size(data, 40_000_000)
    with pytest.raises(queries.TooLarge, match="5000 x 10000"):
        queries.check_size(faults.png_of_size(5_000, 10_000), 40_000_000)
    queries.check_size(faults.png_of_size(5_000, 5_000), 40_000_000)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")  # Pillow's, of what is damaged
def test_damaged_uploads(client):
    seen = faults.uploads(client.address, 300, seed=1)
    assert seen[200] > 20 and seen[422] > 100, seen
    faults.alive(client.address)


def test_what_schemathesis_finds(client):
    seen = faults.schemas(client.address, 8, seed=1)
    assert sum(seen.values()) > 40


def test_many_clients_get_answers_or_429(gallery):
    with running(gallery, max_queue=8) as client:
        seen = faults.overload(client.address, 40, 4.0)  # seconds: a machine may stop for some of them
        assert seen[200] > 20 and seen[429] > 0 and set(seen) == {200, 429}
        faults.alive(client.address)


def test_a_full_queue(gallery):
    with running(gallery, max_queue=3, max_per_client=3) as client:
        gallery.encoder.hold.clear()
        with Background(client, 3) as asked:
            wait_until(lambda: client.service.batcher._taken_on == 3)
            answer = client.post("/v1/search", json=BOX)
            refused(answer, 429, "busy")
            assert int(answer.headers["Retry-After"]) > 0
            refused(client.post("/v1/search/batch", json={"queries": [BOX]}), 429, "busy")
            assert metric(client, "splip_queue_length") == 3
            assert client.get("/healthz").status_code == 200, "the event loop goes on"
            gallery.encoder.hold.set()
        assert [found(answer)[0] for answer in asked.answers] == ["box"] * 3
        assert metric(client, "splip_queue_length") == 0


def test_too_slow_is_503(gallery):
    with running(gallery, timeout_s=0.3) as client:
        gallery.encoder.hold.clear()
        answer = client.post("/v1/search", json=BOX)
        refused(answer, 503, "timeout")
        assert "Retry-After" in answer.headers
        client.service.config.timeout_s = 15.0
        gallery.encoder.hold.set()
        assert found(client.post("/v1/search", json=BOX))


def test_slow_clients_are_closed(gallery, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 2.0)
    monkeypatch.setattr(connection, "LINGER_SECONDS", 20.0)
    with running(gallery, body_timeout_s=2.0) as client:
        seen = faults.slow(client.address, 30, clients=9)
        assert seen == {"nothing: closed": 3, "half a head: closed": 3, "half a body: 408": 3}
        # A connection that is used again has the same time for its next request.
        with socket.create_connection(("127.0.0.1", client.base_url.port)) as peer:
            peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            peer.settimeout(5)
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                assert (part := peer.recv(4096)), answer
                answer += part
            peer.sendall(b"GET /hea")
            assert peer.recv(4096) == b""


class Background:
    """Searches that wait for their answers in threads."""

    def __init__(self, client, count):
        self.answers = []
        self.threads = [threading.Thread(target=self.ask, args=(client.address,)) for _ in range(count)]

    def ask(self, address):
        self.answers.append(httpx.post(f"{address}/v1/search", json=BOX, timeout=30))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        for thread in self.threads:
            thread.join(30)


# ---- batching ----


@pytest.mark.parametrize("max_batch, sizes", [(1, [1] * 8), (3, [1, 3, 3, 1]), (32, [1, 7])])
def test_searches_are_made_together(gallery, max_batch, sizes):
    with running(gallery, max_batch=max_batch) as client:
        gallery.encoder.batches.clear()
        gallery.encoder.hold.clear()
        with Background(client, 1) as first:
            wait_until(lambda: gallery.encoder.batches)
            with Background(client, 7) as others:
                wait_until(lambda: len(client.service.batcher._waiting) == 7)
                gallery.encoder.hold.set()
        assert gallery.encoder.batches == sizes
        answers = [answer.json() for answer in first.answers + others.answers]
        assert sorted(answer["batch"] for answer in answers) == sorted(n for n in sizes for _ in range(n))
        assert len({json.dumps(answer["matches"]) for answer in answers}) == 1
        assert metric(client, "splip_batch_size_sum") >= 8


def test_a_lone_search_does_not_wait(gallery):
    with running(gallery, window_ms=3_600, timeout_s=3) as client:  # in time only without waiting
        assert found(client.post("/v1/search", json=BOX))


def test_a_client_that_left_is_not_worked_for(gallery):
    with running(gallery) as client:
        gallery.encoder.hold.clear()
        with Background(client, 1):
            wait_until(lambda: client.service.batcher._batch)  # the worker has it in hand, and nothing else waits
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{client.address}/v1/search", json=BOX, timeout=0.3)
            wait_until(lambda: not client.service.batcher._waiting)
            gallery.encoder.batches.clear()
            gallery.encoder.hold.set()
        assert gallery.encoder.batches == []
        assert metric(client, 'splip_requests_total{method="POST",route="/v1/search",status="499"}') == 1


def test_an_engine_that_fails_is_said_and_survived(gallery, caplog):
    with running(gallery) as client:
        encode, gallery.encoder.encode = gallery.encoder.encode, lambda *_: 1 / 0
        answer = client.post("/v1/search", json=BOX)
        assert (answer.status_code, answer.json()["error"]) == (500, "internal") and "division" not in answer.text
        gallery.encoder.encode = encode
        assert found(client.post("/v1/search", json=BOX))


# ---- who may do what ----


def test_writing_needs_the_token(gallery, tmp_path):
    outside = tmp_path / "outside.png"
    (tmp_path / "new").mkdir()
    for path in (outside, tmp_path / "new/a.png", tmp_path / "new/b.png"):
        draw(path, 1, "green", 3)
    (tmp_path / "new/link.png").symlink_to(outside)
    with running(gallery, token=TOKEN, allow_root=(tmp_path / "new",)) as client:
        body = {"paths": [str(tmp_path / "new/a.png")], "label": "box", "tags": {"colour": "green"}}
        cookie = client.post("/v1/session", headers=BEARER).cookies
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Cookie": str(cookie)},
        ):
            refused(client.post("/v1/items", json=body, headers=headers), 401, "token")
            refused(client.delete("/v1/items/1", headers=headers), 401, "token")
        client.cookies.clear()
        assert len(gallery) == 24
        answer = client.post("/v1/items", json=body, headers=BEARER)
        assert answer.status_code == 200 and answer.json() == {"new": 1, "changed": 0, "unchanged": 0, "unreadable": 0, "count": 25}  # fmt: skip
        assert found(client.post("/v1/search", json={**BOX, "tags": {"colour": "green"}})) == ["box"]
        for path in (
            outside,
            tmp_path / "new/link.png",
            tmp_path / "no.png",
            "/etc/passwd",
            "new/../x",
            "\0",
        ):
            refused(client.post("/v1/items", json={"paths": [str(path)]}, headers=BEARER), 403, "path")
        assert client.delete("/v1/items/25", headers=BEARER).status_code == 204
        refused(client.delete("/v1/items/25", headers=BEARER), 404, "not_found")
        assert len(gallery) == 24


def test_without_a_token_nothing_is_written(gallery):
    with running(gallery) as client:
        refused(client.post("/v1/items", json={"paths": ["/etc"]}), 403, "writes_off")
        refused(client.delete("/v1/items/1", headers=BEARER), 403, "writes_off")
        assert client.get("/v1/gallery").json()["writes"] is False


def test_reading_can_need_the_token(gallery):
    with running(gallery, token=TOKEN, protect="all") as client:
        for path in ("/", "/page.js", "/healthz", "/readyz"):
            assert client.get(path).status_code == 200
        for path in ("/v1/gallery", "/v1/images/1", "/v1/thumbnails/1", "/metrics", "/openapi.json"):
            refused(client.get(path), 401, "token")
            assert client.get(path, headers=BEARER).status_code == 200
        refused(client.post("/v1/search", json=BOX), 401, "token")
        refused(client.post("/v1/session", headers={"Authorization": "Bearer wrong"}), 401, "token")
        answer = client.post("/v1/session", headers=BEARER)
        set_cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in set_cookie and "SameSite=strict" in set_cookie and TOKEN not in set_cookie
        assert found(client.post("/v1/search", json=BOX)) and client.get("/v1/images/1").status_code == 200


def test_foreign_hosts_and_pages(gallery):
    with running(gallery) as client:
        port = client.base_url.port
        for host in (f"evil.example:{port}", "evil.example", f"127.0.0.1.evil.example:{port}", "", "a b", "[", "x:y"):
            refused(client.get("/v1/gallery", headers={"Host": host}), 421, "host")
        for host in (f"localhost:{port}", "LOCALHOST", "127.0.0.1", f"[::1]:{port}"):
            assert client.get("/v1/gallery", headers={"Host": host}).status_code == 200
        for origin in ("https://evil.example", "null", f"http://localhost:{port + 1}", "http://[", ""):
            refused(client.post("/v1/search", json=BOX, headers={"Origin": origin}), 403, "origin")
        same = client.post("/v1/search", json=BOX, headers={"Origin": f"http://127.0.0.1:{port}"})
        assert found(same) and not [name for name in same.headers if name.startswith("access-control")]


def test_another_site_can_be_allowed(gallery):
    with running(gallery, cors=("https://friend.example",), token=TOKEN, protect="all") as client:
        ask = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
        preflight = client.options("/v1/search", headers={**ask, "Access-Control-Request-Headers": "authorization"})
        assert preflight.headers["Access-Control-Allow-Origin"] == "https://friend.example"
        answer = client.post("/v1/search", json=BOX, headers={"Origin": "https://friend.example", **BEARER})
        assert found(answer) and answer.headers["Access-Control-Allow-Origin"] == "https://friend.example"
        refused(client.get("/v1/gallery", headers={"Origin": "https://evil.example", **BEARER}), 403, "origin")


def test_headers_of_every_answer(client):
    for path, status in (("/", 200), ("/v1/gallery", 200), ("/nothing", 404), ("/v1/images/x", 422), ("/docs", 200)):
        answer = client.get(path)
        assert answer.status_code == status
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "server" not in answer.headers


# ---- what it says of itself ----


def test_the_gallery_says_what_it_is(client):
    about = client.get("/v1/gallery").json()
    assert about["count"] == 24 and about["labels"] == dict.fromkeys(SHAPES, 4)
    assert (about["model"], about["engine"], about["text"], about["max_k"]) == ("fake (shapes)", "fake", True, 200)


def test_api_documents_stay_here(client):
    schema = client.get("/openapi.json").json()
    assert {"/v1/search", "/v1/search/batch", "/v1/images/{id}", "/v1/items/{id}"} <= set(schema["paths"])
    for path in ("/", "/docs", "/page.js", "/page.css", "/docs.js"):
        text = client.get(path).text
        assert not re.findall(r"""(?:src|href|url\(|import|fetch\()\s*=?\s*["'(]?(?:https?:)?//""", text), path


def test_metrics_and_logs_hold_nothing_of_a_query(gallery, caplog):
    with running(gallery) as client:
        caplog.set_level("DEBUG", logger="splip.serve.process")
        client.post("/v1/search", data={"text": "secret words", "label": "box", "k": "3"})
        client.post("/v1/search?text=secret+words&tag=secret%3Dsecret", files={"image": ("secret.png", sketch())})
        client.post("/v1/search?secret=1")
        client.get("/secret/path")
        client.request("SECRET", "/v1/search")
        text = client.get("/metrics").text
        for stage in ("decode", "prepare", "wait", "encode", "search", "lookup"):
            assert f'splip_stage_seconds_count{{stage="{stage}"}}' in text
        assert 'splip_requests_total{method="POST",route="/v1/search",status="200"} 2.0' in text
        assert 'splip_refused_total{code="invalid"} 1.0' in text and 'route="other"' in text
        assert "splip_gallery_items 24.0" in text
    records = [r for r in caplog.records if r.name == "splip.serve.process"]
    assert [r.fields["status"] for r in records if hasattr(r, "fields") and "status" in r.fields].count(200) >= 3
    lines = [form.format(record) for form in (JsonLines(), Lines()) for record in records]
    assert not [line for line in lines if "secret" in line] and "secret" not in text
    assert json.loads(lines[-1 - len(records)])["level"] == "info"


def test_not_ready_before_the_first_search(gallery):
    gallery.encoder.hold.clear()
    with running(gallery, wait=False) as client:
        assert client.get("/healthz").status_code == 200
        refused(client.get("/readyz"), 503, "starting")
        refused(client.get("/v1/gallery"), 503, "starting")
        refused(client.post("/v1/search", json=BOX), 503, "starting")
        gallery.encoder.hold.set()
        wait_until(lambda: client.get("/readyz").status_code == 200)


# ---- parts ----


def test_svg_keeps_shapes_and_nothing_else():
    text = svg.clean(faults.DOCUMENT)
    assert "<style>.a{fill:none;stroke:#000;stroke-width:3}</style>" in text and text.count("<path") == 1
    cleaned = svg.clean(
        b'<svg xmlns="http://www.w3.org/2000/svg" xmlns:i="http://inkscape" width="20mm" height="10" onload="x()">'
        b'<defs><style>.b{stroke:red;filter:url(#f)}</style><linearGradient id="g"/></defs><i:view/><title>t</title>'
        b'<path d="M0 0" fill="url(http://x)" style="stroke:url(#g);stroke-width:2;mask:url(#m)" filter="url(#f)"/></svg>'
    )
    assert re.sub(r"<svg[^>]*>", "", cleaned) == (
        '<style>.b{stroke:red}</style><path d="M0 0" fill="#888" style="stroke:#888;stroke-width:2"></path></svg>'
    )
    assert 'width="512" height="256"' in cleaned and "onload" not in cleaned
    for bad in (b"<html/>", b"<svg/>", b"<svg viewBox='0 0 nan 1'/>", b"<svg viewBox='0 0 1 1'><use href='#a'/></svg>"):
        with pytest.raises(UserError):
            svg.clean(bad)


def test_svg_helper_is_stopped_and_starts_again():
    renderer = svg.Renderer(seconds=0.5)
    try:
        heavy = faults.slow_svg()
        with pytest.raises(UserError, match="too long"):
            renderer.png(heavy)
        renderer.seconds = 30.0
        image = Image.open(io.BytesIO(renderer.png(BOX_SVG.encode())))
        assert image.size == (512, 512) and np.asarray(image)[:, :, 3].max() == 255
    finally:
        renderer.close()


def test_strokes_look_like_a_drawing():
    image = queries.draw_strokes(queries.Query(**BOX))
    pixels = np.asarray(image)
    assert pixels.shape == (512, 512, 3) and pixels[0].min() == 255 and pixels.min() == 0
    wide = queries.draw_strokes(queries.Query(strokes=[[(0, 0), (100, 0)]]))
    assert wide.size[0] == 512 and np.asarray(wide).min() == 0
    dot = queries.draw_strokes(queries.Query(strokes=[[(5, 5)]], canvas=(10, 10)))
    assert np.asarray(dot)[256, 256].max() == 0 and 0 < (np.asarray(dot)[:, :, 0] < 128).sum() < 500


# ---- the command ----


def test_settings_that_cannot_work(tmp_path, refused):
    def serving(*options):
        return refused("serve", "--gallery", tmp_path / "none", *options)

    assert "not a gallery" in serving("--port", "0")
    for port in ("99999", "-1"):
        assert f"--port must be between 0 and 65535, got {port}" in serving("--port", port)
    assert "max-batch" in serving("--max-batch", "0")
    assert "window-ms" in serving("--window-ms", "-1")
    assert "--token-file" in serving("--protect", "all")
    assert "--token-file" in serving("--allow-root", tmp_path)
    assert "no such folder" in serving("--allow-root", tmp_path / "no")
    assert "origin" in serving("--cors", "example.org")
    token = tmp_path / "token"
    assert "No such file" in serving("--token-file", token)
    token.write_text("short")
    token.chmod(0o600)
    assert "16 or more" in serving("--token-file", token)
    token.write_text(TOKEN)
    token.chmod(0o644)
    assert "chmod 600" in serving("--token-file", token)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "in use" in serving("--port", taken.getsockname()[1])
    assert "cannot listen" in serving("--host", "300.1.2.3")
    with pytest.raises(UserError):
        serve.check(ServeConfig(gallery=tmp_path, threads=0))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return real_gallery(tmp_path_factory.mktemp("real"))


def start(folder, *options):
    """``splip serve`` as a process of its own; returns it and its address."""
    command = [sys.executable, "-m", "splip", "serve", "--gallery", str(folder / "gallery"), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("http"):
            address = line.split()[0]
            wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 200, 60)
            return process, address
    raise AssertionError(process.stderr.read())


@pytest.mark.exhaustive
@pytest.mark.parametrize("times", [1, 2])
def test_control_c_is_no_error(real, times):
    process, address = start(real)
    with httpx.Client(base_url=address) as open_still:
        open_still.get("/healthz")
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.03)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in said and "Error" not in said, said


@pytest.mark.exhaustive
def test_a_real_gallery_from_start_to_end(real, tmp_path):
    from splip.gallery.catalog import Filter
    from splip.gallery.gallery import Gallery

    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    (real / "new").mkdir()
    draw(real / "new/a.png", 4, "green", 1, size=(64, 64))
    process, address = start(
        real, "--token-file", str(token), "--allow-root", str(real / "new"), "--refresh-s", "0.1", "--log", "json",
        "--window-ms", "1500",
    )  # fmt: skip
    try:
        with Gallery.open(real / "gallery") as gallery, httpx.Client(base_url=address, timeout=30) as client:
            # The service finds what the library finds.
            data = sketch("cone", (80, 70))
            want = gallery.search(sketches=[data], k=5)[0]
            got = client.post("/v1/search", files={"image": data}, data={"k": "5"}).json()["matches"]
            assert [m["id"] for m in got] == [m.id for m in want]
            assert [m["score"] for m in got] == pytest.approx([m.score for m in want], abs=2e-5)
            assert got[0]["path"] == str(want[0].path)
            mixed = gallery.search(
                sketches=[data], texts=["ball"], text_weight=0.3, k=3, filter=Filter(tags={"third": "1"})
            )
            form = {"text": "ball", "text_weight": "0.3", "k": "3", "tag": "third=1"}
            answer = client.post("/v1/search", files={"image": data}, data=form).json()["matches"]
            assert [m["id"] for m in answer] == [m.id for m in mixed[0]]
            like = client.post("/v1/search", json={"id": want[0].id, "k": 1}).json()["matches"][0]
            assert like["id"] == want[0].id and like["score"] == pytest.approx(1, abs=1e-4)
            assert client.get(f"/v1/images/{want[0].id}").content == want[0].path.read_bytes()

            # Others' additions show; so do the service's own.
            draw(real / "other.png", 2, "red", 1, size=(64, 64))
            with Gallery.open(real / "gallery", write=True) as writer:
                said = refused(client.delete("/v1/items/1", headers=BEARER), 409, "locked")
                assert str(real) not in said, "where the gallery is"
                writer.add([real / "other.png"], label="other")
            wait_until(lambda: client.get("/v1/gallery").json()["labels"].get("other") == 1)
            added = client.post("/v1/items", json={"paths": [str(real / "new")], "label": "new"}, headers=BEARER).json()
            assert added["new"] == 1 and added["count"] == 20
            (match,) = client.post("/v1/search", json={**BOX, "labels": ["new"]}).json()["matches"]
            assert client.delete(f"/v1/items/{match['id']}", headers=BEARER).status_code == 204
            refused(client.get(f"/v1/images/{match['id']}"), 404, "not_found")

        # Asked to stop, it finishes what was begun: one search waits for a slow second one in its window.
        host, port = address.removeprefix("http://").split(":")
        body = json.dumps(BOX).encode()
        head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        with socket.create_connection((host, int(port))) as peer:
            peer.sendall(head % len(body) + body[:-5])
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            with pytest.raises(OSError):
                socket.create_connection((host, int(port)), timeout=2).close()
            peer.sendall(body[-5:])
            peer.settimeout(10)
            assert peer.recv(65536).startswith(b"HTTP/1.1 200")
        assert process.wait(30) == 0
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
        assert {"request", "ready"} <= {line["message"] for line in lines}
    finally:
        process.kill()
        process.wait()


def test_open_to_the_world_is_warned_of(real, monkeypatch, capsys):
    served = []
    monkeypatch.setattr(serve, "run", lambda application, listener, config: served.append(application))
    serve.serve(ServeConfig(gallery=real / "gallery", host="0.0.0.0", port=0))
    serve.serve(ServeConfig(gallery=real / "gallery", host="127.0.0.1", port=0))
    captured = capsys.readouterr()
    assert captured.err.count("everybody who reaches 0.0.0.0") == 1 and "127.0.0.1" not in captured.err
    assert [line for line in captured.out.splitlines() if line.startswith("http://127.0.0.1:")]
    assert [bool(application.hosts) for application in served] == [False, True]
