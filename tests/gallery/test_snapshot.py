"""One committed state at a time: what was deleted stays so, earlier states stay as they are, and files may be mapped or not."""

import numpy as np
import pytest
from gallery_faults import DIM, MODEL, PixelEncoder, paint

from splip.errors import UserError
from splip.gallery import Filter, Gallery
from splip.gallery.folder import GalleryFolder
from splip.gallery.snapshot import Snapshots, passing


@pytest.fixture
def writer(tmp_path):
    """Twenty pictures in segments of eight rows, open for writing."""
    (tmp_path / "model").write_bytes(MODEL)
    paths = [tmp_path / "photos" / f"{n:02d}.png" for n in range(20)]
    for n, path in enumerate(paths):
        paint(path, n)
    encoder = PixelEncoder()
    with Gallery.create(tmp_path / "gallery", tmp_path / "model", encoder=encoder, segment_rows=8) as gallery:
        gallery.add(paths, label="old")
        yield gallery


@pytest.fixture
def snapshots(writer):
    folder = GalleryFolder(writer.folder)
    yield Snapshots(folder, "cpu")
    folder.close()


def found(snapshots, filter=None):
    return sorted(match.id for match in snapshots.search(np.ones((1, DIM), np.float32), 100, [filter])[0])


def test_what_was_deleted_stays_so_while_more_goes_and_comes(writer, snapshots, tmp_path):
    everything = set(range(1, 21))
    assert found(snapshots) == sorted(everything)
    for gone in ([2], [3, 20], [9]):
        writer.remove(gone)
        everything -= set(gone)
        assert found(snapshots) == sorted(everything) and snapshots.state.live == len(everything)
    paint(tmp_path / "late.png", 99)
    writer.add([tmp_path / "late.png"])
    assert found(snapshots) == [*sorted(everything), 21]
    assert found(snapshots, Filter(labels=("old",))) == sorted(everything)


def test_a_state_stays_as_it_was_taken(writer, snapshots):
    with snapshots.take() as (db, state):
        writer.remove([1])
        assert snapshots.state is state and state.live == 20 and not state.alive
        assert all(mask.all() for mask in passing(db, state, Filter(labels=("old",))).values())
    with snapshots.take() as (_, later):
        assert later.revision > state.revision and later.live == 19 and state.live == 20


def test_a_process_that_searches_nothing_maps_nothing(writer):
    folder = GalleryFolder(writer.folder)
    snapshots = Snapshots(folder, None)
    with snapshots.take() as (_, state):
        assert state.ready and state.parts == () and state.live == 20
    assert not snapshots.refresh() or not snapshots.refresh()
    folder.close()


def test_no_such_device(writer):
    folder = GalleryFolder(writer.folder)
    with pytest.raises(UserError, match="no device abacus"), Snapshots(folder, "abacus").take():
        pass
    folder.close()
