"""Pages, months and stacks: equal to what one counts by hand, whatever the order and the size of a page."""

import base64
import itertools
import json
import shutil
import sqlite3
import zlib

import gallery_faults as faults
import numpy as np
import pytest
from gallery_faults import DIM, PixelEncoder, paint
from photographs import exif, photograph

from splip.errors import UserError
from splip.gallery import Filter, Gallery, Match, Matches, Picture, browse, stacks

SORTS = ("newest", "oldest", "name", "added")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """Twenty pictures: dated ones, three of a second, undated ones, and three copies of the fifth and of the last."""
    folder = tmp_path_factory.mktemp("gallery")
    (folder / "model").write_bytes(faults.MODEL)
    pictures = []
    for n in range(14):
        path = folder / f"{'zyx'[n % 3]}" / f"{n:02d}.jpg"
        date = None if n > 9 else f"20{10 + n // 4}:0{1 + n % 5}:01 10:00:0{n % 2}"
        photograph(path, seed=n, tags=exif(date))
        pictures.append(Picture(path, f"class-{n % 2}", {"third": str(n % 3)}))
    for n in (4, 13):
        for copy in range(3):
            path = folder / "copies" / f"{n}-{copy}.jpg"
            path.parent.mkdir(exist_ok=True)
            shutil.copy(pictures[n].path, path)
            pictures.append(Picture(path, "copy" if copy else f"class-{n % 2}"))
    with Gallery.create(folder / "gallery", folder / "model", encoder=PixelEncoder(), segment_rows=16) as gallery:
        assert gallery.add(pictures).seen == 20
        yield gallery


FILTERS = [
    None,
    Filter(labels=("class-0",)),
    Filter(labels=("copy",)),
    Filter(tags={"third": "1"}),
    Filter(taken_from="2011"),
]
FILTERS += [Filter(ids=(3, 5, 15, 16, 20)), Filter(labels=("nothing",)), Filter(labels=("copy",), min_side=30)]


def by_hand(gallery, sort, filter, stack):
    items = list(gallery.items(filter))
    if stack:
        items = [item for n, item in enumerate(items) if item.hash not in {i.hash for i in items[:n]}]
    dated = [item for item in items if item.taken is not None]
    rest = [item for item in items if item.taken is None]
    down = sort == "newest"
    if sort in ("newest", "oldest"):
        dated.sort(key=lambda i: (i.taken, i.id), reverse=down)
        rest.sort(key=lambda i: (i.mtime_ns, i.id), reverse=down)
        return [i.id for i in dated + rest]
    items.sort(key=lambda i: str(i.path) if sort == "name" else -i.id)
    return [i.id for i in items]


def walk(gallery, **how):
    cursor, pages = None, []
    while True:
        page = gallery.browse(cursor=cursor, **how)
        pages.append(page)
        cursor = page.next
        if cursor is None:
            return pages
        assert len(page.items) == how["limit"]


@pytest.mark.parametrize("sort", SORTS)
def test_pages_are_what_one_counts_by_hand(gallery, sort, monkeypatch):
    for filter, stack, limit, few in itertools.product(FILTERS, (False, True), (1, 3, 20), (browse.FEW, 1)):
        monkeypatch.setattr(browse, "FEW", few)
        pages = walk(gallery, sort=sort, limit=limit, filter=filter, stack=stack)
        want = by_hand(gallery, sort, filter, stack)
        assert [item.id for page in pages for item in page.items] == want, (filter, stack, limit)
        assert {page.total for page in pages} == {len(want)}


def test_many_of_the_same_moment(gallery):
    """Times of files are the same for all that came in one archive: pages go by id then."""
    with gallery.catalog.writing() as db:
        times = db.execute("SELECT id, mtime_ns FROM items").fetchall()
        db.execute("UPDATE items SET mtime_ns = 5")
    try:
        for sort in ("newest", "oldest"):
            pages = walk(gallery, sort=sort, limit=2)
            assert [item.id for page in pages for item in page.items] == by_hand(gallery, sort, None, False)
    finally:
        with gallery.catalog.writing() as db:
            db.executemany("UPDATE items SET mtime_ns = ? WHERE id = ?", [(time, id) for id, time in times])


def test_copies_of_a_page(gallery):
    page = gallery.browse("added", 20, stack=True)
    copies = {item.id: item.copies for item in page.items}
    assert copies[5] == (15, 16, 17) and copies[14] == (18, 19, 20) and copies[1] == () and 15 not in copies
    page = gallery.browse("added", 20, filter=Filter(labels=("copy",)), stack=True)
    assert {item.id: item.copies for item in page.items} == {16: (17,), 19: (20,)}
    assert all(item.copies == () for item in gallery.browse("added", 20).items)


def told(*what):
    """A cursor as anybody could make it."""
    data = json.dumps(what).encode()
    return base64.urlsafe_b64encode(zlib.crc32(data).to_bytes(4, "big") + data).decode().rstrip("=")


FORGED = [["added", 0, 10**30, 1], ["added", 0, 1, 10**30], ["newest", 0, "\ud800", 1], ["newest", 0, "2" * 10**5, 1]]
FORGED += [
    ["newest", -1, 1, 1],
    ["newest", True, 1, 1],
    ["newest", 2, 1, 1],
    ["newest", 1, 1, -5],
    ["added", 0, 1, True],
]
FORGED += [["name", 0, "2f", 1], ["added", 0, 1.5, 1], [[], 0, 1, 1], ["newest", 0, None, 1], ["best", 0, 1, 1]]


@pytest.mark.parametrize("what", FORGED, ids=lambda what: str(what)[:30])
def test_cursors_that_somebody_made_up_are_damaged(gallery, what):
    with pytest.raises(UserError, match="cursor: damaged"):
        gallery.browse(what[0] if what[0] in SORTS else "newest", 3, told(*what))


def test_a_cursor_tells_no_path(gallery, tmp_path):
    cursor = gallery.browse("name", 3).next
    data = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))[4:]
    assert json.loads(data)[2] is None and str(gallery.folder).encode().hex().encode() not in data
    with pytest.raises(UserError, match="cursor: its picture is gone; begin without one"):
        gallery.browse("name", 3, told("name", 0, None, 10**6))


def test_a_copy_whose_file_is_there_stands_for_those_that_are_gone(gallery):
    gallery.catalog.note_missing([5, 15, 18], True)
    try:
        for sort in SORTS:
            items = {item.id: item for item in gallery.browse(sort, 20, stack=True).items}
            assert items[16].copies == (5, 15, 17) and items[16].copies_count == 3 and not items.keys() & {5, 15, 17}
            assert items[14].copies == (18, 19, 20)
        (found,) = stacks.search(gallery, gallery.vector(5)[None], 3)
        assert (found[0].id, found[0].copies, found[0].missing) == (16, (5, 15, 17), False)
        (found,) = stacks.search(gallery, gallery.vector(5)[None], 3, Filter(ids=(5, 15, 3)))
        assert (found[0].id, found[0].copies, found[0].missing) == (5, (15,), True)
    finally:
        gallery.catalog.note_missing([5, 15, 18], False)


def test_the_ids_of_copies_that_are_told_have_an_end(gallery, monkeypatch):
    monkeypatch.setattr(browse, "COPIES", 2)
    page = gallery.browse("added", 20, stack=True)
    assert {i.id: (i.copies, i.copies_count) for i in page.items if i.copies} == {5: ((15, 16), 3), 14: ((18, 19), 3)}
    match = stacks.search(gallery, gallery.vector(5)[None], 1)[0][0]
    assert (match.id, match.copies, match.copies_count) == (5, (15, 16), 3)


@pytest.mark.parametrize("stack", [False, True])
def test_months_are_what_one_counts_by_hand(gallery, stack):
    for filter in FILTERS:
        found = gallery.timeline(filter, stack)
        ids = set(by_hand(gallery, "added", filter, stack))
        taken = [item.taken for item in gallery.items() if item.id in ids]
        months = sorted({date[:7] for date in taken if date}, reverse=True)
        assert found.months == [
            (month, sum(date is not None and date[:7] == month for date in taken)) for month in months
        ]
        assert found.undated == taken.count(None)


def test_what_is_added_between_two_pages_repeats_nothing(gallery, tmp_path):
    first = gallery.browse("added", 5)
    paint(tmp_path / "new.png", 99)
    gallery.add([tmp_path / "new.png"])
    try:
        rest = walk(gallery, sort="added", limit=100)[0].items
        second = gallery.browse("added", 100, first.next)
        assert [i.id for i in first.items + second.items] == [i.id for i in rest][1:]
        assert second.total == 21  # what was counted before does not hold
    finally:
        gallery.remove([tmp_path / "new.png"])


def test_wrong_questions_are_told(gallery):
    cursor = gallery.browse("newest", 3).next
    flipped = ("B" if cursor[9] == "A" else "A").join((cursor[:9], cursor[10:]))
    for wrong in ("", "x", "!!!!", cursor[:-3], flipped, cursor + "AAAA", base64.b64encode(b"[" * 5000).decode(), "é"):
        with pytest.raises(UserError, match="cursor: damaged"):
            gallery.browse("newest", 3, wrong)
    with pytest.raises(UserError, match="cursor: it is of the order newest, not name"):
        gallery.browse("name", 3, cursor)
    with pytest.raises(UserError, match="sort: one of newest, oldest, name, added, got 'best'"):
        gallery.browse("best")
    for limit in (0, -1, 1001):
        with pytest.raises(UserError, match="limit: between 1 and 1000"):
            gallery.browse(limit=limit)


PLANNED = [None, Filter(labels=("class-0",)), Filter(labels=("class-0", "copy")), Filter(tags={"third": "1"})]
PLANNED += [Filter(min_side=3), Filter(ids=tuple(range(20))), Filter(labels=("copy",), min_side=3)]


@pytest.mark.parametrize("filter", PLANNED)
@pytest.mark.parametrize("sort", SORTS)
def test_pages_come_from_an_index(gallery, sort, filter, monkeypatch):
    """No page looks at all items, or puts them in order, once they are many."""
    plans = []
    monkeypatch.setattr(browse, "FEW", 1)

    class Told(sqlite3.Connection):
        def execute(self, statement, values=()):
            if statement.startswith(("SELECT id, ", "SELECT hash, count")):
                rows = super().execute("EXPLAIN QUERY PLAN " + statement, values).fetchall()
                plans.extend(row[3] for row in rows)
            return super().execute(statement, values)

    db = sqlite3.connect(gallery.catalog.path, factory=Told)
    cursor = None
    for _ in range(8):
        _, cursor = browse.page(db, sort, 3, cursor, filter, True)
        if cursor is None:
            break
    db.close()
    assert any("items_hash (hash=?" in plan for plan in plans)
    if sort == "added":  # by id, which is the order of the table
        plans = [plan for plan in plans if plan != "SCAN items"]
    plans = [plan for plan in plans if not plan.startswith("SCAN json_each")]
    bad = [plan for plan in plans if "TEMP B-TREE" in plan or (plan.startswith("SCAN") and "INDEX" not in plan)]
    assert not bad, bad


# ---- stacks ----


def reference(gallery, query, k, filter=None):
    """The whole ranking, each content at its best place."""
    ranking = gallery.search_vectors(query[None], max(1, len(gallery)), filter)[0]
    hashes = {match.id: gallery.item(match.id).hash for match in ranking}
    firsts = []
    for match in ranking:
        same = [m.id for m in ranking if hashes[m.id] == hashes[match.id]]
        if match.id == same[0]:
            firsts.append((match.id, match.score, tuple(sorted(same[1:]))[: browse.COPIES]))
    return firsts[:k]


def test_stacked_searches_are_exact(gallery):
    queries = np.random.default_rng(1).standard_normal((6, DIM)).astype(np.float32)
    queries[:2] = [gallery.vector(5), gallery.vector(14)]  # whose copies come first
    for filter in FILTERS:
        for k in (1, 2, 13, 14, 50):
            found = stacks.search(gallery, queries, k, filter)
            for query, matches in zip(queries, found, strict=True):
                assert [(m.id, m.score, m.copies) for m in matches] == reference(gallery, query, k, filter)


def test_one_picture_with_five_hundred_copies(tmp_path, monkeypatch):
    (tmp_path / "model").write_bytes(faults.MODEL)
    for n in range(12):
        paint(tmp_path / f"{n}.png", n)
    for n in range(500):
        shutil.copy(tmp_path / "3.png", tmp_path / f"copy-{n:03d}.png")
    with Gallery.create(tmp_path / "gallery", tmp_path / "model", encoder=PixelEncoder(), segment_rows=64) as gallery:
        gallery.add([tmp_path / f"{n}.png" for n in range(12)])
        assert gallery.add(sorted(tmp_path.glob("copy-*.png"))).duplicates == 500
        query = gallery.vector(4)
        asked = []

        class Counted:
            copies = gallery.copies

            def search_vectors(self, vectors, k, filter=None):
                asked.append(k)
                return gallery.search_vectors(vectors, k, filter)

        for k in (1, 2, 12, 30):
            (found,) = stacks.search(Counted(), query[None], k)
            assert [(m.id, m.score, m.copies) for m in found] == reference(gallery, query, k)
        assert found[0].id == 4 and found[0].copies == tuple(range(13, 113)) and len(found) == 12
        assert found[0].copies_count == 500 and found[1].copies_count == 0
        assert len(asked) <= 1 + 2 + 2 + 3
        monkeypatch.setattr(stacks, "MANY", 64)  # they are left out, and not gone through
        for filter in (None, Filter(under=tmp_path), Filter(ids=tuple(range(2, 400)))):
            for k in (2, 11, 12, 30):
                asked.clear()
                (found,) = stacks.search(Counted(), query[None], k, filter)
                assert [(m.id, m.score, m.copies) for m in found] == reference(gallery, query, k, filter)
                assert max(asked) <= 64 and len(asked) <= 3
        gallery.remove([20])
        (found,) = stacks.search(Counted(), query[None], 12)
        assert len(found) == 12 and found[0].copies_count == 499
        assert gallery.search(vectors=query[None], k=3, stack=True)[0] == found[:3]
        assert [m.id for m in gallery.search(vectors=query[None], k=3)[0]] == [4, 13, 14]


def test_each_query_of_a_batch_has_its_own(gallery):
    queries = np.stack([gallery.vector(5), gallery.vector(14), gallery.vector(5)])
    found = stacks.search(gallery, queries, [3, 1, 4], [None, Filter(labels=("copy",)), None], [True, True, False])
    assert [[m.id for m in matches][:3] for matches in found] == [
        [id for id, _, _ in reference(gallery, queries[0], 3)],
        [19],
        [5, 15, 16],
    ]
    assert found[1][0].copies == (20,) and len(found[2]) == 4 and found[2][0].copies == ()
    assert stacks.search(gallery, queries[:0], 3) == []


def test_galleries_that_know_no_copies():
    """Those that are found count; a limit on what can be asked for ends the search."""
    matches = [Match(n, 1 - n / 100, None, None, hash=b"a" if n < 30 else b"%d" % n) for n in range(60)]

    class Plain:
        most = 40

        def search_vectors(self, vectors, k, filter=None):
            assert k <= 40
            return [Matches(matches[:k], partial=True) for _ in vectors]

    (found,) = stacks.search(Plain(), np.ones((1, 4)), 5)
    assert [m.id for m in found] == [0, 30, 31, 32, 33] and found[0].copies == tuple(range(1, 30)) and found.partial
    (found,) = stacks.search(Plain(), np.ones((1, 4)), 40)
    assert len(found) == 11
    Plain.most = 60
    for n in range(60):
        matches[n].hash = b""  # of a gallery that has none
    (found,) = stacks.search(Plain(), np.ones((1, 4)), 10)
    assert [m.id for m in found] == list(range(10)) and found[0].copies == ()


def test_a_gallery_of_one_picture_and_of_none(tmp_path):
    (tmp_path / "model").write_bytes(faults.MODEL)
    with Gallery.create(tmp_path / "gallery", tmp_path / "model", encoder=PixelEncoder()) as gallery:
        query = np.ones((1, DIM), np.float32)
        for sort in SORTS:
            page = gallery.browse(sort, stack=True)
            assert (page.items, page.next, page.total) == ([], None, 0)
        assert stacks.search(gallery, query, 5) == [[]] and gallery.timeline().months == []
        photograph(tmp_path / "a.jpg")
        gallery.add([tmp_path / "a.jpg"])
        for sort in SORTS:
            page = gallery.browse(sort, 1, stack=True)
            assert ([item.id for item in page.items], page.next, page.total) == ([1], None, 1)
        assert [m.id for m in stacks.search(gallery, query, 5)[0]] == [1]
        assert gallery.timeline(stack=True).months == [("2019-07", 1)]


def test_pictures_that_are_all_there_many_times(tmp_path, monkeypatch):
    (tmp_path / "model").write_bytes(faults.MODEL)
    for n in range(6):
        paint(tmp_path / f"{n}.png", n)
        for copy in range(3 * n):
            shutil.copy(tmp_path / f"{n}.png", tmp_path / f"{n}-{copy}.png")
    with Gallery.create(tmp_path / "gallery", tmp_path / "model", encoder=PixelEncoder(), segment_rows=16) as gallery:
        gallery.add([tmp_path / f"{n}.png" for n in range(6)])
        gallery.add(sorted(tmp_path.glob("*-*.png")))
        queries = np.stack([gallery.vector(id) for id in range(1, 7)])
        for many in (1, 8, 2048):
            monkeypatch.setattr(stacks, "MANY", many)
            for k, filter in itertools.product((1, 3, 6, 9), (None, Filter(ids=tuple(range(3, 40))))):
                for query, matches in zip(queries, stacks.search(gallery, queries, k, filter), strict=True):
                    assert [(m.id, m.score, m.copies) for m in matches] == reference(gallery, query, k, filter)
