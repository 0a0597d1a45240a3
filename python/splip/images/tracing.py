"""In what order a drawing of which only the picture is left may have come about: its lines, thinned and walked along.

The order is a guess: long lines first, each from one of its ends, straight on where lines cross. Whoever drew it may have
begun elsewhere. What is kept of strokes (:mod:`splip.data.strokes`) is better wherever there is any.
"""

import numpy as np

INK = 96  # grey levels below white of a line
FAINT = 8  # and of anything that is not paper
LEAST = 4  # pixels of a stroke that branches off another
# The eight neighbours, clockwise from above, as (row, column).
AROUND = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))

Pixel = tuple[int, int]


def thin(ink: np.ndarray) -> np.ndarray:
    """Lines of one pixel, by Zhang and Suen: ``[H, W]`` bool to the same."""
    lines = np.pad(ink.astype(bool), 1)
    while True:
        before = lines.copy()
        for odd in (0, 1):
            p = [np.roll(lines, (-r, -c), (0, 1)) for r, c in AROUND]
            count = sum(q.astype(np.int8) for q in p)
            turns = sum((~p[i] & p[(i + 1) % 8]).astype(np.int8) for i in range(8))
            up, right, down, left = p[0], p[2], p[4], p[6]
            sides = [(up, right, left), (up, down, left)] if odd else [(up, right, down), (right, down, left)]
            free = ~(sides[0][0] & sides[0][1] & sides[0][2]) & ~(sides[1][0] & sides[1][1] & sides[1][2])
            lines &= ~(lines & (count >= 2) & (count <= 6) & (turns == 1) & free)
        if np.array_equal(lines, before):
            return lines[1:-1, 1:-1]


def walk(lines: np.ndarray) -> list[list[Pixel]]:
    """Strokes along the pixels of thin lines, the longest first; every pixel is in one."""
    left: set[Pixel] = {(int(r), int(c)) for r, c in np.argwhere(lines)}

    def near(at: Pixel) -> list[Pixel]:
        return [n for r, c in AROUND if (n := (at[0] + r, at[1] + c)) in left]

    strokes = []
    ends = [at for at in sorted(left) if len(near(at)) <= 1]  # then rings, which have none
    for start in [*ends, *sorted(left)]:
        if start not in left:
            continue
        stroke, at, way = [start], start, (0, 0)
        left.discard(start)
        while choices := near(at):
            # Straight on; of two ways alike the one along rows or columns, which a diagonal would skip.
            turn = {n: way[0] * (n[0] - at[0]) + way[1] * (n[1] - at[1]) for n in choices}
            following = max(choices, key=lambda n: (turn[n], -abs(n[0] - at[0]) - abs(n[1] - at[1])))
            back = stroke[-4] if len(stroke) > 3 else stroke[0]
            way = (following[0] - back[0], following[1] - back[1])
            stroke.append(following)
            left.discard(following)
            at = following
        strokes.append(stroke)
    return sorted(strokes, key=len, reverse=True)


def _touches(stroke: list[Pixel], lines: np.ndarray) -> bool:
    """Whether it is a crumb of another line: thick lines leave some when they are thinned."""
    around = {(at[0] + r, at[1] + c) for at in stroke for r, c in AROUND} - set(stroke)
    return any(0 <= r < lines.shape[0] and 0 <= c < lines.shape[1] and lines[r, c] for r, c in around)


def order(grey: np.ndarray) -> np.ndarray:
    """When each pixel of a drawing was drawn, as a share of the length of its lines.

    Args:
        grey: ``[H, W]`` uint8, dark on white.

    Returns:
        ``[H, W]`` float32: 0 is paper, the first line begins just above 0 and the last ends at 1. All 0 if there is no line.
    """
    darkness = 255 - grey.astype(np.int16)
    lines = thin(darkness > min(INK, int(darkness.max(initial=0)) // 2))
    when = np.zeros(grey.shape, dtype=np.float32)
    strokes = walk(lines) if darkness.max(initial=0) > FAINT else []
    path = [at for stroke in strokes if len(stroke) >= LEAST or not _touches(stroke, lines) for at in stroke]
    path = path or [at for stroke in strokes for at in stroke]
    if not path:
        return when
    points = np.array(path, dtype=np.float32)
    share = np.arange(1, len(path) + 1, dtype=np.float32) / len(path)
    ink = np.argwhere(darkness > FAINT)
    for start in range(0, len(ink), 2048):  # the nearest pixel of a line says when
        block = ink[start : start + 2048]
        apart = ((block[:, None].astype(np.float32) - points) ** 2).sum(axis=2)
        when[block[:, 0], block[:, 1]] = share[apart.argmin(axis=1)]
    return when
