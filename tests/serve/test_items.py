"""Items over HTTP: pages, one, months, copies as one, and files that vanish."""

import os
import shutil
import sqlite3
import tarfile
import threading
import time

import gallery_faults as faults
import pytest
from photographs import exif, photograph
from pydantic import model_validator
from serving import BOX, TOKEN, FakeGallery, refused, running, sketch

from splip.gallery import Gallery, Picture
from splip.gallery.lock import WriterLock
from splip.serve import photographs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A gallery of six photographs, the fourth three times, one of them undated."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "model").write_bytes(faults.MODEL)
    pictures = []
    for n in range(6):
        path = folder / f"{n}.jpg"
        photograph(path, seed=n, size=(40 + n, 30), tags=b"" if n == 5 else exif(f"2019:0{1 + n // 2}:14 10:02:0{n}"))
        pictures.append(Picture(path, "Sea" if n % 2 else "mountain"))
    for n in (1, 2):
        shutil.copy(folder / "3.jpg", folder / f"3-copy-{n}.jpg")
        pictures.append(Picture(folder / f"3-copy-{n}.jpg", "Sea"))
    with Gallery.create(folder / "gallery", folder / "model", encoder=faults.PixelEncoder()) as gallery:
        assert gallery.add(pictures).seen == 8
    return folder


@pytest.fixture(scope="module")
def client(folder):
    with (
        Gallery.open(folder / "gallery", encoder=faults.PixelEncoder()) as gallery,
        running(gallery, token=TOKEN) as client,
    ):
        yield client


def ids(answer):
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return [item["id"] for item in body.get("items", body.get("matches"))]


def test_an_item(client, folder):
    body = client.get("/v1/items/4").json()
    about = (folder / "3.jpg").stat()
    assert body == {
        "id": 4,
        "label": "Sea",
        "tags": {},
        "name": "3.jpg",
        "path": str(folder / "3.jpg"),
        "taken": "2019-02-14T10:02:03",
        "camera": "Canon EOS 80D",
        "width": 43,
        "height": 30,
        "bytes": about.st_size,
        "modified": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(about.st_mtime_ns // 10**9)),
        "missing": False,
        "copies": [7, 8],
        "copies_count": 2,
    }
    assert client.get("/v1/items/6").json()["taken"] is None
    refused(client.get("/v1/items/99"), 404, "not_found")
    refused(client.get("/v1/items/x"), 422, "invalid")


def test_a_match_says_the_same(client):
    match = client.post("/v1/search", json={"id": 7, "k": 1}).json()["matches"][0]
    assert match.pop("score") == pytest.approx(1, abs=1e-5)
    del match["likely"]
    assert match == client.get("/v1/items/4").json()


def test_pages(client):
    assert ids(client.get("/v1/items")) == [5, 4, 3, 2, 1, 6]
    assert ids(client.get("/v1/items?sort=oldest")) == [1, 2, 3, 4, 5, 6]
    assert ids(client.get("/v1/items?sort=added&stack=false")) == [8, 7, 6, 5, 4, 3, 2, 1]
    first = client.get("/v1/items?limit=4").json()
    assert first["total"] == 6 and [item["copies"] for item in first["items"]] == [[], [7, 8], [], []]
    second = client.get("/v1/items", params={"limit": 4, "cursor": first["next"]}).json()
    assert [item["id"] for item in second["items"]] == [1, 6] and second["next"] is None
    assert ids(client.get("/v1/items?label=sea&taken_from=2019-02&min_side=30")) == [4]
    assert ids(client.get("/v1/items?label=sea&label=mountain&taken_to=2019-01")) == [2, 1]
    assert client.get("/v1/items?stack=false&label=Sea").json()["total"] == 5


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("/v1/items?cursor=abc", "cursor: damaged"),
        ("/v1/items?sort=best", "sort"),
        ("/v1/items?limit=0", "limit"),
        ("/v1/items?limit=1001", "limit"),
        ("/v1/items?taken_from=2019-13", "taken_from: '2019-13' is not a date: write 2019, 2019-07 or 2019-07-14"),
        ("/v1/timeline?taken_from=2020&taken_to=2019", "taken_from 2020 is after taken_to 2019"),
        ("/v1/items?min_side=-1", "min_side"),
        ("/v1/timeline?label=see", "no picture has the label 'see'; did you mean 'Sea'?"),
        (
            "/v1/items?lables=a&taken_form=2020",
            "unknown parameter 'lables', 'taken_form'; there are sort, limit, cursor, label",
        ),
        ("/v1/timeline?sort=name", "unknown parameter 'sort'; there are label, taken_from, taken_to, min_side, stack"),
        ("/v1/items/4?size=128", "unknown parameter 'size'; there are none"),
        ("/v1/items?sort=name&sort=added", "sort: given more than once"),
    ],
)
def test_wrong_questions(client, address, said):
    assert said in refused(client.get(address), 422, "invalid")


def test_filters_under_both_names_and_left_empty(client):
    assert ids(client.get("/v1/items?labels=sea&labels=mountain&taken_to=2019-01")) == [2, 1]
    assert ids(client.get("/v1/items?labels=sea&label=mountain&taken_to=2019-01")) == [2, 1]
    assert client.get("/v1/timeline?labels=sea").json() == client.get("/v1/timeline?label=Sea").json()
    empty = {"taken_from": "", "taken_to": "", "min_side": ""}
    assert ids(client.get("/v1/items", params=empty)) == [5, 4, 3, 2, 1, 6]
    assert client.get("/v1/timeline", params=empty).json() == client.get("/v1/timeline").json()
    posted = client.post("/v1/search", files={"image": sketch()}, data={**empty, "labels": "Sea", "stack": "false"})
    assert set(ids(posted)) == {2, 4, 6, 7, 8}


def test_months(client):
    want = [{"month": "2019-03", "count": 1}, {"month": "2019-02", "count": 2}, {"month": "2019-01", "count": 2}]
    assert client.get("/v1/timeline").json() == {"months": want, "undated": 1}
    assert client.get("/v1/timeline?stack=false&label=Sea").json()["months"][0] == {"month": "2019-02", "count": 3}


def test_searches_by_date_and_size_and_with_copies(client):
    def ask(**query):
        return client.post("/v1/search", json={"id": 4, "k": 24, **query})

    assert set(ids(ask(taken_from="2019-02", taken_to="2019-02"))) == {3, 4}
    assert set(ids(ask(min_side=31))) == set()
    assert ids(ask(k=3, stack=False)) == [4, 7, 8]
    found = ask(k=3).json()["matches"]
    assert [match["copies"] for match in found] == [[7, 8], [], []] and len({m["id"] for m in found}) == 3
    form = {"taken_from": "2019-02", "stack": "false", "min_side": "30"}
    posted = client.post("/v1/search", files={"image": sketch()}, data=form)
    assert set(ids(posted)) == {3, 4, 5, 7, 8}
    assert "taken_to: '2019-' is not a date" in refused(ask(taken_to="2019-"), 422, "invalid")
    assert "taken_from 2020 is after" in refused(ask(taken_from="2020", taken_to="2019"), 422, "invalid")
    both = client.post("/v1/search/batch", json={"queries": [{"id": 4, "k": 2}, {"id": 4, "taken_to": "x"}]}).json()
    assert len(both["answers"][0]["matches"]) == 2 and both["answers"][1]["error"] == "invalid"


def test_a_picture_that_vanishes_while_it_is_shown(client, folder):
    assert client.get("/v1/thumbnails/2").status_code == 200
    (folder / "1.jpg").rename(folder / "away.jpg")
    try:
        for address in ("/v1/thumbnails/2", "/v1/images/2"):
            said = refused(client.get(address), 404, "gone")
            assert said == "cannot read picture 1.jpg: the file is gone"
        assert client.get("/v1/items/2").json()["missing"]
        assert client.service.gallery.item(2).missing  # kept, for others too
        assert [m["missing"] for m in client.post("/v1/search", json={"id": 2, "k": 1}).json()["matches"]] == [True]
        (folder / "away.jpg").rename(folder / "1.jpg")
        assert client.get("/v1/images/2").status_code == 200
        assert not client.get("/v1/items/2").json()["missing"] and not client.service.gallery.item(2).missing
    finally:
        if (folder / "away.jpg").exists():
            (folder / "away.jpg").rename(folder / "1.jpg")


def test_somebody_writes_while_a_file_is_gone(client, folder):
    lock = WriterLock(folder / "gallery")
    (folder / "0.jpg").rename(folder / "away.jpg")
    try:
        with client.service.gallery._files.catalog.connection() as db:
            db.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            refused(client.get("/v1/images/1"), 404, "gone")
            assert time.monotonic() - began < 10  # it does not wait for the writer
            assert client.get("/v1/items/1").json()["missing"]
            db.execute("ROLLBACK")
    finally:
        (folder / "away.jpg").rename(folder / "0.jpg")
        lock.release()
    assert client.get("/v1/images/1").status_code == 200


def test_another_process_finds_the_file_again(client, folder):
    """A gallery that was being written when the file was missed: only the service knows of it."""
    client.service._gone.add(3)
    assert client.get("/v1/items/3").json()["missing"]
    with Gallery.open(folder / "gallery", write=True, encoder=faults.PixelEncoder()) as gallery:
        gallery.add([Picture(folder / "2.jpg", "mountain", {"seen": "again"})])
    client.service._look()
    assert not client.get("/v1/items/3").json()["missing"]


def test_a_damaged_gallery_is_no_fault_of_the_request_and_says_no_paths(folder, tmp_path, caplog):
    shutil.copytree(folder / "gallery", tmp_path / "gallery")
    with Gallery.open(tmp_path / "gallery", encoder=faults.PixelEncoder()) as gallery, running(gallery) as client:
        with open(tmp_path / "gallery" / "gallery.db", "r+b") as file:
            file.write(b"\xa5" * file.seek(0, 2))
            file.seek(0)
            file.write(b"\xa5" * 4096)
        with gallery._files.catalog._lock:
            gallery._files.catalog._forget()
        for address in ("items", "timeline", "items/4", "items?label=Seal", "items?sort=name&taken_from=2019"):
            caplog.clear()
            said = refused(client.get(f"/v1/{address}"), 503, "unavailable")
            assert said == "the gallery cannot be read; the service's log says more"
            assert "gallery.db" in caplog.text
        said = refused(client.post("/v1/search", json={"id": 1, "labels": ["Seal"]}), 503, "unavailable")
        assert str(tmp_path) not in said


def test_adding_to_a_damaged_gallery_says_no_paths(folder, tmp_path, caplog):
    where = tmp_path / "gallery"
    shutil.copytree(folder / "gallery", where)
    photograph(tmp_path / "new.jpg", seed=9)

    def writer():
        return Gallery.open(where, write=True, encoder=faults.PixelEncoder())

    with (
        Gallery.open(where, encoder=faults.PixelEncoder()) as gallery,
        running(gallery, TOKEN, writer=writer, allow_root=[tmp_path]) as client,
    ):
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        with sqlite3.connect(where / "gallery.db") as db:
            (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'items'").fetchone()
            (size,) = db.execute("PRAGMA page_size").fetchone()
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with open(where / "gallery.db", "r+b") as file:
            file.seek((page - 1) * size)
            file.write(b"\xa5" * size)
        for answer in (
            client.post("/v1/items", json={"paths": [str(tmp_path / "new.jpg")]}, headers=bearer),
            client.delete("/v1/items/2", headers=bearer),
        ):
            said = refused(answer, 503, "unavailable")
            assert str(tmp_path) not in said and "gallery.db" in caplog.text


def test_an_encoder_that_cannot_be_measured_serves_all_the_same(folder, caplog):
    class Unsettled(faults.PixelEncoder):
        def settle(self):
            raise RuntimeError("no clock")

    with Gallery.open(folder / "gallery", encoder=Unsettled()) as gallery, running(gallery) as client:
        assert client.post("/v1/search", json=BOX).status_code == 200
    assert "no clock" in caplog.text


def test_a_damaged_tar_file_says_no_paths(tmp_path):
    (tmp_path / "model").write_bytes(faults.MODEL)
    photograph(tmp_path / "0.jpg", seed=0)
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        tar.add(tmp_path / "0.jpg", "0.jpg")
    with Gallery.create(tmp_path / "gallery", tmp_path / "model", encoder=faults.PixelEncoder()) as gallery:
        gallery.add([tmp_path / "some.tar" / "0.jpg"])
        with running(gallery) as client:
            assert client.get("/v1/images/1").status_code == 200
            (tmp_path / "some.tar").write_bytes(b"x" * 2000)
            said = refused(client.get("/v1/images/1"), 404, "gone")
            assert said == "cannot read picture 0.jpg: not an uncompressed tar file, or damaged"


def test_pages_are_written_outside_the_event_loop(client, monkeypatch):
    threads = set()

    class Watched(photographs.Items):
        @model_validator(mode="after")
        def _where(self):
            threads.add(threading.current_thread().name.split("_")[0])
            return self

    monkeypatch.setattr(photographs, "Items", Watched)
    assert len(ids(client.get("/v1/items"))) == 6 and threads == {"lists"}


def test_names_that_are_no_text(tmp_path):
    (tmp_path / "model").write_bytes(faults.MODEL)
    path = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    photograph(path, seed=0)
    with Gallery.create(tmp_path / "gallery", tmp_path / "model", encoder=faults.PixelEncoder()) as gallery:
        gallery.add([path])
        with running(gallery) as client:
            assert client.get("/v1/items").json()["items"][0]["name"] == "caf\ufffd.jpg"
            assert client.get("/v1/items/1").json()["path"] == str(tmp_path / "caf\ufffd.jpg")
            assert ids(client.post("/v1/search", json={"id": 1})) == [1]


def test_reading_needs_no_token_and_writing_does(client, folder):
    refused(client.delete("/v1/items/2"), 401, "token")
    refused(client.post("/v1/items", json={"paths": ["/"]}), 401, "token")
    schema = client.get("/openapi.json").json()["paths"]
    assert "security" not in schema["/v1/items"]["get"] and "security" in schema["/v1/items"]["post"]


def test_all_of_it_may_need_the_token(tmp_path):
    with running(FakeGallery(tmp_path), token=TOKEN, protect="all") as client:
        for address in ("/v1/items", "/v1/items/1", "/v1/timeline"):
            refused(client.get(address), 401, "token")


def test_galleries_that_are_kept_elsewhere(client, tmp_path):
    """A Milvus collection has no list of its pictures; it knows each of them."""
    with running(FakeGallery(tmp_path)) as client:
        for address in ("/v1/items", "/v1/timeline"):
            said = refused(client.get(address), 404, "unsupported")
            assert said == "the pictures of this gallery are listed where its folder is"
        assert client.get("/v1/items/3").json()["taken"] is None
        assert len(client.post("/v1/search", json={**BOX, "k": 5}).json()["matches"]) == 5


def test_times_that_no_calendar_has():
    assert photographs.modified(-(2**62)).endswith("Z")
    assert photographs.modified(2**62).endswith("Z") and photographs.modified(0) == "1970-01-01T00:00:00Z"
