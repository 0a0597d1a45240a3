import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from splip import images, pictures
from splip.errors import UnreadablePicture, UserError


def save(path, array, mode=None, **options):
    Image.fromarray(np.asarray(array, dtype=np.uint8), mode).save(path, **options)
    return path


def test_transparency_becomes_white(tmp_path):
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[0, 0] = (0, 0, 0, 255)
    image = np.asarray(images.read(save(tmp_path / "a.png", pixels)))
    assert image[0, 0].tolist() == [0, 0, 0] and image[1, 1].tolist() == [255, 255, 255]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.info["transparency"] = 1
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "p.png", transparency=1)
    image = np.asarray(images.read(tmp_path / "p.png"))
    assert image[0, 0].tolist() == [255, 0, 0] and image[1, 1].tolist() == [255, 255, 255]


def test_orientation_of_the_camera(tmp_path):
    image = Image.new("RGB", (6, 4), "white")
    image.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    upright = images.read(tmp_path / "a.png")
    assert upright.size == (4, 6) and upright.getpixel((3, 0)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16"])
def test_modes(tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 5), 40000, dtype=np.uint16))
    else:
        image = Image.new("RGB", (5, 5), (156, 156, 156)).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path)
    value = np.asarray(images.read(path))
    assert value.shape == (5, 5, 3)
    if mode != "1":
        assert abs(int(value[2, 2, 0]) - 156) <= 3


def test_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert images.read(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def damaged(tmp_path):
    good = save(tmp_path / "good.png", np.random.default_rng(0).integers(0, 255, (40, 40, 3)))
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:600])
    (tmp_path / "text.png").write_text("hello")
    return good, [tmp_path / n for n in ("empty.png", "cut.png", "text.png", "none.png")]


def test_unreadable(tmp_path):
    _, bad = damaged(tmp_path)
    reasons = []
    for path in bad:
        with pytest.raises(UnreadablePicture) as caught:
            images.read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        reasons.append(caught.value.reason)
    assert reasons[0] == "the file is empty" and "truncated" in reasons[1]
    assert reasons[2] == "not a picture, or damaged" and reasons[3] == "no such file"


def test_too_many_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadablePicture, match="too many pixels"):
        images.read(save(tmp_path / "a.png", np.zeros((40, 40, 3))))


def test_fit():
    wide = Image.new("RGB", (40, 20), "black")
    pad, stretch, crop = (images.square(wide, 20, fit) for fit in ("pad", "stretch", "crop"))
    assert pad.shape == stretch.shape == crop.shape == (20, 20, 3)
    assert (pad[0] == 255).all() and (pad[10] == 0).all() and (stretch == 0).all() and (crop == 0).all()


def test_crop_to_ink():
    image = Image.new("RGB", (200, 200), "white")
    image.paste("black", (150, 20, 190, 60))
    cropped = images.crop_to_ink(image)
    assert cropped.size == (46, 46)
    assert np.asarray(cropped)[3:-3, 3:-3].max() == 0 and np.asarray(cropped)[:3].min() == 255
    again = images.crop_to_ink(cropped)
    assert again is cropped  # nothing left to do, so no second resampling
    blank = Image.new("RGB", (9, 9), "white")
    assert images.crop_to_ink(blank) is blank


@pytest.mark.parametrize("memory", [2.0, 0.0], ids=["kept", "decoded each time"])
def test_a_list_with_damaged_files(tmp_path, memory):
    good, bad = damaged(tmp_path)
    listed = pictures.Pictures([bad[0], good, bad[1], good, bad[2], bad[3]], 16, memory_gb=memory)
    assert listed.kept == [1, 3] and len(listed) == 2 and listed.paths == [good, good]
    assert [s.path for s in listed.skipped] == bad
    batch = listed.get([1, 0, 1])
    assert batch.shape == (3, 3, 16, 16) and batch.dtype == torch.uint8
    want = torch.from_numpy(images.square(images.read(good), 16).copy()).permute(2, 0, 1)
    assert torch.equal(batch[0], want)
    images.write_skipped(tmp_path / "skipped.txt", listed.skipped)
    lines = (tmp_path / "skipped.txt").read_text().splitlines()
    assert len(lines) == 4 and lines[0] == f"{bad[0]}\tthe file is empty"
    images.write_skipped(tmp_path / "skipped.txt", [])
    assert not (tmp_path / "skipped.txt").exists()


def test_cache(tmp_path, monkeypatch):
    """Decoded once; a second list of the same files reads what the first wrote."""
    good, bad = damaged(tmp_path)
    paths = [bad[0], good, bad[1], good]
    first = pictures.Pictures(paths, 16, cache=tmp_path / "cache")
    plain = pictures.Pictures(paths, 16)
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "decode", None)
        second = pictures.Pictures(paths, 16, cache=tmp_path / "cache")
    for cached in (first, second):
        assert cached.kept == plain.kept == [1, 3] and torch.equal(cached.get([1, 0]), plain.get([1, 0]))
        assert [(s.path, s.reason) for s in cached.skipped] == [(s.path, s.reason) for s in plain.skipped]
    # Another size, another fit, a file that changed: other pictures.
    kept = set((tmp_path / "cache").iterdir())
    assert pictures.Pictures(paths, 8, cache=tmp_path / "cache").get([0]).shape == (1, 3, 8, 8)
    Image.new("RGB", (30, 30), "red").save(good)
    changed = pictures.Pictures(paths, 16, cache=tmp_path / "cache").get([0])
    assert changed[0, 0].min() > 250 and changed[0, 1].max() < 5
    assert kept < set((tmp_path / "cache").iterdir())


def test_cache_that_was_stopped(tmp_path, monkeypatch):
    """Goes on after the last whole block, and keeps what it found unreadable before."""
    good, bad = damaged(tmp_path)
    paths = [good, bad[0], good, bad[1], good, good]
    monkeypatch.setattr(pictures, "CACHE_BLOCK", 2)
    real, calls = pictures.decode, []

    def stop_at_third(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(pictures, "decode", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        pictures.Pictures(paths, 16, cache=tmp_path / "cache")
    resumed = pictures.Pictures(paths, 16, cache=tmp_path / "cache")
    assert len(calls) == 4  # the third block only
    assert resumed.kept == [0, 2, 4, 5] and [s.path for s in resumed.skipped] == [bad[0], bad[1]]
    assert torch.equal(resumed.get(range(4)), pictures.Pictures(paths, 16).get(range(4)))


def test_two_runs_fill_one_cache(tmp_path, monkeypatch):
    """One of them decodes; neither sees a picture that is not there yet."""
    good, _ = damaged(tmp_path)
    real, calls = pictures.decode, []

    def slow(*args):
        calls.append(1)
        time.sleep(0.2)
        return real(*args)

    monkeypatch.setattr(pictures, "decode", slow)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(pictures.Pictures, [good] * 5, 16, cache=tmp_path / "cache") for _ in range(2)]
        first, second = (job.result().get(range(5)) for job in jobs)
    assert len(calls) == 1
    assert torch.equal(first, second) and torch.equal(first, pictures.Pictures([good] * 5, 16).get(range(5)))


def test_damaged_cache_is_made_anew(tmp_path):
    good, _ = damaged(tmp_path)
    want = pictures.Pictures([good] * 3, 16, cache=tmp_path / "cache").get(range(3)).clone()
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    pixels.write_bytes(pixels.read_bytes()[:100])
    assert torch.equal(pictures.Pictures([good] * 3, 16, cache=tmp_path / "cache").get(range(3)), want)


def test_cache_without_room(tmp_path, monkeypatch):
    good, _ = damaged(tmp_path)
    monkeypatch.setattr(pictures.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(UserError, match=r"data.cache .*cache: needs 0.0 GB, 0.0 GB are free"):
        pictures.Pictures([good], 16, cache=tmp_path / "cache")


def test_pictures_that_are_not_scanned(tmp_path):
    """Decoded for every use and not looked at before: what cannot be read shows when it is wanted."""
    good, bad = damaged(tmp_path)
    lazy = pictures.Pictures([bad[0], good], 16, memory_gb=0.0, scan=False)
    assert len(lazy) == 2 and not lazy.skipped
    for _ in range(2):
        batch, readable = lazy.get_readable([1, 0, 0])
        assert readable.tolist() == [True, False, False] and (batch[1] == 255).all()
    assert [s.path for s in lazy.skipped] == [bad[0]]  # listed once
    with pytest.raises(pictures.UnreadablePicture, match="the file is empty"):
        lazy.get([0])


def test_find(tmp_path):
    for name in ("b/x.PNG", "a/y.jpeg", "a/z.txt", "c.webp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    names = [p.relative_to(tmp_path).as_posix() for p in images.find([tmp_path])]
    assert names == ["a/y.jpeg", "b/x.PNG", "c.webp"]
