"""The jigsaw task of L_cjs: a fixed bank of tile permutations, and F_js that tells them apart.

Sizes: B pairs, P patches, d_v width of the visual tower, Y permutations of g x g tiles.
"""

import functools
import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn

WITH_HEAD = {"conditional"}  # forms of the jigsaw loss (loss.jigsaw_form) that train a JigsawHead


def permutation_bank(count: int, grid: int = 3, seed: int = 0) -> Tensor:
    """Permutations of grid x grid tiles that differ from each other in as many places as possible.

    Greedy, as Noroozi & Favaro (2016): each next one has the largest smallest Hamming distance to
    those chosen, the largest sum of distances among equals, the seed decides the rest. The identity is left out.

    Returns:
        ``[count, grid * grid]`` int64.

    Raises:
        ValueError: more than there are, or a grid whose permutations cannot be listed.
    """
    tiles = grid * grid
    if not 2 <= grid <= 3:
        raise ValueError(f"grid must be 2 or 3, got {grid}")
    if not 2 <= count < math.factorial(tiles):
        raise ValueError(f"count must be between 2 and {math.factorial(tiles) - 1}, got {count}")
    return _bank(count, tiles, seed).clone()


@functools.cache
def _bank(count: int, tiles: int, seed: int) -> Tensor:
    everything = _all_permutations(tiles)[:, 1:]  # the identity is the first
    everything = everything[:, np.random.default_rng(seed).permutation(everything.shape[1])]
    chosen = [0]
    nearest = np.full(everything.shape[1], tiles, dtype=np.int64)
    total = np.zeros(everything.shape[1], dtype=np.int64)
    for _ in range(count - 1):
        distance = sum((row != row[chosen[-1]]).view(np.int8) for row in everything)
        nearest, total = np.minimum(nearest, distance), total + distance
        # One number that sorts by the smallest distance, then by the sum.
        chosen.append(int((nearest * (tiles * count + 1) + total).argmax()))
    return torch.from_numpy(everything[:, chosen].T.astype(np.int64))


@functools.cache
def _all_permutations(tiles: int) -> np.ndarray:
    """``[tiles, tiles!]`` int8, in lexical order: one row for each place, so that rows compare quickly."""
    numbers = itertools.chain.from_iterable(itertools.permutations(range(tiles)))
    flat = np.fromiter(numbers, dtype=np.int8, count=tiles * math.factorial(tiles))
    return np.ascontiguousarray(flat.reshape(-1, tiles).T)


class JigsawHead(nn.Module):
    """F_js: which permutation was a picture cut up by, given a whole picture and the pieces?

    A transformer encoder of two layers over the visual tokens of both pictures, and a classifier
    (paper). Width, heads, and a learned token that is read off are ours.

    Args:
        patches: P; each picture brings 1 + P tokens.
        visual_width: d_v.
        permutations: Y.
        width: of the encoder, 32 for each head of its attention.
    """

    def __init__(self, patches: int, visual_width: int, permutations: int, width: int = 256) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(visual_width)
        self.project = nn.Linear(visual_width, width)
        self.read = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.place = nn.Parameter(torch.randn(2, 1 + patches, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, width // 32, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classify = nn.Linear(width, permutations)

    def forward(self, whole: Tensor, pieces: Tensor) -> Tensor:
        """Two ``[B, 1 + P, d_v]`` to logits ``[B, Y]``."""
        parts = [self.project(self.norm(t)) + place for t, place in zip((whole, pieces), self.place, strict=True)]
        x = torch.cat([self.read.expand(len(whole), -1, -1), *parts], dim=1)
        out: Tensor = self.classify(self.encoder(x)[:, 0])
        return out
