"""Pictures of the gallery as the service tells of them: the JSON of items, pages and months."""

import datetime
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from splip.gallery.filters import text

if TYPE_CHECKING:
    from splip.gallery.catalog import Item as Stored
    from splip.gallery.matches import Match
    from splip.gallery.protocol import Searchable

DATES = "a year, a month or a day: 2019, 2019-07, 2019-07-14"


class Item(BaseModel):
    """A picture of the gallery."""

    id: int = Field(description="Number in the gallery, e.g. for /v1/images/{id}.")
    label: str | None = Field(description="What it shows, if it was labelled.")
    tags: dict[str, str] = Field(description="Names and values it was tagged with.")
    name: str = Field(description="File name.")
    path: str | None = Field(description="Where the file is, if the service tells.")
    taken: str | None = Field(description="When it was taken, by its camera's clock, e.g. 2019-07-14T10:02:03.")
    camera: str | None = Field(description="The camera, e.g. Canon EOS 80D.")
    width: int | None = Field(description="Upright, in pixels.")
    height: int | None = Field(description="Upright, in pixels.")
    bytes: int = Field(description="Size of the file.")
    modified: str = Field(description="When the file was written, e.g. 2019-07-14T08:02:03Z.")
    missing: bool = Field(description="The file was not there when it was last looked for.")
    copies: list[int] = Field(
        description="Other pictures of the same content, which this one stands for; the first 100."
    )
    copies_count: int = Field(description="How many they are.")


class Items(BaseModel):
    """A page of the gallery."""

    items: list[Item] = Field(description="In the order that was asked for.")
    next: str | None = Field(description="The cursor of the next page; null: this is the last.")
    total: int = Field(description="Pictures of all pages.")


class Month(BaseModel):
    """Pictures of a month."""

    month: str = Field(description="E.g. 2019-07.")
    count: int = Field(description="Pictures that were taken in it.")


class Timeline(BaseModel):
    """When pictures were taken."""

    months: list[Month] = Field(description="Those with pictures, newest first.")
    undated: int = Field(description="Pictures that do not say when they were taken.")


def whole(gallery: "Searchable", id: int) -> "Stored":
    """An item and its copies, where the gallery knows them.

    Raises:
        KeyError: no such item.
    """
    found = gallery.item(id)
    copies = getattr(gallery, "copies", None)
    if copies is None:
        return found
    return replace(found, copies=tuple(i for i in copies([found.hash])[found.hash] if i != id))


def described(item: "Stored | Match", show_path: bool, gone: Collection[int] = ()) -> dict[str, Any]:
    """A picture as :class:`Item` has it; ``gone``: ids whose files are known to be missing besides."""
    return {
        "id": item.id,
        "label": item.label,
        "tags": item.tags,
        "name": text(item.path.name),
        "path": text(str(item.path)) if show_path else None,
        "taken": item.taken,
        "camera": item.camera,
        "width": item.width,
        "height": item.height,
        "bytes": item.size,
        "modified": modified(item.mtime_ns),
        "missing": item.missing or item.id in gone,
        "copies": list(item.copies),
        "copies_count": max(item.copies_count, len(item.copies)),
    }


def modified(mtime_ns: int) -> str:
    """A time of a file, whole seconds in UTC; some file systems tell times that no calendar has."""
    try:
        when = datetime.datetime.fromtimestamp(mtime_ns // 10**9, datetime.timezone.utc)
    except (OverflowError, ValueError, OSError):
        when = datetime.datetime.fromtimestamp(0, datetime.timezone.utc)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")
