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
        ("zs", "all", "--gallery all: not a gallery of the protocol zs; it has only one"),
        ("gzs", "per-class", "not a gallery of the protocol gzs; choose among sempcyc, per-class-20, all"),
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
