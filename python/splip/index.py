"""``splip index add|remove|list|check|compact|export|push`` and ``splip search``: the command line of galleries."""

import dataclasses
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from splip import archive, embedding, grid, images, ingest, milvus, shards
from splip import cluster as clusters
from splip.cluster import Cluster
from splip.config import (
    IndexAddConfig,
    IndexCheckConfig,
    IndexCompactConfig,
    IndexExportConfig,
    IndexListConfig,
    IndexPushConfig,
    IndexRemoveConfig,
    SearchConfig,
)
from splip.errors import Skipped, UserError, shown
from splip.gallery import Filter, Gallery, Item, Match, Matches
from splip.ingest import Added, Picture
from splip.progress import bars, is_terminal
from splip.upkeep import check as check_gallery

STOPPED = 130  # exit code after Ctrl-C
LINE_SECONDS = 60.0  # between lines of progress in a log file


def _tags(given: tuple[str, ...]) -> dict[str, str]:
    tags = {}
    for one in given:
        key, sign, value = one.partition("=")
        if not key or not sign:
            raise UserError(f"--tag must be KEY=VALUE, got '{one}'")
        tags[key] = value
    return tags


def _filter(config: SearchConfig | IndexListConfig | IndexExportConfig | IndexRemoveConfig) -> Filter:
    return Filter(labels=config.label, tags=_tags(config.tag), under=config.under)


# ---- add ----


def read_list(file: Path) -> tuple[list[str], list[Skipped]]:
    """The paths in a list, and those that leave its folder by ``..``: no honest list needs that.

    Absolute paths are taken as they are.

    Raises:
        UserError: the list cannot be read.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the list {file}: {error.strerror}") from None
    paths, refused = [], []
    for line in data.split(b"\0") if b"\0" in data else data.splitlines():
        if not line:
            continue
        name = os.fsdecode(line)
        if not os.path.isabs(name) and os.path.normpath(name).split(os.sep)[0] == os.pardir:
            refused.append(Skipped(name, f"leaves the folder of the list {file}"))
        else:
            paths.append(os.path.join(file.parent, name))
    return paths, refused


def _label(path: str, root: str | None, how: str) -> str | None:
    if how == "none":
        return None
    parent = Path(os.path.abspath(path)).parent
    if how == "top" and root is not None:
        below = parent.relative_to(os.path.abspath(root)).parts
        if below or archive.is_tar(root):
            return below[0] if below else None
        return Path(os.path.abspath(root)).name or None
    return None if archive.is_tar(parent) else parent.name or None


def _find(config: IndexAddConfig) -> tuple[Iterator[Picture], list[Skipped]]:
    """All pictures that the command line names, one after the other, and what is left out by then."""
    places: list[str] = []
    lists, refused = list(config.list), []
    for folder in config.folders:
        if str(folder).startswith("@") and not folder.exists():
            lists.append(Path(str(folder)[1:]))
        elif folder.exists():
            places.append(str(folder))
        else:
            raise UserError(f"{folder}: no such folder or picture")
    for file in lists:
        paths, outside = read_list(file)
        refused += outside
        places += paths

    def found() -> Iterator[Picture]:
        count = 0
        for path, root in ingest.find(places, refused):
            count += 1
            yield Picture(path, config.label if config.label is not None else _label(path, root, config.label_from))
        if not count and not refused:
            raise UserError(f"no pictures in {', '.join(map(str, (*config.folders, *lists)))}")

    return found(), refused


class _Rate(ProgressColumn):
    """Pictures a second, of late."""

    def render(self, task: Task) -> Text:
        return Text("" if not task.speed else f"{task.speed:,.0f} pictures/s")


class _Progress:
    """A bar on a terminal, now and then a line in a log file."""

    def __init__(self, total: int | None, what: str = "Indexing") -> None:
        self.total, self.said = total, time.monotonic()
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        self.bars = bars(*columns)
        self.task = self.bars.add_task(what, total=total)

    def __call__(self, done: Added | milvus.Pushed) -> None:
        self.bars.update(self.task, completed=done.seen)
        now = time.monotonic()
        if not is_terminal() and now - self.said >= LINE_SECONDS and done.seen:
            self.said, rate = now, done.seen / max(done.seconds, 1e-9)
            of, left = "", ""
            if self.total is not None:
                of, left = f" of {self.total:,}", f", {(self.total - done.seen) / rate / 60:.0f} minutes left"
            print(f"{done.seen:,}{of} pictures, {rate:,.0f}/s{left}", flush=True)


class _Interrupt:
    """Ctrl-C (or SIGTERM) once: finish and commit what is in hand; twice: as ever."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Callable[[], bool]:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self.asked.is_set

    def _handle(self, number: int, _: object) -> None:
        print("\nstopping after this batch; press again to stop at once", file=sys.stderr, flush=True)
        self.asked.set()
        self._restore()

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def __exit__(self, *_: object) -> None:
        self._restore()


def add(config: IndexAddConfig) -> int:
    """``splip index add``."""
    if not config.folders and not config.list:
        raise UserError("no folder of pictures given")
    if config.batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {config.batch_size}")
    if not config.memory_gb > 0:
        raise UserError(f"memory_gb must be above 0, got {config.memory_gb}")
    # The shares that both have by default.
    images.decoding_memory.total = int(config.memory_gb * 0.8e9)
    ingest.files_memory.total = int(config.memory_gb * 0.2e9)
    tags = _tags(config.tag)
    found, refused = _find(config)
    with clusters.if_asked(config) as cluster:
        # A cluster is for more pictures than a list of them should hold: how many there are shows at the end.
        pictures = found if cluster else list(found)
        with _open_or_create(config) as gallery:
            progress = _Progress(None if isinstance(pictures, Iterator) else len(pictures))
            with _Interrupt() as asked, progress.bars:
                done = _embed(config, gallery, pictures, tags, cluster, progress, asked)
            skipped = [*refused, *done.skipped]
            images.write_skipped(gallery.folder / "skipped.txt", skipped)
            gallery.refresh()
            print(f"{gallery.folder}: {_count(len(gallery), 'picture')} ({_summary(done)})")
            if done.encoded:
                print(_rate(done))
            if skipped:
                where = gallery.folder / "skipped.txt"
                what = _count(len(skipped), "unreadable picture") + (
                    " or folder" if len(skipped) == 1 else " or folders"
                )
                print(f"left out {what}, listed in {where}")
            if done.stopped:
                of = "" if progress.total is None else f" of {progress.total}"
                print(f"stopped after {done.committed}{of} pictures; the same command goes on")
                return STOPPED
            if skipped and not len(gallery):
                raise UserError(f"none of {_count(len(skipped), 'picture')} can be read; the first: {skipped[0]}")
    return 0


def _embed(
    config: IndexAddConfig,
    gallery: Gallery,
    pictures: Iterable[Picture],
    tags: dict[str, str],
    cluster: Cluster | None,
    progress: _Progress,
    stop: Callable[[], bool],
) -> Added:
    """Here, or on a cluster."""
    how: dict[str, Any] = {"tags": tags, "batch_size": config.batch_size, "threads": config.threads, "stop": stop}
    if cluster is None:
        return gallery.add(pictures, notify=progress, **how)

    def tell(line: str) -> None:
        print(f"splip: {line}", file=sys.stderr, flush=True)

    where: dict[str, Any] = {"workers": config.workers, "encoder": config.encoder, "device": config.device}
    return embedding.add(gallery, pictures, cluster, notify=progress, tell=tell, **where, **how)


def _rate(done: Added) -> str:
    """How quick it was, and what that depended on."""
    if not isinstance(done, embedding.Embedded):
        share = f"the encoder was busy {100 * done.encode_seconds / done.seconds:.0f}% of the time"
        return f"{done.encoded / done.seconds:,.1f} pictures/s embedded; {share}"
    words = [_count(done.workers, "worker")]
    words += [f"{_count(done.recovered, 'picture')} of an earlier run"] * bool(done.recovered)
    words += [f"{done.died} died"] * bool(done.died)
    rate = done.encoded / (done.seconds - done.start_seconds)
    return f"{rate:,.1f} pictures/s embedded after a start of {done.start_seconds:.0f} s; {', '.join(words)}"


def _open_or_create(config: IndexAddConfig) -> Gallery:
    engine = config.encoder if config.engine == "ray" else config.engine
    if (config.gallery / "gallery.db").exists() or (config.gallery / "gallery.json").exists():
        device, model = config.device, config.model
        gallery = Gallery.open(config.gallery, engine=engine, device=device, model=model, write=True)
        if model is not None:
            _ = gallery.encoder  # another model is refused even if there is nothing to encode
        return gallery
    if config.model is None:
        raise UserError(f"{config.gallery}: no such gallery; to make it, name a model: --model best.pt")
    return Gallery.create(config.gallery, config.model, engine=engine, device=config.device)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _summary(done: Added) -> str:
    words = {
        "new": done.new,
        "changed": done.changed,
        "moved": done.moved,
        "duplicates": done.duplicates,
        "relabelled": done.relabelled,
        "unchanged": done.unchanged,
    }
    return ", ".join(f"{count} {word}" for word, count in words.items() if count) or "nothing new"


# ---- remove, list, check, compact, export ----


def remove(config: IndexRemoveConfig) -> int:
    """``splip index remove``."""
    chosen = _filter(config)
    if not config.paths and not chosen and not config.missing:
        raise UserError("nothing to remove: give pictures, folders, --label, --tag, --under or --missing")
    with Gallery.open(config.gallery, write=not config.dry_run) as gallery:
        found: dict[int, Item] = {}
        conditions = chosen or config.missing
        if config.paths:
            for path in config.paths:
                item = gallery.find(path)
                some = [item] if item else list(gallery.items(Filter(under=path)))
                if not some:
                    raise UserError(f"{shown(path)}: not in the gallery {config.gallery}")
                found |= {item.id: item for item in some}
            if conditions:
                passing = {item.id for item in gallery.items(chosen)}
                found = {id: item for id, item in found.items() if id in passing}
        else:
            found = {item.id: item for item in gallery.items(chosen)}
        if config.missing:
            found = {id: item for id, item in found.items() if not archive.exists(item.path)}
        if config.dry_run:
            for item in found.values():
                print(shown(item.path))
            print(f"{_count(len(found), 'picture')} would be removed")
            return 0
        gone = gallery.remove(found)
        gallery.refresh()
        print(f"{gallery.folder}: {_count(len(gone), 'picture')} removed, {len(gallery)} left")
    return 0


def show(config: IndexListConfig) -> int:
    """``splip index list``."""
    with Gallery.open(config.gallery) as gallery:
        if config.labels:
            labels = gallery.labels()
            for label, count in labels.items():
                print(json.dumps({"label": label, "count": count}) if config.json else f"{count:8d}  {shown(label)}")
            return 0
        for item in gallery.items(_filter(config)):
            if config.json:
                print(json.dumps(_described(item)))
            else:
                tags = "".join(f"  {shown(key)}={shown(value)}" for key, value in sorted(item.tags.items()))
                print(f"{item.id:8d}  {shown(item.label or '-'):16}  {shown(item.path)}{tags}")
    return 0


def _described(item: Item) -> dict[str, Any]:
    facts = dataclasses.asdict(item)
    keep = ("id", "path", "label", "tags", "size", "mtime_ns", "hash")
    return {key: facts[key] for key in keep} | {"path": str(item.path), "hash": item.hash.hex()}


def check(config: IndexCheckConfig) -> int:
    """``splip index check``; 1 if anything is damaged."""
    with Gallery.open(config.gallery) as gallery:
        found = check_gallery(gallery, config.pictures)
        if config.json:
            print(json.dumps(dataclasses.asdict(found) | {"missing": [str(path) for path in found.missing]}, indent=1))
        else:
            for line in found.damage:
                print(line)
            for path in found.missing:
                print(f"missing: {shown(path)}")
            state = "damaged" if found.damage else "in order"
            print(
                f"{gallery.folder}: {state}; {_count(found.items, 'picture')}, {len(found.missing)} of their files are"
                f" missing, {_count(found.deleted, 'row')} to compact, model {gallery.model}"
            )
    return 1 if found.damage else 0


def compact(config: IndexCompactConfig) -> int:
    """``splip index compact``."""
    with Gallery.open(config.gallery, write=True) as gallery:
        done = gallery.compact()
        print(
            f"{gallery.folder}: {_count(done.rows, 'vector')}, {done.dropped} dropped, {done.freed / 1e6:.1f} MB given back"
        )
    return 0


def export(config: IndexExportConfig) -> int:
    """``splip index export``."""
    with Gallery.open(config.gallery) as gallery:
        count = gallery.export(config.out, config.format, _filter(config))
        print(f"{config.out}: {_count(count, 'picture')}, vectors.npy and items.{config.format}")
    return 0


# ---- push ----


def push(config: IndexPushConfig) -> int:
    """``splip index push``."""
    address = milvus.parse(config.to)
    with Gallery.open(config.gallery) as gallery:
        gallery.refresh()
        progress = _Progress(len(gallery), "Pushing")
        with _Interrupt() as asked, progress.bars:
            done = milvus.push(gallery, address, replace=config.replace, notify=progress, stop=asked)
    counts = {"new": done.new, "changed": done.changed, "removed": done.removed, "unchanged": done.unchanged}
    summary = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "the gallery is empty"
    print(f"{address}: {_count(done.seen, 'picture')} ({summary})")
    if done.stopped:
        print(f"stopped after {done.seen} of {_count(done.total, 'picture')}; the same command goes on")
        return STOPPED
    return 0


# ---- search ----


def search(config: SearchConfig) -> int:
    """``splip search``."""
    if not config.sketch and not config.photo and not config.text:
        raise UserError("nothing to search for: give --sketch, --photo or --text")
    pictures = [("sketch", path) for path in config.sketch] + [("photo", path) for path in config.photo]
    queries: list[dict[str, str]] = [{kind: str(path)} for kind, path in pictures]
    if queries and config.text:
        words = config.text * len(queries) if len(config.text) == 1 else config.text
        queries = [query | {"text": word} for query, word in zip(queries, words, strict=False)]
    queries = queries or [{"text": word} for word in config.text]
    with clusters.if_asked(config) as cluster, shards.open_asked(config, cluster) as gallery:
        if not len(gallery):
            raise UserError(f"{config.gallery}: the gallery is empty")
        results = gallery.search(
            config.sketch, config.photo, config.text, k=config.k, filter=_filter(config), text_weight=config.text_weight
        )
    if config.json:
        partial = {"partial": True} if _partial(results) else {}
        print(
            json.dumps([q | partial | {"matches": _ranked(m)} for q, m in zip(queries, results, strict=True)], indent=1)
        )
    else:
        for query, matches in zip(queries, results, strict=True):
            print(" + ".join(shown(value) for value in query.values()))
            for rank, match in enumerate(matches, 1):
                label = "" if match.label is None else f"  ({shown(match.label)})"
                print(f"{rank:5d}  {match.score:7.4f}  {shown(match.path)}{label}")
            if not matches:
                print("       no picture passes the filter")
    if _partial(results):
        print("splip: some machines did not answer: a part of the gallery was searched", file=sys.stderr)
    if config.grid is not None:
        _draw(config.grid, queries, results)
    return 0


def _partial(results: list[list[Match]]) -> bool:
    return any(isinstance(matches, Matches) and matches.partial for matches in results)


def _ranked(matches: list[Match]) -> list[dict[str, Any]]:
    return [
        {"rank": rank, "id": m.id, "score": m.score, "path": str(m.path), "label": m.label, "tags": m.tags}
        for rank, m in enumerate(matches, 1)
    ]


def _draw(path: Path, queries: list[dict[str, str]], results: list[list[Match]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for number, (query, matches) in enumerate(zip(queries, results, strict=True)):
            picture = query.get("sketch", query.get("photo"))
            drawn = Path(picture) if picture else _card(Path(folder) / f"{number}.png", query["text"])
            rows.append(
                grid.Row(
                    drawn,
                    [m.path for m in matches],
                    [m.score for m in matches],
                    [None] * len(matches),
                    query.get("text", drawn.stem),
                )
            )
        grid.save(path, rows)


def _card(path: Path, words: str) -> Path:
    """A query of words only, as a picture."""
    image = Image.new("RGB", (grid.CELL, grid.CELL), grid.PAPER)
    pen, font, lines = ImageDraw.Draw(image), ImageFont.load_default(14), [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if pen.textlength(longer, font) < grid.CELL - 12 else [*lines, word]
    pen.multiline_text((6, 6), "\n".join(line for line in lines if line), grid.INK, font)
    image.save(path)
    return path
