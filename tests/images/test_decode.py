"""Pictures as RGB."""

import numpy as np
import pytest
from PIL import Image

from splip import images


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_nothing_shows_through_is_as_on_white(tmp_path, mode):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (9, 7, 4), dtype=np.uint8), "RGBA")
    picture.putalpha(255)
    picture = picture.quantize(16) if mode == "P" else picture.convert(mode)
    picture.save(tmp_path / "opaque.png", **({"transparency": b"\xff" * 16} if mode == "P" else {}))
    want = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(images.read(tmp_path / "opaque.png")), want)
    if mode == "RGBA":  # a single pixel through which something shows
        picture.putpixel((3, 4), (0, 0, 0, 127))
        picture.save(tmp_path / "one.png")
        got = np.asarray(images.read(tmp_path / "one.png")).astype(int)
        assert got[4, 3].tolist() == [128, 128, 128]
        want = want.copy()
        want[4, 3] = 128
        np.testing.assert_array_equal(got, want)
