"""Kill writers of a gallery at random moments, and look at what they left.

    OMP_WAIT_POLICY=passive python tools/gallery_faults.py --repeats 100

A child process adds, changes, removes or compacts, and says what it was told is committed. It is killed (SIGKILL)
after a random time, or before a random one of its calls that touch the disk. Then: every picture that was reported
is there, none is there twice, every vector is that of its picture, `check` finds no damage, searches find every item,
and the same work started again ends with everything. `--full-disk` adds runs that meet a limit on file sizes.

`--attacks` indexes what is made to harm, each in a process of its own whose memory is measured: bombs of every format,
files that are cut, names and folders that should not vanish or forge lines, a disk without a free byte, files that are
cut off under a search.

The encoder is a projection of the pixels: what is tested is the storage. Each line names the seed of its run.
"""

import argparse
import base64
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
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

from splip import images
from splip.errors import Skipped, UserError
from splip.gallery import catalog, ingest, sources, writer
from splip.gallery.gallery import Gallery

SIDE, DIM, PICTURES, SEGMENT = 16, 24, 160, 50
TOUCHING = frozenset({"execute", "executemany", "pwrite", "fsync", "ftruncate", "replace", "unlink", "close"})
MODEL = b"a model"


class PixelEncoder:
    """Pictures to unit vectors by a fixed random projection; what a gallery needs of an encoder."""

    engine, precision, image_size, embed_dim, fit, crop_sketches = "pixels", "fp32", SIDE, DIM, "pad", False
    dimensions = (DIM,)

    def __init__(self, model: bytes = MODEL, delay: float = 0.0) -> None:
        self.identity, self.name, self.path = hashlib.sha256(model).hexdigest(), f"pixels of {model!r}", Path("pixels")
        seed = int(self.identity[:8], 16)
        self.weights = np.random.default_rng(seed).standard_normal((SIDE * SIDE * 3, DIM)).astype(np.float32)
        self.delay, self.encoded = delay, 0

    def settle(self) -> int:
        """It has no threads to choose."""
        return 0

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

    def unknown_words(self, texts: list[str]) -> list[str]:
        return []

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


# ---- attacks ----

MOST = 1_500_000_000  # bytes for pictures that are being read, whatever a folder holds
WEBP = (9_000, 9_000)


def attack_bombs(place: Path) -> None:
    """Small files of very many pixels: what is too large is refused, what is read stays within the budget."""
    folder = place / "bombs"
    folder.mkdir()
    Image.new("P", (13_000, 12_900)).save(folder / "palette.png", transparency=0)
    Image.new("I;16", (12_000, 12_000)).save(folder / "sixteen.png")
    Image.new("RGB", (16_000, 12_500)).save(folder / "phone.jpg")
    Image.new("RGB", (12_000, 12_000)).save(folder / "progressive.jpg", progressive=True)
    Image.new("RGB", WEBP).save(folder / "canvas.webp")
    Image.new("L", (16_000, 16_000)).save(folder / "grey.png")  # refused
    Image.new("RGB", (16_000, 16_000)).save(folder / "canvas-2.webp")  # refused
    for name in ("palette.png", "sixteen.png"):  # a thread for each
        for number in range(3):
            data = (folder / name).read_bytes() + bytes([number])
            (folder / f"{number}-{name}").write_bytes(data)
    done = indexed(place, folder)
    assert done.new == 11, done
    assert sorted((Path(str(s.path)).name, s.reason) for s in done.skipped) == [
        ("canvas-2.webp", "too many pixels"),
        ("grey.png", "too many pixels"),
    ], done.skipped


def attack_cut(place: Path) -> None:
    """Photographs that end too early: their bytes and pixels do not stay in memory."""
    folder = place / "cut"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((4000, 3000), Image.Resampling.BICUBIC).save(place / "whole.jpg", quality=95)
    data = (place / "whole.jpg").read_bytes()
    for number in range(100):
        (folder / f"{number:03d}.jpg").write_bytes(data[: len(data) * 9 // 10] + bytes([number]))
    done = indexed(place, folder, most=500_000_000)
    assert len(done.skipped) == 100, done


def attack_formats(place: Path) -> None:
    """What Pillow would read by other programs and by parsers that nobody asked for."""
    folder, marker = place / "formats", place / "was-run"
    folder.mkdir()
    (place / "bin").mkdir()
    (place / "bin" / "gs").write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    (place / "bin" / "gs").chmod(0o755)
    for number, form in enumerate(("EPS", "TGA", "DDS", "JPEG2000", "PPM", "ICO", "PCX", "SGI", "PDF", "MSP", "XBM")):
        image = Image.new("1" if form in ("MSP", "XBM") else "RGB", (20, 20))
        image.save(folder / f"{number}.jpg", form)
    (folder / "fits.jpg").write_bytes(b"SIMPLE  =                    T".ljust(2880))
    (folder / "psd.jpg").write_bytes(b"8BPS\0\1".ljust(100, b"\0"))
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{place / 'bin'}:{before}"
    try:
        done = indexed(place, folder)
    finally:
        os.environ["PATH"] = before
    assert len(done.skipped) == 13 and not done.new, done
    assert {s.reason for s in done.skipped} == {"not a picture, damaged, or of a format that is not read"}, done.skipped
    assert not marker.exists(), "Ghostscript was run"


def attack_names(place: Path) -> None:
    """Nothing vanishes, and no name makes a line of its own."""
    folder = place / "names"
    for number, name in enumerate(("a\nforged.png\tno such file.png", "caf\udce9.png", "\u2028.png", "good.png")):
        paint(folder / name, number)
    (folder / "bad\r\nline.png").write_bytes(b"nothing")
    (folder / "round").symlink_to(folder)
    at = os.open(folder, os.O_RDONLY)
    for _ in range((4096 - len(str(folder))) // 2 + 5):  # until the path is too long
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    skipped: list[Skipped] = []
    try:
        paths = [path for path, _ in sources.find([folder], skipped)]
        done = indexed(place, *paths)
    finally:
        subprocess.run(["rm", "-rf", folder / "d"], check=True)
    skipped += done.skipped
    images.write_skipped(place / "skipped.txt", skipped)
    lines = (place / "skipped.txt").read_bytes().decode(errors="surrogateescape").splitlines()
    assert done.new == 4 and len(lines) == len(skipped) == 3, lines


def attack_full_disk(place: Path) -> None:
    """Searched and checked where no byte can be written, also after a writer that was stopped."""
    folder, paths = place / "gallery", [place / "full" / f"{n}.png" for n in range(60)]
    for number, path in enumerate(paths):
        paint(path, number)
    indexed(place, *paths[:50])

    def stopped(say: Callable[[str], None]) -> None:
        opened(folder).add(paths[50:])
        os.kill(os.getpid(), signal.SIGKILL)

    def read(say: Callable[[str], None]) -> None:
        catalog._room = lambda folder: 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        with opened(folder, write=False) as gallery:
            found = gallery.search_vectors(np.ones((1, DIM), np.float32), 5)[0]
            say(f"{len(found)} {len(gallery)} {len(gallery.check().damage)}")

    assert must(child(read)).split() == ["5", "50", "0"]
    child(stopped)
    (folder / "gallery.db-shm").unlink(missing_ok=True)
    assert must(child(read)).split() == ["5", "60", "0"]


def attack_cut_off(place: Path) -> None:
    """Vector files cut off under a search: a line, and not the end of the process."""
    folder, paths = place / "gallery", [place / "cut-off" / f"{n}.png" for n in range(2 * SEGMENT)]
    for number, path in enumerate(paths):
        paint(path, number)
    indexed(place, *paths)

    def search(say: Callable[[str], None]) -> None:
        with opened(folder, write=False) as gallery:
            for name in ("000001.f32", "000001.pack"):
                path, query = folder / "vectors" / name, np.ones((1, DIM), np.float32)
                before, data = gallery.search_vectors(query, 5), path.read_bytes()
                for size in (0, len(data) // 2, len(data) - 1):
                    os.truncate(path, size)
                    try:
                        gallery.search_vectors(query, 5)
                        say(f"{name} of {size} bytes: not noticed")
                    except UserError as error:
                        assert str(error).startswith(f"{path}: truncated: {size} bytes"), error
                path.write_bytes(data)
                assert gallery.search_vectors(query, 5) == before

    assert must(child(search)) == ""


def indexed(place: Path, *pictures: Path | str, most: int = MOST) -> ingest.Added:
    """What became of pictures that a process with four threads put into a new gallery; it may take so many bytes."""
    folder = place / "gallery"
    shutil.rmtree(folder, ignore_errors=True)
    (place / "model").write_bytes(MODEL)

    def add(say: Callable[[str], None]) -> None:
        found = [path for path, _ in sources.find(pictures, [])]
        before = peak()
        with Gallery.create(folder, place / "model", encoder=PixelEncoder(), segment_rows=SEGMENT) as gallery:  # type: ignore[arg-type]
            done = gallery.add(found, threads=4)
        say(base64.b64encode(pickle.dumps((done, peak() - before))).decode())

    done, used = pickle.loads(base64.b64decode(must(child(add))))
    assert used < most, f"took {used / 1e9:.2f} GB"
    global largest
    largest = max(largest, used)
    return done


largest = 0  # bytes that an attack took


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


ATTACKS = [attack_bombs, attack_cut, attack_formats, attack_names, attack_full_disk, attack_cut_off]


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
    names = [attack.__name__.removeprefix("attack_") for attack in ATTACKS]
    parser.add_argument(
        "--attacks", nargs="*", choices=names, help="what is made to harm, before the kills: all, or those named"
    )
    parser.add_argument("--json", type=Path, help="write what held, and how long it took, to this file")
    args = parser.parse_args()
    report: dict[str, Any] = {"attacks": {}}
    wanted = names if args.attacks == [] else args.attacks or []
    for attack in (a for a, name in zip(ATTACKS, names, strict=True) if name in wanted):
        with tempfile.TemporaryDirectory(prefix="splip-faults-") as place:
            began = time.monotonic()
            try:
                attack(Path(place))
            except AssertionError as error:
                print(f"{attack.__name__}: FAILED: {error}", flush=True)
                sys.exit(1)
            took = time.monotonic() - began
            report["attacks"][attack.__name__.removeprefix("attack_")] = {"held": True, "seconds": round(took, 1)}
            print(f"{attack.__name__.replace('_', ' ')}: held, {took:.1f} s", flush=True)
    if wanted:
        report["largest_GB"] = round(largest / 1e9, 2)
        print(f"the largest took {largest / 1e9:.2f} GB", flush=True)
    # Commits, packs and segments of a few pictures, so that there are many moments to be killed at.
    ingest.COMMIT_ROWS, writer.TAIL_ROWS = 16, 20
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
    if args.json:
        report |= {"kills": runs, "in_order": runs, "seconds": round(time.monotonic() - began)}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
