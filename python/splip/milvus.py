"""A gallery in a Milvus collection: ``splip index push`` fills it, and it is searched as a gallery of a folder is.

An address is ``milvus://HOST[:PORT]/COLLECTION`` for a server, or ``milvus:photos.db/COLLECTION`` (``milvus:///data/photos.db/...``)
for Milvus Lite in a file of this machine. Behind a ``?`` it takes ``database=NAME``, ``tls=on`` and ``consistency=LEVEL``; a token
(``user:password`` or a key) stands in the environment, ``MILVUS_TOKEN``, where no list of processes shows it.

A row is an item of the gallery: its id, unit-length vector, ``uri``, ``label`` ("" for none), ``tags``, size, time and hash of
the file, and a ``stamp`` of all these. The index is FLAT with inner products, so that answers are exact. Deleted rows come
back for some seconds at the consistency level that Milvus calls Bounded; ours is Strong unless the address says otherwise.
"""

import contextlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote_from_bytes, unquote, unquote_to_bytes, urlsplit

import numpy as np

from splip import catalog
from splip.catalog import Filter, Item
from splip.errors import Unavailable, UserError
from splip.gallery import Gallery, Match

if TYPE_CHECKING:
    from splip.engines import Encoder

PORT = 19530
TOKEN = "MILVUS_TOKEN"
LEVELS = ("Strong", "Bounded", "Session", "Eventually")
TIMEOUT = 60.0  # seconds for one call, all its tries together
LIMIT = 16_384  # rows that Milvus returns at most
COMPARED = 8_192  # items compared at a time: half of LIMIT, so that every round gets past the rows that must go
ROWS = 2_048  # rows in one message, which may have 64 MB
QUERIES = 64  # in one message
LABELS = 1_000  # of which the collection's properties tell the counts
FORMAT = "1"
PROPERTY = "splip."
FACTS = ("id", "uri", "label", "tags", "size", "mtime_ns", "hash")


# ---- addresses ----


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


# ---- rows and conditions ----


def to_uri(path: Path | str) -> str:
    """A path as text without quotes and whose order is that of its bytes, whatever its name holds."""
    return "file://" + quote_from_bytes(os.fsencode(path))


def to_path(uri: str) -> Path:
    return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))


def facts_of(item: Item) -> dict[str, Any]:
    """A row without its vector."""
    row = {
        "id": item.id,
        "uri": to_uri(item.path),
        "label": item.label or "",
        "tags": dict(sorted(item.tags.items())),
        "size": item.size,
        "mtime_ns": item.mtime_ns,
        "hash": item.hash.hex(),
    }
    digest = blake2b(json.dumps(row, sort_keys=True).encode(), digest_size=8).digest()
    return row | {"stamp": int.from_bytes(digest, "big", signed=True)}


ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def quoted(value: str) -> str:
    """A string of Milvus's expressions."""
    return f'"{catalog.text(value).translate(ESCAPES)}"'


def expression(filter: Filter | None) -> str:
    """A filter as Milvus writes it.

    Raises:
        UserError: the key of a tag that Milvus cannot ask for.
    """
    if not filter:
        return ""
    terms = []
    if filter.labels:
        terms.append(f"label in [{', '.join(map(quoted, filter.labels))}]")
    for key, value in filter.tags.items():
        if not key or not key.isprintable():
            raise UserError(f"Milvus cannot ask for tags with the key {key!r}")
        terms.append(f"tags[{quoted(key)}] == {quoted(value)}")
    if filter.under is not None:
        folder = to_uri(os.path.abspath(filter.under).rstrip("/"))
        terms.append(f'uri > "{folder}/" and uri < "{folder}0"')  # 0 comes after /
    if filter.ids is not None:
        terms.append(f"id in [{', '.join(map(str, filter.ids))}]" if filter.ids else "id < 0")
    return " and ".join(terms)


# ---- the collection ----


class Collection:
    """A collection of Milvus, and its errors as lines that name it.

    Args:
        address: of the collection.
        make: a file of Milvus Lite may be made.

    Raises:
        UserError: pymilvus is not installed, or nobody answers.
    """

    def __init__(self, address: Address, make: bool = False) -> None:
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # it tells of every process that is started beside it
        try:
            import grpc
            import pymilvus

            if address.is_local:
                import milvus_lite  # noqa: F401
        except ModuleNotFoundError as error:
            raise UserError(f'{address}: needs {error.name}: pip install "splip[milvus]"') from None
        for name in ("pymilvus", "milvus_lite"):  # they write tracebacks of errors that we turn into lines
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if address.is_local and not make and not os.path.exists(address.uri):
            raise UserError(f"{address}: no such file: {address.uri}")
        self.address, self.name = address, address.collection
        self._failures: tuple[type[Exception], ...] = (pymilvus.MilvusException, grpc.RpcError)
        self._types = pymilvus.DataType
        # Milvus Lite runs in this process, and takes the client's signs of life for an attack.
        options = {"grpc_options": {"grpc.keepalive_time_ms": 3_600_000}} if address.is_local else {}
        with self._errors("cannot be opened"):
            self._client = pymilvus.MilvusClient(
                address.uri, token=os.environ.get(TOKEN, ""), db_name=address.database, timeout=TIMEOUT, **options
            )

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            said = error.details() if hasattr(error, "details") else getattr(error, "message", error)
            reason = " ".join(str(said).split())
            if reason == "Open local milvus failed":
                reason = "another process has it open, or it is no Milvus Lite database"
            raise Unavailable(f"{self.address}: {what}: {reason}") from None

    def close(self) -> None:
        with contextlib.suppress(*self._failures):
            self._client.close()

    def properties(self) -> dict[str, str] | None:
        """What ``splip index push`` noted of the collection; None: there is no collection.

        Raises:
            UserError: it was made by something else, or by a later version.
        """
        with self._errors("cannot be read"):
            if not self._client.has_collection(self.name, timeout=TIMEOUT):
                return None
            about = self._client.describe_collection(self.name, timeout=TIMEOUT)
        held = {k.removeprefix(PROPERTY): v for k, v in about["properties"].items() if k.startswith(PROPERTY)}
        if "format" not in held:
            raise UserError(f"{self.address}: this collection was not made by `splip index push`")
        if held["format"] != FORMAT:
            raise UserError(f"{self.address}: collection format {held['format']}, this version reads {FORMAT}")
        dims = [field["params"].get("dim") for field in about["fields"] if field["name"] == "vector"]
        if [str(dim) for dim in dims] != [held["dim"]]:
            raise UserError(f"{self.address}: vectors of width {dims}, {held['dim']} were promised")
        return held

    def create(self, facts: dict[str, str]) -> None:
        """A new collection, indexed and loaded."""
        types = self._types
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", types.INT64, is_primary=True)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=int(facts["dim"]))
        schema.add_field("uri", types.VARCHAR, max_length=16_384)
        schema.add_field("label", types.VARCHAR, max_length=65_535)
        schema.add_field("tags", types.JSON)
        schema.add_field("size", types.INT64)
        schema.add_field("mtime_ns", types.INT64)
        schema.add_field("hash", types.VARCHAR, max_length=32)
        schema.add_field("stamp", types.INT64)
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="IP")
        properties = {PROPERTY + key: value for key, value in (facts | {"format": FORMAT}).items()}
        with self._errors("cannot be made"):
            self._client.create_collection(
                self.name,
                schema=schema,
                index_params=index,
                consistency_level=self.address.consistency,
                properties=properties,
                timeout=TIMEOUT,
            )

    def drop(self) -> None:
        with self._errors("cannot be dropped"):
            self._client.drop_collection(self.name, timeout=TIMEOUT)

    def note(self, facts: dict[str, str]) -> None:
        """Change properties."""
        with self._errors("cannot be changed"):
            changed = {PROPERTY + key: value for key, value in facts.items()}
            self._client.alter_collection_properties(self.name, properties=changed, timeout=TIMEOUT)

    def load(self) -> None:
        """Make it ready for searches, if nobody has."""
        with self._errors("cannot be loaded"):
            if self._client.get_load_state(self.name, timeout=TIMEOUT)["state"].name != "Loaded":
                self._client.load_collection(self.name, timeout=TIMEOUT)

    def count(self) -> int:
        with self._errors("cannot be counted"):
            return int(self._query("", ["count(*)"])[0]["count(*)"])

    def rows(self, condition: str, columns: Sequence[str]) -> list[dict[str, Any]]:
        """At most ``LIMIT`` rows, in any order."""
        with self._errors("cannot be read"):
            return list(self._query(condition, list(columns), limit=LIMIT))

    def _query(self, condition: str, columns: list[str], level: str = "", **options: Any) -> Any:
        level = level or self.address.consistency
        return self._client.query(
            self.name, filter=condition, output_fields=columns, consistency_level=level, timeout=TIMEOUT, **options
        )

    def stamps(self, after: int, upto: int | None) -> dict[int, int]:
        """Ids above ``after`` and up to ``upto``, with their stamps; at most ``LIMIT``. As of now, whatever the address says."""
        condition = f"id > {after}" + ("" if upto is None else f" and id <= {upto}")
        with self._errors("cannot be read"):
            found = self._query(condition, ["id", "stamp"], "Strong", limit=LIMIT)
        return {row["id"]: row["stamp"] for row in found}

    def delete(self, ids: Sequence[int]) -> None:
        with self._errors("cannot be changed"):
            self._client.delete(self.name, ids=list(ids), timeout=TIMEOUT)

    def upsert(self, rows: list[dict[str, Any]]) -> None:
        with self._errors("cannot be changed"):
            self._client.upsert(self.name, rows, timeout=TIMEOUT)

    def search(self, vectors: np.ndarray, k: int, condition: str) -> list[list[tuple[float, dict[str, Any]]]]:
        """Inner products and rows of the best of each query, float32 ``[Q, D]``; equal ones by id."""
        with self._errors("cannot be searched"):
            found = self._client.search(
                self.name,
                data=list(vectors),
                anns_field="vector",
                filter=condition,
                limit=k,
                output_fields=["uri", "label", "tags"],
                search_params={"metric_type": "IP"},
                consistency_level=self.address.consistency,
                timeout=TIMEOUT,
            )
        ranked = [[(float(hit["distance"]), {"id": hit["id"], **hit["entity"]}) for hit in hits] for hits in found]
        return [sorted(hits, key=lambda hit: (-hit[0], hit[1]["id"])) for hits in ranked]


# ---- pushing ----


@dataclass
class Pushed:
    """What a push did so far."""

    total: int = 0  # pictures of the gallery
    seen: int = 0  # compared, of those
    new: int = 0
    changed: int = 0
    removed: int = 0  # rows that the gallery does not hold any more
    seconds: float = 0.0
    stopped: bool = False

    @property
    def unchanged(self) -> int:
        return self.seen - self.new - self.changed


def push(
    gallery: Gallery,
    address: Address,
    *,
    replace: bool = False,
    notify: Callable[[Pushed], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Pushed:
    """Make a collection hold what a gallery holds: send what is new or changed, delete what is gone.

    What was sent stays if this is stopped at any moment; the next push compares anew and goes on. What is added to the
    gallery meanwhile is perhaps sent, else by the next push.

    Args:
        gallery: any; it is only read.
        address: of the collection, which is made if it is not there.
        replace: drop a collection of another gallery or model first.
        notify: called after each part.
        stop: asked before each part; True ends the push.

    Raises:
        UserError: the collection holds another gallery, or the server failed.
    """
    own = {
        "identity": gallery.identity,
        "model": gallery.model,
        "created": str(gallery.facts["created"]),
        "dim": str(gallery.dim),
    }
    done, began = Pushed(), time.monotonic()
    with contextlib.closing(Collection(address, make=True)) as collection:
        there = collection.properties()
        if there is not None and any(there.get(key) != value for key, value in own.items()):
            if not replace:
                raise UserError(_another(address, there, own))
            collection.drop()
            there = None
        if there is None:
            collection.create(own)
        collection.load()
        with gallery.catalog.reading() as db:
            done.total = db.execute("SELECT count(*) FROM items").fetchone()[0]
        after: int | None = -1
        while after is not None:
            if stop is not None and stop():
                done.stopped = True
                return done
            after = _push_part(gallery, collection, after, done)
            done.seconds = time.monotonic() - began
            if notify is not None:
                notify(done)
        labels = sorted(gallery.labels().items(), key=lambda pair: (-pair[1], pair[0]))[:LABELS]
        collection.note({"labels": json.dumps(dict(sorted(labels))), "decoding": str(gallery.decoding)})
    return done


def _another(address: Address, there: dict[str, str], own: dict[str, str]) -> str:
    whose = f"{there['model']} ({there['identity'][:12]})"
    if there["identity"] == own["identity"]:
        reason = f"holds another gallery of {whose}, made {there['created']}"
    else:
        reason = f"holds vectors of {whose}, not of {own['model']} ({own['identity'][:12]})"
    return f"{address}: {reason}; push to another collection, or --replace it"


def _push_part(gallery: Gallery, collection: Collection, after: int, done: Pushed) -> int | None:
    """Bring the rows of the next items up to date; returns the last of their ids, None if there are no more."""
    with gallery.catalog.reading() as db:
        ids = [id for (id,) in db.execute("SELECT id FROM items WHERE id > ? ORDER BY id LIMIT ?", (after, COMPARED))]
        wanted = {item.id: facts_of(item) for item in catalog.items(db, "id", ids)}
    last = ids[-1] if len(ids) == COMPARED else None
    while True:
        held = collection.stamps(after, last)
        strays = [id for id in held if id not in wanted]
        if strays:
            collection.delete(strays)
            done.removed += len(strays)
        if len(held) < LIMIT:
            break
    stale = [id for id in ids if held.get(id) != wanted[id]["stamp"]]
    for first in range(0, len(stale), ROWS):
        some = stale[first : first + ROWS]
        vectors = _vectors(gallery, some)
        collection.upsert([wanted[id] | {"vector": vector} for id, vector in vectors.items()])
        done.changed += sum(id in held for id in vectors)
        done.new += sum(id not in held for id in vectors)
    done.seen += len(ids)
    return last


def _vectors(gallery: Gallery, ids: list[int]) -> dict[int, np.ndarray]:
    """Unit-length vectors, float32 ``[D]``, of the items that are still there."""
    while True:
        with gallery.catalog.reading() as db:
            revision = catalog.revision(db)
            items = catalog.items(db, "id", ids)
            try:
                rows = _rows(gallery, items)
                break
            except (FileNotFoundError, UserError):
                failed = revision
        # A compaction may have taken the files away after this transaction began; then there is a newer revision.
        with gallery.catalog.reading() as db:
            if catalog.revision(db) == failed:
                raise UserError(f"{gallery.folder}: its vectors cannot be read; `splip index check` says more")
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return dict(zip([item.id for item in items], rows / np.maximum(length, 1e-12), strict=True))


def _rows(gallery: Gallery, items: list[Item]) -> np.ndarray:
    """Vectors ``[n, D]`` of items as the gallery has them; runs of rows are read at once."""
    rows = np.empty((len(items), gallery.dim), dtype=np.float32)
    order = sorted(range(len(items)), key=lambda i: (items[i].segment, items[i].row))
    start = 0
    for i in range(1, len(order) + 1):
        first, before = items[order[start]], items[order[i - 1]]
        if i < len(order) and (items[order[i]].segment, items[order[i]].row) == (before.segment, before.row + 1):
            continue
        rows[order[start:i]] = gallery.files.read_rows(first.segment, first.row, i - start)
        start = i
    return rows


# ---- searching ----


class MilvusGallery(Gallery):
    """A collection that is searched like a gallery; it is changed by pushing only.

    Example::

        with MilvusGallery("milvus://localhost:19530/photos", model=Path("best.pt")) as gallery:
            for match in gallery.search(sketches=["horse.png"], k=10)[0]:
                print(f"{match.score:.3f}", match.path)

    Args:
        address: of the collection, see the top of this module.
        engine: what encodes queries, see :class:`splip.engines.Encoder`.
        device: of the encoder.
        model: a checkpoint or an export folder of the model that made the gallery.
        encoder: of that model, if it is loaded already.

    Raises:
        UserError: no such collection, not one that ``splip index push`` made, or of another model than the encoder's.
    """

    def __init__(
        self,
        address: str,
        *,
        engine: str = "auto",
        device: str = "auto",
        model: Path | None = None,
        encoder: "Encoder | None" = None,
    ) -> None:
        self.address, self.folder = parse(address), Path(address)
        self._engine, self._device, self._model = engine, device, model
        self._encoder_lock = threading.Lock()
        self._encoder, self._own_encoder = None, encoder is None
        self._counts: tuple[int, dict[str, int]] | None = None
        self._collection = Collection(self.address)
        try:
            self.facts = dict(self._properties())
            self.dim = int(str(self.facts["dim"]))
            if encoder is not None:
                self._encoder = self._same_model(encoder)
            self._collection.load()
            self.refresh()
        except BaseException:
            self.close()
            raise

    def _properties(self) -> dict[str, str]:
        held = self._collection.properties()
        if held is None:
            raise UserError(f"{self.address}: no such collection; `splip index push` makes one")
        return held

    def close(self) -> None:
        """Release the connection, and the encoder unless it was given."""
        self._collection.close()
        if self._own_encoder and self._encoder is not None:
            self._encoder.close()
        self._encoder = None

    def _not_here(self) -> Any:
        raise UserError(f"{self.address}: a collection answers searches only; this needs the gallery that was pushed")

    catalog = files = revision = property(_not_here)  # of a gallery's folder

    def _write(self) -> Any:
        raise UserError(f"{self.address}: change the gallery and push it again")

    def _model_source(self) -> Path:
        if self._model is None:
            raise UserError(f"{self.address}: holds no model: name the one of its pictures, {self.model}, with --model")
        return self._model

    def _same_model(self, encoder: "Encoder") -> "Encoder":
        if encoder.identity != self.identity or encoder.embed_dim != self.dim:
            theirs = f"{encoder.name} ({encoder.identity[:12]})"
            raise UserError(
                f"{self.address} was made with {self.model} ({self.identity[:12]}), not with {theirs}:"
                " vectors of two models cannot be compared"
            )
        return encoder

    def __len__(self) -> int:
        """Rows, as of the last refresh."""
        return self._counts[0] if self._counts else 0

    def labels(self) -> dict[str, int]:
        """Items of each label, of the most frequent ones; as of the last whole push and the last refresh."""
        return dict(self._counts[1]) if self._counts else {}

    def refresh(self) -> bool:
        """Count anew; True if that or the labels changed. Searches need it not."""
        before = self._counts
        self._counts = self._collection.count(), json.loads(self._properties().get("labels", "{}"))
        return self._counts != before

    def item(self, id: int) -> Item:
        """An item, without a place: its vector is in the collection.

        Raises:
            KeyError: no such item (any more).
        """
        row = self._row(id, FACTS)
        label, hash = row["label"] or None, bytes.fromhex(row["hash"])
        return Item(id, to_path(row["uri"]), label, dict(row["tags"]), row["size"], row["mtime_ns"], hash, -1, -1)

    def vector(self, id: int) -> np.ndarray:
        """The vector of an item, float32 ``[D]``.

        Raises:
            KeyError: no such item (any more).
        """
        return np.asarray(self._row(id, ("vector",))["vector"], dtype=np.float32)

    def _row(self, id: int, columns: Sequence[str]) -> dict[str, Any]:
        found = self._collection.rows(f"id == {id}", columns) if -(2**63) <= id < 2**63 else []
        if not found:
            raise KeyError(id)
        return found[0]

    def search_vectors(
        self, vectors: np.ndarray, k: int = 10, filter: Filter | Sequence[Filter | None] | None = None
    ) -> list[list[Match]]:
        """As :meth:`Gallery.search_vectors`; Milvus sums in float32, so the last digit of a score may differ.

        Raises:
            UserError: a shape does not match, a number is not finite, k < 1 or above what Milvus returns.
        """
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise UserError(f"vectors must be [Q, {self.dim}], got {list(queries.shape)}")
        if not np.isfinite(queries).all():
            raise UserError("vectors must be finite")
        if not 1 <= k <= LIMIT:
            raise UserError(f"k must be between 1 and {LIMIT}, got {k}")
        filters = [filter] * len(queries) if filter is None or isinstance(filter, Filter) else list(filter)
        if len(filters) != len(queries):
            raise UserError(f"{len(filters)} filters for {len(queries)} queries: give one, or one for each")
        queries = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
        groups: dict[str, list[int]] = {}
        for number, one in enumerate(filters):
            groups.setdefault(expression(one), []).append(number)
        found: list[list[Match]] = [[] for _ in queries]
        for condition, numbers in groups.items():
            for first in range(0, len(numbers), QUERIES):
                some = numbers[first : first + QUERIES]
                for number, hits in zip(some, self._collection.search(queries[some], k, condition), strict=True):
                    found[number] = [
                        Match(row["id"], score, to_path(row["uri"]), row["label"] or None, dict(row["tags"]))
                        for score, row in hits
                    ]
        return found


def open_gallery(
    place: str | Path, *, engine: str = "auto", device: str = "auto", model: Path | None = None
) -> Gallery:
    """What is to be searched: a collection if ``place`` is the address of one, else the gallery in that folder.

    Raises:
        UserError: see :class:`MilvusGallery` and :meth:`Gallery.open`.
    """
    if is_address(place):
        return MilvusGallery(str(place), engine=engine, device=device, model=model)
    return Gallery.open(place, engine=engine, device=device, model=model)
