"""Dynamic batching: searches that arrive together are encoded and searched together.

Requests prepare their pictures in threads of their own and hand them over here. One worker thread takes what
waits, at most ``max_batch`` at a time, encodes it in one call per modality and searches it in one call. A batch
starts when it is full, when its first search has waited for ``window`` seconds, or when nobody else is on the
way: a single user never waits.
"""

import asyncio
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from splip.errors import Unavailable, UserError
from splip.gallery.parts import between, total
from splip.serve.doubt import judge
from splip.serve.metrics import Telemetry, log
from splip.serve.queries import Busy

if TYPE_CHECKING:
    from splip.gallery.catalog import Filter
    from splip.gallery.matches import Match
    from splip.gallery.protocol import Searchable

Words = tuple[str, str]  # a text, and what it is prompted as
TEXTS = 1024  # texts whose vectors are kept
PAUSE = 0.5  # seconds before a worker that ended takes up its work again; doubled while it ends again and again
MAX_PAUSE = 10.0
DAMAGED = "the gallery cannot be read; the service's log says more"


@dataclass(eq=False)
class Search:
    """A search on its way through the batches."""

    image: np.ndarray | None  # uint8 [S, S, 3]
    vector: np.ndarray | None  # float32 [D], in place of an image
    modality: str
    text: str | None
    text_weight: float
    k: int  # 0: the vector is all that is wanted
    filter: "Filter | None"
    deadline: float  # time.monotonic() after which nobody waits for the answer
    stack: bool = False  # pictures of the same content are one
    words: str = "photo"  # what a text is prompted as
    more: "Sequence[tuple[np.ndarray | str, float]]" = ()  # unit vectors [D] or texts that are added, with their weights
    stages: dict[str, float] = field(default_factory=dict)  # seconds
    matches: "list[Match]" = field(default_factory=list)
    found: np.ndarray | None = None  # float32 [D], with k = 0
    batch: int = 0  # size of the batch it was part of
    partial: bool = False  # some of the gallery could not be searched
    cutoff: float | None = None  # below it a match is probably not what was asked for
    unknown_words: list[str] = field(default_factory=list)  # of its texts, that the model was never shown
    error: UserError | None = None
    queued: float = 0.0
    done: "asyncio.Future[None] | None" = None


class Batcher:
    """The queue and its worker.

    Args:
        gallery: encodes and searches.
        telemetry: sees batch sizes and stages.
        max_batch: searches in a batch; 1 turns batching off.
        window: seconds that the first search of a batch waits for others.
        max_queue: searches that may be on the way at once.
        max_per_client: how many of them may be one client's; None: all.
        before: called before each search of the gallery; raises UserError if it cannot be searched.
    """

    def __init__(
        self,
        gallery: "Searchable",
        telemetry: Telemetry,
        max_batch: int,
        window: float,
        max_queue: int,
        max_per_client: int | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.gallery, self.telemetry = gallery, telemetry
        self.max_batch, self.window, self.max_queue = max_batch, window, max_queue
        self.max_per_client, self.before = max_per_client or max_queue, before
        self._clients: Counter[str] = Counter()  # how many of those taken on are whose
        self._ready = threading.Condition()
        self._waiting: list[Search] = []
        self._taken_on = 0  # admitted and not yet answered
        self._coming = 0  # admitted and not yet waiting: their pictures are being prepared
        self._closed = False
        self._down = False  # the worker ended and has not taken up its work again
        self._batch: list[Search] = []  # what the worker has in hand
        self._texts: OrderedDict[Words, np.ndarray] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    @contextmanager
    def admit(self, count: int = 1, client: str | None = None) -> Iterator["Admission"]:
        """Take on ``count`` searches, or none; ``client`` is None for the service itself.

        Raises:
            Busy: more than ``max_queue`` would be on the way, or more than ``max_per_client`` of this client.
        """
        with self._ready:
            if self._closed or self._taken_on + count > self.max_queue:
                raise Busy("too many searches at once; try again in a moment")
            if client is not None:
                if self._clients[client] + count > self.max_per_client:
                    raise Busy("too many searches at once from this address; try again in a moment")
                self._clients[client] += count
            self._taken_on += count
            self._coming += count
        self.telemetry.queued.set(self._taken_on)
        admission = Admission(self, count, client)
        try:
            yield admission
        finally:
            with self._ready:
                self._taken_on -= count
                self._coming -= admission.coming
                if client is not None:
                    self._clients[client] -= count
                    if not self._clients[client]:
                        del self._clients[client]
                self._ready.notify()
            self.telemetry.queued.set(self._taken_on)

    @property
    def working(self) -> bool:
        """Whether somebody works on what waits."""
        return self._thread.is_alive() and not self._down

    def _put(self, search: Search) -> None:
        with self._ready:
            self._coming -= 1
            search.queued = time.monotonic()
            self._waiting.append(search)
            # The worker sleeps through a window; waking it for each search would cost more than it gives.
            if len(self._waiting) in (1, self.max_batch) or not self._coming:
                self._ready.notify()

    def _forget(self, search: Search) -> None:
        with self._ready, suppress(ValueError):
            self._waiting.remove(search)

    def close(self) -> None:
        """Answer what waits, take on nothing new, end the worker."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        self._thread.join()

    # ---- the worker ----

    def _run(self) -> None:
        """Work until closed, whatever happens: without a worker every search would wait for its deadline."""
        pause = PAUSE / 2
        while True:
            began = time.monotonic()
            try:
                self._work()
                if self._closed:
                    return
                log.error("the worker of the batches ended; it starts again")
            except BaseException:  # SystemExit too: the thread is the service's, not the library's that raised it
                log.exception("the worker of the batches ended; it starts again")
            self._down = True
            self.telemetry.worker_ends.inc()
            lost, self._batch = self._batch, []
            with suppress(Exception):
                _tell(lost, Unavailable("the search was lost; try again"))
            pause = PAUSE if time.monotonic() - began > MAX_PAUSE else min(2 * pause, MAX_PAUSE)
            with self._ready:
                self._ready.wait_for(lambda: self._closed, pause)
            self._down = False

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            self._batch = batch
            now = time.monotonic()
            live = [s for s in batch if s.done is not None and not s.done.done() and s.deadline > now]
            error: Exception | None = None
            if live:
                for search in live:
                    search.stages["wait"] = now - search.queued
                    search.batch = len(live)
                self.telemetry.batch.observe(len(live))
                try:
                    self._answer(live)
                except Unavailable as problem:  # a line in the answers; nothing is wrong here
                    log.warning("%s", problem)
                    error = problem
                except (
                    UserError,
                    OSError,
                ) as problem:  # each query was checked alone: it is the gallery that cannot be read
                    log.error("%s", problem)
                    error = Unavailable(DAMAGED)
                    error.__cause__ = problem
                except Exception as problem:  # what failed for all must not end the service
                    log.exception("a batch failed")
                    error = RuntimeError(f"the batch failed: {problem}")
            _tell(live, error)
            self._batch = []

    def _next(self) -> list[Search] | None:
        """The next batch, empty if its searches were all given up; None when closed and nothing is left."""
        with self._ready:
            while not self._waiting:
                if self._closed:
                    return None
                self._ready.wait()
            end = self._waiting[0].queued + self.window
            while len(self._waiting) < self.max_batch and self._coming and not self._closed:
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._ready.wait(left)
            batch = self._waiting[: self.max_batch]
            del self._waiting[: self.max_batch]
            return batch

    def _answer(self, batch: Sequence[Search]) -> None:
        from splip.gallery import stacks
        from splip.gallery.matches import Matches

        began = time.perf_counter()
        vectors = self._vectors(batch)
        encoded = time.perf_counter()
        for search, vector in zip(batch, vectors, strict=True):
            search.stages["encode"] = encoded - began
            search.found = None if search.k else vector
        rows = [i for i, search in enumerate(batch) if search.k]
        if not rows:
            return
        # One k for all: the largest, from which each takes its own.
        k = max(search.k for search in batch)
        filters = [batch[i].filter for i in rows]
        same = all(f is None for f in filters)
        if self.before is not None:
            self.before()
        if any(batch[i].stack for i in rows):
            ks, stack = [batch[i].k for i in rows], [batch[i].stack for i in rows]
            found: Sequence[list[Match]] = stacks.search(self.gallery, vectors[rows], ks, filters, stack)
        else:
            found = self.gallery.search_vectors(vectors[rows], k=k, filter=None if same else filters)
        ended = time.perf_counter()
        for i, matches in zip(rows, found, strict=True):
            batch[i].matches = matches[: batch[i].k]
            batch[i].partial = isinstance(matches, Matches) and matches.partial
            batch[i].stages["search"] = ended - encoded
            judge(batch[i], self.gallery)

    def _vectors(self, batch: Sequence[Search]) -> np.ndarray:
        """Unit-length float32 ``[len(batch), D]``: of the picture, of the text, or between the two."""
        encoder = self.gallery.encoder
        vectors = np.zeros((len(batch), encoder.embed_dim), np.float32)
        for modality in ("sketch", "photo"):
            rows = [i for i, s in enumerate(batch) if s.image is not None and s.modality == modality]
            if rows:
                pictures = np.stack([image for i in rows if (image := batch[i].image) is not None])
                vectors[rows] = encoder.encode(pictures, modality)
        for i, search in enumerate(batch):
            if search.vector is not None:
                vectors[i] = search.vector
        wanted = [(s.text, s.words) for s in batch if s.text is not None]
        wanted += [(part, s.words) for s in batch for part, _ in s.more if isinstance(part, str)]
        texts = self._text_vectors(wanted)
        for i, search in enumerate(batch):
            if search.text is None:
                continue
            words = texts[search.text, search.words]
            if isinstance(words, UserError):
                search.error = words
            elif search.image is None and search.vector is None:
                vectors[i] = words
            else:
                vectors[i] = between(vectors[i], words, search.text_weight)
        for i, search in enumerate(batch):
            if search.more and search.error is None:
                try:
                    vectors[i] = _sum(search, vectors[i], texts)
                except UserError as error:
                    search.error = error
        return vectors

    def _text_vectors(self, texts: Sequence[Words]) -> dict[Words, np.ndarray | UserError]:
        """Vectors of texts; a text stays the same while its drawing grows, so they are kept."""
        encode = self.gallery.encoder.encode_text
        found: dict[Words, np.ndarray | UserError] = {}
        new: dict[str, list[Words]] = {}
        for text in dict.fromkeys(texts):
            if text in self._texts:
                found[text] = self._texts[text]
                self._texts.move_to_end(text)
            else:
                new.setdefault(text[1], []).append(text)
        for modality, some in new.items():
            try:
                found.update(zip(some, encode([text for text, _ in some], modality), strict=True))
            except UserError:  # one of them, and the others are innocent
                for one in some:
                    try:
                        found[one] = encode([one[0]], modality)[0]
                    except UserError as error:
                        found[one] = error
            self._texts.update((one, words) for one in some if not isinstance(words := found[one], UserError))
        while len(self._texts) > TEXTS:
            self._texts.popitem(last=False)
        return found


def _sum(search: Search, first: np.ndarray, texts: dict[Words, "np.ndarray | UserError"]) -> np.ndarray:
    """The vector of a search with all that is added to it.

    Raises:
        UserError: a text has none, or the parts cancel out.
    """
    alone = search.image is None and search.vector is None and search.text is None
    vectors, weights = ([], []) if alone else ([first], [1.0])
    for part, weight in search.more:
        vector = texts[part, search.words] if isinstance(part, str) else part
        if isinstance(vector, UserError):
            raise vector
        vectors.append(vector)
        weights.append(weight)
    return total(weights, np.stack(vectors))


class Admission:
    """The right of a request to have searches on the way."""

    def __init__(self, batcher: Batcher, count: int, client: str | None) -> None:
        self.batcher, self.coming, self.client = batcher, count, client

    async def answer(self, search: Search) -> None:
        """Wait until the search has its matches.

        Raises:
            TimeoutError: its deadline passed.
            UserError: it cannot be answered.
        """
        search.done = asyncio.get_running_loop().create_future()
        self.coming -= 1
        self.batcher._put(search)
        try:
            await asyncio.wait_for(search.done, max(0.0, search.deadline - time.monotonic()))
        except asyncio.TimeoutError:  # the built-in one only from Python 3.11 on
            raise TimeoutError from None
        finally:
            if not search.batch:  # nobody waits any more: it need not be worked on
                self.batcher._forget(search)
        if search.error is not None:
            raise search.error


def _tell(searches: Sequence[Search], error: Exception | None) -> None:
    """From the worker: let those who wait know that their searches are answered, or what went wrong."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Search]] = {}
    for search in searches:
        if search.done is not None:
            by_loop.setdefault(search.done.get_loop(), []).append(search)
    for loop, those in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_finish, those, error)


def _finish(searches: Sequence[Search], error: Exception | None) -> None:
    """In the event loop: tell those who still wait."""
    for search in searches:
        if search.done is not None and not search.done.done():
            if error is None:
                search.done.set_result(None)
            else:
                search.done.set_exception(error)
