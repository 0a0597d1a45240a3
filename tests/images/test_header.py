"""What a picture's header says: dates, cameras and sizes, from honest files and from others."""

import datetime
import errno
import io
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest
from photographs import exif, photograph
from PIL import Image

from splip.images import decode, header
from splip.images.header import Header

FORMS = [form for form in ("JPEG", "PNG", "WEBP", "HEIF", "AVIF") if form in decode.formats()]
WANTED = Header(30, 40, "2019-07-14T10:02:03", "Canon EOS 80D")


@pytest.mark.parametrize("form", FORMS)
def test_decoding_and_reading_the_header_tell_the_same(form, tmp_path):
    path = tmp_path / "a.picture"
    data = photograph(path, form, tags=exif(orientation=6))
    assert decode.read(data).info["header"] == decode.read(path).info["header"] == WANTED
    assert decode.read_header(data) == decode.read_header(path) == WANTED
    bare = photograph(form=form, tags=b"")
    assert decode.read(bare).info["header"] == decode.read_header(bare) == Header(40, 30)
    assert decode.read(data, least=8).info["header"] == WANTED  # shrunk: the size is that of the file


def test_tiff(tmp_path):
    tags = Image.Exif()
    tags[0x0110], tags[0x0112], tags[0x0132] = "Scanner 3000", 8, "2001:02:03 04:05:06"
    Image.new("RGB", (40, 30)).save(tmp_path / "a.tif", exif=tags)
    want = Header(30, 40, "2001-02-03T04:05:06", "Scanner 3000")
    data = (tmp_path / "a.tif").read_bytes()
    for source in (tmp_path / "a.tif", data):
        assert decode.read(source).info["header"] == decode.read_header(source) == want


def test_a_member_of_a_tar_file(tmp_path):
    photograph(tmp_path / "a.jpg")
    with tarfile.open(tmp_path / "shard.tar", "w") as file:
        file.add(tmp_path / "a.jpg", "a.jpg")
    assert decode.read_header(tmp_path / "shard.tar" / "a.jpg").taken == "2019-07-14T10:02:03"


@pytest.mark.parametrize(
    ("tags", "want"),
    [
        ({"taken": "2019:07:14 10:02:03", "digitized": "2020:01:01 00:00:00"}, "2019-07-14T10:02:03"),
        ({"taken": None, "digitized": "2020:01:01 00:00:00", "changed": "2021:01:01 00:00:00"}, "2020-01-01T00:00:00"),
        ({"taken": "0000:00:00 00:00:00", "changed": "2021:01:01 00:00:00"}, "2021-01-01T00:00:00"),
        ({"taken": "2019:07:14 10:02:03+02:00"}, "2019-07-14T10:02:03"),
        ({"taken": "2019-07-14T10:02:03"}, "2019-07-14T10:02:03"),
        ({"taken": "2019:07:14"}, "2019-07-14T00:00:00"),
        ({"taken": "1825:12:31 23:59:59"}, None),
        ({"taken": "1826:01:01 00:00:00"}, "1826-01-01T00:00:00"),
        ({"taken": "2019:13:01 00:00:00"}, None),
        ({"taken": "2019:02:30 00:00:00"}, None),
        ({"taken": "    :  :     :  :  "}, None),
        ({"taken": "yesterday"}, None),
        ({"taken": "20190714100203"}, None),
        ({"taken": "9999:01:01 00:00:00"}, None),
        ({"taken": None}, None),
    ],
)
def test_dates(tags, want):
    assert decode.read_header(photograph(tags=exif(**tags))).taken == want


def test_a_clock_may_be_ahead_by_a_day():
    now = datetime.datetime.now()
    for hours, told in ((20, True), (28, False)):
        date = (now + datetime.timedelta(hours=hours)).strftime("%Y:%m:%d %H:%M:%S")
        assert (decode.read_header(photograph(tags=exif(date))).taken is not None) == told


@pytest.mark.parametrize(
    ("make", "model", "want"),
    [
        ("Canon", "Canon EOS 80D", "Canon EOS 80D"),
        ("NIKON CORPORATION", "NIKON D750", "NIKON D750"),
        ("Apple", "iPhone 12", "Apple iPhone 12"),
        ("Leica", "", "Leica"),
        ("", "X100", "X100"),
        (" two\nlines ", "\t", "two lines"),
        ("x" * 300, "y", "x" * 100),
        ("", "", None),
    ],
)
def test_cameras(make, model, want):
    assert decode.read_header(photograph(tags=exif(main={0x010F: make, 0x0110: model}))).camera == want


def test_sizes_are_those_of_the_pixels():
    claimed = exif(main={0x0100: 9999, 0x0101: 9999, 0xA002: 9999, 0xA003: 9999})
    assert decode.read(photograph(tags=claimed)).info["header"] == Header(40, 30, "2019-07-14T10:02:03")


def directory(entries, order="<", head=b"II*\0"):
    body = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        body += struct.pack(order + "HHLL", tag, kind, count, value)
    return head + struct.pack(order + "L", 8) + body + bytes(4)


HOSTILE = {
    "empty": b"Exif\0\0",
    "no head": b"Exif\0\0what?",
    "cut": exif()[:20],
    "first directory far away": b"II*\0\xff\xff\xff\xff",
    "first directory is the head": b"II*\0\0\0\0\0",
    "more entries than bytes": b"II*\0\x08\0\0\0\xff\xff" + bytes(100),
    "values far away": directory([(0x010F, 2, 100, 0xFFFFFFF0), (0x0110, 2, 0xFFFFFFFF, 8)]),
    "value of all memory": directory([(0x010F, 2, 0xFFFFFFFF, 8)]),
    "unknown types": directory([(0x010F, 99, 4, 0), (0x0132, 12, 1, 0)]),
    "directory in itself": directory([(0x8769, 4, 1, 8)]),
    "inner directory far away": directory([(0x8769, 4, 1, 0xFFFFFF00)]),
    "big end": directory([(0x8769, 4, 1, 8)], ">", b"MM\0*"),
    "every value is everything": directory([(tag, 2, 60_000, 0) for tag in range(4000)]),
    "noise": bytes(range(256)) * 100,
}


@pytest.mark.filterwarnings("ignore")  # Pillow's, of which there is one for each entry
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", [form for form in FORMS if form in ("JPEG", "PNG", "WEBP")])
def test_hostile_exif_says_nothing_and_costs_nothing(name, form):
    data = photograph(form=form, tags=HOSTILE[name])
    decode.read_header(data)  # loads code
    tracemalloc.start()
    try:
        found = decode.read_header(data)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()
    assert (found.width, found.height, found.taken) == (40, 30, None)
    assert decode.read(data).info["header"].taken is None


def test_files_that_are_no_pictures_have_no_header(tmp_path):
    for data in (b"", b"text", photograph()[:20], b"RIFF\0\0\0\0WEBPVP8X" + bytes(40), b"RIFF"):
        found = decode.read_header(data)
        assert found is None or found.taken is None
    with pytest.raises(FileNotFoundError):
        decode.read_header(tmp_path / "none.jpg")


def test_a_disk_that_fails_says_nothing_of_the_picture(tmp_path, monkeypatch):
    photograph(tmp_path / "a.tif", "TIFF")

    def broken(image, file):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(decode.header, "tags", broken)
    with pytest.raises(OSError, match="Input/output error"):
        decode.read_header(tmp_path / "a.tif")
    monkeypatch.setattr(decode.header, "tags", lambda image, file: 1 / 0)
    assert decode.read_header(tmp_path / "a.tif") == decode.read(tmp_path / "a.tif").info["header"] == Header(40, 30)


@pytest.mark.filterwarnings("ignore")  # of Pillow
def test_a_directory_whose_place_is_many_numbers(tmp_path):
    """EXIF's place as 64 numbers: the first is none that a file has, and the picture is one nevertheless."""
    data = bytearray(photograph(form="TIFF", tags=b""))
    first = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[first : first + 2], "little")
    entry = struct.pack("<HHII", 0x8769, 4, 64, len(data) + 12 * count + 64)
    old = bytes(data[first + 2 : first + 2 + 12 * count])
    directory = struct.pack("<H", count + 1) + old + entry + bytes(4)
    data[4:8] = len(data).to_bytes(4, "little")
    data += directory
    (tmp_path / "a.tif").write_bytes(bytes(data.ljust(len(data) + 12 * count + 64, b"\xff")) + b"\xff" * 512)
    want = Header(40, 30)
    assert decode.read_header(tmp_path / "a.tif") == decode.read(tmp_path / "a.tif").info["header"] == want


def test_a_png_whose_exif_stands_behind_its_pixels(tmp_path):
    data = photograph(form="PNG", tags=exif(orientation=6))
    start = data.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
    chunk, end = data[start:stop], data.rindex(b"IEND") - 4
    moved = data[:start] + data[stop:end] + chunk + data[end:]
    (tmp_path / "a.png").write_bytes(moved)
    want = Header(30, 40, "2019-07-14T10:02:03", "Canon EOS 80D")
    assert (
        decode.read_header(moved) == decode.read_header(tmp_path / "a.png") == decode.read(moved).info["header"] == want
    )


def test_a_webp_whose_chunks_claim_more_than_there_is():
    data = photograph(form="WEBP")
    place = data.index(b"EXIF")
    assert header.of_webp((4, 3), io.BytesIO(data[:place] + b"EXIF\xff\xff\xff\xff")) == Header(4, 3)
    assert header.of_webp((4, 3), io.BytesIO(data[:12] + b"ABCD\xff\xff\xff\xff" + data[20:])) == Header(4, 3)


def test_scans_are_counted_where_they_are(monkeypatch):
    monkeypatch.setattr(decode, "MARKERS", 8)
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = rng.choice(np.array([0xFF, 0xDA, 0], np.uint8), rng.integers(0, 40)).tobytes()
        assert decode._scans(data) == data.count(b"\xff\xda")
