"""When nothing in a gallery fits: what is measured, when, and what follows from it."""

import math

import numpy as np
import pytest
from drawing import draw

from splip.gallery import Filter, Gallery, catalog, doubt
from splip.gallery.doubt import Bulk, Doubt
from splip.gallery.queries import QueryEncoder


@pytest.fixture(scope="module")
def gallery(sample, tmp_path_factory):
    """Photos of eight classes, in a gallery of the packaged model."""
    names = ["guitar", "camel", "elephant", "leaf", "star", "train", "pen", "shirt"]
    pictures = [path for name in names for path in sorted((sample / "photo" / name).glob("*.png"))[:9]]
    with Gallery.create(tmp_path_factory.mktemp("g") / "gallery", "splip-tiny-3", device="cpu") as gallery:
        gallery.add(pictures)
        yield gallery


def test_a_bulk_says_what_the_best_of_many_would_score():
    random = np.random.default_rng(0)
    scores = random.normal(0.3, 0.05, (200, 4000))
    bulk = Bulk.of(scores)
    assert bulk.middle == pytest.approx(0.3, abs=0.002) and bulk.upper == pytest.approx(0.3 + 1.2816 * 0.05, abs=0.002)
    best = scores.max(axis=1).mean()
    assert bulk.cutoff(4000, 1.0) == pytest.approx(best, abs=0.04) and bulk.cutoff(4000, 1.0) > best
    scores[:, :40] = 0.9  # a class that the gallery does hold changes little
    assert Bulk.of(scores).cutoff(4000, 1.0) == pytest.approx(bulk.cutoff(4000, 1.0), abs=0.01)


def test_probes_are_of_classes_that_nothing_is_reported_of():
    names = [name for name, _ in doubt.probes()]
    assert len(names) == len(set(names)) > 60
    assert not {"horse", "fish", "guitar", "dog", "airplane", "wine glass"}.intersection(names)
    assert all(image.size == (64, 64) and image.getextrema()[0][0] < 128 for _, image in doubt.probes())


def test_adding_measures_a_gallery_until_it_has_grown(gallery):
    known = gallery._files.doubt()
    assert known.photos == len(gallery) and set(known.bulks) == {"sketch", "photo", "text"}
    assert not doubt.calibrate(gallery)
    assert gallery._files.doubt() == known


def test_a_gallery_that_grew_by_half_is_measured_again(sample, tmp_path):
    leaves, trains = (sorted((sample / "photo" / name).glob("*.png")) for name in ("leaf", "train"))
    first = [*leaves, *trains][:48]
    more = [path for path in sorted((sample / "photo").glob("*/*.png")) if path not in first][:: 2000 // 30][:24]
    with Gallery.create(tmp_path / "gallery", "splip-tiny-3", device="cpu") as gallery:
        gallery.add(first)
        before = gallery._files.doubt()
        gallery.add(more)
        after = gallery._files.doubt()
        assert (before.photos, after.photos) == (48, 72)
        assert all(after.bulks[kind] != before.bulks[kind] for kind in doubt.FACTORS)
        drawn = sorted((sample / "sketch" / "leaf").glob("*-1.png"))[0]
        want = after.bulks["sketch"].cutoff(72, doubt.FACTORS["sketch"])
        assert gallery.search(sketches=[drawn], k=1)[0].cutoff == pytest.approx(want)


def test_a_gallery_whose_photos_are_others_is_measured_again(gallery, monkeypatch):
    with gallery.catalog.reading() as db:
        before, last = doubt.read(catalog.facts(db)), db.execute("SELECT max(id) FROM items").fetchone()[0]
        assert before.last == last
        live = len(gallery)
        assert not doubt._changed(db, before, live) and doubt._changed(db, before, 2 * live)
        assert doubt._changed(db, before._replace(last=last - live // 4 - 1), live)
        assert not doubt._changed(db, before._replace(last=last - live // 8), live)
        assert not doubt._changed(db, before._replace(last=0), live)  # of before, which noted none
    measured = []
    monkeypatch.setattr(doubt, "calibrate", measured.append)
    gallery.add([])  # an addition before was killed
    assert measured == [gallery]


def test_measuring_that_fails_is_a_warning(gallery, monkeypatch):
    def fails(gallery):
        raise RuntimeError("no such tower")

    monkeypatch.setattr(doubt, "calibrate", fails)
    with pytest.warns(RuntimeWarning, match="not measured, .* tries again: no such tower"):
        assert gallery.add([]).seen == 0


def test_searches_say_their_cutoff(gallery, sample):
    drawn = [sorted((sample / "sketch" / name).glob("*-1.png"))[0] for name in ("guitar", "wine_glass")]
    found, missing = gallery.search(sketches=drawn, k=5)
    known = gallery._files.doubt().bulks["sketch"]
    want = (
        known.middle
        + doubt.FACTORS["sketch"] * math.sqrt(2 * math.log(len(gallery))) * (known.upper - known.middle) / 1.2816
    )
    assert found.cutoff == missing.cutoff == pytest.approx(want)
    assert found.likely == [match.score >= found.cutoff for match in found]
    assert found.likely[0] and not any(missing.likely)
    photo = sorted((sample / "photo" / "camel").glob("*.png"))[0]
    again = gallery.search(photos=[photo], k=3)[0]
    assert again.cutoff not in (None, found.cutoff) and again.likely[0]


def test_words_are_judged_where_they_are_known(gallery):
    known, unknown = gallery.search(texts=["camel", "a red helicopter"], k=3)
    assert known.cutoff is not None and unknown.cutoff is None and unknown.likely == [None] * 3


def test_what_cannot_be_judged(gallery, sample):
    camel = sorted((sample / "sketch" / "camel").glob("*-1.png"))[0]
    vector = gallery.embed([camel])
    assert gallery.search(vectors=vector)[0].cutoff is None
    assert gallery.search_vectors(vector)[0].cutoff is None
    assert gallery.search(sketches=[camel], texts=["camel"])[0].cutoff is None
    only, every = gallery.search(sketches=[camel, camel], filter=[Filter(labels=("x",)), None])
    assert only.cutoff is None and every.cutoff is not None
    assert Doubt(48, {"sketch": Bulk(0.1, 0.2)}).cutoff("photo", 48) is None
    assert Doubt(48, {"sketch": Bulk(0.1, 0.2)}).cutoff("sketch", 47) is None
    assert Doubt(48, {"sketch": Bulk(0.2, 0.2)}).cutoff("sketch", 48) is None  # all alike
    assert Doubt(48, {"sketch": Bulk(0.1, 0.2)}).cutoff(None, 48) is None
    assert QueryEncoder.cutoff(gallery, "sketch") is None  # of galleries that keep no such thing


@pytest.mark.parametrize(
    "value", [None, "", "{}", '{"photos": 3}', '{"count": 60, "sketch": [1]}', '{"count": "x"}', "[1]"]
)
def test_facts_that_are_not_understood_are_none(value):
    assert doubt.read({} if value is None else {"doubt": value}) is None


def test_a_gallery_of_one_picture_is_not_judged(tmp_path):
    draw(tmp_path / "a.png", 1, "blue", 0)
    with Gallery.create(tmp_path / "gallery", "splip-tiny-3", device="cpu") as gallery:
        gallery.add([tmp_path / "a.png"])
        found = gallery.search(sketches=[tmp_path / "a.png"], texts=[], k=3)[0]
        assert len(found) == 1 and found.cutoff is None and found.likely == [None]
        assert gallery._files.doubt() is None


def test_the_same_in_a_gallery_opened_to_read(gallery, sample):
    camel = sorted((sample / "sketch" / "camel").glob("*-1.png"))[0]
    with Gallery.open(gallery.folder, device="cpu", encoder=gallery.encoder) as other:
        assert other.search(sketches=[camel])[0].cutoff == gallery.search(sketches=[camel])[0].cutoff


def test_rows_are_taken_from_all_of_a_gallery_and_none_that_is_removed(gallery, monkeypatch):
    monkeypatch.setattr(doubt, "ROWS", 20)
    with gallery.snapshot(ready=False) as (_, state):
        rows = doubt._sample(gallery, state)
        assert 10 <= len(rows) <= 20 and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        number = state.segments[0].number
        alive = np.zeros(state.segments[0].count, dtype=bool)
        alive[5] = True
        one = doubt._sample(gallery, type(state)(0, state.segments, {number: alive}, 1))
        assert len(one) == 1 and np.allclose(one[0], gallery.files.read_rows(number, 5, 1)[0], atol=1e-6)
