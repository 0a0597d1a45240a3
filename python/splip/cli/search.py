"""`splip search`."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from splip.cli.index import _filter
from splip.cluster import ray as clusters
from splip.cluster import shards
from splip.errors import UserError, shown
from splip.gallery.config import (
    SearchConfig,
)
from splip.gallery.matches import Match, Matches
from splip.images import grid


def search(config: SearchConfig) -> int:
    """``splip search``."""
    if not config.sketch and not config.photo and not config.text:
        raise UserError("nothing to search for: give --sketch, --photo or --text")
    pictures = [("sketch", path) for path in config.sketch] + [("photo", path) for path in config.photo]
    queries: list[dict[str, str]] = [{kind: str(path)} for kind, path in pictures]
    if queries and config.text:
        words = config.text * len(queries) if len(config.text) == 1 else config.text
        queries = [query | {"text": word} for query, word in zip(queries, words, strict=False)]
    queries = queries or [{"text": word} for word in config.text]
    with clusters.if_asked(config) as cluster, shards.open_asked(config, cluster) as gallery:
        if not len(gallery):
            raise UserError(f"{config.gallery}: the gallery is empty")
        results = gallery.search(
            config.sketch, config.photo, config.text, k=config.k, filter=_filter(config), text_weight=config.text_weight
        )
    if config.json:
        partial = {"partial": True} if _partial(results) else {}
        print(
            json.dumps([q | partial | {"matches": _ranked(m)} for q, m in zip(queries, results, strict=True)], indent=1)
        )
    else:
        for query, matches in zip(queries, results, strict=True):
            print(" + ".join(shown(value) for value in query.values()))
            for rank, match in enumerate(matches, 1):
                label = "" if match.label is None else f"  ({shown(match.label)})"
                print(f"{rank:5d}  {match.score:7.4f}  {shown(match.path)}{label}")
            if not matches:
                print("       no picture passes the filter")
    if _partial(results):
        print("splip: some machines did not answer: a part of the gallery was searched", file=sys.stderr)
    if config.grid is not None:
        _draw(config.grid, queries, results)
    return 0


def _partial(results: list[list[Match]]) -> bool:
    return any(isinstance(matches, Matches) and matches.partial for matches in results)


def _ranked(matches: list[Match]) -> list[dict[str, Any]]:
    return [
        {"rank": rank, "id": m.id, "score": m.score, "path": str(m.path), "label": m.label, "tags": m.tags}
        for rank, m in enumerate(matches, 1)
    ]


def _draw(path: Path, queries: list[dict[str, str]], results: list[list[Match]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for number, (query, matches) in enumerate(zip(queries, results, strict=True)):
            picture = query.get("sketch", query.get("photo"))
            drawn = Path(picture) if picture else _card(Path(folder) / f"{number}.png", query["text"])
            rows.append(
                grid.Row(
                    drawn,
                    [m.path for m in matches],
                    [m.score for m in matches],
                    [None] * len(matches),
                    query.get("text", drawn.stem),
                )
            )
        grid.save(path, rows)


def _card(path: Path, words: str) -> Path:
    """A query of words only, as a picture."""
    image = Image.new("RGB", (grid.CELL, grid.CELL), grid.PAPER)
    pen, font, lines = ImageDraw.Draw(image), ImageFont.load_default(14), [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if pen.textlength(longer, font) < grid.CELL - 12 else [*lines, word]
    pen.multiline_text((6, 6), "\n".join(line for line in lines if line), grid.INK, font)
    image.save(path)
    return path
