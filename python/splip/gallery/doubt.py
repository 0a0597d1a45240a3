"""When nothing in a gallery fits: the score that a match must reach to be probably what was asked for.

Scores of two models, of two kinds of query or of two galleries mean different things. What they share is their bulk: a
gallery shows many things, so that of all its photos nearly none fits any one query. The bulk of the scores between queries of a
kind and the gallery's photos is therefore that of what does not fit, whatever the gallery holds. Its middle and its upper
tenth are kept in the gallery; from them follows what the best of N photos scores that do not fit, were scores normally
distributed: the middle and ``sqrt(2 ln N)`` deviations. The cutoff is a share of that way, the same for all models and
galleries, chosen once on queries whose answer is known (``docs/how-to/answers.md``, ``benchmarks/bench_doubt.py``).

The queries of a kind are here: drawings and words of everyday things that come with the package, and of photos the
gallery's own. Nothing is computed when somebody searches.
"""

import contextlib
import json
import math
import sqlite3
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from splip.errors import UserError
from splip.gallery import catalog

if TYPE_CHECKING:
    from splip.encoders.encoder import Encoder
    from splip.gallery.protocol import Writable

FACT = "doubt"  # its name in the gallery's database
LEAST = 48  # photos below which nothing is said of a gallery
ROWS, ASKED = 4096, 256  # photos that are looked at, and of them those that are asked with
GROWN = 1.25  # by which a gallery grows until it is looked at again
UPPER = 0.9  # the quantile that says how wide the bulk is
NORMAL = 1.2816  # deviations between it and the middle
FACTORS = {"sketch": 0.87, "photo": 0.86, "text": 0.80}


class Bulk(NamedTuple):
    """Of the scores that queries of a kind have with the photos of a gallery: the median and the upper tenth."""

    middle: float
    upper: float

    @classmethod
    def of(cls, scores: np.ndarray) -> "Bulk":
        """Of scores of any shape."""
        middle, upper = np.quantile(scores, [0.5, UPPER])
        return cls(float(middle), float(upper))

    def cutoff(self, count: int, factor: float) -> float:
        """The score of a share of the way to the best of ``count`` photos that do not fit."""
        return self.middle + factor * math.sqrt(2 * math.log(count)) * (self.upper - self.middle) / NORMAL


def probes() -> list[tuple[str, Image.Image]]:
    """What is asked of a gallery: the name and a drawing of one thing of each class that the sample's models are trained on."""
    from splip.data import sample

    classes = json.loads((sample.FOLDER / "classes.json").read_text(encoding="utf-8"))
    found: dict[str, Image.Image] = {}
    with Image.open(sample.FOLDER / sample.SHEETS["sketch"]["1"]) as sheet:
        drawings = sheet.convert("RGB")
    for number, thing in enumerate(sample.things()):
        kind, name = thing["class"], classes["classes"][thing["class"]]
        if kind in classes["unseen"] or kind in sample.VALIDATION or name in found:
            continue
        left, top = number % sample.COLUMNS * sample.SIDE, number // sample.COLUMNS * sample.SIDE
        found[name] = drawings.crop((left, top, left + sample.SIDE, top + sample.SIDE))
    return list(found.items())


def encoded(encoder: "Encoder") -> dict[str, np.ndarray]:
    """The probes of each kind that a model can encode, unit vectors float32 ``[n, D]``."""
    asked = probes()
    drawings = np.stack([encoder.prepare(drawing, "sketch") for _, drawing in asked])
    found = {"sketch": encoder.encode(drawings, "sketch")}
    with contextlib.suppress(UserError):  # no text tower, or none here
        found["text"] = encoder.encode_text([name for name, _ in asked])
    return found


def measure(photos: np.ndarray, asked: Mapping[str, np.ndarray]) -> dict[str, Bulk]:
    """The bulk of each kind of query.

    Args:
        photos: unit vectors of a gallery's photos, float32 ``[n, D]``.
        asked: from :func:`encoded`.
    """
    found = {kind: Bulk.of(vectors @ photos.T) for kind, vectors in asked.items()}
    own = np.linspace(0, len(photos) - 1, min(ASKED, len(photos))).astype(np.intp)
    scores = photos[own] @ photos.T
    others = np.ones(scores.shape, dtype=bool)
    others[np.arange(len(own)), own] = False  # a photo is not compared with itself
    found["photo"] = Bulk.of(scores[others])
    return found


def calibrate(gallery: "Writable") -> bool:
    """Measure a gallery that is open for writing and keep what was found, if it is new or has changed much; True: it was.

    Raises:
        UserError: its files are damaged, or it cannot be written.
    """
    with gallery.snapshot(ready=False) as (db, seen):
        state: Any = seen
        before = read(catalog.facts(db))
        if state.live < LEAST or before and not _changed(db, before, state.live):
            return False
        rows = _sample(gallery, state)
        (last,) = db.execute("SELECT max(id) FROM items").fetchone()
    found = measure(rows, encoded(gallery.encoder))
    value = json.dumps({"count": state.live, "last": last, **{kind: list(bulk) for kind, bulk in found.items()}})
    with gallery.catalog.writing() as db:
        db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (FACT, value))
    return True


def _changed(db: sqlite3.Connection, before: "Doubt", live: int) -> bool:
    """Whether a gallery has become another than was measured: grown, or as many of its photos are others."""
    if live >= GROWN * before.photos:
        return True
    (new,) = db.execute("SELECT count(*) FROM items WHERE id > ?", (before.last,)).fetchone()
    return before.last > 0 and new >= (GROWN - 1) * live


def _sample(gallery: "Writable", state: Any) -> np.ndarray:
    """Unit vectors of at most ``ROWS`` of a gallery's photos, spread over all of it."""
    step = max(1, math.ceil(state.live / ROWS))
    found = []
    for segment in state.segments:
        alive = state.alive.get(segment.number)
        places = np.arange(segment.count) if alive is None else np.flatnonzero(alive)
        rows = gallery.files.map_rows(segment.number, 0, segment.count)
        found.append(np.asarray(rows[places[::step]]))
    vectors = np.concatenate(found).astype(np.float32)
    unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return unit


class Doubt(NamedTuple):
    """What a gallery keeps of its bulks.

    Args:
        photos: how many there were when it was measured.
        bulks: by the kind of query.
        last: the largest id that was there; 0: not noted.
    """

    photos: int
    bulks: dict[str, Bulk]
    last: int = 0

    def cutoff(self, kind: str | None, count: int) -> float | None:
        """The score below which a match is probably not what was asked for; None: that cannot be said.

        Args:
            kind: of the query: sketch, photo or text; None: of several parts, or nobody knows.
            count: how many photos were searched.
        """
        bulk = self.bulks.get(kind or "")
        if bulk is None or count < LEAST or not bulk.upper > bulk.middle:
            return None
        return bulk.cutoff(count, FACTORS[str(kind)])


def read(facts: Mapping[str, Any]) -> Doubt | None:
    """What a gallery's facts say; None: nothing, or nothing that is understood."""
    try:
        value = json.loads(facts[FACT])
        bulks = {k: Bulk(*map(float, value[k])) for k in FACTORS if k in value}
        return Doubt(int(value["count"]), bulks, int(value.get("last", 0)))
    except (KeyError, TypeError, ValueError):
        return None
