"""What a search found, as a notebook shows it: small pictures inside the page, so that it stays one when it is sent on."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Protocol

from PIL import Image

from splip import images
from splip.errors import UnreadablePicture, shown

MOST = 24  # matches that are shown
SIDE = 144  # pixels
BYTES = 8_500  # of a picture: 24 of them, as base64, stay under 300 KB
QUALITIES = (80, 60, 40, 20)
CELL = (
    "display:inline-block;width:152px;margin:0 8px 12px 0;vertical-align:top;font:12px/1.4 sans-serif;overflow:hidden"
)
LINE = "white-space:nowrap;overflow:hidden;text-overflow:ellipsis"
GONE = f"width:{SIDE}px;height:96px;line-height:96px;text-align:center;background:#8883"


class Shown(Protocol):
    """What is shown of a match."""

    score: float
    path: Path
    label: str | None


def page(matches: Sequence[Shown], partial: bool = False, cutoff: float | None = None) -> str:
    """HTML of matches, best first; whatever labels and names hold, it is text. Those below the cutoff are pale."""
    doubtful = [cutoff is not None and match.score < cutoff for match in matches]
    cells = [_cell(rank, match, doubtful[rank - 1]) for rank, match in enumerate(matches[:MOST], 1)]
    notes = [f"probably not: {'any of these' if all(doubtful) else 'the pale ones'}"] * any(doubtful)
    notes += [f"and {len(matches) - MOST} more"] * (len(matches) > MOST)
    notes += ["no picture passes the filter"] * (not matches)
    notes += ["some machines did not answer: a part of the gallery was searched"] * partial
    return "<div>" + "".join(cells) + "".join(f"<div>{note}</div>" for note in notes) + "</div>"


def _cell(rank: int, match: Shown, doubtful: bool) -> str:
    label = "" if match.label is None else f" {_text(match.label)}"
    return (
        f'<div style="{CELL}{";opacity:.5" * doubtful}" title="{_text(match.path)}">{_picture(match)}<div style="{LINE}">{rank}. '
        f'<b>{match.score:.3f}</b>{label}</div><div style="{LINE};opacity:.7">{_text(match.path.name)}</div></div>'
    )


def _text(value: object) -> str:
    return escape(shown(value)[:300])


def _picture(match: Shown) -> str:
    try:
        image = images.read(match.path, None, images.least_side(SIDE))
    except UnreadablePicture:
        return f'<div style="{GONE}">not there</div>'
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    for quality in QUALITIES:
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        if out.tell() <= BYTES:
            break
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" width="{image.width}" height="{image.height}" alt="">'
