"""One committed state of a gallery, as a search sees it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from splip.gallery.scan import Part

if TYPE_CHECKING:
    pass

SEGMENT_ROWS = 262_144
TAIL_ROWS = 16_384  # that no pack file holds: a reader packs them when it opens
PLANS = 32  # filters whose rows are remembered


@dataclass(frozen=True)
class Segment:
    number: int
    count: int  # committed rows
    crc: int


@dataclass(frozen=True)
class State:
    """One committed revision, as a search sees it."""

    revision: int
    segments: tuple[Segment, ...]
    alive: dict[int, np.ndarray]  # bool [count] of segments with deleted rows
    live: int
    parts: tuple[Part, ...] = ()
    ready: bool = False  # the parts cover all segments: made so by the first search
