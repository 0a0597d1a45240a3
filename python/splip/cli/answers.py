"""What `splip search` says of its answers: what is probably not in the gallery, words never seen, and why a hit is one."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from splip import images
from splip.errors import UnreadablePicture, UserError, shown
from splip.gallery.matches import Match, Matches, likely
from splip.gallery.parts import Part
from splip.images import grid

if TYPE_CHECKING:
    from splip.encoders.explanation import Box
    from splip.gallery.protocol import Searchable

SIDE = 2 * grid.CELL  # pixels of what heat is drawn on
COLD, HOT = np.array([255, 205, 0]), np.array([205, 0, 30])  # little and much
COVER = 0.7  # how much of the picture the strongest heat covers


class Said(NamedTuple):
    """What is said of a query's answer.

    Args:
        cutoff: the score below which a match is probably not what was asked for; None: that cannot be said.
        unknown_words: of the query, that the model was never shown.
        lines: the same for people.
    """

    cutoff: float | None
    unknown_words: list[str]
    lines: list[str]

    def json(self) -> dict[str, Any]:
        return {"cutoff": self.cutoff, "unknown_words": self.unknown_words}

    def mark(self, match: Match) -> str:
        """What stands before a match."""
        return "?" if likely(match, self.cutoff) is False else " "


def said(query: Mapping[str, Any], matches: list[Match], gallery: "Searchable") -> Said:
    """What is to be said of the answer to a query of ``splip search``."""
    texts = [str(p["text"]) for p in query.get("parts", [query]) if "text" in p]
    encoder = gallery.encoder if texts else None
    unknown = [] if encoder is None else encoder.unknown_words(texts)
    lines = []
    if encoder is not None and unknown and encoder.vocabulary is not None:
        words = ", ".join(f"'{shown(word)}'" for word in unknown)
        what = "word" if len(unknown) == 1 else "words"
        lines.append(f"this model has never been shown the {what} {words}; it knows {encoder.vocabulary.nouns:,} nouns")
    cutoff = matches.cutoff if isinstance(matches, Matches) else None
    doubtful = sum(likely(match, cutoff) is False for match in matches)
    if doubtful:
        which = "any of these" if doubtful == len(matches) else "those with a ?"
        lines.append(f"probably not: {which}; what fits scores {cutoff:.4f} or more in this gallery")
    return Said(cutoff, unknown, lines)


# ---- why ----


def explain(
    gallery: "Searchable", query: Mapping[str, Any], row: grid.Row, folder: Path, text_weight: float
) -> grid.Row:
    """A row of the grid with heat over its pictures: where in each photo the score comes from, and where in the query.

    Args:
        gallery: that found them.
        query: of ``splip search``.
        row: of it.
        folder: for pictures that are drawn on.
        text_weight: of the words beside a picture.

    Raises:
        UserError: the gallery's model cannot tell.
    """
    encoder = gallery.encoder
    parts = query.get("parts")
    picture = next(
        ((kind, p[kind]) for p in parts or [query] for kind in ("sketch", "photo") if kind in p and p.get("weight", 1) > 0),
        None,
    )  # fmt: skip
    if parts:
        kinds = [next(kind for kind in ("sketch", "photo", "text") if kind in p) for p in parts]
        vector = gallery.compose([Part(kind, p[kind], p["weight"]) for kind, p in zip(kinds, parts, strict=True)])[0]  # type: ignore[arg-type]
    else:
        of = {kind: [str(query[kind])] if kind in query else [] for kind in ("sketch", "photo", "text")}
        vector = gallery.embed(of["sketch"], of["photo"], of["text"], text_weight)[0]
    asked = None if picture is None else gallery.prepare(picture[1], picture[0])
    sketch, photos = row.sketch, []
    for number, path in enumerate(row.photos):
        try:
            image = images.read(path, None, *gallery.reading("photo"))
        except UnreadablePicture:  # the grid says so
            photos.append(path)
            continue
        pixels = encoder.prepare(image, "photo")
        first = asked is not None and sketch is row.sketch
        why = encoder.explain_query(vector, pixels, asked if first else None, picture[0] if picture else "sketch")
        photos.append(folder / f"{row.sketch.stem[:40]}-{id(row)}-{number}.png")
        cover(image, why.photo.heat(), encoder.box(image)).save(photos[-1])
        if why.query is not None and asked is not None:  # towards the best photo that can be read
            sketch = folder / f"{row.sketch.stem[:40]}-{id(row)}.png"
            cover(Image.fromarray(asked), why.query.heat(), (0, 0, 1, 1)).save(sketch)
    return grid.Row(sketch, photos, row.scores, row.hits, row.label, row.note, row.names)


def cover(image: Image.Image, heat: np.ndarray, box: "Box") -> Image.Image:
    """A picture, small and paler, with heat over it.

    Args:
        image: upright, RGB.
        heat: ``[rows, columns]``, 0 to 1.
        box: what the heat covers, in fractions of the picture.
    """
    scale = SIDE / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    small = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    pale = 0.45 * small + 0.3 * small.mean(axis=2, keepdims=True) + 0.25 * 255
    left, top, right, bottom = box
    rows, columns = heat.shape
    # The part of the heat that lies on the picture, in cells.
    part = (-left, -top, 1 - left, 1 - top)
    spans = (right - left, bottom - top, right - left, bottom - top)
    inside = [edge / span * cells for edge, span, cells in zip(part, spans, (columns, rows) * 2, strict=True)]
    canvas = np.zeros((rows + 2, columns + 2), dtype=np.float32)  # nothing is known outside: none there
    canvas[1:-1, 1:-1] = heat
    corners = [min(max(edge + 1, 0), most) for edge, most in zip(inside, (columns + 2, rows + 2) * 2, strict=True)]
    spread = Image.fromarray(canvas).resize((width, height), Image.Resampling.BICUBIC, tuple(corners))
    strength = np.clip(np.asarray(spread), 0, 1)[..., None]
    colour = COLD + (HOT - COLD) * strength
    alpha = COVER * strength
    return Image.fromarray((pale * (1 - alpha) + colour * alpha).round().clip(0, 255).astype(np.uint8))


def add_legend(path: Path) -> None:
    """Say below a grid what its colours mean.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with Image.open(path) as file:
            drawn = file.convert("RGB")
        canvas = Image.new("RGB", (drawn.width, drawn.height + 34), grid.PAPER)
        canvas.paste(drawn, (0, 0))
        pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
        y, x = drawn.height + 8, grid.GAP
        for text in ("adds nothing", "adds most to the score"):
            pen.text((x, y), text, grid.INK, font)
            x += round(pen.textlength(text, font)) + 8
            if text == "adds nothing":
                ramp = np.linspace(0, 1, 120, dtype=np.float32)[None].repeat(14, axis=0)
                canvas.paste(cover(Image.new("RGB", (120, 14), "white"), ramp, (0, 0, 1, 1)).resize((120, 14)), (x, y))
                x += 128
        pen.text((x + 16, y), "each picture by itself; the query: towards its best", "#656d76", font)
        canvas.save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write picture {path}: {error}") from None
