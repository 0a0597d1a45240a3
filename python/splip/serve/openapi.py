"""OpenAPI of what FastAPI cannot see: bodies in several forms."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from splip.serve import queries
from splip.serve.config import ServeConfig
from splip.serve.schemas import Add, Embed, Explain, Failed, Problem, Queries

# What any address may answer besides.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem} for code in (400, 401, 403, 404, 408, 409, 413, 415, 421, 422, 429, 503, 507)
}
FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": Failed} for code in (400, 401, 404, 408, 413, 415, 421, 429, 503)
}
PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/*": {}}, "description": "The picture."}}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
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
    "id": {"type": "integer", "minimum": 0, "description": "A picture of the gallery, in place of an upload."},
    "k": {"type": "integer", "minimum": 1, "default": 24, "description": "Photos to find."},
    "label": {"type": "array", "items": {"type": "string"}, "description": "Only photos of these labels."},
    "tag": {"type": "array", "items": {"type": "string"}, "description": "Only photos with this tag: name=value."},
}
SEARCH_BODY: dict[str, Any] = {
    "parameters": [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
            "description": f"For raw bodies. {schema['description']}",
        }
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
_INPUT: dict[str, Any] = {
    "anyOf": [
        {
            "type": "string",
            "description": f"A text, at most {queries.MAX_TEXT} characters, or a picture as a data: URL.",
        },
        {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
        {
            "type": "object",
            "properties": {
                "image": {"type": "string", "description": "data:image/png;base64,..., formats as in /v1/search."}
            },
            "required": ["image"],
        },
    ]
}
EMBED_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Embed"}}},
    }
}
BATCH_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Queries"}}},
    }
}


def document(app: FastAPI, config: ServeConfig) -> dict[str, Any]:
    """FastAPI's document with the bodies of the searches, and this service's limits."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    models = Queries.model_json_schema(ref_template="#/components/schemas/{model}")
    components = schema["components"]["schemas"]
    components.update(models.pop("$defs"))
    components["Queries"] = models
    components["Explain"] = Explain.model_json_schema(ref_template="#/components/schemas/{model}")
    del components["Explain"]["$defs"]  # of a search, which are there
    components["Add"] = Add.model_json_schema()
    components["Embed"] = embed = Embed.model_json_schema()
    inputs = {"type": "array", "items": _INPUT, "minItems": 1, "maxItems": config.max_queries}
    what = "Texts, pictures as data: URLs, or both."
    embed["properties"] = {"input": {"anyOf": [*_INPUT["anyOf"], inputs], "description": what}, **embed["properties"]}
    embed["required"] = ["input"]
    for name in ("Query", "Explain"):
        components[name]["properties"]["k"]["maximum"] = config.max_k
    components["Queries"]["properties"]["queries"]["maxItems"] = config.max_queries
    schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, methods in schema["paths"].items():
        if path.startswith("/v1/items") or (config.protect == "all" and path.startswith("/v1/")):
            for operation in methods.values():
                operation["security"] = [{"token": []}]
    return schema
