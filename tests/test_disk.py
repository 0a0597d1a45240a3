"""What is written is whole or not there, and is on the disk before it has its name."""

import contextlib
import dataclasses
import errno
import os
import stat
from types import SimpleNamespace

import gallery_faults
import pytest

from splip import config, disk
from splip.encoders import base, manifest, tensorrt_runtime
from splip.errors import UserError
from splip.export import card, command
from splip.gallery.catalog import Catalog
from splip.gallery.gallery import Gallery
from splip.models import build
from splip.models.checkpoint import read_checkpoint, write_checkpoint
from splip.train import log, loop, pretrain


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the disk, in order: (what, name of the file or folder)."""
    made = []
    fsync, replace = os.fsync, os.replace

    def named(handle):
        return os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))

    def record_fsync(handle):
        kind = "fsync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "fsync"
        made.append((kind, named(handle), os.fstat(handle).st_size))
        fsync(handle)

    def record_replace(source, target):
        made.append(("replace", os.path.basename(source), os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    return made


def test_bytes_then_name_then_folder(tmp_path, calls):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with disk.replacing(path) as file:
        file.write(b"12345")
        assert path.read_text() == "before"
    assert path.read_bytes() == b"12345"
    assert [c[:2] for c in calls] == [
        ("fsync", "a.txt.part"), ("replace", "a.txt.part"), ("fsync folder", tmp_path.name),
    ]  # fmt: skip
    assert calls[0][2] == 5  # nothing waits in a buffer
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt(), RuntimeError("half")])
def test_an_error_leaves_the_file_of_before(tmp_path, calls, error):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(type(error)), disk.replacing(path) as file:
        file.write(b"half")
        raise error
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["a.txt"] and not calls


def test_links_and_devices(tmp_path):
    """What a link names is replaced, not the link; a device is written as it stands."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "a.txt")
    disk.write_text(tmp_path / "link.txt", "x")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real" / "a.txt").read_text() == "x"
    disk.write_text(tmp_path / "link.txt", "y")
    assert (tmp_path / "real" / "a.txt").read_text() == "y"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    disk.write_text(tmp_path / "pipe", "z")
    assert os.read(reader, 9) == b"z" and stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    os.close(reader)


CHECKPOINTS = ["last.safetensors", "best.safetensors"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(settings, tmp_path, monkeypatch):
    """Half of it is written, as on a full disk."""
    model = build(dataclasses.replace(settings, method="clip-ln"), ["dog", "cat"])
    real, size = disk.replacing, 5000

    @contextlib.contextmanager
    def small(path, *args, **options):
        with real(path, *args, **options) as file:
            write, left = file.write, [size]

            def some(data):
                left[0] -= len(data)
                if left[0] < 0:
                    write(bytes(data)[: left[0]])
                    raise OSError(errno.ENOSPC, "No space left on device")
                return write(data)

            yield SimpleNamespace(write=some, flush=file.flush, fileno=file.fileno)

    for name in CHECKPOINTS:
        write_checkpoint({**model.checkpoint(), "step": 2}, tmp_path / name)
        with monkeypatch.context() as patch:
            patch.setattr(disk, "replacing", small)
            with pytest.raises(UserError, match=f"cannot write .*{name}: .*No space left"):
                write_checkpoint({**model.checkpoint(), "step": 99}, tmp_path / name)
        assert read_checkpoint(tmp_path / name)["step"] == 2
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == sorted(CHECKPOINTS)


def test_every_file_of_a_run_is_synced_before_it_has_its_name(settings, calls):
    loop.train(dataclasses.replace(settings, steps=2))
    for name in (*CHECKPOINTS, "config.yaml"):
        ours = [c for c in calls if c[1] == f"{name}.part"]
        assert [c[0] for c in ours] == ["fsync", "replace"], name
        after = calls[calls.index(ours[1]) + 1]
        assert after[:2] == ("fsync folder", settings.out.name), name
        assert ours[0][2] == (settings.out / name).stat().st_size, name
    # The best first: a stop between the two repeats a step, and never forgets the best.
    names = [c[1] for c in calls if c[0] == "replace"]
    assert names.index("best.safetensors.part") < names.index("last.safetensors.part")
    calls.clear()
    log.trim(settings.out / "log.csv", 1, log.columns(settings.loss))
    assert [c[0] for c in calls] == ["fsync", "replace", "fsync folder"]
    assert (settings.out / "log.csv").read_text().count("\n") == 2


def test_settings_manifests_and_weights(settings, tmp_path, calls):
    def steps(make, name):
        calls.clear()
        make()
        assert [c[:2] for c in calls] == [
            ("fsync", f"{name}.part"), ("replace", f"{name}.part"), ("fsync folder", tmp_path.name),
        ], name  # fmt: skip

    steps(lambda: config.save(settings, tmp_path / "c.yaml"), "c.yaml")
    model = build(dataclasses.replace(settings, method="zero-shot"), ["dog"]).eval()
    write_checkpoint(model.checkpoint(), tmp_path / "best.safetensors")
    about = base.describe(tmp_path / "best.safetensors", model)
    steps(lambda: about.save(tmp_path), manifest.FILE)
    about.verification = {"pictures": "sample", "sketches": 1, "photos": 1}
    steps(lambda: card.write(tmp_path, about, "best.safetensors"), "README.md")
    sidecar = tensorrt_runtime.Metadata("tensorrt", "10", [], "none", False, [1, 1, 1], "", "")
    steps(lambda: sidecar.save(tmp_path / "photo.engine"), "photo.engine.json")
    steps(lambda: pretrain.save_weights(model.backbone, tmp_path / "w.safetensors"), "w.safetensors")


def test_an_export_is_on_the_disk_before_it_has_its_name(tmp_path, calls):
    made, out = tmp_path / "made", tmp_path / "out"
    (made / "more").mkdir(parents=True)
    for name in ("photo.onnx", "more/photo.bin"):
        (made / name).write_bytes(b"x")
    assert command._move(made, tmp_path / "old", out, []) == out
    assert sorted(c[:2] for c in calls[:4]) == [
        ("fsync", "photo.bin"), ("fsync", "photo.onnx"), ("fsync folder", "made"), ("fsync folder", "more"),
    ]  # fmt: skip
    assert calls[4:] == [("replace", "made", "out"), ("fsync folder", tmp_path.name, calls[-1][2])]


def test_rows_are_synced_before_the_database_counts_them(tmp_path, calls, monkeypatch):
    """A power cut between the two leaves rows that nobody counts, never counts without rows."""
    connect = Catalog._connect

    def traced(self):
        db = connect(self)
        db.set_trace_callback(lambda statement: calls.append(("sql", statement.split(" ")[0], 0)))
        return db

    monkeypatch.setattr(Catalog, "_connect", traced)
    (tmp_path / "model").write_bytes(gallery_faults.MODEL)
    paths = [tmp_path / "photos" / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        gallery_faults.paint(path, number)
    with Gallery.create(tmp_path / "gallery", tmp_path / "model", encoder=gallery_faults.PixelEncoder()) as gallery:
        calls.clear()
        gallery.add(paths)
        where = [number for number, call in enumerate(calls) if call[1] == "INSERT"]
        commit = next(number for number, call in enumerate(calls) if number > where[-1] and call[1] == "COMMIT")
        synced = [number for number, call in enumerate(calls) if call[:2] == ("fsync", "000001.f32")]
        named = [number for number, call in enumerate(calls) if call[:2] == ("fsync folder", "vectors")]
        assert synced[0] < commit and named[0] < commit
        assert calls[synced[0]][2] == len(paths) * gallery_faults.DIM * 4  # all of the rows
        assert next(iter(gallery.catalog._free)).execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
