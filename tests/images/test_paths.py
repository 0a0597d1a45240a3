"""Points of SVG drawings, computed by hand."""

import numpy as np
import pytest

from splip.errors import UserError
from splip.images import paths


def svg(body):
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">{body}</svg>'.encode()


def lines(body):
    return [line.round(6).tolist() for line in paths.strokes(svg(body))]


@pytest.mark.parametrize(
    ("d", "want"),
    [
        ("M1 2L3 4", [[[1, 2], [3, 4]]]),
        ("m1,2 2,2 1-1", [[[1, 2], [3, 4], [4, 3]]]),  # further pairs are lines
        ("M0 0h5v5H1V2", [[[0, 0], [5, 0], [5, 5], [1, 5], [1, 2]]]),
        ("M0 0L4 0L4 4Z", [[[0, 0], [4, 0], [4, 4], [0, 0]]]),
        ("M0 0L4 0zl1 1", [[[0, 0], [4, 0], [0, 0]], [[0, 0], [1, 1]]]),  # goes on where it was closed
        ("M0 0L1 0M5 5L6 5", [[[0, 0], [1, 0]], [[5, 5], [6, 5]]]),  # the pen was lifted
    ],
)
def test_straight_lines(d, want):
    assert lines(f'<path d="{d}"/>') == want


def middle(d):
    """The curve's points at its half and its end."""
    (line,) = paths.strokes(svg(f'<path d="{d}"/>'))
    return line[-1 - paths.PIECES // 2].tolist(), line[-1].tolist()


def test_curves_pass_where_de_casteljau_says():
    assert middle("M0 0C0 4 8 4 8 0") == ([4, 3], [8, 0])
    assert middle("M0 0Q4 8 8 0") == ([4, 4], [8, 0])
    assert middle("M0 0Q4 8 8 0T16 0") == ([12, -4], [16, 0])  # the handle is mirrored
    assert middle("M0 0C0 4 8 4 8 0S16 -4 16 0") == ([12, -3], [16, 0])


@pytest.mark.parametrize(
    ("flags", "want"), [("0 1", [5, -5]), ("0 0", [5, 5]), ("1 1", [5, -5]), ("1 0", [5, 5])]
)  # y grows downwards: sweep goes over the top
def test_half_circles(flags, want):
    half, end = middle(f"M0 0A5 5 0 {flags} 10 0")
    assert np.allclose(half, want) and end == [10, 0]


def test_quarter_circles_small_and_large():
    # Centres are (0, 5) and (5, 0): of the arcs from (0, 0) to (5, 5).
    small, _ = middle("M0 0A5 5 0 0 1 5 5")
    large, _ = middle("M0 0A5 5 0 1 1 5 5")
    root = 5 / np.sqrt(2)
    assert np.allclose(small, [root, 5 - root]) and np.allclose(large, [5 + root, -root])
    assert np.allclose(middle("M0 0A5 5 0 0110 0")[1], [10, 0])  # flags without anything between


def test_shapes_transforms_and_order():
    body = (
        '<g transform="translate(10 0)"><line x1="0" y1="0" x2="1" y2="0"/><g transform="scale(2)">'
        '<polyline points="0,0 1,1"/></g></g><rect x="1" y="2" width="3" height="4"/><polygon points="0 0 1 0 0 1"/>'
    )
    assert lines(body) == [
        [[10, 0], [11, 0]],
        [[10, 0], [12, 2]],
        [[1, 2], [4, 2], [4, 6], [1, 6], [1, 2]],
        [[0, 0], [1, 0], [0, 1], [0, 0]],
    ]
    assert lines('<line x1="1" x2="2" transform="rotate(90)"/>') == [[[0, 1], [0, 2]]]
    assert lines('<line x1="1" x2="2" transform="rotate(180 1 0)"/>') == [[[1, 0], [0, 0]]]
    assert lines('<line x2="1" transform="matrix(1 2 3 4 5 6)"/>') == [[[5, 6], [6, 8]]]
    (circle,) = paths.strokes(svg('<circle cx="5" cy="5" r="2"/>'))
    assert np.allclose(np.hypot(*(circle - 5).T), 2)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('<path d="L1 1"/>', "does not begin with M"),
        ('<path d="M1"/>', "M of a path takes 2 numbers, got 1"),
        ('<path d="M0 0K1"/>', "a path's command that is none: 'K'"),
        ('<path d="M0 0A1 1 0 2 0 1 1"/>', "an arc's numbers are none"),
        ('<path d="M1e999 0L1 1"/>', "not finite"),
        ('<line x2="1" transform="bend(1)"/>', "a transform that is none"),
        ('<image href="x"/>', "image"),
    ],
)
def test_what_is_no_drawing_is_said(body, message):
    with pytest.raises(UserError, match="SVG") as caught:
        paths.strokes(svg(body))
    assert message in str(caught.value)
