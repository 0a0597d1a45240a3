"""Fetch and unpack the art packages of ``icon_sets.csv``: from npm, and from Debian without installing anything."""

import csv
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from build_sample import fetch_npm

from splip.errors import UserError

TABLE = Path(__file__).with_name("icon_sets.csv")
WORDNET = "deb:wordnet-base=1:3.0-37"
# Licences under which a set may be used; those of the table that ask for the same licence again are told apart.
OPEN = {"MIT", "Apache-2.0", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "ISC", "OFL-1.1", "Unlicense", "MPL-2.0"}


@dataclass(frozen=True)
class Set:
    """A row of the table. ``use``: yes, share-alike, reserved (for tests alone), no (not open)."""

    name: str
    package: str  # name@version on npm, deb:name=version in Debian
    licence: str  # SPDX
    palette: str  # coloured or plain
    use: str
    author: str


def sets() -> list[Set]:
    """All rows; a set that is used has an open licence."""
    with open(TABLE, newline="", encoding="utf-8") as file:
        rows = [
            Set(r["set"], r["package"], r["licence"], r["palette"], r["use"], r["author"]) for r in csv.DictReader(file)
        ]
    wrong = [row.name for row in rows if row.use == "yes" and row.licence not in OPEN]
    if wrong:
        raise UserError(f"{TABLE}: not openly licensed: {', '.join(wrong)}")
    return rows


def fetch(work: Path, name: str, package: str) -> Path:
    """The folder of an unpacked package, fetched unless it is there.

    Raises:
        UserError: no such package or version to be had.
    """
    folder = work / name
    if folder.is_dir():
        return folder
    try:
        if not package.startswith("deb:"):
            fetch_npm(work, {name: package})
            return folder
        with tempfile.TemporaryDirectory(dir=work) as temp:
            command = ["apt-get", "download", "-qq", package.removeprefix("deb:")]
            subprocess.run(command, cwd=temp, check=True, capture_output=True, text=True)
            unpacked = Path(temp) / "unpacked"
            subprocess.run(["dpkg", "-x", str(next(Path(temp).glob("*.deb"))), str(unpacked)], check=True)
            shutil.move(unpacked, folder)
    except (subprocess.CalledProcessError, StopIteration, OSError) as error:
        said = " ".join((getattr(error, "stderr", "") or str(error)).split())[-200:]
        raise UserError(f"{package}: cannot be fetched: {said}") from None
    return folder


def check_licence(folder: Path, row: Set) -> None:
    """Refuse a package whose own words about its licence are not the table's.

    Raises:
        UserError: they differ.
    """
    info = folder / "info.json"
    if info.is_file():
        said = json.loads(info.read_text(encoding="utf-8"))["license"].get("spdx")
        if said != row.licence:
            raise UserError(f"{info}: the licence is {said}, {TABLE.name} says {row.licence}")


def wordnet(work: Path) -> Path:
    return fetch(work, "wordnet-base", WORDNET) / "usr/share/wordnet"


def qt_resources(path: Path) -> Iterator[tuple[str, bytes]]:
    """The files in one of Qt's compiled resources (``.rcc``): path and content."""
    data = path.read_bytes()
    if data[:4] != b"qres":
        raise UserError(f"{path}: not a Qt resource file")
    version, tree, content, names = struct.unpack(">4I", data[4:20])
    size = 14 if version < 2 else 22

    def name(at: int) -> str:
        (length,) = struct.unpack(">H", data[names + at : names + at + 2])
        return data[names + at + 6 : names + at + 6 + 2 * length].decode("utf-16-be")

    def walk(node: int, folder: str) -> Iterator[tuple[str, bytes]]:
        at = tree + node * size
        label, flags = struct.unpack(">IH", data[at : at + 6])
        here = f"{folder}/{name(label)}" if node else ""
        if flags & 2:  # a folder
            count, first = struct.unpack(">II", data[at + 6 : at + 14])
            for child in range(first, first + count):
                yield from walk(child, here)
            return
        (start,) = struct.unpack(">I", data[at + 10 : at + 14])
        (length,) = struct.unpack(">I", data[content + start : content + start + 4])
        body = data[content + start + 4 : content + start + 4 + length]
        if flags & 1:
            body = zlib.decompress(body[4:])
        if not flags & 4:  # zstandard, which none of the packages uses
            yield here, body

    yield from walk(0, "")


def stop(error: UserError) -> None:
    sys.exit(f"error: {error}")
