"""``Connection``: uvicorn's HTTP/1.1 protocol with a deadline for the head of a request, a limit for connections
without one, and stricter rules.
"""

import asyncio
import json
import re
from typing import Any, cast
from weakref import WeakKeyDictionary

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from splip.serve.metrics import log
from splip.serve.middleware import HEADERS

HEAD_SECONDS = 10.0  # for the request line and the headers
LINGER_SECONDS = 2.0  # that a client has to read an answer that came before its request was complete
LINGER_BYTES = 64_000_000  # of such a request that are read and dropped
MAX_SILENT = 512  # connections without a request
BARE = re.compile(rb"(?<!\r)\n")
LENGTH = re.compile(rb"[0-9]{1,18}")


def wrong_head(data: bytes) -> str | None:
    """What is wrong with a request's head, of what h11 lets pass; ``data`` begins with it and may end within it.

    A proxy in front may see another end of such a request than h11 does, and take a part of its body for the
    next one.
    """
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[: end + 2]
    if BARE.search(head):
        return "lines end with CR LF"
    if end < 0:
        return None
    lines = [line.partition(b":") for line in head.split(b"\r\n")[1:-1]]
    if any(name[:1] in (b" ", b"\t") for name, _, _ in lines):
        return "a header goes on in the next line"
    lengths = [value.strip() for name, _, value in lines if name.lower() == b"content-length"]
    if len(lengths) > 1 or not all(LENGTH.fullmatch(length) for length in lengths):
        return "Content-Length is one number"
    if lengths and any(name.lower() == b"transfer-encoding" for name, _, _ in lines):
        return "Content-Length and Transfer-Encoding exclude each other"
    return None


class Transport:
    """A connection's transport, which closes so that the client can still read its answer.

    Closing a socket with unread data resets it, and the answer is lost on its way. So what still comes is read
    and dropped for a moment.
    """

    def __init__(self, transport: asyncio.Transport, connection: "Connection") -> None:
        self._transport, self._connection = transport, connection
        self.lingering: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self.lingering is not None or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        if self._connection.is_sending() and self._transport.can_write_eof():
            self._transport.write_eof()
            self._transport.resume_reading()
            self.lingering = self._connection.loop.call_later(LINGER_SECONDS, self._transport.abort)
        else:
            self._transport.close()

    def end(self) -> None:
        """Close at once."""
        if self.lingering is not None:
            self.lingering.cancel()
        self._transport.close()


class Silent:
    """Connections without a request, the longest waiting first, by address."""

    def __init__(self) -> None:
        self._of: dict[str, dict[Connection, None]] = {}
        self._count = 0

    def add(self, connection: "Connection") -> None:
        """One more; if there are too many, one of the address that has most of them is closed."""
        own = self._of.setdefault(connection.address, {})
        self._count += connection not in own
        own[connection] = None
        if self._count > MAX_SILENT:
            most = max(self._of, key=lambda address: len(self._of[address]))
            longest = next(iter(self._of[most]))
            self.discard(longest)
            longest.transport.close()

    def discard(self, connection: "Connection") -> None:
        own = self._of.get(connection.address, {})
        if connection in own:
            del own[connection]
            self._count -= 1
            if not own:
                del self._of[connection.address]


_silent: "WeakKeyDictionary[Any, Silent]" = WeakKeyDictionary()  # by the state that the connections of a server share


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, with what it lacks on a network that is not friendly.

    Closed when the head of a request takes longer than ``HEAD_SECONDS``, or when too many others wait silently;
    stricter with heads; and closed gently while a body is still coming.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _refused = False
    _dropped = 0  # bytes after the last answer

    @property
    def address(self) -> str:
        return self.client[0] if self.client else "?"

    @property
    def _others(self) -> Silent:
        return _silent.setdefault(self.server_state, Silent())

    def is_sending(self) -> bool:
        """Whether the client may be sending what nobody reads any more."""
        return self._refused or self.conn.their_state is h11.SEND_BODY

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, Transport(transport, self)))
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._head_timer is None and not self.transport.is_closing():
            self._wait_for_head()  # part of the next one, or of a body that nobody reads

    def handle_events(self) -> None:
        if self.conn.their_state is h11.IDLE and (reason := wrong_head(self.conn.trailing_data[0])):
            self.send_400_response(reason)
            return
        super().handle_events()

    def send_400_response(self, msg: str) -> None:
        self._refused = True
        self._stop_waiting()
        if self.cycle is not None and not self.cycle.response_complete:
            # What comes is not the body that was announced: for the application the client is gone.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.close()
                return
        body = json.dumps({"error": "invalid", "message": msg}).encode()
        fields = {
            **HEADERS,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        answer = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.transport.write(f"HTTP/1.1 400 Bad Request\r\n{answer}\r\n".encode() + body)
        log.info("request", extra={"fields": {"client": self.address, "status": 400}})
        self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self.cycle.response_complete:
            self._others.add(self)

    def eof_received(self) -> None:
        if isinstance(self.transport, Transport) and self.transport.lingering is not None:
            self.transport.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if isinstance(self.transport, Transport) and self.transport.lingering is not None:
            self.transport.lingering.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self.transport.is_closing():
            cast(Transport, self.transport).end()
        else:
            super().shutdown()

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)
        self._others.add(self)

    def _stop_waiting(self) -> None:
        self._others.discard(self)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
