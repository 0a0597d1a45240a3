"""What the service's programs send and get: the JSON of its answers and of some requests."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from splip.serve.photographs import Item
from splip.serve.queries import Query, Whole

MAX_PATHS = 10_000  # in one request
Grid = list[list[float]]


class Found(Item):
    """A photo that matches."""

    score: float = Field(description="Cosine similarity, -1 to 1.")
    likely: bool | None = Field(
        default=None, description="Whether it is probably what was asked for: not below the cutoff; null: not judged."
    )


class Answer(BaseModel):
    """The photos that match best, and what the search took."""

    matches: list[Found] = Field(description="Best first; fewer than k if no more pass the filter.")
    cutoff: float | None = Field(
        default=None,
        description="A match that scores below is probably not what was asked for; null: this search cannot be judged.",
    )
    unknown_words: list[str] = Field(
        default_factory=list,
        description="Words of the query that the model was never shown, as far as that is known.",
    )
    partial: bool = Field(description="Some machines that search a part of the gallery did not answer.")
    timing_ms: dict[str, float] = Field(description="decode, prepare, wait, encode, search, lookup, total.")
    batch: int = Field(description="How many searches were made together, this one among them.")


class Problem(BaseModel):
    """What went wrong: a word for programs, a sentence for people."""

    error: str = Field(description="One of a few words: invalid, unreadable, blank, busy, timeout, not_found, ...")
    message: str = Field(description="What to do about it.")


class Queries(BaseModel):
    """Several searches."""

    model_config = ConfigDict(extra="forbid")

    queries: list[Query] = Field(min_length=1)


class Answers(BaseModel):
    """An answer, or a problem, for each query in their order."""

    answers: list[Answer | Problem]


class Explain(Query):
    """A search, and one of the photos that it found."""

    photo: Whole = Field(ge=0, lt=2**63, description="The photo, by its number in the gallery.")


class Why(BaseModel):
    """Which patches of a photo, and of the drawing, a score comes from."""

    photo: int = Field(description="Number in the gallery.")
    score: float = Field(description="Cosine similarity of the query and the photo as it is now.")
    grid: tuple[int, int] = Field(description="Rows and columns of the photo's patches.")
    heat: Grid = Field(
        description="How much each patch speaks for the match: 1 for the one that does most, 0 for none."
    )
    strongest: float = Field(description="What the patch of heat 1 adds to the score.")
    box: tuple[float, float, float, float] = Field(
        description="What the patches cover: left, top, right, bottom in fractions of the upright photo; outside 0 to 1 where "
        "the model sees it padded."
    )
    query_grid: tuple[int, int] | None = Field(description="The same of the drawing or picture asked with; null: none.")
    query_heat: Grid | None = Field(description="Of the square that the model sees: a drawing is cropped to its lines.")
    by: str = Field(
        description="How it was found out: patches (the model's vector is a sum over them), or removal (patches put back "
        "into an empty picture one after the other). Either way shares add up to the score."
    )
    timing_ms: dict[str, float] = Field(description="decode, prepare, wait, encode, explain, total.")


class About(BaseModel):
    """The gallery, its model, and what may be asked of it."""

    version: str = Field(description="Of splip.")
    count: int = Field(description="Pictures in the gallery.")
    labels: dict[str, int] = Field(description="Pictures of each label.")
    model: str = Field(description="The model's name, for people.")
    engine: str = Field(description="What encodes: torch, onnxruntime, openvino, ...")
    precision: str = Field(description="What it computes in: fp32, bf16, ...")
    embed_dim: int = Field(description="D, the width of the vectors.")
    dimensions: list[int] = Field(description="Widths that /v1/embeddings can give, D the last.")
    image_size: int = Field(description="S, the side of the square that the model sees, in pixels.")
    text: bool = Field(description="Whether the model understands text.")
    explains: bool = Field(description="Whether /v1/explain can say why a photo matches.")
    writes: bool = Field(description="Whether items can be added and removed, with the token.")
    max_k: int = Field(description="Photos that a search may ask for.")
    max_queries: int = Field(description="Searches in one request to /v1/search/batch.")
    max_body: int = Field(description="Bytes of a request's body.")
    max_pixels: int = Field(description="Pixels of an uploaded picture.")


class State(BaseModel):
    """How the service is."""

    status: str = Field(description="ok or ready.")


class Add(BaseModel):
    """Pictures to add: files, or folders with all that is in them."""

    model_config = ConfigDict(extra="forbid")

    paths: list[str] = Field(
        min_length=1,
        max_length=MAX_PATHS,
        description="Files and folders on the service's machine, below --allow-root.",
    )
    label: str | None = Field(default=None, max_length=200, description="What all of them show.")
    tags: dict[str, str] = Field(
        default_factory=dict, max_length=100, description="Names and values that all of them get."
    )


class Added(BaseModel):
    """What became of the pictures."""

    new: int = Field(description="Embedded for the first time.")
    changed: int = Field(description="Embedded again, or with another label or tag.")
    unchanged: int = Field(description="There already.")
    unreadable: int = Field(description="Files that are no pictures that can be read.")
    count: int = Field(description="Pictures in the gallery now.")


# ---- vectors, in the shapes of OpenAI's API ----

Form = Literal["float", "base64", "int8", "binary", "ubinary"]
FORMS = "float; base64 of little-endian float32; int8; binary or ubinary: signs, eight in an int8 or uint8."


class Embed(BaseModel):
    """How vectors are wanted; ``input`` is what of: a text, a picture as a data: URL, or a list of such."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(default=None, description="splip, or the id that /v1/models tells.")
    encoding_format: Form = Field(default="float", description=FORMS)
    embedding_type: Form | None = Field(default=None, description="The same under another name, which wins.")
    dimensions: Whole | None = Field(
        default=None, ge=1, description="One of the model's sizes; default: the gallery's."
    )
    modality: Literal["sketch", "photo"] = Field(
        default="photo", description="What the pictures are; texts are prompted as such."
    )
    user: str | None = Field(default=None, description="Taken, and not looked at.")


class Embedded(BaseModel):
    """The vector of one input."""

    object: Literal["embedding"]
    index: int = Field(description="Of the input.")
    embedding: list[float] | list[int] | str = Field(description="Unit length, unless it is of bits or int8.")


class Usage(BaseModel):
    """What OpenAI's clients expect; nothing is counted."""

    prompt_tokens: int = Field(description="Always 0.")
    total_tokens: int = Field(description="Always 0.")


class Embeddings(BaseModel):
    """Vectors in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedded]
    model: str = Field(description="The id of the model that made them: vectors of others cannot be compared.")
    usage: Usage


class Model(BaseModel):
    """The model that is served."""

    id: str = Field(description="Other for other weights.")
    object: Literal["model"]
    created: int = Field(description="When the service started, in seconds since 1970.")
    owned_by: str
    name: str = Field(description="For people.")
    dimensions: list[int] = Field(description="What dimensions may be in /v1/embeddings.")
    text: bool = Field(description="Whether it understands text.")


class Models(BaseModel):
    """A list of one."""

    object: Literal["list"]
    data: list[Model]


class Failure(BaseModel):
    """What went wrong, as OpenAI says it."""

    message: str = Field(description="What to do about it.")
    type: str = Field(description="invalid_request_error, authentication_error, rate_limit_error or server_error.")
    param: str | None = Field(description="The part of the request that is wrong, if it is one.")
    code: str = Field(description="The word of a Problem: invalid, unreadable, busy, model_not_found, ...")


class Failed(BaseModel):
    """What went wrong in a request for vectors."""

    error: Failure
