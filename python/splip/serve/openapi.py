"""OpenAPI of what FastAPI cannot see: bodies that are checked on their bytes first, files, and who may ask.

One operation has one body, so that clients can be made from the document. ``POST /v1/search`` takes other forms, too,
which only its description tells.
"""

import re
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from splip.serve import queries
from splip.serve.config import ServeConfig
from splip.serve.schemas import Add, Embed, Explain, Failed, Problem, Queries

# What an address may answer besides: the status, its commonest word, and when.
WORDS: dict[int, tuple[str, str]] = {
    400: ("invalid", "The request cannot be read."),
    401: ("token", "The token is missing, or another one."),
    403: ("writes_off", "Not allowed here: no --allow-root, or a page of another site."),
    404: ("not_found", "There is no such picture, or its file is gone."),
    408: ("slow", "The body did not come in time."),
    409: ("locked", "Another process is writing to the gallery."),
    413: ("too_large", "More bytes, pixels or values than the service takes."),
    415: ("media_type", "A body of another kind than is taken."),
    421: ("host", "The Host header names another service."),
    422: ("invalid", "A field makes no sense, or a picture cannot be read."),
    429: ("busy", "Too much at once; Retry-After says when to try again."),
    503: ("timeout", "Not now: starting, or too busy; Retry-After says when to try again."),
    507: ("disk_full", "The disk of the service is full."),
}


def _answers(model: type[BaseModel], codes: tuple[int, ...]) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": model, "description": WORDS[code][1]} for code in codes}


PROBLEMS = _answers(Problem, tuple(WORDS))
FAILURES = _answers(Failed, (400, 401, 404, 408, 413, 415, 421, 429, 503))
GUARDED = _answers(Problem, (401, 403, 413, 421, 429, 503))  # before any work is done
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_UNCHANGED = {"description": "Not changed since the answer whose ETag was sent as If-None-Match."}
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/*": _BINARY}, "description": "The picture."},
    304: _UNCHANGED,
}
THUMBNAIL: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": _BINARY}, "description": "The small picture."},
    304: _UNCHANGED,
}
TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Lines of text."}
}
TAGS = [
    {"name": "search", "description": "Drawings, pictures and words, and the photos that match."},
    {"name": "vectors", "description": "Vectors for other programs, in the shape of OpenAI's API."},
    {"name": "gallery", "description": "What is in the gallery, and its pictures."},
    {"name": "items", "description": "What is known of each picture; adding and removing."},
    {"name": "service", "description": "Whether it is well, and who may ask."},
]


def _field(name: str) -> dict[str, Any]:
    """A field of a search as a form has it: left out where JSON has null."""
    field = {**queries.Query.model_json_schema()["properties"][name]}
    field.pop("title", None)
    kinds = [kind for kind in field.pop("anyOf", []) if kind.get("type") != "null"]
    if field.get("default", ...) is None:
        del field["default"]
    return {**(kinds[0] if kinds else {}), **field}


_FORM: dict[str, Any] = {
    "image": {"type": "string", "format": "binary", "description": "PNG, JPEG, WebP, GIF, BMP, AVIF or SVG."},
    "text": {"type": "string", "maxLength": queries.MAX_TEXT, "description": "What is to be seen, e.g. red car."},
    "text_weight": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.5,
        "description": "0: picture only, 1: text only.",
    },
    "modality": {
        "type": "string",
        "enum": ["sketch", "photo"],
        "default": "sketch",
        "description": "What the picture is.",
    },
    "k": {"type": "integer", "minimum": 1, "default": 24, "description": "Photos to find."},
    **{name: _field(name) for name in ("taken_from", "taken_to", "min_side", "stack")},
    "label": {"type": "array", "items": {"type": "string"}, "description": "Only photos of these labels."},
    "tag": {"type": "array", "items": {"type": "string"}, "description": "Only photos with this tag: name=value."},
}


def json_body(model: type[BaseModel], **examples: tuple[str, Any]) -> dict[str, Any]:
    """An operation's ``openapi_extra``: it takes this model as JSON.

    Args:
        model: one of ``BODIES``.
        examples: by name, what each shows and its value.
    """
    content: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    if examples:
        content["examples"] = {name: {"summary": what, "value": value} for name, (what, value) in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


_DRAWING = {"strokes": [[[0, 0], [40, 0], [40, 40], [0, 40], [0, 0]]], "k": 5}
SEARCH_BODY = json_body(
    queries.Query,
    drawing=("Lines of a drawing, y downwards", _DRAWING),
    words=("What is to be seen", {"text": "brown horse", "k": 5}),
    both=("A drawing and words, mostly the drawing", _DRAWING | {"text": "red", "text_weight": 0.3}),
    alike=("More like a photo of the gallery, but without snow", {"id": 7, "like": [{"text": "snow", "weight": -0.5}]}),
)
UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": {"type": "object", "required": ["image"], "properties": _FORM}}},
    }
}
EXPLAIN_BODY = json_body(
    Explain, drawing=("Why photo 7 matches a drawing", {"strokes": _DRAWING["strokes"], "photo": 7})
)
_FOUND = {
    "id": 7, "score": 0.412, "likely": True, "label": "horse", "tags": {"year": "2019"}, "name": "meadow.jpg", "path": None,
    "taken": "2019-07-14T10:02:03", "camera": "Canon EOS 80D", "width": 6000, "height": 4000, "bytes": 7_402_113,
    "modified": "2019-07-14T08:02:03Z", "missing": False, "copies": [], "copies_count": 0,
}  # fmt: skip
_TIMES = {"decode": 0.4, "prepare": 0.6, "wait": 2.1, "encode": 5.8, "search": 0.3, "lookup": 0.1, "total": 9.9}
ANSWER: dict[str, Any] = {
    "matches": [_FOUND], "cutoff": 0.31, "unknown_words": [], "partial": False, "timing_ms": _TIMES, "batch": 1
}  # fmt: skip
BATCH_BODY = json_body(Queries, two=("Two searches", {"queries": [_DRAWING, {"text": "brown horse"}]}))
ADD_BODY = json_body(
    Add,
    folder=("A folder, all with one label", {"paths": ["/pictures/2025"], "label": "sea", "tags": {"year": "2025"}}),
)
EMBED_BODY = json_body(Embed, words=("A text", {"input": "brown horse", "model": "splip"}))
# What /v1/embeddings takes: a text, an object that holds one, or an object that holds a picture.
_INPUTS: dict[str, Any] = {
    "InputText": {
        "type": "object",
        "properties": {"text": {"type": "string", "description": "A text."}},
        "required": ["text"],
    },
    "InputImage": {
        "type": "object",
        "properties": {
            "image": {"type": "string", "description": "data:image/png;base64,..., formats as in /v1/search/upload."}
        },
        "required": ["image"],
    },
}
_INPUT: list[dict[str, Any]] = [
    {
        "type": "string",
        "description": f"A text, at most {queries.MAX_TEXT} characters, or a picture as a data: URL.",
    },
    *({"$ref": f"#/components/schemas/{name}"} for name in _INPUTS),
]
BODIES: tuple[type[BaseModel], ...] = (Queries, Explain, Add, Embed)  # of requests, with what they refer to


def document(app: FastAPI, config: ServeConfig) -> dict[str, Any]:
    """FastAPI's document with the bodies of the requests, and this service's limits."""
    schema = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=TAGS
    )
    shapes = schema["components"]["schemas"]
    for model in BODIES:
        shape = model.model_json_schema(ref_template="#/components/schemas/{model}")
        for name, one in {**shape.pop("$defs", {}), model.__name__: shape}.items():
            for field in one.get("properties", {}).values():
                if field.get("default", ...) is None:  # says no more than that the field may be left out
                    del field["default"]
            shapes[name] = one
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which nobody gets
        shapes.pop(name, None)
    embed = shapes["Embed"]
    shapes.update(_INPUTS)
    inputs = {"type": "array", "items": {"anyOf": _INPUT}, "minItems": 1, "maxItems": config.max_queries}
    what = "Texts, pictures as data: URLs, or both."
    embed["properties"] = {"input": {"anyOf": [*_INPUT, inputs], "description": what}, **embed["properties"]}
    embed["required"] = ["input"]
    for name in ("Query", "Explain"):
        shapes[name]["properties"]["k"]["maximum"] = config.max_k
    shapes["Queries"]["properties"]["queries"]["maxItems"] = config.max_queries
    _simplify(shapes)
    schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, method, operation in operations(schema):
        operation["summary"] = re.split(r"[.:;](?:\s|$)", operation["description"])[0]
        for code, answer in list(operation["responses"].items()):
            content = answer.get("content", {}).get("application/json", {})
            name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
            if name == "HTTPValidationError":
                del operation["responses"][code]
            elif name == "Answer":
                content["example"] = ANSWER
            elif name == "Problem":
                content["example"] = {"error": WORDS[int(code)][0], "message": WORDS[int(code)][1]}
        if writes(path, method) or (config.protect == "all" and path.startswith("/v1/")):
            operation["security"] = [{"token": []}]
    return schema


def _simplify(node: Any) -> None:
    """Say lists of as many alike, such as points, in the words that all programs know: the length beside one kind of item."""
    if isinstance(node, dict):
        kinds = node.get("prefixItems", ())
        if kinds and all(kind == kinds[0] for kind in kinds):
            del node["prefixItems"]
            node["items"] = kinds[0]
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _simplify(value)


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Address, method and operation of all that a document describes."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def writes(path: str, method: str) -> bool:
    """Whether an operation changes the gallery, which always needs the token."""
    return path.startswith("/v1/items") and method.upper() not in ("GET", "HEAD")
