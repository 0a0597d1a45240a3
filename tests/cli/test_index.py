"""``splip index ...`` and ``splip search`` with a real, tiny, untrained model."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import save_model
from drawing import draw
from PIL import Image

from splip import images
from splip.data import cache
from splip.evaluation.test_set import embed
from splip.gallery import sources
from splip.gallery.catalog import Filter
from splip.gallery.config import IndexAddConfig, SearchConfig
from splip.gallery.gallery import Gallery
from splip.images import formats
from splip.models import load_model
from splip.train import loop


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "tiny.pt", 0)


@pytest.fixture
def checkpoint(settings):
    return loop.train(settings)


@pytest.fixture
def gallery(model, tree, tmp_path, cli):
    folder = tmp_path / "gallery"
    code, out, err = cli("index", "add", tree / "photo", "--model", model, "--gallery", folder)
    assert code == 0, err
    assert "16 pictures (16 new)" in out and "pictures/s embedded; the encoder was busy" in out
    return folder


def test_without_a_model_and_without_a_gallery(tree, tmp_path, cli, monkeypatch):
    """The package's own model, and the gallery of those who have one; a line says what would be better."""
    monkeypatch.delenv("SPLIP_GALLERY", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    code, out, err = cli("index", "add", tree / "photo")
    assert code == 0, err
    assert "the package's own model" in err and "--model vit-b-32" in err and len(err.strip().splitlines()) == 1
    with Gallery.open(tmp_path / "data/splip/gallery") as opened:
        assert "splip-tiny-3" in opened.facts["model"] and len(opened) == 16
    code, out, err = cli("search", "--text", "a ball", "-k", "3", "--json")
    assert code == 0 and len(json.loads(out)["queries"][0]["matches"]) == 3, err
    code, out, err = cli("index", "list")
    assert code == 0 and out.count("photo") == 16
    assert "package's own model" not in cli("index", "add", tree / "photo")[2]  # it is made
    monkeypatch.setenv("SPLIP_GALLERY", "milvus://nowhere.invalid:1/photos")  # as it is: an address is no path
    assert SearchConfig().gallery == "milvus://nowhere.invalid:1/photos"
    assert IndexAddConfig(()).gallery == tmp_path / "data/splip/gallery"
    monkeypatch.setenv("SPLIP_GALLERY", str(tmp_path / "elsewhere"))
    code, out, err = cli("search", "--text", "a ball")
    assert code == 2 and f"{tmp_path}/elsewhere: not a gallery" in err


# ---- search ----


def test_search_equals_a_full_ranking(gallery, model, tree):
    sketch = tree / "sketch" / "cone" / "1.png"
    net = load_model(model)
    photos = cache.Pictures(images.find([tree / "photo"]), 64)
    features = embed(photos, net.encode_photo, torch.device("cpu"))
    query = embed(cache.Pictures([sketch], 64), net.encode_sketch, torch.device("cpu"))
    scores = dict(zip([p.absolute() for p in photos.paths], (query @ features.T)[0].tolist(), strict=True))
    with Gallery.open(gallery) as opened:
        matches = opened.search(sketches=[sketch], k=16)[0]
        assert opened.encoder.identity == opened.identity and "tiny.pt" in opened.model
    assert {m.path for m in matches} == set(scores)
    assert [m.score for m in matches] == sorted((m.score for m in matches), reverse=True)
    for match in matches:
        assert match.score == pytest.approx(scores[match.path], abs=1e-5)
        assert match.label == match.path.parent.name


def test_search_prints_and_draws(gallery, tmp_path, cli):
    draw(tmp_path / "my.png", 4, "black", 3, size=(90, 60))  # a drawing that no folder holds
    code, out, _ = cli(
        "search", "--gallery", gallery, "--sketch", tmp_path / "my.png", "-k", "5", "--grid", tmp_path / "o.png"
    )
    lines = out.splitlines()
    assert code == 0 and lines[0] == str(tmp_path / "my.png") and len(lines) == 6
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3", "4", "5"]
    assert all(line.split()[2].endswith(".jpg") for line in lines[1:])
    assert Image.open(tmp_path / "o.png").width > 500
    args = ("search", "--gallery", gallery, "--sketch", tmp_path / "my.png", tmp_path / "my.png", "--json")
    report = json.loads(cli(*args)[1])["queries"]
    assert len(report) == 2 and len(report[0]["matches"]) == 10 and report[0]["matches"][0]["rank"] == 1
    assert report[0] == report[1] and set(report[0]) == {"sketch", "cutoff", "unknown_words", "matches"}


def test_search_by_words_pictures_and_both(gallery, tree, tmp_path, cli):
    photo, sketch = tree / "photo" / "box" / "0.jpg", tree / "sketch" / "box" / "0.png"
    args = ("search", "--gallery", gallery, "--json", "-k", "3")
    report = json.loads(cli(*args, "--photo", photo)[1])["queries"]
    assert report[0]["matches"][0]["path"] == str(photo) and report[0]["matches"][0]["score"] > 0.9999
    words = json.loads(cli(*args, "--text", "a box", "a ball", "--grid", tmp_path / "w.png")[1])["queries"]
    assert [q["text"] for q in words] == ["a box", "a ball"] and (tmp_path / "w.png").stat().st_size > 1000
    both = json.loads(cli(*args, "--sketch", sketch, "--text", "a box", "--text-weight", "1")[1])["queries"]
    assert [m["id"] for m in both[0]["matches"]] == [m["id"] for m in words[0]["matches"]]
    assert set(both[0]) == {"sketch", "text", "cutoff", "unknown_words", "matches"}


def test_one_query_of_several_parts(gallery, tree, tmp_path, cli, refused):
    box, ball = (str(tree / "sketch" / name / "0.png") for name in ("box", "ball"))
    args = ("search", "--gallery", gallery, "-k", "16")
    first, second = (
        json.loads(cli(*args, "--json", *more)[1])["queries"] for more in (("--sketch", box), ("--sketch", ball))
    )
    scores = [{m["id"]: m["score"] for m in one[0]["matches"]} for one in (first, second)]
    report = json.loads(cli(*args, "--json", "--sketch", f"{box}:2", "--not-sketch", f"{ball}:0.5")[1])["queries"]
    assert report[0]["parts"] == [{"sketch": box, "weight": 2.0}, {"sketch": ball, "weight": -0.5}]
    got = {m["id"]: m["score"] for m in report[0]["matches"]}
    want = {id: 2 * scores[0][id] - 0.5 * scores[1][id] for id in got}
    ratio = np.array([got[id] for id in got]) / np.array([want[id] for id in got])
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)  # the length of the sum
    assert len(json.loads(cli(*args, "--json", "--sketch", box, ball, "--one")[1])["queries"]) == 1
    assert len(json.loads(cli(*args, "--json", "--sketch", box, ball)[1])["queries"]) == 2
    out = cli(*args, "--sketch", box, "--text", "red", "--not-text", "blue:2", "--grid", tmp_path / "g.png")[1]
    assert out.splitlines()[0] == f"{box} + red - 2 x blue" and (tmp_path / "g.png").stat().st_size > 1000
    assert "only things that are not looked for" in refused(*args, "--not-text", "blue")
    assert "cancel out" in refused(*args, "--text", "blue", "--not-text", "blue:1")


def test_search_filters(gallery, tree, cli):
    cli("index", "add", tree / "photo" / "box", "--gallery", gallery, "--tag", "shape=square", "--tag", "n=1")
    sketch = ("search", "--gallery", gallery, "--sketch", tree / "sketch" / "cone" / "1.png", "--json")

    def labels(*args):
        return {m["label"] for m in json.loads(cli(*sketch, *args)[1])["queries"][0]["matches"]}

    assert labels("--label", "box", "--label", "cone") == {"box", "cone"}
    assert labels("--tag", "shape=square") == labels("--under", tree / "photo" / "box") == {"box"}
    assert labels("--tag", "shape=square", "--tag", "n=2") == set()
    assert "no picture passes the filter" in cli(*sketch[:-1], "--tag", "shape=none")[1]


def test_bad_searches(gallery, tree, tmp_path, refused):
    sketch = tree / "sketch" / "cone" / "1.png"
    search = ("search", "--gallery", gallery)
    assert "-k must be at least 1, got 0" in refused(*search, "--sketch", sketch, "-k", "0")
    assert "--text-weight must be between 0 and 1" in refused(*search, "--sketch", sketch, "--text-weight", "-0.5")
    for kind in ("text", "not-text", "sketch"):
        assert f"--{kind} is empty" in refused(*search, "--sketch", sketch, f"--{kind}", " ")
    for wrong in (f"{sketch}:-0.5", "words:-1"):
        assert "a weight is above 0" in refused(*search, "--photo", wrong)
    assert "words are searched for as a text" in refused(*search, "--sketch", "horse")
    no = refused(*search, "--sketch", "horse.png")
    assert no == "splip: error: cannot read picture horse.png: no such file\n"
    assert "give --sketch, --photo or --text" in refused(*search)
    assert "--gallery is given twice" in refused(*search, "--sketch", sketch, f"--gallery={tmp_path}")
    assert "no such file" in refused(*search, "--sketch", tmp_path / "no.png")
    (tmp_path / "zero.png").touch()
    assert "zero.png: the file is empty" in refused(*search, "--sketch", tmp_path / "zero.png")
    Image.new("RGB", (30, 30), "white").save(tmp_path / "white.png")
    assert "nothing is drawn" in refused(*search, "--sketch", tmp_path / "white.png")
    assert "not a gallery" in refused("search", "--gallery", tmp_path, "--sketch", sketch)
    assert "KEY=VALUE, got 'year'" in refused(*search, "--sketch", sketch, "--tag", "year")
    assert "2 texts for 1 pictures" in refused(*search, "--sketch", sketch, "--text", "a", "b")
    assert "unknown engine abacus" in refused(*search, "--sketch", sketch, "--engine", "abacus")
    for grid, why in ((tmp_path / "o.unknown", "call it .png or .jpg"), (tmp_path, "it is a folder")):
        assert why in refused(*search, "--sketch", sketch, "--grid", grid)


# ---- add ----


def test_labels_come_from_folders(model, tree, tmp_path, cli):
    deep = tree / "photo" / "ball" / "red" / "x.png"
    draw(deep, 0, "red", 1)
    for how, label in (("folder", "red"), ("top", "ball"), ("none", None)):
        folder = tmp_path / how
        args = ("--gallery", folder, "--model", model, "--label-from", how)
        assert cli("index", "add", tree / "photo", *args)[0] == 0
        with Gallery.open(folder) as opened:
            assert opened.find(deep).label == label
            assert opened.find(tree / "photo" / "ball" / "0.jpg").label == (None if how == "none" else "ball")
    assert cli("index", "add", tree / "photo", "--gallery", folder, "--label", "thing")[0] == 0
    with Gallery.open(folder) as opened:
        assert opened.labels() == {"thing": 17}


def test_only_news_are_added(gallery, tree, tmp_path, cli):
    draw(tree / "photo" / "box" / "9.jpg", 5, "green", 3)
    (tree / "photo" / ".hidden").mkdir()
    draw(tree / "photo" / ".hidden" / "a.png", 1, "red", 3)
    draw(tree / "photo" / "box" / "._a.png", 1, "red", 3)
    code, out, _ = cli("index", "add", tree / "photo", "--gallery", gallery)
    assert code == 0 and "17 pictures (1 new, 16 unchanged)" in out
    code, out, _ = cli("index", "add", tree / "photo", "--gallery", gallery)
    assert code == 0 and out.strip() == f"{gallery}: 17 pictures (17 unchanged)"
    (tree / "photo" / "box" / "9.jpg").rename(tree / "photo" / "ball" / "9.jpg")
    assert "17 pictures (1 moved, 16 unchanged)" in cli("index", "add", tree / "photo", "--gallery", gallery)[1]


def test_lists(model, tree, tmp_path, cli, refused, monkeypatch):
    """Relative lines from the list's folder, which they must not leave; zero bytes as `find -print0` writes them."""
    (tmp_path / "list.txt").write_text(
        f"tree/photo/box/0.jpg\n\n{tree}/photo/box/1.jpg\n../../etc/passwd\ntree/../../x.png\nnowhere.png\ntree/photo/cone\n"
    )
    (tmp_path / "zero.txt").write_bytes(b"tree/photo/ball/0.jpg\0tree/photo/two\nlines.png\0")
    draw(tree / "photo" / "two\nlines.png", 3, "red", 1)
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("index", "add", "@list.txt", "--list", "zero.txt", "--gallery", "g", "--model", model)
    assert code == 0 and "6 pictures (6 new)" in out and "left out 3 unreadable pictures" in out, err
    skipped = Path("g/skipped.txt").read_text()
    assert (
        "../../etc/passwd\tleaves the folder of the list list.txt" in skipped and "tree/../../x.png\tleaves" in skipped
    )
    assert "nowhere.png\tno such file" in skipped
    with Gallery.open("g") as opened:
        assert opened.find(tree / "photo" / "two\nlines.png") and opened.labels()["cone"] == 2
    assert "cannot read the list no.txt" in refused("index", "add", "@no.txt", "--gallery", "g")


def test_unreadable_photos_are_listed(model, tree, tmp_path, cli):
    (tree / "photo" / "box" / "cut.jpg").write_bytes((tree / "photo" / "box" / "0.jpg").read_bytes()[:300])
    (tree / "photo" / "box" / "zero.png").touch()
    (tree / "photo" / "box" / os.fsdecode(b"bad\xe9.png")).touch()
    code, out, _ = cli("index", "add", tree / "photo", "--model", model, "--gallery", tmp_path / "g")
    assert code == 0 and "16 pictures" in out and "left out 3 unreadable pictures" in out
    skipped = (tmp_path / "g" / "skipped.txt").read_bytes()
    assert b"cut.jpg\t" in skipped and b"zero.png\tthe file is empty" in skipped and b"bad\xe9.png" in skipped


def test_bad_index_input(model, tree, tmp_path, refused):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    options = ("--model", model, "--gallery", tmp_path / "g")
    assert "no pictures in" in refused("index", "add", tmp_path / "empty", *options)
    assert "nowhere: no such folder" in refused("index", "add", tmp_path / "nowhere", *options)
    assert "--batch-size must be at least 1" in refused("index", "add", tree / "photo", *options, "--batch-size", "0")
    assert "threads must be at least 1" in refused(
        "index", "add", tree / "photo", *options[:3], tmp_path / "h", "--threads", "0"
    )
    for wrong in ("0", "-1", "nan"):
        assert "--memory-gb must be above 0" in refused("index", "add", tree / "photo", *options, "--memory-gb", wrong)
    assert "no folder of pictures given" in refused("index", "add", *options)
    assert "KEY=VALUE" in refused("index", "add", tree / "photo", *options, "--tag", "=x")
    assert "no.pt" in refused(
        "index", "add", tree / "photo", "--gallery", tmp_path / "g", "--model", tmp_path / "no.pt"
    )
    args = ("index", "add", tree / "photo", "--model", model, "--gallery", tmp_path / "full")
    assert "exists already; a new gallery needs a folder of its own" in refused(*args)
    unnamed = (*args[:3], "--gallery", tmp_path / "full")
    assert "exists already" in refused(*unnamed), "one line, and not what the model of the new gallery would be"
    assert not (tmp_path / "g").exists()
    assert "none of 1 picture can be read" in refused("index", "add", tmp_path / "bad", *options)


def test_another_model_is_refused(gallery, tree, tmp_path, refused, cli):
    other = save_model(tmp_path / "other.pt", 1)
    message = refused("index", "add", tree / "photo", "--gallery", gallery, "--model", other)
    assert "tiny.pt" in message and "other.pt" in message and "cannot be compared" in message
    assert "other.pt" in refused("search", "--gallery", gallery, "--text", "a", "--model", other)
    shutil.copy(gallery / "model.pt", tmp_path / "same.pt")
    (gallery / "model.pt").unlink()
    assert "is gone; name another place with --model" in refused("search", "--gallery", gallery, "--text", "a")
    assert cli("search", "--gallery", gallery, "--text", "a", "--model", tmp_path / "same.pt")[0] == 0


def test_an_earlier_version_is_told(tmp_path, tree, model, refused):
    (tmp_path / "gallery.json").write_text("{}")
    for args in (("search", "--text", "a"), ("index", "add", tree / "photo", "--model", model)):
        assert "of an earlier version; make it again: splip index add" in refused(*args, "--gallery", tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("twice", [False, True])
def test_interrupted_work_goes_on(model, tmp_path, cli, twice):
    noise = np.random.default_rng(0).integers(0, 256, (300, 24, 24, 3), dtype=np.uint8)
    for n, pixels in enumerate(noise):
        path = tmp_path / "many" / f"{n:04d}.bmp"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    args = [tmp_path / "many", "--gallery", tmp_path / "g"]
    command = [sys.executable, "-m", "splip", "index", "add", *args, "--model", model, "--batch-size", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "g" / "gallery.db").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    if twice:
        time.sleep(0.02)
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    if not twice:
        assert "stopping after this batch" in err and "the same command goes on" in out
    with Gallery.open(tmp_path / "g") as opened:
        before = len(opened)
        assert before < 300 and not opened.check().damage
    code, out, _ = cli("index", "add", *args)
    assert code == 0 and f"300 pictures ({300 - before} new" in out


def test_suffixes_follow_what_pillow_reads(tmp_path):
    assert {".png", ".jpg", ".webp", ".gif"} <= formats.suffixes()
    for name in ("b.PNG", "a.jpg", "c.txt", "sub/d.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [os.path.relpath(p, tmp_path) for p in sources.walk(str(tmp_path), [])] == ["a.jpg", "b.PNG", "sub/d.gif"]


# ---- remove, list, check, compact, export ----


def test_remove(gallery, tree, cli, refused):
    remove = ("index", "remove", "--gallery", gallery)
    code, out, _ = cli(*remove, tree / "photo" / "box", "--dry-run")
    assert code == 0 and f"{tree}/photo/box/0.jpg" in out and "2 pictures would be removed" in out
    assert "2 pictures removed, 14 left" in cli(*remove, tree / "photo" / "box")[1]
    assert "not in the gallery" in refused(*remove, tree / "photo" / "box")
    assert "nothing to remove" in refused(*remove)
    assert "1 picture removed, 13 left" in cli(*remove, tree / "photo" / "ball" / "0.jpg")[1]
    args = (tree / "photo" / "ball" / "1.jpg", tree / "photo" / "cone", "--label", "cone")
    assert "2 pictures removed, 11 left" in cli(*remove, *args)[1]
    (tree / "photo" / "pole" / "0.jpg").unlink()
    assert "1 picture removed, 10 left" in cli(*remove, "--missing")[1]
    assert "1 picture removed, 9 left" in cli(*remove, "--label", "pole")[1]
    assert (tree / "photo" / "box" / "0.jpg").exists()


def test_list(gallery, tree, cli):
    cli("index", "add", tree / "photo" / "box", "--gallery", gallery, "--tag", "a=b c")
    code, out, _ = cli("index", "list", "--gallery", gallery)
    assert code == 0 and len(out.splitlines()) == 16
    (line,) = [line for line in out.splitlines() if "box/0.jpg" in line and "red" not in line]
    assert line.split(maxsplit=4)[1:] == ["-", "box", f"{tree}/photo/box/0.jpg", "a=b c"]
    rows = json.loads(cli("index", "list", "--gallery", gallery, "--json", "--label", "box")[1])["items"]
    assert [row["tags"] for row in rows] == [{"a": "b c"}] * 2 and rows[0]["size"] > 0 and len(rows[0]["hash"]) == 32
    assert cli("index", "list", "--gallery", gallery, "--labels")[1].split()[:2] == ["2", "ball"]
    assert cli("index", "list", "--gallery", gallery, "--under", tree / "sketch")[1] == ""


def test_check_and_compact(gallery, tree, cli):
    code, out, _ = cli("index", "check", "--gallery", gallery)
    assert code == 0 and "in order; 16 pictures, 0 of their files are missing, 0 rows to compact, model tiny.pt" in out
    cli("index", "remove", tree / "photo" / "box", "--gallery", gallery)
    (tree / "photo" / "cone" / "0.jpg").unlink()
    code, out, _ = cli("index", "check", "--gallery", gallery)
    assert code == 0 and f"missing: {tree}/photo/cone/0.jpg" in out and "2 rows to compact" in out
    assert "14 vectors, 2 dropped" in cli("index", "compact", "--gallery", gallery)[1]
    (path,) = (gallery / "vectors").glob("*.f32")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    code, out, _ = cli("index", "check", "--gallery", gallery, "--json")
    report = json.loads(out)
    assert code == 1 and report["items"] == 14 and f"{path}: rows 0 to 13 do not match" in report["damage"][0]
    code, out, _ = cli("index", "check", "--gallery", gallery, "--no-pictures")
    assert code == 1 and "damaged" in out and "missing:" not in out


def test_export(gallery, tmp_path, cli, monkeypatch, refused):
    code, out, _ = cli("index", "export", "--gallery", gallery, "--out", tmp_path / "x", "--label", "box")
    assert code == 0 and "2 pictures, vectors.npy and items.csv" in out
    assert np.load(tmp_path / "x" / "vectors.npy").shape[0] == 2
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = refused("index", "export", "--gallery", gallery, "--out", tmp_path / "y", "--format", "parquet")
    assert "pip install 'splip[parquet]'" in message and not (tmp_path / "y").exists()


def test_a_gallery_needs_no_torch(gallery, tmp_path):
    """Listing, checking, packing and searching vectors on the CPU do not import it, and work where it is not installed."""
    code = (
        "import sys; blocked = sys.argv.pop() == 'blocked'\n"
        "from importlib.machinery import PathFinder\n"
        "class Without:\n"  # as if they were not installed
        "    gone = {'torch', 'open_clip', 'torchvision', 'timm'}\n"
        "    find_spec = staticmethod(lambda name, *a: None if name in Without.gone else PathFinder.find_spec(name, *a))\n"
        "if blocked: sys.meta_path = [Without if f is PathFinder else f for f in sys.meta_path]\n"
        "import numpy as np; from splip.gallery.gallery import Gallery; from splip.cli.main import main\n"
        "g = Gallery.open(sys.argv[1], write=True); g.compact()\n"
        "found = g.search_vectors(np.ones((2, g.dim), np.float32), 3)\n"
        "assert g.vector(found[0][0].id).shape == (g.dim,); g.close()\n"
        "codes = [main(['index', verb, '--gallery', sys.argv[1]]) for verb in ('list', 'check')] + [main(['info'])]\n"
        "assert blocked or 'torch' not in sys.modules and 'open_clip' not in sys.modules\n"
        "print(codes, [m.id for m in found[0]])"
    )
    copy = tmp_path / "copy"
    shutil.copytree(gallery, copy)
    runs = [
        subprocess.run([sys.executable, "-c", code, copy, how], capture_output=True, text=True)
        for how in ("there", "blocked")
    ]
    assert not any(run.returncode for run in runs), runs
    with Gallery.open(copy, device="cpu") as opened:
        want = [m.id for m in opened.search_vectors(np.ones((2, opened.dim), np.float32), 3)[0]]
    for run in runs:
        assert run.stdout.splitlines()[-1] == f"[0, 0, 0] {want}"


def test_a_gallery_given_twice_is_one(gallery, tree, cli):
    """Paths are compared as absolute ones, wherever the command is given."""
    out = cli("index", "add", tree / "sketch" / ".." / "photo", "--gallery", gallery)[1]
    assert "16 pictures (16 unchanged)" in out
    with Gallery.open(gallery) as opened:
        assert len(list(opened.items(Filter(under=tree / "sketch" / ".." / "photo")))) == 16


def test_eval_verb(checkpoint, settings, tmp_path, cli, refused, tree):
    report, grid = tmp_path / "r.json", tmp_path / "g.png"
    code, out, err = cli("eval", "--checkpoint", checkpoint, "--baselines", "--json", report, "--grid", grid)
    assert code == 0, err
    for row in ("chance", "raw pixels", "HOG", "plain splip-tiny", "SpLIP", "mAP@all"):
        assert row in out
    values = json.loads(report.read_text())
    assert values["queries"] == 6 and values["gallery"] == 4 and values["classes"] == ["box", "cone"]
    assert values["query_mean"]["raw pixels"]["mAP@all"] > values["query_mean"]["chance"]["mAP@all"]
    assert grid.stat().st_size > 1000
    # A tree whose unseen classes were trained on is not a zero-shot test.
    run = settings.out.parent / "other"
    loop.train(dataclasses.replace(settings, out=run, data=dataclasses.replace(settings.data, unseen=("box",))))
    copy = tmp_path / "copy"
    shutil.copytree(tree, copy)
    for folder in ("sketch", "photo"):
        shutil.rmtree(copy / folder / "box")
        (copy / folder / "ball").rename(copy / folder / "box")
    (copy / "dataset.json").write_text('{"classes": {"box": "ball"}}')
    args = ("eval", "--checkpoint", run / "best.safetensors", "--root", copy)
    assert "was trained on classes to be measured: ball" in refused(*args)
    (copy / "dataset.json").write_text('{"classes": {"box": "pole"}}')
    assert "was chosen by classes to be measured: pole" in refused(*args)
