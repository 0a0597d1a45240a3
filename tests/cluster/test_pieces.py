"""How rows are divided among shards: evenly, once, and they stay where they are while a gallery grows. Without Ray."""

from types import SimpleNamespace

import numpy as np
import pytest
from cluster_faults import fill

from splip.cluster import pieces
from splip.gallery import Gallery
from splip.gallery.folder import GalleryFolder
from splip.gallery.snapshot import Snapshots

WIDTH = 8


@pytest.fixture
def gallery(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "LEAST_ROWS", 50)
    fill(tmp_path / "g", 1000, WIDTH, segment_rows=300)
    encoder = SimpleNamespace(embed_dim=WIDTH, identity="made up", name="made up")
    with Gallery.open(tmp_path / "g", write=True, encoder=encoder) as gallery:
        yield gallery


def grow(gallery, count):
    rows = np.random.default_rng(count).standard_normal((count, WIDTH)).astype(np.float32)
    with gallery.catalog.writing() as db:
        values = [(b"/%d %d" % (count, n), *place) for n, place in enumerate(gallery.append(db, rows))]
        db.executemany(
            "INSERT INTO items (path, size, mtime_ns, hash, segment, row) VALUES (?, 0, 0, x'', ?, ?)", values
        )


def places(told):
    return sorted((p.segment, row) for one in told for p in one.pieces for row in range(p.first, p.stop))


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_every_row_has_one_shard_and_stays_there(gallery, shards):
    folder = GalleryFolder(gallery.folder)
    snapshots, layout = Snapshots(folder, None), pieces.Layout(folder.files, shards)
    before = {}
    for more in (0, 10, 1, 700):
        if more:
            grow(gallery, more)
        with snapshots.take() as (db, state):
            told = layout.tell(db, state)
            assert layout.tell(db, state) is told
            wanted = [(s.number, row) for s in state.segments for row in range(s.count)]
        assert places(told) == wanted and sum(layout.rows()) == len(wanted)
        assert max(layout.rows()) - min(layout.rows()) <= max(50, -(-len(wanted) // (2 * shards)))
        now = {(p.segment, p.first): shard for shard, one in enumerate(told) for p in one.pieces}
        assert before.items() <= now.items()
        before = now
    gallery.remove(range(1, 60))
    with snapshots.take() as (db, state):
        masks = {number: mask for one in layout.tell(db, state) for number, mask in one.masks.items()}
    assert set(masks) == {1} and not np.unpackbits(masks[1])[:59].any() and np.unpackbits(masks[1])[59:300].all()
    folder.close()
