"""A gallery that the code of before wings wrote, committed as it was: it opens, answers, and takes what is added."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from gallery_faults import DIM, PixelEncoder, paint

from splip.gallery import Filter, Gallery

STORED = Path(__file__).resolve().parents[1] / "fixtures/gallery"


@pytest.fixture
def stored(tmp_path):
    """Twelve pictures of three labels, in three segments of five rows, every other one tagged, the fourth taken out."""
    shutil.copytree(STORED, tmp_path / "gallery")
    return tmp_path / "gallery"


def assert_answers(gallery, wanted):
    queries = np.random.default_rng(5).standard_normal((3, DIM)).astype(np.float32)
    for matches, want in zip(gallery.search_vectors(queries, 20), wanted, strict=True):
        found = [{"id": m.id, "label": m.label, "tags": m.tags, "name": m.path.name} for m in matches]
        assert found == [{key: value for key, value in one.items() if key != "score"} for one in want]
        np.testing.assert_allclose([m.score for m in matches], [one["score"] for one in want], rtol=0, atol=2e-7)


def test_a_stored_gallery_answers_as_it_did(stored):
    wanted = json.loads((stored / "answers.json").read_text(encoding="utf-8"))
    with Gallery.open(stored, encoder=PixelEncoder()) as gallery:
        assert len(gallery) == 11 and gallery.labels() == {"class-0": 3, "class-1": 4, "class-2": 4}
        assert_answers(gallery, wanted)
        even = gallery.search_vectors(np.ones((1, DIM), np.float32), 20, Filter(tags={"even": "yes"}))[0]
        assert sorted(match.id for match in even) == [1, 3, 5, 7, 9, 11]
        found = gallery.check()
        assert not found.damage and (found.items, found.segments, found.deleted) == (11, 3, 1)


def test_a_stored_gallery_grows_and_is_compacted(stored, tmp_path):
    wanted = json.loads((stored / "answers.json").read_text(encoding="utf-8"))
    paint(tmp_path / "new.png", 99)
    with Gallery.open(stored, write=True, encoder=PixelEncoder()) as gallery:
        assert gallery.add([tmp_path / "new.png"], label="late").new == 1
        match = gallery.search(photos=[tmp_path / "new.png"], k=1)[0][0]
        assert (match.id, match.label) == (13, "late") and match.score == pytest.approx(1, abs=1e-6)
        gallery.remove([13])
        assert gallery.compact().dropped == 2
        assert_answers(gallery, wanted)
        assert not gallery.check().damage
