"""The tools of ``splip mcp``: a gallery for assistants that take the Model Context Protocol.

The gallery is one of this machine, or a running service is asked (``--url``). Either way a search is the one of
``POST /v1/search``, checked as that is.
"""

import base64
import binascii
import contextlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from splip import __version__, images
from splip.client import Client
from splip.errors import UserError
from splip.gallery import labels, stacks
from splip.gallery.filters import Filter
from splip.gallery.matches import likely
from splip.gallery.parts import between, total
from splip.images.svg import Renderer
from splip.serve import bodies, photographs, queries, thumbnails
from splip.serve.batching import Search
from splip.serve.doubt import judge, told
from splip.serve.photographs import DATES
from splip.serve.queries import Like, Query
from splip.serve.service import GALLERY_PIXELS

if TYPE_CHECKING:
    from mcp.server import MCPServer

    from splip.gallery.catalog import Item
    from splip.gallery.protocol import Searchable

MAX_PIXELS = 40_000_000  # of a picture that is sent in a call
MAX_K, MAX_SHOWN = 100, 12
MAX_TOLD = 200  # labels
MAX_SVG = 10_000_000  # bytes
SHOWN = 256  # longer side of the pictures beside a search's answer
SENT = 1024  # longer side of a file that goes to a service: no model sees more
ABOUT = (
    "Finds pictures of the user's gallery: by a drawing (SVG, strokes or a picture file), by a photo, by words, or by several of "
    "them. Scores are cosine similarities; the best match of a search need not be a good one, so look at the pictures."
)

Picture = Annotated[
    str | None, Field(description="Path of a picture file on this machine, or a picture as base64 or data: URL.")
]
Strokes = Annotated[
    list[list[tuple[float, float]]] | None,
    Field(description="Lines of a drawing, each a list of points [x, y], y downwards."),
]


class Hits(BaseModel):
    """What a search found."""

    matches: list[dict[str, Any]] = Field(
        description="Best first: id, score, label, tags, name, path, when it was taken and what else is known."
    )
    shown: list[int] = Field(description="Ids of those that are shown, in the order of the pictures.")
    cutoff: float | None = Field(
        default=None, description="A match that scores below is probably not what was asked for."
    )
    unknown_words: list[str] = Field(default_factory=list, description="Words that the model was never shown.")


class Facts(BaseModel):
    """What is known of a picture, or of the gallery."""

    facts: dict[str, Any]


class Backend(Protocol):
    """Who answers the tools."""

    def search(self, query: Query, picture: Path | bytes | None) -> dict[str, Any]:
        """``matches``, best first, and what is said of them; ``picture``: a file or its bytes, when the query has one."""

    def item(self, id: int) -> dict[str, Any]:
        """What is known of a picture."""

    def thumbnail(self, id: int, side: int) -> bytes:
        """A JPEG of it."""

    def about(self) -> dict[str, Any]:
        """What is in the gallery."""


class Local:
    """A gallery of this machine."""

    def __init__(self, gallery: "Searchable") -> None:
        self.gallery, self.renderer = gallery, Renderer()

    def search(self, query: Query, picture: Path | bytes | None) -> dict[str, Any]:
        vector = self._vector(query, picture)
        chosen = Filter(
            labels=labels.meant(self.gallery, query.labels) if query.labels else (), tags=query.tags,
            taken_from=query.taken_from, taken_to=query.taken_to, min_side=query.min_side,
        )  # fmt: skip
        found = stacks.search(self.gallery, vector[None], query.k, chosen if chosen else None, query.stack)[0]
        asked = Search(  # as the service has it, which judges it
            image=vector if picture is not None or query.strokes or query.svg else None,
            vector=None if query.id is None else vector,
            modality=query.modality, text=query.text, text_weight=query.text_weight, k=query.k,
            filter=chosen if chosen else None, deadline=0.0,
            more=[(part.text or vector, part.weight) for part in query.like],
        )  # fmt: skip
        judge(asked, self.gallery)
        matches = [
            {"score": round(float(match.score), 6), "likely": likely(match, asked.cutoff)}
            | photographs.described(match, True)
            for match in found
        ]
        return {"matches": matches, **told(asked)}

    def _vector(self, query: Query, picture: Path | bytes | None) -> np.ndarray:
        """The query as a unit vector, float32 ``[D]``."""
        embed, words = self.gallery.embed, [query.text] if query.text is not None else []
        found: np.ndarray | None = None
        if query.id is not None:
            found = self._known(query.id)
            if words:
                found = between(found, embed(texts=words)[0], query.text_weight)
        elif query.sources() or picture is not None:
            sources: list[Any] = [self._picture(query, picture)]
            of = {"sketches": sources} if query.modality == "sketch" else {"photos": sources}
            found = embed(**of, texts=words, text_weight=query.text_weight)[0]
        elif words:
            found = embed(texts=words)[0]
        if not query.like:
            if found is None:
                raise UserError("an empty query: give a drawing, a photo, an id or a text")
            return found
        vectors, weights = ([], []) if found is None else ([found], [1.0])
        for part in query.like:
            vectors.append(self._known(part.id) if part.id is not None else embed(texts=[part.text or ""])[0])
            weights.append(part.weight)
        if max(weights) < 0:
            raise UserError("only things that are not looked for: a query needs something that is")
        return total(weights, np.stack(vectors))

    def _picture(self, query: Query, picture: Path | bytes | None) -> Any:
        """What the gallery prepares: a file, bytes or a PIL picture."""
        if query.strokes is not None:
            return queries.draw_strokes(query)
        if query.svg is not None:
            return self.renderer.png(query.svg.encode(errors="replace"))
        if isinstance(picture, bytes):
            if queries.looks_like_svg(picture):
                return self.renderer.png(picture)
            queries.check_size(picture, MAX_PIXELS)
        return picture

    def _known(self, id: int) -> np.ndarray:
        try:
            vector = self.gallery.vector(id)
        except KeyError:
            raise UserError(f"id: the gallery has no picture {id}") from None
        unit: np.ndarray = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return unit

    def item(self, id: int) -> dict[str, Any]:
        return photographs.described(self._item(photographs.whole, self.gallery, id), True)

    def thumbnail(self, id: int, side: int) -> bytes:
        file = thumbnails.File(self._item(self.gallery.item, id).path)
        return thumbnails.make(file, side, GALLERY_PIXELS * MAX_PIXELS)

    @staticmethod
    def _item(look_up: "Callable[..., Item]", *what: Any) -> "Item":
        try:
            return look_up(*what)
        except KeyError:
            raise UserError(f"id: the gallery has no picture {what[-1]}") from None

    def about(self) -> dict[str, Any]:
        self.gallery.refresh()
        return {"count": len(self.gallery), **_most(self.gallery.labels()), "model": self.gallery.model}


class Remote:
    """A running service."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def search(self, query: Query, picture: Path | bytes | None) -> dict[str, Any]:
        fields = query.model_dump(exclude_defaults=True)
        if isinstance(picture, Path):  # in a format and a size that a service takes
            image = images.read(picture, picture)
            image.thumbnail((SENT, SENT))
            out = io.BytesIO()
            image.save(out, "PNG" if query.modality == "sketch" else "JPEG")
            picture = out.getvalue()
        answer = self.client.search(picture, k=query.k, **{name: fields[name] for name in fields if name != "k"}).answer
        return {name: answer[name] for name in ("matches", "cutoff", "unknown_words") if name in answer}

    def item(self, id: int) -> dict[str, Any]:
        return {name: value for name, value in vars(self.client.item(id)).items() if value is not None}

    def thumbnail(self, id: int, side: int) -> bytes:
        return self.client.thumbnail(id, side)

    def about(self) -> dict[str, Any]:
        about = self.client.gallery()
        told = {name: about[name] for name in ("count", "model", "text") if name in about}
        return told | _most(about.get("labels") or {})


def _most(labels: Mapping[str, int]) -> dict[str, Any]:
    """The most frequent labels, and how many more there are: all of them go into the assistant's context."""
    first = sorted(labels, key=lambda label: (-labels[label], label))[:MAX_TOLD]
    more = {"more_labels": len(labels) - len(first)} if len(labels) > len(first) else {}
    return {"labels": {label: labels[label] for label in first}, **more}


def given_picture(given: str, name: str) -> Path | bytes:
    """A picture of a tool's call: a path, or bytes that came as base64.

    Raises:
        UserError: neither.
    """
    try:
        path = None if given.startswith("data:") else Path(given).expanduser()
        if path is not None and path.is_file():
            with path.open("rb") as file:
                drawn = queries.looks_like_svg(file.read(1024))
            # A drawing goes on as if it had come as base64; pictures are read where they are.
            return path.read_bytes() if drawn and path.stat().st_size <= MAX_SVG else path
    except (OSError, ValueError, RuntimeError):  # too long for a name, or nobody's home folder
        pass
    try:
        data = base64.b64decode(given.partition(",")[2] if given.startswith("data:") else given, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) < 16:  # shorter than the head of any picture; a word may be base64, too
        raise UserError(f"{name}: no such file on this machine, nor a picture as base64; words are text")
    return data


def server(backend: Backend) -> "MCPServer":
    """The tools of a gallery."""
    from mcp.server import MCPServer
    from mcp.server.mcpserver import Image
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp_types import CallToolResult, TextContent, ToolAnnotations

    made: MCPServer = MCPServer("splip", version=__version__, instructions=ABOUT, log_level="WARNING")
    reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)

    def result(told: dict[str, Any], pictures: list[bytes]) -> CallToolResult:
        shown = [Image(data=data, format="jpeg").to_image_content() for data in pictures]
        text = TextContent(type="text", text=json.dumps(told, ensure_ascii=False))
        return CallToolResult(content=[text, *shown], structured_content=told)

    @made.tool(annotations=reads, title="Search pictures")
    def search(
        text: Annotated[str | None, Field(description="What is to be seen, e.g. red car.")] = None,
        sketch: Picture = None,
        photo: Picture = None,
        svg: Annotated[
            str | None, Field(description="A drawing as an SVG document of shapes and paths, dark on white.")
        ] = None,
        strokes: Strokes = None,
        id: Annotated[int | None, Field(description="A picture of the gallery: find more like it.")] = None,
        text_weight: Annotated[float, Field(description="Of the text beside a picture or drawing, 0 to 1.")] = 0.5,
        like: Annotated[
            list[Like], Field(description="What else pictures are to be like; with a weight below 0, or not.")
        ] = [],  # noqa: B006
        labels: Annotated[list[str], Field(description="Only pictures with one of these labels.")] = [],  # noqa: B006
        tags: Annotated[dict[str, str], Field(description="Only pictures with all of these tags.")] = {},  # noqa: B006
        taken_from: Annotated[str | None, Field(description=f"Only pictures taken then or later; {DATES}.")] = None,
        taken_to: Annotated[str | None, Field(description="Only pictures taken then or earlier.")] = None,
        min_side: Annotated[
            int | None, Field(description="Only pictures whose shorter side has so many pixels.")
        ] = None,
        k: Annotated[int, Field(ge=1, le=MAX_K, description="Pictures to find.")] = 10,
        show: Annotated[
            int, Field(ge=0, le=MAX_SHOWN, description="How many of the best to show as small pictures.")
        ] = 4,
    ) -> Annotated[CallToolResult, Hits]:
        """Find pictures by a drawing (sketch, svg or strokes), a photo, a picture of the gallery, words, or words beside one of them."""
        fields = {
            "text": text, "svg": svg, "strokes": strokes, "id": id, "text_weight": text_weight, "like": like, "labels": labels,
            "tags": tags, "taken_from": taken_from, "taken_to": taken_to, "min_side": min_side, "k": k,
        }  # fmt: skip
        try:
            return result(*looked_for(backend, show, sketch, photo, fields))
        except UserError as error:
            raise ToolError(str(error)) from None

    @made.tool(annotations=reads, title="Look at a picture")
    def fetch(
        id: Annotated[int, Field(description="Of a match.")],
        size: Annotated[Literal[128, 256, 512, 1024, 2048], Field(description="Longer side, in pixels.")] = 512,
    ) -> Annotated[CallToolResult, Facts]:
        """A picture of the gallery, and what is known of it."""
        try:
            return result({"facts": backend.item(id)}, [backend.thumbnail(id, size)])
        except UserError as error:
            raise ToolError(str(error)) from None

    @made.tool(annotations=reads, title="What is in the gallery")
    def gallery() -> Annotated[CallToolResult, Facts]:
        """How many pictures there are, the most frequent labels that searches can ask for, and the model."""
        try:
            return result({"facts": backend.about()}, [])
        except UserError as error:
            raise ToolError(str(error)) from None

    return made


def looked_for(
    backend: Backend, show: int, sketch: str | None, photo: str | None, fields: dict[str, Any]
) -> tuple[dict[str, Any], list[bytes]]:
    """What a search finds, and small pictures of the first of it; those whose files are gone are told and not shown.

    Raises:
        UserError: it makes no sense, or cannot be answered.
    """
    picture = given_picture(sketch, "sketch") if sketch else given_picture(photo, "photo") if photo else None
    query = asked(**fields, modality="photo" if photo else "sketch")
    if sum((bool(sketch), bool(photo), *map(bool, query.sources()))) > 1:
        raise UserError("one drawing or picture a search; give more of them as like")
    found = backend.search(query, picture)
    pictures: dict[int, bytes] = {}
    for match in found["matches"]:
        if len(pictures) == show:
            break
        with contextlib.suppress(UserError):
            pictures[match["id"]] = backend.thumbnail(match["id"], SHOWN)
    return {**found, "shown": list(pictures)}, list(pictures.values())


def asked(**fields: Any) -> Query:
    """A search, checked.

    Raises:
        UserError: it makes no sense.
    """
    fields["like"] = [part.model_dump() for part in fields["like"]]
    try:
        return Query.model_validate(fields)
    except ValidationError as error:
        raise UserError(bodies.invalid(error)) from None
