"""Which items of a gallery are meant: by label, tag, folder, id, date and size, in SQL."""

import datetime
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from splip.errors import UserError, short

DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?", re.ASCII)
LATER = "~"  # comes after all that may follow in a date
INDEXED = ("label", "tags", "path", "taken", "side")  # what the database has an index of
LARGEST = 2**31 - 1  # pixels of a side that can be asked for


def text(value: str) -> str:
    """A label or tag as the database holds it; bytes of a file name that are no text become U+FFFD."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))


@dataclass
class Filter:
    """Which items may be results: all conditions that are given must hold.

    Raises:
        UserError: one label in place of a tuple, a date that is none, an end before its beginning, or a side below 0 or
            beyond all pictures.
    """

    labels: tuple[str, ...] = ()
    """One of these labels."""
    tags: dict[str, str] = field(default_factory=dict)
    """All of these tags, with these values."""
    under: Path | str | None = None
    """In this folder, at any depth."""
    ids: tuple[int, ...] | None = None
    """One of these items."""
    taken_from: str | None = None
    """Taken in this year, month or day, or later: "2019", "2019-07", "2019-07-14". Undated pictures do not pass."""
    taken_to: str | None = None
    """Taken in this year, month or day, or earlier."""
    min_side: int | None = None
    """Of so many pixels on the shorter side, or more."""
    without: tuple[bytes, ...] = ()
    """Of none of these contents (``hash`` of an item)."""

    def __post_init__(self) -> None:
        if isinstance(self.labels, str):
            raise UserError(f"labels: a tuple of them, ({self.labels!r},), and not {self.labels!r}")
        for name in ("taken_from", "taken_to"):
            if (date := getattr(self, name)) is not None:
                check_date(name, date)
        if self.taken_from is not None and self.taken_to is not None and self.taken_from > self.taken_to + LATER:
            raise UserError(f"taken_from {self.taken_from} is after taken_to {self.taken_to}")
        if self.min_side is not None and (
            not isinstance(self.min_side, int) or isinstance(self.min_side, bool) or not 0 <= self.min_side <= LARGEST
        ):
            raise UserError(f"min_side must be a whole number from 0 to {LARGEST}, got {short(self.min_side)}")
        if self.ids is not None:  # no item has another, and the database takes none
            self.ids = tuple(id for id in self.ids if -(2**63) <= id < 2**63)

    def key(self) -> tuple[object, ...]:
        """Equal for filters that mean the same."""
        ids = None if self.ids is None else tuple(sorted(set(self.ids)))
        under = None if self.under is None else os.path.abspath(self.under)
        labels, tags = tuple(sorted({text(v) for v in self.labels})), tuple(sorted(self.tags.items()))
        without = tuple(sorted(set(self.without)))
        return labels, tags, under, ids, self.taken_from, self.taken_to, self.min_side or None, without

    def __bool__(self) -> bool:
        there = self.under is not None or self.ids is not None
        return bool(self.labels or self.tags or there or self._of_photographs or self.without)

    @property
    def _of_photographs(self) -> bool:
        return self.taken_from is not None or self.taken_to is not None or bool(self.min_side)

    def need_no_photographs(self, place: object) -> None:
        """Raises UserError: a gallery that knows no dates and sizes is asked for them."""
        if self._of_photographs:
            raise UserError(
                f"{place}: knows neither dates nor sizes of pictures; taken_from, taken_to and min_side need a folder"
            )
        if self.without:
            raise UserError(f"{place}: cannot leave out contents; that needs a folder")

    def where(self, indexed: Collection[str] = INDEXED) -> tuple[str, list[object]]:
        """An SQL condition on items, without ``ids``, and its values.

        Args:
            indexed: by which of ``INDEXED`` items may be looked up. SQLite knows not how many items have a label: where
                it finds them by something better, or in an order, the rest is to be asked of each of them.
        """
        label, path, taken, side = ("" if name in indexed else "+" for name in ("label", "path", "taken", "side"))
        terms: list[str] = []
        values: list[object] = []
        if self.labels:
            terms.append(f"{label}label IN ({marks(self.labels)})")
            values += [text(v) for v in self.labels]
        for key, value in self.tags.items():
            if "tags" in indexed:
                terms.append("id IN (SELECT item FROM tags WHERE key = ? AND value = ?)")
            else:
                terms.append("EXISTS (SELECT 1 FROM tags WHERE item = id AND key = ? AND value = ?)")
            values += [text(key), text(value)]
        if self.under is not None:
            folder = os.fsencode(os.path.abspath(self.under)).rstrip(b"/")
            terms.append(f"{path}path > ? AND {path}path < ?")
            values += [folder + b"/", folder + b"0"]  # 0 comes after /
        if self.taken_from is not None:
            terms.append(f"{taken}taken >= ?")
            values.append(self.taken_from)
        if self.taken_to is not None:
            terms.append(f"{taken}taken < ?")
            values.append(self.taken_to + LATER)
        if self.min_side:
            terms.append(f"{side}min(width, height) >= ?")
            values.append(self.min_side)
        if self.without:
            terms.append(f"+hash NOT IN ({marks(self.without)})")
            values += self.without
        return " AND ".join(terms) or "1", values


def check_date(name: str, date: str) -> None:
    """Raises UserError: not a year, a month or a day."""
    found = DATE.fullmatch(date) if isinstance(date, str) else None
    try:
        if found is None:
            raise ValueError
        datetime.date(int(found[1]), int(found[2] or 1), int(found[3] or 1))
    except ValueError:
        raise UserError(f"{name}: {short(date)} is not a date: write 2019, 2019-07 or 2019-07-14") from None
