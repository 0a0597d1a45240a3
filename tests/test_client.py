"""`splip.client` against a running service."""

import http.server
import io
import subprocess
import sys
import threading
import time

import pytest
from drawing import draw
from gallery_faults import MODEL, PixelEncoder
from photographs import exif, photograph
from PIL import Image
from serving import BOX, SHAPES, TOKEN, FakeGallery, running, sketch

from splip.client import Client, Item, Match, ServiceError
from splip.errors import UserError
from splip.gallery import Gallery


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    draw(folder / "more" / "0.png", SHAPES.index("pole"), "black", 1, size=(64, 56))
    (folder / "cone.png").write_bytes(sketch("cone"))
    return folder


@pytest.fixture(scope="module")
def service(tmp_path_factory, place):
    with running(FakeGallery(tmp_path_factory.mktemp("gallery")), token=TOKEN, allow_root=(place,)) as client:
        yield client


@pytest.fixture(scope="module")
def client(service):
    with Client(service.address + "/", token=TOKEN) as client:
        yield client


def labels(matches):
    return [match.label for match in matches]


def test_searches_in_every_form(client, place):
    file = place / "cone.png"
    for picture in (file, str(file), file.read_bytes(), Image.open(file)):
        found = client.search(picture, k=4)
        assert labels(found) == ["cone"] * 4 and isinstance(found[0], Match) and found[0].score > found[3].score
    assert found.answer["partial"] is False and found.answer["timing_ms"]["total"] > 0
    assert labels(client.search(strokes=BOX["strokes"], k=4)) == ["box"] * 4
    assert labels(client.search(strokes=[[(0, 0), (40, 40)]], k=1)) == ["slash"]
    assert labels(client.search(text="cone", k=4)) == ["cone"] * 4
    assert labels(client.search(file, text="ball", text_weight=0.95, k=4)) == ["ball"] * 4
    assert labels(client.search(id=found[0].id, k=1)) == ["cone"]
    assert labels(client.search(file, k=3, labels=["box", "ball"], tags={"colour": "blue"})) == ["box"] * 2 + ["ball"]
    liked = client.search(file, like=[{"text": "cone", "weight": -1.5}], k=24)
    assert labels(liked)[-4:] == ["cone"] * 4
    assert client.search(client.image(1), modality="photo", k=1)[0].id == 1


def test_pictures(client, place, service):
    assert client.image(3) == service.service.gallery.item(3).path.read_bytes()
    with Image.open(io.BytesIO(client.thumbnail(3, 128))) as image:
        assert image.format == "JPEG" and max(image.size) <= 128
    out = client.save(3, place / "new" / "folder" / "3.jpg")
    assert out.read_bytes() == client.image(3)


def test_items_are_added_and_removed(client, place):
    assert client.add([place / "more"], label="pole", tags={"a": "b"})["new"] == 1
    found = client.search(text="pole", tags={"a": "b"})
    assert found[0].tags == {"a": "b"} and len(found) == 1
    client.remove(found[0].id)
    assert not client.search(text="pole", tags={"a": "b"})


def test_items_come_page_by_page(tmp_path):
    (tmp_path / "model").write_bytes(MODEL)
    for number in range(5):
        photograph(tmp_path / f"{number}.jpg", seed=number, size=(40, 30), tags=exif(f"201{number}:05:01 12:00:00"))
    with (
        Gallery.create(tmp_path / "gallery", tmp_path / "model", encoder=PixelEncoder()) as gallery,
        running(gallery) as service,
        Client(service.address) as client,
    ):
        gallery.add(sorted(tmp_path.glob("*.jpg")), label="may")
        gallery.refresh()
        items = list(client.items(sort="oldest", limit=2))
        assert [item.name for item in items] == [f"{number}.jpg" for number in range(5)]
        assert (items[0].taken, items[0].camera, items[0].width) == ("2010-05-01T12:00:00", "Canon EOS 80D", 40)
        assert [item.name for item in client.items(taken_from="2012", taken_to="2013")] == ["3.jpg", "2.jpg"]
        assert len(list(client.items(labels="may", stack=False, min_side=30))) == 5
        with pytest.raises(ServiceError, match="no picture has the label 'june'"):
            list(client.items(labels=["may", "june"]))
        assert client.item(items[0].id) == items[0] and not items[0].missing
        found = client.search(tmp_path / "3.jpg", modality="photo", taken_to="2012", k=5)
        assert {match.name for match in found} == {"0.jpg", "1.jpg", "2.jpg"} and found[0].taken is not None
        with pytest.raises(ServiceError, match="taken_from"):
            list(client.items(taken_from="yesterday"))


def test_refusals_are_errors_with_the_words_of_the_service(client, service, place):
    with pytest.raises(ServiceError, match="^k: at most 200, got 100000$") as caught:
        client.search(text="cone", k=100_000)
    assert (caught.value.status, caught.value.code) == (422, "invalid")
    with pytest.raises(ServiceError, match="no picture with this id") as caught:
        client.image(10_000)
    assert caught.value.status == 404 and isinstance(caught.value, UserError)
    with Client(service.address) as nobody, pytest.raises(ServiceError) as caught:
        nobody.remove(1)
    assert caught.value.code == "token"
    with pytest.raises(UserError, match=r"cannot read picture .*none.png: No such file or directory \(words are text="):
        client.search(place / "none.png")
    with pytest.raises(UserError, match="a picture is a file, bytes or a PIL picture, not int"):
        client.search(7)


def test_a_busy_service_is_asked_again_and_not_for_ever(service):
    """Two answers that it is busy, and then the real service."""

    class Busy(http.server.BaseHTTPRequestHandler):
        answers = [(429, "0.05"), (503, "0.05"), (200, None), (503, "60"), (502, None)]

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            status, after = self.answers.pop(0)
            self.send_response(status)
            if after:
                self.send_header("Retry-After", after)
            body = b'{"matches": [], "next": null}' if status == 200 else b'{"error": "busy", "message": "later"}'
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if status != 502 else b"x" * len(body))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with Client(f"http://127.0.0.1:{server.server_port}", patience=5) as client:
            assert client.search(text="a") == [] and len(Busy.answers) == 2
            began = time.monotonic()
            with pytest.raises(ServiceError, match="later"):  # not in the time that there is
                client.search(text="a")
            assert time.monotonic() - began < 4
            with pytest.raises(ServiceError, match=r"/v1/search: 502 Bad Gateway"):
                client.search(text="a")
    finally:
        server.shutdown()
        server.server_close()
    with (
        Client(f"http://127.0.0.1:{server.server_port}") as client,
        pytest.raises(UserError, match="no service answers"),
    ):
        client.search(text="a")


class Another(http.server.BaseHTTPRequestHandler):
    """A server that is no splip; ``says``: status, headers and body of each answer."""

    says = (200, {}, b"")

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, headers, body = self.says
        time.sleep(headers.get("wait", 0))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def another():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Another)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with Client(f"http://127.0.0.1:{server.server_port}", timeout=30, patience=2) as client:
        yield client
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "body",
    [
        b"<html>log in</html>",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"matches": 1}',
        b'{"matches": [{"id": 1}]}',
        b'{"items": [], "next": 3}',
    ],
)
def test_what_is_no_answer_of_a_service_is_said_in_a_line(another, monkeypatch, body):
    monkeypatch.setattr(Another, "says", (200, {"Content-Type": "text/html; a=b"}, body))
    what = r"/v1/\S+: the answer is not that of a splip service \(text/html, \d+ bytes\)$"
    for ask in (lambda: another.search(text="a"), lambda: list(another.items()), lambda: another.item(1)):
        with pytest.raises(UserError, match=what):
            ask()


@pytest.mark.parametrize("after", ["nan", "inf", "-1", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_retry_after_may_be_nonsense(another, monkeypatch, after):
    monkeypatch.setattr(Another, "says", (429, {"Retry-After": after}, b'{"error": "busy", "message": "later"}'))
    monkeypatch.setattr(another, "patience", 0.1)
    with pytest.raises(ServiceError, match="later"):
        another.search(text="a")


def test_adding_may_take_longer_than_a_search(another, monkeypatch):
    monkeypatch.setattr(Another, "says", (200, {"wait": 0.8}, b'{"new": 1}'))
    with Client(another.url, timeout=0.4) as short:
        assert short.add("folder") == {"new": 1}
        with pytest.raises(UserError, match="no answer in time"):
            short.add(["folder"], timeout=0.1)
        with pytest.raises(UserError, match="no answer in time"):
            short.gallery()


@pytest.mark.parametrize("token", ["ä", "a b", "a\nb"])
def test_tokens_that_no_header_can_hold(token):
    with pytest.raises(UserError, match="^the token holds what no token can"):
        Client(token=token)


def test_addresses_that_are_none():
    with pytest.raises(UserError, match=r"^http://a\\x00b: not an address"):
        Client("http://a\0b")


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../.bashrc", ".bashrc"),
        ("/etc/passwd", "passwd"),
        ("a.jpg", "a.jpg"),
        ("..", "7"),
        ("a/", "7"),
        ("a\0b", "ab"),
    ],
)
def test_names_lead_into_no_folder(name, kept):
    assert Item.read({"id": 7, "name": name}).name == Match.read({"id": 7, "name": name, "score": 1}).name == kept


def test_one_label_may_stand_alone(client):
    assert set(labels(client.search(text="ball", labels="cone", k=24))) == {"cone"}


def test_parameters_have_names(client):
    with pytest.raises(TypeError, match="taken_form"):
        client.items(taken_form="2019")


def test_newer_services_may_tell_more():
    item = Item.read({"id": 1, "name": "a.jpg", "taken": "2019-07-14T10:02:03", "copies": [2], "mood": "good"})
    assert (item.taken, item.copies, item.width) == ("2019-07-14T10:02:03", (2,), None)


def test_it_needs_httpx_alone():
    code = (
        "import sys\n"
        "from splip.client import Client\n"
        "Client()\n"
        "assert not {'torch', 'numpy', 'PIL', 'pydantic', 'fastapi'} & set(sys.modules)\n"
        "sys.modules['httpx'] = None\n"
        "try: Client()\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "splip.client needs httpx: pip install 'splip[client]'\n"
    with pytest.raises(UserError, match="localhost:8000: an address begins with http"):
        Client("localhost:8000")
