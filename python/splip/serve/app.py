"""The HTTP application: its addresses, what they take and answer, and the page's files."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Request
from fastapi import Path as InPath
from fastapi import Query as InQuery
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from splip import __version__
from splip.errors import Unavailable, UnreadablePicture, UserError
from splip.serve import bodies, queries
from splip.serve.config import ServeConfig
from splip.serve.metrics import log
from splip.serve.middleware import COOKIE, Access, Guard, Refusal, is_loopback
from splip.serve.queries import Blank, Busy, Missing, Query, TooLarge, Whole
from splip.serve.schemas import About, Add, Added, Answer, Answers, Problem, Queries, State
from splip.serve.service import RETRY, Service, disk_is_full
from splip.serve.thumbnails import SIDES, File

T = TypeVar("T")
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
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
CHUNK = 256 * 2**10
MAX_FORM = 1_000_000  # bytes of a form that holds no file


# ---- reading requests ----


def _invalid(error: ValidationError | RequestValidationError) -> UserError:
    if isinstance(error, ValidationError):
        return UserError(bodies.invalid(error))
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    return UserError(f"{place}: {first['msg']}" if place else first["msg"])


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Parameters of an address or a form as the fields of a query: ``label`` and ``tag`` may come several times."""
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key == "label":
            fields.setdefault("labels", []).append(value)
        elif key == "tag":
            name, found, content = value.partition("=")
            if not found:
                raise UserError("tag: write it as name=value")
            fields.setdefault("tags", {})[name] = content
        elif key in ("k", "text", "text_weight", "modality", "id"):
            if key in fields:
                raise UserError(f"{key}: given more than once")
            fields[key] = value
        else:
            raise UserError(f"unknown parameter {key[:40]!r}")
    return fields


def client_of(request: Request) -> str:
    """Whose share a request takes: the address that it came from."""
    return request.client.host if request.client else "?"


async def read_query(request: Request, service: Service) -> tuple[Query, bytes | None]:
    """A search in any of its forms: JSON, a form with a file, or a file with parameters in the address.

    Raises:
        UserError, ValidationError: it makes no sense.
        Refusal: a media type that is not taken.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    upload: bytes | None = None
    if kind == "application/json":
        body = await request.body()
        if request.query_params:
            raise UserError("parameters go into the JSON, not into the address")
        return await service.parsing.run(bodies.query, body, client=client_of(request)), None
    pairs: list[tuple[str, Any]] = list(request.query_params.multi_items())
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        if kind != "multipart/form-data" and len(await request.body()) > MAX_FORM:
            raise TooLarge(f"a form without a file has at most {MAX_FORM / 1e6:g} MB")
        async with request.form(max_files=1, max_fields=300, max_part_size=64 * 1024) as form:
            for key, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if key != "image":
                        raise UserError("the form's file must be called image")
                    upload = await value.read()
                else:
                    pairs.append((key, value))
    elif kind.startswith("image/") or kind in ("application/octet-stream", ""):
        upload = await request.body() or None
        if upload is None and kind:
            raise UnreadablePicture("upload", "the body is empty")
    else:
        raise Refusal(415, "media_type", "send a picture, a form or JSON")
    return Query.model_validate(_fields(pairs)), upload


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, but stop when the client leaves: a page that draws on has no use for an old answer."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Refusal(499, "gone", "the client left")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def problem(error: Exception, folder: Path | None = None) -> Refusal:
    """The answer to an error that a request caused; ``folder``: of the gallery."""
    if disk_is_full(error, folder):
        log.error("%s", error)
        return Refusal(507, "disk_full", "the disk is full; what was committed before is safe")
    if isinstance(error, Refusal):
        return error
    if isinstance(error, (ValidationError, RequestValidationError)):
        error = _invalid(error)
    if isinstance(error, Busy):
        return Refusal(429, "busy", str(error), RETRY)
    if isinstance(error, TooLarge):
        return Refusal(413, "too_large", str(error))
    if isinstance(error, Blank):
        return Refusal(422, "blank", str(error))
    if isinstance(error, UnreadablePicture):
        return Refusal(422, "unreadable", str(error))
    if isinstance(error, Missing):
        return Refusal(404, "not_found", str(error))
    if isinstance(error, Unavailable):
        return Refusal(503, "unavailable", str(error), RETRY)
    if isinstance(error, UserError):
        return Refusal(422, "invalid", str(error))
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return Refusal(503, "timeout", "the service is too busy to answer in time", RETRY)
    if isinstance(error, HTTPException):
        words = {404: "not_found", 405: "method", 400: "invalid"}
        return Refusal(
            error.status_code, words.get(error.status_code, "error"), str(error.detail), dict(error.headers or {})
        )
    raise error


# ---- the application ----

Id = Annotated[Whole, InPath(ge=0, lt=2**63, description="Number of a picture in the gallery.")]


def create(service: Service, token: str | None = None) -> Guard:
    """The ASGI application of a service, its guard around it."""
    config, telemetry = service.config, service.telemetry
    access = Access(token, config.protect == "all")
    app = FastAPI(
        title="splip",
        version=__version__,
        description="Find the photos of a gallery that show what was drawn.",
        docs_url=None,  # they would load their scripts from elsewhere; /docs is our own
        redoc_url=None,
        lifespan=service.lifespan,
    )
    problems: dict[int | str, dict[str, Any]] = {
        code: {"model": Problem} for code in (400, 401, 403, 404, 408, 409, 413, 415, 421, 422, 429, 503, 507)
    }

    async def refuse(_: Request, error: Exception) -> Response:
        refusal = problem(error, service.folder)
        telemetry.refused.labels(refusal.code).inc()
        return refusal.response()

    for error in (HTTPException, RequestValidationError, ValidationError, UserError, TimeoutError, OSError):
        app.add_exception_handler(error, refuse)
    if asyncio.TimeoutError is not TimeoutError:
        app.add_exception_handler(asyncio.TimeoutError, refuse)

    async def forget(_: Request, error: Exception) -> Response:
        return Refusal(499, "gone", "the client left").response()  # for the log: nobody reads it

    app.add_exception_handler(ClientDisconnect, forget)

    async def fail(_: Request, error: Exception) -> Response:
        telemetry.refused.labels("internal").inc()
        return JSONResponse({"error": "internal", "message": "the service failed; its log says more"}, 500)

    app.add_exception_handler(Exception, fail)

    def need_ready() -> None:
        if not service.ready:
            raise Refusal(503, "starting", "the service is starting", RETRY)

    @app.post("/v1/search", responses=problems, response_model=Answer, tags=["search"], openapi_extra=SEARCH_BODY)
    async def search(request: Request) -> Response:
        """Find the photos that match a drawing, a picture, a text, or a picture and a text."""
        began = time.perf_counter()
        deadline = time.monotonic() + config.timeout_s
        need_ready()
        query, upload = await read_query(request, service)
        with service.batcher.admit(client=client_of(request)) as admission:
            work = service.answer(query, upload, admission, deadline, began)
            return JSONResponse(await unless_gone(request, work))

    @app.post("/v1/search/batch", responses=problems, response_model=Answers, tags=["search"], openapi_extra=BATCH_BODY)
    async def search_batch(request: Request) -> Response:
        """Several searches in one request; each gets its answer, or its own problem."""
        began = time.perf_counter()
        deadline = time.monotonic() + config.timeout_s
        need_ready()
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
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

    @app.get("/v1/gallery", responses=problems, tags=["gallery"])
    async def gallery() -> About:
        """What is in the gallery, which model searches it, and what may be asked."""
        need_ready()  # whether the model understands text is found out while it warms up
        encoder = service.gallery.encoder
        return About(
            version=__version__,
            count=len(service.gallery),
            labels=service._labels,
            model=encoder.name,
            engine=encoder.engine,
            precision=encoder.precision,
            embed_dim=encoder.embed_dim,
            image_size=encoder.image_size,
            text=service.text,
            writes=token is not None and service.writer is not None,
            max_k=config.max_k,
            max_queries=config.max_queries,
            max_body=service.max_body,
            max_pixels=service.max_pixels,
        )

    picture: dict[int | str, dict[str, Any]] = {200: {"content": {"image/*": {}}, "description": "The picture."}}

    @app.get("/v1/images/{id}", responses={**problems, **picture}, response_class=Response, tags=["gallery"])
    async def image(request: Request, id: Id) -> Response:
        """A picture of the gallery, its file as it is."""
        file = await service.files.run(service.open, id)
        tag = f'"{file.version}"'
        if request.headers.get("if-none-match") == tag:
            file.close()
            return Response(status_code=304, headers=_cached(tag))
        headers = {**_cached(tag), "Content-Length": str(file.size), "Content-Disposition": "inline"}
        return StreamingResponse(_stream(service, file), headers=headers, media_type=file.media_type)

    @app.get("/v1/thumbnails/{id}", responses={**problems, **picture}, response_class=Response, tags=["gallery"])
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

    @app.post("/v1/items", responses=problems, response_model=Added, tags=["items"], openapi_extra=ADD_BODY)
    async def add(request: Request) -> Added:
        """Add pictures that are on the service's machine, below a folder of --allow-root. Needs the token."""
        need_ready()
        if service.writer is None or not service.roots:
            raise Refusal(403, "writes_off", "adding is off: the service was started without --allow-root")
        body = await request.body()
        asked = await service.parsing.run(bodies.addition, body, client=client_of(request))
        return await service.writes.run(service.add, asked)

    @app.delete("/v1/items/{id}", status_code=204, responses=problems, tags=["items"])
    async def remove(id: Id) -> None:
        """Remove a picture from the gallery; its file stays where it is. Needs the token."""
        need_ready()
        if service.writer is None:
            raise Refusal(403, "writes_off", "removing is off")
        await service.writes.run(service.remove, id)

    @app.post("/v1/session", status_code=204, responses=problems, tags=["service"])
    async def session(request: Request) -> Response:
        """Exchange the token for a cookie, so that a page can show pictures."""
        response = Response(status_code=204)
        if access.cookie is not None and access.has_token(request.headers):
            secure = request.url.scheme == "https"
            response.set_cookie(COOKIE, access.cookie, httponly=True, samesite="strict", secure=secure)
        return response

    @app.get("/healthz", tags=["service"])
    async def healthz() -> State:
        """The process is alive."""
        return State(status="ok")

    @app.get("/readyz", tags=["service"], responses={503: {"model": Problem}})
    async def readyz() -> State:
        """The service answers searches: the model is loaded and has made one, and somebody works on what waits."""
        need_ready()
        if not service.batcher.working:
            raise Refusal(503, "broken", "the worker of the batches ended and is being started again", RETRY)
        return State(status="ready")

    @app.get("/metrics", tags=["service"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(await asyncio.to_thread(telemetry.text), media_type="text/plain; version=0.0.4; charset=utf-8")

    for address, (name, kind) in FILES.items():
        app.get(address, include_in_schema=False)(_page(PAGE / name, kind))

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _schema(app, config)
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
        inner, access, telemetry, service.max_body, config.body_timeout_s, hosts, config.cors, config.behind_proxy
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


# ---- OpenAPI of what FastAPI cannot see: bodies in several forms ----

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM: dict[str, Any] = {
    "image": {"type": "string", "format": "binary", "description": "PNG, JPEG, WebP, GIF, BMP, AVIF or SVG."},
    "text": {"type": "string", "maxLength": queries.MAX_TEXT},
    "text_weight": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5},
    "modality": {"type": "string", "enum": ["sketch", "photo"], "default": "sketch"},
    "id": {"type": "integer", "minimum": 0},
    "k": {"type": "integer", "minimum": 1, "default": 24},
    "label": {"type": "array", "items": {"type": "string"}},
    "tag": {"type": "array", "items": {"type": "string", "description": "name=value"}},
}
SEARCH_BODY: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": "For raw bodies."}
        for name, schema in _FORM.items()
        if name != "image"
    ],
    "requestBody": {
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Query"}},
            "multipart/form-data": {"schema": {"type": "object", "properties": _FORM}},
            **{f"image/{kind}": _BINARY for kind in ("png", "jpeg", "webp", "svg+xml")},
        }
    },
}
ADD_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Add"}}}}
}
BATCH_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Queries"}}},
    }
}


def _schema(app: FastAPI, config: ServeConfig) -> dict[str, Any]:
    """FastAPI's document with the bodies of the searches, and this service's limits."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    models = Queries.model_json_schema(ref_template="#/components/schemas/{model}")
    components = schema["components"]["schemas"]
    components.update(models.pop("$defs"))
    components["Queries"] = models
    components["Add"] = Add.model_json_schema()
    components["Query"]["properties"]["k"]["maximum"] = config.max_k
    components["Queries"]["properties"]["queries"]["maxItems"] = config.max_queries
    schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, methods in schema["paths"].items():
        if path.startswith("/v1/items") or (config.protect == "all" and path.startswith("/v1/")):
            for operation in methods.values():
                operation["security"] = [{"token": []}]
    return schema
