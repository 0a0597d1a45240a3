"""What the command line and the service find in a folder: the same, and nothing vanishes without a line."""

import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from drawing import draw
from serving import FakeGallery, running

from splip.gallery import sources
from splip.images import formats

BEARER = {"Authorization": "Bearer a-token-for-the-tests-only"}


def found(*places):
    skipped = []
    paths = [path for path, _ in sources.find(places, skipped)]
    return paths, skipped


@pytest.fixture
def folder(tmp_path):
    """Pictures of every ending, hidden ones, links, and a tar file beside."""
    folder = tmp_path / "photos"
    for name in ("b.PNG", "a.jpg", "sub/d.gif", "sub/.hidden.png", ".hidden/e.png", "c.txt", "z/z.webp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            (folder / name).touch()
        else:
            draw(folder / name, 1, "blue", 0)
    for name in (".avif", ".heic"):
        if name in formats.suffixes():
            draw(folder / f"new{name}", 1, "blue", 0)
    draw(tmp_path / "elsewhere/secret.png", 2, "red", 0)
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    (folder / "round").symlink_to(folder)
    (folder / "link.png").symlink_to(folder / "b.PNG")
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/more.tar", "w") as tar:
        tar.add(folder / "a.jpg", "inside/t.jpg")
    return folder


def test_what_is_found(folder, tmp_path):
    paths, skipped = found(folder, tmp_path / "tars/more.tar", tmp_path / "any.name")
    names = [os.path.relpath(path, tmp_path) for path in paths]
    more = [f"photos/new{s}" for s in (".avif", ".heic") if s in formats.suffixes()]
    assert names == [
        "photos/a.jpg",
        "photos/b.PNG",
        "photos/link.png",
        *more,
        "photos/sub/d.gif",
        "photos/z/z.webp",
        "tars/more.tar/inside/t.jpg",
        "any.name",
    ]
    reason = "a link to a folder, which is not followed"
    assert [(os.path.basename(s.path), s.reason) for s in skipped] == [("out", reason), ("round", reason)]


def test_folders_that_cannot_be_read_are_listed():
    with tempfile.TemporaryDirectory() as place:
        closed, after = Path(place) / "closed", Path(place) / "open/a.png"
        closed.mkdir()
        draw(after, 1, "blue", 0)
        for path, mode in ((Path(place), 0o755), (closed, 0), (after.parent, 0o755)):
            path.chmod(mode)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            paths, skipped = found(place)
        finally:
            if root:
                os.seteuid(0)
            closed.chmod(0o755)
        assert paths == [str(after)]
        assert [(s.path, s.reason) for s in skipped] == [(str(closed), "Permission denied")]


def test_paths_beyond_the_limit_are_listed(tmp_path):
    """Folders in folders until their path is longer than a system call takes; and far more than Python recurses."""
    at = os.open(tmp_path, os.O_RDONLY)
    draw(tmp_path / "a.png", 1, "blue", 0)
    depth = (4096 - len(str(tmp_path))) // 2 + 5
    for _ in range(depth):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    paths, skipped = found(tmp_path)
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # too deep for what clears up after tests
    assert paths == [str(tmp_path / "a.png")]
    assert [s.reason for s in skipped] == ["File name too long"] and skipped[0].path.endswith("/d/d/d")


def test_the_service_finds_the_same(folder, tmp_path):
    (folder / "away.png").symlink_to(tmp_path / "elsewhere/secret.png")
    gallery = FakeGallery(tmp_path / "gallery")
    before, more = len(gallery), []
    gallery.add = lambda paths, add=gallery.add, **kwargs: (more.extend(map(str, paths)), add(paths, **kwargs))[1]
    with running(gallery, token="a-token-for-the-tests-only", allow_root=(folder, tmp_path / "tars")) as client:
        body = {"paths": [str(folder), str(tmp_path / "tars/more.tar")]}
        answer = client.post("/v1/items", json=body, headers=BEARER)
        assert answer.status_code == 200, answer.text
        away = {str(folder / "away.png")}
        want = [os.path.realpath(p) if "more.tar" not in p else p for p in found(*body["paths"])[0] if p not in away]
        assert more == want and len(want) >= 6
        # Two links to folders, and one that leads out.
        assert answer.json()["unreadable"] == 3 and answer.json()["count"] == before + len(want)
        assert not any("secret" in path for path in more)


def test_the_command_line_lists_them(folder, tmp_path, cli, tiny):
    os.rename(folder / "sub", folder / "two\nforged.png\tno such file")
    (folder / "two\nforged.png\tno such file/x.png").write_bytes(b"nothing")
    code, out, err = cli("index", "add", folder, "--model", tiny, "--gallery", tmp_path / "g")
    assert code == 0 and "left out 3 unreadable pictures or folders, listed in" in out, err
    lines = (tmp_path / "g/skipped.txt").read_text().splitlines()
    assert len(lines) == 3 and sum("a link to a folder, which is not followed" in line for line in lines) == 2
    assert any(r"two\nforged.png\tno such file/x.png" in line for line in lines)


@pytest.fixture
def tiny(tmp_path):
    import torch

    from splip.models import build
    from splip.models.config import BackboneConfig, TrainConfig

    torch.save(
        build(TrainConfig(backbone=BackboneConfig(name="splip-tiny")), ["a", "b"]).checkpoint(), tmp_path / "t.pt"
    )
    return tmp_path / "t.pt"
