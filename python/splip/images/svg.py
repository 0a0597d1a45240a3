"""SVG drawings to pictures, in a process of their own.

A small SVG can ask for hours of work or for other files. So shapes and their plain attributes are copied into
a new document and everything else is left behind, and the drawing happens in a helper that has little memory and
is stopped when it takes too long. ``python -m splip.images.svg`` is that helper.
"""

import contextlib
import io
import math
import os
import re
import resource
import selectors
import struct
import subprocess
import sys
import threading
import time
import xml.parsers.expat
from typing import IO
from xml.sax.saxutils import quoteattr

from splip.errors import UserError

SIDE = 512  # of the picture's longer side
MAX_ELEMENTS = 5000
MAX_DEPTH = 64  # the renderer recurses
MAX_ASPECT = 50.0
MEMORY = 1 << 30
SECONDS = 3.0

SVG = "http://www.w3.org/2000/svg"
SHAPES = frozenset({"path", "line", "polyline", "polygon", "rect", "circle", "ellipse"})
GROUPS = frozenset({"svg", "g", "a", "switch"})
# What these show would be missing from the picture, so they are refused instead.
REFUSED = frozenset({"image", "use", "text", "foreignObject", "pattern", "feImage", "video", "iframe"})
GEOMETRY = frozenset(
    {"d", "points", "x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "r", "rx", "ry", "width", "height"}
    | {"transform", "class"}
)
PAINT = frozenset(
    {"fill", "fill-opacity", "fill-rule", "stroke", "stroke-width", "stroke-linecap", "stroke-linejoin"}
    | {"stroke-miterlimit", "stroke-opacity", "display", "visibility", "color"}
)


class Drawing:
    """Collects the shapes of a document while expat reads it."""

    def __init__(self) -> None:
        self.body: list[str] = []
        self.css: list[str] = []
        self.root: dict[str, str] | None = None
        self.open: list[str] = []  # what to write at the end of each open element; "" for what is left out
        self.skipping = 0  # depth inside something that is left out
        self.in_style = False
        self.elements = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        space, _, tag = name.rpartition(" ")
        self.elements += 1
        if self.elements > MAX_ELEMENTS:
            raise UserError(f"the SVG has more than {MAX_ELEMENTS} elements")
        if len(self.open) + self.skipping >= MAX_DEPTH:
            raise UserError(f"the SVG is nested more than {MAX_DEPTH} deep")
        if self.root is None:
            if tag != "svg" or space not in ("", SVG):
                raise UserError("not an SVG: its first element is not svg")
            self.root = attributes
            self.open.append("")
            return
        ours = space in ("", SVG)
        if ours and tag in REFUSED and not self.skipping:
            raise UserError(f"SVG: <{tag}> is not taken, only shapes and paths are")
        if self.skipping or not ours or tag not in SHAPES | GROUPS:
            self.skipping += 1
            self.in_style = ours and tag == "style"  # also within defs
            return
        kept = "".join(f" {key}={quoteattr(value)}" for key, value in _attributes(attributes))
        tag = "g" if tag in GROUPS else tag
        self.body.append(f"<{tag}{kept}>")
        self.open.append(f"</{tag}>")

    def end(self, name: str) -> None:
        if self.skipping:
            self.skipping -= 1
            self.in_style = False
        else:
            self.body.append(self.open.pop())

    def text(self, text: str) -> None:
        if self.in_style:
            self.css.append(text)

    def document(self) -> str:
        """The same shapes as an SVG with a fixed size and nothing to look up."""
        assert self.root is not None
        x, y, width, height = _view(self.root)
        scale = SIDE / max(width, height)
        size = [max(1, round(scale * side)) for side in (width, height)]
        style = "".join(f"{rule}{{{_style(body)}}}" for rule, body in _rules("".join(self.css)))
        paint = "".join(f" {key}={quoteattr(value)}" for key, value in _attributes(self.root) if key in PAINT)
        return (
            f'<svg xmlns="{SVG}" viewBox="{x:.9g} {y:.9g} {width:.9g} {height:.9g}" width="{size[0]}" '
            f'height="{size[1]}"{paint}><style>{style}</style>{"".join(self.body)}</svg>'
        )


def _attributes(attributes: dict[str, str]) -> list[tuple[str, str]]:
    kept = []
    for key, value in attributes.items():
        if key == "style":
            kept.append((key, _style(value)))
        elif key in GEOMETRY:
            kept.append((key, value))
        elif key in PAINT:
            kept.append((key, _plain(value)))
    return kept


def _plain(value: str) -> str:
    """A paint without references: gradients become grey."""
    return "#888" if "url" in value.lower() or "\\" in value else value


def _style(declarations: str) -> str:
    """The declarations of a style that are about plain paint."""
    pairs = [part.split(":", 1) for part in declarations.split(";") if ":" in part]
    found = [(key.strip().lower(), _plain(value.strip())) for key, value in pairs]
    safe = [(key, value) for key, value in found if key in PAINT and re.fullmatch(r"[\w\s#.,%()!+-]*", value)]
    return ";".join(f"{key}:{value}" for key, value in safe)


def _rules(css: str) -> list[tuple[str, str]]:
    """Rules of a style sheet whose selectors are names of elements or classes, as drawing programs write them."""
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    rules = re.findall(r"([^{}]*)\{([^{}]*)\}", css)
    return [(rule.strip(), body) for rule, body in rules if re.fullmatch(r"\s*[\w.#*-]+(\s*,\s*[\w.#*-]+)*\s*", rule)]


def _view(root: dict[str, str]) -> tuple[float, float, float, float]:
    """The part of the plane that the document shows: its viewBox, else its size."""

    def number(text: str | None) -> float:
        match = re.match(r"\s*([+-]?\d*\.?\d+(?:[eE][+-]?\d+)?)", text or "")
        return float(match.group(1)) if match and "%" not in (text or "") else math.nan

    box = [number(part) for part in re.split(r"[\s,]+", root.get("viewBox", "").strip())]
    if len(box) != 4:
        box = [0.0, 0.0, number(root.get("width")), number(root.get("height"))]
    x, y, width, height = box
    if not all(map(math.isfinite, box)) or max(map(abs, box)) > 1e6 or min(width, height) < 1e-3:
        raise UserError("the SVG has no usable viewBox, or width and height")
    if max(width / height, height / width) > MAX_ASPECT:
        raise UserError(f"the SVG is more than {MAX_ASPECT:g} times as long as wide")
    return x, y, width, height


def clean(data: bytes) -> str:
    """An SVG with the shapes of ``data`` and nothing else.

    Raises:
        UserError: not an SVG, too large, or it holds what cannot be drawn from shapes alone.
    """
    drawing = Drawing()
    parser = xml.parsers.expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = drawing.start
    parser.EndElementHandler = drawing.end
    parser.CharacterDataHandler = drawing.text

    def refuse(*_: object) -> int:
        raise UserError("SVG: entities and external references are not taken")

    # The DOCTYPE that drawing programs write is harmless; what it can declare is not.
    parser.EntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    try:
        parser.Parse(data, True)
    except (xml.parsers.expat.ExpatError, ValueError, LookupError) as error:
        raise UserError(f"not an SVG: {' '.join(str(error).split())}") from None
    return drawing.document()


# ---- the helper ----


def main(inbox: IO[bytes], outbox: IO[bytes]) -> None:
    """Answer each document with ``+`` and a PNG, or ``-`` and a reason, until the input ends."""
    import resvg_py

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while len(head := inbox.read(4)) == 4:
        data = inbox.read(struct.unpack("<I", head)[0])
        try:
            answer = b"+" + bytes(resvg_py.svg_to_bytes(svg_string=clean(data), skip_system_fonts=True))
        except UserError as error:
            answer = b"-" + str(error).encode()
        except ValueError as error:
            answer = b"-" + f"not an SVG: {' '.join(str(error).split())}".encode()
        outbox.write(struct.pack("<I", len(answer)) + answer)
        outbox.flush()


class Renderer:
    """The helper process: started when first needed, and again after it was stopped."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._one_at_a_time = threading.Lock()

    def png(self, data: bytes) -> bytes:
        """Draw an SVG on transparency, its longer side ``SIDE`` pixels.

        Raises:
            UserError: it cannot be drawn, or not in time.
        """
        with self._one_at_a_time:
            if self._process is None or self._process.poll() is not None:
                command = [sys.executable, "-m", "splip.images.svg"]
                # Its folder is /, so that nothing in the current one is taken for a module.
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/"
                )
                self._exchange(b"<svg xmlns='http://www.w3.org/2000/svg' width='1' height='1'/>", seconds=30.0)
            answer = self._exchange(data, self.seconds)
        if answer is None:
            raise UserError("the SVG takes too long to draw, or too much memory")
        if answer[:1] != b"+":
            raise UserError(answer[1:].decode())
        return answer[1:]

    def _exchange(self, data: bytes, seconds: float) -> bytes | None:
        """One document there and its answer back; None, and the helper is gone, if that fails."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + seconds
        try:
            process.stdin.write(struct.pack("<I", len(data)) + data)
            process.stdin.flush()
            size = struct.unpack("<I", self._receive(process.stdout, 4, deadline))[0]
            return self._receive(process.stdout, size, deadline)
        except (OSError, TimeoutError, EOFError):
            self._stop()
            return None

    @staticmethod
    def _receive(pipe: IO[bytes], size: int, deadline: float) -> bytes:
        got = io.BytesIO()
        with selectors.DefaultSelector() as ready:
            ready.register(pipe, selectors.EVENT_READ)
            while got.tell() < size:
                if not ready.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                part = os.read(pipe.fileno(), size - got.tell())
                if not part:
                    raise EOFError
                got.write(part)
        return got.getvalue()

    def _stop(self) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what it had not read yet cannot be flushed
                        pipe.close()
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        with self._one_at_a_time:
            self._stop()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
