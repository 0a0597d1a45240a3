"""`splip index push`: bring a collection up to date with a gallery."""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from splip.errors import UserError
from splip.gallery import catalog
from splip.gallery.catalog import Item
from splip.gallery.protocol import Stored
from splip.milvus.address import Address
from splip.milvus.collection import LABELS, Collection, facts_of

COMPARED = 8_192  # items compared at a time: half of what Collection.stamps answers, so that every round gets past the rows that must go
ROWS = 2_048  # rows in one message, which may have 64 MB


@dataclass
class Pushed:
    """What a push did so far."""

    total: int = 0  # pictures of the gallery
    seen: int = 0  # compared, of those
    new: int = 0
    changed: int = 0
    removed: int = 0  # rows that the gallery does not hold any more
    seconds: float = 0.0
    stopped: bool = False

    @property
    def unchanged(self) -> int:
        return self.seen - self.new - self.changed


def push(
    gallery: Stored,
    address: Address,
    *,
    replace: bool = False,
    notify: Callable[[Pushed], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Pushed:
    """Make a collection hold what a gallery holds: send what is new or changed, delete what is gone.

    What was sent stays if this is stopped at any moment; the next push compares anew and goes on. What is added to the
    gallery meanwhile is perhaps sent, else by the next push.

    Args:
        gallery: any; it is only read.
        address: of the collection, which is made if it is not there.
        replace: drop a collection of another gallery or model first.
        notify: called after each part.
        stop: asked before each part; True ends the push.

    Raises:
        UserError: the collection holds another gallery, or the server failed.
    """
    own = {
        "identity": gallery.identity,
        "model": gallery.model,
        "created": str(gallery.facts["created"]),
        "dim": str(gallery.dim),
    }
    done, began = Pushed(), time.monotonic()
    with contextlib.closing(Collection(address, make=True)) as collection:
        there = collection.properties()
        if there is not None and any(there.get(key) != value for key, value in own.items()):
            if not replace:
                raise UserError(another(address, there, own))
            collection.drop()
            there = None
        if there is None:
            collection.create(own)
        collection.load()
        with gallery.catalog.reading() as db:
            done.total = db.execute("SELECT count(*) FROM items").fetchone()[0]
        after: int | None = -1
        while after is not None:
            if stop is not None and stop():
                done.stopped = True
                return done
            after = push_part(gallery, collection, after, done)
            done.seconds = time.monotonic() - began
            if notify is not None:
                notify(done)
        labels = sorted(gallery.labels().items(), key=lambda pair: (-pair[1], pair[0]))[:LABELS]
        collection.note({"labels": json.dumps(dict(sorted(labels))), "decoding": str(gallery.decoding)})
    return done


def another(address: Address, there: dict[str, str], own: dict[str, str]) -> str:
    """The message about a collection that something else filled."""
    whose = f"{there['model']} ({there['identity'][:12]})"
    if there["identity"] == own["identity"]:
        reason = f"holds another gallery of {whose}, made {there['created']}"
    else:
        reason = f"holds vectors of {whose}, not of {own['model']} ({own['identity'][:12]})"
    return f"{address}: {reason}; push to another collection, or --replace it"


def push_part(gallery: Stored, collection: Collection, after: int, done: Pushed) -> int | None:
    """Bring the rows of the next items up to date; returns the last of their ids, None if there are no more."""
    with gallery.catalog.reading() as db:
        ids = [id for (id,) in db.execute("SELECT id FROM items WHERE id > ? ORDER BY id LIMIT ?", (after, COMPARED))]
        wanted = {item.id: facts_of(item) for item in catalog.items(db, "id", ids)}
    last = ids[-1] if len(ids) == COMPARED else None
    while True:
        held, more = collection.stamps(after, last)
        strays = [id for id in held if id not in wanted]
        if strays:
            collection.delete(strays)
            done.removed += len(strays)
        if not more:
            break
    stale = [id for id in ids if held.get(id) != wanted[id]["stamp"]]
    for first in range(0, len(stale), ROWS):
        some = stale[first : first + ROWS]
        vectors = unit_vectors(gallery, some)
        collection.upsert([wanted[id] | {"vector": vector} for id, vector in vectors.items()])
        done.changed += sum(id in held for id in vectors)
        done.new += sum(id not in held for id in vectors)
    done.seen += len(ids)
    return last


def unit_vectors(gallery: Stored, ids: list[int]) -> dict[int, np.ndarray]:
    """Unit-length vectors, float32 ``[D]``, of the items that are still there."""
    while True:
        with gallery.catalog.reading() as db:
            revision = catalog.revision(db)
            items = catalog.items(db, "id", ids)
            try:
                rows = stored_rows(gallery, items)
                break
            except (FileNotFoundError, UserError):
                failed = revision
        # A compaction may have taken the files away after this transaction began; then there is a newer revision.
        with gallery.catalog.reading() as db:
            if catalog.revision(db) == failed:
                raise UserError(f"{gallery.folder}: its vectors cannot be read; `splip index check` says more")
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return dict(zip([item.id for item in items], rows / np.maximum(length, 1e-12), strict=True))


def stored_rows(gallery: Stored, items: list[Item]) -> np.ndarray:
    """Vectors ``[n, D]`` of items as the gallery has them; runs of rows are read at once."""
    rows = np.empty((len(items), gallery.dim), dtype=np.float32)
    order = sorted(range(len(items)), key=lambda i: (items[i].segment, items[i].row))
    start = 0
    for i in range(1, len(order) + 1):
        first, before = items[order[start]], items[order[i - 1]]
        if i < len(order) and (items[order[i]].segment, items[order[i]].row) == (before.segment, before.row + 1):
            continue
        rows[order[start:i]] = gallery.files.read_rows(first.segment, first.row, i - start)
        start = i
    return rows
