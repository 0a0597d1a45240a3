"""Galleries made ready for many searches: packed for a CPU, prepared for a GPU, or of 8 bits."""

from typing import NamedTuple

import torch  # before _C: both then share one OpenMP runtime
from torch import Tensor

from splip import _C
from splip.ops import reference
from splip.ops.dispatch import float_dtype, place


class PackedGallery(NamedTuple):
    """A gallery made ready for many searches on the CPU by :func:`pack_gallery`."""

    rows: Tensor  # [N, D] float32: what was packed
    panels: Tensor  # uint8: rows in 8 bits, in the order of the scan
    scale: Tensor  # [ceil(N / 32) * 32] float32
    error: Tensor  # [ceil(N / 32) * 32] float32: length of what 8 bits lost
    inverse: Tensor  # [N] float64: 1 / norm
    centre: Tensor  # [D + 1] float32: mean of the unit rows (of many: of a part), and the greatest length less it

    @property
    def shape(self) -> torch.Size:
        """``[N, D]``."""
        return self.rows.shape

    def addresses(self) -> dict[str, int]:
        """Of its tensors, by the names that the native module has for them."""
        rows, *others = (t.data_ptr() for t in self)
        return {"gallery": rows, **dict(zip(self._fields[1:], others, strict=True))}


class PreparedGallery(NamedTuple):
    """A gallery made ready for many searches on a GPU by :func:`pack_gallery`."""

    rows: Tensor  # [N, P]: what was prepared; P is D rounded up to 16 bytes, zeros past D
    inverse: Tensor  # [N] float32: 1 / norm; NaN: a row without a score
    width: int  # D

    @property
    def shape(self) -> torch.Size:
        """``[N, D]``."""
        return torch.Size((len(self.rows), self.width))


def aligned(count: int, alignment: int = 64) -> Tensor:
    """``count`` bytes at an aligned address."""
    memory = torch.empty(count + alignment, dtype=torch.uint8)
    start = -memory.data_ptr() % alignment
    return memory[start : start + count]


def pack_gallery(gallery: Tensor) -> "PackedGallery | PreparedGallery":
    """Make a gallery ready for many exact searches: pass the result to :func:`cosine_topk` in place of the gallery.

    On the CPU its rows are packed in 8 bits beside it: a quarter more memory, several times the speed. On a GPU the
    rows' norms are kept, which each search of more than a few queries would have to sum again, and rows that are not
    a multiple of 16 bytes long are copied into longer ones. Rows are kept, not copied otherwise: do not change them.

    Args:
        gallery: ``[N, D]``, on the CPU float32, on a GPU float32, float16 or bfloat16. ``N < 2**31``, ``D <= 65536``.

    Raises:
        ValueError: another shape, dtype or device.
    """
    if gallery.dim() != 2 or not 1 <= gallery.shape[1] <= 65536 or gallery.shape[0] >= 2**31:
        raise ValueError(f"gallery must be [N, D], N < 2**31, 1 <= D <= 65536, got {list(gallery.shape)}")
    if gallery.device.type == "cuda":
        return prepare_gallery(gallery.detach())
    if gallery.dtype != torch.float32 or gallery.device.type != "cpu":
        raise ValueError(f"gallery must be float32 on the CPU, got {gallery.dtype} on {gallery.device}")
    return pack_for_cpu(gallery)


def prepare_gallery(gallery: Tensor) -> PreparedGallery:
    """On any device, for tests."""
    float_dtype("gallery", gallery)
    N, D = gallery.shape
    rows = torch.nn.functional.pad(gallery, (0, -D % (16 // gallery.element_size()))).contiguous()
    inverse = gallery.new_empty(N, dtype=torch.float32)
    for first in range(0, N, QUANTISE_ROWS):
        part = slice(first, first + QUANTISE_ROWS)
        norm = rows[part].double().norm(dim=1)
        inverse[part] = (1 / norm.clamp_min(reference.MIN_NORM)).where(norm.square() <= LONGEST, torch.nan)
    return PreparedGallery(rows, inverse, D)


def pack_for_cpu(gallery: Tensor) -> PackedGallery:
    rows = gallery.detach().contiguous()
    (N, D), threads = rows.shape, torch.get_num_threads()
    padded = (N + 31) // 32 * 32
    packed = PackedGallery(
        rows,
        aligned(_C.packed_panel_bytes(N, D)),
        torch.empty(padded),
        torch.empty(padded),
        torch.empty(N, dtype=torch.float64),
        torch.empty(D + 1),
    )
    scratch = aligned(_C.pack_gallery_scratch(D=D, threads=threads))
    _C.pack_gallery(**packed.addresses(), scratch=scratch.data_ptr(), N=N, D=D, **place(rows))
    return packed


class EightBitGallery(NamedTuple):
    """A gallery in 8 bits for searches on a GPU, by :func:`eight_bit_gallery`."""

    rows: Tensor | None  # [N, D] what it was made of, for exact scores
    bytes: Tensor  # [N, P] int8: unit rows less their mean; P is D rounded up to 16
    scale: Tensor  # [N] float32; NaN: a row without a score
    error: Tensor  # [N] float32: at least the length of what 8 bits lost
    centre: Tensor  # [D + 1] float32: mean of the unit rows, and at least the length of any row in 8 bits

    @property
    def shape(self) -> torch.Size:
        """``[N, D]``."""
        return torch.Size((len(self.bytes), len(self.centre) - 1))

    def approximate(self) -> Tensor:
        """The unit rows as 8 bits remember them, float32 ``[N, D]``."""
        return self.bytes[:, : self.shape[1]] * self.scale[:, None] + self.centre[:-1]


QUANTISE_ROWS = 1 << 16  # at a time


def eight_bit_gallery(gallery: Tensor, keep_rows: bool = True) -> EightBitGallery:
    """Quantise a gallery to 8 bits, so that searches on a GPU read half the bytes and multiply twice as fast.

    Pass the result to :func:`cosine_topk` in place of the gallery. With its rows kept, which are not copied and must
    not change, results are the same as without 8 bits: exact. Without them it takes half the memory of a 16-bit
    gallery, and results are approximate: exact in the rows as 8 bits remember them, whose scores are off by at most
    ``error``, 0.007 at D = 512.

    Args:
        gallery: ``[N, D]``, float32, float16 or bfloat16, on any device. ``D <= 65536``.
        keep_rows: keep ``gallery`` for exact scores.

    Raises:
        ValueError: another shape or dtype.
    """
    if gallery.dim() != 2 or not 1 <= gallery.shape[1] <= 65536:
        raise ValueError(f"gallery must be [N, D], 1 <= D <= 65536, got {list(gallery.shape)}")
    float_dtype("gallery", gallery)
    rows = gallery.detach().contiguous()
    N, D = rows.shape

    def unit(part: Tensor) -> Tensor:
        """NaN where a row has no score."""
        norm = part.double().norm(dim=1, keepdim=True)
        return (part.double() / norm.clamp_min(reference.MIN_NORM)).float().where(norm.square() <= LONGEST, torch.nan)

    made = EightBitGallery(
        rows if keep_rows else None,
        rows.new_zeros(N, -(-D // 16) * 16, dtype=torch.int8),
        rows.new_empty(N, dtype=torch.float32),
        rows.new_empty(N, dtype=torch.float32),
        rows.new_zeros(D + 1, dtype=torch.float32),
    )
    mean = sum((unit(p).nan_to_num_(0).sum(dim=0, dtype=torch.float64) for p in rows.split(QUANTISE_ROWS)), 0)
    centre = made.centre[:-1].add_(mean / max(1, N))
    for first in range(0, N, QUANTISE_ROWS):
        part = slice(first, first + QUANTISE_ROWS)
        residual = unit(rows[part]).sub_(centre)
        scale = residual.abs().amax(dim=1) / 127
        made.scale[part] = scale
        steps = (residual / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round_().nan_to_num_(0)
        made.bytes[part, :D] = steps.clamp_(-127, 127)
        steps *= scale[:, None]
        # A little more than it is, for the rounding of all of this.
        made.error[part] = (residual - steps).double().norm(dim=1).mul(1.0001).add(1e-6).nan_to_num_(0)
        longest = steps.double().norm(dim=1).nan_to_num_(0).max() * 1.0001
        torch.maximum(made.centre[-1], longest.float(), out=made.centre[-1])
    return made


# The largest square of a float32 row's length that has a score.
LONGEST = float(torch.finfo(torch.float32).max)
