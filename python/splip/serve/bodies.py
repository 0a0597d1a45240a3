"""JSON from clients: counted on their bytes first, so that a small document cannot ask for much.

A parser builds everything before anything can be counted, and nothing else runs meanwhile: some megabytes of empty
lists would stop the service for seconds. Counting bytes takes milliseconds.
"""

from typing import Any

import pydantic_core
from pydantic import ValidationError

from splip.errors import UserError
from splip.serve.queries import MAX_LABELS, MAX_PARTS, MAX_POINTS, MAX_STROKES, Like, Query, TooLarge
from splip.serve.schemas import MAX_PATHS, Add

LISTS = MAX_POINTS + MAX_STROKES + 8  # in one search: each point is a list
BATCH_LISTS = 4 * LISTS  # in several searches
# In one search: labels, names and values of tags; keys and values; those of what it is like.
STRINGS = 3 * MAX_LABELS + 2 * len(Query.model_fields) + 2 * MAX_PARTS * len(Like.model_fields)
OBJECTS = 2 + MAX_PARTS  # a search is an object, and so are its tags, and what it is like
FIELDS = 16  # beside the things whose vectors are asked for
LIST_BYTES = 120  # of a point, generously indented; more only where there is a picture or an SVG


def query(body: bytes) -> Query:
    """The search in a JSON document.

    Raises:
        TooLarge: it holds more than one search can.
        UserError: not JSON, or not a search.
    """
    check(body, 1, LISTS)
    return _query(_parsed(body))


def queries(body: bytes, most: int) -> list[Query]:
    """The searches in ``{"queries": [...]}``, at most ``most``.

    Raises:
        TooLarge, UserError: see ``query``.
    """
    check(body, most, BATCH_LISTS)
    document = _parsed(body)
    if not isinstance(document, dict) or set(document) != {"queries"} or not isinstance(document["queries"], list):
        raise UserError('write it as {"queries": [...]}')
    found = document["queries"]
    if not found:
        raise UserError("queries: at least one")
    if len(found) > most:
        raise UserError(_too_many(most, len(found)))
    return [_query(one, f"queries.{i}.") for i, one in enumerate(found)]


def addition(body: bytes) -> Add:
    """The pictures to add in a JSON document.

    Raises:
        TooLarge, UserError: see ``query``.
    """
    outside = _outside(body, MAX_PATHS + 2 * MAX_LABELS + 8)
    if outside.count(b"[") + outside.count(b"{") > 3 or outside.count(b",") > MAX_PATHS + MAX_LABELS + 8:
        raise TooLarge("the JSON holds more values than an addition can have")
    try:
        return Add.model_validate(_parsed(body))
    except ValidationError as error:
        raise UserError(invalid(error)) from None


def check(body: bytes, searches: int, lists: int) -> None:
    """Refuse a document by what its bytes hold, before it is parsed.

    Raises:
        TooLarge: more lists, texts or bytes than the searches can need.
        UserError: more objects than that.
    """
    if len(body) > lists * LIST_BYTES and b'"image"' not in body and b'"svg"' not in body:
        raise TooLarge(f"the JSON has {len(body) / 1e6:.1f} MB, more than a search without a picture needs")
    outside = _outside(body, searches * STRINGS)
    objects = outside.count(b"{")
    if searches > 1 and objects > OBJECTS * searches + 1:
        raise UserError(_too_many(searches, objects))
    if outside.count(b"[") > lists:
        raise TooLarge(f"the JSON holds more strokes and points than {MAX_STROKES} and {MAX_POINTS} a search")
    if objects > OBJECTS * searches + 1 or outside.count(b",") > 2 * lists + searches * STRINGS:
        raise TooLarge("the JSON holds more values than a search can have")


def check_values(body: bytes, most: int) -> None:
    """Refuse a request for the vectors of at most ``most`` things by what its bytes hold, before it is parsed.

    Raises:
        TooLarge: more objects, lists or values than that can need.
    """
    outside = _outside(body, 2 * most + 2 * FIELDS)
    if max(outside.count(b"{"), outside.count(b"[")) > most + 1 or outside.count(b",") > most + FIELDS:
        raise TooLarge(f"the JSON holds more values than {most} texts or pictures need")


def _outside(body: bytes, strings: int) -> bytes:
    """What is not in strings, of which there may be so many."""
    if b"\\" in body:  # what is escaped in a string does not end it
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if body.count(b'"') > 2 * strings + 1:
        raise TooLarge("the JSON holds more names and texts than are taken")
    return b"".join(body.split(b'"')[::2])


def _too_many(most: int, got: int) -> str:
    return f"queries: at most {most} at once, got {got}"


def _parsed(body: bytes) -> Any:
    try:
        return pydantic_core.from_json(body)
    except ValueError as error:
        raise UserError(f"Invalid JSON: {error}") from None


def _query(document: Any, place: str = "") -> Query:
    try:
        return Query.model_validate(document)
    except ValidationError as error:
        raise UserError(place + invalid(error)) from None


def invalid(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
