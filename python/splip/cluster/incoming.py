"""Segments that workers have written and the front has not committed: float rows and a manifest beside them.

A folder ``incoming/`` in the gallery's has one folder for each run. A segment counts from the moment that its manifest
has its name, and neither file changes afterwards. The manifest says which model made the rows, their checksum and its
own, and what was seen of every picture.
"""

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from splip.errors import Skipped, UserError
from splip.gallery import catalog
from splip.gallery.ingest import LOOK_UP, Added, Look, Picture, commit, find_content
from splip.gallery.protocol import Writable
from splip.gallery.segments import Segments, sync_folder
from splip.images.header import Header

FOLDER = "incoming"
VERSION = 1  # of manifests


@dataclass
class Segment:
    """Rows of a worker, and what it saw of each picture."""

    looks: list[Look]
    rows: np.ndarray  # float32 [n, D]; looks with a vector, in their order

    def write(self, files: Segments, number: int, identity: str) -> None:
        """Put it on the disk; it counts from the moment that its manifest has its name."""
        crc = files.append(number, 0, self.rows, 0) if len(self.rows) else 0
        body = {
            "version": VERSION,
            "identity": identity,
            "dim": files.dim,
            "rows": len(self.rows),
            "crc": crc,
            "pictures": [_told(look) for look in self.looks],
        }
        path = manifest_path(files.folder, number)
        with open(path.with_suffix(".new"), "w", encoding="ascii") as file:
            json.dump({"sha256": _digest(body), "segment": body}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path.with_suffix(".new"), path)
        sync_folder(files.folder)

    @classmethod
    def read(cls, files: Segments, number: int, identity: str) -> "Segment":
        """Read it back.

        Raises:
            UserError: damaged, of another model, or of another version.
        """
        path = manifest_path(files.folder, number)
        try:
            with open(path, encoding="ascii") as file:
                said = json.load(file)
            body = said["segment"]
            if _digest(body) != said["sha256"]:
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}: does not match its checksum") from None
        if body["version"] != VERSION:
            raise UserError(f"{path}: format {body['version']}, this version reads {VERSION}")
        if (body["identity"], body["dim"]) != (identity, files.dim):
            raise UserError(f"{path}: of another model ({body['identity'][:12]}) than the gallery ({identity[:12]})")
        rows = np.empty((0, files.dim), np.float32)
        if body["rows"]:
            files.check_size(number, body["rows"])
            rows = files.read_rows(number, 0, body["rows"])
            if zlib.crc32(rows.data.cast("B")) != body["crc"]:
                raise UserError(f"{files.rows_path(number)}: does not match its checksum")
        looks, vectors = [], iter(rows)
        for told in body["pictures"]:
            look = _heard(told)
            if look.error is None and look.hash is not None and told["row"]:
                look.vector = next(vectors)
            looks.append(look)
        return cls(looks, rows)


def commit_segment(gallery: Writable, segment: Segment, done: Added, notify: Callable[[Added], None] | None) -> None:
    """Everything that a worker saw, by what the gallery holds now."""
    moved: set[int] = set()
    for first in range(0, len(segment.looks), LOOK_UP):
        some = segment.looks[first : first + LOOK_UP]
        with gallery.catalog.reading() as db:
            known = {os.fsencode(item.path): item for item in catalog.items(db, "path", [look.path for look in some])}
        for look in some:
            look.known = known.get(look.path)
            if look.error is not None or look.hash is None:
                continue
            if look.stays:
                look.vector = None
            else:
                find_content(gallery, look, moved)
                if look.moved:
                    look.vector = None
    # What has no vector, for it was known, and is gone from the gallery since, is for another run to find.
    looks = [look for look in segment.looks if look.error is not None or look.stays or look.vector is not None]
    commit(gallery, looks, done, notify)


def manifest_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _told(look: Look) -> dict[str, Any]:
    """A look for a manifest; names of files may be any bytes."""
    return {
        "path": os.fsdecode(look.path),
        "label": look.picture.label,
        "tags": dict(look.picture.tags),
        "size": look.size,
        "mtime_ns": look.mtime_ns,
        "hash": look.hash and look.hash.hex(),
        "row": look.vector is not None,
        "error": look.error and look.error.reason,
        "header": look.header and dataclasses.astuple(look.header),
        "looked": look.looked,
    }


def _heard(told: Mapping[str, Any]) -> Look:
    path = told["path"]
    look = Look(Picture(path, told["label"], told["tags"]), os.fsencode(path), None, told["size"], told["mtime_ns"])
    look.hash = bytes.fromhex(told["hash"]) if told["hash"] else None
    look.error = Skipped(path, told["error"]) if told["error"] is not None else None
    look.header = Header(*told["header"]) if told.get("header") else None  # manifests of before have none
    look.looked = told.get("looked", False)
    return look
