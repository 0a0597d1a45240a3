"""A service that `splip serve` runs, asked from Python: searches, pictures, items. Needs httpx, and neither torch nor numpy.

Example::

    from splip.client import Client

    with Client("http://127.0.0.1:8000") as client:
        for match in client.search("horse.png", text="brown", k=5):
            print(f"{match.score:.3f}", match.name)
            client.save(match.id, f"found/{match.id}-{match.name}")
"""

import base64
import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from splip.errors import UserError, shown

if TYPE_CHECKING:
    import httpx
    from PIL import Image

T = TypeVar("T", bound="Item")
R = TypeVar("R")
Stroke = Sequence[Sequence[float]]
BUSY = (429, 503)  # nothing was done; Retry-After says when to ask again


class ServiceError(UserError):
    """What the service answered in place of what was asked for."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status  # of HTTP
        self.code = code  # the word for programs: invalid, blank, not_found, token, busy, ...


@dataclass(frozen=True)
class Item:
    """A picture of the gallery. What the service does not tell is None."""

    id: int
    name: str  # of its file, without folders
    label: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    path: str | None = None
    taken: str | None = None  # by the camera's clock, 2019-07-14T10:02:03
    camera: str | None = None
    width: int | None = None  # upright, in pixels
    height: int | None = None
    bytes: int | None = None
    modified: str | None = None  # UTC
    missing: bool | None = None
    copies: tuple[int, ...] = ()  # ids of others with the same content

    @classmethod
    def read(cls: type[T], found: Mapping[str, Any]) -> T:
        """From the service's JSON; newer services may tell more than this knows."""
        known = {one.name for one in fields(cls)}
        given = {key: value for key, value in found.items() if key in known}
        told = {"name": _last(str(given["name"])) or str(given["id"]), "copies": tuple(given.get("copies") or ())}
        return cls(**given | told)


@dataclass(frozen=True)
class Match(Item):
    """A picture that a search found."""

    score: float = 0.0  # cosine similarity, -1 to 1
    likely: bool | None = None  # whether it is what was asked for; None: nobody can say


class Matches(list[Match]):
    """What a search found, best first, and ``answer``: all that the service said."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        super().__init__(Match.read(match) for match in answer["matches"])
        self.answer = dict(answer)


class Client:
    """A service.

    Args:
        url: its address.
        token: for what needs one.
        timeout: seconds for an answer.
        patience: seconds that a request waits in all for a service that is busy or starting, as it asks for.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", *, token: str | None = None, timeout: float = 30, patience: float = 30
    ) -> None:
        try:
            import httpx
        except ModuleNotFoundError:
            raise UserError("splip.client needs httpx: pip install 'splip[client]'") from None
        if not url.startswith(("http://", "https://")):
            raise UserError(f"{url}: an address begins with http:// or https://")
        self.url, self.timeout, self.patience = url.rstrip("/"), timeout, patience
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise UserError("the token holds what no token can: it is one word of ASCII characters")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout)
        except httpx.InvalidURL as error:
            raise UserError(f"{shown(url)}: not an address ({error})") from None

    def search(
        self,
        picture: "str | os.PathLike[str] | bytes | Image.Image | None" = None,
        *,
        text: str | None = None,
        strokes: Sequence[Stroke] | None = None,
        id: int | None = None,
        modality: str = "sketch",
        text_weight: float = 0.5,
        like: Iterable[Mapping[str, Any]] = (),
        k: int = 24,
        labels: str | Iterable[str] = (),
        tags: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Matches:
        """The photos that match a drawing or a picture, a text, or both; best first.

        Args:
            picture: a file, its bytes, or a PIL picture.
            text: what is to be seen.
            strokes: in place of a picture, the lines of a drawing: points (x, y), y downwards.
            id: in place of a picture, one of the gallery.
            modality: what the picture is, ``sketch`` or ``photo``.
            text_weight: of the text beside a picture, 0 to 1.
            like: more of what it is like: ``{"text": "snow", "weight": -0.5}`` or with an ``id``.
            k: photos to find.
            labels: only photos with one of them; one label may stand alone.
            tags: only photos with all of them.
            more: other fields of ``POST /v1/search``, such as ``taken_from="2019"`` or ``min_side=1000``.

        Raises:
            UserError: a picture cannot be read, or no service is there; ServiceError: it refused, or is still busy.
        """
        query: dict[str, Any] = {
            "image": None if picture is None else base64.b64encode(_bytes(picture)).decode(),
            "strokes": None if strokes is None else [[list(map(float, point)) for point in line] for line in strokes],
            "text": text, "id": id, "modality": modality, "text_weight": text_weight, "like": list(like), "k": k,
            "labels": _several(labels), "tags": dict(tags or {}), **more,
        }  # fmt: skip
        query = {name: value for name, value in query.items() if value is not None and value != [] and value != {}}
        return self._read(Matches, "POST", "/v1/search", json=query)

    def gallery(self) -> dict[str, Any]:
        """What is in the gallery, which model searches it, and what may be asked."""
        return self._read(dict, "GET", "/v1/gallery")

    def items(
        self,
        *,
        sort: str = "newest",
        limit: int = 100,
        labels: str | Iterable[str] = (),
        taken_from: str | None = None,
        taken_to: str | None = None,
        min_side: int | None = None,
        stack: bool = True,
    ) -> Iterator[Item]:
        """All pictures, page by page.

        Args:
            sort: ``newest`` or ``oldest`` (by when they were taken, undated ones last), ``name`` or ``added``.
            limit: pictures of a page, at most 1000.
            labels: only photos with one of them; one label may stand alone.
            taken_from: only photos taken then or later: ``2019``, ``2019-07`` or ``2019-07-14``.
            taken_to: only photos taken then or earlier.
            min_side: only photos whose shorter side has so many pixels.
            stack: pictures of the same content are one.
        """
        asked: dict[str, Any] = {
            "sort": sort, "limit": limit, "label": _several(labels), "taken_from": taken_from, "taken_to": taken_to,
            "min_side": min_side, "stack": stack, "cursor": None,
        }  # fmt: skip
        while True:
            given = {name: value for name, value in asked.items() if value is not None}
            page, asked["cursor"] = self._read(_page, "GET", "/v1/items", params=given)
            yield from page
            if asked["cursor"] is None:
                return

    def item(self, id: int) -> Item:
        """What is known of a picture."""
        return self._read(Item.read, "GET", f"/v1/items/{int(id)}")

    def image(self, id: int) -> bytes:
        """The file of a picture, as it is."""
        return self._ask("GET", f"/v1/images/{int(id)}").content

    def thumbnail(self, id: int, size: int = 256) -> bytes:
        """A JPEG of a picture whose longer side has at most ``size`` pixels: 128, 256, 512, 1024 or 2048."""
        return self._ask("GET", f"/v1/thumbnails/{int(id)}", params={"size": size}).content

    def save(self, id: int, path: str | os.PathLike[str]) -> Path:
        """Write the file of a picture to ``path``, whose folders are made; returns it."""
        data, out = self.image(id), Path(path)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(data)
        return out

    def add(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        label: str | None = None,
        tags: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> dict[str, int]:
        """Add pictures and folders that are on the service's machine; needs the token. Says what became of them.

        The answer comes when all are embedded.

        Args:
            paths: one or several.
            label: of all of them.
            tags: of all of them.
            timeout: seconds for the answer; None: however long it takes.
        """
        import httpx

        given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
        body = {"paths": [os.fspath(path) for path in given], "label": label, "tags": dict(tags or {})}
        patience = httpx.Timeout(self.timeout, read=timeout)
        return self._read(dict, "POST", "/v1/items", json=body, timeout=patience)

    def remove(self, id: int) -> None:
        """Take a picture out of the gallery; needs the token. Its file stays."""
        self._ask("DELETE", f"/v1/items/{int(id)}")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, read: Callable[[Any], R], method: str, path: str, **how: Any) -> R:
        """What the JSON of an answer says."""
        answer = self._ask(method, path, **how)
        try:
            found = answer.json()
            if not isinstance(found, dict):
                raise TypeError
            return read(found)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            what = answer.headers.get("content-type", "").partition(";")[0] or "no media type"
            raise UserError(
                f"{self.url}{path}: the answer is not that of a splip service ({shown(what[:60])}, {len(answer.content)} bytes)"
            ) from None

    def _ask(self, method: str, path: str, **how: Any) -> "httpx.Response":
        """The answer, once the service has time."""
        import httpx

        end = time.monotonic() + self.patience
        while True:
            try:
                answer = self._http.request(method, path, **how)
            except httpx.TimeoutException:
                raise UserError(f"{self.url}: no answer in time") from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise UserError(f"{self.url}: no service answers there ({error})") from None
            wait = _seconds(answer.headers.get("retry-after"))
            if answer.status_code not in BUSY or time.monotonic() + wait > end:
                return _checked(answer)
            time.sleep(wait)


def _page(found: Mapping[str, Any]) -> tuple[list[Item], str | None]:
    """A page's pictures, and the cursor of the next one."""
    cursor = found["next"]
    if not (cursor is None or isinstance(cursor, str)):
        raise TypeError
    return [Item.read(item) for item in found["items"]], cursor


def _several(labels: str | Iterable[str]) -> list[str]:
    return [labels] if isinstance(labels, str) else list(labels)


def _last(name: str) -> str:
    """The last part of a name that came from elsewhere and may become that of a file here."""
    for separator in {"/", os.sep, os.altsep or os.sep}:
        name = name.rpartition(separator)[2]
    name = name.replace("\0", "")
    return "" if name in (".", "..") else name


def _seconds(given: str | None) -> float:
    """What Retry-After asks for; a date is a matter of proxies, who get a second."""
    with contextlib.suppress(TypeError, ValueError):
        seconds = float(given or 1)
        return min(max(seconds, 0.05), 3600.0) if math.isfinite(seconds) else 1.0
    return 1.0


def _checked(answer: "httpx.Response") -> "httpx.Response":
    if answer.is_success:
        return answer
    problem: Any = None
    with contextlib.suppress(ValueError):
        problem = answer.json()
    if not isinstance(problem, dict) or not isinstance(problem.get("error"), str):  # of a proxy, or of something else
        problem = {"error": "error", "message": f"{answer.request.url}: {answer.status_code} {answer.reason_phrase}"}
    raise ServiceError(answer.status_code, problem["error"], str(problem.get("message")))


def _bytes(picture: Any) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, (str, os.PathLike)):
        try:
            return Path(picture).read_bytes()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"cannot read picture {os.fspath(picture)}: {why} (words are text=...)") from None
    if not hasattr(picture, "save"):
        raise UserError(f"a picture is a file, bytes or a PIL picture, not {type(picture).__name__}")
    import io

    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
