"""Word embeddings that are made again from a number instead of being stored.

A tower whose words are random vectors, never trained, tells them apart as well as any; as weights they are most of a small
model's file. Every value is a hash of its place, in whole numbers, scaled by a power of two: the same bits on every
platform and in every version of any library, which no library's random generator promises.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from splip.errors import UserError

KEY, TENSOR = "seeded_words", "token_embedding.weight"
VERSION = 1  # of the hash: another way of making values gets another number
SCALE = 2.0**-21  # of a sum of four 16-bit numbers: a standard deviation of 0.018, open_clip's is 0.02
GOLDEN = 0x9E3779B97F4A7C15


def values(seed: int, rows: int, width: int) -> Tensor:
    """``[rows, width]`` float32, about normal: for each place the sum of the four quarters of a 64-bit hash (splitmix64).

    Args:
        seed: 0 to 2**32 - 1.
    """
    place = np.arange(rows * width, dtype=np.uint64) + np.uint64(seed << 32)
    with np.errstate(over="ignore"):
        z = (place + np.uint64(1)) * np.uint64(GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    total = np.zeros(z.shape, dtype=np.int64)
    for quarter in range(4):
        total += ((z >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)).astype(np.int64)
    # Whole numbers below 2**18 and a power of two: nothing is rounded.
    made = (total - 2 * 0xFFFF).astype(np.float32) * np.float32(SCALE)
    return torch.from_numpy(made.reshape(rows, width))


@torch.no_grad()
def plant(clip: Any, seed: int = 0) -> None:
    """Give a CLIP word embeddings that need not be stored."""
    weight = clip.token_embedding.weight
    weight.copy_(values(seed, *weight.shape))


def without_words(state: dict[str, Tensor], seed: int = 0) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A state without its word embeddings and what its file must say of them; the state itself if they are not seeded."""
    words = state.get(TENSOR)
    if words is None or words.dim() != 2 or not torch.equal(words.float().cpu(), values(seed, *words.shape)):
        return state, {}
    return {name: t for name, t in state.items() if name != TENSOR}, {KEY: f"{VERSION}:{seed}"}


def with_words(state: dict[str, Tensor], said: str, like: Tensor, path: str) -> dict[str, Tensor]:
    """A state with the word embeddings that its file leaves out.

    Args:
        said: what the file's metadata says of them.
        like: the embeddings that they replace.

    Raises:
        UserError: a way of making them that this version does not know.
    """
    version, _, seed = said.partition(":")
    if version != str(VERSION) or not seed.isdecimal() or int(seed) >= 2**32:
        raise UserError(f"{path}: its word embeddings are made in a way ({said[:40]}) that this version does not know")
    return state | {TENSOR: values(int(seed), *like.shape)}
