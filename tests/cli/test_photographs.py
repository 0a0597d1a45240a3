"""Photographs on the command line: dates, sizes, copies, labels that are nearly right, files that are gone."""

import json
import shutil

import pytest
from checkpoints import save_model
from photographs import exif, photograph

from splip.errors import UserError
from splip.gallery import Gallery, labels


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "tiny.pt", 0)


@pytest.fixture
def photos(tmp_path):
    """Four dated photographs of two folders, a copy, and one without EXIF."""
    folder = tmp_path / "photos"
    for n, date in enumerate(
        ("2018:05:01 08:00:00", "2019:07:14 10:02:03", "2019:07:31 12:00:00", "2020:01:01 00:00:00")
    ):
        photograph(folder / ("Sea" if n % 2 else "mountain") / f"{n}.jpg", seed=n, size=(40, 20 + n), tags=exif(date))
    photograph(folder / "Sea" / "bare.jpg", seed=9, tags=b"")
    shutil.copy(folder / "Sea" / "1.jpg", folder / "Sea" / "copy.jpg")
    return folder


@pytest.fixture
def gallery(model, photos, tmp_path, cli):
    code, out, err = cli("index", "add", photos, "--model", model, "--gallery", tmp_path / "gallery")
    assert code == 0 and "6 pictures (6 new)" in out, err
    return tmp_path / "gallery"


def names(text):
    return [item["path"].rsplit("/", 1)[1] for item in json.loads(text)["items"]]


def test_lists_by_date(gallery, cli):
    out = cli("index", "list", "--gallery", gallery, "--sort", "newest", "--json")[1]
    assert names(out) == ["3.jpg", "2.jpg", "copy.jpg", "1.jpg", "0.jpg", "bare.jpg"]
    first = json.loads(out)["items"][0]
    facts = {key: first[key] for key in ("taken", "camera", "width", "height", "missing")}
    assert facts == {
        "taken": "2020-01-01T00:00:00",
        "camera": "Canon EOS 80D",
        "width": 40,
        "height": 23,
        "missing": False,
    }
    lines = cli("index", "list", "--gallery", gallery, "--sort", "oldest", "--taken-to", "2019")[1].splitlines()
    assert [line.split()[1] for line in lines] == ["2018-05-01", "2019-07-14", "2019-07-14", "2019-07-31"]
    large = cli("index", "list", "--gallery", gallery, "--sort", "name", "--min-side", "22", "--json")[1]
    assert names(large) == ["3.jpg", "bare.jpg", "2.jpg"]


def test_searches_by_date_and_size(gallery, photos, cli):
    def search(*more):
        code, out, err = cli("search", "--gallery", gallery, "--photo", photos / "Sea" / "1.jpg", "--json", *more)
        assert code == 0, err
        return json.loads(out)["queries"][0]["matches"]

    july = search("--taken-from", "2019-07", "--taken-to", "2019-07")
    assert [m["path"].rsplit("/", 1)[1] for m in july] == ["1.jpg", "2.jpg"]
    assert len(july[0]["copies"]) == 1
    assert july[0]["taken"] == "2019-07-14T10:02:03" and july[0]["height"] == 21 and july[1]["copies"] == []
    assert {m["score"] for m in search("--no-stack", "-k", "2")} == {july[0]["score"]}
    assert {m["path"].rsplit("/", 1)[1] for m in search("--min-side", "22")} == {"2.jpg", "3.jpg", "bare.jpg"}
    weighted = search("--one", "--taken-from", "2020")
    assert [m["path"].rsplit("/", 1)[1] for m in weighted] == ["3.jpg"]
    out = cli("search", "--gallery", gallery, "--photo", photos / "Sea" / "1.jpg", "-k", "1")[1]
    assert "(Sea)  2019-07-14  +1 copy" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--taken-from", "2019-13"), "taken_from: '2019-13' is not a date: write 2019, 2019-07 or 2019-07-14"),
        (("--taken-from", "2020", "--taken-to", "2019-12"), "taken_from 2020 is after taken_to 2019-12"),
        (("--min-side", "-5"), "min_side must be a whole number from 0 to 2147483647, got -5"),
        (("--label", "see"), "no picture has the label 'see'; did you mean 'Sea'?"),
        (("--label", "bicycle"), "no picture has the label 'bicycle'; there are 'Sea', 'mountain'"),
    ],
)
def test_what_is_wrong_is_told(gallery, refused, options, said):
    assert said in refused("search", "--gallery", gallery, "--text", "x", *options)
    assert said in refused("index", "list", "--gallery", gallery, *options)


def test_labels_in_another_case(gallery, cli):
    assert len(cli("index", "list", "--gallery", gallery, "--label", "SEA")[1].splitlines()) == 4
    assert (
        "4 pictures would be removed" in cli("index", "remove", "--gallery", gallery, "--label", "sea", "--dry-run")[1]
    )


class Known:
    def __init__(self, **counts):
        self.counts = counts

    def labels(self):
        return self.counts


def test_labels_that_differ_in_case_alone():
    both = Known(Horse=3, HORSE=1, cat=1)
    assert labels.meant(both, ["Horse", "CAT", "HORSE"]) == ("Horse", "cat", "HORSE")
    with pytest.raises(UserError, match="label 'horse': could be 'HORSE' or 'Horse'"):
        labels.meant(both, ["horse"])
    with pytest.raises(UserError, match="no picture has the label 'hores'; did you mean 'Horse'?"):
        labels.meant(both, ["hores"])
    with pytest.raises(UserError, match="no picture has the label 'x'; none has a label"):
        labels.meant(Known(), ["x"])


def test_ten_thousand_labels():
    many = Known(**{f"thing {n}": n + 1 for n in range(10_000)})
    assert labels.meant(many, ["THING 77", "thing 9999"]) == ("thing 77", "thing 9999")
    with pytest.raises(UserError, match="'thimg 9998'; there are 'thing 9999', "):  # so many are not compared
        labels.meant(many, ["thimg 9998"])
    with pytest.raises(UserError, match=r"there are 'thing 9999', .* and 9995 more"):
        labels.meant(many, ["qqqq"])


def test_a_collection_tells_of_some_labels_alone():
    some = Known(horse=1, cat=1)
    some.labels_told = 2
    assert labels.meant(some, ["Horse", "rare"]) == ("horse", "rare")


def test_files_that_are_gone(gallery, photos, cli):
    (photos / "Sea" / "3.jpg").unlink()
    (photos / "mountain" / "0.jpg").unlink()
    code, out, _ = cli("index", "add", photos / "Sea", "--gallery", gallery)
    how = f"`splip index remove --missing --gallery {gallery}` takes them out"
    assert code == 0 and f"1 picture is missing: 3.jpg; {how}" in out
    listed = {
        item["path"]: item["missing"]
        for item in json.loads(cli("index", "list", "--gallery", gallery, "--json")[1])["items"]
    }
    assert [path.rsplit("/", 1)[1] for path, missing in listed.items() if missing] == [
        "3.jpg"
    ]  # the other is elsewhere
    out = cli("index", "check", "--gallery", gallery)[1]
    assert "2 of their files are missing" in out
    with Gallery.open(gallery) as opened:
        assert sorted(item.path.name for item in opened.items() if item.missing) == ["0.jpg", "3.jpg"]
    assert "2 pictures are missing: " in cli("index", "add", photos, "--gallery", gallery)[1]
    photograph(photos / "Sea" / "3.jpg", seed=3, size=(40, 23), tags=exif("2020:01:01 00:00:00"))
    assert "1 picture is missing: 0.jpg" in cli("index", "add", photos, "--gallery", gallery)[1]
    assert "1 picture removed, 5 left" in cli("index", "remove", "--missing", "--gallery", gallery)[1]
    assert "missing" not in cli("index", "add", photos, "--gallery", gallery)[1]


def test_many_names_are_not_all_told(gallery, photos, cli):
    for n in range(8):
        photograph(photos / "more" / f"{n}.jpg", seed=20 + n)
    cli("index", "add", photos, "--gallery", gallery)
    shutil.rmtree(photos / "more")
    out = cli("index", "add", photos, "--gallery", gallery)[1]
    assert "8 pictures are missing: 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 3 more;" in out
