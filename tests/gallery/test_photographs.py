"""What a gallery knows of its pictures as photographs: from headers, for filters, in galleries of before too."""

import builtins
import csv
import errno
import itertools
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path

import gallery_faults as faults
import numpy as np
import pytest
from gallery_faults import DIM, PixelEncoder, paint
from photographs import exif, photograph

from splip.errors import UserError
from splip.gallery import Filter, Gallery, labels
from splip.images import decode

STORED = Path(__file__).resolve().parents[1] / "fixtures/gallery"


@pytest.fixture
def make(tmp_path):
    """A new gallery, open for writing."""
    (tmp_path / "model").write_bytes(faults.MODEL)
    return lambda: Gallery.create(tmp_path / "gallery", tmp_path / "model", encoder=PixelEncoder(), segment_rows=16)


def told(item):
    return item.taken, item.camera, item.width, item.height, item.missing


CANON = ("2019-07-14T10:02:03", "Canon EOS 80D", 30, 40, False)


def test_facts_come_with_the_pictures(make, tmp_path):
    photograph(tmp_path / "a.jpg", tags=exif(orientation=6))
    photograph(tmp_path / "b.png", "PNG", 1, tags=b"")
    photograph(tmp_path / "c.jpg", seed=2, tags=b"II*\0\xff\xff\xff\xff")
    with make() as gallery:
        done = gallery.add([tmp_path / "a.jpg", tmp_path / "b.png", tmp_path / "c.jpg"])
        assert (done.new, done.skipped) == (3, [])
        assert told(gallery.item(1)) == CANON
        assert told(gallery.item(2)) == told(gallery.item(3)) == (None, None, 40, 30, False)
        shutil.copy(tmp_path / "a.jpg", tmp_path / "copy.jpg")
        os.rename(tmp_path / "b.png", tmp_path / "moved.png")
        photograph(tmp_path / "c.jpg", seed=3)
        done = gallery.add(tmp_path / name for name in ("copy.jpg", "moved.png", "c.jpg"))
        assert (done.duplicates, done.moved, done.changed) == (1, 1, 1)
        items = {item.path.name: told(item) for item in gallery.items()}
        assert items["copy.jpg"] == CANON and items["moved.png"][2:4] == (40, 30) and items["c.jpg"][1] == CANON[1]


@pytest.fixture
def old(tmp_path):
    """A gallery of the format before, of three pictures that are there, which have EXIF."""
    folder, paths = tmp_path / "gallery", []
    (tmp_path / "model").write_bytes(faults.MODEL)
    with Gallery.create(folder, tmp_path / "model", encoder=PixelEncoder()) as gallery:
        for seed in range(3):
            paths.append(tmp_path / f"{seed}.jpg")
            photograph(paths[-1], seed=seed)
        gallery.add(paths)
    db = sqlite3.connect(folder / "gallery.db")
    db.executescript(
        "DROP INDEX items_taken; DROP INDEX items_undated; DROP INDEX items_label; DROP INDEX items_hash; DROP INDEX items_side; PRAGMA user_version = 2"
    )
    for column in ("taken", "camera", "width", "height", "looked", "missing"):
        db.execute(f"ALTER TABLE items DROP COLUMN {column}")
    db.executescript("CREATE INDEX items_label ON items (label); CREATE INDEX items_hash ON items (hash)")
    db.close()
    return folder, paths


def test_a_gallery_of_before_learns_from_headers_alone(old, monkeypatch):
    folder, paths = old
    encoder = PixelEncoder()
    with Gallery.open(folder, write=True, encoder=encoder) as gallery:
        assert told(gallery.item(1)) == (None, None, None, None, False) and gallery.item(1).looked == 0
        monkeypatch.setattr(decode, "read", None)  # nothing is decoded
        assert gallery.add(paths).unchanged == 3 and encoder.encoded == 0
        assert [item.taken for item in gallery.items()] == ["2019-07-14T10:02:03"] * 3
        monkeypatch.setattr(decode, "read_header", None)  # nor looked at again
        assert gallery.add(paths).unchanged == 3
        assert gallery.check().damage == []


def test_a_gallery_of_before_that_cannot_be_written_answers(old):
    folder, _ = old
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "gallery"
        shutil.copytree(folder, copy)
        for path in (Path(place), copy, *copy.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:
            os.seteuid(65534)
        try:
            with Gallery.open(copy, encoder=PixelEncoder()) as gallery:
                assert told(gallery.item(2)) == (None, None, None, None, False)
                assert len(gallery.search_vectors(np.ones((1, DIM)), 5)[0]) == 3 and gallery.labels() == {}
                assert gallery.search_vectors(np.ones((1, DIM)), 5, Filter(taken_from="2019"))[0] == []
        finally:
            os.seteuid(os.getuid())
            for path in (Path(place), copy, copy / "vectors"):
                path.chmod(0o755)


def test_who_only_reads_leaves_a_gallery_of_before_to_its_version(tmp_path):
    shutil.copytree(STORED, tmp_path / "stored")
    before = {path.name: path.read_bytes() for path in (tmp_path / "stored").rglob("*.db")}
    with Gallery.open(tmp_path / "stored", encoder=PixelEncoder()) as reader:
        found = reader.search(vectors=np.ones((1, reader.dim)), k=3, stack=True)[0]
        assert len(found) == 3 and not found[0].missing
        for sort, tags in itertools.product(("newest", "oldest", "name", "added"), ({}, {"a": "b"})):
            page = reader.browse(sort, 100, filter=Filter(tags=tags), stack=True)
            assert page.total == len(page.items) <= len(reader)
        first = reader.browse("name", 2)
        ids = [item.id for item in first.items + reader.browse("name", 100, first.next).items]
        assert len(set(ids)) == len(ids) == len(reader)
        assert reader.timeline(stack=True).undated == reader.browse(stack=True).total
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "stored").rglob("*.db")}


def test_a_reader_sees_what_a_writer_made_of_a_gallery_of_before(tmp_path):
    shutil.copytree(STORED, tmp_path / "stored")
    photograph(tmp_path / "a.jpg")
    with Gallery.open(tmp_path / "stored", encoder=PixelEncoder()) as reader:
        assert reader.catalog.format == 2 and reader.item(1).width is None
        with Gallery.open(tmp_path / "stored", write=True, encoder=PixelEncoder()) as writer:
            writer.add([tmp_path / "a.jpg"])
        assert reader.item(13).width == 40 and reader.catalog.format == 3


# ---- filters ----

DATES = [
    "2018:12:31 23:59:59",
    "2019:01:01 00:00:00",
    "2019:07:14 10:02:03",
    "2019:07:31 23:59:59",
    "2020:02:29 12:00:00",
]


@pytest.fixture
def dated(make, tmp_path):
    """Five dated pictures, one without a date, one that is small; closed."""
    with make() as gallery:
        for n, date in enumerate(DATES):
            photograph(tmp_path / f"{n}.jpg", seed=n, tags=exif(date))
        photograph(tmp_path / "undated.png", "PNG", 7, tags=b"")
        photograph(tmp_path / "small.jpg", seed=8, size=(12, 90), tags=exif("2019:03:03 03:03:03"))
        gallery.add([*(tmp_path / f"{n}.jpg" for n in range(5)), tmp_path / "undated.png", tmp_path / "small.jpg"])
    return gallery.folder


@pytest.mark.parametrize(
    ("filter", "want"),
    [
        ({"taken_from": "2019"}, {"1", "2", "3", "4", "small"}),
        ({"taken_to": "2019"}, {"0", "1", "2", "3", "small"}),
        ({"taken_from": "2019", "taken_to": "2019"}, {"1", "2", "3", "small"}),
        ({"taken_from": "2019-07", "taken_to": "2019-07"}, {"2", "3"}),
        ({"taken_from": "2019-07-14", "taken_to": "2019-07-14"}, {"2"}),
        ({"taken_from": "2019-07-15", "taken_to": "2019-07-31"}, {"3"}),
        ({"taken_from": "2020-02-29"}, {"4"}),
        ({"taken_from": "2019-08", "taken_to": "2020-01"}, set()),
        ({"min_side": 30}, {"0", "1", "2", "3", "4", "undated"}),
        ({"min_side": 31}, set()),
        ({"min_side": 12, "taken_from": "2019-03", "taken_to": "2019-03"}, {"small"}),
        ({"min_side": 0}, {"0", "1", "2", "3", "4", "undated", "small"}),
    ],
)
def test_filters(dated, filter, want):
    with Gallery.open(dated, encoder=PixelEncoder()) as gallery:
        one = Filter(**filter)
        assert {item.path.stem for item in gallery.items(one)} == want
        found = gallery.search_vectors(np.ones((1, DIM)), 10, one)[0]
        assert {match.path.stem for match in found} == want
        some = Filter(ids=(1, 2, 7), **filter)
        assert {item.path.stem for item in gallery.items(some)} == want & {"0", "1", "small"}


@pytest.mark.parametrize(
    "date", ["", "19", "2019-7", "2019-13", "2019-02-30", "2019-07-14T10", "２０１９", "2019\n", "0000", 2019]
)
def test_wrong_dates_are_told(date):
    for name in ("taken_from", "taken_to"):
        with pytest.raises(UserError, match=f"{name}: .* is not a date: write 2019, 2019-07 or 2019-07-14"):
            Filter(**{name: date})


def test_filters_that_let_nothing_pass_are_told():
    for start, stop in (("2020", "2019"), ("2019-08", "2019-07"), ("2019-07-15", "2019-07-14"), ("2020-01-01", "2019")):
        with pytest.raises(UserError, match=f"taken_from {start} is after taken_to {stop}"):
            Filter(taken_from=start, taken_to=stop)
    for start, stop in (("2019-07", "2019"), ("2019", "2019-01"), ("2019-12-31", "2019-12")):
        Filter(taken_from=start, taken_to=stop)
    with pytest.raises(UserError, match="min_side must be a whole number from 0 to 2147483647, got -1"):
        Filter(min_side=-1)
    assert Filter(min_side=1) and Filter(taken_to="2019") and not Filter(min_side=0)
    assert Filter(taken_from="2019").key() != Filter(taken_to="2019").key() != Filter().key()


def test_a_picture_that_comes_back_is_not_missing(make, tmp_path):
    paint(tmp_path / "a.png", 1)
    with make() as gallery:
        gallery.add([tmp_path / "a.png"])
        with gallery.catalog.writing() as db:
            db.execute("UPDATE items SET missing = 1")
        assert gallery.item(1).missing
        assert gallery.add([tmp_path / "a.png"]).unchanged == 1 and not gallery.item(1).missing


def test_each_file_is_read_once(make, tmp_path, monkeypatch):
    """Hash, header, pixels and thumbnail come from the same bytes."""
    paths = [tmp_path / f"{n}.jpg" for n in range(3)]
    for n, path in enumerate(paths):
        photograph(path, seed=n)
    opened = []
    real = builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *a, **k: (opened.append(str(file)), real(file, *a, **k))[1])
    with make() as gallery:
        gallery.add(paths, thumbnails=True)
        assert gallery.item(1).taken is not None and gallery.item(3).hash != gallery.item(2).hash
    assert sorted(name for name in opened if name.endswith(".jpg")) == [str(path) for path in paths]


@pytest.mark.parametrize("side", [10**20, "5", 1.5, True, -1])
def test_sides_that_no_picture_has_are_told(side):
    with pytest.raises(UserError, match="min_side must be a whole number from 0 to 2147483647, got "):
        Filter(min_side=side)
    with pytest.raises(UserError, match="min_side"):
        Filter(labels=("a",), min_side=side)


def test_ids_beyond_the_database_are_no_items(make, tmp_path):
    paint(tmp_path / "a.png", 1)
    with make() as gallery:
        gallery.add([tmp_path / "a.png"])
        beyond = Filter(ids=(1, 10**30, -(10**30)))
        assert [item.id for item in gallery.items(beyond)] == [1] and gallery.browse(filter=beyond).total == 1
        assert not list(gallery.items(Filter(ids=(2**63,))))


def test_a_file_that_cannot_be_read_now_is_looked_at_again(old, monkeypatch):
    folder, paths = old
    with Gallery.open(folder, write=True, encoder=PixelEncoder()) as gallery:
        with monkeypatch.context() as broken:

            def failing(source):
                raise OSError(errno.EIO, "Input/output error")

            broken.setattr(decode, "read_header", failing)
            assert gallery.add(paths).unchanged == 3
            assert gallery.item(1).looked == 0 and gallery.item(1).taken is None
        assert gallery.add(paths).unchanged == 3 and gallery.item(1).taken == "2019-07-14T10:02:03"


def test_exports_have_what_headers_say(make, tmp_path):
    photograph(tmp_path / "a.jpg")
    with make() as gallery:
        gallery.add([tmp_path / "a.jpg"])
        gallery.export(tmp_path / "out")
    with open(tmp_path / "out" / "items.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    want = {"taken": "2019-07-14T10:02:03", "camera": "Canon EOS 80D", "width": "40", "height": "30", "missing": "0"}
    assert {key: row[key] for key in want} == want


def test_many_labels_are_not_compared(monkeypatch):
    class Many:
        def labels(self):
            return {"Horse": 2, "cow": 1, "pig": 1}

    assert labels.meant(Many(), ["horse", "cow"]) == ("Horse", "cow")
    with pytest.raises(UserError, match="did you mean 'Horse'"):
        labels.meant(Many(), ["hores"])
    monkeypatch.setattr(labels, "COMPARED", 2)
    monkeypatch.setattr(labels.difflib, "get_close_matches", None)
    with pytest.raises(UserError, match="no picture has the label 'hores'; there are 'Horse', 'cow', 'pig'"):
        labels.meant(Many(), ["hores"])
