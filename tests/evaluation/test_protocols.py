"""Which sketches are searched among which photos."""

import numpy as np
import pytest
from drawing import pair

from splip.data.config import DataConfig
from splip.data.trees import load_tree
from splip.errors import UserError
from splip.evaluation import protocols

UNSEEN = ["box", "cone"]


@pytest.fixture
def loaded(tree):
    pair(tree)
    return load_tree(tree, DataConfig(unseen=tuple(UNSEEN), validation=("pole",)))


def classes(items, positions):
    return sorted({items.paths[i].parent.name for i in positions})


def test_zero_shot(loaded):
    (p,) = protocols.build("zs", (), loaded, UNSEEN)
    assert p.name == "zs" and p.classes == UNSEEN and not p.instances
    assert classes(loaded.sketches, p.queries) == classes(loaded.photos, p.gallery) == UNSEEN
    assert (len(p.queries), len(p.gallery)) == (6, 4)


def test_generalised_galleries(loaded):
    """Six seen classes with two photos each, one of them for validation; four unseen photos."""
    made = protocols.build("gzs", ("sempcyc", "per-class-20", "all"), loaded, UNSEEN)
    assert [p.name for p in made] == ["gzs:sempcyc", "gzs:per-class-20", "gzs:all"]
    own = set(protocols.build("zs", (), loaded, UNSEEN)[0].gallery.tolist())
    extra = [sorted(set(p.gallery.tolist()) - own) for p in made]
    assert [len(e) for e in extra] == [round(0.2 * 4), 6, 12]  # a class gives one photo at least
    assert classes(loaded.photos, extra[1]) == classes(loaded.photos, extra[2]) == sorted({*loaded.seen, "pole"})
    for p in made:
        assert own <= set(p.gallery.tolist()) and classes(loaded.sketches, p.queries) == UNSEEN
        assert p.gallery.tolist() == sorted(p.gallery.tolist())  # ties go by the order of the data set
    assert [p.name for p in protocols.build("gzs", (), loaded, UNSEEN)] == ["gzs:sempcyc"]


def test_generalised_galleries_are_seeded(loaded):
    galleries = [protocols.build("gzs", ("per-class-20",), loaded, UNSEEN, seed)[0].gallery for seed in (0, 0, 1, 2, 3)]
    assert np.array_equal(galleries[0], galleries[1])
    assert any(not np.array_equal(galleries[0], g) for g in galleries[2:])


def test_measuring_validation_classes_leaves_them_out_of_the_seen_ones(loaded):
    (p,) = protocols.build("gzs", ("all",), loaded, ["pole"])
    assert classes(loaded.photos, p.gallery) == sorted({*loaded.seen, "pole"})
    assert classes(loaded.sketches, p.queries) == ["pole"]
    assert f"and {2 * len(loaded.seen)} photos of seen classes" in p.meaning  # its own two are none of them


def test_fine_grained(loaded):
    made = protocols.build("fg", (), loaded, UNSEEN)
    assert [(p.name, p.in_class, p.instances) for p in made] == [("fg:per-class", True, True), ("fg:all", False, True)]
    assert (len(made[0].queries), len(made[0].gallery)) == (6, 4)


def test_fine_grained_needs_pairs(tree):
    pair(tree, lacking=("sketch/box/1.png", "sketch/cone/0.png"))
    loaded = load_tree(tree, DataConfig(unseen=tuple(UNSEEN)))
    with pytest.raises(UserError, match=r"2 of 6 sketches have none, e\.g\. .*sketch/box/1\.png"):
        protocols.build("fg", (), loaded, UNSEEN)


@pytest.mark.parametrize(
    ("name", "gallery", "message"),
    [
        ("zs", "all", "--gallery all: not a gallery of the protocol zs; choose among paired-photo"),
        (
            "gzs",
            "per-class",
            "not a gallery of the protocol gzs; choose among sempcyc, sempcyc-queries, per-class-20, all",
        ),
        ("fg", "sempcyc", "not a gallery of the protocol fg; choose among per-class, all"),
    ],
)
def test_galleries_belong_to_protocols(loaded, name, gallery, message):
    with pytest.raises(UserError, match=message):
        protocols.build(name, (gallery,), loaded, UNSEEN)


def test_leaked_classes(loaded):
    """Data sets write the same class in several ways; words count as well as folders."""
    names = ["red_ball", "red-box", "cone", "pole"]
    loaded.texts[loaded.classes.index("pole")] = "flag staff"
    data = {"seen": ["Red Ball", "zebra"], "validation": ["red_box", "flag-staff"]}
    assert protocols.leaks(loaded, names, data) == {
        "was trained on": ["red_ball"],
        "was chosen by": ["red-box", "pole"],
    }
    assert protocols.leaks(loaded, names, data, validation=False) == {"was trained on": ["red_ball"]}
    assert protocols.leaks(loaded, ["cone"], data) == {}


def test_without_leaked_classes(loaded):
    for whole in (
        *protocols.build("zs", (), loaded, UNSEEN),
        *protocols.build("gzs", ("all",), loaded, UNSEEN),
        *protocols.build("fg", (), loaded, UNSEEN),
    ):
        rest = protocols.without(whole, loaded, ["box"])
        assert rest.name == f"{whole.name}:without-leaked" and rest.classes == ["cone"]
        assert (rest.instances, rest.in_class) == (whole.instances, whole.in_class)
        assert classes(loaded.sketches, rest.queries) == ["cone"]
        assert set(classes(loaded.photos, rest.gallery)) == set(classes(loaded.photos, whole.gallery)) - {"box"}


def test_seen_sketches_ask_too(loaded):
    """SEM-PCYC's released code: 20% more queries, of seen classes, beside 20% more photos."""
    plain, more = protocols.build("gzs", ("sempcyc", "sempcyc-queries"), loaded, UNSEEN)
    assert plain.gallery.tolist() == more.gallery.tolist()  # the same choice of photos
    extra = sorted(set(more.queries.tolist()) - set(plain.queries.tolist()))
    assert set(plain.queries.tolist()) <= set(more.queries.tolist()) and len(extra) == round(0.2 * 6)
    shown = classes(loaded.sketches, extra)
    assert not set(shown) & set(UNSEEN) and more.classes == [*UNSEEN, *shown]
    assert "and 1 sketches of seen classes, 20% of their number," in more.meaning
    others = [protocols.build("gzs", ("sempcyc-queries",), loaded, UNSEEN, seed)[0].queries for seed in range(6)]
    assert np.array_equal(others[0], more.queries) and any(not np.array_equal(others[0], q) for q in others)


def test_a_photo_for_each_sketch(loaded):
    """CLIP-AT's released code: as many photos as sketches, of their classes, some of them several times."""
    (p,) = protocols.build("zs", ("paired-photo",), loaded, UNSEEN)
    assert p.name == "zs:paired-photo" and len(p.gallery) == len(p.queries) == 6
    of = lambda items, rows: [items.paths[i].parent.name for i in rows]  # noqa: E731
    assert sorted(of(loaded.photos, p.gallery)) == sorted(of(loaded.sketches, p.queries))
    assert (
        p.gallery.tolist() == sorted(p.gallery.tolist()) and len(set(p.gallery.tolist())) < 6
    )  # four photos there are
    again, other = (protocols.build("zs", ("paired-photo",), loaded, UNSEEN, seed)[0] for seed in (0, 5))
    assert np.array_equal(again.gallery, p.gallery) and not np.array_equal(other.gallery, p.gallery)


def test_photos_that_lie_there_twice(loaded):
    (p,) = protocols.build("zs", (), loaded, UNSEEN)
    with pytest.raises(UserError, match="--duplicates: no photo of these classes lies twice in "):
        protocols.both_counts(p, loaded)
    first, second = p.gallery[:2].tolist()
    loaded.photos.instances[second] = loaded.photos.instances[first]
    once, twice = protocols.both_counts(p, loaded)
    assert (once.name, twice.name) == ("zs", "zs:with-duplicates") and twice.gallery is p.gallery
    assert once.gallery.tolist() == [i for i in p.gallery.tolist() if i != second]
    assert "1 photos count twice, as they do in published galleries" in twice.meaning
