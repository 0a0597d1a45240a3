"""The fused ops: checks, native call, shapes for tracing, gradients.

One name, three implementations: :mod:`splip.ops.reference` (plain PyTorch, the definition), C++ and
CUDA in ``csrc``. The functions here choose; where the native version does not apply (dtype, device,
a build without CUDA) the reference gives the same result, slower. :mod:`splip.ops.host` does without PyTorch.

Sizes: B batch, L tokens, P prompts, T = L - replace + P, D width, Q queries, N gallery, K results,
C channels, H W image, S patch, M patches.
"""

from typing import TYPE_CHECKING

from splip._lazy import lazy

if TYPE_CHECKING:
    from splip.ops.dispatch import reference_only as reference_only
    from splip.ops.layernorm import prompt_layernorm as prompt_layernorm
    from splip.ops.patches import patchify as patchify
    from splip.ops.quantized import EightBitGallery as EightBitGallery
    from splip.ops.quantized import PackedGallery as PackedGallery
    from splip.ops.quantized import PreparedGallery as PreparedGallery
    from splip.ops.quantized import eight_bit_gallery as eight_bit_gallery
    from splip.ops.quantized import pack_gallery as pack_gallery
    from splip.ops.topk import cosine_topk as cosine_topk

__getattr__, __dir__, __all__ = lazy(
    __name__,
    dispatch="reference_only",
    layernorm="prompt_layernorm",
    patches="patchify",
    quantized="EightBitGallery PackedGallery PreparedGallery eight_bit_gallery pack_gallery",
    topk="cosine_topk",
)
