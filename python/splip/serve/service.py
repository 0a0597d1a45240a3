"""What stands behind the HTTP service: a gallery, threads for each kind of work, and the way of a search.

The event loop only moves bytes and waits. Pictures are decoded and squared in threads, SVG in a process of its
own, and the batches' worker (``splip.serve.batching``) encodes and searches.
"""

import asyncio
import contextlib
import os
import queue
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from splip.errors import GalleryError, Skipped, Unavailable, UnreadablePicture, UserError
from splip.gallery import labels as names
from splip.gallery.matches import likely
from splip.gallery.sources import find
from splip.images import archive
from splip.images.svg import Renderer
from splip.serve import photographs, queries
from splip.serve.batching import Admission, Batcher, Search
from splip.serve.config import ServeConfig
from splip.serve.doubt import told
from splip.serve.metrics import Telemetry, log, timed
from splip.serve.middleware import RETRY, Refusal, is_loopback
from splip.serve.pools import Pool, Room
from splip.serve.queries import Missing, Query
from splip.serve.schemas import Add, Added
from splip.serve.thumbnails import File, Thumbnails
from splip.serve.writing import damaged, writing

if TYPE_CHECKING:
    from splip.gallery.catalog import Item
    from splip.gallery.gallery import Gallery
    from splip.gallery.matches import Match
    from splip.gallery.protocol import Searchable

T = TypeVar("T")
GALLERY_PIXELS = 4  # a picture of the gallery may have this many times the pixels of an upload
DECODE_BYTES = 1_500_000_000  # for all uploads that are decoded at once
SMALL_BYTES = 64_000_000  # uploads that need no more do not wait for others
RENDERERS = 2  # processes that draw SVGs; one client has one of them at a time


def check_files(gallery: Any) -> None:
    """Compare the files that a search reads through memory maps with their sizes.

    Reading behind the end of a file that was truncated ends the process, without a line; so look before. A file
    without a name is left alone: after a compaction the old ones stay mapped.

    Raises:
        UserError: one of them was truncated.
    """
    from splip.ops.host import HostGallery

    for part in getattr(gallery, "parts", ()):
        if isinstance(part.rows, HostGallery):  # else a copy on a GPU
            try:
                gallery.files.check_mapped(part.segment, part.stop, part.bytes if part.stored else 0)
            except Unavailable as error:  # of the service nobody is told where its files are
                raise UserError(str(error)) from None


class Service:
    """A gallery, and all that answers questions about it.

    Args:
        gallery: open for reading; stays the caller's to close.
        config: limits and switches.
        writer: opens the same gallery for writing; None if it cannot be written.
    """

    def __init__(
        self, gallery: "Searchable", config: ServeConfig, writer: "Callable[[], Gallery] | None" = None
    ) -> None:
        self.gallery, self.config, self.writer = gallery, config, writer
        self.folder: Path | None = getattr(gallery, "folder", None)
        self.telemetry = Telemetry()
        self.max_body = int(config.max_body_mb * 1e6)
        self.max_pixels = int(config.max_megapixels * 1e6)
        self.show_paths = is_loopback(config.host) if config.show_paths is None else config.show_paths
        self.roots = [Path(root).resolve() for root in config.allow_root]
        threads = config.threads or len(os.sched_getaffinity(0))
        # One at a time: while a document is parsed nothing else runs, and between two of them everybody gets a turn.
        self.parsing = Pool("requests", 1, 2 * config.max_queue)
        # Strokes are drawn in a moment, and do not wait for pictures that take seconds.
        self.drawings = Pool("drawings", threads, 2 * config.max_queue)
        self.pictures = Pool("pictures", threads + 1, 2 * config.max_queue, share=threads)
        self.room = Room(DECODE_BYTES, SMALL_BYTES)
        self.svg = Pool("SVGs", RENDERERS, 16, share=1)
        self.renderers: queue.SimpleQueue[Renderer] = queue.SimpleQueue()
        for _ in range(RENDERERS):
            self.renderers.put(Renderer())
        # Dozens of encodes each, beside those of the batches: one at a time.
        self.explanations = Pool("explanations", 1, 16, share=1)
        self.files = Pool("thumbnails", max(2, threads), 1024)
        self.lists = Pool("lists", 2, 256)
        self.writes = Pool("writes", 1, 4)
        self.thumbnails = Thumbnails(
            int(config.thumbnails_mb * 1e6), GALLERY_PIXELS * self.max_pixels, self.telemetry,
            getattr(gallery, "thumbnail", None),
        )  # fmt: skip
        self.batcher = Batcher(
            gallery, self.telemetry, config.max_batch, config.window_ms / 1000, config.max_queue,
            config.max_per_client or max(1, config.max_queue // 2), before=lambda: check_files(gallery),
        )  # fmt: skip
        Image.init()  # reads Pillow's plugins: before the first request, not in it
        self.text = False
        self.started = int(time.time())
        self.ready = False
        self._labels: dict[str, int] = {}
        self._gone: set[int] = set()  # pictures whose files were not there

    # ---- life ----

    @contextlib.asynccontextmanager
    async def lifespan(self, _: object) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._warm_up()), asyncio.create_task(self._refresh())]
        try:
            yield
        finally:
            self.ready = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Answer what waits, and stop all threads."""
        self.batcher.close()
        uploads = (self.parsing, self.drawings, self.pictures, self.svg)
        for pool in (*uploads, self.explanations, self.files, self.lists, self.writes):
            pool.close()
        for _ in range(RENDERERS):
            self.renderers.get().close()

    async def _warm_up(self) -> None:
        """Encode and search once, alone and as a full batch; from then on the service is ready."""
        try:
            await asyncio.to_thread(self._try_engine)
            with self.batcher.admit() as admission:
                search = self._search(Query(k=1), self._grey(), None, time.monotonic() + 600)
                await admission.answer(search)
        except Exception:
            log.exception("the warm-up failed: the service does not become ready")
            return
        self.ready = True
        log.info("ready", extra={"fields": {"items": len(self.gallery), "engine": self.gallery.encoder.engine}})

    def _try_engine(self) -> None:
        encoder = self.gallery.encoder
        try:
            log.debug("settled", extra={"fields": {"one_thread_up_to": encoder.settle()}})
        except Exception as error:  # it would only have been quicker
            log.warning("how many threads encode soonest was not found out: %s", error)
        for count in sorted({1, self.config.max_batch}):
            encoder.encode(np.stack([self._grey()] * count), "sketch")
        encoder.encode(self._grey()[None], "photo")
        with contextlib.suppress(UserError):
            encoder.encode_text(["a photo"])
            self.text = True
        self._look()

    def _grey(self) -> np.ndarray:
        side = self.gallery.encoder.image_size
        return np.full((side, side, 3), 128, np.uint8)

    async def _refresh(self) -> None:
        """Take in what others write to the gallery."""
        while True:
            await asyncio.sleep(self.config.refresh_s)
            try:
                await asyncio.to_thread(self._look)
            except Exception:
                log.exception("the gallery could not be read anew; going on with what is known")

    def need_ready(self) -> None:
        """Raises Refusal: the service is starting."""
        if not self.ready:
            raise Refusal(503, "starting", "the service is starting", RETRY)

    def _look(self) -> None:
        if self.gallery.refresh():
            self._gone.clear()  # whoever wrote to it may have found the files again
        self._labels = self.gallery.labels()
        self.telemetry.items.set(len(self.gallery))

    # ---- searching ----

    def _search(self, query: Query, image: np.ndarray | None, vector: np.ndarray | None, deadline: float) -> Search:
        from splip.gallery.catalog import Filter

        wanted = Filter(
            labels=tuple(query.labels),
            tags=query.tags,
            taken_from=query.taken_from,
            taken_to=query.taken_to,
            min_side=query.min_side,
        )
        return Search(
            image=image,
            vector=vector,
            modality=query.modality,
            text=query.text,
            text_weight=query.text_weight,
            k=query.k,
            filter=wanted or None,
            deadline=deadline,
            stack=query.stack,
        )

    def _check(self, query: Query, upload: bytes | None) -> None:
        sources = query.sources() + (["a file"] if upload is not None else [])
        if len(sources) > 1:
            raise UserError(f"one picture a query, not {' and '.join(sources)}")
        if not sources and query.text is None and not query.like:
            raise UserError("an empty query: send a picture, strokes, an id or a text")
        if not sources and query.text is None and all(part.weight < 0 for part in query.like):
            raise UserError("only things that are not looked for: a query needs something that is")
        if (query.text is not None or any(part.text for part in query.like)) and self.ready and not self.text:
            raise UserError("this gallery's model does not understand text")
        if query.k > self.config.max_k:
            raise UserError(f"k: at most {self.config.max_k}, got {query.k}")

    async def answer(
        self, query: Query, upload: bytes | None, admission: Admission, deadline: float, began: float
    ) -> dict[str, Any]:
        """One query's answer, as it is sent.

        Raises:
            UserError: the query cannot be answered; Missing: no such id.
            TimeoutError: not in time.
        """
        self._check(query, upload)
        if not all(label in self._labels for label in query.labels):
            query.labels = await self.lists.run(self.meant, query.labels, client=admission.client)
        search = await self.prepared(query, upload, admission, deadline)
        await admission.answer(search)
        end = timed(search.stages, "lookup")
        matches = [self._found(match) | {"likely": likely(match, search.cutoff)} for match in search.matches]
        end()
        timing = self.timing(search.stages, began)
        return {
            "matches": matches, **told(search), "partial": search.partial, "timing_ms": timing, "batch": search.batch
        }  # fmt: skip

    async def prepared(self, query: Query, upload: bytes | None, admission: Admission, deadline: float) -> Search:
        """A query as the batches take it: its picture is read, and what it is like looked up. Raises as :meth:`answer`."""
        stages: dict[str, float] = {}
        image = vector = None
        if query.id is not None:
            work = self.drawings.run(self.known, self._vector, query.id, client=admission.client)
            vector = await asyncio.wait_for(work, deadline - time.monotonic())
        elif query.sources() or upload is not None:
            image = await self.picture_in_time(query, upload, stages, admission.client, deadline)
        search = self._search(query, image, vector, deadline)
        if query.like:
            more = self.drawings.run(self.known, self._more, query, client=admission.client)
            search.more = await asyncio.wait_for(more, deadline - time.monotonic())
        search.stages = stages
        return search

    def timing(self, stages: dict[str, float], began: float) -> dict[str, float]:
        """Milliseconds of a query's stages and of all of it, as answers tell them; the stages are counted."""
        self.observe(stages)
        return {name: round(1000 * s, 3) for name, s in (*stages.items(), ("total", time.perf_counter() - began))}

    def observe(self, stages: dict[str, float]) -> None:
        """Count the seconds of a query's stages."""
        for name, seconds in stages.items():
            self.telemetry.stage(name, seconds)

    def _found(self, match: "Match") -> dict[str, Any]:
        return {"score": round(float(match.score), 6), **self.described(match)}

    def described(self, item: "Item | Match") -> dict[str, Any]:
        """A picture as answers tell of it."""
        return photographs.described(item, self.show_paths, self._gone)

    def meant(self, labels: list[str]) -> list[str]:
        """Labels as the gallery writes them: see :func:`splip.gallery.labels.meant`.

        Raises:
            UserError: it has no such label. Unavailable: its files are damaged.
        """
        known = self.guarded(self.gallery.labels)
        told = SimpleNamespace(labels=lambda: known, labels_told=getattr(self.gallery, "labels_told", None))
        return list(names.meant(told, labels))

    def _vector(self, id: int) -> np.ndarray:
        check_files(self.gallery)
        return self.gallery.vector(id)

    def _more(self, query: Query) -> list[tuple[np.ndarray | str, float]]:
        """What is added to a query's vector: unit vectors and texts, with their weights."""
        found: list[tuple[np.ndarray | str, float]] = []
        for part in query.like:
            if part.id is None:
                found.append((part.text or "", part.weight))
            else:
                vector = self._vector(part.id)
                found.append((vector / max(float(np.linalg.norm(vector)), 1e-12), part.weight))
        return found

    async def picture_in_time(
        self, query: Query, upload: bytes | None, stages: dict[str, float], client: str | None, deadline: float
    ) -> np.ndarray:
        """The query's picture as the encoder takes it, uint8 ``[S, S, 3]``; ``upload``: its file, where it is one.

        Raises:
            UserError: it cannot be read.
            TimeoutError: not before the deadline.
        """
        work = self._picture(query, upload, stages, client)
        return await asyncio.wait_for(work, deadline - time.monotonic())

    async def _picture(
        self, query: Query, upload: bytes | None, stages: dict[str, float], client: str | None
    ) -> np.ndarray:
        """The query's picture as uint8 ``[S, S, 3]``; the time goes to the stages decode and prepare."""
        if query.strokes is not None:
            return await self.drawings.run(self._draw, query, stages, client=client)
        data = upload if query.svg is None else query.svg.encode(errors="replace")
        began = time.perf_counter()
        if query.svg is not None and not queries.looks_like_svg(data or b""):
            raise UserError("svg: not an SVG")
        if data is not None and queries.looks_like_svg(data):
            data = await self.svg.run(self._draw_svg, data, client=client)
        stages["decode"] = time.perf_counter() - began
        return await self.pictures.run(self._decode, query, data, stages, client=client)

    def _draw_svg(self, data: bytes) -> bytes:
        renderer = self.renderers.get()
        try:
            return renderer.png(data)
        finally:
            self.renderers.put(renderer)

    def _draw(self, query: Query, stages: dict[str, float]) -> np.ndarray:
        end = timed(stages, "decode")
        image = queries.draw_strokes(query)
        end()
        return self._prepare(query, image, stages)

    def _decode(self, query: Query, data: bytes | None, stages: dict[str, float]) -> np.ndarray:
        end = timed(stages, "decode")
        if data is None:
            data = queries.decode_base64(query.image or "")
        with self.room.take(queries.check_size(data, self.max_pixels)):
            image = queries.read_picture(data, self.gallery.reading(query.modality))
        end()
        return self._prepare(query, image, stages)

    def _prepare(self, query: Query, image: Image.Image, stages: dict[str, float]) -> np.ndarray:
        end = timed(stages, "prepare")
        prepared = np.ascontiguousarray(self.gallery.encoder.prepare(image, query.modality))
        if query.modality == "sketch":
            queries.check_ink(prepared)
        end()
        return prepared

    def open(self, id: int) -> File:
        """The file of a picture.

        Raises:
            Missing: no such id.
            Refusal: the file is gone, or something else by now.
        """
        item = self.known(self.gallery.item, id)
        try:
            file = File(item.path)
        except UnreadablePicture as error:
            if not archive.exists(item.path):
                self._note(item, True)
            # By its name: that of a tar file would say where it is.
            raise Refusal(404, "gone", str(UnreadablePicture(item.path.name, error.reason))) from None
        if item.missing or id in self._gone:
            self._note(item, False)
        if (file.size, file.mtime_ns) == (item.size, item.mtime_ns):
            file.hash = item.hash
        return file

    def _note(self, item: "Item", missing: bool) -> None:
        """Remember that a file is gone, or there again: here, and in the gallery where that can be."""
        if missing:
            self._gone.add(item.id)
        else:
            self._gone.discard(item.id)
        note = getattr(self.gallery, "note_missing", None)
        if note is not None and item.missing != missing:
            note([item.id], missing)

    @classmethod
    def known(cls, look_up: Callable[..., T], *what: Any) -> T:
        """What the gallery says of an id.

        Raises:
            Missing: no such id. Unavailable: its files are damaged.
        """
        try:
            return cls.guarded(look_up, *what)
        except KeyError:
            raise Missing("the gallery has no picture with this id") from None

    @staticmethod
    def guarded(ask: Callable[..., T], *what: Any) -> T:
        """What the gallery answers to a question with which nothing is wrong.

        Raises:
            Unavailable: its files are damaged; the log says where they are, and nobody else.
        """
        try:
            return ask(*what)
        except (UserError, OSError) as error:
            raise damaged(error) from error

    # ---- writing ----

    def add(self, request: Add) -> Added:
        """Add pictures below the allowed roots.

        Raises:
            Refusal: a path that is not below one of them, or another process is writing.
        """
        found: list[Path] = []
        skipped: list[Skipped] = []
        for path, place in find([self._allowed(path) for path in request.paths], skipped):
            try:  # a folder may hold links to elsewhere
                found.append(Path(path) if archive.is_tar(place or "") else self._allowed(path))
            except Refusal as refusal:
                skipped.append(Skipped(path, str(refusal)))
        with writing(self.writer, self.folder) as gallery:
            try:
                done = gallery.add(found, label=request.label, tags=request.tags)
            except GalleryError as error:
                raise damaged(error) from error
        self.guarded(self._look)
        return Added(
            new=done.new + done.duplicates + done.moved,
            changed=done.changed + done.relabelled,
            unchanged=done.unchanged,
            unreadable=len(done.skipped) + len(skipped),
            count=len(self.gallery),
        )

    def remove(self, id: int) -> None:
        """Remove a picture from the gallery; its file stays.

        Raises:
            Missing: no such id.
            Refusal: another process is writing.
        """
        with writing(self.writer, self.folder) as gallery:
            if not self.guarded(gallery.remove, [id]):
                raise Missing("the gallery has no picture with this id")
        self.guarded(self._look)

    def _allowed(self, given: str | Path) -> Path:
        try:
            path = Path(given).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            path = None
        # The same answer for what is elsewhere and what does not exist: else one could look for files.
        if path is None or not any(path.is_relative_to(root) for root in self.roots):
            raise Refusal(403, "path", "paths must exist below a folder of --allow-root")
        return path
