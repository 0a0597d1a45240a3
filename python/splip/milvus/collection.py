"""A collection of Milvus: its rows, its facts, and its errors as lines that name it.

A row is an item of the gallery: its id, unit-length vector, ``uri``, ``label`` ("" for none), ``tags``, size, time and hash of
the file, and a ``stamp`` of all these. The index is FLAT with inner products, so that answers are exact. Deleted rows come
back for some seconds at the consistency level that Milvus calls Bounded; ours is Strong unless the address says otherwise.
"""

import contextlib
import json
import logging
import logging.config
import os
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from splip.errors import Unavailable, UserError
from splip.gallery import catalog
from splip.gallery.catalog import Filter, Item
from splip.milvus.address import TOKEN, Address, to_uri

TIMEOUT = 60.0  # seconds for one call, all its tries together
LIMIT = 16_384  # rows that Milvus returns at most
LABELS = 1_000  # of which the collection's properties tell the counts
FORMAT = "1"
PROPERTY = "splip."
FACTS = ("id", "uri", "label", "tags", "size", "mtime_ns", "hash")


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
    filter.need_no_photographs("a Milvus collection")
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


@contextlib.contextmanager
def _own_logging_only() -> Iterator[None]:
    """While pymilvus is imported: it sets up its loggers by ``dictConfig``, which closes the handlers of everybody else."""
    set_up = logging.config.dictConfig

    def others(config: Any) -> None:
        if "pymilvus" not in config.get("loggers", {}):
            set_up(config)

    logging.config.dictConfig = others
    try:
        yield
    finally:
        logging.config.dictConfig = set_up


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

            with _own_logging_only():
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

    def stamps(self, after: int, upto: int | None) -> tuple[dict[int, int], bool]:
        """Ids above ``after`` and up to ``upto``, with their stamps, as of now, whatever the address says.

        Returns:
            At most ``LIMIT`` of them, and whether these may not be all.
        """
        condition = f"id > {after}" + ("" if upto is None else f" and id <= {upto}")
        with self._errors("cannot be read"):
            found = self._query(condition, ["id", "stamp"], "Strong", limit=LIMIT)
        return {row["id"]: row["stamp"] for row in found}, len(found) >= LIMIT

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
                output_fields=list(FACTS),
                search_params={"metric_type": "IP"},
                consistency_level=self.address.consistency,
                timeout=TIMEOUT,
            )
        ranked = [[(float(hit["distance"]), {"id": hit["id"], **hit["entity"]}) for hit in hits] for hits in found]
        return [sorted(hits, key=lambda hit: (-hit[0], hit[1]["id"])) for hits in ranked]
