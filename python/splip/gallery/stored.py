"""What galleries of a folder have in common, whether this process searches them or a cluster does."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splip.gallery.browse import Browsed, Copies, Timeline
from splip.gallery.catalog import Filter, Item
from splip.gallery.folder import GalleryFolder
from splip.gallery.queries import QueryEncoder
from splip.gallery.snapshot import Snapshots

if TYPE_CHECKING:
    from splip.encoders.encoder import Encoder


class StoredGallery(QueryEncoder):
    """A gallery whose folder is open, with the committed state that its searches see.

    Args:
        folder: of the gallery.
        search_device: where this process searches, see :class:`splip.gallery.snapshot.Snapshots`.
        engine: what encodes, see :class:`splip.encoders.encoder.Encoder`.
        device: of the encoder.
        model: in place of the gallery's own.
        write: take the right to write, which one process can have.
        encoder: of the gallery's model, if it is loaded already.

    Raises:
        UserError: not a gallery, damaged, of another version or model, or being written by another process.
    """

    def __init__(
        self,
        folder: Path,
        search_device: str | None,
        *,
        engine: str,
        device: str,
        model: Path | str | None,
        write: bool = False,
        encoder: "Encoder | None",
    ) -> None:
        self.folder, self._files = folder, GalleryFolder(folder, write)
        try:
            super().__init__(
                str(folder),
                self._files.facts,
                lambda: self._files.model_source(model),
                engine=engine,
                device=device,
                encoder=encoder,
            )
            self._snapshots = Snapshots(self._files, search_device)
            self._snapshots.refresh()
        except BaseException:
            self._files.close()
            raise

    def close(self) -> None:
        """Release files, the lock and the database. The encoder goes too, unless it was given."""
        self._files.close()
        self.close_encoder()
        self._snapshots.forget()

    # ---- what it holds ----

    def __len__(self) -> int:
        """Items, as of the last search or refresh."""
        return self._snapshots.state.live

    @property
    def revision(self) -> int:
        """Grows with every commit; as of the last search or refresh."""
        return self._snapshots.state.revision

    def cutoff(self, kind: str | None, filter: Filter | None = None) -> float | None:
        """As :meth:`splip.gallery.queries.QueryEncoder.cutoff`, if the gallery was measured: see :mod:`splip.gallery.doubt`."""
        known = None if filter else self._files.doubt()
        return None if known is None else known.cutoff(kind, len(self))

    def labels(self) -> dict[str, int]:
        """Items of each label, by name; those without one are not counted."""
        return self._files.labels()

    def item(self, id: int) -> Item:
        """An item.

        Raises:
            KeyError: no such item (any more).
        """
        return self._files.item(id)

    def find(self, path: Path | str) -> Item | None:
        """The item of a file, if there is one."""
        return self._files.find(path)

    def items(self, filter: Filter | None = None) -> Iterator[Item]:
        """All items that pass a filter, by id; a consistent list however long it is read."""
        return self._files.items(filter)

    def browse(
        self,
        sort: str = "newest",
        limit: int = 100,
        cursor: str | None = None,
        filter: Filter | None = None,
        stack: bool = False,
    ) -> Browsed:
        """A page of items, without a query; the next one begins at its ``next``.

        Args:
            sort: newest, oldest (by when they were taken; undated ones come last, by the time of their file), name (path)
                or added (last first).
            limit: items at most.
            cursor: what an earlier page said is next; None: the first page.
            filter: which items.
            stack: items of the same content are one, the first whose file is there, with the ids of the others in ``copies``.

        Raises:
            UserError: an order that is none, a limit out of range, a cursor that is damaged or of another order.
        """
        return self._files.browse(sort, limit, cursor, filter, stack)

    def timeline(self, filter: Filter | None = None, stack: bool = False) -> Timeline:
        """How many items that pass a filter were taken in which month; ``stack``: copies count as one."""
        return self._files.timeline(filter, stack)

    def copies(self, hashes: Iterable[bytes], filter: Filter | None = None) -> dict[bytes, Copies]:
        """The ids of the items of some contents (``hash``) that pass a filter: see :func:`splip.gallery.browse.copies`."""
        return self._files.copies(hashes, filter)

    def note_missing(self, ids: Sequence[int], missing: bool) -> bool:
        """Keep whether the files of items are gone: see :meth:`splip.gallery.catalog.Catalog.note_missing`."""
        return self._files.catalog.note_missing(ids, missing)

    def thumbnail(self, hash: bytes) -> bytes | None:
        """A JPEG of a content, its longer side at most 256, if the gallery keeps one."""
        return self._files.thumbnails.get(hash)
