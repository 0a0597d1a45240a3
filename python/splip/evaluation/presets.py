"""Columns as the released code of others computes them, so that numbers can stand beside theirs.

Each is checked in the tests against that code's formula, written down anew. Which sketches search among which photos is
another matter: see :mod:`splip.evaluation.protocols`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from splip.evaluation.metrics import Column, map_column, precision_column, reachable_column


@dataclass(frozen=True)
class Preset:
    """What some code prints."""

    whose: str
    columns: Callable[[Sequence[int]], list[Column]]
    ks: tuple[int, ...]  # its own ranks
    mean: Literal["query_mean", "class_mean"]  # of which means it speaks


def _zse(ks: Sequence[int]) -> list[Column]:
    return [
        map_column(interpolated=True),
        *(map_column(k, interpolated=True) for k in ks[-1:]),
        *(reachable_column(k) for k in ks),
    ]


def _sake(ks: Sequence[int]) -> list[Column]:
    cut = [map_column(k, interpolated=True) for k in ks[-1:]]
    return [map_column(interpolated=True), *cut, *(precision_column(k) for k in ks)]


def _sempcyc(ks: Sequence[int]) -> list[Column]:
    return [map_column(), *(map_column(k, "h") for k in ks[-1:]), *(precision_column(k) for k in ks)]


def _clip_at(ks: Sequence[int]) -> list[Column]:
    return [map_column()]


PRESETS = {
    "zse": Preset("ZSE-SBIR (Lin et al., CVPR 2023)", _zse, (100, 200), "query_mean"),
    "sake": Preset("SAKE (Liu et al., ICCV 2019)", _sake, (100, 200), "class_mean"),
    "sempcyc": Preset("SEM-PCYC (Dutta and Akata, CVPR 2019)", _sempcyc, (100, 200), "query_mean"),
    "clip-at": Preset("CLIP-AT (Sain et al., CVPR 2023)", _clip_at, (), "query_mean"),
}
