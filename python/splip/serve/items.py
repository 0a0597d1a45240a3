"""Addresses that look through the gallery without a query: pages of items, one item, months."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi import Path as InPath
from fastapi import Query as InQuery

from splip.serve import photographs
from splip.serve.middleware import Refusal
from splip.serve.openapi import PROBLEMS
from splip.serve.queries import MAX_LABEL, MAX_LABELS, Whole
from splip.serve.requests import client_of
from splip.serve.service import Service

if TYPE_CHECKING:
    from splip.gallery.filters import Filter
    from splip.gallery.stored import StoredGallery

MOST = 1000  # items of a page

Id = Annotated[Whole, InPath(ge=0, lt=2**63, description="Number of a picture in the gallery.")]
Labels = Annotated[list[str] | None, InQuery(max_length=MAX_LABELS, description="Only photos of these labels.")]
From = Annotated[str | None, InQuery(max_length=MAX_LABEL, description=f"Taken then or later; {photographs.DATES}.")]
To = Annotated[str | None, InQuery(max_length=MAX_LABEL, description=f"Taken then or earlier; {photographs.DATES}.")]
Side = Annotated[Whole | None, InQuery(ge=0, lt=2**31, description="Pixels that the shorter side has at least.")]
Stack = Annotated[bool, InQuery(description="Pictures of the same content are one.")]


def routes(service: Service) -> APIRouter:
    """The addresses of a service."""
    router = APIRouter()

    @router.get("/v1/items", responses=PROBLEMS, tags=["items"])
    async def items(
        request: Request,
        sort: Annotated[
            Literal["newest", "oldest", "name", "added"],
            InQuery(
                description="By when they were taken (undated ones last, by their files' times), by path, or the last added first."
            ),
        ] = "newest",
        limit: Annotated[Whole, InQuery(ge=1, le=MOST, description="Pictures of a page.")] = 100,
        cursor: Annotated[
            str | None, InQuery(max_length=20_000, description="What the page before said is next.")
        ] = None,
        label: Labels = None,
        taken_from: From = None,
        taken_to: To = None,
        min_side: Side = None,
        stack: Stack = True,
    ) -> photographs.Items:
        """A page of the gallery, in an order."""

        def page() -> dict[str, Any]:
            gallery = _listed(service)
            found = gallery.browse(sort, limit, cursor, _filter(service, label, taken_from, taken_to, min_side), stack)
            told = [service.described(item) for item in found.items]
            return {"items": told, "next": found.next, "total": found.total}

        return photographs.Items.model_validate(await service.lists.run(page, client=client_of(request)))

    @router.get("/v1/items/{id}", responses=PROBLEMS, tags=["items"])
    async def item(request: Request, id: Id) -> photographs.Item:
        """What is known of a picture."""

        def one() -> dict[str, Any]:
            found = service.known(service.gallery.item, id)
            copies = getattr(service.gallery, "copies", None)
            if copies is not None:
                found = replace(found, copies=tuple(i for i in copies([found.hash])[found.hash] if i != id))
            return service.described(found)

        return photographs.Item.model_validate(await service.lists.run(one, client=client_of(request)))

    @router.get("/v1/timeline", responses=PROBLEMS, tags=["gallery"])
    async def timeline(
        request: Request,
        label: Labels = None,
        taken_from: From = None,
        taken_to: To = None,
        min_side: Side = None,
        stack: Stack = True,
    ) -> photographs.Timeline:
        """How many pictures were taken in which month."""

        def months() -> dict[str, Any]:
            found = _listed(service).timeline(_filter(service, label, taken_from, taken_to, min_side), stack)
            return {"months": [{"month": m, "count": n} for m, n in found.months], "undated": found.undated}

        return photographs.Timeline.model_validate(await service.lists.run(months, client=client_of(request)))

    return router


def _listed(service: Service) -> "StoredGallery":
    """The gallery, if its pictures can be listed.

    Raises:
        Refusal: it is searched somewhere else than where it is kept.
    """
    if not service.ready:
        raise Refusal(503, "starting", "the service is starting", {"Retry-After": "1"})
    if not hasattr(service.gallery, "browse"):
        raise Refusal(404, "unsupported", "the pictures of this gallery are listed where its folder is")
    gallery: StoredGallery = service.gallery  # type: ignore[assignment]
    return gallery


def _filter(
    service: Service, labels: list[str] | None, taken_from: str | None, taken_to: str | None, min_side: int | None
) -> "Filter | None":
    from splip.gallery import labels as names
    from splip.gallery.filters import Filter

    known = names.meant(service.gallery, labels) if labels else ()
    return Filter(labels=known, taken_from=taken_from, taken_to=taken_to, min_side=min_side) or None
