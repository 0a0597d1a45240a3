"""Thumbnails that a gallery keeps: by content, bounded, and never a reason to fail."""

import io
import os
import sqlite3

import gallery_faults as faults
import numpy as np
import pytest
from gallery_faults import PixelEncoder
from photographs import exif, photograph
from PIL import Image, ImageChops, ImageStat
from serving import running

from splip import images
from splip.gallery import Gallery, thumbnails
from splip.gallery.thumbnails import Store


@pytest.fixture
def photos(tmp_path):
    for n in range(4):
        photograph(tmp_path / f"{n}.jpg", seed=n, size=(600, 400), tags=exif(orientation=6 if n == 3 else 1))
    photograph(tmp_path / "small.png", "PNG", 9, size=(50, 40), tags=b"")
    return [tmp_path / "small.png", *(tmp_path / f"{n}.jpg" for n in range(4))]


@pytest.fixture
def make(tmp_path):
    (tmp_path / "model").write_bytes(faults.MODEL)

    class Encoder(PixelEncoder):
        image_size = 200  # 400 pixels are left of the shorter side

    return lambda: Gallery.create(tmp_path / "gallery", tmp_path / "model", encoder=Encoder())


def sizes(gallery):
    found = {item.path.name: gallery.thumbnail(item.hash) for item in gallery.items()}
    return {name: data and Image.open(io.BytesIO(data)).size for name, data in found.items()}


def test_they_are_made_while_indexing(make, photos):
    with make() as gallery:
        gallery.add(photos[:1])
        assert not gallery.thumbnails.exists and gallery.thumbnail(gallery.item(1).hash) is None
        gallery.add(photos[1:3], thumbnails=True)
        gallery.add(photos[3:])  # it has some: it goes on
        wide = (256, 171)
        assert sizes(gallery) == {"small.png": None, "0.jpg": wide, "1.jpg": wide, "2.jpg": wide, "3.jpg": (171, 256)}
        made = Image.open(io.BytesIO(gallery.thumbnail(gallery.item(2).hash)))
        apart = []
        for path in photos[1:3]:
            other = images.read(path).resize(wide, Image.Resampling.LANCZOS)
            apart.append(sum(ImageStat.Stat(ImageChops.difference(made, other)).mean))
        assert apart[0] < 0.7 * apart[1], apart
        gallery.remove([2, 3])
        assert gallery.compact().dropped == 2
        with sqlite3.connect(gallery.folder / "thumbnails.db") as db:
            assert db.execute("SELECT count(*) FROM thumbnails").fetchone() == (2,)
            assert db.execute("SELECT bytes = (SELECT sum(length(data)) FROM thumbnails) FROM size").fetchone() == (1,)
        db.close()


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_small_model_still_keeps_them_and_sees_the_picture_as_without(tmp_path, orientation):
    (tmp_path / "model").write_bytes(faults.MODEL)
    ramp = np.linspace(0, 255, 2000, dtype=np.uint8)
    pixels = np.stack([np.broadcast_to(ramp, (1500, 2000)), np.broadcast_to(ramp[:1500, None], (1500, 2000))], axis=2)
    large = Image.fromarray(np.dstack([pixels, np.full((1500, 2000), 90, np.uint8)]))
    large.save(tmp_path / "a.jpg", exif=exif(orientation=orientation))
    seen = []

    class Encoder(PixelEncoder):
        image_size = 64  # reads it as 250 by 188

        def encode(self, images, modality):
            seen.append(images)
            return super().encode(images, modality)

    for name, wanted in (("without", False), ("with", True)):
        with Gallery.create(tmp_path / name, tmp_path / "model", encoder=Encoder()) as gallery:
            gallery.add([tmp_path / "a.jpg"], thumbnails=wanted)
            found = sizes(gallery)["a.jpg"]
            assert found == (((256, 192) if orientation == 1 else (192, 256)) if wanted else None)
    without, beside = (images[0].astype(int) for images in seen)
    assert without.shape == beside.shape and np.abs(without - beside).max() <= 3
    assert np.ptp(without[..., 0]) > 150


def test_what_was_shrunk_further_covers_the_same_part():
    image = Image.fromarray(np.zeros((225, 301, 3), np.uint8))
    image.info["extent"] = image.size, (0.5, 0, 301, 225)
    small = thumbnails.shrink(image, 100)
    assert small.size == (151, 113) and small.info["extent"] == ((151, 113), (0.25, 0, 150.5, 112.5))
    assert thumbnails.shrink(image, 113) is image


def test_small_pictures_are_not_made_larger_and_shrunk_ones_not_blown_up(tmp_path):
    photograph(tmp_path / "a.jpg", size=(600, 400))
    assert thumbnails.make(images.read(tmp_path / "a.jpg", least=30)) is None
    photograph(tmp_path / "b.png", "PNG", size=(50, 40))
    assert Image.open(io.BytesIO(thumbnails.make(images.read(tmp_path / "b.png")))).size == (50, 40)
    photograph(tmp_path / "c.png", "PNG", size=(900, 2))
    assert Image.open(io.BytesIO(thumbnails.make(images.read(tmp_path / "c.png")))).size == (256, 1)


JPEG = b"\xff\xd8" + bytes(100) + b"\xff\xd9"


def test_a_store_is_bounded(tmp_path):
    store = Store(tmp_path, limit=250)
    assert store.put([(b"a", JPEG), (b"b", JPEG), (b"c", JPEG)]) and store.put([(b"a", JPEG)])
    assert [store.get(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, True, False, False]
    assert Store(tmp_path, limit=250).put([(b"c", JPEG)]) and store.get(b"c") is None


def test_damage_is_as_if_nothing_were_there(tmp_path, make, photos):
    for data in (b"", b"no database" * 100, os.urandom(8192), None):
        store = Store(tmp_path)
        if data is None:  # a JPEG that ends early
            with sqlite3.connect(store.path) as db:
                db.execute("UPDATE thumbnails SET data = substr(data, 1, 50)")
            db.close()
            assert store.get(b"a") is None
            continue
        store.path.write_bytes(data)
        assert store.get(b"a") is None and Store(tmp_path).sweep(tmp_path / "none.db") == 0
        assert store.put([(b"a", JPEG)]) and store.get(b"a") == JPEG
        store.close()
    with make() as gallery:
        (gallery.folder / "thumbnails.db").write_bytes(b"nonsense" * 1000)
        assert gallery.add(photos).new == 5 and gallery.check().damage == []
        assert sizes(gallery)["0.jpg"] == (256, 171)


def test_one_that_cannot_be_written_stops_nothing(tmp_path, make, photos):
    store = Store(tmp_path)
    store.put([(b"a", JPEG)])
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert not store.put([(b"b", JPEG)]) and Store(tmp_path).get(b"a") is None
    other.close()
    assert store.get(b"a") == JPEG
    with make() as gallery:
        (gallery.folder / "thumbnails.db").mkdir()
        assert gallery.add(photos, thumbnails=True).new == 5 and gallery.compact().dropped == 0


def test_the_service_takes_them_while_the_file_is_the_same(make, photos):
    with make() as gallery:
        gallery.add(photos, thumbnails=True)
        stored = gallery.thumbnail(gallery.item(2).hash)
    with Gallery.open(gallery.folder, encoder=PixelEncoder()) as gallery, running(gallery) as client:
        assert client.get("/v1/thumbnails/2").content == stored
        assert client.get("/v1/thumbnails/2?size=128").content != stored
        photograph(photos[1], seed=77, size=(300, 300))
        other = client.get("/v1/thumbnails/2")
        assert Image.open(io.BytesIO(other.content)).size == (256, 256)
        photos[1].unlink()
        assert client.get("/v1/thumbnails/2").status_code == 404
