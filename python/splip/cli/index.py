"""``splip index add|remove|list|check|compact|export|push`` and ``splip search``: the command line of galleries."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from splip import images
from splip.cli.progress import _Interrupt, _Progress
from splip.cluster import embedding
from splip.cluster import ray as clusters
from splip.cluster.ray import Cluster
from splip.errors import UserError, shown
from splip.gallery import ingest, labels
from splip.gallery.browse import MOST
from splip.gallery.catalog import Filter, Item
from splip.gallery.config import (
    DEFAULT_MODEL,
    IndexAddConfig,
    IndexCheckConfig,
    IndexCompactConfig,
    IndexExportConfig,
    IndexListConfig,
    IndexPushConfig,
    IndexRemoveConfig,
    SearchConfig,
)
from splip.gallery.folder import need_free
from splip.gallery.gallery import Gallery
from splip.gallery.ingest import Added, Picture
from splip.gallery.maintenance import check as check_gallery
from splip.gallery.sources import pictures as find_pictures
from splip.images import archive, decode
from splip.milvus import push as milvus_push
from splip.milvus.address import parse
from splip.report import Report

STOPPED = 130  # exit code after Ctrl-C
COUNTS = ("new", "changed", "moved", "duplicates", "relabelled", "unchanged")
NAMED = 5  # missing pictures whose names are told
PHOTOGRAPH = ("taken", "camera", "width", "height", "missing")  # that JSON tells of an item


def _tags(given: tuple[str, ...]) -> dict[str, str]:
    tags = {}
    for one in given:
        key, sign, value = one.partition("=")
        if not key or not sign:
            raise UserError(f"--tag must be KEY=VALUE, got '{one}'")
        tags[key] = value
    return tags


def _filter(
    config: SearchConfig | IndexListConfig | IndexExportConfig | IndexRemoveConfig, gallery: labels.Labelled
) -> Filter:
    """What the options ask for; labels as the gallery writes them."""
    names = labels.meant(gallery, config.label) if config.label else ()
    dates: dict[str, Any] = {}
    if isinstance(config, (SearchConfig, IndexListConfig)):
        dates = {"taken_from": config.taken_from, "taken_to": config.taken_to, "min_side": config.min_side}
    return Filter(labels=names, tags=_tags(config.tag), under=config.under, **dates)


def add(config: IndexAddConfig) -> Report:
    """``splip index add``."""
    if not config.folders and not config.list:
        raise UserError("no folder of pictures given")
    if config.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {config.batch_size}")
    if not config.memory_gb > 0:
        raise UserError(f"--memory-gb must be above 0, got {config.memory_gb}")
    # The shares that both have by default.
    decode.decoding_memory.total = int(config.memory_gb * 0.8e9)
    ingest.files_memory.total = int(config.memory_gb * 0.2e9)
    tags = _tags(config.tag)
    found, refused = find_pictures(config.folders, config.list, config.label, config.label_from)
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
            gone = gallery.find_missing(config.folders) if config.folders and not done.stopped else []
            if gone:
                print(_missing(gone, config))
            if skipped:
                where = gallery.folder / "skipped.txt"
                what = _count(len(skipped), "unreadable picture") + (
                    " or folder" if len(skipped) == 1 else " or folders"
                )
                print(f"left out {what}, listed in {where}")
            if done.stopped:
                of = "" if progress.total is None else f" of {progress.total}"
                print(f"stopped after {done.committed}{of} pictures; the same command goes on")
            elif skipped and not len(gallery):
                raise UserError(f"none of {_count(len(skipped), 'picture')} can be read; the first: {skipped[0]}")
            return Report(
                STOPPED if done.stopped else 0,
                gallery=str(gallery.folder),
                pictures=len(gallery),
                **{name: getattr(done, name) for name in COUNTS},
                stopped=done.stopped,
                skipped=[{"path": str(one.path), "reason": one.reason} for one in skipped],
                missing=[str(item.path) for item in gone],
            )


def _missing(gone: list[Item], config: IndexAddConfig) -> str:
    names = ", ".join(shown(item.path.name) for item in gone[:NAMED])
    more = f" and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
    are = "picture is" if len(gone) == 1 else "pictures are"
    how = f"splip index remove --missing --gallery {config.gallery}"
    return f"{len(gone)} {are} missing: {names}{more}; `{how}` takes them out"


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
        return gallery.add(pictures, thumbnails=config.thumbnails or None, notify=progress, **how)

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
        if config.dimensions not in (None, gallery.dim):
            gallery.close()
            raise UserError(
                f"{config.gallery}: has vectors of {gallery.dim} dimensions; --dimensions {config.dimensions} takes a new gallery"
            )
        return gallery
    need_free(config.gallery)
    model = config.model
    if model is None:
        model = DEFAULT_MODEL
        print(
            f"splip: {config.gallery}: a new gallery, with the package's own model, which knows drawn pictures of things; for "
            "photographs --model vit-b-32 was made, which is downloaded (`splip models` lists more)",
            file=sys.stderr,
        )
    return Gallery.create(config.gallery, model, engine=engine, device=config.device, dimensions=config.dimensions)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _summary(done: Added) -> str:
    words = {"duplicates": "copies of others"}  # which are added, too
    counts = {words.get(name, name): getattr(done, name) for name in COUNTS}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "nothing new"


def remove(config: IndexRemoveConfig) -> Report:
    """``splip index remove``."""
    if not (config.paths or config.label or config.tag or config.under or config.missing):
        raise UserError("nothing to remove: give pictures, folders, --label, --tag, --under or --missing")
    with Gallery.open(config.gallery, write=not config.dry_run) as gallery:
        chosen = _filter(config, gallery)
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
            gone = list(found.values())
            return Report(gallery=str(gallery.folder), would_remove=[str(item.path) for item in gone])
        gone = gallery.remove(found)
        gallery.refresh()
        print(f"{gallery.folder}: {_count(len(gone), 'picture')} removed, {len(gallery)} left")
        return Report(gallery=str(gallery.folder), removed=[str(item.path) for item in gone], pictures=len(gallery))


def show(config: IndexListConfig) -> Report:
    """``splip index list``."""
    if config.json and not config.labels:
        return Report(gallery=str(config.gallery), items=_listed(config))
    with Gallery.open(config.gallery) as gallery:
        if config.labels:
            labels = gallery.labels()
            for label, count in {} if config.json else labels.items():
                print(f"{count:8d}  {shown(label)}")
            return Report(gallery=str(config.gallery), labels=labels)
        for item in _sorted(gallery, _filter(config, gallery), config.sort):
            tags = "".join(f"  {shown(key)}={shown(value)}" for key, value in sorted(item.tags.items()))
            day, gone = (item.taken or "-")[:10], "  missing" * item.missing
            print(f"{item.id:8d}  {day:10}  {shown(item.label or '-'):16}  {shown(item.path)}{tags}{gone}")
    return Report()


def _listed(config: IndexListConfig) -> Iterator[dict[str, Any]]:
    """All items, for programs: more of them than should be held at once."""
    with Gallery.open(config.gallery) as gallery:
        for item in _sorted(gallery, _filter(config, gallery), config.sort):
            yield _described(item)


def _sorted(gallery: Gallery, filter: Filter, sort: str | None) -> Iterator[Item]:
    if sort is None:
        yield from gallery.items(filter)
        return
    cursor: str | None = None
    while True:
        page = gallery.browse(sort, MOST, cursor, filter)
        yield from page.items
        cursor = page.next
        if cursor is None:
            return


def _described(item: Item) -> dict[str, Any]:
    facts = dataclasses.asdict(item)
    keep = ("id", "path", "label", "tags", "size", "mtime_ns", "hash", *PHOTOGRAPH)
    return {key: facts[key] for key in keep} | {"path": str(item.path), "hash": item.hash.hex()}


def check(config: IndexCheckConfig) -> Report:
    """``splip index check``; its code is 1 if anything is damaged."""
    with Gallery.open(config.gallery) as gallery:
        found = check_gallery(gallery, config.pictures)
        if not config.json:
            for line in found.damage:
                print(line)
            for path in found.missing:
                print(f"missing: {shown(path)}")
            state = "damaged" if found.damage else "in order"
            print(
                f"{gallery.folder}: {state}; {_count(found.items, 'picture')}, {len(found.missing)} of their files are"
                f" missing, {_count(found.deleted, 'row')} to compact, model {gallery.model}"
            )
    facts = dataclasses.asdict(found) | {"missing": [str(path) for path in found.missing]}
    return Report(int(bool(found.damage)), **facts)


def compact(config: IndexCompactConfig) -> Report:
    """``splip index compact``."""
    with Gallery.open(config.gallery, write=True) as gallery:
        done = gallery.compact()
        print(
            f"{gallery.folder}: {_count(done.rows, 'vector')}, {done.dropped} dropped, {done.freed / 1e6:.1f} MB given back"
        )
        return Report(gallery=str(gallery.folder), **dataclasses.asdict(done))


def export(config: IndexExportConfig) -> Report:
    """``splip index export``."""
    with Gallery.open(config.gallery) as gallery:
        count = gallery.export(config.out, config.format, _filter(config, gallery))
        print(f"{config.out}: {_count(count, 'picture')}, vectors.npy and items.{config.format}")
    return Report(out=str(config.out), pictures=count, format=config.format)


def push(config: IndexPushConfig) -> Report:
    """``splip index push``."""
    address = parse(config.to)
    with Gallery.open(config.gallery) as gallery:
        gallery.refresh()
        progress = _Progress(len(gallery), "Pushing")
        with _Interrupt() as asked, progress.bars:
            done = milvus_push.push(gallery, address, replace=config.replace, notify=progress, stop=asked)
    counts = {"new": done.new, "changed": done.changed, "removed": done.removed, "unchanged": done.unchanged}
    summary = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "the gallery is empty"
    print(f"{address}: {_count(done.seen, 'picture')} ({summary})")
    if done.stopped:
        print(f"stopped after {done.seen} of {_count(done.total, 'picture')}; the same command goes on")
    return Report(STOPPED if done.stopped else 0, to=str(address), pictures=done.seen, **counts, stopped=done.stopped)
