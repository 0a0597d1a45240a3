"""Attacks on the service and the answers that they must get; ``tools/serve_faults.py`` makes the same ones in full."""

import asyncio
import errno
import json
import math
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import serve_faults as faults
from drawing import draw
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from serving import (
    BEARER,
    BOX,
    TOKEN,
    metric,
    real_gallery,
    refused,
    running,
    sketch,
    wait_until,
)

from splip.errors import GalleryError, UserError
from splip.gallery import segments
from splip.gallery.gallery import Gallery
from splip.gallery.scan import cover
from splip.images import svg
from splip.serve import batching, bodies, connection, process, queries, service, writing
from splip.serve.batching import Batcher, Search
from splip.serve.config import ServeConfig
from splip.serve.metrics import Telemetry
from splip.serve.pools import Pool, Room


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return real_gallery(tmp_path_factory.mktemp("real"))


# ---- searches that are given up, workers that end ----


def a_search(seconds=10.0):
    grey = np.full((32, 32, 3), 128, np.uint8)
    return Search(grey, None, "sketch", None, 0.5, 3, None, time.monotonic() + seconds)


def test_a_search_given_up_within_the_window_does_not_end_the_worker(gallery):
    batcher = Batcher(gallery, Telemetry(), max_batch=8, window=0.2, max_queue=8)

    async def draw_on():
        with batcher.admit(), batcher.admit() as first:  # the other one is on its way: the window stays open
            task = asyncio.create_task(first.answer(a_search()))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0.3)
        with batcher.admit() as later:
            search = a_search()
            await later.answer(search)
            return search.matches

    try:
        assert len(asyncio.run(draw_on())) == 3
        assert batcher.working
    finally:
        batcher.close()


def test_clients_that_abort_leave_the_others_their_answers(gallery):
    with running(gallery, window_ms=20) as client:
        seen = faults.aborts(client.address, 100, pages=1)
        assert seen["200"] == 10 and seen["aborted"] == 90
        assert metric(client, "splip_worker_ends_total") == 0


@pytest.mark.parametrize("end", [SystemExit, MemoryError, None])
def test_a_worker_that_ends_is_seen_counted_and_started_again(gallery, monkeypatch, end):
    monkeypatch.setattr(batching, "PAUSE", 2.0)
    with running(gallery) as client:
        batcher = client.service.batcher
        following = batcher._next

        def once():
            monkeypatch.setattr(batcher, "_next", following)
            if end is not None:
                raise end
            return None

        monkeypatch.setattr(batcher, "_next", once)
        assert client.post("/v1/search", json=BOX).status_code == 200, "by the worker, which ends after it"
        wait_until(lambda: client.get("/readyz").status_code == 503)
        assert "worker" in refused(client.get("/readyz"), 503, "broken")
        assert client.get("/healthz").status_code == 200
        assert client.post("/v1/search", json=BOX).status_code == 200, "it waits for the worker to be back"
        assert client.get("/readyz").status_code == 200
        assert metric(client, "splip_worker_ends_total") == 1


def test_the_searches_that_an_ending_worker_had_are_told(gallery, monkeypatch):
    with running(gallery) as client:
        encode = gallery.encoder.encode

        def leave(*_):
            gallery.encoder.encode = encode
            raise SystemExit

        gallery.encoder.encode = leave
        assert "lost" in refused(client.post("/v1/search", json=BOX), 503, "unavailable")
        assert client.post("/v1/search", json=BOX).status_code == 200
        assert metric(client, "splip_worker_ends_total") == 1


# ---- documents that are quick to send and slow to build ----


def test_small_documents_do_not_stop_the_service(client):
    """Before their bytes were counted some of them stopped everything for ten seconds and more."""
    seen = faults.freezes(client.address, limit=8.0)
    assert sum(seen.values()) == len(faults.documents()) and seen[413] >= 9
    faults.alive(client.address)


def test_only_what_is_outside_of_strings_is_counted():
    drawing = {"strokes": [[[i, i] for i in range(4000)] for _ in range(5)]}
    assert len(bodies.query(json.dumps(drawing, indent=4).encode()).strokes) == 5
    # As drawing programs write: commas, brackets and quotes without end, none of them JSON's.
    text = '<svg viewBox="0 0 9 9">' + '<path d="M1,2,3,[{4\\"/>' * 5000
    assert bodies.query(json.dumps({"svg": text}).encode()).svg == text
    full = {"text": "a", "labels": ["b" * 1000] * 100, "tags": {f"{i}": "c" * 300 for i in range(100)}}
    assert len(bodies.query(json.dumps(full).encode()).tags) == 100
    several = bodies.queries(json.dumps({"queries": [full] * 64}).encode(), 64)
    assert len(several) == 64 and several[63].labels == ["b" * 1000] * 100
    with pytest.raises(UserError, match=r"^queries\.1\.k: "):
        bodies.queries(b'{"queries": [{}, {"k": "a"}]}', 64)


@pytest.mark.parametrize(
    "body, error, words",
    [
        (b'{"strokes":[[' + b"[0,0]," * 30_000 + b"[0,0]]]}", queries.TooLarge, "strokes and points"),
        (b'{"strokes":[' + b"[]," * 30_000 + b"[]]}", queries.TooLarge, "strokes and points"),
        (b'{"svg":"' + b'","' * 2000 + b'"}', queries.TooLarge, "names and texts"),
        (b'{"svg":"\\\\"' + b',"":0' * 2000 + b"}", queries.TooLarge, "names and texts"),
        (b"[" + b"{}," * 19 + b"{}]", queries.TooLarge, "values"),
        (b'{"k":[' + b"1," * 60_000 + b"1]}", queries.TooLarge, "values"),
        (b'{"k":1' + b" " * 3_100_000 + b"}", queries.TooLarge, "3.1 MB"),
    ],
)
def test_what_a_search_cannot_hold_is_not_built(monkeypatch, body, error, words):
    monkeypatch.setattr(bodies, "_parsed", None)
    with pytest.raises(error, match=words):
        bodies.query(body)


def test_additions_are_counted_too(gallery, tmp_path):
    with running(gallery, token=TOKEN, allow_root=(tmp_path,)) as client:
        for body, status in (
            (b'{"paths":[' + b'"",' * 3_000_000 + b'""]}', 413),
            (b'{"paths":' + b"[" * 9_000_000, 413),
            (b'{"paths":[' + b'"",' * 10_000 + b'""]}', 422),
            (b'{"paths":[' + b"[]," * 5 + b"[]]}", 413),
            (b'{"paths":[]}', 422),
            (b'{"paths":["a"],"more":1}', 422),
            (b"{", 422),
        ):
            assert client.post("/v1/items", content=body, headers=BEARER).status_code == status, body[:40]
        paths = [f'{tmp_path}/a "quoted" [picture]' for _ in range(9000)]
        refused(client.post("/v1/items", json={"paths": paths}, headers=BEARER), 403, "path")


@pytest.mark.parametrize("number", ["1_0", "+1", "1.0", "\u0661", " 1", "1e0", ""])
def test_numbers_are_plain_digits(client, number):
    for path in ("/v1/images/{}", "/v1/thumbnails/1?size=12{}", "/v1/search?k={}"):
        answer = client.request("POST" if "search" in path else "GET", path.format(quote(number) or "_"))
        assert answer.status_code == 422, (path, answer.text)
    refused(client.post("/v1/search", json={**BOX, "k": number}), 422, "invalid")
    refused(client.post("/v1/search", json={"id": number}), 422, "invalid")


# ---- numbers ----

ANY = st.floats(width=64) | st.sampled_from([0.0, -0.0, 5e-324, 1e-300, 1e-6, 1e6, 1e6 + 1, 1.7976931348623157e308])


@settings(max_examples=400, deadline=None)
@given(
    strokes=st.lists(
        st.lists(st.tuples(ANY, ANY) | st.tuples(st.floats(-9, 9), st.floats(-9, 9)), max_size=4), max_size=3
    ),
    canvas=st.none() | st.tuples(ANY, ANY),
    width=st.none() | ANY,
)
@example(strokes=[[(0, 0), (1, 1)]], canvas=(5e-324, 5e-324), width=None)
@example(strokes=[[(0, 0), (1, 1)]], canvas=(1e6, 5e-324), width=5e-324)
@example(strokes=[[(1e6, 1e6)]], canvas=(1e-6, 1e-6), width=1e6)
@example(strokes=[[(1e6, 1e6), (1e6 - 1e-9, 1e6)]], canvas=None, width=1e-300)
def test_every_number_is_drawn_or_refused(strokes, canvas, width):
    try:
        image = queries.draw_strokes(queries.Query(strokes=strokes, canvas=canvas, stroke_width=width))
    except (UserError, ValidationError):
        return
    assert max(image.size) == 512 and min(image.size) >= 1


def test_a_canvas_without_area_is_refused(client):
    for canvas in ([5e-324, 5e-324], [0, 5], [1, 1e-7]):
        answer = client.post("/v1/search", json={"strokes": [[[0, 0], [1, 1]]], "canvas": canvas})
        assert "canvas" in refused(answer, 422, "invalid")


# ---- the budget of uploads ----


def test_the_budget_of_uploads_is_given_back(gallery):
    """Whatever becomes of an upload: else the service would refuse everybody after 32 full ones."""
    with running(gallery, max_body_mb=0.02) as client:
        budget = client.guard.budget
        assert budget == 32 * 20_000
        png = {"Content-Type": "image/png"}
        drawing = sketch("box")
        for _ in range(50):
            padded = drawing + bytes(19_000 - len(drawing))
            assert client.post("/v1/search?k=1", content=padded, headers=png).status_code == 200
            refused(client.post("/v1/search", content=bytes(19_000), headers=png), 422, "unreadable")
            refused(client.post("/v1/search", content=iter([bytes(15_000)] * 2), headers=png), 413, "too_large")
        head = (
            b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 19000\r\n\r\n"
        )
        for _ in range(40):  # clients that leave
            with socket.create_connection(("127.0.0.1", client.base_url.port)) as peer:
                peer.sendall(head + bytes(15_000))
        wait_until(lambda: client.guard.budget == budget and not client.guard.used)


def test_one_address_does_not_use_up_the_budget(gallery):
    with (
        running(gallery, max_body_mb=0.02) as client,
        from_address(client, "127.0.0.2") as other,
        ExitStack() as open_ones,
    ):
        head = (
            b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 19999\r\n\r\n"
        )
        for _ in range(16):  # uploads that do not end
            peer = open_ones.enter_context(socket.create_connection(("127.0.0.1", client.base_url.port)))
            peer.sendall(head + bytes(19_990))
        wait_until(lambda: client.guard.used["127.0.0.1"] == 16 * 19_990)
        png = {"Content-Type": "image/png"}
        refused(client.post("/v1/search", content=sketch("box"), headers=png), 429, "busy")
        assert other.post("/v1/search", content=sketch("box"), headers=png).status_code == 200


def test_uploads_beyond_the_budget_wait_their_turn(gallery):
    with running(gallery, max_body_mb=0.02) as client:
        client.guard.budget = 10_000
        answer = client.post("/v1/search", content=bytes(19_000), headers={"Content-Type": "image/png"})
        refused(answer, 429, "busy")
        wait_until(lambda: client.guard.budget == 10_000)


# ---- cheap pictures beside drawings ----


@contextmanager
def from_address(client, address):
    """A client of the same service with another address."""
    transport = httpx.HTTPTransport(local_address=address)
    with httpx.Client(base_url=client.address, timeout=30, transport=transport) as other:
        yield other


@contextmanager
def in_background(count, ask):
    """Ask in threads; the answers are in the list that it yields, at the latest when it ends."""
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask())) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        for thread in threads:
            thread.join(30)


def test_slow_pictures_keep_neither_drawings_nor_other_clients_waiting(gallery, monkeypatch):
    free, read, begun = threading.Event(), queries.read_picture, []

    def slow(data, *more):
        begun.append(len(data))
        if len(data) > 5000:
            assert free.wait(30)
        return read(data, *more)

    monkeypatch.setattr(queries, "read_picture", slow)
    large = sketch("box") + bytes(5000)
    with running(gallery, threads=2) as client, from_address(client, "127.0.0.2") as other:
        ask = lambda: httpx.post(f"{client.address}/v1/search", files={"image": large}, timeout=30)  # noqa: E731
        with in_background(8, ask) as answers:
            wait_until(lambda: client.service.pictures._taken_on["127.0.0.1"] == 8 and len(begun) == 2)
            try:
                assert client.post("/v1/search", json=BOX).status_code == 200
                assert other.post("/v1/search", files={"image": sketch("box")}).status_code == 200
            finally:
                free.set()
        assert [answer.status_code for answer in answers] == [200] * 8
        wait_until(lambda: not client.service.pictures._taken_on and not client.service.pictures._running)


@pytest.mark.exhaustive
def test_a_slow_svg_keeps_its_own_client_waiting(client, monkeypatch):
    free, png = threading.Event(), svg.Renderer.png

    def held(self, data):
        assert len(data) < 100_000 or free.wait(30)
        return png(self, data)

    assert client.post("/v1/search", json={"svg": faults.DOCUMENT.decode()}).status_code == 200
    ask = lambda: httpx.post(f"{client.address}/v1/search", files={"image": faults.slow_svg()}, timeout=30)  # noqa: E731
    monkeypatch.setattr(svg.Renderer, "png", held)
    with from_address(client, "127.0.0.2") as other, in_background(2, ask) as answers:
        try:
            wait_until(lambda: client.service.svg._taken_on["127.0.0.1"] == 2)
            assert other.post("/v1/search", json={"svg": faults.DOCUMENT.decode()}).status_code == 200
            assert not answers
        finally:
            free.set()
    assert [answer.status_code for answer in answers] == [422] * 2


def test_one_address_does_not_get_the_whole_queue(gallery):
    with running(gallery, max_queue=8) as client, from_address(client, "127.0.0.2") as other:
        gallery.encoder.hold.clear()
        with in_background(4, lambda: httpx.post(f"{client.address}/v1/search", json=BOX, timeout=30)) as answers:
            wait_until(lambda: client.service.batcher._taken_on == 4)
            assert "address" in refused(client.post("/v1/search", json=BOX), 429, "busy")
            with in_background(1, lambda: other.post("/v1/search", json=BOX)) as others:
                wait_until(lambda: client.service.batcher._taken_on == 5)
                gallery.encoder.hold.set()
        assert [answer.status_code for answer in answers + others] == [200] * 5
        wait_until(lambda: not client.service.batcher._clients)


def test_clients_take_turns():
    pool, free, order = Pool("things", 1, 100), threading.Event(), []

    async def all_of_them():
        begun = threading.Event()
        first = asyncio.create_task(pool.run(lambda: (begun.set(), free.wait(30)), client="a"))
        await asyncio.to_thread(begun.wait, 30)
        jobs = [
            asyncio.create_task(pool.run(order.append, who + str(i), client=who)) for who in "abc" for i in range(3)
        ]
        await asyncio.sleep(0)
        jobs[4].cancel()  # b1
        await asyncio.sleep(0)
        free.set()
        await asyncio.gather(first, *jobs, return_exceptions=True)

    try:
        asyncio.run(all_of_them())
        assert order == ["a0", "b0", "c0", "a1", "b2", "c1", "a2", "c2"]
        wait_until(lambda: not pool._taken_on and not pool._running and not pool._waiting)
    finally:
        pool.close()


def test_pictures_that_need_much_memory_are_decoded_one_after_the_other():
    room, inside, most = Room(100, 10), [], []

    def job(size):
        with room.take(size):
            inside.append(size)
            most.append(sum(inside))
            time.sleep(0.01)
            inside.remove(size)

    threads = [threading.Thread(target=job, args=(size,)) for size in (60, 50, 40, 300, 60, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == 6 and sorted(most)[-1] == 300 and all(size <= 100 for size in most if size != 300)


def test_memory_for_decoding_is_told_by_the_header():
    def told(mode):
        return queries.check_size(faults.encoded(Image.new(mode, (100, 50)), "PNG"), 10**6) / 5000

    assert told("RGB") == told("L") == 12 and told("RGBA") == told("P") == 20 and told("I;16") == 28


def test_a_jpeg_costs_its_scans_times_its_pixels():
    data = faults.jpeg_of_scans(150, 300)
    queries.check_size(data, 40_000_000)
    huge = faults.resized(data, 5000, 5000)
    with pytest.raises(queries.TooLarge, match="150 scans of 25 million"):
        queries.check_size(huge, 40_000_000)


# ---- bombs ----


@pytest.mark.exhaustive
def test_every_bomb_gets_its_answer(client):
    seen = faults.explosives(client.address, limit=10.0)
    assert seen[413] == 13 and seen[200] == 3 and sum(seen.values()) > 45
    faults.alive(client.address)


@pytest.mark.parametrize("kind", ["extended", "lossless", "lossy"])
def test_a_large_webp_is_refused_before_it_is_opened(monkeypatch, kind):
    small = faults.webp_of_size(96, 96, kind)
    assert queries.webp_size(small) == (96, 96) and queries.check_size(small, 96 * 96)
    monkeypatch.setattr(Image, "open", None)  # it would set the whole canvas aside
    with pytest.raises(queries.TooLarge, match="16000 x 12000"):
        queries.check_size(faults.webp_of_size(16_000, 12_000, kind), 40_000_000)


def test_the_svg_helper_has_little_memory():
    renderer = svg.Renderer()
    try:
        assert renderer.png(faults.DOCUMENT)
        assert resource.prlimit(renderer._process.pid, resource.RLIMIT_AS) == (svg.MEMORY, svg.MEMORY)
        assert resource.prlimit(renderer._process.pid, resource.RLIMIT_CORE) == (0, 0)
    finally:
        renderer.close()


# ---- writing ----


def test_writes_in_a_row_and_beside_another_writer(real, tmp_path):
    """A writer that is left open would lock everybody else out."""
    (tmp_path / "new").mkdir()
    for number in range(2):
        draw(tmp_path / f"new/{number}.png", number, "green", 1, size=(64, 64))
    with Gallery.open(real / "gallery") as gallery:
        writer = lambda: Gallery.open(real / "gallery", write=True, encoder=gallery.encoder)  # noqa: E731
        with running(gallery, token=TOKEN, allow_root=(tmp_path / "new",), writer=writer) as client:
            counts = []
            for number in range(2):
                body = {"paths": [str(tmp_path / f"new/{number}.png")], "label": f"new {number}"}
                answer = client.post("/v1/items", json=body, headers=BEARER)
                assert answer.status_code == 200 and answer.json()["new"] == 1, answer.text
                counts.append(answer.json()["count"])
            assert counts == [19, 20]
            for number in range(2):
                (match,) = client.post("/v1/search", json={**BOX, "labels": [f"new {number}"]}).json()["matches"]
                assert client.delete(f"/v1/items/{match['id']}", headers=BEARER).status_code == 204
            with writer():
                refused(client.delete("/v1/items/1", headers=BEARER), 409, "locked")
            assert len(gallery) == 18


# ---- disks ----


def wrapped(error):
    """The error as the gallery's layers pass it on: a line for people, the cause hidden from them."""
    try:
        try:
            raise error
        except Exception as cause:
            raise UserError(f"gallery.db: {cause}") from None
    except UserError as line:
        return line


@pytest.mark.parametrize(
    "error",
    [
        wrapped(sqlite3.OperationalError("database or disk is full")),
        wrapped(OSError(errno.ENOSPC, "No space left on device")),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        UserError("gallery: cannot be written: the disk is full; run it again to go on"),
    ],
)
def test_a_full_disk_is_507(gallery, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    draw(tmp_path / "a.png", 1, "green", 1)
    with running(gallery, token=TOKEN, allow_root=(tmp_path,)) as client:
        add = {"paths": [str(tmp_path / "a.png")]}
        for what in ("add", "remove"):
            monkeypatch.setattr(gallery, what, fail)
        answers = [client.post("/v1/items", json=add, headers=BEARER), client.delete("/v1/items/1", headers=BEARER)]
        monkeypatch.setattr(client.service, "writer", fail)
        answers.append(client.delete("/v1/items/1", headers=BEARER))
        for answer in answers:
            message = refused(answer, 507, "disk_full")
            assert "the disk is full" in message and "gallery" not in message
        monkeypatch.setattr(gallery, "search_vectors", fail)
        refused(client.post("/v1/search", json=BOX), 507, "disk_full")


def test_other_words_for_a_full_disk(tmp_path, monkeypatch):
    error = wrapped(sqlite3.OperationalError("disk I/O error"))
    assert not writing.disk_is_full(error, tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1, f_frsize=4096))
    assert writing.disk_is_full(error, tmp_path)
    assert not writing.disk_is_full(UserError("no such label"), tmp_path)


def test_a_gallery_that_cannot_be_written_is_not_named(tmp_path):
    def damaged():
        raise UserError(f"{tmp_path}/000001.pack: truncated")

    with pytest.raises(UserError, match="cannot be read") as told, writing.writing(damaged, tmp_path):
        raise AssertionError("it is open")
    assert str(tmp_path) not in str(told.value)


@pytest.mark.parametrize("error", [UserError, GalleryError])
def test_errors_while_adding_are_of_the_request_or_of_the_gallery(gallery, tmp_path, monkeypatch, error):
    """The folder of the pictures may begin as the gallery's does: what an error is about is not read from its words."""

    def fail(*_, **__):
        raise error("/photos-of-june/a.png: wrong")

    draw(tmp_path / "a.png", 1, "green", 1)
    with running(gallery, token=TOKEN, allow_root=(tmp_path,)) as client:
        monkeypatch.setattr(gallery, "add", fail)
        monkeypatch.setattr(client.service, "folder", Path("/photos"))
        answer = client.post("/v1/items", json={"paths": [str(tmp_path / "a.png")]}, headers=BEARER)
        if error is UserError:
            assert "of-june/a.png: wrong" in refused(answer, 422, "invalid")
        else:
            assert "/photos" not in refused(answer, 503, "unavailable")


def test_the_default_limit_holds_ten_megabytes_as_base64():
    assert 4 * math.ceil(10e6 / 3) + 1000 < ServeConfig(gallery=Path("gallery")).max_body_mb * 1e6


def test_a_full_disk_under_a_real_gallery(real, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    draw(tmp_path / "a.png", 1, "green", 1, size=(64, 64))
    with Gallery.open(real / "gallery") as gallery:
        writer = lambda: Gallery.open(real / "gallery", write=True, encoder=gallery.encoder)  # noqa: E731
        with running(gallery, token=TOKEN, allow_root=(tmp_path,), writer=writer) as client:
            with monkeypatch.context() as patch:
                patch.setattr(segments, "_write_all", full)
                answer = client.post("/v1/items", json={"paths": [str(tmp_path / "a.png")]}, headers=BEARER)
                refused(answer, 507, "disk_full")
            assert client.get("/v1/gallery").json()["count"] == 18
            answer = client.post("/v1/items", json={"paths": [str(tmp_path / "a.png")]}, headers=BEARER)
            assert answer.json()["new"] == 1, "the writer was given back"


def test_vectors_that_are_truncated_while_they_are_served(real, tmp_path, caplog):
    """Reading them through the memory map would end the process with SIGBUS."""
    shutil.copytree(real / "gallery", tmp_path / "gallery")
    with Gallery.open(tmp_path / "gallery") as gallery, running(gallery) as client:
        assert client.post("/v1/search", json=BOX).status_code == 200
        (path,) = (tmp_path / "gallery").rglob("*.f32")
        whole = path.read_bytes()
        os.truncate(path, 100)
        for query in (BOX, {"id": 9}):
            message = refused(client.post("/v1/search", json=query), 503, "unavailable")
            assert "log" in message and str(tmp_path) not in message
        assert f"{path}: truncated: 100 bytes" in caplog.text
        with open(path, "r+b") as file:
            file.write(whole)
        assert client.post("/v1/search", json=BOX).status_code == 200


def test_a_truncated_pack_is_seen(tmp_path):
    rows = np.random.default_rng(0).standard_normal((100, 8), np.float32)
    files = segments.Segments(tmp_path, 8)
    crc = files.append(1, 0, rows, 0)
    files.write_pack(1, 100, crc)
    parts = cover(files, 1, 0, 100, pack=files.open_pack(1))
    gallery = SimpleNamespace(files=files, parts=parts)
    assert parts[0].stored
    service.check_files(gallery)
    os.truncate(files.pack_path(1), 4096)
    with pytest.raises(UserError, match=r"000001.pack: truncated: 4096 bytes"):
        service.check_files(gallery)
    files.pack_path(1).unlink()
    service.check_files(gallery)


# ---- connections and heads ----


def test_heads_that_can_be_read_in_two_ways_are_refused(client):
    assert set(faults.heads(client.address)) == {400}
    faults.alive(client.address)


@pytest.mark.parametrize("host", ["a@localhost", "localhost:", "localhost:0", "localhost:+80", "localhost:99999", "localhost.", "localhost%00", "[::1", "[::1]x", "localhost/", "localhost#"])  # fmt: skip
def test_odd_hosts(gallery, client, host):
    refused(client.get("/v1/gallery", headers={"Host": host}), 421, "host")
    with running(gallery, host="0.0.0.0") as open_to_all:  # any name, but a name
        refused(open_to_all.get("/v1/gallery", headers={"Host": host}), 421, "host")
        assert open_to_all.get("/v1/gallery", headers={"Host": "sketch.example.org:8000"}).status_code == 200


def test_odd_origins(client):
    own = f"127.0.0.1:{client.base_url.port}"
    for origin in (
        f"ftp://{own}",
        f"://{own}",
        own,
        f"http://{own}/",
        f"http://a@{own}",
        f"HTTP://{own}",
        f"x:http://{own}",
    ):
        refused(client.get("/v1/gallery", headers={"Origin": origin}), 403, "origin")
    twice = [("Origin", f"http://{own}"), ("Origin", "https://evil.example")]
    refused(client.get("/v1/gallery", headers=twice), 403, "origin")
    assert client.get("/v1/gallery", headers={"Origin": f"http://{own}"}).status_code == 200


def test_behind_a_proxy(gallery, caplog):
    caplog.set_level("INFO", logger="splip.serve.process")
    said = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7, 198.51.100.9"}
    with running(gallery, token=TOKEN, behind_proxy=True) as client:
        own = f"127.0.0.1:{client.base_url.port}"
        assert "Secure" in client.post("/v1/session", headers={**BEARER, **said}).headers["Set-Cookie"]
        assert "Secure" not in client.post("/v1/session", headers=BEARER).headers["Set-Cookie"]
        refused(client.get("/v1/gallery", headers={**said, "Origin": f"http://{own}"}), 403, "origin")
        assert client.get("/v1/gallery", headers={**said, "Origin": f"https://{own}"}).status_code == 200
        assert client.get("/healthz", headers={"X-Forwarded-For": "<script>"}).status_code == 200
    clients = {record.fields["client"] for record in caplog.records if "client" in getattr(record, "fields", {})}
    assert clients == {"127.0.0.1", "198.51.100.9"}


def test_without_the_setting_nobody_is_believed(gallery, caplog):
    caplog.set_level("INFO", logger="splip.serve.process")
    with running(gallery, token=TOKEN) as client:
        said = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "198.51.100.9", **BEARER}
        assert "Secure" not in client.post("/v1/session", headers=said).headers["Set-Cookie"]
    assert "198.51.100.9" not in {record.fields.get("client") for record in caplog.records if hasattr(record, "fields")}


def test_head_is_get_without_its_body(client):
    for path in ("/", "/healthz", "/v1/images/1", "/v1/thumbnails/1?size=128", "/v1/gallery", "/metrics"):
        asked, answer = client.head(path), client.get(path)
        assert asked.status_code == 200 and asked.content == b"" and answer.content
        if path != "/metrics":
            assert asked.headers["Content-Length"] == str(len(answer.content))
        assert asked.headers["Content-Type"] == answer.headers["Content-Type"]
    assert client.head("/v1/images/999").status_code == 404
    assert client.head("/v1/search").status_code == 405
    assert metric(client, 'splip_requests_total{method="HEAD",route="/healthz",status="200"}') == 1


def test_a_refusal_arrives_although_the_body_was_not_read(gallery, monkeypatch):
    """Closing a socket with unread data resets the connection, and the answer is lost."""
    monkeypatch.setattr(connection, "LINGER_SECONDS", 20.0)
    with running(gallery, max_body_mb=0.1) as client:
        head = "POST /v1/search HTTP/1.1\r\nHost: {}\r\nContent-Type: image/png\r\nContent-Length: 8000000\r\n\r\n"
        for host, status in (("localhost", b"413"), ("evil.example", b"421")):
            with socket.create_connection(("127.0.0.1", client.base_url.port), timeout=20) as peer:
                peer.sendall(head.format(host).encode())
                for _ in range(80):
                    peer.sendall(bytes(100_000))
                    time.sleep(0.002)
                answer = b""
                while part := peer.recv(65536):
                    answer += part
            assert answer.startswith(b"HTTP/1.1 " + status) and answer.endswith(b"}"), answer
        # Who never stops is cut off.
        with socket.create_connection(("127.0.0.1", client.base_url.port), timeout=20) as peer:
            peer.sendall(head.format("localhost").encode())
            with pytest.raises(OSError):
                while True:
                    peer.sendall(bytes(1_000_000))


def test_silent_connections_leave_room_for_others(gallery, monkeypatch):
    monkeypatch.setattr(connection, "MAX_SILENT", 40)
    monkeypatch.setattr(process, "CONNECTIONS", 60)
    with running(gallery) as client:
        seen = faults.silent(client.address, 200)
        assert seen["searches"] == 2 and seen["closed"] >= 150 and seen["open"] <= 40
        # Nor do those that asked once.
        peers = []
        for _ in range(100):
            peers.append(socket.create_connection(("127.0.0.1", client.base_url.port), timeout=20))
            peers[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert peers[-1].recv(4096).startswith(b"HTTP/1.1 200")
        for peer in peers:
            peer.close()


def test_an_upload_that_is_dropped_is_one_line(gallery, caplog):
    caplog.set_level("INFO", logger="splip.serve.process")
    with running(gallery) as client:
        head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: 19000\r\n\r\n"
        for kind in (b"image/png", b"application/json", b"multipart/form-data; boundary=x"):
            caplog.clear()
            with socket.create_connection(("127.0.0.1", client.base_url.port)) as peer:
                peer.sendall(head % kind + b"--x\r\n")
                time.sleep(0.05)
            wait_until(lambda: [r for r in caplog.records if getattr(r, "fields", {}).get("status") == 499])
            # Not those that asked whether the service is ready: such a line may come late.
            said = [r for r in caplog.records if getattr(r, "fields", {}).get("method") != "GET"]
            assert len(said) == 1 and not [r for r in caplog.records if r.exc_info]


def test_every_line_is_json(tmp_path):
    code = """
import asyncio, logging, sys, threading, warnings
from splip.serve import metrics as telemetry
telemetry.set_up_logs("json")
logging.getLogger("some.library").warning("of a library")
logging.getLogger("uvicorn.error").error("of the server")
warnings.warn("a warning")
def fail(): raise ValueError("in a thread")
thread = threading.Thread(target=fail); thread.start(); thread.join()
class Bad:
    def __del__(self): raise ValueError("ignored")
Bad()
async def lose(): asyncio.ensure_future(asyncio.sleep(0)).add_done_callback(lambda _: 1 / 0); await asyncio.sleep(0.01)
asyncio.run(lose())
raise RuntimeError("at the end")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    text = json.dumps(lines)
    for words in (
        "of a library",
        "of the server",
        "a warning",
        "in a thread",
        "ignored",
        "division by zero",
        "at the end",
    ):
        assert words in text
