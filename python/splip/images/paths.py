"""The lines of an SVG drawing as points, in the order of the document."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator

import numpy as np

from splip.errors import UserError, short
from splip.images.svg import clean

PIECES = 16  # straight pieces of a curve
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
TAKES = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "S": 4, "Q": 4, "T": 2, "A": 7, "Z": 0}
MOST = 200_000  # points of a drawing
Line = list[complex]


def strokes(data: bytes) -> list[np.ndarray]:
    """Lines of a drawing, ``[points, 2]`` float64 each: its paths and shapes, and of what is filled the outline.

    Every subpath is a stroke: the pen is lifted in between. Whatever is not a shape is left aside, and what has ``display="none"``;
    styles are not read, so that a shape in white is a line like any other.

    Raises:
        UserError: not an SVG, or its numbers are no path.
    """
    found: list[np.ndarray] = []
    total = 0
    try:
        for matrix, lines in _shapes(ET.fromstring(clean(data)), np.eye(3)):
            for line in lines:
                points = np.array([[p.real, p.imag, 1.0] for p in line])
                if not np.isfinite(points).all() or not np.isfinite(matrix).all():
                    raise UserError("SVG: a coordinate is not finite")
                points = points @ matrix.T
                found.append(points[:, :2])
                total += len(points)
                if total > MOST:
                    raise UserError(f"the SVG has more than {MOST:,} points")
    except (ValueError, OverflowError, ZeroDivisionError, ET.ParseError) as error:
        raise UserError(f"SVG: {' '.join(str(error).split())[:120]}") from None
    return found


def _shapes(element: ET.Element, matrix: np.ndarray) -> Iterator[tuple[np.ndarray, list[Line]]]:
    matrix = matrix @ _transform(element.get("transform", ""))
    tag = element.tag.rpartition("}")[2]
    if element.get("display") == "none":
        return
    if tag in _SHAPES:
        yield matrix, [line for line in _SHAPES[tag](element) if line]
    for child in element:
        yield from _shapes(child, matrix)


def _transform(text: str) -> np.ndarray:
    matrix = np.eye(3)
    for name, inside in re.findall(r"(\w+)\s*\(([^)]*)\)", text):
        v = [float(number) for number in NUMBER.findall(inside)]
        m = np.eye(3)
        if name == "matrix" and len(v) == 6:
            m[:2] = np.array(v).reshape(3, 2).T
        elif name == "translate" and v:
            m[:2, 2] = v[0], v[1] if len(v) > 1 else 0.0
        elif name == "scale" and v:
            m[0, 0], m[1, 1] = v[0], v[-1] if len(v) > 1 else v[0]
        elif name == "rotate" and v:
            a, (x, y) = math.radians(v[0]), v[1:3] if len(v) > 2 else (0.0, 0.0)
            c, s = math.cos(a), math.sin(a)
            m[:2] = [[c, -s, x - c * x + s * y], [s, c, y - s * x - c * y]]
        elif name in ("skewX", "skewY") and v:
            m[(0, 1) if name == "skewX" else (1, 0)] = math.tan(math.radians(v[0]))
        else:
            raise UserError(f"SVG: a transform that is none: {short(name)}")
        matrix = matrix @ m
    return matrix


def _number(element: ET.Element, name: str, default: float = 0.0) -> float:
    found = NUMBER.match(element.get(name, "").strip())
    return float(found[0]) if found else default


def _line(e: ET.Element) -> list[Line]:
    return [[complex(_number(e, "x1"), _number(e, "y1")), complex(_number(e, "x2"), _number(e, "y2"))]]


def _points(e: ET.Element) -> list[Line]:
    v = [float(number) for number in NUMBER.findall(e.get("points", ""))]
    line = [complex(x, y) for x, y in zip(v[::2], v[1::2], strict=False)]
    return [[*line, line[0]] if line and e.tag.endswith("polygon") else line]


def _rect(e: ET.Element) -> list[Line]:
    x, y, w, h = (_number(e, name) for name in ("x", "y", "width", "height"))
    return [[complex(x, y), complex(x + w, y), complex(x + w, y + h), complex(x, y + h), complex(x, y)]]


def _ellipse(e: ET.Element) -> list[Line]:
    rx, ry = (_number(e, name, _number(e, "r")) for name in ("rx", "ry"))
    turns = [2 * math.pi * i / (4 * PIECES) for i in range(4 * PIECES + 1)]
    return [[complex(_number(e, "cx") + rx * math.cos(t), _number(e, "cy") + ry * math.sin(t)) for t in turns]]


def _path(e: ET.Element) -> list[Line]:
    return Path().read(e.get("d", ""))


class Path:
    """The pen on its way through a path's data."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.at = self.start = self.handle = 0j  # handle: the last curve's second control point
        self.before = ""

    def read(self, d: str) -> list[Line]:
        for command, inside in re.findall(r"([A-Za-z])([^A-Za-z]*(?:[eE][+-]?\d[^A-Za-z]*)*)", d):
            upper = command.upper()
            if upper not in TAKES:
                raise UserError(f"SVG: a path's command that is none: {short(command)}")
            v, takes = (
                (self._flags(inside) if upper == "A" else [float(n) for n in NUMBER.findall(inside)]),
                TAKES[upper],
            )
            if takes and (not v or len(v) % takes):
                raise UserError(f"SVG: {command} of a path takes {takes} numbers, got {len(v)}")
            for i in range(0, max(len(v), 1), takes or 1):
                self._step(upper if i == 0 or upper != "M" else "L", v[i : i + takes], command.islower())
        return self.lines

    @staticmethod
    def _flags(inside: str) -> list[float]:
        """An arc's numbers: its two flags may stand without anything between them."""
        found: list[float] = []
        rest = inside
        while rest := rest.lstrip(" ,\t\r\n"):
            match = re.match(r"[01]", rest) if len(found) % 7 in (3, 4) else NUMBER.match(rest)
            if match is None:
                raise UserError(f"SVG: an arc's numbers are none: {short(rest)}")
            found.append(float(match[0]))
            rest = rest[match.end() :]
        return found

    def _step(self, command: str, v: list[float], relative: bool) -> None:
        base = self.at if relative else 0j
        points = [base + complex(x, y) for x, y in zip(v[::2], v[1::2], strict=False)] if command not in "HVAZ" else []
        if command == "M":
            self.at = self.start = points[0]
            self.lines.append([self.at])
        elif command == "Z":
            self._to([self.start])
        elif command == "L":
            self._to(points)
        elif command == "H":
            self._to([complex(v[0] + base.real, self.at.imag)])
        elif command == "V":
            self._to([complex(self.at.real, v[0] + base.imag)])
        elif command == "A":
            self._to(_arc(self.at, base + complex(v[5], v[6]), v[0], v[1], v[2], v[3] != 0, v[4] != 0))
        else:
            smooth = {"S": "CS", "T": "QT"}.get(command)
            if smooth:
                points.insert(0, 2 * self.at - self.handle if self.before in smooth and self.before else self.at)
            self.handle = points[-2]
            self._to(_bezier([self.at, *points]))
        self.before = command

    def _to(self, points: Line) -> None:
        if not self.lines:
            raise UserError("SVG: a path that does not begin with M")
        if self.before == "Z":
            self.lines.append([self.at])
        self.lines[-1].extend(points)
        self.at = points[-1]


def _bezier(p: Line) -> Line:
    """Points of a curve of two or three degrees after its first."""
    out = []
    for i in range(1, PIECES + 1):
        t, level = i / PIECES, p
        while len(level) > 1:
            level = [a + (b - a) * t for a, b in zip(level, level[1:], strict=False)]
        out.append(level[0])
    return out


def _arc(start: complex, end: complex, rx: float, ry: float, degrees: float, large: bool, sweep: bool) -> Line:
    """Points of an elliptical arc after its start, by the formulas of SVG 1.1, F.6."""
    rx, ry = abs(rx), abs(ry)
    if start == end or not rx or not ry:
        return [end]
    turn = complex(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))

    def unit(p: complex) -> complex:
        q = p / turn
        return complex(q.real / rx, q.imag / ry)

    a, b = unit(start), unit(end)
    half = abs(b - a) / 2
    rx, ry, a, b, half = (rx * half, ry * half, a / half, b / half, 1.0) if half > 1 else (rx, ry, a, b, half)
    off = math.sqrt(max(0.0, 1 - half * half)) * (1 if large == sweep else -1)
    middle = (a + b) / 2 + 1j * (b - a) / abs(b - a) * off * (-1)
    first = math.atan2((a - middle).imag, (a - middle).real)
    angle = math.atan2((b - middle).imag, (b - middle).real) - first
    angle += 2 * math.pi if sweep and angle < 0 else (-2 * math.pi if not sweep and angle > 0 else 0.0)
    out = []
    for i in range(1, PIECES + 1):
        q = middle + complex(math.cos(first + angle * i / PIECES), math.sin(first + angle * i / PIECES))
        out.append(complex(q.real * rx, q.imag * ry) * turn)
    return [*out[:-1], end]


_SHAPES: dict[str, Callable[[ET.Element], list[Line]]] = {
    "path": _path, "line": _line, "polyline": _points, "polygon": _points, "rect": _rect, "circle": _ellipse,
    "ellipse": _ellipse,
}  # fmt: skip
