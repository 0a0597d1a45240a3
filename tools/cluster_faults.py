"""Kill machines of a Ray cluster, and the front, while a gallery grows and is searched; look at what they left.

    OMP_WAIT_POLICY=passive python tools/cluster_faults.py --repeats 10 --rows 200000

Three nodes run on this machine. Indexing: a random node, or the process that hands out the work, is killed (SIGKILL) at
a random moment; then every picture is there once, with its vector, and no segment that was finished was made again.
Searching: a node is killed under searches; every answer is whole and equal to that of one machine, bit for bit, or says
that it is partial and is what one machine finds in the other shards; then the answers become whole again.

The encoder is a projection of the pixels: what is tested is storage and search. `--save FILE` writes what was counted.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # of the nodes that are started here
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")  # others may need much memory on this machine
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # and most of its time
sys.path.insert(0, str(Path(__file__).parent))
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

import numpy as np
import psutil
from gallery_faults import MODEL, PixelEncoder, paint, verify
from PIL import Image

from splip.cluster import embedding
from splip.cluster.ray import Cluster, connect, import_ray
from splip.cluster.shards import ShardedGallery, open_sharded
from splip.gallery.gallery import Gallery

STORE = 100 << 20
PICTURES, SEGMENT = 240, 16
DELAY = 0.2  # seconds a batch, so that there are moments to be killed at


# ---- encoders that workers load ----


def load_slow() -> PixelEncoder:
    return PixelEncoder(delay=DELAY)


def load_troubled() -> PixelEncoder:
    """On a node with TROUBLE=disk nothing of more than 4 kB can be written; with TROUBLE=model it has another model."""
    trouble = os.environ.get("TROUBLE")
    if not trouble:
        time.sleep(4)  # the others come first
    if trouble == "disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    return PixelEncoder(b"another" if trouble == "model" else MODEL)


class Deadly(PixelEncoder):
    """Dies of black pictures."""

    def prepare(self, image: Image.Image, modality: str) -> np.ndarray:
        if not any(high for _, high in image.getextrema()):  # type: ignore[misc]
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(image, modality)


# ---- nodes ----


class Nodes:
    """A head and two more nodes on this machine, one processor each."""

    def __init__(self, *trouble: str) -> None:
        import_ray()
        from ray.cluster_utils import Cluster as Local

        head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
        self.local: Any = Local(initialize_head=True, head_node_args=head)
        self.address: str = self.local.address
        self.others = [self.add(trouble[n] if n < len(trouble) else "") for n in range(2)]

    def add(self, trouble: str = "", **more: str) -> Any:
        env = {"TROUBLE": trouble, **more}
        return self.local.add_node(num_cpus=1, object_store_memory=STORE, env_vars=env)

    def kill(self, number: int) -> None:
        """Kill everything of a node that is not the head."""
        self.local.remove_node(self.others.pop(number), allow_graceful=False)

    def mend(self) -> None:
        """Three nodes again, and nobody counts on those that are gone."""
        while len(self.others) < 2:
            self.others.append(self.add())
        want = {node.node_id for node in (self.local.head_node, *self.others)}
        end = time.monotonic() + 60
        while {node.id for node in Cluster(self.address).nodes()} != want and time.monotonic() < end:
            time.sleep(0.1)

    def close(self) -> None:
        self.local.shutdown()


def start(*trouble: str, tries: int = 3) -> Nodes:
    """Three nodes. Now and then one never says that it is up, and Ray gives up on it: once more then, from the start."""
    this = psutil.Process()
    while True:
        before, tries = set(this.children(recursive=True)), tries - 1
        try:
            return Nodes(*trouble)
        except Exception as error:
            for process in set(this.children(recursive=True)) - before:  # Ray leaves what it had started
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            if not tries or "timed out" not in str(error).lower():
                raise


@contextlib.contextmanager
def nodes(*trouble: str) -> Iterator[tuple[Nodes, Cluster]]:
    """Three nodes and a connection to them; ``trouble``: of the second and the third."""
    started = start(*trouble)
    try:
        with connect(started.address) as cluster:
            yield started, cluster
    finally:
        started.close()


# ---- indexing ----


def paint_all(place: Path, rng: random.Random, count: int = PICTURES) -> dict[Path, set[int]]:
    seeds = {place / "pictures" / f"{n % 3}" / f"{n:04d}.png": rng.randrange(2**31) for n in range(count)}
    for path, seed in seeds.items():
        paint(path, seed)
    (place / "model").write_bytes(MODEL)
    return {path: {seed} for path, seed in seeds.items()}


def make_gallery(place: Path) -> Gallery:
    encoder: Any = PixelEncoder()
    return Gallery.create(place / "gallery", place / "model", encoder=encoder, segment_rows=100)


def reopen(place: Path, write: bool = True) -> Gallery:
    encoder: Any = PixelEncoder()
    return Gallery.open(place / "gallery", encoder=encoder, write=write)


def embed(gallery: Gallery, paths: list[Path], cluster: Cluster, **how: Any) -> embedding.Embedded:
    how = {"load": load_slow, "batch_size": 8, "segment_pictures": SEGMENT, **how}
    return embedding.add(gallery, paths, cluster, **how)


def kill_node(place: Path, started: Nodes, cluster: Cluster, rng: random.Random) -> dict[str, Any]:
    """Kill a node after a random part of the work."""
    expected = paint_all(place, rng)
    moment = rng.randrange(0, PICTURES - 60)
    left = [rng.randrange(2)]

    def notify(done: Any) -> None:
        if done.committed >= moment and left:
            started.kill(left.pop())

    with make_gallery(place) as gallery:
        done = embed(gallery, list(expected), cluster, notify=notify)
    verify(place / "gallery", expected, {})
    assert done.new == PICTURES and not left, done
    started.mend()
    return {"killed": "node", "after_pictures": moment, "workers_died": done.died, "handed_out_again": done.again}


def kill_front(place: Path, started: Nodes, cluster: Cluster, rng: random.Random) -> dict[str, Any]:
    """Kill the process that hands out the work, and start it again."""
    expected = paint_all(place, rng)
    with make_gallery(place):
        pass
    command = [sys.executable, __file__, "--front", str(place), started.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as front:
        assert front.stdout is not None
        assert front.stdout.readline(), "the front failed"  # the first commit
        time.sleep(rng.uniform(0, 0.7))
        front.send_signal(signal.SIGKILL)
    with reopen(place) as gallery:
        gallery.refresh()
        before = len(gallery)
        done = embed(gallery, list(expected), cluster)
        gallery.refresh()
        redone = before + done.recovered + done.encoded - len(gallery)
    verify(place / "gallery", expected, {})
    # A segment may have been committed just before the kill, and be found again: it is not embedded again.
    assert done.encoded <= PICTURES - before, "a finished segment was made again"
    return {"killed": "front", "committed": before, "recovered": done.recovered, "embedded_twice": redone}


def front(place: Path, address: str) -> None:
    """The process that :func:`kill_front` kills."""
    paths = sorted((place / "pictures").rglob("*.png"))
    with connect(address) as cluster, reopen(place) as gallery:
        embed(gallery, paths, cluster, notify=lambda done: print(done.committed, flush=True))


# ---- searching ----


def fill(folder: Path, rows: int, dim: int, segment_rows: int = 65_536) -> None:
    """A gallery of random vectors, some of them twice, written through the storage."""
    rng = np.random.default_rng(0)
    model = folder.parent / "none"
    model.write_bytes(b"")
    encoder: Any = SimpleNamespace(embed_dim=dim, identity="made up", name="made up", close=lambda: None)
    with Gallery.create(folder, model, encoder=encoder, segment_rows=segment_rows) as gallery:
        for first in range(0, rows, 32_768):
            vectors = rng.standard_normal((min(32_768, rows - first), dim), dtype=np.float32)
            vectors[1::50] = vectors[::50][: len(vectors[1::50])]  # ties
            with gallery.catalog.writing() as db:
                places = gallery.append(db, vectors)
                values = [(b"/%09d" % (first + n), str(n % 10), *place) for n, place in enumerate(places)]
                db.executemany(
                    "INSERT INTO items (path, label, size, mtime_ns, hash, segment, row) VALUES (?, ?, 0, 0, x'', ?, ?)",
                    values,
                )
        gallery.write_packs()


def pairs(answers: Any) -> list[list[tuple[int, float]]]:
    return [[(match.id, match.score) for match in matches] for matches in answers]


def check_partial(found: list[tuple[int, float]], whole: list[tuple[int, float]]) -> None:
    """What is found in some shards stands in the ranking of all of them, in that order."""
    places = {pair: place for place, pair in enumerate(whole)}
    positions = [places[pair] for pair in found]
    assert positions == sorted(positions), "a partial answer is not ranked as the whole one"


def homes(gallery: ShardedGallery) -> set[str]:
    """The nodes that the shards run on."""
    ray = import_ray()

    def home(shard: Any) -> str:
        return str(ray.get_runtime_context().get_node_id())

    return set(ray.get([replica.actor.__ray_call__.remote(home) for replica in gallery.replicas.all if replica.alive]))


def kill_searched(gallery: ShardedGallery, local: Gallery, started: Nodes, rng: random.Random) -> dict[str, Any]:
    """Kill a node that holds rows, as each does, under searches, until they are whole again."""
    assert len(homes(gallery)) == 3, "a node has no shard"
    queries = np.random.default_rng(rng.randrange(2**31)).standard_normal((8, gallery.dim)).astype(np.float32)
    ranking = pairs(local.search_vectors(queries, 400))
    wanted = [one[:50] for one in ranking]
    counts = {"whole": 0, "partial": 0}
    began, killed, mended = time.monotonic(), 0.0, 0.0
    killer = threading.Thread(target=started.kill, args=(rng.randrange(len(started.others)),))
    longest = 0.0
    while time.monotonic() - began < 120:
        if not killed and time.monotonic() - began > 1:
            killed = time.monotonic()
            killer.start()
        start = time.monotonic()
        answers = gallery.search_vectors(queries, 50)
        longest = max(longest, time.monotonic() - start)
        partial = any(matches.partial for matches in answers)  # type: ignore[attr-defined]
        counts["partial" if partial else "whole"] += 1
        if partial:
            for found, whole in zip(pairs(answers), ranking, strict=True):
                check_partial(found, whole)
        else:
            assert pairs(answers) == wanted, "a whole answer differs from that of one machine"
            if killed and not killer.is_alive() and counts["partial"]:
                mended = time.monotonic()
                break
        time.sleep(0.01)
    killer.join()
    assert mended, f"the answers did not become whole again: {counts} {gallery.problems}"
    started.mend()
    return {
        "killed": "shard",
        "whole_again_s": round(mended - killed, 2),
        "longest_search_s": round(longest, 3),
        **counts,
    }


# ---- the whole ----


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="kills of each kind (default: 10)")
    parser.add_argument("--rows", type=int, default=200_000, help="of the gallery that is searched (default: 200000)")
    parser.add_argument("--dim", type=int, default=512, help="of its vectors (default: 512)")
    parser.add_argument("--seed", type=int, default=0, help="of the first kill (default: 0)")
    parser.add_argument("--save", type=Path, help="write what was counted to this file")
    parser.add_argument("--front", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.front:
        return front(Path(args.front[0]), args.front[1])
    runs: list[dict[str, Any]] = []

    def one(kill: Callable[[random.Random], dict[str, Any]], seed: int) -> None:
        runs.append({"seed": seed, **kill(random.Random(seed))})
        print("  ".join(f"{name} {value}" for name, value in runs[-1].items()), flush=True)

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="splip-cluster-") as folder, nodes() as (started, cluster):
        place = Path(folder)
        for number in range(args.repeats):
            for kill in (kill_node, kill_front):
                with tempfile.TemporaryDirectory(dir=place) as own:
                    one(lambda rng: kill(Path(own), started, cluster, rng), args.seed + number)
        fill(place / "rows", args.rows, args.dim)
        with Gallery.open(place / "rows") as local:
            for number in range(args.repeats):
                with open_sharded(place / "rows", cluster, shards=3) as gallery:
                    one(lambda rng: kill_searched(gallery, local, started, rng), args.seed + number)
    print(f"{len(runs)} kills, nothing lost, nothing twice, no wrong answer; {time.monotonic() - began:.0f} s")
    if args.save:
        about = {"tool": "cluster_faults", "rows": args.rows, "dim": args.dim, "nodes": 3, "pictures": PICTURES}
        args.save.write_text(
            json.dumps({**about, "seconds": round(time.monotonic() - began), "runs": runs}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
