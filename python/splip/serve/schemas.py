"""What the service's programs send and get: the JSON of its answers and of some requests."""

from pydantic import BaseModel, ConfigDict, Field

from splip.serve.queries import Query

MAX_PATHS = 10_000  # in one request


class Found(BaseModel):
    """A photo that matches."""

    id: int = Field(description="Number in the gallery, e.g. for /v1/images/{id}.")
    score: float = Field(description="Cosine similarity, -1 to 1.")
    label: str | None = Field(description="What it shows, if it was labelled.")
    tags: dict[str, str] = Field(description="Names and values it was tagged with.")
    name: str = Field(description="File name.")
    path: str | None = Field(description="Where the file is, if the service tells.")


class Answer(BaseModel):
    """The photos that match best, and what the search took."""

    matches: list[Found] = Field(description="Best first; fewer than k if no more pass the filter.")
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


class About(BaseModel):
    """The gallery, its model, and what may be asked of it."""

    version: str = Field(description="Of splip.")
    count: int = Field(description="Pictures in the gallery.")
    labels: dict[str, int] = Field(description="Pictures of each label.")
    model: str = Field(description="The model's name, for people.")
    engine: str = Field(description="What encodes: torch, onnxruntime, openvino, ...")
    precision: str = Field(description="What it computes in: fp32, bf16, ...")
    embed_dim: int = Field(description="D, the width of the vectors.")
    image_size: int = Field(description="S, the side of the square that the model sees, in pixels.")
    text: bool = Field(description="Whether the model understands text.")
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
