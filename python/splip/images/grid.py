"""Retrieval grids: a sketch on the left, its photos ranked to the right, hits framed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from splip import images
from splip.errors import UnreadablePicture, UserError

CELL, GAP, FRAME = 96, 10, 4
HIT, MISS, PLAIN, INK, PAPER = "#1a7f37", "#c9ccd1", "#c9ccd1", "#1f2328", "#ffffff"
SAME = "#54aeff"


@dataclass
class Row:
    """One query and what it found."""

    sketch: Path
    photos: Sequence[Path]
    scores: Sequence[float]
    hits: Sequence[str | None]  # "same": this very thing, "hit": its class, "miss", None: unknown
    label: str = ""
    note: str = ""  # a second line below the sketch
    names: Sequence[str] = ()  # a second line below each photo


def _cell(path: Path) -> Image.Image:
    try:
        return Image.fromarray(images.square(images.read(path), CELL, "pad"))
    except UnreadablePicture:
        cell = Image.new("RGB", (CELL, CELL), "#eeeeee")
        ImageDraw.Draw(cell).text((8, CELL // 2 - 8), "unreadable", INK, ImageFont.load_default(12))
        return cell


def _short(pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, cut to a cell's width."""
    if pen.textlength(text, font) <= CELL:
        return text
    while text and pen.textlength(text + "…", font) > CELL:
        text = text[:-1]
    return text + "…"


def draw(rows: Sequence[Row], title: str = "") -> Image.Image:
    """The grid as a picture."""
    columns = max((len(row.photos) for row in rows), default=0)
    two_lines = any(row.note or row.names for row in rows)
    step_x, step_y = CELL + GAP, CELL + GAP + (46 if two_lines else 30)
    known = any(hit is not None for row in rows for hit in row.hits)
    head = 44 + (24 if known else 0) if title or known else GAP
    width = GAP * 3 + CELL + columns * step_x + GAP
    canvas = Image.new("RGB", (max(width, 480), head + len(rows) * step_y + GAP), PAPER)
    pen = ImageDraw.Draw(canvas)
    large, small = ImageFont.load_default(18), ImageFont.load_default(12)
    if title:
        pen.text((GAP, 12), title, INK, large)
    if known:
        x = GAP
        for colour, text in ((SAME, "this very thing"), (HIT, "its class"), (MISS, "another class")):
            pen.rectangle((x, 43, x + 14, 57), outline=colour, width=FRAME)
            pen.text((x + 20, 43), text, INK, small)
            x += 40 + round(pen.textlength(text, small))
    for r, row in enumerate(rows):
        y = head + r * step_y
        canvas.paste(_cell(row.sketch), (GAP, y))
        pen.rectangle((GAP, y, GAP + CELL - 1, y + CELL - 1), outline=INK, width=1)
        pen.text((GAP, y + CELL + 6), _short(pen, row.label, small), INK, small)
        pen.text((GAP, y + CELL + 22), row.note, INK, small)
        for c, (photo, score, hit) in enumerate(zip(row.photos, row.scores, row.hits, strict=True)):
            x = GAP * 3 + CELL + c * step_x
            canvas.paste(_cell(photo), (x, y))
            colour = {"same": SAME, "hit": HIT, "miss": MISS, None: PLAIN}[hit]
            frame = FRAME if hit in ("same", "hit") else 1
            box = (x - frame, y - frame, x + CELL - 1 + frame, y + CELL - 1 + frame)
            pen.rectangle(box, outline=colour, width=frame)
            pen.text((x, y + CELL + 6), f"{c + 1}   {score:.3f}", INK, small)
            if row.names:
                pen.text((x, y + CELL + 22), _short(pen, row.names[c], small), INK, small)
    return canvas


def check(path: Path) -> None:
    """Raises UserError: no picture can be written there."""
    if path.is_dir():
        raise UserError(f"cannot write picture {path}: it is a folder")
    if path.suffix.lower() not in Image.registered_extensions():
        raise UserError(f"cannot write picture {path}: no picture is called so; call it .png or .jpg")


def save(path: Path, rows: Sequence[Row], title: str = "") -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(rows, title).save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write picture {path}: {error}") from None
