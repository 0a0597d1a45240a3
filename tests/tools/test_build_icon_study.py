"""The icon study's data: three walls between what is learned and what is tested."""

import csv
import json
from collections import Counter

import build_icon_study as study
import numpy as np
import pytest
from PIL import Image

from splip.data import leaks
from splip.data.config import DataConfig
from splip.data.trees import load_tree

# noun: its group; sets of each kind
GROUPS = {4: "bear", 5: "cat", 6: "wheel", 10: "cover", 12: "device", 13: "screen"}
COLOURED = ("noto", "fluent-emoji", "icon-park")
LINES = ("bi", "ph", "solar", "icon-park-outline", "fluent")


@pytest.fixture
def made(tmp_path, nouns, monkeypatch):
    """The study of six nouns: two of each part, three pictures of each set."""
    for name, value in {"UNSEEN": 2, "VALIDATION": 2, "LEAST": {"test": (2, 2), "seen": (2, 2)}}.items():
        monkeypatch.setattr(study, name, value)
    rng = np.random.default_rng(0)
    for folder, kinds in (
        ("icons", {"coloured": COLOURED, "line": LINES}),
        ("pictures", {"": ("noto", "fluent-emoji")}),
    ):
        rows = []
        for noun in GROUPS:
            for kind, names in kinds.items():
                for name in names:
                    for number in range(3):
                        path = tmp_path / folder / name / f"{noun}-{number}.png"
                        path.parent.mkdir(parents=True, exist_ok=True)
                        image = Image.fromarray(rng.integers(0, 255, (96, 96, 4), dtype=np.uint8))
                        image.save(path)
                        words = nouns.words[noun][0].replace("_", " ")
                        row = {
                            "path": f"{name}/{path.name}",
                            "thing": f"n{noun:08d}",
                            "name": words,
                            "class": GROUPS[noun],
                        }
                        more = (
                            {"synonyms": "", "set": name, "licence": "MIT", "kind": kind}
                            if kind
                            else {"designer": name}
                        )
                        rows.append(row | more | {"hash": f"{leaks.picture_hash(image):016x}"})
                        if not kind:
                            rows[-1]["thing"] = f"emoji{noun}"
        with open(tmp_path / folder / "pictures.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    monkeypatch.setattr(study, "wordnet", lambda work: tmp_path / "wordnet")
    argv = [
        "x",
        "--icons",
        str(tmp_path / "icons"),
        "--pictures",
        str(tmp_path / "pictures"),
        "--out",
        str(tmp_path / "s"),
    ]
    monkeypatch.setattr("sys.argv", argv)
    study.main()
    return tmp_path / "s"


def shown(folder):
    with open(folder / "pictures.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_walls_stand(made):
    facts = json.loads((made / "data/dataset.json").read_text())
    tested = {*facts["unseen"], *facts["validation"]}
    tree = load_tree(made / "data", DataConfig())
    assert set(tree.unseen) == set(facts["unseen"]) and set(tree.validation) == set(facts["validation"])
    assert len(tree.unseen) == 2 and len(tree.validation) == 2 and len(tree.seen) == 2
    for items, test, training in (
        (tree.photos, {"fluent-emoji", "icon-park"}, {"noto"}),
        (tree.sketches, {"ph", "solar"}, {"bi"}),
    ):
        for path in items.paths:  # designers apart, and no line by who colours: icon-park-outline, fluent
            assert path.name.split("__")[0] in (test if path.parent.name in tested else training)
    for name in ("plain", "lines"):
        rows = shown(made / name)
        words = {row["name"].replace(" ", "_") for row in rows}
        assert words and not words & tested
        assert not {row["set"] for row in rows} & {
            *study.TEST_PHOTOS,
            *study.TEST_SKETCHES,
            "fluent",
            "icon-park-outline",
        }
        assert all((made / name / row["path"]).is_file() for row in rows)
    kinds = Counter(row["kind"] for row in shown(made / "lines"))
    assert {row["kind"] for row in shown(made / "plain")} == {"coloured"} and kinds["line"] == round(
        kinds["coloured"] / 9
    )
    assert {row["thing"] for row in shown(made / "lines")} == {row["thing"] for row in shown(made / "plain")}
    left = json.loads((made / "leaks.json").read_text())["left out"]
    assert any(f"'{name}' is {name}" in why for why in left for name in tested)


def test_what_belongs_to_a_noun(nouns):
    held = study.Words(nouns, [3, 6])
    assert held.reason("bears", None) == "'bears' is bear"
    assert held.reason("silvertip", 4) == "grizzly is a kind of bear"
    assert held.reason("spinning", 7) == "spinning wheel is a kind of wheel"
    assert held.reason("spinning wheel", None) == "'wheel' is wheel"
    assert held.reason("cat", 5) is None


def test_near_pictures_are_far_apart(tmp_path):
    def picture(looks):
        return study.Picture(tmp_path, 1, "", "bi", "MIT", looks)

    kept = study.far([picture(0b1111), picture(0b11111), picture(1 << 63)], [0])
    assert [one.looks for one in kept] == [0b11111]
    assert study.family("icon-park-outline") == "icon-park" and study.family("icons8") == "icons8"
