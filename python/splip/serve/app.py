"""The HTTP application: its addresses, what they take and answer, and the page's files."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi import Query as InQuery
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from splip import __version__
from splip.errors import UserError
from splip.serve import bodies, embeddings, explain, items
from splip.serve.items import Id
from splip.serve.middleware import COOKIE, RETRY, Access, Guard, Refusal, is_loopback
from splip.serve.openapi import (
    ADD_BODY,
    BATCH_BODY,
    EMBED_BODY,
    FAILURES,
    GUARDED,
    PICTURE,
    PROBLEMS,
    SEARCH_BODY,
    TEXT,
    THUMBNAIL,
    UPLOAD_BODY,
    document,
)
from splip.serve.queries import Query, Whole
from splip.serve.requests import client_of, media_type, problem, read_query, unless_gone
from splip.serve.schemas import About, Added, Answer, Answers, Embeddings, Model, Models, State
from splip.serve.service import Service
from splip.serve.thumbnails import SIDES, File

PAGE = Path(__file__).parent / "page"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Address: file and media type of everything that the page is made of.
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
MODULES = (
    "api", "browse", "chips", "docs", "dom", "drawing", "examples", "filters", "grid", "help", "page", "picture", "results",
    "state", "strokes", "viewer", "why",
)  # fmt: skip
FILES |= {f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in MODULES}
CHUNK = 256 * 2**10


def create(service: Service, token: str | None = None) -> Guard:
    """The ASGI application of a service, its guard around it."""
    config = service.config
    access = Access(token, config.protect == "all")
    app = FastAPI(
        title="splip",
        version=__version__,
        description="Find the photos of a gallery that show what was drawn.",
        docs_url=None,  # they would load their scripts from elsewhere; /docs is our own
        redoc_url=None,
        lifespan=service.lifespan,
        generate_unique_id_function=lambda route: route.name,  # clients name their functions so
    )
    _answer_errors(app, service)
    _add_searches(app, service)
    explain.add(app, service)
    _add_vectors(app, service)
    _add_gallery(app, service, writes=token is not None and service.writer is not None)
    _add_pictures(app, service)
    _add_items(app, service)
    app.include_router(items.routes(service))
    _add_service(app, service, access)
    for address, (name, kind) in FILES.items():
        app.get(address, include_in_schema=False)(_page(PAGE / name, kind))

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document(app, config)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    inner: ASGIApp = app
    if config.cors:
        inner = CORSMiddleware(
            app,
            allow_origins=config.cors,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
        )
    hosts = list(config.allow_host)
    if is_loopback(config.host):
        hosts += ["localhost", "127.0.0.1", "::1", config.host]
    return Guard(
        inner,
        access,
        service.telemetry,
        service.max_body,
        config.body_timeout_s,
        hosts,
        config.cors,
        config.behind_proxy,
    )


def _answer_errors(app: FastAPI, service: Service) -> None:
    telemetry = service.telemetry

    async def refuse(request: Request, error: Exception) -> Response:
        refusal = problem(error, service.folder)
        telemetry.refused.labels(refusal.code).inc()
        return refusal.response(request.url.path)

    for error in (HTTPException, RequestValidationError, ValidationError, UserError, TimeoutError, OSError):
        app.add_exception_handler(error, refuse)
    if asyncio.TimeoutError is not TimeoutError:
        app.add_exception_handler(asyncio.TimeoutError, refuse)

    async def forget(_: Request, error: Exception) -> Response:
        return Refusal(499, "gone", "the client left").response()  # for the log: nobody reads it

    app.add_exception_handler(ClientDisconnect, forget)

    async def fail(request: Request, error: Exception) -> Response:
        telemetry.refused.labels("internal").inc()
        return Refusal(500, "internal", "the service failed; its log says more").response(request.url.path)

    app.add_exception_handler(Exception, fail)


def _add_searches(app: FastAPI, service: Service) -> None:
    config = service.config

    async def answer(request: Request, form: bool = False) -> Response:
        began = time.perf_counter()
        deadline = time.monotonic() + config.timeout_s
        service.need_ready()
        if form and media_type(request) != "multipart/form-data":
            raise Refusal(415, "media_type", "send a form, multipart/form-data")
        query, upload = await read_query(request, service)
        if form and upload is None:
            raise UserError("image: the form needs a file of this name")
        with service.batcher.admit(client=client_of(request)) as admission:
            work = service.answer(query, upload, admission, deadline, began)
            return JSONResponse(await unless_gone(request, work))

    @app.post("/v1/search", responses=PROBLEMS, response_model=Answer, tags=["search"], openapi_extra=SEARCH_BODY)
    async def search(request: Request) -> Response:
        """Find the photos that match a drawing, a picture, a text, or a picture and a text.

        Beside JSON it takes the form of /v1/search/upload, and the bytes of a picture, e.g. as image/png, with the form's other
        fields in the address.
        """
        return await answer(request)

    @app.post(
        "/v1/search/upload", responses=PROBLEMS, response_model=Answer, tags=["search"], openapi_extra=UPLOAD_BODY
    )
    async def search_upload(request: Request) -> Response:
        """Find the photos that match a picture's file, alone or with a text, sent as a form."""
        return await answer(request, form=True)

    @app.post("/v1/search/batch", responses=PROBLEMS, response_model=Answers, tags=["search"], openapi_extra=BATCH_BODY)
    async def search_batch(request: Request) -> Response:
        """Several searches in one request; each gets its answer, or its own problem."""
        began = time.perf_counter()
        deadline = time.monotonic() + config.timeout_s
        service.need_ready()
        if media_type(request) != "application/json":
            raise Refusal(415, "media_type", "send JSON")
        body = await request.body()
        asked = await service.parsing.run(bodies.queries, body, config.max_queries, client=client_of(request))
        with service.batcher.admit(len(asked), client_of(request)) as admission:

            async def one(query: Query) -> dict[str, Any]:
                try:
                    return await service.answer(query, None, admission, deadline, began)
                except Exception as error:
                    refusal = problem(error, service.folder)
                    return {"error": refusal.code, "message": refusal.detail}

            work = asyncio.gather(*map(one, asked))

            async def all_of_them() -> list[dict[str, Any]]:
                return list(await work)

            return JSONResponse({"answers": await unless_gone(request, all_of_them())})


def _add_vectors(app: FastAPI, service: Service) -> None:
    config = service.config

    @app.post(
        "/v1/embeddings", responses=FAILURES, response_model=Embeddings, tags=["vectors"], openapi_extra=EMBED_BODY
    )
    async def embed(request: Request) -> Response:
        """Vectors of texts and pictures, in the shape of OpenAI's API: its client libraries can ask for them."""
        deadline = time.monotonic() + config.timeout_s
        service.need_ready()
        if media_type(request) != "application/json":
            raise Refusal(415, "media_type", "send JSON")
        body, client = await request.body(), client_of(request)
        asked = await service.parsing.run(embeddings.parse, body, config.max_queries, client=client)
        with service.batcher.admit(len(asked.inputs), client) as admission:
            work = embeddings.answer(service, asked, admission, deadline)
            return JSONResponse(await unless_gone(request, work))

    @app.get("/v1/models", responses=FAILURES, response_model=Models, tags=["vectors"])
    async def models() -> dict[str, Any]:
        """The model that is served, as OpenAI's API lists it."""
        service.need_ready()
        return {"object": "list", "data": [embeddings.described(service)]}

    @app.get("/v1/models/{id}", responses=FAILURES, response_model=Model, tags=["vectors"])
    async def model(id: str) -> dict[str, Any]:
        """The same of one model, by its id or as ``splip``."""
        service.need_ready()
        embeddings.check_model(service, id)
        return embeddings.described(service)


def _add_gallery(app: FastAPI, service: Service, writes: bool) -> None:
    config = service.config

    @app.get("/v1/gallery", responses=PROBLEMS, tags=["gallery"])
    async def gallery() -> About:
        """What is in the gallery, which model searches it, and what may be asked."""
        service.need_ready()  # whether the model understands text is found out while it warms up
        encoder = service.gallery.encoder
        return About(
            version=__version__,
            count=len(service.gallery),
            labels=service._labels,
            model=encoder.name,
            engine=encoder.engine,
            precision=encoder.precision,
            embed_dim=encoder.embed_dim,
            dimensions=embeddings.sizes(service),
            image_size=encoder.image_size,
            text=service.text,
            explains=explain.explains(service),
            writes=writes,
            max_k=config.max_k,
            max_queries=config.max_queries,
            max_body=service.max_body,
            max_pixels=service.max_pixels,
        )


def _add_pictures(app: FastAPI, service: Service) -> None:
    @app.get("/v1/images/{id}", responses={**PROBLEMS, **PICTURE}, response_class=Response, tags=["gallery"])
    async def image(request: Request, id: Id) -> Response:
        """A picture of the gallery, its file as it is."""
        file = await service.files.run(service.open, id)
        tag = f'"{file.version}"'
        if request.headers.get("if-none-match") == tag:
            file.close()
            return Response(status_code=304, headers=_cached(tag))
        headers = {**_cached(tag), "Content-Length": str(file.size), "Content-Disposition": "inline"}
        return StreamingResponse(_stream(service, file), headers=headers, media_type=file.media_type)

    @app.get("/v1/thumbnails/{id}", responses={**PROBLEMS, **THUMBNAIL}, response_class=Response, tags=["gallery"])
    async def thumbnail(
        request: Request,
        id: Id,
        size: Annotated[Whole, InQuery(description=f"One of {', '.join(map(str, SIDES))}.")] = 256,
    ) -> Response:
        """A small version of a picture, JPEG, its longer side at most ``size`` pixels."""
        if size not in SIDES:
            raise UserError(f"size: one of {', '.join(map(str, SIDES))}, got {size}")
        file = await service.files.run(service.open, id)
        tag = f'"{file.version}-{size}"'
        if request.headers.get("if-none-match") == tag:
            file.close()
            return Response(status_code=304, headers=_cached(tag))
        data = await service.files.run(service.thumbnails.get, file, size)
        return Response(data, headers=_cached(tag), media_type="image/jpeg")


def _add_items(app: FastAPI, service: Service) -> None:
    @app.post("/v1/items", responses=PROBLEMS, response_model=Added, tags=["items"], openapi_extra=ADD_BODY)
    async def add(request: Request) -> Added:
        """Add pictures that are on the service's machine, below a folder of --allow-root. Needs the token."""
        service.need_ready()
        if service.writer is None or not service.roots:
            raise Refusal(403, "writes_off", "adding is off: the service was started without --allow-root")
        body = await request.body()
        asked = await service.parsing.run(bodies.addition, body, client=client_of(request))
        return await service.writes.run(service.add, asked)

    @app.delete("/v1/items/{id}", status_code=204, responses=PROBLEMS, tags=["items"])
    async def remove(id: Id) -> None:
        """Remove a picture from the gallery; its file stays where it is. Needs the token."""
        service.need_ready()
        if service.writer is None:
            raise Refusal(403, "writes_off", "removing is off")
        await service.writes.run(service.remove, id)


def _add_service(app: FastAPI, service: Service, access: Access) -> None:
    @app.post("/v1/session", status_code=204, responses=PROBLEMS, tags=["service"])
    async def session(request: Request) -> Response:
        """Exchange the token for a cookie, so that a page can show pictures."""
        response = Response(status_code=204)
        if access.cookie is not None and access.has_token(request.headers):
            secure = request.url.scheme == "https"
            response.set_cookie(COOKIE, access.cookie, httponly=True, samesite="strict", secure=secure)
        return response

    @app.get("/healthz", tags=["service"], responses=GUARDED)
    async def healthz() -> State:
        """The process is alive."""
        return State(status="ok")

    @app.get("/readyz", tags=["service"], responses=GUARDED)
    async def readyz() -> State:
        """The service answers searches: the model is loaded and has made one, and somebody works on what waits."""
        service.need_ready()
        if not service.batcher.working:
            raise Refusal(503, "broken", "the worker of the batches ended and is being started again", RETRY)
        return State(status="ready")

    @app.get("/metrics", tags=["service"], response_class=Response, responses={**GUARDED, **TEXT})
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(
            await asyncio.to_thread(service.telemetry.text), media_type="text/plain; version=0.0.4; charset=utf-8"
        )


async def _stream(service: Service, file: File) -> AsyncIterator[bytes]:
    try:
        while part := await service.files.run(file.stream.read, CHUNK):
            yield part
    finally:
        file.close()


def _cached(tag: str) -> dict[str, str]:
    return {"ETag": tag, "Cache-Control": "private, max-age=300"}


def _page(path: Path, kind: str) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """An endpoint that answers with a file of the page, from memory."""
    data = path.read_bytes()
    tag = f'"{hashlib.sha256(data).hexdigest()[:24]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache", "Content-Security-Policy": PAGE_POLICY}

    async def page(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type=kind)

    return page
