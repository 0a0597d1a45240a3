"""Kill writers of a gallery at random moments, and look at what they left.

    OMP_WAIT_POLICY=passive python tools/gallery_faults.py --repeats 100

A child process adds, changes, removes or compacts, and says what it was told is committed. It is killed (SIGKILL)
after a random time, or before a random one of its calls that touch the disk. Then: every picture that was reported
is there, none is there twice, every vector is that of its picture, `check` finds no damage, searches find every item,
and the same work started again ends with everything. `--full-disk` adds runs that meet a limit on file sizes.

The encoder is a projection of the pixels: what is tested is the storage. Each line names the seed of its run.
"""

import argparse
import hashlib
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image

from splip import gallery as galleries
from splip import images, ingest
from splip.errors import UserError
from splip.gallery import Gallery

SIDE, DIM, PICTURES, SEGMENT = 16, 24, 160, 50
TOUCHING = frozenset({"execute", "executemany", "pwrite", "fsync", "ftruncate", "replace", "unlink", "close"})
MODEL = b"a model"


class PixelEncoder:
    """Pictures to unit vectors by a fixed random projection; what a gallery needs of an encoder."""

    engine, precision, image_size, embed_dim, fit, crop_sketches = "pixels", "fp32", SIDE, DIM, "pad", False

    def __init__(self, model: bytes = MODEL, delay: float = 0.0) -> None:
        self.identity, self.name, self.path = hashlib.sha256(model).hexdigest(), f"pixels of {model!r}", Path("pixels")
        seed = int(self.identity[:8], 16)
        self.weights = np.random.default_rng(seed).standard_normal((SIDE * SIDE * 3, DIM)).astype(np.float32)
        self.delay, self.encoded = delay, 0

    def prepare(self, image: Image.Image, modality: str) -> np.ndarray:
        return images.square(image, SIDE)

    def encode(self, pixels: np.ndarray, modality: str) -> np.ndarray:
        time.sleep(self.delay)
        self.encoded += len(pixels)
        flat = pixels.reshape(len(pixels), -1).astype(np.float32) / 255 - 0.5
        vectors = np.stack([row @ self.weights for row in flat]) if len(flat) else np.empty((0, DIM), np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    def encode_text(self, texts: list[str], modality: str = "photo") -> np.ndarray:
        seeds = [int(hashlib.sha256(t.encode()).hexdigest()[:8], 16) for t in texts]
        vectors = np.stack([np.random.default_rng(s).standard_normal(DIM) for s in seeds]).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def close(self) -> None: ...


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)


def opened(folder: Path, write: bool = True) -> Gallery:
    return Gallery.open(folder, write=write, encoder=PixelEncoder(delay=0.001))  # type: ignore[arg-type]


# ---- children ----


def child(work: Callable[[Callable[[str], None]], None], kill: Callable[[int], None] | None = None) -> tuple[int, str]:
    """Run in a process of its own; returns its wait status and what it said."""
    read, write = os.pipe()
    sys.stdout.flush()
    number = os.fork()
    if number == 0:
        os.close(read)
        code = 1
        try:
            work(lambda text: (os.write(write, text.encode() + b"\n"), None)[1])
            code = 0
        except UserError as error:
            os.write(write, f"refused: {error}\n".encode())
            code = 3
        except BaseException:
            import traceback

            os.write(write, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(write)
    if kill is not None:
        kill(number)
    said = b""
    while data := os.read(read, 65536):
        said += data
    os.close(read)
    return os.waitpid(number, 0)[1], said.decode()


def die_at(call: int) -> list[int]:
    """Kill this process before its ``call``-th call that touches the disk; counts in the list returned."""
    count = [0]

    def watch(_: FrameType, event: str, what: Any) -> None:
        if event == "c_call" and getattr(what, "__name__", "") in TOUCHING:
            count[0] += 1
            if count[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(watch)
    sys.setprofile(watch)
    return count


# ---- the works that are killed; each says what is committed ----


def adding(folder: Path, pictures: list[Path], say: Callable[[str], None]) -> None:
    with opened(folder) as gallery:
        last = [-1]

        def notify(done: ingest.Added) -> None:
            if done.committed != last[0]:
                last[0] = done.committed
                say(f"committed {done.committed}")

        gallery.add(pictures, batch_size=8, threads=2, notify=notify)


def removing(folder: Path, batches: list[list[Path]], say: Callable[[str], None]) -> None:
    with opened(folder) as gallery:
        for number, batch in enumerate(batches, 1):
            gallery.remove(batch)
            say(f"committed {number}")


def compacting(folder: Path, _: Any, say: Callable[[str], None]) -> None:
    with opened(folder) as gallery:
        gallery.compact()
        say("committed 1")


# ---- what must hold ----


def verify(folder: Path, expected: dict[Path, set[int]], optional: dict[Path, set[int]]) -> None:
    """All expected pictures and no others but optional ones, each with the vector of one of the seeds given.

    Raises:
        AssertionError: otherwise.
    """
    encoder = PixelEncoder()
    with opened(folder, write=False) as gallery:
        found = gallery.check()
        assert not found.damage, found.damage
        items = list(gallery.items())
        paths = [item.path for item in items]
        assert len(set(paths)) == len(paths) == len(gallery), "an item is there twice"
        lost = set(expected) - set(paths)
        assert not lost, f"{len(lost)} pictures are lost, e.g. {sorted(lost)[0]}"
        known = expected | optional
        assert set(paths) <= set(known), "an item that nobody added"
        if not items:
            return
        vectors = np.stack([gallery.vector(item.id) for item in items])
        for item, vector in zip(items, vectors, strict=True):
            versions = [
                np.random.default_rng(s).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for s in known[item.path]
            ]
            assert any(np.array_equal(vector, v) for v in encoder.encode(np.stack(versions), "photo")), item.path
        best = gallery.search_vectors(vectors, k=1)
        assert [matches[0].id for matches in best] == [item.id for item in items], "a search misses an item"


def last_committed(said: str) -> int:
    numbers = [int(line.split()[1]) for line in said.splitlines() if line.startswith("committed ")]
    return numbers[-1] if numbers else 0


class Run:
    """One kind of work on a gallery, killed and looked at."""

    def __init__(self, place: Path, kind: str, rng: random.Random) -> None:
        self.folder, self.kind, self.rng = place / "gallery", kind, rng
        self.seeds = {place / "pictures" / f"{n:04d}.png": rng.randrange(2**31) for n in range(PICTURES)}
        for path, seed in self.seeds.items():
            paint(path, seed)
        (place / "model").write_bytes(MODEL)
        self.paths = list(self.seeds)
        self.before: dict[Path, set[int]] = {}  # what is in the gallery when the work starts
        self.work: Callable[[Path, Any, Callable[[str], None]], None] = adding
        self.input: Any = self.paths

    def set_up(self, say: Callable[[str], None]) -> None:
        """In a child: a gallery to work on."""
        model = self.folder.parent / "model"
        kwargs: dict[str, Any] = {"encoder": PixelEncoder(), "segment_rows": SEGMENT}
        with Gallery.create(self.folder, model, **kwargs) as gallery:
            if self.kind != "add":
                gallery.add(self.paths)
            if self.kind == "compact":
                gallery.remove(self.input)

    def plan(self) -> None:
        if self.kind == "change":
            self.before = {path: {seed} for path, seed in self.seeds.items()}
        elif self.kind == "remove":
            shuffled = self.rng.sample(self.paths, len(self.paths))
            self.before = {path: {seed} for path, seed in self.seeds.items()}
            self.work, self.input = removing, [shuffled[i : i + 10] for i in range(0, len(shuffled) - 20, 10)]
        elif self.kind == "compact":
            self.work, self.input = compacting, self.rng.sample(self.paths, len(self.paths) // 3)
            self.before = {path: {seed} for path, seed in self.seeds.items() if path not in set(self.input)}

    def change(self) -> None:
        """Other pictures in half of the files; both versions may be found until the work is done."""
        for path in self.rng.sample(self.paths, len(self.paths) // 2):
            self.seeds[path] = self.rng.randrange(2**31)
            paint(path, self.seeds[path])
            self.before[path].add(self.seeds[path])

    def after_kill(self, said: str) -> tuple[dict[Path, set[int]], dict[Path, set[int]]]:
        """What must and what may be there."""
        done = last_committed(said)
        if self.kind == "add":
            every = {path: {seed} for path, seed in self.seeds.items()}
            return {path: every[path] for path in self.paths[:done]}, every
        if self.kind == "change":
            settled = {path: {self.seeds[path]} for path in self.paths[:done]}
            return self.before | settled, {}
        if self.kind == "remove":
            gone = {path for batch in self.input[:done] for path in batch}
            maybe = set(self.input[done]) if done < len(self.input) else set()
            kept = {path: seeds for path, seeds in self.before.items() if path not in gone | maybe}
            return kept, {path: self.before[path] for path in maybe}
        return self.before, {}

    def at_the_end(self) -> dict[Path, set[int]]:
        if self.kind == "remove":
            gone = {path for batch in self.input for path in batch}
            return {path: seeds for path, seeds in self.before.items() if path not in gone}
        if self.kind == "compact":
            return self.before
        return {path: {seed} for path, seed in self.seeds.items()}


def must(outcome: tuple[int, str]) -> str:
    status, said = outcome
    assert status == 0, said
    return said


def one(place: Path, kind: str, seed: int, limit: str) -> str:
    """Set up, kill or stop, verify, finish, verify; a line about it.

    Raises:
        AssertionError: something was lost, there twice, or damaged.
    """
    rng = random.Random(f"{kind} {seed}")
    run = Run(place, kind, rng)
    run.plan()
    must(child(run.set_up))
    if kind == "change":
        run.change()

    def measure(say: Callable[[str], None]) -> None:
        copy = place / "copy"
        os.system(f"cp -r '{run.folder}' '{copy}'")
        count, began = die_at(-1), time.monotonic()
        run.work(copy, run.input, lambda text: None)
        say(f"{time.monotonic() - began} {count[0]}")

    seconds, calls = must(child(measure)).split()
    killed = "finished before the kill"
    if limit == "time":
        delay = rng.uniform(0, float(seconds))
        status, said = child(
            lambda say: run.work(run.folder, run.input, say),
            lambda number: (time.sleep(delay), os.kill(number, signal.SIGKILL))[0],
        )
        how = f"after {1000 * delay:.0f} ms"
    elif limit == "call":
        call = rng.randint(1, int(calls))

        def dying(say: Callable[[str], None]) -> None:
            die_at(call)
            run.work(run.folder, run.input, say)

        status, said = child(dying)
        how = f"before call {call} of {calls}"
    else:
        largest = max(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())
        size = rng.randrange(500, largest + 12_000)

        def cramped(say: Callable[[str], None]) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            run.work(run.folder, run.input, say)

        status, said = child(cramped)
        assert os.WIFEXITED(status) and os.WEXITSTATUS(status) in (0, 3), said
        how, killed = f"with files of at most {size} bytes", "had room"
        if os.WEXITSTATUS(status) == 3:
            killed = "stopped"
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"died of signal {os.WTERMSIG(status)}: {said}"
        killed = "killed"
    else:
        assert os.WEXITSTATUS(status) in (0, 3), said
    done = last_committed(said)
    must(child(lambda say: verify(run.folder, *run.after_kill(said))))
    must(child(lambda say: run.work(run.folder, run.input, say)))
    must(child(lambda say: verify(run.folder, run.at_the_end(), {})))
    return f"{kind:8} seed {seed:4}  {killed} {how}, {done} committed: nothing lost, nothing twice, finished since"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=100, help="runs of each kind of work (default: 100)")
    parser.add_argument("--kinds", nargs="+", default=["add", "change", "remove", "compact"], help="which works")
    parser.add_argument("--seed", type=int, default=0, help="of the first run (default: 0)")
    parser.add_argument("--full-disk", type=int, default=10, help="runs of each kind that meet a limit (default: 10)")
    args = parser.parse_args()
    # Commits, packs and segments of a few pictures, so that there are many moments to be killed at.
    ingest.COMMIT_ROWS, galleries.TAIL_ROWS = 16, 20
    began, runs = time.monotonic(), 0
    for kind in args.kinds:
        for number in range(args.repeats + args.full_disk):
            limit = "disk" if number >= args.repeats else ("time", "call")[number % 2]
            with tempfile.TemporaryDirectory(prefix="splip-faults-") as place:
                try:
                    print(one(Path(place), kind, args.seed + number, limit), flush=True)
                except AssertionError as error:
                    print(f"{kind:8} seed {args.seed + number:4}  {limit}: FAILED: {error}", flush=True)
                    sys.exit(1)
            runs += 1
    print(f"{runs} runs, all in order, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
