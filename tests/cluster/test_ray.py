"""Three Ray nodes on this machine: what they embed and find is what one machine does, also when some of it dies."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import cluster_faults as faults
import numpy as np
import pytest
from gallery_faults import DIM, MODEL, PixelEncoder, paint, verify
from PIL import Image

from splip.cluster import embedding, incoming
from splip.cluster import ray as cluster
from splip.cluster.replicas import Replica, place
from splip.cluster.shards import open_sharded
from splip.cluster.worker import Task, Worker
from splip.errors import UserError
from splip.gallery.catalog import Filter
from splip.gallery.gallery import Gallery
from splip.gallery.segments import Segments

ray = pytest.importorskip("ray")
ROOT = Path(__file__).resolve().parents[2]
ROWS, WIDTH = 6000, 64


@pytest.fixture(scope="module")
def nodes():
    """A head and two nodes, the one without room on its disk and the other with another model if a test asks for it."""
    with faults.nodes("disk", "model") as started:
        yield started


@pytest.fixture
def machines(nodes):
    return nodes[1]


@pytest.fixture
def photos(tmp_path):
    """Pictures of three folders, one of them twice, and a file that is none."""
    paths = [tmp_path / "photos" / f"class-{n % 3}" / f"{n:02d}.png" for n in range(60)]
    for n, path in enumerate(paths):
        paint(path, n)
    twin = tmp_path / "photos" / "twin.png"
    twin.write_bytes(paths[5].read_bytes())
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "model").write_bytes(MODEL)
    return [*paths, twin, tmp_path / "photos" / "broken.png"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A gallery of vectors with ties, in several segments, some rows deleted."""
    folder = tmp_path_factory.mktemp("rows") / "gallery"
    faults.fill(folder, ROWS, WIDTH, segment_rows=2500)
    with Gallery.open(folder, write=True) as gallery:
        gallery.remove(range(100, 160))
    return folder


def queries(seed=0, count=5, dim=WIDTH):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def contents(gallery):
    """Everything of the items but their numbers."""
    return {
        (item.path, item.label, tuple(item.tags.items()), item.size, item.mtime_ns, item.hash, gallery.vector(item.id).tobytes())
        for item in gallery.items()
    }  # fmt: skip


# ---- connecting ----


def test_options_and_addresses(tmp_path, refused, monkeypatch):
    draw = tmp_path / "one.png"
    paint(draw, 0)
    add = ("index", "add", draw, "--gallery", tmp_path / "g", "--model", tmp_path / "none.pt")
    assert "--address goes with --engine ray" in refused(*add, "--address", "local")
    assert "--shards goes with --engine ray" in refused("serve", "--gallery", tmp_path, "--shards", "2", "--port", "0")
    for address, reason in (
        ("127.0.0.1:1", "no Ray cluster at 127.0.0.1:1: Connection refused"),
        ("nowhere.invalid:6379", "no Ray cluster at nowhere.invalid:6379"),
        ("ray://there", "--address must be auto, local or HOST:PORT"),
    ):
        assert reason in refused(*add, "--engine", "ray", "--address", address)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.0 505 what is this?")

        thread = threading.Thread(target=answer)
        thread.start()
        other = f"127.0.0.1:{server.getsockname()[1]}"
        assert "a server of another kind answers there" in refused(*add, "--engine", "ray", "--address", other)
        thread.join()
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'splip[ray]'" in refused(*add, "--engine", "ray")


def test_a_cluster_of_other_versions_of_ray(monkeypatch):
    def init(**_):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.1\n    Python: 3.9")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(UserError, match=r"runs other versions: Version mismatch: .* Ray: 2.1 Python: 3.9$"),
        cluster.connect(),
    ):
        pass


@pytest.mark.exhaustive
def test_a_node_of_another_version(nodes, tmp_path):
    """It has a package of this name that holds nothing but its version."""
    started, machines = nodes
    (tmp_path / "splip").mkdir()
    (tmp_path / "splip" / "__init__.py").write_text("__version__ = '0.0.7'")
    node = started.add(PYTHONPATH=str(tmp_path))
    try:
        end = time.monotonic() + 60
        while len(machines.nodes()) < 4 and time.monotonic() < end:
            time.sleep(0.1)
        with pytest.raises(UserError, match=r"node \w{8} on .* runs .*splip 0.0.7, this process .*: install the same"):
            machines.check_versions()
    finally:
        started.local.remove_node(node)


# ---- embedding ----


@pytest.mark.exhaustive
def test_a_cluster_makes_the_gallery_of_one_machine(machines, photos, tmp_path):
    wanted = [embedding.Picture(p, p.parent.name, {"even": "yes"} if n % 2 else {}) for n, p in enumerate(photos)]
    encoder = PixelEncoder()
    with Gallery.create(tmp_path / "alone", tmp_path / "model", encoder=encoder, segment_rows=100) as alone:
        alone.add(wanted)
        with faults.make_gallery(tmp_path) as gallery:
            said = []
            done = faults.embed(gallery, wanted, machines, notify=lambda done: said.append(done.committed))
            assert contents(gallery) == contents(alone) and not gallery.check().damage
            assert (done.new + done.duplicates, done.died, done.recovered, done.workers) == (61, 0, 0, 3)
            assert [error.reason for error in done.skipped] == [
                "not a picture, damaged, or of a format that is not read"
            ] and said[-1] == 62
            assert not (gallery.folder / incoming.FOLDER).exists()
            # Moved, changed and new ones, and labels of what is known.
            photos[0].rename(photos[0].with_name("moved.png"))
            paint(photos[1], 777)
            paint(photos[1].with_name("new.png"), 778)
            again = sorted(photos[0].parent.parent.rglob("*.png"))
            done = faults.embed(gallery, again, machines, tags={"seen": "twice"})
            assert (done.moved, done.changed, done.new, done.encoded) == (1, 1, 1, 3)
            alone.add(again, tags={"seen": "twice"})
            assert contents(gallery) == contents(alone) and not gallery.check().damage


@pytest.mark.exhaustive
def test_machines_that_cannot_are_left_out(machines, photos, tmp_path):
    """The second node cannot write, the third has another model; the head does it all."""
    told = []
    with faults.make_gallery(tmp_path) as gallery:
        done = faults.embed(gallery, photos, machines, load=faults.load_troubled, segment_pictures=62, tell=told.append)
        gallery.refresh()
        assert len(gallery) == 61 and not gallery.check().damage and told == done.troubles
    assert told and all("cannot be written: the disk is full" in line or "has another model" in line for line in told)


def test_what_a_stopped_run_left(photos, tmp_path):
    """Segments of a front that was killed are committed by the next run, but for damaged ones and those of others."""
    photos = photos[:48]
    run = tmp_path / "gallery" / incoming.FOLDER / "a-run"
    with faults.make_gallery(tmp_path) as gallery:
        gallery.add(photos[:4])

        def work(number, some, model=MODEL):
            identity = PixelEncoder(model).identity
            task = Task(run, DIM, identity, lambda: PixelEncoder(model), 4, 1, None)
            worker = Worker(task, "here")
            assert worker.load() is None
            entries = [(os.fsencode(p), embedding.Picture(p, "left"), None) for p in some]
            assert worker.embed(number, entries)[0] is None

        run.mkdir(parents=True)
        work(1, photos[:12])  # four of them are known by now
        work(2, photos[8:16])  # and these were handed out twice
        work(3, photos[16:24], b"another")
        for number in (4, 5, 6):
            work(number, photos[8 * number - 8 : 8 * number])
        rows, manifest = Segments(run, DIM).rows_path(4), incoming.manifest_path(run, 5)
        rows.write_bytes(b"\x01" + rows.read_bytes()[1:])
        manifest.write_text(manifest.read_text().replace('"left"', '"lift"', 1))
        incoming.manifest_path(run, 6).unlink()  # killed while it wrote
        done = embedding.Embedded()
        embedding.recover(gallery, done)
        gallery.refresh()
        assert done.recovered == 20 and len(gallery) == 16 and gallery.labels() == {"left": 16}
        assert [line.partition(": ")[2].split(" (")[0] for line in done.troubles] == [
            "of another model",
            "does not match its checksum; its pictures are embedded again",
            "does not match its checksum; its pictures are embedded again",
        ]
        assert f"{run}/000003.json" in done.troubles[0] and "000004.f32" in done.troubles[1]
        assert not run.exists() and not gallery.check().damage


def test_a_full_disk_is_no_crash(photos, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    task = Task(tmp_path, DIM, PixelEncoder().identity, PixelEncoder, 4, 1, None)
    worker = Worker(task, "node x")
    assert worker.load() is None
    monkeypatch.setattr(os, "pwrite", full)
    reason, _, _ = worker.embed(1, [(os.fsencode(p), embedding.Picture(p), None) for p in photos[:9]])
    assert reason == f"node x: {tmp_path}: cannot be written: the disk is full"
    assert not incoming.manifest_path(tmp_path, 1).exists()


def test_a_node_that_does_not_see_the_folders(photos, tmp_path):
    task = Task(tmp_path / "not shared", DIM, "", PixelEncoder, 4, 1, None)
    assert "node x does not see" in Worker(task, "node x").load()
    (tmp_path / "not shared").mkdir()
    task = Task(tmp_path / "not shared", DIM, "", PixelEncoder, 4, 1, str(photos[0]) + "x")
    assert "must share such folders" in Worker(task, "node x").load()
    task = Task(tmp_path / "not shared", DIM, "1234" * 16, PixelEncoder, 4, 1, None)
    assert "node x has another model than the gallery (123412341234)" in Worker(task, "node x").load()


@pytest.mark.exhaustive
def test_stopping_and_going_on(machines, photos, tmp_path):
    with faults.make_gallery(tmp_path) as gallery:
        done = faults.embed(gallery, photos, machines, segment_pictures=4, stop=lambda: True)
        assert done.stopped and done.seen < 62
        more = faults.embed(gallery, photos, machines)
        assert more.encoded + done.encoded == 61 and not more.stopped
        gallery.refresh()
        assert len(gallery) == 61


@pytest.mark.exhaustive
def test_a_picture_that_kills_workers_is_left_out(machines, photos, tmp_path):
    Image.new("RGB", (16, 16)).save(photos[30])
    with faults.make_gallery(tmp_path) as gallery:
        done = faults.embed(gallery, photos, machines, load=faults.Deadly, segment_pictures=8)
        gallery.refresh()
        assert len(gallery) == 60 and done.died >= 2
        assert {str(error.path) for error in done.skipped} == {str(photos[30]), str(photos[-1])}


@pytest.mark.exhaustive
def test_the_command_line(nodes, tmp_path, tree, cli):
    from checkpoints import save_model

    model = save_model(tmp_path / "tiny.pt", 0, sizes=(32,))
    where = ("--engine", "ray", "--address", nodes[0].address)
    add = ("index", "add", tree / "photo", "--gallery", tmp_path / "g", "--model", model, "--dimensions", "32")
    code, out, err = cli(*add, *where)
    assert (
        code == 0
        and "16 pictures (16 new)" in out
        and "pictures/s embedded after a start of " in out
        and "s; 3 workers" in out
    ), err
    ask = ("search", "--gallery", tmp_path / "g", "--sketch", tree / "sketch" / "cone" / "1.png", "--json")
    with Gallery.open(tmp_path / "g") as gallery:
        assert gallery.vector(1).shape == (32,)
    code, there, err = cli(*ask, *where, "--shards", "2")
    assert code == 0 and json.loads(there) == json.loads(cli(*ask)[1]), err


# ---- searching ----


@pytest.fixture(scope="module")
def sharded(nodes, rows):
    with open_sharded(rows, nodes[1], shards=3) as gallery:
        yield gallery


def whole_again(gallery, asked):
    end = time.monotonic() + 120
    while True:
        found = gallery.search_vectors(asked, 30)
        if not found[0].partial:
            return found
        assert time.monotonic() < end, gallery.problems
        time.sleep(0.05)


@pytest.mark.exhaustive
def test_shards_find_what_one_machine_finds(sharded, rows):
    with Gallery.open(rows) as local:
        counts = sharded.layout.rows()
        assert sum(counts) == ROWS and max(counts) < 2 * min(counts) and sharded.alive == [1, 1, 1]
        assert len(faults.homes(sharded)) == 3  # one on each node
        for count, k in ((1, 1), (5, 30), (70, 256), (3, ROWS)):
            asked = queries(k, count)
            found = sharded.search_vectors(asked, k)
            assert faults.pairs(found) == faults.pairs(local.search_vectors(asked, k))
            assert found[0] and not found[0].partial
        filters = [
            None,
            Filter(labels=("3",)),
            Filter(ids=(5, 6, 7, 120)),
            Filter(labels=("3", "4")),
            Filter(labels=("x",)),
        ]
        for _ in range(2):  # the second time the shards know the filters
            found = sharded.search_vectors(queries(), 30, filters)
            assert found == local.search_vectors(queries(), 30, filters) and len(found[2]) == 3 and found[4] == []
        assert np.array_equal(sharded.vector(7), local.vector(7)) and sharded.labels() == local.labels()


def test_places_of_shards():
    """One for each machine, replicas apart, not where one was lost, and on GPUs no more than there are."""

    def places(shards, replicas, nodes, on_gpu=False):
        made = [Replica(s, r) for s in range(shards) for r in range(replicas)]
        for one in made:
            one.node, one.actor = place(one, made, nodes, on_gpu).id, object()
        return made

    nodes = [cluster.Node(name, name, 4, gpus) for name, gpus in (("a", 0), ("b", 2), ("c", 1))]
    assert [one.node for one in places(3, 1, nodes)] == ["a", "b", "c"]
    two = places(3, 2, nodes)
    assert all(two[n].node != two[n + 1].node for n in (0, 2, 4))
    assert sorted(one.node for one in two) == ["a", "a", "b", "b", "c", "c"]
    assert sorted(one.node for one in places(3, 1, nodes, on_gpu=True)) == ["b", "b", "c"]
    lost = places(3, 1, nodes)[1]
    lost.actor, lost.avoid = None, "b"
    assert place(lost, places(3, 1, nodes)[::2], nodes, False).id in "ac"
    assert place(lost, [], nodes[1:2], False).id == "b"  # there is no other


def kill(actor):
    """Kill a shard's process, and wait until it is dead: a kill is a request, and the shard may still answer a few."""
    ray.kill(actor)
    end = time.monotonic() + 60
    with pytest.raises(ray.exceptions.RayActorError):
        while time.monotonic() < end:
            ray.get(actor.__ray_ready__.remote())
            time.sleep(0.02)


@pytest.mark.exhaustive
def test_a_dead_shard(sharded, rows):
    """Partial, said so, and ranked as the whole is; then a new process is there."""
    with Gallery.open(rows) as local:
        ranking = faults.pairs(local.search_vectors(queries(), ROWS))
        kill(sharded.replicas.all[1].actor)
        found = sharded.search_vectors(queries(), 30)
        assert all(matches.partial for matches in found) and sharded.alive[1] == 0
        for some, every in zip(faults.pairs(found), ranking, strict=True):
            faults.check_partial(some, every)
        assert faults.pairs(whole_again(sharded, queries())) == [one[:30] for one in ranking]
        assert sharded.alive == [1, 1, 1] and any("shard 1 is gone" in line for line in sharded.problems)


@pytest.mark.exhaustive
def test_a_gallery_grows_and_shrinks_under_its_shards(sharded, rows):
    with Gallery.open(rows, write=True) as writer:
        for step in range(6):
            with writer.catalog.writing() as db:
                vectors = queries(step + 10, 40)
                values = [(b"/new %d %d" % (step, n), *place) for n, place in enumerate(writer.append(db, vectors))]
                statement = "INSERT INTO items (path, size, mtime_ns, hash, segment, row) VALUES (?, 0, 0, x'', ?, ?)"
                db.executemany(statement, values)
            if step % 2:
                writer.remove(range(1000 * step, 1000 * step + 20))
            if step == 4:
                writer.compact()
            if step == 3:
                sharded.refresh()
            assert sharded.search_vectors(vectors[:3], 20) == writer.search_vectors(vectors[:3], 20)
        assert not sharded.problems or all("is gone" in line for line in sharded.problems)
        assert len(sharded) == len(writer)


@pytest.mark.exhaustive
def test_rows_that_do_not_match_their_checksum(machines, tmp_path):
    """Of another gallery, or damaged: the others go on, and the answer says that it is partial."""
    faults.fill(tmp_path / "g", 600, WIDTH, segment_rows=200)
    path = tmp_path / "g" / "vectors" / "000002.f32"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    for pack in path.parent.glob("*.pack"):
        pack.unlink()
    path.write_bytes(data)
    with open_sharded(tmp_path / "g", machines, shards=2) as gallery:
        found = gallery.search_vectors(queries(), 600)
        assert all(matches.partial and len(matches) == 400 for matches in found)
        (line,) = gallery.problems
        assert f"{path}: rows 0 to 199 do not match their checksum: damaged, or of another model" in line
        assert line.startswith("node ")


@pytest.mark.exhaustive
def test_with_two_replicas_nobody_notices(machines, rows):
    with open_sharded(rows, machines, shards=1, replicas=2) as gallery, Gallery.open(rows) as local:
        first, second = gallery.replicas.all
        wanted = local.search_vectors(queries(), 30)
        kill(first.actor)
        for _ in range(4):
            found = gallery.search_vectors(queries(), 30)
            assert found == wanted and not found[0].partial
        assert second.alive and any("shard 0 is gone" in line for line in gallery.problems)


@pytest.mark.exhaustive
def test_the_service_runs_on_shards(machines, photos, tmp_path):
    """Its answers are those of one machine, batches stay, and a dead shard shows."""
    from serving import running

    with faults.make_gallery(tmp_path) as gallery:
        gallery.add(photos[:60])
    with (
        faults.reopen(tmp_path, write=False) as local,
        open_sharded(tmp_path / "gallery", machines, shards=1, encoder=PixelEncoder()) as gallery,
    ):
        answers = []
        for served in (local, gallery):
            served.encoder.hold = threading.Event()  # of the fake encoder that this server is for
            with running(served, window_ms=50) as client:
                asked = {"queries": [{"id": n, "k": 7} for n in range(1, 9)] + [{"text": "horse"}]}
                answer = client.post("/v1/search/batch", json=asked).json()["answers"]
                answers.append([[(m["id"], m["score"]) for m in one["matches"]] for one in answer])
                assert all(one["partial"] is False for one in answer) and max(one["batch"] for one in answer) > 1
                assert client.get(f"/v1/thumbnails/{answer[0]['matches'][0]['id']}").status_code == 200
                if served is gallery:
                    kill(gallery.replicas.all[0].actor)
                    one = client.post("/v1/search", json={"id": 1, "k": 3}).json()
                    assert one["partial"] is True and one["matches"] == []
        assert answers[0] == answers[1]


@pytest.mark.exhaustive
def test_kills_at_random_moments():
    """A reduced count of what the script does in full."""
    command = [sys.executable, ROOT / "tools/cluster_faults.py", "--repeats", "1", "--rows", "20000", "--dim", "64"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "nothing lost, nothing twice, no wrong answer" in done.stdout, done.stderr


def test_verify_finds_what_is_lost(photos, tmp_path):
    """The checks of the script are checks."""
    with faults.make_gallery(tmp_path) as gallery:
        gallery.add(photos[:3])
    verify(tmp_path / "gallery", {path: {n} for n, path in enumerate(photos[:3])}, {})
    with pytest.raises(AssertionError, match="1 pictures are lost"):
        verify(tmp_path / "gallery", {path: {n} for n, path in enumerate(photos[:4])}, {})
    with pytest.raises(AssertionError):
        verify(tmp_path / "gallery", {path: {n + 1} for n, path in enumerate(photos[:3])}, {})
    with pytest.raises(AssertionError, match="not ranked"):
        faults.check_partial([(2, 0.5), (1, 0.9)], [(1, 0.9), (2, 0.5)])
