"""One query at a time, as people type it, and what a notebook shows of its answer."""

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from gallery_faults import MODEL, PixelEncoder, paint
from PIL import Image

import splip
from splip.errors import UserError
from splip.gallery import Filter, Gallery, Match, Matches
from splip.gallery.notebook import BYTES, MOST, page


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    return [paint(folder / f"{number}.png", number) or folder / f"{number}.png" for number in range(6)]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory, photos):
    folder = tmp_path_factory.mktemp("comfort")
    (folder / "model").write_bytes(MODEL)
    with Gallery.create(folder / "gallery", folder / "model", encoder=PixelEncoder()) as gallery:
        gallery.add(photos, label="spot")
        yield gallery


def test_one_query_gets_its_matches(gallery, photos):
    want = gallery.search([photos[2]], k=4)
    image = Image.open(photos[2])
    for given in (photos[2], str(photos[2]), photos[2].read_bytes(), image, np.asarray(image.convert("RGB"))):
        found = gallery.search(given, k=4)
        assert isinstance(found, Matches) and found == want[0], type(given)
        assert gallery.search([given], k=4) == want
    assert gallery.search(photos=str(photos[2]), k=4) == gallery.search(photos=[photos[2]], k=4)[0]
    assert gallery.search(texts="red car", k=2) == gallery.search(texts=["red car"], k=2)[0]
    mixed = gallery.search(photos[2], texts="red", text_weight=0.3, k=3)
    assert mixed == gallery.search([photos[2]], texts=["red"], text_weight=0.3, k=3)[0]
    # One list among them makes it a list.
    assert gallery.search(photos[:2], texts="red") == gallery.search(photos[:2], texts=["red", "red"])
    assert gallery.search(photos[0], filter=Filter(labels=("none",))) == []
    assert len(gallery.search(photos[:3])) == 3 and gallery.search() == []


def test_arrays_are_read_as_files_are(gallery, photos, tmp_path):
    rng = np.random.default_rng(0)
    for shape in ((20, 30), (20, 30, 3), (20, 30, 4)):
        array = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / "a.png")
        np.testing.assert_array_equal(gallery.prepare(array, "photo"), gallery.prepare(tmp_path / "a.png", "photo"))


def test_a_part_of_matches_is_matches(gallery, photos):
    found = gallery.search(photos[2], k=5)
    assert len(found) == 5 and isinstance(found[0], Match) and found[-1] is list(found)[-1]
    some = found[1:3]
    assert isinstance(some, Matches) and some == list(found)[1:3] and not some.partial
    assert Matches(found, partial=True)[:2].partial


def test_filters_take_folders_as_text_and_no_label_for_its_letters(gallery, photos):
    found = gallery.search(photos[2], k=6, filter=Filter(under=str(photos[0].parent)))
    assert len(found) == 6 and gallery.search(photos[2], filter=Filter(under="/elsewhere")) == []
    with pytest.raises(UserError, match=r"labels: a tuple of them, \('spot',\), and not 'spot'"):
        Filter(labels="spot")


def test_it_is_opened_in_a_word(gallery, photos, monkeypatch):
    for place in (gallery.folder, str(gallery.folder)):
        with splip.open(place) as again:
            assert isinstance(again, Gallery) and len(again) == 6 and ": 6 pictures, pixels of" in repr(again)
    monkeypatch.setenv("SPLIP_GALLERY", str(gallery.folder))
    with splip.open() as again:
        assert again.folder == gallery.folder
    with pytest.raises(UserError, match="opened with splip.milvus.open_gallery"):
        splip.open("milvus://localhost:19530/photos")
    with pytest.raises(UserError, match="nowhere"):
        splip.open("nowhere")


def test_opening_and_showing_take_no_torch(gallery, photos):
    code = (
        "import sys, splip\n"
        "from splip.gallery import Match, Matches\n"
        f"with splip.open({str(gallery.folder)!r}) as gallery:\n"
        "    item = gallery.item(1)\n"
        "    shown = Matches([Match(1, 0.5, item.path, item.label, item.tags)])._repr_html_()\n"
        "assert 'data:image/jpeg;base64,' in shown and 'torch' not in sys.modules, sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- the notebook ----


class Reader(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.text = [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_a_notebook_shows_pictures_scores_and_labels(gallery, photos):
    found = gallery.search(photos[2], k=3)
    read = Reader(found._repr_html_())
    pictures = [attrs for tag, attrs in read.elements if tag == "img"]
    assert len(pictures) == 3
    for attrs in pictures:
        with Image.open(io.BytesIO(base64.b64decode(attrs["src"].removeprefix("data:image/jpeg;base64,")))) as image:
            assert image.size == (int(attrs["width"]), int(attrs["height"])) and max(image.size) <= 144
    assert f"1. {found[0].score:.3f} spot" in read.text and photos[2].name in read.text
    assert "pale" not in read.text and "opacity:.5" not in found._repr_html_()
    found.cutoff = found[1].score
    html = found._repr_html_()
    assert html.count("opacity:.5") == 1 and "probably not: the pale ones" in html
    found.cutoff = 2.0
    assert "probably not: any of these" in found[:2]._repr_html_()
    assert "no picture passes" in Matches()._repr_html_()
    assert "some machines did not answer" in Matches(found, partial=True)._repr_html_()


def test_labels_and_names_are_text(photos, tmp_path):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;\x00\u202e"
    named = tmp_path / "'\"><svg onload=alert(1)>.png"
    named.write_bytes(photos[0].read_bytes())
    html = page(
        [Match(1, 0.5, named, evil), Match(2, 0.4, Path("/gone/<b>.jpg"), None), Match(3, 0.1, Path("\udcff.jpg"), "a")]
    )
    read = Reader(html)
    assert {tag for tag, _ in read.elements} == {"div", "img", "b"}
    assert all(set(attrs) <= {"style", "title", "src", "width", "height", "alt"} for _, attrs in read.elements)
    assert all(attrs["src"].startswith("data:image/jpeg;base64,") for tag, attrs in read.elements if tag == "img")
    assert "<script>alert(1)</script>" in read.text and "\x00" not in html and read.text.count("not there") == 2
    html.encode("utf-8")  # whatever bytes a name was of
    assert not re.search(r"https?://", html)


def test_a_page_is_small(tmp_path):
    """Noise is what compresses worst."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (400, 400, 3), dtype=np.uint8)).save(tmp_path / "noise.png")
    many = [Match(n, 0.5, tmp_path / "noise.png", "x" * 1000) for n in range(MOST + 10)]
    html = page(many)
    assert len(html) <= 300_000 and html.count("<img") == MOST and "and 10 more" in html
    sizes = [len(base64.b64decode(data)) for data in re.findall(r'base64,([^"]+)', html)]
    assert max(sizes) <= BYTES
