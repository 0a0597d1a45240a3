"""The fused ops: checks, native call, shapes for tracing, gradients.

One name, three implementations: :mod:`splip.ops.reference` (plain PyTorch, the definition), C++ and
CUDA in ``csrc``. The functions here choose; where the native version does not apply (dtype, device,
a build without CUDA) the reference gives the same result, slower.

Sizes: B batch, L tokens, P prompts, T = L - replace + P, D width, Q queries, N gallery, K results,
C channels, H W image, S patch, M patches.
"""

from typing import Any

import torch  # before _C: both then share one OpenMP runtime
from torch import Tensor

from splip import _C
from splip.ops import host, reference
from splip.ops.dispatch import DTYPES, address, call, float_dtype, native, place, register, same_device
from splip.ops.quantized import EightBitGallery, PackedGallery, PreparedGallery, aligned, pack_for_cpu

PACK_QUERIES, PACK_ROWS = 9, 4096  # from here on packing a gallery for one search costs less than it saves
PACK_QUERIES_SCALAR = 96  # with the portable kernels, whose scan saves less


def _packed_topk(queries: Tensor, gallery: PackedGallery, k: int, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    queries = queries.detach().contiguous()
    (Q, D), N, where = queries.shape, len(gallery.rows), place(queries)
    scores, indices = queries.new_empty(Q, k), queries.new_empty(Q, k, dtype=torch.int64)
    if not Q or not k:
        return scores, indices
    bits = None
    if allowed is not None:
        bits = torch.from_numpy(host.bits(allowed.contiguous().numpy()))
    scratch = aligned(_C.packed_topk_scratch(Q=Q, D=D, K=k, threads=where["threads"]))
    # fmt: off
    _C.packed_topk(
        queries=queries.data_ptr(), allowed=address(bits), scores=scores.data_ptr(), indices=indices.data_ptr(),
        scratch=scratch.data_ptr(), Q=Q, N=N, D=D, K=k, **gallery.addresses(), **where,
    )
    # fmt: on
    return scores, indices


def cosine_topk(
    queries: Tensor,  # [Q, D]
    gallery: Tensor | PackedGallery | PreparedGallery | EightBitGallery,  # [N, D]
    k: int,
    allowed: Tensor | None = None,  # [N]
) -> tuple[Tensor, Tensor]:
    """The ``k`` gallery rows of largest cosine similarity for each query.

    Same as ``(normalize(queries) @ normalize(gallery).T).topk(k)``, without the score matrix and with
    a fixed order: score descending, then index ascending. Rows need not be normalised.

    Args:
        queries: ``[Q, D]``, float32, float16 or bfloat16.
        gallery: ``[N, D]``, same dtype; or one made ready by :func:`pack_gallery`, for searches that are several
            times faster on the CPU, up to twice on a GPU, exact all the same (scores are sums in float64) and have
            no gradient; or one of :func:`eight_bit_gallery`, without a gradient either.
        k: results per query, ``0 <= k <= N``.
        allowed: bool ``[N]``: rows that may be results; on the CPU for packed galleries only. With fewer than
            ``k``, the last results are index -1 at ``-inf``.

    Returns:
        ``(scores, indices)``: ``[Q, k]`` float32 and ``[Q, k]`` int64. A zero row scores 0. A score
        that is not a number (a row holds NaN, infinity, or is too long for float32) counts and is
        reported as ``-inf``.

    Raises:
        ValueError: a shape, dtype or device does not match, or ``k > N``.

    Native on: CPU (float32), CUDA (all three, ``k <= 1024``, ``N < 2**31``, ``D <= 65536``). Elsewhere: PyTorch.
    Scores are differentiable in queries and gallery.

    On CUDA the answer is exact: scores are cosines of the given rows, summed in float64 and rounded to
    float32, and no row is missed. A scan in the rows' own precision (float32 rows: tf32) keeps every row that
    rounding could have kept out, these are scored again in float64, and a query whose candidates do not fit
    is scanned in float64 altogether. Rows in 8 bits come with bounds of what that changes. Exactness follows from a bound on how the tensor cores round, taken at
    more than what is known of them. Nothing synchronises, so a CUDA graph can record the call.
    """
    shape = gallery.shape
    if queries.dim() != 2 or len(shape) != 2 or queries.shape[1] != shape[1] or not queries.shape[1]:
        raise ValueError(
            f"queries and gallery must be [Q, D] and [N, D], D >= 1, got {list(queries.shape)} and {list(gallery.shape)}"
        )
    float_dtype("queries", queries)
    if isinstance(gallery, PackedGallery):
        return _check_packed_topk(queries, gallery, k, allowed)
    if isinstance(gallery, PreparedGallery):
        return _check_prepared_topk(queries, gallery, k, allowed)
    if isinstance(gallery, EightBitGallery):
        return _check_eight_bit_topk(queries, gallery, k, allowed)
    if allowed is not None and not queries.is_cuda:
        raise ValueError("allowed needs a packed gallery on the CPU: see pack_gallery")
    if gallery.dtype != queries.dtype:
        raise ValueError(f"gallery must be {queries.dtype} like queries, got {gallery.dtype}")
    if not 0 <= k <= gallery.shape[0]:
        raise ValueError(f"k must be between 0 and the gallery's size {gallery.shape[0]}, got {k}")
    if allowed is not None:
        _check_allowed(allowed, gallery.shape[0])
    same_device(queries=queries, gallery=gallery, allowed=allowed)
    if not native(queries, (torch.float32,)) or _too_much_for_cuda(queries, shape, k):
        return reference.cosine_topk(queries, gallery, k, allowed)
    return call(_cosine_topk, _cosine_topk_native, queries, gallery, k, allowed)


def _too_much_for_cuda(queries: Tensor, shape: torch.Size, k: int) -> bool:
    return queries.is_cuda and (k > _C.cuda_max_k or shape[0] >= 2**31 or shape[1] > _C.cuda_max_width)


def _check_ready_topk(
    queries: Tensor, gallery: PreparedGallery | EightBitGallery, scanned: Tensor, k: int, allowed: Tensor | None
) -> None:
    N = gallery.shape[0]
    if gallery.rows is not None and gallery.rows.dtype != queries.dtype:
        raise ValueError(f"queries must be {gallery.rows.dtype} like the gallery's rows, got {queries.dtype}")
    if not 0 <= k <= N:
        raise ValueError(f"k must be between 0 and the gallery's size {N}, got {k}")
    if allowed is not None:
        _check_allowed(allowed, N)
    same_device(queries=queries, gallery=scanned, allowed=allowed)


def _check_eight_bit_topk(
    queries: Tensor, gallery: EightBitGallery, k: int, allowed: Tensor | None
) -> tuple[Tensor, Tensor]:
    _check_ready_topk(queries, gallery, gallery.bytes, k, allowed)
    queries = queries.detach()
    if native(queries, ()) and not _too_much_for_cuda(queries, gallery.shape, k):
        return _cuda_topk(queries, gallery, k, allowed)
    if gallery.rows is not None:
        return reference.cosine_topk(queries, gallery.rows, k, allowed)
    return _approximate_topk(queries, gallery, k, allowed)


def _check_prepared_topk(
    queries: Tensor, gallery: PreparedGallery, k: int, allowed: Tensor | None
) -> tuple[Tensor, Tensor]:
    _check_ready_topk(queries, gallery, gallery.rows, k, allowed)
    queries = queries.detach()
    if native(queries, ()) and not _too_much_for_cuda(queries, gallery.shape, k):
        return _cuda_topk(queries, gallery, k, allowed)
    return reference.cosine_topk(queries, gallery.rows[:, : gallery.width], k, allowed)


def _approximate_topk(
    queries: Tensor, gallery: EightBitGallery, k: int, allowed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """In plain PyTorch. Approximate rows are nearly unit rows, and taken as they are: a column more makes all alike."""
    rows = gallery.approximate()
    length = 4.0  # longer than any: at D = 65536, 8 bits can change a unit row by 2
    rest = (length**2 - rows.square().sum(dim=1, keepdim=True)).sqrt()
    padded = torch.nn.functional.pad(queries.float(), (0, 1))
    scores, indices = reference.cosine_topk(padded, torch.cat([rows, rest], dim=1), k, allowed)
    return scores * length, indices


def _check_allowed(allowed: Tensor, N: int) -> None:
    if allowed.dtype != torch.bool or allowed.shape != (N,):
        raise ValueError(f"allowed must be bool [{N}], got {allowed.dtype} {list(allowed.shape)}")


def _check_packed_topk(
    queries: Tensor, gallery: PackedGallery, k: int, allowed: Tensor | None
) -> tuple[Tensor, Tensor]:
    N = gallery.shape[0]
    if queries.dtype != torch.float32 or queries.device.type != "cpu":
        raise ValueError(
            f"queries of a packed gallery must be float32 on the CPU, got {queries.dtype} on {queries.device}"
        )
    if not 0 <= k <= N:
        raise ValueError(f"k must be between 0 and the gallery's size {N}, got {k}")
    if allowed is not None:
        _check_allowed(allowed, N)
    check_pack(gallery)
    return _packed_topk(queries, gallery, k, allowed)


def check_pack(gallery: PackedGallery) -> None:
    """The scan reads what the sizes promise: an array that is too short would end the process."""
    N, D = gallery.shape
    sizes = {name: (getattr(torch, dtype.name), size) for name, (dtype, size) in host.sizes(N, D).items()}
    for (name, (dtype, size)), array in zip(sizes.items(), gallery, strict=True):
        if array.dtype != dtype or tuple(array.shape) != size or array.device.type != "cpu":
            found = f"{array.dtype} {list(array.shape)} on {array.device}"
            raise ValueError(f"{name} of a packed gallery [{N}, {D}] must be {dtype} {list(size)}, got {found}")
        if not array.is_contiguous():
            raise ValueError(f"{name} of a packed gallery must be contiguous")
    if gallery.panels.data_ptr() % 64:
        raise ValueError("panels of a packed gallery must begin at a multiple of 64 bytes")


# What CUDA's cosine_topk may take for the candidates of a block of queries.
_MOST_SCRATCH = 1 << 28


def _cosine_topk_native(
    queries: Tensor, gallery: Tensor, k: int, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    if queries.is_cuda:
        return _cuda_topk(queries, gallery, k, allowed)
    queries, gallery = queries.contiguous(), gallery.contiguous()
    (Q, D), N = queries.shape, gallery.shape[0]
    fewest = PACK_QUERIES_SCALAR if _C.isa() == "scalar" else PACK_QUERIES
    if fewest <= Q and PACK_ROWS <= N < 2**31 and D <= 65536:
        return _packed_topk(queries, pack_for_cpu(gallery), k, None)
    scores, indices = queries.new_empty(Q, k), queries.new_empty(Q, k, dtype=torch.int64)
    if Q and k:
        sizes, where = {"Q": Q, "N": N, "D": D, "K": k}, place(queries)
        scratch = queries.new_empty(_C.cosine_topk_scratch(**sizes, threads=where["threads"]), dtype=torch.uint8)
        # fmt: off
        _C.cosine_topk(
            queries=queries.data_ptr(), gallery=gallery.data_ptr(), scores=scores.data_ptr(),
            indices=indices.data_ptr(), scratch=scratch.data_ptr(), dtype=DTYPES[queries.dtype], **sizes, **where,
        )
        # fmt: on
    return scores, indices


# How CUDA multiplies, splip.h's TopkScan: what is not "automatic" is for tests and measurements.
SCANS = {"automatic": 0, "stream": 1, "tiles64": 2, "tiles128": 3, "tiles256": 4, "wgmma": 5}


def _cuda_topk(
    queries: Tensor,
    gallery: Tensor | PreparedGallery | EightBitGallery,
    k: int,
    allowed: Tensor | None = None,
    scan: str = "automatic",
) -> tuple[Tensor, Tensor]:
    rows: Tensor | None
    if isinstance(gallery, PreparedGallery):
        rows = gallery.rows
        queries = torch.nn.functional.pad(queries, (0, rows.shape[1] - gallery.width))
        N, pitch, eight_bits = len(rows), 0, {"inverse": gallery.inverse.data_ptr()}
    elif isinstance(gallery, EightBitGallery):
        rows, (N, pitch) = gallery.rows, gallery.bytes.shape
        eight_bits = {
            "eight_bit_rows": gallery.bytes.data_ptr(),
            "scale": gallery.scale.data_ptr(),
            "error": 0 if rows is None else gallery.error.data_ptr(),  # without the rows, 8 bits are all there is
            "centre": gallery.centre.data_ptr(),
            "pitch": pitch,
        }
    else:
        rows = gallery.contiguous()
        N, pitch, eight_bits = len(rows), 0, {}
    queries, (Q, D) = queries.contiguous(), queries.shape
    scores = queries.new_empty(Q, k, dtype=torch.float32)
    indices = queries.new_empty(Q, k, dtype=torch.int64)
    if not Q or not k:
        return scores, indices
    where = place(queries)
    mask = None if allowed is None else allowed.contiguous()

    def room(n: int) -> int:
        return _C.cosine_topk_scratch(Q=n, N=N, D=D, K=k, device=where["device"], scan=SCANS[scan], pitch=pitch)

    # Every query has room for its candidates in the scratch memory: take blocks of queries, all of a size.
    blocks = -(-Q // _C.cuda_max_queries)
    while blocks < Q and room(-(-Q // blocks)) > _MOST_SCRATCH:
        blocks += 1
    block = -(-Q // blocks)
    scratch = queries.new_empty(max(room(n) for n in {block, Q % block or block}), dtype=torch.uint8)
    for first in range(0, Q, block):
        q, s, i = (t[first : first + block] for t in (queries, scores, indices))
        # fmt: off
        _C.cosine_topk(
            queries=q.data_ptr(), gallery=address(rows), scores=s.data_ptr(), indices=i.data_ptr(),
            scratch=scratch.data_ptr(), Q=len(q), N=N, D=D, K=k, dtype=DTYPES[queries.dtype], scan=SCANS[scan],
            allowed=address(mask), **eight_bits, **where,
        )
        # fmt: on
    return scores, indices


_cosine_topk = register(
    "cosine_topk",
    _cosine_topk_native,
    "(Tensor queries, Tensor gallery, SymInt k, Tensor? allowed=None) -> (Tensor, Tensor)",
)


@_cosine_topk.register_fake
def _(queries: Tensor, gallery: Tensor, k: int, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    Q = queries.shape[0]
    return queries.new_empty(Q, k, dtype=torch.float32), queries.new_empty(Q, k, dtype=torch.int64)


def _cosine_topk_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    queries, gallery, _, _ = inputs
    scores, indices = output
    ctx.mark_non_differentiable(indices)
    ctx.save_for_backward(queries, gallery, scores, indices)


def _cosine_topk_gradient(ctx: Any, d_scores: Tensor, _: Any) -> Any:
    """d cos(q, g) / d q = (g / |g| - cos * q / |q|) / |q|, and the same with q and g exchanged."""
    queries, gallery, scores, indices = ctx.saved_tensors
    missing = indices < 0  # fewer allowed rows than results: no row, no gradient
    scores, indices = scores.masked_fill(missing, 0), indices.clamp_min(0)
    q, chosen = queries.float()[:, None], gallery.float()[indices]  # [Q, 1, D], [Q, K, D]
    q_scale = 1 / q.norm(dim=2, keepdim=True).clamp_min(reference.MIN_NORM)
    g_scale = 1 / chosen.norm(dim=2, keepdim=True).clamp_min(reference.MIN_NORM)
    q_unit, g_unit, cosine = q * q_scale, chosen * g_scale, scores[:, :, None]
    weight = d_scores.masked_fill(missing, 0)[:, :, None]
    d_queries = (weight * (g_unit - cosine * q_unit) * q_scale).sum(dim=1).to(queries.dtype)
    if not ctx.needs_input_grad[1]:  # a fixed gallery: spare its [N, D] gradient
        return d_queries, None, None, None
    d_chosen = weight * (q_unit - cosine * g_unit) * g_scale
    d_gallery = torch.zeros_like(gallery, dtype=torch.float32)
    d_gallery = d_gallery.index_add(0, indices.flatten(), d_chosen.flatten(0, 1)).to(gallery.dtype)
    return d_queries, d_gallery, None, None


_cosine_topk.register_autograd(_cosine_topk_gradient, setup_context=_cosine_topk_context)
