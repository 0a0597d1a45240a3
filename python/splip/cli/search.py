"""`splip search`."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from splip.cli import answers
from splip.cli.index import PHOTOGRAPH, _filter
from splip.cluster import ray as clusters
from splip.cluster import shards
from splip.errors import UserError, shown
from splip.gallery import stacks
from splip.gallery.config import (
    SearchConfig,
)
from splip.gallery.matches import Match, Matches, likely
from splip.gallery.parts import AGAINST, Part, check, weighted
from splip.gallery.protocol import Searchable
from splip.images import grid
from splip.report import Report


def search(config: SearchConfig) -> Report:
    """``splip search``."""
    parts = asked(config)
    if config.explain and config.grid is None:
        raise UserError("--explain draws into the picture of --grid: give --grid FILE as well")
    if not parts:
        raise UserError("nothing to search for: give --sketch, --photo or --text")
    if config.k < 1:
        raise UserError(f"-k must be at least 1, got {config.k}")
    if not 0 <= config.text_weight <= 1:
        raise UserError(f"--text-weight must be between 0 and 1, got {config.text_weight}")
    if config.grid is not None:
        grid.check(config.grid)
    one = config.one or any(part.weight != 1 for part in parts)
    if one:
        check(parts)
        if config.text_weight != SearchConfig.text_weight:
            raise UserError("--text-weight: of a query of several parts each has its own weight, as in --text red:0.3")
        queries = [{"parts": [_told(part) for part in parts]}]
    else:
        queries = _separate(parts)
    with clusters.if_asked(config) as cluster, shards.open_asked(config, cluster) as gallery:
        if not len(gallery):
            raise UserError(f"{config.gallery}: the gallery is empty")
        filter = _filter(config, gallery)
        if one:
            vectors = gallery.compose(parts)
            if config.stack:
                results: list[list[Match]] = list(stacks.search(gallery, vectors, config.k, filter))
            else:
                results = gallery.search_vectors(vectors, config.k, filter)
        else:
            of = {
                kind: [str(part.value) for part in parts if part.kind == kind] for kind in ("sketch", "photo", "text")
            }
            results = gallery.search(
                of["sketch"],
                of["photo"],
                of["text"],
                k=config.k,
                filter=filter,
                text_weight=config.text_weight,
                stack=config.stack,
            )
        said = [answers.said(query, matches, gallery) for query, matches in zip(queries, results, strict=True)]
        if config.explain and config.grid is not None:
            _draw(config.grid, queries, results, gallery, config.text_weight)
    if not config.json:
        for query, about, matches in zip(queries, said, results, strict=True):
            print(_title(query))
            for line in about.lines:
                print(f"       {line}")
            for rank, match in enumerate(matches, 1):
                label = "" if match.label is None else f"  ({shown(match.label)})"
                print(f"{rank:5d}  {match.score:7.4f}{about.mark(match)} {shown(match.path)}{label}{_more(match)}")
            if not matches:
                print("       no picture passes the filter")
    if _partial(results):
        print("splip: some machines did not answer: a part of the gallery was searched", file=sys.stderr)
    if config.grid is not None and not config.explain:
        _draw(config.grid, queries, results)
    partial = {"partial": True} if _partial(results) else {}
    told = zip(queries, said, results, strict=True)
    return Report(
        queries=[query | partial | about.json() | {"matches": _ranked(found)} for query, about, found in told]
    )


def asked(config: SearchConfig) -> list[Part]:
    """What is looked for and what is not, in the order of the options."""
    found = []
    for against in (False, True):
        for kind in ("sketch", "photo", "text"):
            for given in getattr(config, f"not_{kind}" if against else kind):
                value, weight = weighted(given, against, kind == "text")
                if not value.strip():
                    raise UserError(f"--{'not-' if against else ''}{kind} is empty")
                found.append(Part(kind, value, weight))
    return found


def _separate(parts: list[Part]) -> list[dict[str, Any]]:
    """Each picture is a query, with the words that belong to it; without pictures each text is one."""
    words = [str(part.value) for part in parts if part.kind == "text"]
    queries: list[dict[str, Any]] = [{part.kind: part.value} for part in parts if part.kind != "text"]
    if queries and words:
        words = words * len(queries) if len(words) == 1 else words
        return [query | {"text": word} for query, word in zip(queries, words, strict=False)]
    return queries or [{"text": word} for word in words]


def _told(part: Part) -> dict[str, Any]:
    return {part.kind: str(part.value), "weight": part.weight}


def _title(query: dict[str, Any]) -> str:
    """``horse.png + red - cart.png``."""
    if "parts" not in query:
        return " + ".join(shown(value) for value in query.values())
    text = ""
    for part in query["parts"]:
        value = shown(next(iter(part.values())))  # its kind comes first
        number = abs(part["weight"])
        text += f" {'-' if part['weight'] < 0 else '+'} " if text else "- " if part["weight"] < 0 else ""
        text += value if number == (AGAINST if part["weight"] < 0 else 1) else f"{number:g} x {value}"
    return text


def _partial(results: list[list[Match]]) -> bool:
    return any(isinstance(matches, Matches) and matches.partial for matches in results)


def _more(match: Match) -> str:
    """What else is to be said of a match, on its line."""
    day = "" if match.taken is None else f"  {match.taken[:10]}"
    copies = f"  +{match.copies_count} {'copy' if match.copies_count == 1 else 'copies'}" if match.copies else ""
    return f"{day}{copies}{'  missing' * match.missing}"


def _ranked(matches: list[Match]) -> list[dict[str, Any]]:
    return [
        {"rank": rank, "id": m.id, "score": m.score, "path": str(m.path), "label": m.label, "tags": m.tags}
        | {key: getattr(m, key) for key in (*PHOTOGRAPH, "copies", "copies_count")}
        | {"likely": likely(m, matches.cutoff if isinstance(matches, Matches) else None)}
        for rank, m in enumerate(matches, 1)
    ]


def _draw(
    path: Path,
    queries: list[dict[str, Any]],
    results: list[list[Match]],
    explain: Searchable | None = None,
    text_weight: float = 0.5,
) -> None:
    """The queries and what they found as a picture; with a gallery to ``explain`` them, the heat over each."""
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for number, (query, matches) in enumerate(zip(queries, results, strict=True)):
            of = next((part for part in query.get("parts", ()) if "text" not in part and part["weight"] > 0), query)
            picture, words = of.get("sketch", of.get("photo")), query.get("text") or _title(query)
            drawn = Path(picture) if picture else _card(Path(folder) / f"{number}.png", words)
            rows.append(
                grid.Row(
                    drawn,
                    [m.path for m in matches],
                    [m.score for m in matches],
                    [None] * len(matches),
                    words if "parts" in query or "text" in query else drawn.stem,
                )
            )
            if explain is not None:
                rows[-1] = answers.explain(explain, query, rows[-1], Path(folder), text_weight)
        grid.save(path, rows)
        if explain is not None:
            answers.add_legend(path)


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
