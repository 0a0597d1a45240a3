"""Attack a running ``splip serve``: damaged uploads, bombs, forged ids, slow clients, and more clients than it serves.

    python tools/serve_faults.py --gallery gallery                      # everything, about ten minutes
    python tools/serve_faults.py --gallery gallery --seconds 60 --clients 200 --only overload
    python tools/serve_faults.py --gallery gallery --uploads 300 --examples 10 --seconds 3

Starts a service of its own on the gallery (any that ``splip index add`` made). Every answer must be one that the
service's OpenAPI names, never a 5xx except 503 under overload, and the service must answer a search afterwards.
``/healthz`` is asked all the time, by a process of its own, and must answer within half a second.
The tests run the same functions with small counts. Needs ``pip install 'splip[test]'``.
"""

import argparse
import asyncio
import io
import json
import random
import re
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageDraw

from splip.serve.config import ServeConfig

REFUSALS = {400, 401, 403, 404, 405, 408, 413, 415, 421, 422, 429}
DOCUMENT = (
    b'<?xml version="1.0" encoding="UTF-8"?><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">'
    b'<style>.a{fill:none;stroke:#000;stroke-width:3}</style><g class="a" transform="translate(5 5) scale(0.9)">'
    b'<path d="M10 80C40 10 65 10 95 80S150 150 180 80"/><circle cx="30" cy="40" r="20"/>'
    b'<polyline points="1,2 30,40 50,90"/><rect x="4" y="5" width="60" height="30" rx="4"/></g></svg>'
)


# ---- material ----


def drawing(seed: int = 0, side: int = 96) -> Image.Image:
    """A few black lines on white."""
    rng = random.Random(seed)
    image = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(image)
    pen.line([(rng.randrange(side), rng.randrange(side)) for _ in range(9)], "black", 3)
    pen.ellipse((side // 4, side // 4, side // 2, side // 2), outline="black", width=3)
    return image


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A small PNG whose header promises a large picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def webp_of_size(width: int, height: int, kind: str = "extended") -> bytes:
    """The same as a WebP: extended, lossless or lossy."""
    if kind == "lossless":
        data = bytearray(encoded(drawing(), "WEBP", lossless=True))
        data[21:25] = (width - 1 | height - 1 << 14 | data[24] >> 4 << 28).to_bytes(4, "little")
        return bytes(data)
    if kind == "lossy":
        data = bytearray(encoded(drawing(), "WEBP"))
        data[26:30] = struct.pack("<HH", width, height)
        return bytes(data)
    frame = encoded(drawing(), "WEBP", lossless=True)[12:]
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def resized(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header promises another size."""
    at = next(jpeg.index(b"\xff" + bytes([marker])) for marker in (0xC2, 0xC0) if b"\xff" + bytes([marker]) in jpeg) + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def jpeg_of_scans(scans: int, side: int) -> bytes:
    """A progressive JPEG with more passes over its pixels than any program makes."""
    data = encoded(drawing(0, side), "JPEG", progressive=True, quality=20)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (scans - data.count(b"\xff\xda")) + b"\xff\xd9"


def slow_svg() -> bytes:
    """Takes all the time that an SVG has."""
    return svg('<circle cx="50" cy="50" r="49" fill-opacity="0.5"/>' * 4990)


def svg(body: str, head: str = "") -> bytes:
    return f'{head}<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 99 99">{body}</svg>'.encode()


def bombs() -> dict[str, tuple[int, str, bytes]]:
    """Small files that ask for much, or for what is none of their business: status, words of the answer, bytes."""
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    uses = "".join(f'<g id="u{i}">{f"<use href={chr(34)}#u{i - 1}{chr(34)}/>" * 10}</g>' for i in range(1, 9))
    return {
        "PNG 50,000 x 50,000": (413, "too many pixels", png_of_size(50_000, 50_000)),
        "PNG 1 x 2,000,000,000": (413, "too many pixels", png_of_size(1, 2_000_000_000)),
        "PNG 0 x 0": (422, "not a picture", png_of_size(0, 0)),
        "WebP 16,000,000 x 16,000,000": (413, "16000000 x 16000000", webp_of_size(16_000_000, 16_000_000)),
        "WebP 30,000 x 30,000": (413, "30000 x 30000", webp_of_size(30_000, 30_000)),
        "GIF 65,535 x 65,535": (
            413,
            "too many pixels",
            b"GIF89a" + b"\xff" * 4 + b"\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x08\x01\0\0;",
        ),
        "BMP 2,000,000,000 wide": (
            413,
            "too many pixels",
            b"BM"
            + struct.pack("<IHHI", 54, 0, 0, 54)
            + struct.pack("<IiiHH", 40, 2_000_000_000, 2_000_000_000, 1, 24)
            + bytes(24),
        ),
        "JPEG of 5,000 scans": (413, "more than 200 scans", jpeg_of_scans(5000, 96)),
        "PostScript": (
            422,
            "not a picture",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file pop\n",
        ),
        "SVG billion laughs": (
            422,
            "entities",
            svg("<path d='&l9;'/>", f'<!DOCTYPE svg [<!ENTITY l0 "M0 0">{laughs}]>'),
        ),
        "SVG external entity": (
            422,
            "entities",
            svg("<path d='&x;'/>", '<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'),
        ),
        "SVG parameter entity": (
            422,
            "entities",
            svg("", '<!DOCTYPE svg [<!ENTITY % x SYSTEM "http://127.0.0.1:9/x"> %x;]>'),
        ),
        "SVG image of a file": (422, "<image>", svg('<image href="/etc/passwd" width="9" height="9"/>')),
        "SVG billion uses": (
            422,
            "<use>",
            svg(f'<defs><g id="u0"><path d="M0 0L9 9"/></g>{uses}</defs><use href="#u8"/>'),
        ),
        "SVG nested 100,000 deep": (422, "nested", svg("<g>" * 100_000)),
        "SVG 5,000 large circles": (422, "too long", slow_svg()),
        "SVG tiny dashes": (200, "", svg('<path d="M0 0L99 99" stroke="#000" style="stroke-dasharray:1e-9"/>')),
        "SVG far away": (422, "memory", svg('<path d="M1e30 1e30L-1e30 5" stroke="#000" stroke-width="1e30"/>')),
        "SVG longer than wide": (
            422,
            "times as long",
            b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1e-3 1e6"/>',
        ),
        "SVG style import": (
            200,
            "",
            svg('<style>@import url("http://127.0.0.1:9/x.css");</style><path d="M0 0L99 99" stroke="#000"/>'),
        ),
        "SVG script": (200, "", svg('<script>while(1);</script><path d="M0 0L99 99" stroke="#000"/>')),
        "WebP 16,000 x 16,000": (413, "16000 x 16000", webp_of_size(16_000, 16_000)),
        "WebP 16,000 x 16,000 lossless": (413, "16000 x 16000", webp_of_size(16_000, 16_000, "lossless")),
        "WebP 16,000 x 16,000 lossy": (413, "16000 x 16000", webp_of_size(16_000, 16_000, "lossy")),
        "PNG 7,000 x 7,000": (413, "7000 x 7000", png_of_size(7_000, 7_000)),
        "JPEG of 150 scans and 36 megapixels": (413, "150 scans", resized(jpeg_of_scans(150, 300), 6_000, 6_000)),
        "JPEG 65,000 x 65,000": (413, "too many pixels", resized(encoded(drawing(), "JPEG"), 65_000, 65_000)),
        "TIFF": (422, "not a picture", encoded(drawing(), "TIFF")),
        "SVG of 3 million points": (
            422,
            "too long",
            svg('<path stroke="#000" d="M0 0' + "L9 9L0 5" * 1_200_000 + '"/>'),
        ),
        "SVG and nothing else": (422, "viewBox", b"<svg/>"),
    }


def documents() -> dict[str, tuple[str, bytes]]:
    """JSON and forms almost as large as a body may be, quick to send and slow to build: address and body."""
    most = int(ServeConfig(gallery=Path("gallery")).max_body_mb * 1e6) - 1000

    def full(head: bytes, again: bytes, tail: bytes) -> bytes:
        return head + again * ((most - len(head) - len(tail)) // len(again)) + tail

    return {
        "millions of queries": ("/v1/search/batch", full(b'{"queries":[', b"{},", b"{}]}")),
        "millions of points": ("/v1/search", full(b'{"strokes":[[', b"[1,2],", b"[1,2]]]}")),
        "millions of points beside a picture": (
            "/v1/search",
            full(b'{"image":"","strokes":[[', b"[1,2],", b"[1,2]]]}"),
        ),
        "millions of points in several searches": (
            "/v1/search/batch",
            full(b'{"queries":[{"strokes":[[', b"[1,2],", b"[1,2]]]}]}"),
        ),
        "millions of empty strokes": ("/v1/search", full(b'{"svg":"","strokes":[', b"[],", b"[]]}")),
        "a million unknown keys": (
            "/v1/search",
            b'{"svg":"",' + b",".join(b'"k%07d":1' % i for i in range(most // 13)) + b"}",
        ),
        "100,000 unknown tags": (
            "/v1/search",
            b'{"tags":{' + b",".join(b'"k%06d":""' % i for i in range(100_000)) + b"}}",
        ),
        "25,000 damaged points": ("/v1/search", b'{"strokes":[[' + b"[1]," * 24_000 + b"[1]]]}"),
        "brackets": ("/v1/search", b"[" * most),
        "quotes": ("/v1/search", b'"' * most),
        "escaped quotes": ("/v1/search", full(b'{"svg":"', b'\\"', b'"}')),
        "digits": ("/v1/search", full(b'{"image":"","k":', b"1", b"}")),
        "a label": ("/v1/search", full(b'{"svg":"","labels":["', b"a", b'"]}')),
        "empty fields": ("/v1/search?form", b"&" * most),
    }


def mutants(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Truncated, spliced and flipped files: ``(media type, bytes)``."""
    rng = random.Random(seed)
    image = drawing(seed)
    sources = [
        ("image/png", encoded(image, "PNG")),
        ("image/png", encoded(image.convert("P"), "PNG")),
        ("image/png", encoded(image.convert("RGBA"), "PNG")),
        ("image/jpeg", encoded(image, "JPEG")),
        ("image/jpeg", encoded(image.convert("CMYK"), "JPEG", progressive=True)),
        ("image/webp", encoded(image, "WEBP")),
        ("image/gif", encoded(image, "GIF")),
        ("image/bmp", encoded(image, "BMP")),
        ("image/tiff", encoded(image, "TIFF", compression="tiff_lzw")),
        ("image/svg+xml", DOCUMENT),
        ("image/svg+xml", DOCUMENT),
    ]
    for _ in range(count):
        kind, data = rng.choice(sources)
        mutant = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            at = rng.randrange(len(mutant)) if mutant else 0
            action = rng.randrange(6)
            if action == 0:
                del mutant[at:]
            elif action == 1:
                del mutant[at : at + rng.randrange(64)]
            elif action == 2:
                mutant[at:at] = rng.randbytes(rng.randrange(32))
            elif action == 3 and mutant:
                mutant[at] ^= 1 << rng.randrange(8)
            elif action == 4:
                mutant[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"1e99"))
            else:
                other = rng.choice(sources)[1]
                start = rng.randrange(len(other))
                mutant[at:at] = other[start : start + rng.randrange(256)]
        yield kind, bytes(mutant)


# ---- attacks: each returns how often it saw which answer, and fails on one that must not be ----


class Failed(AssertionError):
    """The service did what it must not do."""


def check(answer: httpx.Response, what: str, allowed: set[int]) -> None:
    if answer.status_code not in allowed:
        raise Failed(f"{what}: {answer.status_code} {answer.text[:300]}")
    if answer.status_code >= 400:
        body = answer.json()
        if set(body) != {"error", "message"}:
            raise Failed(f"{what}: an error without its two fields: {answer.text[:300]}")


def alive(address: str) -> None:
    """A search must find something."""
    image = encoded(drawing(), "PNG")
    answer = httpx.post(f"{address}/v1/search", files={"image": image}, data={"k": "1"}, timeout=30)
    if answer.status_code != 200 or not answer.json()["matches"]:
        raise Failed(f"no answer to a plain search: {answer.status_code} {answer.text[:300]}")


@contextmanager
def probed(address: str) -> Iterator[list[float]]:
    """While it lasts, ask ``/healthz`` again and again; yields the seconds of each answer."""
    ended = threading.Event()
    took: list[float] = []

    def probe() -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            while not ended.is_set():
                began = time.monotonic()
                client.get("/healthz").raise_for_status()
                took.append(time.monotonic() - began)
                time.sleep(0.01)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield took
    finally:
        ended.set()
        thread.join()


# In a process of its own: the attackers' threads would keep one in this process waiting.
WATCH = """
import select, sys, time, httpx
slowest, asked = 0.0, 0
with httpx.Client(base_url=sys.argv[1], timeout=60) as client:
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        began = time.monotonic()
        client.get("/healthz").raise_for_status()
        slowest, asked = max(slowest, time.monotonic() - began), asked + 1
print(asked, slowest)
"""


@contextmanager
def watched(address: str) -> Iterator[dict[str, float]]:
    """While it lasts, ask ``/healthz`` again and again; afterwards it says how often and the slowest answer."""
    found: dict[str, float] = {}
    command = [sys.executable, "-c", WATCH, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield found
        finally:
            said, errors = process.communicate(b"\n")
        if process.returncode:
            raise Failed(f"/healthz failed: {errors.decode().splitlines()[-1:]}")
    asked, slowest = said.split()
    found |= {"asked": int(asked), "slowest_s": round(float(slowest), 3)}


def freezes(address: str, limit: float = 0.5) -> Counter[int]:
    """Each of :func:`documents` is refused, and nobody else waits for ``limit`` seconds meanwhile."""
    seen: Counter[int] = Counter()
    with httpx.Client(base_url=address, timeout=60) as client:
        for name, (path, body) in documents().items():
            path, _, form = path.partition("?")
            kind = "application/x-www-form-urlencoded" if form else "application/json"
            with probed(address) as took:
                answer = client.post(path, content=body, headers={"Content-Type": kind})
            check(answer, name, {413, 422})
            if max(took, default=0) > limit:
                raise Failed(f"{name}: /healthz took {max(took):.2f} s")
            seen[answer.status_code] += 1
    return seen


def uploads(address: str, count: int, seed: int) -> Counter[int]:
    """Damaged files of all kinds."""
    seen: Counter[int] = Counter()
    with httpx.Client(base_url=address, timeout=60) as client:
        for number, (kind, data) in enumerate(mutants(count, seed)):
            answer = client.post("/v1/search", content=data, headers={"Content-Type": kind}, params={"k": 1})
            check(answer, f"mutant {number} of seed {seed} ({kind})", {200, *REFUSALS})
            seen[answer.status_code] += 1
    return seen


def explosives(address: str, limit: float = 0.5) -> Counter[int]:
    """Each of :func:`bombs` gets its status, and nobody else waits for ``limit`` seconds meanwhile."""
    seen: Counter[int] = Counter()
    with httpx.Client(base_url=address, timeout=60) as client:
        for name, (status, words, data) in bombs().items():
            kind = "image/svg+xml" if name.startswith("SVG") else "image/png"
            with probed(address) as took:
                answer = client.post("/v1/search", content=data, headers={"Content-Type": kind})
            check(answer, name, {status})
            if words not in answer.text:
                raise Failed(f"{name}: {answer.text[:300]}")
            if max(took, default=0) > limit:
                raise Failed(f"{name}: /healthz took {max(took):.2f} s")
            seen[answer.status_code] += 1
        for number in (-1, 2**31, 2**63, 2**64, 10**400, "1e3", "%2e%2e%2fetc%2fpasswd", "..%5c..", "0x1", "%00", "١"):
            for kind in ("images", "thumbnails"):
                answer = client.get(f"/v1/{kind}/{number}")
                check(answer, f"{kind} {number}", {404, 422})
                seen[answer.status_code] += 1
        for path in (
            "/../../etc/passwd",
            "//etc/passwd",
            "/v1/../../etc/passwd",
            "/page.css/../../config.py",
            "/page/",
            "/.git",
        ):
            check(client.get(path), path, {400, 404})
    return seen


def schemas(address: str, examples: int, seed: int) -> Counter[int]:
    """What schemathesis makes of the OpenAPI document."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    seen: Counter[int] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()

        @seeded(seed)
        @settings(
            max_examples=examples, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def one(case: Any) -> None:
            response = case.call(base_url=address)
            case.validate_response(response, checks=checks)
            seen[response.status_code] += 1

        one()
    return seen


def budget(address: str, count: int) -> Counter[int]:
    """Many uploads in a row, some of them dropped: whoever comes last is answered like whoever came first."""
    host, port = address.removeprefix("http://").rsplit(":", 1)
    image = encoded(drawing(), "PNG")
    padded = image + bytes(9_500_000 - len(image))
    head = f"POST /v1/search HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: image/png\r\nContent-Length: {len(padded)}\r\n\r\n"
    seen: Counter[int] = Counter()
    with httpx.Client(base_url=address, timeout=60) as client:
        for number in range(count):
            answer = client.post("/v1/search?k=1", content=padded, headers={"Content-Type": "image/png"})
            check(answer, f"upload {number}", {200})
            seen[answer.status_code] += 1
            with socket.create_connection((host, int(port))) as peer:
                peer.sendall(head.encode() + padded[:1_000_000])
    return seen


def starve(address: str, seconds: float, clients: int = 6) -> Counter[str]:
    """Clients that send what is cheap to send and slow to decode, beside one with another address that draws."""
    white = Image.new("RGB", (6000, 6000), "white")
    ImageDraw.Draw(white).rectangle((900, 900, 4800, 4800), outline="black", width=60)
    heavy = [
        encoded(white, "JPEG", progressive=True, quality=10),
        encoded(white.convert("L").convert("I").point(lambda v: v * 257).convert("I;16"), "PNG"),
        encoded(white.convert("RGBA"), "PNG"),
        resized(jpeg_of_scans(190, 300), 6000, 6000),
        slow_svg(),
    ]
    strokes = {"strokes": [[[0, 0], [40, 0], [40, 40], [0, 40], [0, 0]]], "k": 1}
    seen: Counter[str] = Counter()
    end = time.monotonic() + seconds

    def attack(number: int) -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            at = number
            while time.monotonic() < end:
                answer = client.post(
                    "/v1/search", content=heavy[at % len(heavy)], headers={"Content-Type": "image/png"}
                )
                seen[f"attack {answer.status_code}"] += 1
                if answer.status_code not in (200, 413, 422, 429, 503):
                    seen["failed"] += 1
                at += 1

    threads = [threading.Thread(target=attack, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    took = []
    with httpx.Client(base_url=address, timeout=60, transport=httpx.HTTPTransport(local_address="127.0.0.2")) as client:
        while time.monotonic() < end:
            began = time.monotonic()
            answer = client.post("/v1/search", json=strokes)
            took.append(time.monotonic() - began)
            seen[f"strokes {answer.status_code}"] += 1
            time.sleep(0.05)
    for thread in threads:
        thread.join()
    seen["strokes: median ms"] = round(1000 * sorted(took)[len(took) // 2])
    seen["strokes: slowest ms"] = round(1000 * max(took))
    if seen["failed"] or {name for name in seen if name.startswith("strokes ")} != {"strokes 200"}:
        raise Failed(f"beside cheap pictures: {dict(seen)}")
    return seen


def heads(address: str) -> Counter[int]:
    """Requests that another program on the way could read differently: refused, and the connection is closed."""
    host, port = address.removeprefix("http://").rsplit(":", 1)
    start = f"POST /v1/search HTTP/1.1\r\nHost: {host}:{port}\r\n".encode()
    json_head = start + b"Content-Type: application/json\r\n"
    chunked = b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    wrong = [
        json_head + b"Content-Length: 2\r\n" + chunked,
        json_head + b"content-LENGTH: 2\r\n" + chunked,
        json_head + b"Content-Length: 2, 2\r\n\r\n{}",
        json_head + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        json_head + b"Content-Length: +2\r\n\r\n{}",
        json_head + b"Content-Length:\r\n\r\n{}",
        json_head + b"Content-Length:\r\n 2\r\n\r\n{}",
        json_head + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
        json_head.replace(b"\r\n", b"\n") + b"Content-Length: 2\n\n{}",
        json_head + b"Content-Length: 2\n\r\n{}",
        json_head + b"X: a\nContent-Length: 2\r\n\r\n{}",
        json_head + b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\nHost: localhost\n\n",
    ]
    seen: Counter[int] = Counter()
    for request in wrong:
        for step in (len(request), 7):  # at once, and in small parts
            with socket.create_connection((host, int(port)), timeout=20) as peer:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for at in range(0, len(request), step):
                    peer.sendall(request[at : at + step])
                answer = b""
                while part := peer.recv(65536):
                    answer += part
            statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", answer)]
            if not statuses or statuses[-1] != 400 or set(statuses[:-1]) - {200}:
                raise Failed(f"{request!r}: {answer!r}")
            seen[statuses[-1]] += 1
    return seen


def silent(address: str, count: int = 1100) -> Counter[str]:
    """Connections that send nothing, more than the service keeps: searches are answered all the same."""
    host, port = address.removeprefix("http://").rsplit(":", 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    seen: Counter[str] = Counter()
    peers = []
    try:
        for number in range(count):
            peers.append(socket.create_connection((host, int(port)), timeout=20))
            if number % 100 == 99:
                alive(address)
                seen["searches"] += 1
        for peer in peers:
            peer.setblocking(False)
            try:
                seen["closed" if peer.recv(1) == b"" else "answered"] += 1
            except BlockingIOError:
                seen["open"] += 1
            except OSError:
                seen["closed"] += 1
    finally:
        for peer in peers:
            peer.close()
    return seen


def slow(address: str, seconds: float, clients: int = 50) -> Counter[str]:
    """Clients that send their request a byte at a time, or not at all: closed, while others are served."""
    host, port = address.removeprefix("http://").rsplit(":", 1)
    image = encoded(drawing(), "PNG")
    head = f"POST /v1/search HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: image/png\r\nContent-Length: {len(image)}\r\n"
    starts = {"nothing": b"", "half a head": head[:40].encode(), "half a body": (head + "\r\n").encode() + image[:30]}
    seen: Counter[str] = Counter()
    sockets = []
    for number in range(clients):
        name, start = list(starts.items())[number % 3]
        peer = socket.create_connection((host, int(port)))
        peer.sendall(start)
        sockets.append((name, peer))
    end = time.monotonic() + seconds
    while sockets and time.monotonic() < end:
        alive(address)
        for name, peer in list(sockets):
            try:
                if name != "nothing":
                    peer.sendall(b"x")
                peer.setblocking(False)
                answer = peer.recv(4096)
            except BlockingIOError:
                peer.setblocking(True)
                continue
            except OSError:
                answer = b""
            seen[f"{name}: {answer.split()[1].decode() if answer else 'closed'}"] += 1
            sockets.remove((name, peer))
            peer.close()
        time.sleep(0.2)
    for _, peer in sockets:
        peer.close()
    if sockets:
        raise Failed(f"{len(sockets)} of {clients} slow clients still connected after {seconds:g} s: {dict(seen)}")
    return seen


def overload(address: str, clients: int, seconds: float) -> Counter[int]:
    """Many clients at once, each with its next search as soon as the last is answered: nothing but 200 and 429."""
    host, port = address.removeprefix("http://").rsplit(":", 1)
    image = encoded(drawing(), "PNG")
    head = f"POST /v1/search?k=10 HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: image/png\r\nContent-Length: {len(image)}\r\n\r\n"
    request = head.encode() + image
    seen: Counter[int] = Counter()

    async def client(end: float) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while time.monotonic() < end:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            status = int(answer.split()[1])
            length = next(
                int(line.split(b":")[1]) for line in answer.split(b"\r\n") if line.lower().startswith(b"content-length")
            )
            body = await reader.readexactly(length)
            seen[status] += 1
            if status not in (200, 429):
                raise Failed(f"under overload: {status} {body[:300]!r}")
            if b"connection: close" in answer.lower():
                writer.close()
                reader, writer = await asyncio.open_connection(host, int(port))
            if status == 429:
                await asyncio.sleep(0.05)
        writer.close()

    async def everybody() -> None:
        await asyncio.gather(*(client(time.monotonic() + seconds) for _ in range(clients)))

    asyncio.run(everybody())
    return seen


def aborts(address: str, count: int, seed: int = 0, pages: int = 2) -> Counter[str]:
    """A page that draws on: each stroke aborts the search in flight. Every search that is waited for is answered."""
    host, port = address.removeprefix("http://").rsplit(":", 1)
    body = json.dumps({"strokes": [[[0, 0], [40, 0], [40, 40], [0, 40], [0, 0]]], "k": 1}).encode()
    head = f"POST /v1/search HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    rng = random.Random(seed)
    seen: Counter[str] = Counter()
    ended = threading.Event()

    def draw_slowly() -> None:
        # While one search is on its way the others wait for it in their window, and are aborted there.
        while not ended.is_set():
            httpx.post(
                f"{address}/v1/search", content=slow_svg(), headers={"Content-Type": "image/svg+xml"}, timeout=60
            )

    async def page(aborted: int) -> None:
        for number in range(aborted):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head.encode() + body)
            await writer.drain()
            await asyncio.sleep(rng.choice((0, 0.001, 0.003, 0.01, 0.03)))
            if number % 10 < 9:
                writer.transport.abort()
                seen["aborted"] += 1
                continue
            line = await asyncio.wait_for(reader.readline(), 20)
            seen[line.split()[1].decode() if line else "closed"] += 1
            writer.close()
        if set(seen) - {"aborted", "200"}:
            raise Failed(f"beside clients that abort: {dict(seen)}")

    async def all_pages() -> None:
        await asyncio.gather(*(page(count // pages) for _ in range(pages)))

    thread = threading.Thread(target=draw_slowly)
    thread.start()
    try:
        asyncio.run(all_pages())
    finally:
        ended.set()
        thread.join()
    alive(address)
    if httpx.get(f"{address}/readyz").status_code != 200:
        raise Failed("not ready after aborted searches")
    return seen


# ---- the service under attack ----


@contextmanager
def served(gallery: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``splip serve`` on a free port, ready; yields its address."""
    command = [sys.executable, "-m", "splip", "serve", "--gallery", str(gallery), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith("http")), None)
        if line is None:
            raise SystemExit(f"{' '.join(command)} did not start")
        address = line.split()[0]
        for _ in range(600):
            if httpx.get(f"{address}/readyz").status_code == 200:
                break
            time.sleep(0.1)
        yield address, process
    finally:
        process.terminate()
        process.wait(60)


def memory(process: subprocess.Popen[str]) -> int:
    """Resident memory of a process, MB."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096 // 10**6


HEALTHZ_SECONDS = 0.5  # that a probe may take, whatever goes on
ATTACKS = (
    "bombs", "documents", "aborts", "budget", "pictures", "heads", "silent", "uploads", "schemas", "slow", "overload",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", type=Path, required=True)
    parser.add_argument("--uploads", type=int, default=10_000, help="damaged files to send (default: 10000)")
    parser.add_argument(
        "--examples", type=int, default=200, help="requests per operation of the OpenAPI (default: 200)"
    )
    parser.add_argument("--clients", type=int, default=200, help="clients at once in the overload (default: 200)")
    parser.add_argument("--seconds", type=float, default=60, help="of overload (default: 60)")
    parser.add_argument("--queue", type=int, default=64, help="--max-queue of the service (default: 64)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--aborts", type=int, default=5000, help="searches of clients that abort (default: 5000)")
    parser.add_argument("--only", nargs="*", help="names of attacks")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    args = parser.parse_args()
    unknown = set(args.only or ()) - set(ATTACKS)
    if unknown:
        parser.error(f"--only: one of {', '.join(ATTACKS)}, not {', '.join(sorted(unknown))}")
    attacks: dict[str, Callable[[str], Counter[Any]]] = {
        "bombs": explosives,
        "documents": freezes,
        "aborts": lambda address: aborts(address, args.aborts, args.seed),
        "budget": lambda address: budget(address, 60),
        "pictures": lambda address: starve(address, min(args.seconds, 60)),
        "heads": heads,
        "silent": silent,
        "uploads": lambda address: uploads(address, args.uploads, args.seed),
        "schemas": lambda address: schemas(address, args.examples, args.seed),
        "slow": lambda address: slow(address, 40),
        "overload": lambda address: overload(address, args.clients, args.seconds),
    }
    report: dict[str, Any] = {}
    with served(args.gallery, "--max-queue", str(args.queue)) as (address, process):
        for name in args.only or attacks:
            before, began = memory(process), time.monotonic()
            with watched(address) as healthz:
                seen = attacks[name](address)
            alive(address)
            if process.poll() is not None:
                raise Failed(f"{name}: the service ended with {process.returncode}")
            counts = {str(key): seen[key] for key in sorted(seen, key=str)}
            report[name] = {
                "answers": counts,
                "seconds": round(time.monotonic() - began, 1),
                "memory_mb": [before, memory(process)],
                "healthz": healthz,
            }
            print(name, json.dumps(report[name]), flush=True)
        process.terminate()
        report["exit_code"] = process.wait(60)
    slow_probes = [
        name for name in attacks if name in report and report[name]["healthz"]["slowest_s"] > HEALTHZ_SECONDS
    ]
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if slow_probes:
        raise Failed(f"/healthz took more than {HEALTHZ_SECONDS} s during {', '.join(slow_probes)}")
    if report["exit_code"] != 0:
        raise Failed(f"the service ended with {report['exit_code']} when it was asked to stop")
    return 0


if __name__ == "__main__":
    sys.exit(main())
