"""Vectors over HTTP in the shape of OpenAI's ``/v1/embeddings``, so that its client libraries can ask for them.

Requests are counted on their bytes, decoded, encoded in the same batches and limited as searches are.
"""

import asyncio
import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from splip.encoders import compact
from splip.encoders.manifest import model_hash
from splip.errors import UserError
from splip.serve import bodies
from splip.serve.batching import Admission, Search
from splip.serve.middleware import Refusal
from splip.serve.queries import Query, decode_base64
from splip.serve.requests import problem
from splip.serve.schemas import Embed, Form
from splip.serve.service import Service

MODEL = "splip"  # any model that is served


@dataclass
class Input:
    """One of the things to embed."""

    query: Query
    picture: bytes | None  # its file


@dataclass
class Asked:
    """A request for vectors."""

    inputs: list[Input]
    options: Embed

    @property
    def form(self) -> Form:
        """How vectors are to be sent. OpenAI's client asks for base64 unless it is told otherwise: the other name wins."""
        return self.options.embedding_type or self.options.encoding_format


def parse(body: bytes, most: int) -> Asked:
    """The request in a JSON document, with at most ``most`` inputs.

    Raises:
        TooLarge: it holds more than that can need.
        UserError: not JSON, or not such a request.
    """
    bodies.check_values(body, most)
    document = bodies._parsed(body)
    if not isinstance(document, dict) or "input" not in document:
        raise UserError(
            'input: write it as {"input": ["a text"]} or {"input": [{"image": "data:image/png;base64,..."}]}'
        )
    given = document.pop("input")
    try:
        options = Embed.model_validate(document)
    except ValidationError as error:
        raise UserError(bodies.invalid(error)) from None
    entries = given if isinstance(given, list) else [given]
    if not entries:
        raise UserError("input: at least one")
    if len(entries) > most:
        raise UserError(f"input: at most {most} at once, got {len(entries)}")
    return Asked([_input(entry, options, f"input.{i}") for i, entry in enumerate(entries)], options)


def _input(entry: Any, options: Embed, place: str) -> Input:
    kind, value = "text", entry
    if isinstance(entry, dict):
        if len(entry) != 1 or not set(entry) <= {"image", "text"}:
            raise UserError(f'{place}: an object has one key, "image" or "text"')
        kind, value = next(iter(entry.items()))
    if not isinstance(value, str):
        what = "numbers of tokens are not taken: send the text" if isinstance(value, (int, list)) else "not a text"
        raise UserError(f"{place}: {what}")
    if value.startswith("data:"):
        kind = "image"
    if kind == "image":
        if value[:8].lower().startswith(("http://", "https://")):
            raise UserError(f"{place}: addresses are not fetched: send the picture as data:image/png;base64,...")
        try:
            return Input(Query(modality=options.modality), decode_base64(value))
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    if not value.strip():
        raise UserError(f"{place}: an empty text")
    try:
        return Input(Query(text=value, modality=options.modality), None)
    except ValidationError as error:
        raise UserError(f"{place}.{bodies.invalid(error)}") from None


def model_id(service: Service) -> str:
    """The name of the model that is served, other for other weights."""
    return f"splip-{model_hash(service.gallery.encoder.identity)[:12]}"


def check_model(service: Service, name: str | None) -> str:
    """The model that is asked for, by its full name.

    Raises:
        Refusal: it is not the one that is served.
    """
    own = model_id(service)
    if name not in (None, MODEL, own):
        raise Refusal(404, "model_not_found", f"model: this service has {own}, also called {MODEL}, not {name[:80]!r}")
    return own


def sizes(service: Service) -> list[int]:
    """What ``dimensions`` may be: as the model was trained for, up to the width of the gallery's vectors."""
    encoder = service.gallery.encoder
    return [size for size in encoder.dimensions if size <= encoder.embed_dim]


def described(service: Service) -> dict[str, Any]:
    """The model as ``/v1/models`` lists it."""
    encoder = service.gallery.encoder
    about = {"name": encoder.name, "dimensions": sizes(service), "text": service.text}
    return {"id": model_id(service), "object": "model", "created": service.started, "owned_by": MODEL, **about}


async def answer(service: Service, asked: Asked, admission: Admission, deadline: float) -> dict[str, Any]:
    """All vectors of a request, or the first thing that is wrong with it.

    Raises:
        UserError, Refusal: it cannot be answered; the message names the input.
        TimeoutError: not in time.
    """
    options, own = asked.options, check_model(service, asked.options.model)
    size, allowed = options.dimensions or service.gallery.encoder.embed_dim, sizes(service)
    if size not in allowed:
        held = ", ".join(map(str, allowed))
        raise UserError(f"dimensions: this model's vectors have {held}, got {size}")
    if asked.form in ("binary", "ubinary") and size % 8:
        raise UserError(f"dimensions: bits come in bytes, {size} is no multiple of 8")

    async def one(number: int, entry: Input) -> np.ndarray:
        try:
            return await _vector(service, entry, admission, deadline)
        except Exception as error:
            refusal = problem(error, service.folder)
            detail = f"input.{number}: {refusal.detail}"
            raise Refusal(refusal.status_code, refusal.code, detail, dict(refusal.headers or {})) from None

    tasks = [asyncio.ensure_future(one(number, entry)) for number, entry in enumerate(asked.inputs)]
    try:
        vectors = np.stack(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    made = encoded(compact.first(vectors, size), asked.form)
    data = [{"object": "embedding", "index": number, "embedding": vector} for number, vector in enumerate(made)]
    return {"object": "list", "data": data, "model": own, "usage": {"prompt_tokens": 0, "total_tokens": 0}}


async def _vector(service: Service, entry: Input, admission: Admission, deadline: float) -> np.ndarray:
    """The vector of one input, float32 ``[D]``, by way of the batches."""
    if entry.query.text is not None and not service.text:
        raise UserError("this gallery's model does not understand text")
    stages: dict[str, float] = {}
    image = None
    if entry.picture is not None:
        image = await service.picture_in_time(entry.query, entry.picture, stages, admission.client, deadline)
    search = Search(
        image=image,
        vector=None,
        modality=entry.query.modality,
        text=entry.query.text,
        text_weight=1.0,
        k=0,
        filter=None,
        deadline=deadline,
        stages=stages,
        words=entry.query.modality,
    )
    await admission.answer(search)
    service.observe(stages)
    assert search.found is not None
    return search.found


def encoded(vectors: np.ndarray, form: Form) -> list[Any]:
    """Vectors as they are written in JSON, each a list of numbers, or in base64 the bytes of its float32.

    Args:
        vectors: float32 ``[n, D]``; for bits D is a multiple of 8.
        form: base64 is little-endian; int8, binary and ubinary see :mod:`splip.encoders.compact`.
    """
    if form == "base64":
        return [base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii") for vector in vectors]
    if form != "float":
        vectors = {"int8": compact.int8, "binary": compact.binary, "ubinary": compact.ubinary}[form](vectors)
    return list(vectors.tolist())
