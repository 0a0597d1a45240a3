"""The same questions to a folder's gallery, a Milvus collection and shards on a cluster: what one answers, all do."""

import contextlib
import inspect

import numpy as np
import pytest
from gallery_faults import DIM, MODEL, PixelEncoder, paint

from splip.errors import UserError
from splip.gallery import Filter, Gallery, Match, Picture, Searchable

MEMBERS = sorted(
    name
    for name, value in vars(Searchable).items()
    if (inspect.isfunction(value) or isinstance(value, property))
    and (not name.startswith("_") or name in ("__len__", "__enter__", "__exit__"))
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Thirty pictures in three folders."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"class-{n % 3}" / f"{n:02d}.png" for n in range(30)]
    for n, path in enumerate(paths):
        paint(path, n)
    return paths


def in_folder(writer, stack):
    return stack.enter_context(Gallery.open(writer.folder, encoder=PixelEncoder())), lambda: None


def in_milvus(writer, stack):
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    from splip.milvus import MilvusGallery, parse
    from splip.milvus.push import push

    place = f"milvus:{writer.folder.parent}/store.db/photos"

    def tell():
        push(writer, parse(place))

    tell()
    return stack.enter_context(MilvusGallery(place, encoder=PixelEncoder())), tell


def on_shards(writer, stack):
    pytest.importorskip("ray")
    import cluster_faults  # noqa: F401  # for Ray's settings on a machine that others use too

    from splip.cluster import connect, open_sharded

    cluster = stack.enter_context(connect("local"))
    return stack.enter_context(open_sharded(writer.folder, cluster, shards=2, encoder=PixelEncoder())), lambda: None


@pytest.fixture(scope="module", params=[in_folder, in_milvus, pytest.param(on_shards, marks=pytest.mark.exhaustive)])
def galleries(request, photos, tmp_path_factory):
    """A writer of a folder, a gallery that answers as it does, and what to do so that this one can take in news."""
    folder = tmp_path_factory.mktemp("gallery")
    (folder / "model").write_bytes(MODEL)
    with contextlib.ExitStack() as stack:
        made = Gallery.create(folder / "gallery", folder / "model", encoder=PixelEncoder(), segment_rows=16)
        writer = stack.enter_context(made)
        tags = [{"even": "yes"} if n % 2 == 0 else {} for n in range(len(photos))]
        writer.add([Picture(path, path.parent.name, tag) for path, tag in zip(photos, tags, strict=True)])
        writer.refresh()
        yield writer, *request.param(writer, stack)


def test_the_list_of_members_is_one():
    assert len(MEMBERS) > 15 and {"encoder", "search_vectors", "dim", "close"} <= set(MEMBERS)


def test_it_has_what_the_protocol_says(galleries):
    _, gallery, _ = galleries
    for name in MEMBERS:
        wanted, found = vars(Searchable)[name], inspect.getattr_static(type(gallery), name)
        assert isinstance(found, property) == isinstance(wanted, property), name
        if not isinstance(wanted, property) and not name.startswith("__"):
            parameters = inspect.signature(wanted).parameters.values()
            assert [(p.name, p.default) for p in inspect.signature(found).parameters.values()][: len(parameters)] == [
                (p.name, p.default) for p in parameters
            ], name


def test_it_tells_the_same_facts(galleries, photos):
    writer, gallery, _ = galleries
    for name in ("dim", "model", "identity", "decoding"):
        assert getattr(gallery, name) == getattr(writer, name), name
    assert gallery.reading("sketch") == writer.reading("sketch")
    assert len(gallery) == 30 and gallery.labels() == {f"class-{n}": 10 for n in range(3)}
    item, wanted = gallery.item(7), writer.item(7)
    for name in ("id", "path", "label", "tags", "size", "mtime_ns", "hash"):
        assert getattr(item, name) == getattr(wanted, name), name
    vector = gallery.vector(7)
    assert vector.dtype == np.float32 and vector.shape == (DIM,)
    np.testing.assert_allclose(vector, writer.vector(7), atol=1e-6)
    for ask in (gallery.item, gallery.vector):
        for id in (0, 31, -1, 2**63):
            with pytest.raises(KeyError):
                ask(id)
    np.testing.assert_array_equal(gallery.embed(photos=photos[:2]), writer.embed(photos=photos[:2]))
    np.testing.assert_array_equal(gallery.prepare(photos[0], "photo"), writer.prepare(photos[0], "photo"))


def test_it_finds_the_same(galleries, photos):
    writer, gallery, _ = galleries
    queries = np.random.default_rng(3).standard_normal((4, DIM)).astype(np.float32)
    one = Filter(labels=("class-1",), tags={"even": "yes"})
    for k, filter in (
        (1, None),
        (10, None),
        (50, None),
        (10, one),
        (10, [one, None, Filter(ids=(3, 4)), Filter(ids=())]),
    ):
        found, wanted = gallery.search_vectors(queries, k, filter), writer.search_vectors(queries, k, filter)
        for matches, want in zip(found, wanted, strict=True):
            assert all(type(match) is Match for match in matches)
            assert [(m.id, m.path, m.label, m.tags) for m in matches] == [(m.id, m.path, m.label, m.tags) for m in want]
            np.testing.assert_allclose([m.score for m in matches], [m.score for m in want], atol=1e-6)
    assert gallery.search(photos=[photos[4]], k=1)[0][0].path == photos[4]
    assert gallery.search_vectors(np.empty((0, DIM), np.float32)) == []


def test_it_refuses_the_same(galleries):
    _, gallery, _ = galleries
    for vectors, options in (
        (np.ones(DIM), {}),
        (np.ones((1, DIM + 1)), {}),
        (np.full((1, DIM), np.nan), {}),
        (np.ones((1, DIM)), {"k": 0}),
        (np.ones((1, DIM)), {"filter": [None, None]}),
    ):
        with pytest.raises(UserError):
            gallery.search_vectors(vectors, **options)
    with pytest.raises(UserError, match="texts must be a list"):
        gallery.embed(texts="horse")


def test_it_takes_in_what_is_new_and_ends(galleries, photos, tmp_path):
    writer, gallery, tell = galleries
    assert not gallery.refresh()
    paint(tmp_path / "late.png", 77)
    assert writer.add([tmp_path / "late.png"], label="late").new == 1
    tell()
    assert gallery.refresh() and not gallery.refresh()
    assert len(gallery) == 31 and gallery.labels()["late"] == 1
    assert gallery.search(photos=[tmp_path / "late.png"], k=1)[0][0].path == tmp_path / "late.png"
    with gallery as same:
        assert same is gallery
    gallery.close()
