"""The fused ops: checks, native call, shapes for tracing, gradients.

One name, three implementations: :mod:`splip.ops.reference` (plain PyTorch, the definition), C++ and
CUDA in ``csrc``. The functions here choose; where the native version does not apply (dtype, device,
a build without CUDA) the reference gives the same result, slower.

Sizes: B batch, L tokens, P prompts, T = L - replace + P, D width, Q queries, N gallery, K results,
C channels, H W image, S patch, M patches.
"""

from splip.ops.dispatch import reference_only
from splip.ops.layernorm import prompt_layernorm
from splip.ops.patches import patchify
from splip.ops.quantized import EightBitGallery, PackedGallery, PreparedGallery, eight_bit_gallery, pack_gallery
from splip.ops.topk import cosine_topk

__all__ = [
    "EightBitGallery", "PackedGallery", "PreparedGallery", "cosine_topk", "eight_bit_gallery", "pack_gallery", "patchify",
    "prompt_layernorm", "reference_only",
]  # fmt: skip
