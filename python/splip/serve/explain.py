"""Why a photo matches, over HTTP: which of its patches, and which of the drawing's, the score comes from."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

from splip import images
from splip.errors import UserError
from splip.serve import bodies
from splip.serve.batching import Admission
from splip.serve.metrics import timed
from splip.serve.middleware import Refusal
from splip.serve.openapi import EXPLAIN_BODY, PROBLEMS
from splip.serve.requests import client_of, media_type, unless_gone
from splip.serve.schemas import Explain, Grid, Why
from splip.serve.service import GALLERY_PIXELS, Service

if TYPE_CHECKING:
    from splip.encoders.explanation import Box, Explanation


def parse(body: bytes) -> Explain:
    """The request in a JSON document.

    Raises:
        TooLarge: it holds more than a search can.
        UserError: not JSON, or not such a request.
    """
    bodies.check(body, 1, bodies.LISTS)
    try:
        return Explain.model_validate(bodies._parsed(body))
    except ValidationError as error:
        raise UserError(bodies.invalid(error)) from None


def explains(service: Service) -> bool:
    """Whether the gallery's model can say why."""
    return getattr(service.gallery.encoder, "explains_by", None) is not None


async def answer(
    service: Service, asked: Explain, client: str, held: contextlib.ExitStack, deadline: float, began: float
) -> dict[str, Any]:
    """The explanation, as it is sent.

    Args:
        service: that is asked.
        asked: what is to be explained.
        client: who asks.
        held: what was taken on for it: the thread that explains closes it when it is done, else it stays the caller's.
        deadline: time.monotonic() after which nobody waits.
        began: time.perf_counter() at the request's start.

    Raises:
        UserError, Refusal: it cannot be explained; Missing: no such id.
        TimeoutError: not in time.
    """
    if not explains(service):
        raise Refusal(404, "unsupported", "this gallery's model cannot say why a photo matches")
    service._check(asked, None)
    admission: Admission = held.enter_context(service.batcher.admit(client=client))
    search = await service.prepared(asked, None, admission, deadline)
    search.k = 0  # the vector is all that is wanted of the batches
    await admission.answer(search)
    assert search.found is not None
    found, box = await _explained(service, asked, search.found, search.image, search.stages, client, held, deadline)
    timing = service.timing(search.stages, began)
    of_query = found.query
    return {
        "photo": asked.photo,
        "score": round(found.score, 6),
        "grid": found.photo.patches.shape,
        "heat": _rounded(found.photo.heat()),
        "strongest": round(max(0.0, float(found.photo.patches.max())), 6),
        "box": [round(edge, 6) for edge in box],
        "query_grid": None if of_query is None else of_query.patches.shape,
        "query_heat": None if of_query is None else _rounded(of_query.heat()),
        "by": service.gallery.encoder.explains_by,
        "timing_ms": timing,
    }


async def _explained(
    service: Service,
    asked: Explain,
    vector: np.ndarray,
    image: np.ndarray | None,
    stages: dict[str, float],
    client: str,
    held: contextlib.ExitStack,
    deadline: float,
) -> "tuple[Explanation, Box]":
    """The explanation, made in a thread that stops at its next look when nobody waits any more; until then it is held."""
    left = threading.Event()

    def check() -> None:
        if left.is_set() or time.monotonic() > deadline:
            raise TimeoutError

    work = service.explanations.start(_explain, service, asked, vector, image, stages, check, client=client)
    mine = held.pop_all()
    work.add_done_callback(lambda _: mine.close())
    try:
        return await asyncio.wait_for(asyncio.wrap_future(work), deadline - time.monotonic())
    finally:
        left.set()


def _explain(
    service: Service,
    asked: Explain,
    vector: np.ndarray,
    image: np.ndarray | None,
    stages: dict[str, float],
    check: Callable[[], None],
) -> "tuple[Explanation, Box]":
    """The explanation, and what of the photo its patches cover; in a thread."""
    encoder = service.gallery.encoder
    end = timed(stages, "explain")
    check()
    file = service.open(asked.photo)
    data = file.read(GALLERY_PIXELS * service.max_pixels)
    photo = images.read(data, "the photo", *service.gallery.reading("photo"))
    pixels = np.ascontiguousarray(encoder.prepare(photo, "photo"))
    found = encoder.explain_query(vector, pixels, image, asked.modality, check)
    end()
    return found, encoder.box(photo)


def _rounded(heat: np.ndarray) -> Grid:
    rows: Grid = np.round(heat.astype(np.float64), 4).tolist()
    return rows


def add(app: FastAPI, service: Service) -> None:
    """Add ``/v1/explain`` to the application."""
    config = service.config

    @app.post("/v1/explain", responses=PROBLEMS, response_model=Why, tags=["search"], openapi_extra=EXPLAIN_BODY)
    async def explain(request: Request) -> Response:
        """Why a photo matches a query: which of its patches the score comes from."""
        began = time.perf_counter()
        deadline = time.monotonic() + config.timeout_s
        service.need_ready()
        if media_type(request) != "application/json":
            raise Refusal(415, "media_type", "send JSON")
        body, client = await request.body(), client_of(request)
        asked = await service.parsing.run(parse, body, client=client)
        with contextlib.ExitStack() as held:
            return JSONResponse(await unless_gone(request, answer(service, asked, client, held, deadline, began)))
