"""Looking through a gallery without a query: pages of items in an order, months, copies. All questions of one connection.

Pages follow each other by keys, not by counting: the next one begins behind the last item of the one before, so that
page 10,000 is as quick as the first, and nothing is shown twice when pictures are added meanwhile.
"""

import base64
import binascii
import json
import sqlite3
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

from splip.errors import UserError
from splip.gallery import catalog
from splip.gallery.catalog import Item, marks
from splip.gallery.filters import INDEXED, Filter
from splip.gallery.matches import Match

Shown = TypeVar("Shown", Item, Match)
Sort = Literal["newest", "oldest", "name", "added"]
SORTS: tuple[str, ...] = get_args(Sort)
MOST = 1000  # items of a page
FEW = 5000  # items that are put in order; more are gone through in the order of an index until a page is full
COPIES = 100  # ids that are told of those that an item stands for
LARGEST = 2**63 - 1  # of numbers in the database
MOMENT = 32  # characters of a date and time


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
        stack: items of the same content are one, the first whose file is there, and the others its ``copies``.

    Raises:
        UserError: an order that is none, a damaged cursor, one of another order, or of a name whose picture is gone.
    """
    if sort not in RUNS:
        raise UserError(f"sort: one of {', '.join(SORTS)}, got {sort!r}")
    if not 1 <= limit <= MOST:
        raise UserError(f"limit: between 1 and {MOST}, got {limit}")
    found: list[tuple[int, int, object]] = []  # id, run, key
    few = _few(db, filter)
    first, again = _first(filter) if stack else ("1", [])
    for number, condition, values, order in _parts(db, sort, cursor):
        if len(found) > limit:
            break
        column = RUNS[sort][number].column
        which, more = ("id IN (SELECT value FROM json_each(?))", [few]) if few else _in_order(filter, column)
        statement = f"SELECT id, {column} FROM items WHERE {condition} AND {which} AND {first} ORDER BY {order} LIMIT ?"
        rows = db.execute(statement, [*values, *more, *again, limit + 1 - len(found)])
        found += [(id, number, key) for id, key in rows]
    shown = found[:limit]
    by_id = {item.id: item for item in catalog.items(db, "id", [id for id, _, _ in shown])}
    items = [by_id[id] for id, _, _ in shown]
    if stack:
        same = copies(db, [item.hash for item in items], filter)
        items = [folded(item, same[item.hash]) for item in items]
    return items, _cursor(sort, *shown[-1]) if len(found) > limit else None


def _few(db: sqlite3.Connection, filter: Filter | None) -> str | None:
    """The ids that pass a filter, as JSON, where they are so few that it is quicker to put them in order; else None."""
    if not filter:
        return None
    where, values = _which(filter)
    found = [id for (id,) in db.execute(f"SELECT id FROM items WHERE {where} LIMIT ?", [*values, FEW])]
    return json.dumps(found) if len(found) < FEW else None


def _in_order(filter: Filter | None, column: str) -> tuple[str, list[object]]:
    """An SQL condition on items that are gone through in the order of a column, and its values."""
    indexed = {column}
    if column == "taken" and filter and len(filter.labels) == 1:
        indexed.add("label")  # whose index is in this order
    return _which(filter, indexed)


def _parts(db: sqlite3.Connection, sort: str, cursor: str | None) -> list[tuple[int, str, list[object], str]]:
    """What follows a cursor, in order: number of the run, condition, its values, and the order."""
    runs = RUNS[sort]
    parts: list[tuple[int, str, list[object], str]] = []
    start, key, id = (0, None, 0) if cursor is None else _place(sort, cursor)
    if cursor is not None and runs[start].column == "path":
        row = db.execute("SELECT path FROM items WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise UserError("cursor: its picture is gone; begin without one")
        key = row[0]
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


def _which(filter: Filter | None, indexed: Collection[str] = (*INDEXED, "id")) -> tuple[str, list[object]]:
    """An SQL condition on items, and its values; ``indexed``: see :meth:`splip.gallery.filters.Filter.where`."""
    where, values = filter.where(indexed) if filter else ("1", [])
    if filter and filter.ids is not None:
        id = "id" if "id" in indexed else "+id"
        where, values = f"{where} AND {id} IN (SELECT value FROM json_each(?))", [*values, json.dumps(filter.ids)]
    return where, values


def _first(filter: Filter | None) -> tuple[str, list[object]]:
    """An SQL condition on items that pass a filter, and its values: it stands for its content.

    That is the first whose file is there, or the first where all are gone.
    """
    where, values = _which(filter, ())  # the names in it are those of the inner items
    before = "o.hash = items.hash AND (o.missing, o.id) < (items.missing, items.id)"
    return f"NOT EXISTS (SELECT 1 FROM items AS o WHERE {before} AND {where})", values


def total(db: sqlite3.Connection, filter: Filter | None, stack: bool) -> int:
    """How many items, or contents, there are."""
    where, values = _which(filter)
    what = "count(DISTINCT hash)" if stack else "count(*)"
    count: int = db.execute(f"SELECT {what} FROM items WHERE {where}", values).fetchone()[0]
    return count


def timeline(db: sqlite3.Connection, filter: Filter | None, stack: bool) -> Timeline:
    """Items by the month in which they were taken."""
    where, values = _which(filter)
    # Beside a minimum SQLite tells the date of that item: the one that stands for its content, see ``_first``.
    first = f"(SELECT min(missing << 62 | id), taken FROM items WHERE {where} GROUP BY hash)"
    items = first if stack else f"items WHERE {where}"
    statement = f"SELECT substr(taken, 1, 7) AS month, count(*) FROM {items} GROUP BY month ORDER BY month DESC"
    rows = db.execute(statement, values).fetchall()
    return Timeline(
        [(month, count) for month, count in rows if month is not None],
        sum(count for month, count in rows if month is None),
    )


class Copies(list[int]):
    """Ids of the items of a content, those whose files are there first; at most ``COPIES`` and one more.

    Args:
        ids: these.
        total: how many there are.
    """

    def __init__(self, ids: Iterable[int] = (), total: int = 0) -> None:
        super().__init__(ids)
        self.total = total


def copies(db: sqlite3.Connection, hashes: Iterable[bytes], filter: Filter | None) -> dict[bytes, Copies]:
    """The items of some contents that pass a filter."""
    found = {hash: Copies() for hash in hashes}
    wanted = list(found)
    where, values = _which(filter, ())
    for first in range(0, len(wanted), catalog.MANY):
        some: Sequence[bytes] = wanted[first : first + catalog.MANY]
        statement = f"SELECT hash, count(*) FROM items WHERE hash IN ({marks(some)}) AND {where} GROUP BY hash"
        for hash, count in db.execute(statement, [*some, *values]).fetchall():
            found[hash].total = count
        many = [hash for hash in some if found[hash].total > COPIES + 1]
        statement = "SELECT hash, id FROM items WHERE hash IN ({}) AND {} ORDER BY missing, id{}"
        few = [hash for hash in some if 0 < found[hash].total <= COPIES + 1]
        rows = db.execute(statement.format(marks(few), where, ""), [*few, *values]).fetchall() if few else []
        for one in many:
            rows += db.execute(statement.format("?", where, f" LIMIT {COPIES + 1}"), [one, *values])
        for hash, id in rows:
            found[hash].append(id)
    return found


def folded(shown: Shown, same: Copies) -> Shown:
    """An item or a match, with what it stands for."""
    others = tuple(sorted(id for id in same if id != shown.id)[:COPIES])
    return replace(shown, copies=others, copies_count=max(same.total - 1, 0))


def _cursor(sort: str, id: int, run: int, key: object) -> str:
    """Where an item is, for those who come back with it; they need not know its path."""
    told = json.dumps([sort, run, None if isinstance(key, bytes) else key, id]).encode()
    return base64.urlsafe_b64encode(zlib.crc32(told).to_bytes(4, "big") + told).decode().rstrip("=")


def _place(sort: str, cursor: str) -> tuple[int, object, int]:
    """Number of the run, key and id of the item that a cursor stands for; anybody can make one that was never told."""
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
        if zlib.crc32(data[4:]).to_bytes(4, "big") != data[:4]:
            raise ValueError
        of, run, key, id = json.loads(data[4:])
        if of in SORTS and of != sort:
            raise UserError(f"cursor: it is of the order {of}, not {sort}; begin without one")
        if not _number(run, 0, len(RUNS[of]) - 1) or not _number(id, 1, LARGEST):
            raise ValueError
        column = RUNS[of][run].column
        if column == "path":
            right = key is None
        elif column == "taken":
            right = isinstance(key, str) and key.isascii() and len(key) <= MOMENT
        else:
            right = _number(key, -LARGEST, LARGEST)
        if not right:
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error, RecursionError):
        raise UserError("cursor: damaged; take it as a page said it, or begin without one") from None
    return run, key, id


def _number(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
