"""Requests: a search in any of its forms, clients that leave, and the answer to an error."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from splip.errors import Unavailable, UnreadablePicture, UserError
from splip.serve import bodies
from splip.serve.metrics import log
from splip.serve.middleware import RETRY, Refusal
from splip.serve.queries import Blank, Busy, Missing, Query, TooLarge
from splip.serve.service import Service
from splip.serve.writing import disk_is_full

T = TypeVar("T")
EMPTY = ("taken_from", "taken_to", "min_side")  # mean nothing where they are empty
MAX_FORM = 1_000_000  # bytes of a form that holds no file


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
        if key in EMPTY and value == "":  # of a form that was left empty
            continue
        if key in ("label", "labels"):
            fields.setdefault("labels", []).append(value)
        elif key == "tag":
            name, found, content = value.partition("=")
            if not found:
                raise UserError("tag: write it as name=value")
            fields.setdefault("tags", {})[name] = content
        elif key in ("k", "text", "text_weight", "modality", "id", "taken_from", "taken_to", "min_side", "stack"):
            if key in fields:
                raise UserError(f"{key}: given more than once")
            fields[key] = value
        else:
            raise UserError(f"unknown parameter {key[:40]!r}")
    return fields


def client_of(request: Request) -> str:
    """Whose share a request takes: the address that it came from."""
    return request.client.host if request.client else "?"


def media_type(request: Request) -> str:
    """Of the request's body, without its parameters; empty if there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_query(request: Request, service: Service) -> tuple[Query, bytes | None]:
    """A search in any of its forms: JSON, a form with a file, or a file with parameters in the address.

    Raises:
        UserError, ValidationError: it makes no sense.
        Refusal: a media type that is not taken.
    """
    kind = media_type(request)
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
