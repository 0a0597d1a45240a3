"""Vectors behind the others in a gallery's files, and packed copies of them: what all that writes has in common."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator

import numpy as np

from splip.errors import UserError
from splip.gallery.folder import GalleryFolder
from splip.gallery.snapshot import committed_pack

TAIL_ROWS = 16_384  # that no pack file holds: a reader packs them when it opens


class Writer:
    """Writes into a gallery's folder.

    Args:
        folder: open; for writing, if anything is to be written.
    """

    def __init__(self, folder: GalleryFolder) -> None:
        self.folder = folder
        self._one = threading.Lock()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """One change at a time, of all threads.

        Raises:
            UserError: the folder is open for reading only.
        """
        if self.folder.lock is None:
            raise UserError(f"{self.folder.path}: is open for reading only; open it with write=True")
        with self._one:
            yield

    def append(self, db: sqlite3.Connection, rows: np.ndarray) -> list[tuple[int, int]]:
        """Write vectors behind the others, within a transaction that makes them count.

        Args:
            db: a connection that is writing.
            rows: float32 ``[n, D]``.

        Returns:
            Segment and row of each.
        """
        files, most = self.folder.files, self.folder.segment_rows
        places: list[tuple[int, int]] = []
        while len(places) < len(rows):
            last = db.execute("SELECT number, count, crc FROM segments ORDER BY number DESC LIMIT 1").fetchone()
            if last is None or last[1] >= most:
                number = db.execute("INSERT INTO segments (count, crc) VALUES (0, 0)").lastrowid
                last = (number, 0, 0)
            number, count, crc = last
            some = rows[len(places) : len(places) + most - count]
            crc, stop = files.append(number, count, some, crc), count + len(some)
            db.execute("UPDATE segments SET count = ?, crc = ? WHERE number = ?", (stop, crc, number))
            db.execute("INSERT INTO blocks VALUES (?, ?, ?)", (number, stop, crc))
            places += [(number, row) for row in range(count, stop)]
        return places

    def write_packs(self, least: int | None = None) -> None:
        """Write the packs that are missing: of full segments, and of others with many rows that no pack holds.

        Args:
            least: how many rows are many; None: more than a reader should pack when it opens.
        """
        files, least = self.folder.files, TAIL_ROWS if least is None else least
        with self.folder.catalog.reading() as db:
            for number, count, crc in db.execute("SELECT number, count, crc FROM segments ORDER BY number").fetchall():
                pack = committed_pack(db, files, number)
                packed = 0 if pack is None else pack.count
                if packed < count and (count >= self.folder.segment_rows or count - packed >= least):
                    files.write_pack(number, count, crc)
