"""Smaller vectors: their first components, whole numbers of 8 bits, and single bits.

The first components are of use where training cared for them (``loss.matryoshka``). Numbers of 8 bits keep the order of a
cosine to about a hundredth, bits keep less of it: search with them for many, and rank those again with floats.
"""

import numpy as np


def first(vectors: np.ndarray, size: int) -> np.ndarray:
    """The first components of vectors, at unit length again.

    Args:
        vectors: float32 ``[..., D]``.
        size: components to keep; all of them: the vectors as they are.

    Returns:
        float32 ``[..., size]``.
    """
    if size == vectors.shape[-1]:
        return vectors
    head = vectors[..., :size]
    return np.ascontiguousarray(head / np.maximum(np.linalg.norm(head, axis=-1, keepdims=True), np.float32(1e-12)))


def int8(vectors: np.ndarray) -> np.ndarray:
    """Each vector scaled by itself so that its largest component is 127 or -127, which a cosine does not notice.

    Args:
        vectors: float32 ``[..., D]``.

    Returns:
        int8 ``[..., D]``; zeros of zeros.
    """
    largest = np.abs(vectors).max(axis=-1, keepdims=True, initial=0)
    return np.rint(vectors * (127 / np.maximum(largest, np.float32(1e-12)))).astype(np.int8)


def ubinary(vectors: np.ndarray) -> np.ndarray:
    """The signs of the components, eight in a byte, the first in its highest bit; what is above 0 is 1.

    Args:
        vectors: float32 ``[..., D]``, D a multiple of 8.

    Returns:
        uint8 ``[..., D / 8]``.

    Raises:
        ValueError: another D.
    """
    if vectors.shape[-1] % 8:
        raise ValueError(f"bits come in bytes: D must be a multiple of 8, got {vectors.shape[-1]}")
    return np.packbits(vectors > 0, axis=-1)


def binary(vectors: np.ndarray) -> np.ndarray:
    """:func:`ubinary` with 128 taken from every byte, as int8: what databases without unsigned numbers take."""
    return (ubinary(vectors).astype(np.int16) - 128).astype(np.int8)
