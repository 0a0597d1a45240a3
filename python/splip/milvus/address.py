"""Where a Milvus collection is.

An address is ``milvus://HOST[:PORT]/COLLECTION`` for a server, or ``milvus:photos.db/COLLECTION`` (``milvus:///data/photos.db/...``)
for Milvus Lite in a file of this machine. Behind a ``?`` it takes ``database=NAME``, ``tls=on`` and ``consistency=LEVEL``; a token
(``user:password`` or a key) stands in the environment, ``MILVUS_TOKEN``, where no list of processes shows it.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote_from_bytes, unquote, unquote_to_bytes, urlsplit

from splip.errors import UserError

PORT = 19530
TOKEN = "MILVUS_TOKEN"
LEVELS = ("Strong", "Bounded", "Session", "Eventually")


@dataclass(frozen=True)
class Address:
    """Where a collection is."""

    text: str  # as the user wrote it
    uri: str  # as pymilvus takes it: http(s)://host:port, or a path for Milvus Lite
    collection: str
    database: str = ""
    consistency: str = "Strong"

    def __str__(self) -> str:
        return self.text

    @property
    def is_local(self) -> bool:
        """True for Milvus Lite."""
        return not self.uri.startswith("http")


def is_address(place: str | Path) -> bool:
    """True if this names a collection, not a folder."""
    return str(place).startswith("milvus:")


def parse(text: str) -> Address:
    """The address of a collection.

    Raises:
        UserError: it is none.
    """

    def wrong(reason: str) -> UserError:
        shape = "milvus://HOST:PORT/COLLECTION or milvus:FILE.db/COLLECTION"
        shown = re.sub("//.*@", "//", text)  # no passwords in messages
        return UserError(f"{shown}: {reason}; an address is {shape}")

    parts = urlsplit(text)
    if parts.scheme != "milvus":
        raise wrong("does not start with milvus:")
    if parts.username is not None or parts.password is not None:
        raise wrong(f"command lines are no place for passwords: set {TOKEN} to user:password or a key")
    place, _, collection = parts.path.rpartition("/")
    if not re.fullmatch(r"[A-Za-z_]\w*", collection, re.ASCII) or len(collection) > 255:
        raise wrong(f"'{collection}' is no name of a collection (letters, digits and _)")
    options = {"database": "", "tls": "off", "consistency": "Strong"}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in options:
            raise wrong(f"unknown option {name}, choose {', '.join(options)}")
        options[name] = value
    level = options["consistency"].capitalize()
    if level not in LEVELS:
        raise wrong(f"consistency must be one of {', '.join(LEVELS)}")
    if options["tls"] not in ("on", "off"):
        raise wrong("tls must be on or off")
    if not parts.netloc:
        if not place:
            raise wrong("no host and no file")
        uri = os.path.abspath(unquote(place))
        if not uri.endswith(".db"):
            raise wrong("a file of Milvus Lite ends in .db")
        return Address(text, uri, collection, options["database"], level)
    if place:
        raise wrong(f"'{parts.path.lstrip('/')}' is no name of a collection")
    try:
        host, port = parts.hostname, parts.port or PORT
    except ValueError:
        host, port = None, PORT
    if not host:
        raise wrong("no host, or a port that is no number up to 65535")
    host = f"[{host}]" if ":" in host else host
    scheme = "https" if options["tls"] == "on" else "http"
    return Address(text, f"{scheme}://{host}:{port}", collection, options["database"], level)


def to_uri(path: Path | str) -> str:
    """A path as text without quotes and whose order is that of its bytes, whatever its name holds."""
    return "file://" + quote_from_bytes(os.fsencode(path))


def to_path(uri: str) -> Path:
    """The path that :func:`to_uri` made text of."""
    return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))
