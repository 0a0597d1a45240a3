"""Pack files whose header is in order and says what cannot be."""

import struct
import zlib

import numpy as np
import pytest

from splip.gallery.segments import HEADER, MAGIC, PAGE, VERSION, Segments

DIM, ROWS = 8, 100


@pytest.fixture
def files(tmp_path):
    files = Segments(tmp_path, DIM)
    rows = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
    files.write_pack(1, ROWS, files.append(1, 0, rows, 0))
    return files


def forge(files, change):
    """Change the header's fields, and its checksum with them."""
    path = files.pack_path(1)
    data = bytearray(path.read_bytes())
    fields = list(HEADER.unpack(bytes(data[: HEADER.size])))
    change(fields)
    header = HEADER.pack(*fields)
    data[: HEADER.size + 4] = header + struct.pack("<I", zlib.crc32(header))
    path.write_bytes(bytes(data))


def test_a_header_that_nobody_changed(files):
    forge(files, lambda fields: None)
    pack = files.open_pack(1)
    assert pack.count == ROWS and pack.intact() and len(pack.arrays) == 5


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, b"splippax"),
        (1, VERSION + 1),
        (2, DIM + 1),
        (3, ROWS + 1),  # one row more than the arrays are for
        (3, 2**40),
        (5, PAGE + 64),  # where the panels begin
        (5, 1 << 40),
        (6, 0),  # bytes of the panels
        (6, 1 << 50),
        (17, 1 << 30),  # where the centre begins
        (18, 4 * DIM),  # bytes of the centre
    ],
)
def test_packs_out_of_bounds_are_not_used(files, place, value):
    assert HEADER.unpack(files.pack_path(1).read_bytes()[: HEADER.size])[0] == MAGIC
    forge(files, lambda fields: fields.__setitem__(place, value))
    assert files.open_pack(1) is None


@pytest.mark.parametrize("length", [0, 10, HEADER.size, PAGE - 1, PAGE, 2 * PAGE + 5])
def test_packs_that_are_cut_are_not_used(files, length):
    path = files.pack_path(1)
    path.write_bytes(path.read_bytes()[:length])
    assert files.open_pack(1) is None
