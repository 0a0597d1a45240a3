"""A small backbone of every family, of the libraries' own classes: importing this makes their names known.

Register tokens, LayerScale, rotary positions, gated MLPs and inner norms are as in the large ones. What random weights
make nothing of (LayerScale of 1e-5, class tokens of 1e-6, zeros) :func:`lively` fills with numbers that matter.
"""

import json
import sys
import tempfile
import types
from pathlib import Path

import open_clip
import timm
import torch
from timm.models import convnext, eva, fastvit, vision_transformer, vision_transformer_hybrid
from torch import nn

SIDE = 32
TEXT = {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
SMALL = {"img_size": SIDE, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4}
SIGLIP_TEXT = {
    "context_length": 16, "vocab_size": 64, "hf_tokenizer_name": "splip-tests/none",
    "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
    "width": 48, "heads": 2, "layers": 3, "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"},
}  # fmt: skip
NAMES = {
    "clip": "tiny-clip", "siglip": "tiny-siglip", "eva": "tiny-eva", "pe": "tiny-pe", "mobile-vit": "tiny-mobile-vit",
    "dinov2": "timm:tiny_dinov2", "dinov2-reg": "timm:tiny_dinov2_reg", "dinov3": "timm:tiny_dinov3",
    "whole-text": "tiny-whole-text", "mobile": "tiny-mobile", "convnext": "tiny-convnext", "resnet": "tiny-resnet",
}  # fmt: skip


def _mobile_vit(pretrained=False, **options):
    """MobileCLIP's ViT, whose patches come of a convolutional stem with BatchNorms; its width is fixed in timm's own."""
    stem = vision_transformer_hybrid.ConvStem(channels=(12, 12, 48), kernel_size=(4, 2, 2), stride=(4, 2, 2), padding=0)
    options = {"embed_dim": 48, "depth": 3, "num_heads": 4, "no_embed_class": True, "img_size": SIDE} | options
    return vision_transformer_hybrid._create_vision_transformer_hybrid(
        "vit_base_mci_224", backbone=stem, embed_args={"proj": False}, pretrained=pretrained, **options
    )


TRUNKS = {
    "tiny_siglip": (vision_transformer.vit_base_patch16_siglip_224, SMALL),
    "tiny_eva": (eva.eva02_base_patch16_clip_224, SMALL),
    "tiny_pe": (eva.vit_pe_core_tiny_patch16_384, SMALL),
    "tiny_mobile_vit": (_mobile_vit, {}),
    "tiny_dinov2": (vision_transformer.vit_small_patch14_dinov2, SMALL),
    "tiny_dinov2_reg": (vision_transformer.vit_small_patch14_reg4_dinov2, SMALL),
    "tiny_dinov3": (eva.vit_small_patch16_dinov3, SMALL),
    "tiny_fastvit": (fastvit.fastvit_mci0, {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32)}),
    "tiny_convnext": (convnext.convnext_base, {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
}


def _trunk(name):
    base, options = TRUNKS[name]

    def build(pretrained=False, **more):
        return base(pretrained=pretrained, **(options | more))

    build.__name__ = name
    return build


def _timm(name, pool, proj=None, **text):
    vision = {"image_size": SIDE, "timm_model_name": name, "timm_pool": pool, "timm_proj": proj}
    return {"embed_dim": 24, "custom_text": True, "vision_cfg": vision, "text_cfg": TEXT | text}


CONFIGS = {
    "tiny-clip": {
        "embed_dim": 24, "text_cfg": TEXT,
        "vision_cfg": {"image_size": SIDE, "layers": 3, "width": 64, "patch_size": 8, "head_width": 16},
    },
    "tiny-siglip": _timm("tiny_siglip", "map", "none") | {"embed_dim": 48, "init_logit_bias": -10, "text_cfg": SIGLIP_TEXT},
    "tiny-eva": _timm("tiny_eva", "token"),
    "tiny-whole-text": _timm("tiny_eva", "token", no_causal_mask=True),
    "tiny-pe": _timm("tiny_pe", "map"),
    "tiny-mobile-vit": _timm("tiny_mobile_vit", "token"),
    "tiny-mobile": _timm("tiny_fastvit", "avg", no_causal_mask=True),
    "tiny-convnext": _timm("tiny_convnext", "", "linear"),
    "tiny-resnet": {
        "embed_dim": 24, "text_cfg": TEXT,
        "vision_cfg": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    },
}  # fmt: skip


def _register():
    module = types.ModuleType("splip_tiny_trunks")
    sys.modules[module.__name__] = module
    for name in TRUNKS:
        build = _trunk(name)
        build.__module__ = module.__name__
        timm.models.register_model(build)
    with tempfile.TemporaryDirectory() as folder:
        for name, config in CONFIGS.items():
            Path(folder, f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder)


if "tiny-clip" not in open_clip.list_models():
    _register()


@torch.no_grad()
def lively(module: nn.Module, seed: int = 0) -> None:
    """Every norm, LayerScale, token and statistic far from where it starts, so that each of them matters."""
    generator = torch.Generator().manual_seed(seed)

    def noise(t, scale):
        return torch.randn(t.shape, generator=generator) * scale

    for name, p in module.named_parameters():
        last = name.rpartition(".")[2]
        if "gamma" in last:  # LayerScale
            p.copy_(1 + noise(p, 0.3))
        elif last in ("cls_token", "reg_token", "pos_embed", "latent"):
            p.copy_(noise(p, 0.5))
        elif p.dim() == 1:
            p.add_(noise(p, 0.2))
        elif "head" in name or "proj" in name or p.abs().max() == 0:
            p.copy_(noise(p, p.shape[-1] ** -0.5))
    for name, b in module.named_buffers():
        if name.endswith("running_mean"):
            b.copy_(noise(b, 0.2))
        elif name.endswith("running_var"):
            b.copy_(0.5 + noise(b, 0.3).abs())


class Words:
    """A tokenizer of Hugging Face's kind without a hub: a word an id; texts end with 1 and are filled up with 0."""

    start, ends, context_length = 0, (1, 0), 16

    def __call__(self, texts, context_length=None):
        rows = torch.zeros(len(texts), context_length or self.context_length, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            ids = [*(2 + sum(map(ord, word)) % 62 for word in text.split()), 1]
            row[: len(ids)] = torch.tensor(ids)[: len(row)]
        return rows

    def count(self, text):
        return len(text.split()) + 1
