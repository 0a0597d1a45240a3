"""Small trees with the real class names and the quirks of the downloads; the files are empty."""

import re

import pytest

from splip.data import splits
from splip.data.config import DataConfig
from splip.data.datasets import read
from splip.data.splits import class_of, dataset_facts, find_split, normal_name, split_names
from splip.data.trees import load_tree, unpaired
from splip.errors import UserError

CLASSES = {name: dataset_facts(name)["classes"] for name in ("sketchy", "tuberlin", "quickdraw")}
TX = "tx_000000000000"


def put(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def put_list(path, lines):
    """A list file in the field's form; ids count from 0 in every file."""
    ids = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{p} {ids.setdefault(p.split('/')[-2], len(ids))}\n" for p in lines))


def basics(folder):
    """Two basic photos a class; their stems repeat in every class, as ext_ numbers do."""
    return [f"{folder}/{name}/n0_{i}.jpg" for name in CLASSES["sketchy"] for i in (1, 2)]


def drawings(folder):
    """Three sketches a class: two of the first photo, one of the second."""
    return [f"{folder}/{name}/n0_{i}.png" for name in CLASSES["sketchy"] for i in ("1-1", "1-12", "2-1")]


def extensions(folder):
    return [f"{folder}/{name}/{stem}.jpg" for name in CLASSES["sketchy"] for stem in ("ext_367", "n0_1", "n0_2")]


def sake_sketchy(root):
    """The folders and lists of SAKE and ZSE-SBIR."""
    sketches, basic = drawings(f"256x256/sketch/{TX}_ready"), basics(f"256x256/photo/{TX}_ready")
    photos = basic + extensions("EXTEND_image_sketchy_ready")
    put(root, *sketches, *photos)
    for folder, split in (("zeroshot0", "sketchy-2"), ("zeroshot1", "sketchy-1")):
        unseen = find_split("sketchy", split).unseen
        for end in ("train", "zero"):
            mine = [p for p in sketches if (p.split("/")[-2] in unseen) == (end == "zero")]
            if end == "train":  # seen classes leave a held-out sketch in a list of their own
                test = [p for p in mine if p.endswith("1-12.png")]
                mine = [p for p in mine if p not in set(test)]
                put_list(root / folder / f"sketch_{TX}_ready_filelist_test.txt", test)
            put_list(root / folder / f"sketch_{TX}_ready_filelist_{end}.txt", mine)
            mine = [p for p in photos if (p.split("/")[-2] in unseen) == (end == "zero")]
            put_list(root / folder / f"all_photo_filelist_{end}.txt", mine)
    (root / "zeroshot0" / "cname_cid_zero.txt").write_text("bat 0\n")
    return root


def config(dataset, split=None, **rest):
    return DataConfig(dataset=dataset, split=split, **rest)


# ---- splits ----

SIZES = {
    "sketchy-1": (100, 25),
    "sketchy-2": (104, 21),
    "sketchy-1-sempcyc": (100, 25),
    "tuberlin": (220, 30),
    "tuberlin-sempcyc": (220, 30),
    "tuberlin-kdsbir": (220, 30),
    "quickdraw": (80, 30),
    "quickdraw-kdsbir": (80, 30),
}


def test_every_named_split():
    assert {s: d for d in CLASSES for s in split_names(d)} == {s: s.split("-")[0] for s in SIZES}
    for name, (seen, unseen) in SIZES.items():
        dataset = name.split("-")[0]
        split = find_split(dataset, name)
        assert (len(split.seen), len(split.unseen)) == (seen, unseen), name
        assert not {*split.seen} & {*split.unseen}
        assert sorted(split.seen + split.unseen) == sorted(CLASSES[dataset])
        assert list(split.seen) == sorted(split.seen) and split.source
    assert {d: len(c) for d, c in CLASSES.items()} == {"sketchy": 125, "tuberlin": 250, "quickdraw": 110}


def test_how_the_lists_overlap():
    """The published facts; a list in the wrong place would change them."""

    def common(one, two):
        return {normal_name(n) for n in one} & {normal_name(n) for n in two}

    sketchy = {n: find_split("sketchy", n) for n in ("1", "2", "1-sempcyc")}
    tuberlin, quickdraw = find_split("tuberlin", None), find_split("quickdraw", None)
    assert len(common(sketchy["2"].seen, tuberlin.unseen)) == 10
    assert len(common(sketchy["2"].seen, quickdraw.unseen)) == 8
    assert len(common(sketchy["1"].unseen, sketchy["1-sempcyc"].unseen)) == 4
    assert common(tuberlin.unseen, find_split("tuberlin", "sempcyc").unseen) == {"rollerblades"}
    assert {"bat", "window", "skyscraper"} < {*sketchy["2"].unseen} and "cup" in sketchy["1"].unseen
    assert "mermaid" in find_split("tuberlin", "kdsbir").unseen
    assert "eiffel tower" in find_split("quickdraw", "kdsbir").unseen


def test_short_and_unknown_names_of_splits():
    assert find_split("sketchy", None) == find_split("sketchy", "2") == find_split("sketchy", "sketchy-2")
    assert find_split("tuberlin", None).name == "tuberlin" and find_split("quickdraw", None).name == "quickdraw"
    assert find_split("tuberlin", "sempcyc").name == "tuberlin-sempcyc"
    with pytest.raises(UserError, match="sketchy has no split '3'; it has sketchy-1, sketchy-2, sketchy-1-sempcyc"):
        find_split("sketchy", "3")
    with pytest.raises(UserError, match="tuberlin has no split 'sketchy-1'"):
        find_split("tuberlin", "sketchy-1")


@pytest.mark.parametrize(
    ("dataset", "folder", "name"),
    [
        ("sketchy", "car (sedan)", "car_(sedan)"),
        ("sketchy", "hot_air_balloon", "hot-air_balloon"),
        ("sketchy", "jack_o_lantern", "jack-o-lantern"),
        ("tuberlin", "griaffe", "giraffe"),
        ("tuberlin", "carsedan", "car (sedan)"),
        ("tuberlin", "race_car", "race car"),
        ("tuberlin", "mouse", "mouse (animal)"),
        ("tuberlin", "computermouse", "computer-mouse"),
        ("tuberlin", "pipe", "pipe (for smoking)"),
        ("tuberlin", "T-Shirt", "t-shirt"),
        ("tuberlin", "wristwatching", "wrist-watch"),
        ("tuberlin", "spacesshuttle", "space shuttle"),
        ("quickdraw", "palm_tree", "palm tree"),
        ("quickdraw", "unicorn", None),
        ("sketchy", "griaffe", None),
    ],
)
def test_spellings(dataset, folder, name):
    assert class_of(dataset, folder) == name


def test_every_class_means_itself():
    for dataset, classes in CLASSES.items():
        assert [class_of(dataset, name) for name in classes] == classes
        assert [class_of(dataset, normal_name(name)) for name in classes] == classes


# ---- Sketchy ----


def test_sketchy_of_sake(tmp_path):
    sake_sketchy(tmp_path / "Sketchy")
    for root in (tmp_path, tmp_path / "Sketchy"):
        tree = load_tree(root, config("sketchy"))
        assert (tree.dataset, tree.split, len(tree.classes)) == ("sketchy", "sketchy-2", 125)
        assert (len(tree.seen) + len(tree.validation), len(tree.validation), len(tree.unseen)) == (104, 12, 21)
        sketches, photos = tree.items(tree.unseen)
        assert (len(sketches), len(photos)) == (21 * 3, 21 * 3)
        sketches, photos = tree.items(tree.seen)
        assert (len(sketches), len(photos)) == (92 * 2, 92 * 3)  # one sketch is in the _test list
        assert tree.notes == ["250 photos lie in both the basic and the extended folder, counted once"]
    other = load_tree(tmp_path, config("sketchy", "1"))
    assert other.split == "sketchy-1" and len(other.items(other.unseen)[0]) == 25 * 3
    assert load_tree(tmp_path, config("sketchy")) == load_tree(tmp_path, config("sketchy"))


def test_listed_duplicates_and_basic_photos(tmp_path):
    sake_sketchy(tmp_path)
    tree = load_tree(tmp_path, config("sketchy", dedup=False))
    sketches, photos = tree.items(["bat"])
    assert [p.relative_to(tmp_path).as_posix().split("/")[0] for p in photos.paths] == ["256x256"] * 2 + [
        "EXTEND_image_sketchy_ready"
    ] * 3
    assert photos.instances[0] == photos.instances[3] and len(set(photos.instances)) == 3
    tree = load_tree(tmp_path, config("sketchy", extended=False))
    assert len(tree.photos) == 250 and {p.parts[-4] for p in tree.photos.paths} == {"photo"}


def test_pairs_are_of_one_class(tmp_path):
    sake_sketchy(tmp_path)
    tree = load_tree(tmp_path, config("sketchy"))
    thing = dict(zip(tree.photos.paths, tree.photos.instances, strict=True))
    bat = tmp_path / f"256x256/photo/{TX}_ready/bat"
    for path, instance in zip(tree.sketches.paths, tree.sketches.instances, strict=True):
        if path.parent.name == "bat":
            assert instance == thing[bat / (path.stem.rsplit("-", 1)[0] + ".jpg")]
    sketches, photos = tree.items(["bat"])
    assert sketches.instances == [photos.instances[0]] * 2 + [photos.instances[1]]
    # The same stems in another class are other things: ext_367 exists in all of them.
    assert not {*photos.instances} & {*tree.items(["cow"])[1].instances}
    assert unpaired(tree.sketches, tree.photos) == []
    put(tmp_path, *(f"256x256/sketch/{TX}_ready/bat/{name}-1.png" for name in ("n9_9", "n-5_7")))
    put(tmp_path, f"256x256/photo/{TX}_ready/bat/n-5_7.jpg")  # the last hyphen counts
    (tmp_path / "zeroshot0").rename(tmp_path / "lists")
    tree = load_tree(tmp_path, config("sketchy"))
    assert [p.name for p in unpaired(tree.sketches, tree.photos)] == ["n9_9-1.png"]


def test_photo_that_the_extended_folder_misnames(tmp_path):
    put(tmp_path, *drawings(f"sketch/{TX}"), *basics(f"photo/{TX}"), *extensions("EXTEND_image_sketchy"))
    put(tmp_path, f"photo/{TX}/camel/n02437136_5405.jpg", "EXTEND_image_sketchy/camel/c.jpg")
    photos = load_tree(tmp_path, config("sketchy")).items(["camel"])[1]
    assert [p.name for p in photos.paths] == ["n02437136_5405.jpg", "n0_1.jpg", "n0_2.jpg", "ext_367.jpg"]


def test_lists_count_only_for_their_split(tmp_path):
    """Folder numbers differ between code bases, so the classes in the lists decide."""
    sake_sketchy(tmp_path)
    (tmp_path / "zeroshot0").rename(tmp_path / "zeroshot2")
    assert len(load_tree(tmp_path, config("sketchy", "2")).sketches) == 21 * 3 + 104 * 2
    tree = load_tree(tmp_path, config("sketchy", "1-sempcyc"))
    assert len(tree.sketches) == 125 * 3 and len(tree.unseen) == 25
    assert "the lists in zeroshot* describe other splits: every picture in the folders counts" in tree.notes
    tree = load_tree(tmp_path, config("sketchy", unseen=("hot air balloon", "bat"), validation=("Cow",)))
    assert (tree.unseen, tree.validation, tree.split) == (["bat", "hot-air_balloon"], ["cow"], "")
    assert len(tree.sketches) == 125 * 3 and len(tree.seen) == 122


def test_listed_files_that_are_not_there(tmp_path, cli):
    sake_sketchy(tmp_path)
    gone = tmp_path / f"256x256/sketch/{TX}_ready/bat/n0_1-1.png"
    gone.unlink()
    put(tmp_path, f"256x256/sketch/{TX}_ready/bat/unlisted.png")
    tree = load_tree(tmp_path, config("sketchy"))
    assert [p.name for p in tree.items(["bat"])[0].paths] == ["n0_1-12.png", "n0_2-1.png"]
    line = f"256x256/sketch/{TX}_ready/bat/n0_1-1.png"
    assert f"1 listed picture is not there, left out, e.g. {line}" in tree.notes
    code, out, _ = cli("data", "check", "--root", tmp_path, "--dataset", "sketchy")
    assert code == 1 and f"not there: {line}" in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("256x256/bat/1.png", r"_zero.txt: line 2 is not `<path> <id>`: 256x256/bat/1.png"),
        ("bat.png 0", "line 2 is not `<path> <id>`"),
        ("version https://git-lfs", "line 2 is not `<path> <id>`"),
    ],
)
def test_malformed_lists(tmp_path, line, message):
    sake_sketchy(tmp_path)
    (tmp_path / f"zeroshot0/sketch_{TX}_ready_filelist_zero.txt").write_text(f"a/bat/1.png 0\n{line}\n")
    with pytest.raises(UserError, match=message):
        load_tree(tmp_path, config("sketchy"))


def test_strange_lists(tmp_path):
    sake_sketchy(tmp_path)
    with open(tmp_path / "zeroshot0/all_photo_filelist_zero.txt", "a") as file:
        file.write("photo/unicorn/1.jpg 21\n")
    with pytest.raises(UserError, match="all_photo_filelist_zero.txt: unicorn is no class of sketchy"):
        load_tree(tmp_path, config("sketchy"))
    (tmp_path / f"zeroshot0/sketch_{TX}_ready_filelist_zero.txt").write_bytes(b"caf\xe9/bat/1.png 0\n")
    with pytest.raises(UserError, match="not a text file in UTF-8"):
        load_tree(tmp_path, config("sketchy"))


@pytest.mark.parametrize("place", ["256x256/", "rendered_256x256/256x256/", "Sketchy/256x256/", "sketchy/Sketchy/"])
def test_raw_sketchy(tmp_path, place):
    """The download renders each drawing several times; the extended photos are another download."""
    for kind in ("sketch", "photo"):
        for tx in ("tx_000000000010", "tx_000100000000"):
            put(tmp_path, f"{place}{kind}/{tx}/bat/wrong.png")
    put(tmp_path, *drawings(f"{place}sketch/{TX}"), *basics(f"{place}photo/{TX}"))
    put(tmp_path, *extensions("EXTEND_image_sketchy"))
    put(tmp_path, f"{place}sketch/{TX}/bat/._n0_1-1.png", f"{place}sketch/{TX}/bat/Thumbs.db")
    tree = load_tree(tmp_path, config("sketchy"))
    assert (len(tree.sketches), len(tree.photos)) == (375, 375)
    assert not any("wrong" in p.name for p in tree.sketches.paths + tree.photos.paths)


def test_sketchy_as_a_plain_tree(tmp_path):
    """Forks of Sketch_LVM: folders renamed, all photos in one."""
    put(tmp_path, *drawings("sketch"), *extensions("photo"))
    for kind in ("sketch", "photo"):
        (tmp_path / kind / "hot-air_balloon").rename(tmp_path / kind / "hot_air_balloon")
    put(tmp_path, "photo/unicorn/1.jpg")
    tree = load_tree(tmp_path, config("sketchy", "1"))
    assert len(tree.unseen) == 25 and len(tree.photos) == 375 and "hot-air_balloon" in tree.classes
    assert tree.texts[tree.classes.index("hot-air_balloon")] == "hot air balloon"
    assert tree.texts[tree.classes.index("car_(sedan)")] == "car (sedan)"
    assert tree.notes == [
        "folder unicorn is no class of sketchy, left out",
        "folder hot_air_balloon is the class hot-air_balloon",
    ]
    assert unpaired(tree.sketches, tree.photos) == []
    assert len(load_tree(tmp_path, config("sketchy", extended=False)).photos) == 250


def test_basic_photos_only_and_a_class_in_two_folders(tmp_path):
    """Without the second download the gallery is another one, which must not go unsaid."""
    put(tmp_path, *drawings(f"sketch/{TX}"), *basics(f"photo/{TX}"))
    put(tmp_path, f"sketch/{TX}/car_sedan/n0_1-99.png")
    tree = load_tree(tmp_path, config("sketchy"))
    assert tree.notes == [
        "folder car_sedan is the class car_(sedan)",
        "no extended photos: the gallery holds the basic ones only",
    ]
    assert len(tree.photos) == 250 and len(tree.items(["car_(sedan)"])[0]) == 4
    assert len(load_tree(tmp_path, config("sketchy", extended=False)).notes) == 1


def test_clipprompt_folders_of_sketchy(tmp_path):
    """A named split decides, whichever folder a class lies in."""
    unseen = find_split("sketchy", "2").unseen
    for path in drawings("sketch") + extensions("photo"):
        put(tmp_path, f"sketchy/{'val' if path.split('/')[1] in unseen else 'train'}/{path}")
    tree = load_tree(tmp_path, config("sketchy", "1"))
    assert len(tree.classes) == 125 and tree.unseen == list(find_split("sketchy", "1").unseen)


def test_other_transforms_only(tmp_path):
    put(tmp_path, "sketch/tx_000100000000/bat/1-1.png", "photo/tx_000100000000/bat/1.jpg")
    with pytest.raises(UserError, match=r"sketch: no tx_000000000000 among the renderings, only such as tx_0001"):
        load_tree(tmp_path, config("sketchy"))


# ---- TU-Berlin and QuickDraw ----

SQUEEZED = {"mouse (animal)": "mouse", "pipe (for smoking)": "pipe", "wrist-watch": "wristwatching"} | {
    "giraffe": "griaffe",
    "diamond": "diamod",
    "chandelier": "chandeler",
    "spider": "spidar",
    "trombone": "tromobone",
    "space shuttle": "spacesshuttle",
}


def test_raw_tuberlin(tmp_path):
    """Photo folders of the download have no spaces and some errors; sketch folders are right."""
    for name in CLASSES["tuberlin"]:
        put(tmp_path, *(f"png/{name}/{i}.png" for i in (836, 837)))
        squeezed = SQUEEZED.get(name) or re.sub("[^a-z]", "", name)
        put(tmp_path, *(f"ImageResized/{squeezed}/{i}" for i in ("a.JPEG", "b.JPG", "c.jpeg", "d.png", "e.jpg")))
    put(tmp_path, "png/filelist.txt")
    tree = load_tree(tmp_path, config("tuberlin"))
    assert tree.classes == CLASSES["tuberlin"] and len(tree.unseen) == 30
    assert (len(tree.sketches), len(tree.photos)) == (500, 1250)
    for folder, name in {v: k for k, v in SQUEEZED.items()}.items() | {("carsedan", "car (sedan)")}:
        assert f"folder {folder} is the class {name}" in tree.notes
    assert tree.texts[tree.classes.index("pipe (for smoking)")] == "pipe (for smoking)"
    # Nothing pairs: every picture is a thing of its own.
    assert len({*tree.sketches.instances, *tree.photos.instances}) == 1750
    assert len(unpaired(tree.sketches, tree.photos)) == 500
    for split in ("sempcyc", "tuberlin-kdsbir"):
        tree = load_tree(tmp_path, config("tuberlin", split))
        assert tree.split.startswith("tuberlin-") and len(tree.unseen) == 30 and len(tree.seen) == 208


def test_tuberlin_of_sake(tmp_path):
    root = tmp_path / "TUBerlin"
    sketches = [f"png_ready/{name}/{i}.png" for name in CLASSES["tuberlin"] for i in (1, 2)]
    photos = [f"ImageResized_ready/{name}/n0_{i}.JPEG" for name in CLASSES["tuberlin"] for i in (1, 2)]
    put(root, *sketches, *photos)
    unseen = find_split("tuberlin", None).unseen
    for stem, paths in (("png_ready", sketches), ("ImageResized_ready", photos)):
        for end in ("train", "zero"):
            mine = [p for p in paths if (p.split("/")[1] in unseen) == (end == "zero")]
            put_list(root / "zeroshot" / f"{stem}_filelist_{end}.txt", mine[: -1 if end == "train" else None])
    tree = load_tree(tmp_path, config("tuberlin"))
    assert (len(tree.sketches), len(tree.photos), tree.notes) == (499, 499, [])
    assert len(tree.items(["hot air balloon"])[0]) == 2  # a name with spaces, split at the last one
    assert len(load_tree(tmp_path, config("tuberlin", "kdsbir")).sketches) == 500


@pytest.mark.parametrize("folders", [("sketches", "images"), ("QuickDraw_sketches_final", "QuickDraw_images_final")])
def test_quickdraw(tmp_path, folders):
    root = tmp_path / "QuickDraw-Extended"
    name_of = {"palm tree": "palm_tree"} if folders[0] != "sketches" else {}
    sketches = [f"{folders[0]}/{name_of.get(name, name)}/5147947173937152.png" for name in CLASSES["quickdraw"]]
    photos = [
        f"{folders[1]}/{name_of.get(n, n)}/{f}" for n in CLASSES["quickdraw"] for f in ("1. a cow 12.jpeg", "2.jpg")
    ]
    put(root, *sketches, *photos)
    split = find_split("quickdraw", None)
    if not name_of:  # only ZSE-SBIR has lists
        for stem, paths in (("sketch", sketches), ("all_photo", photos)):
            put_list(root / f"zeroshot/{stem}_train.txt", [p for p in paths if p.split("/")[1] in split.seen])
            put_list(root / f"zeroshot/{stem}_zero.txt", [p for p in paths if p.split("/")[1] in split.unseen])
    tree = load_tree(tmp_path, config("quickdraw"))
    assert len(tree.classes) == 110 and len(tree.unseen) == 30 and len(tree.photos) == 220
    assert "palm tree" in tree.unseen
    assert tree.notes == (["folder palm_tree is the class palm tree"] if name_of else [])
    listing = read(tmp_path, "quickdraw", split)
    assert ("zeroshot" in listing.layout) == (not name_of) and listing.absent == []


# ---- what is wrong with a folder ----


def test_missing_folders_and_classes(tmp_path, cli):
    with pytest.raises(UserError, match="no sketches of tuberlin; looked here and below tuberlin.* for png_ready, png"):
        load_tree(tmp_path, config("tuberlin"))
    put(tmp_path, "png/bus/1.png")
    with pytest.raises(UserError, match="no photos of tuberlin; .* for ImageResized_ready"):
        load_tree(tmp_path, config("tuberlin"))
    put(tmp_path, "images/unicorn/1.jpg")
    with pytest.raises(UserError, match="no class of tuberlin has both sketches and photos in png, images"):
        load_tree(tmp_path, config("tuberlin"))
    for name in CLASSES["tuberlin"]:
        put(tmp_path, f"png/{name}/1.png")
        if name not in ("bus", "horse", "zebra"):
            put(tmp_path, f"images/{name}/1.jpg")
    with pytest.raises(UserError, match="no pictures for the unseen classes of tuberlin: bus, horse$"):
        load_tree(tmp_path, config("tuberlin"))
    tree = load_tree(tmp_path, config("tuberlin"), need_split=False)
    assert len(tree.classes) == 247 and "no photos of the classes bus, horse, zebra, left out" in tree.notes
    assert len(load_tree(tmp_path, config("tuberlin", unseen=("cow", "fan"))).seen) == 233
    with pytest.raises(UserError, match="no pictures for the unseen classes horse"):
        load_tree(tmp_path, config("tuberlin", unseen=("cow", "horse")))
    with pytest.raises(UserError, match="classes both validation and unseen: fan"):
        load_tree(tmp_path, config("tuberlin", unseen=("fan",), validation=("fan",)))
    code, out, _ = cli("data", "check", "--root", tmp_path, "--dataset", "tuberlin")
    assert code == 1
    assert re.search(r"unseen classes +28 +30  2 missing", out) and re.search(
        r"sketches of unseen.* 30 +2,400  2370", out
    )
    assert "folder unicorn is no class of tuberlin" in out and "bus, horse, zebra" in out


def test_check_counts_sketchy(tmp_path, cli, monkeypatch):
    """With the sizes of the miniature, everything that is expected is there."""
    facts = dataset_facts("sketchy")
    monkeypatch.setitem(facts, "photos", 375)
    monkeypatch.setitem(facts, "basic_per_class", 2)
    sake_sketchy(tmp_path / "Sketchy")
    for what, size in {"queries": 63, "gallery": 63, "gallery_with_duplicates": 105}.items():
        monkeypatch.setitem(splits._lists()["splits"]["sketchy-2"], what, size)
    code, out, _ = cli("data", "check", "--root", tmp_path, "--dataset", "sketchy", "--split", "2")
    rows = dict(re.findall(r"^  (\S.*?)  +(\d+ +[\d-]+.*)$", out, re.MULTILINE))
    rows = {what: " ".join(row.split()) for what, row in rows.items()}
    assert rows == {
        "classes": "125 125",
        "seen classes": "104 104",
        "unseen classes": "21 21",
        "sketches": "271 -",
        "photos": "375 375",
        "queries: sketches of unseen classes": "63 63",
        "gallery: photos of unseen classes": "63 63",
        "gallery with duplicates": "105 105",
        "fine-grained: basic photos": "42 42",
        "fine-grained: sketches of those": "63 63",
    }
    assert code == 0 and "pictures as listed in Sketchy/zeroshot0" in out and "missing" not in out
    code, out, _ = cli("data", "check", "--root", tmp_path, "--dataset", "sketchy", "--no-extended")
    assert code == 0 and re.search(r"photos +250 +250\n", out) and "gallery" not in out
    put(tmp_path / "Sketchy", f"256x256/sketch/{TX}_ready/bat/extra.png")
    code, out, _ = cli("data", "check", "--root", tmp_path, "--dataset", "sketchy", "--decode")
    assert code == 1 and "unreadable pictures: 896 of 896" in out and "the file is empty" in out


def test_published_sizes():
    """What the papers' gallery and query counts are; `data check` holds a download against them."""
    sizes = {n: find_split(d, n).expected for d in CLASSES for n in split_names(d)}
    assert sizes["sketchy-1"] == {"queries": 15229, "gallery": 14601, "gallery_with_duplicates": 17101}
    assert sizes["sketchy-2"] == {"queries": 12694, "gallery": 10453, "gallery_with_duplicates": 12553}
    assert sizes["tuberlin"] == {"queries": 2400, "gallery": 27989}
    assert sizes["quickdraw"] == {"queries": 92291, "gallery": 54151}
    assert dataset_facts("sketchy")["basic_per_class"] * len(find_split("sketchy", "2").unseen) == 2100
    assert dataset_facts("sketchy")["photos"] == 73002
