"""The packaged backbones have not seen what they are tested on."""

import csv
import io
import lzma

import numpy as np
import pytest
from icon_packages import OPEN, sets
from PIL import Image, ImageDraw

from splip.data import leaks
from splip.data.sample import VALIDATION, things
from splip.models.clip import WEIGHTS


@pytest.fixture(scope="module")
def shown():
    """What splip-tiny was trained on: a row for each thing."""
    with open(WEIGHTS / "splip-tiny.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def sample():
    return things()


def hashes(row):
    return [int(entry.rsplit(":", 1)[1], 16) for entry in row["pictures"].split()]


def test_no_thing_of_a_test_class_was_shown(shown, sample):
    names = {row["thing"] for row in shown}
    assert len(names) == len(shown) > 500
    for split in ("unseen", "validation"):
        kept = leaks.kept(split)
        assert not names & set(kept.things)
        for row in shown:
            assert leaks.reason(row["thing"], row["name"], split=split) is None, row["name"]
    assert {row["class"] for row in sample if row["split"] == "unseen"} == set(leaks.kept("unseen").things.values())
    assert set(VALIDATION) == set(leaks.kept("validation").things.values())


def test_no_shown_class_is_a_test_class(shown, sample):
    tested = {leaks.kept(split).things[c] for split in ("unseen", "validation") for c in leaks.kept(split).things}
    assert not {row["class"].replace(" ", "_") for row in shown} & tested


def test_no_shown_picture_looks_like_a_test_picture(shown):
    tested = leaks.tested_hashes()
    assert len(tested) == 6 * 188
    found = leaks.distances([one for row in shown for one in hashes(row)], tested)
    assert int(found.min()) > leaks.NEAR


def test_no_sketch_was_shown(shown):
    """Every picture is by a designer whose pictures are in colour; OpenMoji, whose lines the sketches are, is none."""
    designers = {entry.split(":")[0] for row in shown for entry in row["pictures"].split()}
    assert designers == {"noto", "noto-v1", "twemoji", "emojione", "fxemoji", "fluent-emoji", "fluent-emoji-flat",
                         "fluent3d", "streamline-emojis"}  # fmt: skip


@pytest.fixture(scope="module")
def icons():
    """What splip-tiny-3 was shown besides, a row for each thing; and the few pictures that splip-tiny-2 alone was shown."""
    text = lzma.decompress((WEIGHTS / "splip-tiny-3.csv.xz").read_bytes()).decode()
    own = (WEIGHTS / "splip-tiny-2.csv").read_text(encoding="utf-8")
    rows, few = (list(csv.DictReader(io.StringIO(one))) for one in (text, own))
    assert len({row["thing"] for row in rows}) == len(rows) > 1000 and len(few) == 6
    return rows + few


def test_no_icon_is_called_like_a_test_class(icons):
    for row in icons:
        pictures = [entry.rsplit(":", 1)[0].split("/")[1].replace("_", "-") for entry in row["pictures"].split()]
        for words in (row["name"], row["class"], *row["synonyms"].split(";"), *pictures):
            for split in ("unseen", "validation"):
                assert leaks.reason("", words, split=split) is None, (row["thing"], words)


def test_no_icon_looks_like_a_test_picture(icons):
    found = leaks.distances([one for row in icons for one in hashes(row)], leaks.tested_hashes())
    assert len(found) > 20_000 and int(found.min()) > leaks.NEAR


def test_no_icon_is_of_a_set_that_is_kept_for_tests_or_not_open(icons):
    known = {row.name: row for row in sets()}
    used = {entry.split("/")[0] for row in icons for entry in row["pictures"].split()}
    assert all(known[name].use == "yes" and known[name].licence in OPEN for name in used) and len(used) > 100
    assert "openmoji" not in known  # the sample's sketches
    assert {name for name, row in known.items() if row.use == "reserved"} == {
        "fluent-emoji-high-contrast",
        "emojione-monotone",
    }


@pytest.mark.parametrize(
    ("thing", "name", "subgroup", "split", "why"),
    [
        ("1f40e", "horse", "animal-mammal", "unseen", "is a horse"),
        ("1f6a3", "person rowing boat", "person-sport", "unseen", "'rowing' is a boat"),
        ("1f40c", "snail", "animal-bug", "unseen", "animal-bug holds a insect"),
        ("1f415", "dog", "animal-mammal", "validation", "is a dog"),
        ("1f415", "dog", "animal-mammal", "unseen", None),
        ("1f32d", "hot dog", "food-prepared", "validation", None),
        ("1f412", "monkey", "animal-mammal", "unseen", None),
    ],
)
def test_reasons(thing, name, subgroup, split, why):
    assert leaks.reason(thing, name, subgroup, split) == why


def test_hashes_of_pictures():
    def disc(colour, left=20):
        image = Image.new("RGBA", (96, 96), (0, 0, 0, 0))
        ImageDraw.Draw(image).ellipse((left, 20, left + 50, 70), fill=colour)
        return image

    red = leaks.picture_hash(disc("red"))
    assert leaks.distances([red], [leaks.picture_hash(disc("red").resize((64, 64)))])[0] <= 2
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    assert leaks.distances([red], [leaks.picture_hash(noise)])[0] > leaks.NEAR
    assert leaks.distances([0b1011, 0], [0b0001, 2**63]).tolist() == [2, 1]
