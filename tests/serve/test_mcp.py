"""The tools for assistants, asked by the SDK's own client: over stdio as a host starts them, and in this process."""

import asyncio
import base64
import io
import shutil
import subprocess
import sys

import gallery_faults as faults
import pytest
from drawing import draw
from PIL import Image
from serving import BOX, BOX_SVG, TOKEN, FakeGallery, real_gallery, running, sketch

from splip.client import Client as Service
from splip.gallery import Filter, Gallery, Part
from splip.serve import tools

mcp = pytest.importorskip("mcp", reason="mcp is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return real_gallery(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def local(folder):
    with Gallery.open(folder / "gallery") as gallery:
        backend = tools.Local(gallery)
        yield backend
        backend.renderer.close()


def call(backend, name, **arguments):
    """What a tool answers."""

    async def ask():
        async with mcp.Client(tools.server(backend)) as client:
            return await client.call_tool(name, arguments)

    return asyncio.run(ask())


def matches(answer):
    assert not answer.is_error, answer.content
    return answer.structured_content["matches"]


def refused(answer):
    assert answer.is_error and len(answer.content) == 1
    return answer.content[0].text.partition(": ")[2]  # behind "Error executing tool search"


def b64(data):
    return base64.b64encode(data).decode()


# ---- a gallery of this machine ----


@pytest.mark.exhaustive
def test_an_assistant_starts_it_and_searches(folder):
    """As hosts do: a command, and messages over its stdin and stdout."""
    command = mcp.StdioServerParameters(
        command=sys.executable, args=["-m", "splip", "mcp", "--gallery", str(folder / "gallery")]
    )

    async def ask():
        async with mcp.Client(command) as client:
            found = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(found) == {"search", "fetch", "gallery"}
            assert all(tool.annotations.read_only_hint and tool.description for tool in found.values())
            assert {"text", "sketch", "photo", "svg", "strokes", "like", "labels", "k"} <= set(
                found["search"].input_schema["properties"]
            )
            about = await client.call_tool("gallery", {})
            assert about.structured_content["facts"]["count"] == 18
            answer = await client.call_tool("search", {"photo": str(folder / "photos" / "3.png"), "k": 5, "show": 2})
            assert matches(answer)[0]["name"] == "3.png" and matches(answer)[0]["score"] > 0.999
            assert [part.type for part in answer.content] == ["text", "image", "image"]
            assert answer.structured_content["shown"] == [match["id"] for match in matches(answer)[:2]]
            picture = await client.call_tool("fetch", {"id": matches(answer)[0]["id"], "size": 128})
            facts, image = picture.content
            told = picture.structured_content["facts"]
            assert told["tags"] == {"third": "0"} and "3.png" in facts.text and told["width"] == 64
            assert image.mime_type == "image/jpeg"
            with Image.open(io.BytesIO(base64.b64decode(image.data))) as shown:
                assert shown.size == (64, 64)
            wrong = await client.call_tool("fetch", {"id": 999})
            assert refused(wrong) == "id: the gallery has no picture 999"

    asyncio.run(asyncio.wait_for(ask(), 300))


def test_a_search_is_the_one_of_the_gallery(local, folder):
    file = folder / "photos" / "7.png"
    gallery = local.gallery

    def ids(**arguments):
        return [match["id"] for match in matches(call(local, "search", show=0, **arguments))]

    def best(*parts, filter=None, k=6):
        return [m.id for m in gallery.search_vectors(gallery.compose(parts), k, filter)[0]]

    assert ids(sketch=str(file), k=6) == best(Part("sketch", file)) == ids(sketch=b64(file.read_bytes()), k=6)
    assert ids(photo="data:image/png;base64," + b64(file.read_bytes()), k=6) == best(Part("photo", file))
    assert ids(text="a ball", k=6) == best(Part("text", "a ball"))
    assert ids(id=4, k=1) == [4]
    mixed = gallery.search([file], texts=["a ball"], text_weight=0.2, k=6)[0]
    assert ids(sketch=str(file), text="a ball", text_weight=0.2, k=6) == [m.id for m in mixed]
    parts = (Part("sketch", file), Part("text", "snow", -0.4), Part("item", 2, 0.7))
    like = [{"text": "snow", "weight": -0.4}, {"id": 2, "weight": 0.7}]
    assert ids(sketch=str(file), like=like, k=6) == best(*parts)
    third = Filter(labels=("ball", "box"), tags={"third": "1"})
    assert ids(text="a ball", labels=["ball", "box"], tags={"third": "1"}) == best(
        Part("text", "a ball"), filter=third, k=10
    )


def test_drawings_that_an_assistant_makes(local):
    drawn = call(local, "search", strokes=BOX["strokes"], k=3, show=0)
    written = call(local, "search", svg=BOX_SVG, k=3, show=0)
    sent = call(local, "search", sketch=b64(BOX_SVG.encode()), k=3, show=0)
    assert len(matches(drawn)) == 3 and matches(written) == matches(sent)
    scores = [match["score"] for match in matches(written)]
    assert scores == sorted(scores, reverse=True)


def test_a_drawing_is_one_in_a_file_too(local, tmp_path):
    path = tmp_path / "drawn.svg"
    path.write_text(BOX_SVG)
    sent = call(local, "search", svg=BOX_SVG, k=3, show=0)
    assert matches(call(local, "search", sketch=str(path), k=3, show=0)) == matches(sent)


def test_fetch_tells_of_copies(tmp_path):
    (tmp_path / "model").write_bytes(faults.MODEL)
    draw(tmp_path / "0.png", 0, "black", 1, size=(64, 56))
    shutil.copy(tmp_path / "0.png", tmp_path / "1.png")
    with Gallery.create(tmp_path / "gallery", tmp_path / "model", encoder=faults.PixelEncoder()) as gallery:
        gallery.add([tmp_path / "0.png", tmp_path / "1.png"])
        backend = tools.Local(gallery)
        assert call(backend, "fetch", id=1).structured_content["facts"]["copies"] == [2]
        backend.renderer.close()


def test_an_assistant_is_told_of_the_most_frequent_labels(tmp_path):
    many = {f"label {n}": 1 + n % 7 for n in range(1000)}

    class Labelled(FakeGallery):
        model = "fake"

        def labels(self):
            return many

    gallery = Labelled(tmp_path)
    backend = tools.Local(gallery)
    here = call(backend, "gallery").structured_content["facts"]
    backend.renderer.close()
    assert len(here["labels"]) == 200 and here["more_labels"] == 800
    assert min(here["labels"].values()) >= max(many[label] for label in set(many) - set(here["labels"]))
    with running(gallery) as service, Service(service.address) as client:
        there = call(tools.Remote(client), "gallery").structured_content["facts"]
    assert (there["labels"], there["more_labels"]) == (here["labels"], 800)


def test_filters_are_those_of_the_service(local):
    assert matches(call(local, "search", text="a ball", min_side=65, show=0)) == []
    assert len(matches(call(local, "search", text="a ball", min_side=64, k=30, show=0))) == 18
    assert matches(call(local, "search", text="a ball", taken_from="1900", show=0)) == []  # none says when it was taken
    named = matches(call(local, "search", text="a ball", labels=["BALL"], show=0))
    assert {match["label"] for match in named} == {"ball"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "a", "taken_from": "yesterday"}, "taken_from"),
        ({"text": "a", "labels": ["bal"]}, "no picture has the label 'bal'; did you mean 'ball'?"),
        ({}, "an empty query: give a drawing, a photo, an id or a text"),
        ({"sketch": "horse"}, "sketch: no such file on this machine, nor a picture as base64; words are text"),
        ({"sketch": "~nosuchuser/cat.png"}, "sketch: no such file on this machine"),
        ({"sketch": "x" * 3000}, "cannot read picture upload: not a picture, damaged, or a format that is not taken"),
        ({"photo": "/etc/passwd"}, "cannot read picture /etc/passwd: "),
        ({"svg": "<svg", "strokes": []}, "one drawing or picture a search; give more of them as like"),
        ({"strokes": []}, "the drawing has no strokes"),
        ({"text": "a", "text_weight": 2}, "text_weight: Input should be less than or equal to 1"),
        ({"like": [{"text": "snow", "weight": -1}]}, "only things that are not looked for"),
        ({"id": 12345}, "id: the gallery has no picture 12345"),
        ({"text": "a", "k": 1000}, "less than or equal to 100"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(local, arguments, message):
    said = refused(call(local, "search", **arguments))
    assert message in said and "Traceback" not in said


# ---- a running service ----


def test_a_service_is_asked_in_place_of_a_gallery(tmp_path):
    photo = Image.new("RGB", (3000, 2400), "white")
    photo.paste(0, (300, 300, 2700, 2100))
    photo.save(tmp_path / "large.tiff")  # which no service takes as it is
    with running(FakeGallery(tmp_path), token=TOKEN, protect="all") as service:
        with Service(service.address, token=TOKEN) as client:
            backend = tools.Remote(client)
            for given in ({"sketch": b64(sketch("cone"))}, {"text": "cone"}):
                answer = call(backend, "search", k=4, show=1, **given)
                assert [match["label"] for match in matches(answer)] == ["cone"] * 4 and len(answer.content) == 2
            assert [m["label"] for m in matches(call(backend, "search", strokes=BOX["strokes"], k=2))] == ["box"] * 2
            assert len(matches(call(backend, "search", photo=str(tmp_path / "large.tiff"), k=2))) == 2
            blue = call(
                backend, "search", text="cone", tags={"colour": "blue"}, like=[{"text": "ball", "weight": -0.5}]
            )
            assert {match["tags"]["colour"] for match in matches(blue)} == {"blue"}
            service.service.gallery.item(matches(blue)[0]["id"]).path.unlink()
            again = call(
                backend, "search", text="cone", tags={"colour": "blue"}, like=[{"text": "ball", "weight": -0.5}]
            )
            ids = [match["id"] for match in matches(again)]  # one is told and not shown
            assert ids[0] == matches(blue)[0]["id"] and again.structured_content["shown"] == ids[1:5]
            assert call(backend, "gallery").structured_content["facts"]["text"] is True
            assert refused(call(backend, "search", id=999)) == "the gallery has no picture with this id"
        with Service(service.address) as client:
            assert "Authorization" in refused(call(tools.Remote(client), "search", text="cone"))


# ---- the command ----


@pytest.mark.parametrize(
    "args", [["--gallery", "nowhere"], ["--url", "localhost:8000"], ["--gallery", "nowhere", "--token-file", "token"]]
)
def test_the_command_refuses_in_a_line(args, tmp_path):
    command = [sys.executable, "-m", "splip", "mcp", *args]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("splip: error: ") and done.stderr.count("\n") == 1
    assert ("--token-file is for the service of --url" in done.stderr) == ("--token-file" in args)


@pytest.mark.parametrize("missing", ["mcp", "pydantic"])
def test_without_the_extra_a_line_says_so(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from splip.cli.main import main; sys.exit(main(['mcp', '--gallery', 'g']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"splip: error: splip mcp needs {missing}: pip install 'splip[mcp]'\n")


def test_an_earlier_mcp_is_named_in_a_line():
    code = (
        "import sys, types, importlib.metadata as m; sys.modules['mcp'] = types.ModuleType('mcp'); m.version = lambda _: '1.9.4'\n"
        "sys.modules['mcp.server'] = types.ModuleType('mcp.server')\n"
        "from splip.cli.main import main; sys.exit(main(['mcp', '--gallery', 'g']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = "splip: error: splip mcp needs mcp 2 or later, here is 1.9.4: pip install 'splip[mcp]'\n"
    assert (done.returncode, done.stderr) == (2, said)
