"""Clients that programs make from the OpenAPI document: made here, and used against a running service."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import make_clients
import pytest
from drawing import draw
from serving import BOX, SHAPES, TOKEN, FakeGallery, running, sketch

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "fixtures" / "clients"
MODULES = ROOT / "build" / "npm" / "node_modules"  # as .ci/run makes it


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the pictures ``more/0.png`` and ``ball.png``."""
    folder = tmp_path_factory.mktemp("clients")
    draw(folder / "more" / "0.png", SHAPES.index("pole"), "black", 1, size=(64, 56))
    (folder / "ball.png").write_bytes(sketch("ball"))
    return folder


@pytest.fixture(scope="module")
def client(tmp_path_factory, place):
    gallery = FakeGallery(tmp_path_factory.mktemp("gallery"))
    with running(gallery, token=TOKEN, allow_root=(place,)) as client:
        (place / "openapi.json").write_text(client.get("/openapi.json").text)
        yield client


@pytest.fixture(scope="module")
def made(client, place):
    """The package that openapi-python-client makes, and all of its modules by their names."""
    pytest.importorskip("openapi_python_client", reason="openapi-python-client is not installed")
    said = make_clients.python(place / "openapi.json", place / "splip_generated")
    assert not said, said  # it leaves out what it does not understand, and says so
    sys.path.insert(0, str(place))
    try:
        yield lambda name: importlib.import_module(f"splip_generated.{name}")
    finally:
        sys.path.remove(str(place))
        for name in [name for name in sys.modules if name.split(".")[0] == "splip_generated"]:
            del sys.modules[name]


def test_python_has_a_function_for_every_operation(client, made, place):
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for operation in methods.values():
            module = made(f"api.{operation['tags'][0]}.{operation['operationId']}")
            assert callable(module.sync_detailed), path


def test_python_searches(client, made):
    models = made("models")
    with made("client").Client(base_url=client.address) as them:
        search, upload = made("api.search.search"), made("api.search.search_upload")
        query = models.Query.from_dict({**BOX, "k": 4})
        found = search.sync(client=them, body=query)
        assert [match.label for match in found.matches] == ["box"] * 4 and not found.partial
        assert found.timing_ms.to_dict()["total"] > 0
        found = search.sync(client=them, body=models.Query(text="cone", k=2, labels=["cone", "ball"]))
        assert [match.label for match in found.matches] == ["cone"] * 2
        with open(next(iter(client.service.gallery.items.values())).path, "rb") as file:
            sent = made("types").File(payload=file, file_name="a.jpg", mime_type="image/jpeg")
            # Values that a form writes in its own way: lists, an enumeration, numbers.
            kind = type(models.SearchUploadBody(image=sent).modality)("photo")
            body = models.SearchUploadBody(image=sent, modality=kind, k=3, label=["box", "ball"], tag=["colour=black"])
            answer = upload.sync_detailed(client=them, body=body)
        assert answer.status_code == 200, answer.content
        assert [match.label for match in answer.parsed.matches][:2] == ["ball"] * 2 and len(answer.parsed.matches) == 3
        assert all(match.tags.to_dict() == {"colour": "black"} for match in answer.parsed.matches)


def test_python_gets_pictures(client, made, place):
    with made("client").Client(base_url=client.address) as them:
        small = made("api.gallery.thumbnail").sync(id=3, client=them, size=128)
        assert small.payload.read(3) == b"\xff\xd8\xff"
        whole = made("api.gallery.image").sync(id=3, client=them)
        assert whole.payload.read() == client.service.gallery.item(3).path.read_bytes()
        gone = made("api.gallery.image").sync(id=10_000, client=them)
        assert (gone.error, gone.message) == ("not_found", "the gallery has no picture with this id")
        assert made("api.gallery.gallery").sync(client=them).max_k == 200
        assert made("api.vectors.embed").sync(client=them, body=made("models").Embed(input_="ball")).data[0].index == 0


def test_python_reads_what_is_nested(client, made):
    """Grids of numbers, and what this gallery cannot do."""
    models = made("models")
    with made("client").Client(base_url=client.address) as them:
        asked = models.Explain.from_dict({**BOX, "photo": 2})
        why = made("api.search.explain").sync(client=them, body=asked)
        assert isinstance(why, models.Why) and len(why.heat) == why.grid[0] and len(why.heat[0]) == why.grid[1]
        assert made("api.items.item").sync(client=them, id=2).name == "photo 0.jpg"
        for name in ("items.items", "gallery.timeline"):
            problem = made(f"api.{name}").sync(client=them, label=["box"], stack=False)
            assert isinstance(problem, models.Problem) and problem.error == "unsupported"


def test_python_adds_with_the_token(client, made, place):
    models = made("models")
    body = models.Add(paths=[str(place / "more")], label="pole")
    add = made("api.items.add")
    with made("client").Client(base_url=client.address) as nobody:
        refused = add.sync(client=nobody, body=body)
        assert isinstance(refused, models.Problem) and refused.error == "token"
    with made("client").AuthenticatedClient(base_url=client.address, token=TOKEN) as them:
        done = add.sync(client=them, body=body)
        assert (done.new, done.count) == (1, 25)
        answer = made("api.items.remove").sync_detailed(id=25, client=them)
        assert answer.status_code == 204


def test_python_reads_errors_as_problems(client, made):
    models = made("models")
    with made("client").Client(base_url=client.address) as them:
        answer = made("api.search.search").sync_detailed(client=them, body=models.Query(text="cone", k=100_000))
        assert isinstance(answer.parsed, models.Problem) and answer.status_code == 422
        assert (answer.parsed.error, answer.parsed.message) == ("invalid", "k: at most 200, got 100000")


def test_typescript(client, place):
    """The types are right for a program that uses them, and what it does comes back as they say."""
    node = shutil.which("node")
    if node is None or not (MODULES / "typescript").is_dir():
        pytest.skip("needs node, and: npm install --prefix build/npm of tests/fixtures/npm/package.json")
    shutil.copytree(PROGRAM, place / "typescript")
    shutil.copy(PROGRAM.parent / "npm" / "package.json", place / "typescript")  # which says that it is a module
    (place / "typescript" / "node_modules").symlink_to(MODULES)
    make_clients.typescript(place / "openapi.json", place / "typescript" / "api.d.ts", MODULES)
    compiler = [
        node,
        MODULES / "typescript" / "bin" / "tsc",
        "--strict",
        "--noUncheckedIndexedAccess",
        "--skipLibCheck",
    ]
    compiler += ["--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom", "search.ts"]
    done = subprocess.run(compiler, cwd=place / "typescript", capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    program = [node, "search.js", client.address, TOKEN, place / "ball.png", place / "more"]
    done = subprocess.run(program, cwd=place / "typescript", capture_output=True, text=True, timeout=60)
    assert not done.returncode, done.stderr
    said = json.loads(done.stdout)
    assert said["drawn"] == ["box"] * 4 and said["said"] == ["cone"] * 4 and said["sent"] == ["ball"] * 4
    assert said["small"] == [0xFF, 0xD8, 0xFF] and said["added"] == 1
    assert said["refused"] == [422, "invalid", "k: at most 200, got 100000"]
