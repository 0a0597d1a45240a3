"""Pictures in tar files: found, indexed, read and shown like files, and never outside of their tar file."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from drawing import draw
from PIL import Image

from splip import images
from splip.errors import UnreadablePicture
from splip.gallery.catalog import Filter
from splip.gallery.gallery import Gallery
from splip.images import archive
from splip.serve.thumbnails import File


def pack(path, files, **options):
    """A tar file of names and bytes."""
    with tarfile.open(path, "w", **options) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def png(tmp_path, kind, seed=0):
    draw(tmp_path / "one.png", kind, "blue", seed)
    return (tmp_path / "one.png").read_bytes()


@pytest.fixture
def shard(tmp_path):
    """As WebDataset writes them: a picture and what belongs to it, one after the other; some in folders."""
    files = {}
    for n in range(4):
        files[f"{n:04d}.png"] = png(tmp_path, n, n)
        files[f"{n:04d}.json"] = b"{}"
    files["./red/0.png"] = png(tmp_path, 4)
    files["red/deep/1.png"] = png(tmp_path, 5)
    return pack(tmp_path / "shard-000.tar", files)


def test_members_are_read_as_files_are(shard, tmp_path):
    names = archive.members(shard)
    assert names[:3] == ["0000.png", "0000.json", "0001.png"] and "red/0.png" in names
    path = shard / "red" / "deep" / "1.png"
    assert archive.split(path) == (str(shard), "red/deep/1.png") and archive.split(shard) is None
    assert archive.read(path) == png(tmp_path, 5) and archive.exists(path)
    assert archive.facts(path) == (len(png(tmp_path, 5)), os.stat(shard).st_mtime_ns)
    assert np.array_equal(np.asarray(images.read(path)), np.asarray(Image.open(tmp_path / "one.png").convert("RGB")))
    with pytest.raises(UnreadablePicture, match="no such file"):
        images.read(shard / "none.png")
    assert not archive.exists(shard / "none.png") and archive.exists(tmp_path / "one.png")
    plain = tmp_path / "named.tar" / "one.png"  # a folder may have such a name
    draw(plain, 0, "red", 0)
    assert archive.split(plain) is None and archive.read(plain) == plain.read_bytes()


def test_a_tar_file_that_changes_is_read_anew(shard, tmp_path):
    before = archive.read(shard / "0000.png")
    pack(shard, {"filler.txt": b"x" * 700, "0000.png": png(tmp_path, 5)})
    os.utime(shard, ns=(1, 1))
    assert archive.read(shard / "0000.png") == png(tmp_path, 5) != before
    assert archive.members(shard) == ["filler.txt", "0000.png"]


def test_names_that_lead_out_are_left_out(tmp_path):
    (tmp_path / "secret.png").write_bytes(png(tmp_path, 0))
    names = ["../secret.png", "a/../../secret.png", "/absolute.png", ".", "fine.png"]
    shard = pack(tmp_path / "bad.tar", dict.fromkeys(names, b"x"))
    with tarfile.open(shard, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../secret.png"
        tar.addfile(link)
    assert archive.members(shard) == ["absolute.png", "fine.png"]
    assert not archive.exists(shard / ".." / "secret.png")
    with pytest.raises(FileNotFoundError):
        archive.read(shard / ".." / "secret.png")


@pytest.mark.parametrize("damage", ["cut", "noise", "compressed", "empty"])
def test_damaged_tar_files(shard, tmp_path, damage):
    data = shard.read_bytes()
    if damage == "cut":
        with tarfile.open(shard) as tar:
            offset = tar.getmember("red/deep/1.png").offset_data
        shard.write_bytes(data[: offset + 20])
        with pytest.raises(UnreadablePicture, match="not an uncompressed tar file|the tar file ends within it"):
            images.read(shard / "red/deep/1.png")
    elif damage == "empty":
        shard.write_bytes(b"")
        with pytest.raises(UnreadablePicture, match="not an uncompressed tar file"):
            archive.members(shard)
    else:
        pack(shard, {"a.png": b"x"}, **{"format": tarfile.PAX_FORMAT})
        shard.write_bytes(b"\x1f\x8b" + bytes(700) if damage == "compressed" else os.urandom(2000))
        with pytest.raises(UnreadablePicture, match="not an uncompressed tar file"):
            archive.members(shard)
        assert not archive.exists(shard / "a.png")


def test_a_gallery_of_a_tar_file(shard, tmp_path, cli, refused):
    from checkpoints import save_model

    model = save_model(tmp_path / "tiny.pt", 0)
    folder = tmp_path / "gallery"
    code, out, err = cli("index", "add", shard, "--model", model, "--gallery", folder)
    assert code == 0 and "6 pictures (6 new)" in out, err
    assert "6 unchanged" in cli("index", "add", shard, "--gallery", folder)[1]
    with Gallery.open(folder) as gallery:
        labels = {str(item.path.relative_to(shard)): item.label for item in gallery.items()}
        assert labels == {f"{n:04d}.png": None for n in range(4)} | {"red/0.png": "red", "red/deep/1.png": "deep"}
        assert len(list(gallery.items(Filter(under=shard / "red")))) == 2
        item = gallery.find(shard / "0002.png")
        with File(item.path).stream as stream:
            assert stream.read() == png(tmp_path, 2, 2)
    code, out, _ = cli("search", "--gallery", folder, "--photo", shard / "0001.png", "--grid", tmp_path / "grid.png")
    assert code == 0 and str(shard / "0001.png") in out.splitlines()[1] and (tmp_path / "grid.png").exists()
    assert "0 of their files are missing" in cli("index", "check", "--gallery", folder)[1]
    assert "0 pictures removed" in cli("index", "remove", "--gallery", folder, "--missing")[1]
    (tmp_path / "broken.tar").write_bytes(os.urandom(2000))
    code, out, _ = cli("index", "add", tmp_path / "broken.tar", shard, "--gallery", folder)
    assert code == 0 and "6 unchanged" in out and "left out 1 unreadable picture" in out
    assert "broken.tar" in (folder / "skipped.txt").read_text()
    shard.unlink()
    assert "6 pictures removed" in cli("index", "remove", "--gallery", folder, "--missing")[1]


def test_a_checkpoint_that_claims_more_than_it_holds(tmp_path, monkeypatch, refused):
    """Unpacking gigabytes of zeros takes long before it fails: its list of members tells at once."""
    torch.save({"format": 0, "zeros": torch.zeros(1000)}, tmp_path / "good.pt")
    archive.check_zip(tmp_path / "good.pt")
    (tmp_path / "none.pt").write_bytes(b"PK\3\4 no zip")
    archive.check_zip(tmp_path / "none.pt")
    with (
        zipfile.ZipFile(tmp_path / "good.pt") as good,
        zipfile.ZipFile(tmp_path / "bad.pt", "w", zipfile.ZIP_DEFLATED) as bad,
    ):
        for name in good.namelist():
            bad.writestr(name, good.read(name))
        bad.writestr("archive/data/1", bytes(30_000_000))
    monkeypatch.setattr(torch, "load", None)
    draw(tmp_path / "a.png", 1, "blue", 0)
    message = refused("index", "add", tmp_path, "--model", tmp_path / "bad.pt", "--gallery", tmp_path / "g")
    assert "bad.pt: claims 300" in message and "made to harm" in message
