"""Looking through a gallery without a query: pages of items in an order, months, copies. All questions of one connection.

Pages follow each other by keys, not by counting: the next one begins behind the last item of the one before, so that
page 10,000 is as quick as the first, and nothing is shown twice when pictures are added meanwhile.
"""

import base64
import binascii
import json
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from splip.errors import UserError
from splip.gallery import catalog
from splip.gallery.catalog import Item, marks
from splip.gallery.filters import Filter

Sort = Literal["newest", "oldest", "name", "added"]
SORTS: tuple[str, ...] = get_args(Sort)
MOST = 1000  # items of a page
SIDE = "min(width, height)"  # as the index has it
FEW = 5000


@dataclass(frozen=True)
class Run:
    """Items in one order, by a column and then by id."""

    condition: str
    column: str
    descending: bool


# Undated ones come last, by the time of their file.
RUNS: dict[str, tuple[Run, ...]] = {
    "newest": (Run("taken IS NOT NULL", "taken", True), Run("taken IS NULL", "mtime_ns", True)),
    "oldest": (Run("taken IS NOT NULL", "taken", False), Run("taken IS NULL", "mtime_ns", False)),
    "name": (Run("1", "path", False),),
    "added": (Run("1", "id", True),),
}


@dataclass
class Browsed:
    """A page of a gallery."""

    items: list[Item]
    next: str | None  # where the next page begins; None: this is the last
    total: int  # items of all pages


@dataclass
class Timeline:
    """How many pictures were taken when."""

    months: list[tuple[str, int]]  # "2019-07", newest first; none without pictures
    undated: int


def page(
    db: sqlite3.Connection,
    sort: str,
    limit: int,
    cursor: str | None,
    filter: Filter | None,
    stack: bool,
) -> tuple[list[Item], str | None]:
    """Some items, and where the next ones begin.

    Args:
        db: of a gallery.
        sort: newest, oldest (by when they were taken), name (path) or added (last first).
        limit: items at most.
        cursor: what an earlier page said is next.
        filter: which items.
        stack: items of the same content are one, the first of them, and the others its ``copies``.

    Raises:
        UserError: an order that is none, a damaged cursor, or one of another order.
    """
    if sort not in RUNS:
        raise UserError(f"sort: one of {', '.join(SORTS)}, got {sort!r}")
    if not 1 <= limit <= MOST:
        raise UserError(f"limit: between 1 and {MOST}, got {limit}")
    found: list[tuple[int, int, object]] = []  # id, run, key
    which, more = _which(filter, stack)
    if filter and filter.min_side and _few(db, filter.min_side):
        # Else all items would be gone through, in order, to find them.
        which, more = f"id IN (SELECT id FROM items WHERE {SIDE} >= ?) AND {which}", [filter.min_side, *more]
    for number, condition, values, order in _parts(sort, cursor):
        if len(found) > limit:
            break
        statement = (
            f"SELECT id, {RUNS[sort][number].column} FROM items WHERE {condition} AND {which} ORDER BY {order} LIMIT ?"
        )
        rows = db.execute(statement, [*values, *more, limit + 1 - len(found)])
        found += [(id, number, key) for id, key in rows]
    shown = found[:limit]
    by_id = {item.id: item for item in catalog.items(db, "id", [id for id, _, _ in shown])}
    items = [by_id[id] for id, _, _ in shown]
    if stack:
        same = copies(db, [item.hash for item in items], filter)
        items = [replace(item, copies=tuple(i for i in same[item.hash] if i != item.id)) for item in items]
    return items, _cursor(sort, *shown[-1]) if len(found) > limit else None


def _few(db: sqlite3.Connection, side: int) -> bool:
    """Whether so few items are of this size that it is quicker to begin with them."""
    statement = f"SELECT count(*) FROM (SELECT 1 FROM items WHERE {SIDE} >= ? LIMIT {FEW})"
    return bool(db.execute(statement, (side,)).fetchone()[0] < FEW)


def _parts(sort: str, cursor: str | None) -> list[tuple[int, str, list[object], str]]:
    """What follows a cursor, in order: number of the run, condition, its values, and the order."""
    runs = RUNS[sort]
    parts: list[tuple[int, str, list[object], str]] = []
    start, key, id = (0, None, 0) if cursor is None else _place(sort, cursor)
    for number, run in enumerate(runs[start:], start):
        down, sign = (" DESC", "<") if run.descending else ("", ">")
        order = f"{run.column}{down}, id{down}" if run.column != "id" else f"id{down}"
        if cursor is None or number > start:
            parts.append((number, run.condition, [], order))
            continue
        if run.column not in ("id", "path"):  # which are not the same for two items
            # A question of its own: it finds its place in the index, however many have the same key.
            parts.append((number, f"{run.condition} AND {run.column} = ? AND id {sign} ?", [key, id], f"id{down}"))
        parts.append((number, f"{run.condition} AND {run.column} {sign} ?", [key], order))
    return parts


def _which(filter: Filter | None, stack: bool) -> tuple[str, list[object]]:
    """An SQL condition on items, and its values; ``stack``: the first of each content alone."""
    where, values = filter.where() if filter else ("1", [])
    if filter and filter.ids is not None:
        where, values = f"{where} AND id IN (SELECT value FROM json_each(?))", [*values, json.dumps(filter.ids)]
    if not stack:
        return where, values
    # The names in ``where`` are those of the inner items there.
    first = f"NOT EXISTS (SELECT 1 FROM items AS o WHERE o.hash = items.hash AND o.id < items.id AND {where})"
    return f"{where} AND {first}", [*values, *values]


def total(db: sqlite3.Connection, filter: Filter | None, stack: bool) -> int:
    """How many items, or contents, there are."""
    where, values = _which(filter, False)
    what = "count(DISTINCT hash)" if stack else "count(*)"
    count: int = db.execute(f"SELECT {what} FROM items WHERE {where}", values).fetchone()[0]
    return count


def timeline(db: sqlite3.Connection, filter: Filter | None, stack: bool) -> Timeline:
    """Items by the month in which they were taken."""
    where, values = _which(filter, False)
    # Beside min(id) SQLite tells the date of that item: the first of each content.
    items = f"(SELECT min(id), taken FROM items WHERE {where} GROUP BY hash)" if stack else f"items WHERE {where}"
    statement = f"SELECT substr(taken, 1, 7) AS month, count(*) FROM {items} GROUP BY month ORDER BY month DESC"
    rows = db.execute(statement, values).fetchall()
    return Timeline(
        [(month, count) for month, count in rows if month is not None],
        sum(count for month, count in rows if month is None),
    )


def copies(db: sqlite3.Connection, hashes: Iterable[bytes], filter: Filter | None) -> dict[bytes, list[int]]:
    """The items of some contents that pass a filter, by id."""
    wanted = list(dict.fromkeys(hashes))
    where, values = _which(filter, False)
    found: dict[bytes, list[int]] = {hash: [] for hash in wanted}
    for first in range(0, len(wanted), catalog.MANY):
        some: Sequence[object] = wanted[first : first + catalog.MANY]
        statement = f"SELECT hash, id FROM items WHERE hash IN ({marks(some)}) AND {where} ORDER BY id"
        for hash, id in db.execute(statement, [*some, *values]):
            found[hash].append(id)
    return found


def _cursor(sort: str, id: int, run: int, key: object) -> str:
    """Where an item is, for those who come back with it."""
    told = json.dumps([sort, run, key.hex() if isinstance(key, bytes) else key, id]).encode()
    return base64.urlsafe_b64encode(zlib.crc32(told).to_bytes(4, "big") + told).decode().rstrip("=")


def _place(sort: str, cursor: str) -> tuple[int, object, int]:
    """Number of the run, key and id of the item that a cursor stands for."""
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
        if zlib.crc32(data[4:]).to_bytes(4, "big") != data[:4]:
            raise ValueError
        of, run, key, id = json.loads(data[4:])
        if of in SORTS and of != sort:
            raise UserError(f"cursor: it is of the order {of}, not {sort}; begin without one")
        column = RUNS[of][run].column
        key = bytes.fromhex(key) if column == "path" else key
        if not isinstance(id, int) or not isinstance(key, {"path": bytes, "taken": str}.get(column, int)):
            raise TypeError
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, binascii.Error, RecursionError):
        raise UserError("cursor: damaged; take it as a page said it, or begin without one") from None
    return run, key, id
