"""What the service's programs send and get: the JSON of its answers and of some requests."""

from pydantic import BaseModel, ConfigDict, Field

from splip.serve.queries import Query

MAX_PATHS = 10_000  # in one request


class Found(BaseModel):
    """A photo that matches."""

    id: int
    score: float = Field(description="Cosine similarity, -1 to 1.")
    label: str | None
    tags: dict[str, str]
    name: str = Field(description="File name.")
    path: str | None = Field(description="Where the file is, if the service tells.")


class Answer(BaseModel):
    """The photos that match best, and what the search took."""

    matches: list[Found]
    partial: bool = Field(description="Some machines that search a part of the gallery did not answer.")
    timing_ms: dict[str, float] = Field(description="decode, prepare, wait, encode, search, lookup, total.")
    batch: int = Field(description="How many searches were made together, this one among them.")


class Problem(BaseModel):
    """What went wrong: a word for programs, a sentence for people."""

    error: str
    message: str


class Queries(BaseModel):
    """Several searches."""

    model_config = ConfigDict(extra="forbid")

    queries: list[Query] = Field(min_length=1)


class Answers(BaseModel):
    """An answer, or a problem, for each query in their order."""

    answers: list[Answer | Problem]


class About(BaseModel):
    """The gallery, its model, and what may be asked of it."""

    version: str
    count: int
    labels: dict[str, int]
    model: str
    engine: str
    precision: str
    embed_dim: int
    image_size: int
    text: bool = Field(description="Whether the model understands text.")
    writes: bool = Field(description="Whether items can be added and removed, with the token.")
    max_k: int
    max_queries: int
    max_body: int
    max_pixels: int


class State(BaseModel):
    """How the service is."""

    status: str


class Add(BaseModel):
    """Pictures to add: files, or folders with all that is in them."""

    model_config = ConfigDict(extra="forbid")

    paths: list[str] = Field(min_length=1, max_length=MAX_PATHS)
    label: str | None = Field(default=None, max_length=200)
    tags: dict[str, str] = Field(default_factory=dict, max_length=100)


class Added(BaseModel):
    """What became of the pictures."""

    new: int
    changed: int = Field(description="Embedded again, or with another label or tag.")
    unchanged: int
    unreadable: int
    count: int = Field(description="Pictures in the gallery now.")
