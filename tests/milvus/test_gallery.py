"""``splip index push`` and searches in Milvus: Milvus Lite, and with ``-m exhaustive`` a server too."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gallery_faults as faults
import numpy as np
import pytest
from drawing import draw

from splip.errors import UserError
from splip.gallery.catalog import Filter
from splip.gallery.gallery import Gallery
from splip.gallery.ingest import Picture
from splip.milvus import collection as milvus_collection
from splip.milvus import gallery as milvus_gallery
from splip.milvus import push as milvus_push
from splip.milvus.address import is_address, parse
from splip.milvus.collection import Collection, expression
from splip.milvus.gallery import MilvusGallery

pymilvus = pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

ROOT = Path(__file__).resolve().parents[2]
PixelEncoder, paint, DIM = faults.PixelEncoder, faults.paint, faults.DIM
OTHER = b"another model"
numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Milvus server that asks for a token. Two of them on one machine do not start."""
    package = pytest.importorskip("milvus", reason="needs a server: pip install milvus==2.3.5")
    made = package.MilvusServer()
    made.show_startup_banner = False
    made.set_base_dir(str(tmp_path_factory.mktemp("milvus")))
    made.listen_port = 0
    made.config.set("authorization_enabled", True)
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(params=["lite", pytest.param("server", marks=pytest.mark.exhaustive)])
def place(request, tmp_path, monkeypatch):
    """The address of a collection that is not there yet."""
    name = f"photos_{next(numbers)}"
    if request.param == "lite":
        return f"milvus:{tmp_path}/store.db/{name}"
    monkeypatch.setenv("MILVUS_TOKEN", "root:Milvus")
    return f"milvus://127.0.0.1:{request.getfixturevalue('server').listen_port}/{name}"


@pytest.fixture
def photos(tmp_path):
    """Forty pictures in three folders."""
    paths = [tmp_path / "photos" / f"class-{n % 3}" / f"{n:02d}.png" for n in range(40)]
    for n, path in enumerate(paths):
        paint(path, n)
    return paths


@pytest.fixture
def make(tmp_path):
    """A new gallery of small segments, open for writing."""

    def create(name="gallery", model=faults.MODEL, segment_rows=16):
        (tmp_path / "model").write_bytes(model)
        encoder = PixelEncoder(model)
        return Gallery.create(tmp_path / name, tmp_path / "model", encoder=encoder, segment_rows=segment_rows)

    return create


@pytest.fixture
def gallery(make, photos):
    """The forty pictures, labelled by their folders, every other one tagged; open for writing."""
    with make() as gallery:
        gallery.add([Picture(p, p.parent.name, {"even": "yes"} if n % 2 == 0 else {}) for n, p in enumerate(photos)])
        gallery.refresh()
        yield gallery


def push(gallery, place, **options):
    done = milvus_push.push(gallery, parse(place), **options)
    return done.new, done.changed, done.removed, done.unchanged


def remote(place, model=faults.MODEL):
    return MilvusGallery(place, encoder=PixelEncoder(model))


def same(place, gallery, k=10, filters=(None,), count=4):
    """The collection answers as the gallery does."""
    queries = np.random.default_rng(1).standard_normal((count, gallery.dim)).astype(np.float32)
    with contextlib.closing(remote(place, faults.MODEL)) as there:
        gallery.refresh()
        assert len(there) == len(gallery)
        for filter in filters:
            want = gallery.search_vectors(queries, k, filter)
            found = there.search_vectors(queries, k, filter)
            for a, b in zip(want, found, strict=True):
                assert [(m.id, m.path, m.label, m.tags) for m in b] == [(m.id, m.path, m.label, m.tags) for m in a]
                np.testing.assert_allclose([m.score for m in b], [m.score for m in a], atol=1e-6)


# ---- addresses and expressions ----


@pytest.mark.parametrize(
    ("text", "uri", "collection", "rest"),
    [
        ("milvus://host/photos", "http://host:19530", "photos", ("", "Strong")),
        ("milvus://10.0.0.1:99/p_1", "http://10.0.0.1:99", "p_1", ("", "Strong")),
        ("milvus://[::1]/p?tls=on&database=own", "https://[::1]:19530", "p", ("own", "Strong")),
        ("milvus://h/p?consistency=bounded", "http://h:19530", "p", ("", "Bounded")),
        ("milvus:///data/my%20store.db/p", "/data/my store.db", "p", ("", "Strong")),
        ("milvus:store.db/p", os.path.abspath("store.db"), "p", ("", "Strong")),
    ],
)
def test_addresses(text, uri, collection, rest):
    address = parse(text)
    assert (address.uri, address.collection, (address.database, address.consistency)) == (uri, collection, rest)
    assert address.is_local == uri.startswith("/") and str(address) == text and is_address(text)
    assert not is_address("gallery") and not is_address(Path("milvus"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://host/photos", "does not start with milvus:"),
        ("milvus://host", "'' is no name of a collection"),
        ("milvus://host/a-b", "'a-b' is no name"),
        ("milvus://host/a/b", "'a/b' is no name"),
        ("milvus://host:x/photos", "no host, or a port that is no number"),
        ("milvus://:99/photos", "no host, or a port"),
        ("milvus:photos", "no host and no file"),
        ("milvus:folder/photos", "ends in .db"),
        ("milvus://host/p?speed=1", "unknown option speed, choose database, tls, consistency"),
        ("milvus://host/p?consistency=some", "consistency must be one of Strong, Bounded"),
        ("milvus://host/p?tls=1", "tls must be on or off"),
    ],
)
def test_bad_addresses(text, message):
    with pytest.raises(UserError, match=message):
        parse(text)


def test_passwords_in_addresses_are_refused_and_not_repeated():
    with pytest.raises(UserError, match="set MILVUS_TOKEN") as caught:
        parse("milvus://root:secret@host/photos")
    assert "secret" not in str(caught.value)


def test_expressions():
    folder = Path("/p/it's 100%")
    asked = Filter(labels=('a"b', "c\\d"), tags={"k": "x\ny"}, under=folder, ids=(3, 5))
    assert expression(asked) == (
        'label in ["a\\"b", "c\\\\d"] and tags["k"] == "x\\ny"'
        """ and uri > "file:///p/it%27s%20100%25/" and uri < "file:///p/it%27s%20100%250" and id in [3, 5]"""
    )
    assert expression(None) == expression(Filter()) == ""
    assert expression(Filter(under=Path("/"))) == 'uri > "file:///" and uri < "file://0"'
    assert expression(Filter(ids=())) == "id < 0"
    for key in ("", "a\x01b"):
        with pytest.raises(UserError, match="cannot ask for tags with the key"):
            expression(Filter(tags={key: "v"}))


# ---- pushing and searching ----


def test_ties_across_segments(place, make, photos):
    """Equal vectors at row 5 of segment 1 and row 0 of segment 2 come in the order of their ids, as in the gallery."""
    twin = photos[0].with_name("twin.png")
    shutil.copy(photos[5], twin)
    with make(segment_rows=6) as gallery:
        gallery.add([*photos[:6], twin, *photos[6:12]])
        assert [(i.id, i.segment, i.row) for i in gallery.items()][5:7] == [(6, 1, 5), (7, 2, 0)]
        push(gallery, place)
        query = gallery.vector(6)[None]
        with contextlib.closing(remote(place)) as there:
            assert there.decoding == gallery.decoding == 2
            for k in (2, 3, 13):
                found = [[m.id for m in g.search_vectors(query, k)[0]] for g in (gallery, there)]
                assert found[0] == found[1] and found[0][:2] == [6, 7]


def test_search_equals_the_gallery(place, gallery, photos):
    assert push(gallery, place) == (40, 0, 0, 0)
    filters = [
        None,
        Filter(labels=("class-1",)),
        Filter(labels=("class-0", "class-2", "none"), tags={"even": "yes"}),
        Filter(tags={"even": "no"}),
        Filter(under=photos[0].parent),
        Filter(under=photos[0].parent.parent / "class"),
        Filter(ids=(1, 2, 3, 999)),
        Filter(ids=()),
    ]
    same(place, gallery, filters=filters)
    same(place, gallery, k=100)
    with remote(place) as there:
        assert there.labels() == gallery.labels() and not there.refresh()
        match = there.search(photos=[photos[7]], k=1)[0][0]
        assert (match.path, match.label) == (photos[7], "class-1") and match.score == pytest.approx(1, abs=1e-6)
        item, original = there.item(match.id), gallery.item(match.id)
        unknown = {"segment": -1, "row": -1, "width": None, "height": None, "looked": 0}
        assert item == type(item)(**{**vars(original), **unknown})
        with pytest.raises(UserError, match="a Milvus collection: knows neither dates nor sizes of pictures"):
            there.search_vectors(there.vector(match.id)[None], 3, Filter(taken_from="2019"))
        np.testing.assert_allclose(there.vector(match.id), gallery.vector(match.id), atol=1e-6)
        each = there.search_vectors(np.ones((2, DIM)), 3, [Filter(labels=("class-0",)), None])
        assert {m.label for m in each[0]} == {"class-0"} and len(each[1]) == 3
        for id in (999, -1, 2**70):
            with pytest.raises(KeyError):
                there.item(id)


def test_pushing_again_sends_what_is_new(place, gallery, photos, tmp_path):
    push(gallery, place)
    assert push(gallery, place) == (0, 0, 0, 40)
    for n in (50, 51):
        paint(tmp_path / "photos" / "new" / f"{n}.png", n)
    gallery.add(sorted((tmp_path / "photos" / "new").iterdir()), label="new")
    gallery.add([Picture(photos[3], "renamed")])  # another label
    photos[4].rename(photos[4].with_name("moved.png"))
    gallery.add([photos[4].with_name("moved.png")], label="class-1")
    paint(photos[5], 99)  # another picture in the same file
    gallery.add([photos[5]], label="class-2")
    gone = gallery.remove([photos[6], photos[7]])
    new, changed, removed, unchanged = push(gallery, place)
    assert new == 3 and changed == 2 and removed == 3 and unchanged == len(list(gallery.items())) - 5
    same(place, gallery, k=100)
    gallery.compact()
    assert push(gallery, place)[:3] == (0, 0, 0)
    same(place, gallery)
    with remote(place) as there:
        for item in gone:
            with pytest.raises(KeyError):
                there.item(item.id)
    gallery.remove(filter=Filter(ids=tuple(range(100))))
    push(gallery, place)
    with remote(place) as there:
        assert len(there) == 0 and there.search_vectors(np.ones((1, DIM))) == [[]] and there.labels() == {}


def test_deleted_items_never_return(place, gallery):
    """Milvus's own default level gives them back for a while."""
    push(gallery, place)
    for _ in range(5):
        with remote(place) as there:
            ids = [m.id for m in there.search_vectors(np.ones((1, DIM)), 3)[0]]
            gallery.remove(ids)
            push(gallery, place)
            again = {m.id for m in there.search_vectors(np.ones((1, DIM)), 40)[0]}
        assert not again & set(ids) and len(again) == len(list(gallery.items()))


def test_strange_names(place, make, tmp_path):
    """Labels, tags and paths come back as they were, and filters find exactly them."""
    names = ["it's", 'dou"ble', "back\\slash", "new\nline", "tab\t", "100%_", "émoji 😀", "a[0]", "\x01", "null", "1"]
    raw = [os.fsdecode(b"caf\xe9"), "a%20b", "a b", "a", "a0", "a-", "*"]
    with make() as gallery:
        for n, name in enumerate(names):
            paint(tmp_path / "p" / f"{n}.png", n)
            gallery.add([Picture(tmp_path / "p" / f"{n}.png", name, {"k": name, f"{name[:-1]}x": "v"})])
        for n, name in enumerate(raw):
            paint(tmp_path / "p" / name / "x.png", 50 + n)
            gallery.add([Picture(tmp_path / "p" / name / "x.png")])
        push(gallery, place)
        filters = [Filter(labels=(name,)) for name in names] + [Filter(tags={"k": name}) for name in names]
        filters += [Filter(tags={f"{name[:-1]}x": "v"}) for name in names if name.isprintable()]
        filters += [Filter(under=tmp_path / "p" / name) for name in raw] + [Filter(labels=tuple(names))]
        for filter in filters[: 2 * len(names)] + filters[2 * len(names) + 9 : -1]:
            assert len(list(gallery.items(filter))) == 1
        same(place, gallery, k=30, filters=filters, count=1)


def test_parts(place, gallery, monkeypatch):
    """More rows than one answer may hold, more items than one part, more queries than one message."""
    monkeypatch.setattr(milvus_push, "COMPARED", 7)
    monkeypatch.setattr(milvus_collection, "LIMIT", 14)
    monkeypatch.setattr(milvus_push, "ROWS", 3)
    monkeypatch.setattr(milvus_gallery, "QUERIES", 2)
    seen = []
    assert push(gallery, place, notify=lambda done: seen.append((done.seen, done.total))) == (40, 0, 0, 0)
    assert seen == [(7, 40), (14, 40), (21, 40), (28, 40), (35, 40), (40, 40)]
    same(place, gallery, count=5)
    gallery.remove([id for id in range(41) if id not in (1, 2, 38)])
    assert push(gallery, place) == (0, 0, 37, 3)
    same(place, gallery)


def test_a_push_that_stops_goes_on(place, gallery, monkeypatch):
    monkeypatch.setattr(milvus_push, "COMPARED", 10)
    asked = iter([False, False, True])
    done = milvus_push.push(gallery, parse(place), stop=lambda: next(asked))
    assert done.stopped and (done.seen, done.total) == (20, 40)

    upsert, calls = Collection.upsert, []

    def breaks(self, rows):
        calls.append(len(rows))
        if len(calls) == 2:
            with self._errors("cannot be changed"):
                raise pymilvus.MilvusException(message="server unavailable")
        upsert(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Collection, "upsert", breaks)
        with pytest.raises(UserError, match=r"photos_\d+: cannot be changed: server unavailable$"):
            push(gallery, place)
    assert push(gallery, place) == (10, 0, 0, 30)
    same(place, gallery)


def test_another_gallery_or_model_is_refused(place, gallery, make, photos, tmp_path):
    push(gallery, place)
    with make("theirs", OTHER) as theirs:
        theirs.add(photos[:5])
        with pytest.raises(UserError, match=r"holds vectors of pixels of b'a model' .*--replace"):
            push(theirs, place)
        with pytest.raises(UserError, match="was made with .* not with .* vectors of two models cannot be compared"):
            remote(place, OTHER)
        assert push(theirs, place, replace=True) == (5, 0, 0, 0)
        with remote(place, OTHER) as there:
            assert len(there) == 5
    shutil.copytree(gallery.folder, tmp_path / "copy")
    with Gallery.open(tmp_path / "copy", write=True, encoder=PixelEncoder()) as copy, copy.catalog.writing() as db:
        db.execute("UPDATE facts SET value = '1999-01-01 00:00:00' WHERE name = 'created'")
    with Gallery.open(tmp_path / "copy") as copy:
        push(gallery, place, replace=True)
        with pytest.raises(UserError, match="holds another gallery of .*, made 20.*--replace"):
            push(copy, place)


def test_collections_of_others(place, gallery):
    address = parse(place)
    token = os.environ.get("MILVUS_TOKEN", "")
    client = pymilvus.MilvusClient(address.uri, token=token)
    client.create_collection(address.collection, dimension=DIM)
    for act in (lambda: push(gallery, place), lambda: push(gallery, place, replace=True), lambda: remote(place)):
        with pytest.raises(UserError, match="was not made by `splip index push`"):
            act()
    client.drop_collection(address.collection)
    push(gallery, place)
    for facts, message in (({"dim": "99"}, "vectors of width"), ({"format": "2"}, "collection format 2, this version")):
        client.alter_collection_properties(address.collection, {f"splip.{k}": v for k, v in facts.items()})
        with pytest.raises(UserError, match=message):
            remote(place)
    client.close()
    with pytest.raises(UserError, match="no such collection; `splip index push` makes one"):
        remote(place + "x")


def test_bad_queries(place, gallery):
    push(gallery, place)
    with remote(place) as there:
        for vectors, options, message in (
            (np.ones(DIM), {}, r"vectors must be \[Q, 24\], got \[24\]"),
            (np.ones((1, 5)), {}, r"got \[1, 5\]"),
            (np.full((1, DIM), np.nan), {}, "finite"),
            (np.ones((1, DIM)), {"k": 0}, "k must be between 1 and 16384, got 0"),
            (np.ones((1, DIM)), {"k": 20_000}, "got 20000"),
            (np.ones((1, DIM)), {"filter": [None, None]}, "2 filters for 1 queries"),
        ):
            with pytest.raises(UserError, match=message):
                there.search_vectors(vectors, **options)
        for name in ("add", "remove", "compact", "items", "find", "check", "export", "catalog", "files", "revision"):
            assert not hasattr(there, name), "of the gallery that was pushed, not of a collection"


# ---- the command line ----


def test_command_line(place, tree, tmp_path, settings, cli, refused):
    from splip.train import loop

    settings.loss.matryoshka = (64,)
    model, folder = loop.train(settings), tmp_path / "gallery"
    add = ("index", "add", tree / "photo", "--gallery", folder, "--model", model, "--tag", "year=2025")
    assert cli(*add, "--dimensions", "64")[0] == 0
    code, out, err = cli("index", "push", "--gallery", folder, "--to", place)
    assert (code, out) == (0, f"{place}: 16 pictures (16 new)\n"), err
    draw(tmp_path / "my.png", 4, "black", 3, size=(90, 60))
    query = ("--sketch", tmp_path / "my.png", "--json", "-k", "5", "--label", "ball", "--label", "box")
    query += ("--tag", "year=2025", "--under", tree / "photo")
    answers = [
        json.loads(cli("search", "--gallery", at, "--model", model, *query, "--grid", tmp_path / "o.png")[1])["queries"]
        for at in (folder, place)
    ]
    assert len(answers[0][0]["matches"]) == 4 and (tmp_path / "o.png").stat().st_size > 1000
    for local, there in zip(answers[0][0]["matches"], answers[1][0]["matches"], strict=True):
        assert there.pop("score") == pytest.approx(local.pop("score"), abs=1e-6)
        for name in ("width", "height"):  # which a collection does not hold
            assert local.pop(name) and there.pop(name) is None
        assert there == local
    assert "holds no model: name the one of its pictures" in refused("search", "--gallery", place, *query)
    with MilvusGallery(place, model=model) as there:
        assert there.dim == there.encoder.embed_dim == 64 and there.model.endswith(", 64 of 256 dimensions")
    other = loop.train(settings.__class__(**{**vars(settings), "out": tmp_path / "other", "seed": 1}))
    assert "two models cannot be compared" in refused("search", "--gallery", place, "--model", other, *query)
    assert "no such collection" in refused("search", "--gallery", place + "x", "--model", model, *query)
    assert cli("index", "add", tree / "photo", "--gallery", tmp_path / "whole", "--model", model)[0] == 0
    assert "holds vectors of" in refused("index", "push", "--gallery", tmp_path / "whole", "--to", place)
    cli("index", "remove", "--gallery", folder, "--label", "ball")
    assert cli("index", "push", "--gallery", folder, "--to", place)[1].endswith(
        "14 pictures (2 removed, 14 unchanged)\n"
    )


def test_bad_command_lines(gallery, tmp_path, refused, monkeypatch):
    args = ("index", "push", "--gallery", gallery.folder, "--to")
    assert "does not start with milvus:" in refused(*args, "localhost/photos")
    assert "not a gallery" in refused("index", "push", "--gallery", tmp_path, "--to", "milvus://127.0.0.1:1/p")
    assert "milvus://127.0.0.1:1/p: cannot be opened: Fail connecting" in refused(*args, "milvus://127.0.0.1:1/p")
    assert "cannot be opened" in refused(*args, f"milvus:{tmp_path}/none/x.db/p")
    (tmp_path / "text.db").write_text("text")
    assert "no Milvus Lite database" in refused(*args, f"milvus:{tmp_path}/text.db/p")
    search = ("search", "--model", "m.pt", "--text", "x", "--gallery")
    assert "x.db: no such file" not in refused(*search, "gallery")
    assert f"no such file: {tmp_path}/x.db" in refused(*search, f"milvus:{tmp_path}/x.db/p")
    assert not (tmp_path / "x.db").exists()
    for module in ("pymilvus", "milvus_lite"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            assert f'needs {module}: pip install "splip[milvus]"' in refused(*args, f"milvus:{tmp_path}/y.db/p")


def test_the_client_leaves_the_handlers_of_others_alone(tmp_path):
    """Its import closes every handler of the process, and one that was made for a stream closes that."""
    script = """
import logging, pathlib, sys
from splip.milvus.address import parse
from splip.milvus.collection import Collection
handler = logging.FileHandler(sys.argv[1], mode="w")
logging.getLogger("mine").addHandler(handler)
stream = handler.stream
Collection(parse("milvus:" + sys.argv[2] + "/one"), make=True).close()
logging.getLogger("mine").warning("still here")
assert "pymilvus" in sys.modules and handler.stream is stream and not stream.closed
"""
    log = tmp_path / "log"
    subprocess.run([sys.executable, "-c", script, str(log), str(tmp_path / "some.db")], check=True)
    assert log.read_text() == "still here\n"


def test_service(place, gallery, photos):
    """The HTTP service searches a collection; nothing can be added through it."""
    pytest.importorskip("uvicorn")
    from serving import running

    push(gallery, place)
    with remote(place) as there:
        there.encoder.hold = type("Free", (), {"set": lambda self: None})()
        with running(there) as client:
            about = client.get("/v1/gallery").json()
            assert about["count"] == 40 and about["labels"] == gallery.labels()
            found = client.post("/v1/search", json={"id": 8, "k": 3, "labels": ["class-1"]}).json()["matches"]
            assert found[0]["id"] == 8 and {m["label"] for m in found} == {"class-1"}
            assert client.get("/v1/images/8").content == photos[7].read_bytes()
            assert client.get("/v1/images/99").status_code == 404

            def gone(*args, **options):
                raise pymilvus.MilvusException(message="server unavailable")

            there._collection._client.search = gone
            answer = client.post("/v1/search", json={"id": 8, "k": 3})
            assert answer.status_code == 503 and answer.json()["error"] == "unavailable", answer.text
            assert "server unavailable" in answer.json()["message"] and "retry-after" in answer.headers
            del there._collection._client.search
            assert client.post("/v1/search", json={"id": 8, "k": 3}).status_code == 200


def test_serve_refuses_roots(refused, tmp_path):
    pytest.importorskip("uvicorn")
    (tmp_path / "token").write_text("0123456789abcdef")
    (tmp_path / "token").chmod(0o600)
    args = ("serve", "--token-file", tmp_path / "token", "--allow-root", tmp_path, "--gallery", "milvus://h/p")
    assert "pictures are added to the gallery of a folder" in refused(*args)


# ---- at length ----


@pytest.mark.exhaustive
def test_twenty_thousand_vectors(place, make):
    """Random vectors: ids and scores of the local search, but for neighbours whose scores differ in the last digit."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((20_000, DIM)).astype(np.float32)
    with make(segment_rows=30_000) as gallery:
        with gallery.catalog.writing() as db:
            rows = enumerate(gallery.append(db, vectors))
            statement = (
                "INSERT INTO items (path, label, size, mtime_ns, hash, segment, row) VALUES (?, ?, 0, 0, ?, ?, ?)"
            )
            db.executemany(
                statement, [(b"/p/%06d.jpg" % n, f"c{n % 10}", n.to_bytes(16, "big"), *at) for n, at in rows]
            )
        assert push(gallery, place) == (20_000, 0, 0, 0)
        queries = rng.standard_normal((100, DIM)).astype(np.float32)
        with remote(place) as there:
            for filter in (None, Filter(labels=("c3",))):
                for a, b in zip(
                    gallery.search_vectors(queries, 50, filter), there.search_vectors(queries, 50, filter), strict=True
                ):
                    np.testing.assert_allclose([m.score for m in b], [m.score for m in a], atol=1e-6)
                    swapped = [(x.score, y.score) for x, y in zip(a, b, strict=True) if x.id != y.id]
                    assert all(abs(x - y) < 1e-6 for x, y in swapped) and len(swapped) <= 2


@pytest.mark.exhaustive
def test_server_asks_for_a_token(server, gallery, monkeypatch):
    for token in ("", "root:wrong"):
        monkeypatch.setenv("MILVUS_TOKEN", token)
        with pytest.raises(UserError, match=r"milvus://127.*/p: ") as caught:
            push(gallery, f"milvus://127.0.0.1:{server.listen_port}/p")
        assert "\n" not in str(caught.value) and "wrong" not in str(caught.value)


@pytest.mark.exhaustive
def test_another_index(server, gallery, monkeypatch):
    """Whoever wants an approximate index makes it with Milvus's tools; searches use it."""
    monkeypatch.setenv("MILVUS_TOKEN", "root:Milvus")
    place = f"milvus://127.0.0.1:{server.listen_port}/hnsw"
    push(gallery, place)
    client = pymilvus.MilvusClient(parse(place).uri, token="root:Milvus")
    client.release_collection("hnsw")
    client.drop_index("hnsw", "vector")
    index = client.prepare_index_params()
    index.add_index("vector", index_type="HNSW", metric_type="IP", params={"M": 16, "efConstruction": 100})
    client.create_index("hnsw", index)
    client.close()
    same(place, gallery)  # loads it; forty vectors are within reach of any graph
    assert push(gallery, place) == (0, 0, 0, 40)


@pytest.mark.exhaustive
def test_a_server_that_goes_away(server, gallery, monkeypatch):
    """What was sent stays; with the server back, the next push goes on."""
    monkeypatch.setenv("MILVUS_TOKEN", "root:Milvus")
    monkeypatch.setattr(milvus_push, "COMPARED", 10)
    place = f"milvus://127.0.0.1:{server.listen_port}/away"

    def leave(done):
        if done.seen == 20:
            server.stop()

    with monkeypatch.context() as patch:
        patch.setattr(milvus_collection, "TIMEOUT", 10.0)
        with pytest.raises(UserError, match=r"milvus://127.*/away: cannot be (read|changed): ") as caught:
            push(gallery, place, notify=leave)
        assert "\n" not in str(caught.value)
    server.start()  # on another port, over the same storage
    place = f"milvus://127.0.0.1:{server.listen_port}/away"
    new, changed, removed, unchanged = push(gallery, place)
    assert (new + unchanged, changed, removed) == (40, 0, 0) and unchanged >= 20
    same(place, gallery)
