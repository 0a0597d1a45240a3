"""What stands between the network and the service: slow and large requests, foreign hosts and pages, tokens.

``Guard`` is ASGI middleware around the whole application.
"""

import contextlib
import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from splip.serve.metrics import Telemetry, log

SEND_SECONDS = 60.0  # that a client may leave an answer unread
COOKIE = "splip_session"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
HOST = re.compile(r"(\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>\w([\w.-]*\w)?))(:(?P<port>[0-9]{1,5}))?", re.ASCII)
PARAM = re.compile(r"[a-z_]+(\.[0-9]+)?(\.[a-z]+)?")
API_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


RETRY = {"Retry-After": "1"}


class Refusal(HTTPException):
    """An answer that is an error: its status, a word for programs and a sentence for people."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message, headers)
        self.code = code

    def response(self, path: str = "") -> JSONResponse:
        """The answer; ``path``: of the request, whose clients may know errors of another shape."""
        content: dict[str, Any] = {"error": self.code, "message": self.detail}
        status = self.status_code
        if is_openai(path):
            content, status = {"error": openai_error(status, self.code, self.detail)}, 400 if status == 422 else status
        return JSONResponse(content, status, self.headers)


def is_openai(path: str) -> bool:
    """Whether an address is one that OpenAI's clients ask."""
    return path == "/v1/embeddings" or path == "/v1/models" or path.startswith("/v1/models/")


def openai_error(status: int, code: str, message: str) -> dict[str, Any]:
    """An error as OpenAI's clients read it: kinds of their own words, and our word as the code."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    place, found, _ = message.partition(": ")
    return {
        "message": message,
        "type": kind,
        "param": place if found and PARAM.fullmatch(place) else None,
        "code": code,
    }


def is_loopback(host: str) -> bool:
    """Whether an address to bind to can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Access:
    """Who may do what: an API token, and the cookie that the page gets in exchange for it.

    Args:
        token: None: there is none, and nothing can be written.
        protect_reads: ask for the token in searches too, not only in writes.
    """

    def __init__(self, token: str | None, protect_reads: bool) -> None:
        self.token, self.protect_reads = token, protect_reads
        # The cookie cannot be turned back into the token, and ends with this process.
        secret = secrets.token_bytes(32)
        self.cookie = hmac.new(secret, (token or "").encode(), hashlib.sha256).hexdigest() if token else None

    def has_token(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.token is not None and _same(given.strip(), self.token)

    def has_cookie(self, headers: Headers) -> bool:
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        return COOKIE in cookies and self.cookie is not None and _same(cookies[COOKIE].value, self.cookie)

    def knows_token(self, headers: Headers) -> bool:
        return self.has_token(headers) or self.has_cookie(headers)

    def check(self, scope: Scope, headers: Headers) -> None:
        """Refuse what this request may not do."""
        path = scope["path"]
        if scope["method"] == "OPTIONS":  # a browser asks first, and shows no token then
            return
        if path.startswith("/v1/items") and scope["method"] != "GET":
            if self.token is None:
                raise Refusal(403, "writes_off", "adding and removing are off: the service has no token")
            # The token itself, not the cookie: another site's page can make a browser send cookies.
            if not self.has_token(headers):
                raise Refusal(401, "token", "this needs the header Authorization: Bearer TOKEN", BEARER)
        elif self.protect_reads and path.startswith(PROTECTED) and not self.knows_token(headers):
            raise Refusal(401, "token", "this needs the header Authorization: Bearer TOKEN", BEARER)


BEARER = {"WWW-Authenticate": "Bearer"}
PROTECTED = ("/v1/", "/metrics", "/openapi.json")


def _same(a: str, b: str) -> bool:
    return hmac.compare_digest(a.encode(), b.encode())


class Guard:
    """ASGI middleware: limits, checks and headers of every request, and its line in the log.

    Args:
        app: the application.
        access: tokens.
        telemetry: sees every request.
        max_body: bytes of a request's body.
        body_seconds: time for a client to send it.
        hosts: names that the Host header may have, without ports; empty: any.
        origins: origins of other sites whose pages may ask.
        behind_proxy: believe what a proxy in front says of clients: their address, and whether they came by TLS.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        telemetry: Telemetry,
        max_body: int,
        body_seconds: float,
        hosts: Sequence[str],
        origins: Sequence[str],
        behind_proxy: bool = False,
    ) -> None:
        self.app, self.access, self.telemetry = app, access, telemetry
        self.max_body, self.body_seconds, self.behind_proxy = max_body, body_seconds, behind_proxy
        self.hosts, self.origins = frozenset(h.lower() for h in hosts), frozenset(origins)
        self.budget = 32 * max_body  # bytes of all bodies that are being received or used at once
        self.share = self.budget // 2  # of one client
        self.used: Counter[str] = Counter()  # bytes by client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method = scope["method"]
        if self.behind_proxy:
            scope = forwarded(scope)
        if method == "HEAD":  # answered like GET; the server leaves the body out
            scope = {**scope, "method": "GET"}
        exchange = Exchange(self, scope, receive, send, method)
        try:
            try:
                self._check(scope, Headers(scope=scope))
            except Refusal as refusal:
                self.telemetry.refused.labels(refusal.code).inc()
                await refusal.response(scope["path"])(scope, receive, exchange.send)
                return
            await self.app(scope, exchange.receive, exchange.send)
        except ClientGone:
            pass
        except Exception:
            log.exception("a request failed")
            if not exchange.answered:
                raise
        finally:
            self.budget += exchange.received
            self.used[exchange.client] -= exchange.received
            if not self.used[exchange.client]:
                del self.used[exchange.client]
            exchange.finish()

    def _check(self, scope: Scope, headers: Headers) -> None:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        host = hosts[0] if hosts else ""
        if len(hosts) > 1 or (host and not _name(host)) or (self.hosts and _name(host) not in self.hosts):
            # A page whose name was made to point at this machine (DNS rebinding) sends its own name.
            raise Refusal(421, "host", "the Host header does not name this service (see --allow-host)")
        if len(origins) > 1 or not all(self._welcome(origin, scope, host) for origin in origins):
            raise Refusal(403, "origin", "pages of other sites may not use this service (see --cors)")
        self.access.check(scope, headers)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.max_body:
            raise self.too_large()

    def _welcome(self, origin: str, scope: Scope, host: str) -> bool:
        if self.origins & {origin, "*"}:
            return True
        scheme, _, rest = origin.partition("://")
        # Which scheme a browser used is known only when a proxy says so.
        schemes = (scope["scheme"],) if self.behind_proxy else ("http", "https")
        return bool(host) and scheme in schemes and rest.lower() == host.lower()

    def too_large(self) -> Refusal:
        close = {"Connection": "close"}
        return Refusal(413, "too_large", f"the body is larger than {self.max_body / 1e6:g} MB", close)


def _name(host: str) -> str:
    """A Host header without its port; empty when it is anything but a name or an address, and perhaps a port."""
    match = HOST.fullmatch(host)
    if match is None or not 0 < int(match["port"] or 80) < 2**16:
        return ""
    return (match["address"] or match["name"]).lower()


def forwarded(scope: Scope) -> Scope:
    """A request as the proxy in front of the service says that it came: the last entries are that proxy's own."""
    headers = Headers(scope=scope)
    changed: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        address = ",".join(headers.getlist("x-forwarded-for")).rpartition(",")[2].strip()
        changed["client"] = (str(ipaddress.ip_address(address)), 0)
    scheme = ",".join(headers.getlist("x-forwarded-proto")).rpartition(",")[2].strip().lower()
    if scheme in ("http", "https"):
        changed["scheme"] = scheme
    return {**scope, **changed}


class ClientGone(Exception):
    """The client left, or does not read its answer."""


class Exchange:
    """One request and its answer, as they pass the guard."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send, method: str) -> None:
        self.guard, self.scope, self.method = guard, scope, method
        self.client = (scope.get("client") or ("?",))[0]
        self._receive, self._send = receive, send
        self.began = time.perf_counter()
        self.deadline = time.monotonic() + guard.body_seconds
        self.received = 0
        headers = Headers(scope=scope)
        self.complete = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        self.status = 499  # nothing was sent: the client left
        self.sent = 0
        self.answered = False
        self.request_id = secrets.token_hex(6)

    async def receive(self) -> Message:
        """The next part of the body.

        Raises:
            Refusal: too large, too slow, or too much from everybody together.
        """
        if self.complete:
            return await self._receive()  # nothing more than that there is no body, or that the client leaves
        try:
            with anyio.fail_after(max(0.0, self.deadline - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise Refusal(408, "slow", "the body did not come in time", {"Connection": "close"}) from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.received += size
            self.guard.budget -= size
            self.guard.used[self.client] += size
            self.complete = not message.get("more_body", False)
            if self.received > self.guard.max_body:
                raise self.guard.too_large()
            if self.guard.budget < 0 or self.guard.used[self.client] > self.guard.share:
                headers = {"Retry-After": "1", "Connection": "close"}
                raise Refusal(429, "busy", "too many uploads at once; try again in a moment", headers)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Content-Security-Policy", API_POLICY)
            headers.setdefault("Cache-Control", "no-store")
            headers["Cross-Origin-Resource-Policy"] = "cross-origin" if self.guard.origins else "same-origin"
            headers["X-Request-ID"] = self.request_id
            if not self.complete:
                headers["Connection"] = "close"  # the rest of the body is not wanted
        elif message["type"] == "http.response.body":
            self.sent += len(message.get("body", b""))
        try:
            with anyio.fail_after(SEND_SECONDS):
                await self._send(message)
        except TimeoutError:
            raise ClientGone from None
        self.answered = message["type"] == "http.response.body" and not message.get("more_body", False)

    def finish(self) -> None:
        seconds = time.perf_counter() - self.began
        route = getattr(self.scope.get("route"), "path", "other")
        # Clients can make up methods; each would become a series of its own.
        method = self.method if self.method in METHODS else "other"
        self.guard.telemetry.request(route, method, self.status, seconds)
        fields: dict[str, Any] = {
            "id": self.request_id,
            "client": self.client,
            "method": method,
            "route": route,
            "status": self.status,
            "ms": round(1000 * seconds, 1),
            "received": self.received,
            "sent": self.sent,
        }
        log.info("request", extra={"fields": fields})
