import gc
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from splip import images
from splip.data import cache
from splip.errors import Skipped, UnreadablePicture, UserError
from splip.images import decode
from splip.serve import queries


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
    assert reasons[2] == "not a picture, damaged, or of a format that is not read" and reasons[3] == "no such file"


def test_too_many_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    with pytest.raises(UnreadablePicture, match="too many pixels"):
        images.read(save(tmp_path / "a.png", np.zeros((40, 40, 3))))


def test_fit():
    wide = Image.new("RGB", (40, 20), "black")
    pad, stretch, crop = (images.square(wide, 20, fit) for fit in ("pad", "stretch", "crop"))
    black = images.square(Image.new("RGB", (40, 20), "white"), 20, "pad-black")
    assert (black[0] == 0).all() and (black[10] == 255).all()
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
    listed = cache.Pictures([bad[0], good, bad[1], good, bad[2], bad[3]], 16, memory_gb=memory)
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
    first = cache.Pictures(paths, 16, cache=tmp_path / "cache")
    plain = cache.Pictures(paths, 16)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "decode", None)
        second = cache.Pictures(paths, 16, cache=tmp_path / "cache")
    for cached in (first, second):
        assert cached.kept == plain.kept == [1, 3] and torch.equal(cached.get([1, 0]), plain.get([1, 0]))
        assert [(s.path, s.reason) for s in cached.skipped] == [(s.path, s.reason) for s in plain.skipped]
    # Another way to decode, another size, another fit, a file that changed: other pictures.
    with monkeypatch.context() as patch:
        patch.setattr(cache, "DECODING", -1)
        cache.Pictures(paths, 16, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 2
    kept = set((tmp_path / "cache").iterdir())
    assert cache.Pictures(paths, 8, cache=tmp_path / "cache").get([0]).shape == (1, 3, 8, 8)
    Image.new("RGB", (30, 30), "red").save(good)
    changed = cache.Pictures(paths, 16, cache=tmp_path / "cache").get([0])
    assert changed[0, 0].min() > 250 and changed[0, 1].max() < 5
    assert kept < set((tmp_path / "cache").iterdir())


def test_cache_that_was_stopped(tmp_path, monkeypatch):
    """Goes on after the last whole block, and keeps what it found unreadable before."""
    good, bad = damaged(tmp_path)
    paths = [good, bad[0], good, bad[1], good, good]
    monkeypatch.setattr(cache, "CACHE_BLOCK", 2)
    real, calls = cache.decode, []

    def stop_at_third(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(cache, "decode", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        cache.Pictures(paths, 16, cache=tmp_path / "cache")
    resumed = cache.Pictures(paths, 16, cache=tmp_path / "cache")
    assert len(calls) == 4  # the third block only
    assert resumed.kept == [0, 2, 4, 5] and [s.path for s in resumed.skipped] == [bad[0], bad[1]]
    assert torch.equal(resumed.get(range(4)), cache.Pictures(paths, 16).get(range(4)))


def test_two_runs_fill_one_cache(tmp_path, monkeypatch):
    """One of them decodes; neither sees a picture that is not there yet."""
    good, _ = damaged(tmp_path)
    real, calls = cache.decode, []

    def slow(*args):
        calls.append(1)
        time.sleep(0.2)
        return real(*args)

    monkeypatch.setattr(cache, "decode", slow)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(cache.Pictures, [good] * 5, 16, cache=tmp_path / "cache") for _ in range(2)]
        first, second = (job.result().get(range(5)) for job in jobs)
    assert len(calls) == 1
    assert torch.equal(first, second) and torch.equal(first, cache.Pictures([good] * 5, 16).get(range(5)))


def test_damaged_cache_is_made_anew(tmp_path):
    good, _ = damaged(tmp_path)
    want = cache.Pictures([good] * 3, 16, cache=tmp_path / "cache").get(range(3)).clone()
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    pixels.write_bytes(pixels.read_bytes()[:100])
    assert torch.equal(cache.Pictures([good] * 3, 16, cache=tmp_path / "cache").get(range(3)), want)


def test_cache_without_room(tmp_path, monkeypatch):
    good, _ = damaged(tmp_path)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(UserError, match=r"data.cache .*cache: needs 0.0 GB, 0.0 GB are free"):
        cache.Pictures([good], 16, cache=tmp_path / "cache")


def test_pictures_that_are_not_scanned(tmp_path):
    """Decoded for every use and not looked at before: what cannot be read shows when it is wanted."""
    good, bad = damaged(tmp_path)
    lazy = cache.Pictures([bad[0], good], 16, memory_gb=0.0, scan=False)
    assert len(lazy) == 2 and not lazy.skipped
    for _ in range(2):
        batch, readable = lazy.get_readable([1, 0, 0])
        assert readable.tolist() == [True, False, False] and (batch[1] == 255).all()
    assert [s.path for s in lazy.skipped] == [bad[0]]  # listed once
    with pytest.raises(cache.UnreadablePicture, match="the file is empty"):
        lazy.get([0])


def test_find(tmp_path):
    for name in ("b/x.PNG", "a/y.jpeg", "a/z.txt", "c.webp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    names = [p.relative_to(tmp_path).as_posix() for p in images.find([tmp_path])]
    assert names == ["a/y.jpeg", "b/x.PNG", "c.webp"]


# ---- formats ----


def test_one_list_of_formats():
    assert queries.MEDIA is decode.MEDIA and set(decode.formats()) <= set(decode.MEDIA)
    assert {"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"} <= set(decode.formats())


def test_no_other_program_reads_a_picture(tmp_path, monkeypatch):
    """Pillow hands EPS to Ghostscript, whatever the file's name ends in."""
    (tmp_path / "bin").mkdir()
    gs = tmp_path / "bin" / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    Image.new("RGB", (20, 20), "red").save(tmp_path / "holiday.jpg", "EPS")
    for source in (tmp_path / "holiday.jpg", (tmp_path / "holiday.jpg").read_bytes()):
        with pytest.raises(UnreadablePicture, match="not a picture, damaged, or of a format that is not read"):
            images.read(source)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("form", ["TGA", "DDS", "JPEG2000", "PPM", "ICO", "PCX", "SGI"])
def test_what_cannot_be_shown_is_not_read(tmp_path, form):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png", form)
    with pytest.raises(UnreadablePicture, match="a format that is not read"):
        images.read(tmp_path / "a.png")


# ---- memory ----


def test_a_budget_is_shared_in_turn():
    """What is held at the same time stays below it, and what needs all of it is not passed by."""
    budget, lock = images.Budget(100), threading.Lock()
    held, most, order = 0, 0, []
    first = threading.Event()

    def hold(name, amount):
        nonlocal held, most
        with budget.room(amount):
            with lock:
                order.append(name)
                held += min(amount, 100)
                most = max(most, held)
            if name == 0:
                first.wait(10)
            with lock:
                held -= min(amount, 100)

    amounts = [60, 500, *[30] * 20]  # the second needs more than there is: it has all of it
    threads = []
    for name, amount in enumerate(amounts):
        threads.append(threading.Thread(target=hold, args=(name, amount)))
        threads[-1].start()
        while len(order) + len(budget._waiting) <= name:
            time.sleep(0.001)
    first.set()
    for thread in threads:
        thread.join(10)
    assert most == 100 and sorted(order) == list(range(22)) and order[:2] == [0, 1]


@pytest.mark.parametrize(
    ("form", "options", "least", "bytes_a_pixel"),
    [
        ("PNG", {}, 64, 4),
        ("PNG", {}, None, 12),  # and what it is converted to
        ("JPEG", {}, 64, 12 / 16),  # decoded at a quarter of each side
        ("JPEG", {"progressive": True}, 64, 6 + 12 / 16),  # kept whole until the last scan
        ("WEBP", {}, 64, 16),
        ("TIFF", {}, 64, 8),
    ],
)
def test_what_decoding_costs_is_asked_of_the_budget(tmp_path, monkeypatch, form, options, least, bytes_a_pixel):
    asked = []

    class Watched(images.Budget):
        def room(self, amount):
            asked.append(amount)
            return super().room(amount)

    monkeypatch.setattr(decode, "decoding_memory", Watched(10**9))
    write_large(tmp_path / "a", "RGB", (400, 320), format=form, **options)
    images.read((tmp_path / "a").read_bytes(), least=least)
    assert asked == [400 * 320 * bytes_a_pixel]


def peak(code):
    """Bytes that a piece of Python adds to what a process takes, measured in a process of its own."""
    script = f"""
import io, sys
import numpy as np
from PIL import Image
from splip.images import decode
def now(): return 1024 * int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1])
decode.formats()
before = now()
{code}
print(now() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def write_large(path, mode, size=(12_000, 12_000), **options):
    Image.new(mode, size).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("mode", "form", "options", "bytes_a_pixel"),
    [
        pytest.param("P", "PNG", {"transparency": 0}, 1.5, marks=pytest.mark.exhaustive),
        pytest.param("L", "PNG", {}, 1.5, marks=pytest.mark.exhaustive),
        pytest.param("I;16", "PNG", {}, 2.5, marks=pytest.mark.exhaustive),
        ("RGB", "JPEG", {}, 0.5),  # decoded at an eighth
    ],
)
def test_large_pictures_take_little_memory(tmp_path, mode, form, options, bytes_a_pixel):
    path = write_large(tmp_path / "large", mode, format=form, **options)
    used = peak(f"decode.read(open({str(path)!r}, 'rb').read(), least=448)")
    assert used < bytes_a_pixel * 144e6 + 50e6


def test_a_phone_with_200_megapixels(tmp_path, monkeypatch):
    """More pixels than any other picture may have: the decoder leaves out what the model does not see."""
    path = write_large(tmp_path / "a.jpg", "RGB", (1600, 1250))
    write_large(tmp_path / "a.png", "RGB", (1600, 1250))
    monkeypatch.setattr(decode, "MAX_PIXELS", 1_000_000)
    assert images.read(path, least=128).size == (200, 157)
    for wrong in ({"source": path}, {"source": tmp_path / "a.png", "least": 128}):
        with pytest.raises(UnreadablePicture, match="too many pixels"):
            images.read(**wrong)
    monkeypatch.setattr(decode, "MAX_JPEG", 1_000_000)
    with pytest.raises(UnreadablePicture, match="too many pixels"):
        images.read(path, least=128)


@pytest.mark.parametrize(
    "options", [{"lossless": True}, {"quality": 50}, {"quality": 50, "icc_profile": b"makes it an extended one"}]
)
def test_a_webp_is_refused_before_it_is_opened(tmp_path, monkeypatch, options):
    """Its decoder sets the whole canvas aside when it opens the file."""
    path = write_large(tmp_path / "a.webp", "RGB", (300, 200), **options)
    with open(path, "rb") as file:
        assert decode._webp_size(file) == (300, 200)
    assert images.read(path).size == (300, 200)
    monkeypatch.setattr(decode, "MAX_PIXELS", 300 * 200 - 1)
    monkeypatch.setattr(decode, "_open", None)
    with pytest.raises(UnreadablePicture, match="too many pixels"):
        images.read(path)


def test_lists_of_unreadable_pictures_hold_no_errors(tmp_path):
    """The traceback of an error keeps the file's bytes and what was decoded of it."""
    before = [o for o in gc.get_objects() if type(o) is UnreadablePicture]  # of other tests of this process
    _, bad = damaged(tmp_path)
    listed = cache.Pictures(bad, 16)
    lazy = cache.Pictures(bad, 16, memory_gb=0.0, scan=False)
    lazy.get_readable(range(4))
    for skipped in (listed.skipped, lazy.skipped):
        assert len(skipped) == 4 and {type(s) for s in skipped} == {Skipped}
    assert not [o for o in gc.get_objects() if type(o) is UnreadablePicture and not any(o is b for b in before)]


# ---- scaled decoding ----


@pytest.fixture(scope="module")
def photograph():
    from skimage import data

    return Image.fromarray(data.astronaut()).resize((1400, 1000), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "gif", "bmp"])
def test_shrinking_while_reading_changes_little(tmp_path, photograph, suffix):
    path = tmp_path / f"a.{suffix}"
    photograph.save(path, **({"quality": 92} if suffix in ("jpg", "webp") else {}))
    small = images.read(path, least=128)
    assert 128 <= min(small.size) < 256
    full, scaled = (images.square(image, 64).astype(float) for image in (images.read(path), small))
    assert np.abs(full - scaled).mean() < 0.6 and np.abs(full - scaled).max() < 16
    assert images.read(path, least=2000).size == images.read(path).size == (1400, 1000)


@pytest.mark.exhaustive
def test_every_orientation(tmp_path, photograph):
    """Turned after it was shrunk: as if it had been turned before."""
    for number in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        for suffix in ("jpg", "png", "tiff", "webp"):
            quick = {"png": {"compress_level": 1}, "webp": {"method": 0}}.get(suffix, {})
            photograph.save(tmp_path / f"a.{suffix}", exif=exif, **quick)
            want = ImageOps.exif_transpose(photograph if number == 1 else Image.open(tmp_path / f"a.{suffix}"))
            got = images.read(tmp_path / f"a.{suffix}", least=64)
            assert (got.width > got.height) == (want.width > want.height) == (number < 5)
            difference = images.square(got, 32).astype(float) - images.square(want.convert("RGB"), 32)
            # A picture that is taken for a pixel too wide differs by 3 and more.
            assert np.abs(difference).mean() < 1.2, (number, suffix)


def test_sketches_keep_more_detail(tmp_path):
    """Their ink may fill a small part of the paper."""
    assert images.least_side(64) == 128 and images.least_side(64, crop_ink=True) == decode.SKETCH_SIDE
    image = Image.new("RGB", (3000, 3000), "white")
    image.paste("black", (100, 100, 130, 180))
    image.save(tmp_path / "a.png")
    (decoded,) = decode.decode([tmp_path / "a.png"], 64, crop_ink=True)
    np.testing.assert_array_equal(decoded, images.square(image, 64, crop_ink=True))


def test_the_decoding_of_before_is_kept(tmp_path, photograph, monkeypatch):
    photograph.save(tmp_path / "a.jpg", icc_profile=swapped_profile())
    assert images.read(tmp_path / "a.jpg", least=64, decoding=1).size == (1400, 1000)
    plain = np.asarray(Image.open(tmp_path / "a.jpg"))
    np.testing.assert_array_equal(np.asarray(images.read(tmp_path / "a.jpg", least=64, decoding=1)), plain)
    assert not np.array_equal(np.asarray(images.read(tmp_path / "a.jpg")), plain)
    monkeypatch.setattr(decode, "IN_FULL", 1_000_000)  # of larger ones nobody wants all pixels in memory
    assert min(images.read(tmp_path / "a.jpg", least=64, decoding=1).size) < 128


# ---- colours ----


def swapped_profile():
    """A profile whose red is green and the other way round."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    for place in range(132, 132 + 12 * count, 12):
        name = bytes(data[place : place + 4])
        swap = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(name)
        if swap:
            data[place : place + 4] = swap
    at = data.find("sRGB".encode("utf-16-be"))
    while at >= 0:  # its name must not say what it is not
        data[at : at + 8] = "Mine".encode("utf-16-be")
        at = data.find("sRGB".encode("utf-16-be"))
    return bytes(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_profiles_are_converted(tmp_path, mode):
    image = Image.new("RGB", (40, 40), (204, 51, 51)).convert(mode)  # a colour of the web palette
    image.save(tmp_path / "a.png", icc_profile=swapped_profile())
    red, green, blue = images.read(tmp_path / "a.png").getpixel((5, 5))
    assert abs(red - 51) < 6 and abs(green - 204) < 6 and abs(blue - 51) < 6
    white = Image.new("RGB", (4, 4), "white")
    white.save(tmp_path / "white.png", icc_profile=swapped_profile())
    assert min(images.read(tmp_path / "white.png").getpixel((0, 0))) >= 254  # paper stays paper


def test_profiles_that_are_no_use_are_passed_over(tmp_path):
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode, profile in [("RGB", b"nonsense"), ("RGB", own), ("L", swapped_profile()), ("RGB", own[:200])]:
        image = Image.new("RGB", (4, 4), (220, 30, 40)).convert(mode)
        image.save(tmp_path / "a.png", icc_profile=profile)
        assert images.read(tmp_path / "a.png").getpixel((0, 0)) == image.convert("RGB").getpixel((0, 0))


# ---- 16 bits ----


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([0, 257, 32_768, 65_535], [0, 1, 127, 255]),
        ([0, 1, 255, 256], [0, 0, 0, 0]),  # dark, but of 16 bits
        ([0, 1, 128, 255], [0, 1, 128, 255]),  # all fit into 8: taken as such
    ],
)
def test_sixteen_bits(tmp_path, values, want):
    array = np.array([values], dtype=np.uint16)
    for suffix in ("png", "tiff"):
        Image.fromarray(array).save(tmp_path / f"a.{suffix}")
        assert np.asarray(images.read(tmp_path / f"a.{suffix}"))[0, :, 0].tolist() == want
    for kind in (np.int32, np.float32):
        Image.fromarray(array.astype(kind)).save(tmp_path / "a.tiff")
        got = np.asarray(images.read(tmp_path / "a.tiff"))[0, :, 0]
        assert np.abs(got.astype(int) - want).max() <= 1


def test_sixteen_bits_in_strips(tmp_path, monkeypatch):
    """The largest value counts for all of the picture, wherever it is."""
    array = np.full((50, 30), 200, dtype=np.uint16)
    array[49, 29] = 60_000
    Image.fromarray(array).save(tmp_path / "a.png")
    whole = np.asarray(images.read(tmp_path / "a.png"))
    monkeypatch.setattr(decode, "STRIP", 100)
    np.testing.assert_array_equal(np.asarray(images.read(tmp_path / "a.png")), whole)
    assert whole[0, 0, 0] == 0 and whole[49, 29, 0] == 233


def test_strips_make_no_seams(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (103, 70, 4), dtype=np.uint8), "RGBA").save(tmp_path / "a.png")
    whole = np.asarray(images.read(tmp_path / "a.png", least=20))
    monkeypatch.setattr(decode, "STRIP", 300)
    np.testing.assert_array_equal(np.asarray(images.read(tmp_path / "a.png", least=20)), whole)
    assert whole.shape == (35, 24, 3)


# ---- what a fit does ----


def test_elongated_sketches_are_cropped_by_their_longer_side():
    """The crop's threshold is a share of the longer side, for tall drawings and for wide ones."""
    for long, kept in ((162, False), (163, True)):  # 184 and 185 with the border: 0.92 of 200 is 184
        for box in ((10, 12, 40, 12 + long), (12, 10, 12 + long, 40)):
            image = Image.new("RGB", (200, 200), "white")
            image.paste("black", box)
            assert (images.crop_to_ink(image) is image) == kept, box


def test_cut_outs_lie_on_white(tmp_path):
    """Also where they are half transparent, and when they are shrunk."""
    pixels = np.zeros((64, 64, 4), dtype=np.uint8)
    pixels[:32] = (0, 0, 0, 128)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    for least in (None, 16):
        image = np.asarray(images.read(tmp_path / "a.png", least=least))
        assert (image[-1] == 255).all() and np.abs(image[0].astype(int) - 127).max() <= 1


def test_names_do_not_forge_lines(tmp_path):
    skipped = [Skipped("two\nlines\tand a tab.png", "bad\r\nreason"), Skipped("caf\udce9\u2028.png", "no")]
    images.write_skipped(tmp_path / "skipped.txt", skipped)
    data = (tmp_path / "skipped.txt").read_bytes()
    assert data == b"two\\nlines\\tand a tab.png\tbad\\r\\nreason\ncaf\xe9\\u2028.png\tno\n"
    assert str(UnreadablePicture("a\nb", "no")) == "cannot read picture a\\nb: no"


def test_decoders_keep_quiet(tmp_path):
    """libtiff would write lines that name no file."""
    save(tmp_path / "a.tiff", np.zeros((40, 40, 3)), compression="tiff_lzw")
    data = bytearray((tmp_path / "a.tiff").read_bytes())
    data[8:40] = b"\xff" * 32
    (tmp_path / "a.tiff").write_bytes(data)
    code = "from splip.cli.main import main; main(['data', 'check', '--root', 'tree', '--decode'])"
    for kind in ("sketch", "photo"):
        folder = tmp_path / "tree" / kind / "a"
        folder.mkdir(parents=True)
        (folder / "a.tiff").write_bytes(data)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "unreadable: tree/photo/a/a.tiff: " in done.stdout and done.stderr == ""
