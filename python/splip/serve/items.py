"""Addresses that look through the gallery without a query: pages of items, one item, months."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi import Path as InPath
from fastapi import Query as InQuery
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, Field

from splip.errors import UserError, short
from splip.gallery import browse
from splip.gallery.filters import Filter
from splip.serve import photographs
from splip.serve.middleware import Refusal
from splip.serve.openapi import PROBLEMS
from splip.serve.queries import MAX_LABEL, MAX_LABELS, Whole
from splip.serve.requests import client_of
from splip.serve.service import Service

if TYPE_CHECKING:
    from splip.gallery.stored import StoredGallery

Id = Annotated[Whole, InPath(ge=0, lt=2**63, description="Number of a picture in the gallery.")]
Labels = Annotated[list[str] | None, InQuery(max_length=MAX_LABELS, description="Only photos of these labels.")]
# What searches in JSON call it; the document has one of the two.
More = Annotated[list[str] | None, InQuery(max_length=MAX_LABELS, include_in_schema=False)]
Empty = BeforeValidator(lambda value: None if value == "" else value)  # a form's field that was left empty
Day = Annotated[str, Field(max_length=MAX_LABEL)]
From = Annotated[Day | None, Empty, InQuery(description=f"Taken then or later; {photographs.DATES}.")]
To = Annotated[Day | None, Empty, InQuery(description=f"Taken then or earlier; {photographs.DATES}.")]
Pixels = Annotated[Whole, Field(ge=0, lt=2**31)]
Side = Annotated[Pixels | None, Empty, InQuery(description="Pixels that the shorter side has at least.")]
Stack = Annotated[bool, InQuery(description="Pictures of the same content are one.")]
FILTERS = ("label", "labels", "taken_from", "taken_to", "min_side", "stack")
SEVERAL = ("label", "labels")  # may come more than once


@dataclass(frozen=True)
class Which:
    """Which pictures, by the parameters that pages and months have in common."""

    labels: list[str]
    taken_from: str | None
    taken_to: str | None
    min_side: int | None
    stack: bool

    def filter(self, service: Service) -> Filter | None:
        """They as the gallery takes them.

        Raises:
            UserError: a date that is none, or a label that no picture has.
        """
        labels = tuple(service.meant(self.labels)) if self.labels else ()
        found = Filter(labels=labels, taken_from=self.taken_from, taken_to=self.taken_to, min_side=self.min_side)
        return found or None


async def _which(  # no plain function, nor a class: FastAPI would call those in a thread
    label: Labels = None,
    labels: More = None,
    taken_from: From = None,
    taken_to: To = None,
    min_side: Side = None,
    stack: Stack = True,
) -> Which:
    return Which([*(label or ()), *(labels or ())], taken_from, taken_to, min_side, stack)


def routes(service: Service) -> APIRouter:
    """The addresses of a service."""
    router = APIRouter()

    @router.get(
        "/v1/items",
        responses=PROBLEMS,
        response_model=photographs.Items,
        tags=["items"],
        dependencies=[_only("sort", "limit", "cursor", *FILTERS)],
    )
    async def items(
        request: Request,
        which: Annotated[Which, Depends(_which)],
        sort: Annotated[
            Literal["newest", "oldest", "name", "added"],
            InQuery(
                description="By when they were taken (undated ones last, by their files' times), by path, or the last added first."
            ),
        ] = "newest",
        limit: Annotated[Whole, InQuery(ge=1, le=browse.MOST, description="Pictures of a page.")] = 100,
        cursor: Annotated[
            str | None, InQuery(max_length=20_000, description="What the page before said is next.")
        ] = None,
    ) -> Response:
        """A page of the gallery, in an order."""

        def page() -> bytes:
            gallery = _listed(service)
            wanted = which.filter(service)
            found = service.guarded(_browsed, gallery, sort, limit, cursor, wanted, which.stack)
            told = [service.described(item) for item in found.items]
            return _json(photographs.Items, {"items": told, "next": found.next, "total": found.total})

        return await _answer(service, request, page)

    @router.get(
        "/v1/items/{id}",
        responses=PROBLEMS,
        response_model=photographs.Item,
        tags=["items"],
        dependencies=[_only()],
    )
    async def item(request: Request, id: Id) -> Response:
        """What is known of a picture."""

        def one() -> bytes:
            found = service.known(photographs.whole, service.gallery, id)
            return _json(photographs.Item, service.described(found))

        return await _answer(service, request, one)

    @router.get(
        "/v1/timeline",
        responses=PROBLEMS,
        response_model=photographs.Timeline,
        tags=["gallery"],
        dependencies=[_only(*FILTERS)],
    )
    async def timeline(request: Request, which: Annotated[Which, Depends(_which)]) -> Response:
        """How many pictures were taken in which month."""

        def months() -> bytes:
            gallery = _listed(service)
            wanted = which.filter(service)
            found = service.guarded(gallery.timeline, wanted, which.stack)
            told = {"months": [{"month": m, "count": n} for m, n in found.months], "undated": found.undated}
            return _json(photographs.Timeline, told)

        return await _answer(service, request, months)

    return router


def _only(*names: str) -> Any:
    """A dependency that refuses parameters of the address that mean nothing: a filter must not be overlooked."""

    async def check(request: Request) -> None:
        given = [name for name, _ in request.query_params.multi_items()]
        if unknown := [name for name in dict.fromkeys(given) if name not in names]:
            raise UserError(f"unknown parameter {', '.join(map(short, unknown[:5]))}; {_taken(names)}")
        if twice := [name for name in names if name not in SEVERAL and given.count(name) > 1]:
            raise UserError(f"{twice[0]}: given more than once")

    return Depends(check)


def _taken(names: tuple[str, ...]) -> str:
    known = [name for name in names if name != "labels"]  # the same as label
    return f"there are {', '.join(known)}" if known else "there are none"


def _json(model: type[BaseModel], told: dict[str, Any]) -> bytes:
    """An answer as its bytes: a thousand items would hold up everybody else if they were written in the event loop."""
    return model.model_validate(told).model_dump_json().encode()


def _browsed(gallery: "StoredGallery", *how: Any) -> browse.Browsed:
    """A page; of all that is asked for only the cursor can still be wrong, which is no fault of the gallery."""
    try:
        return gallery.browse(*how)
    except UserError as error:
        if not str(error).startswith("cursor: "):
            raise
        raise Refusal(422, "invalid", str(error)) from None


async def _answer(service: Service, request: Request, work: Callable[[], bytes]) -> Response:
    return Response(await service.lists.run(work, client=client_of(request)), media_type="application/json")


def _listed(service: Service) -> "StoredGallery":
    """The gallery, if its pictures can be listed.

    Raises:
        Refusal: it is searched somewhere else than where it is kept.
    """
    service.need_ready()
    if not hasattr(service.gallery, "browse"):
        raise Refusal(404, "unsupported", "the pictures of this gallery are listed where its folder is")
    gallery: StoredGallery = service.gallery  # type: ignore[assignment]
    return gallery
