"""timm's ViTs: SigLIP (pooled by attention), EVA02 and PE-Core (rotary positions), DINOv2 and DINOv3 (register tokens).

timm has two classes for them, ``VisionTransformer`` and ``Eva``, that are laid out alike. open_clip wraps either in a
``TimmModel`` with a projection; one that timm names alone is pooled as timm pools it.
"""

import copy
from typing import Any

import torch
from timm.layers import Attention, AttentionPoolLatent, HybridEmbed, Mlp, SwiGLU, apply_rot_embed_cat
from timm.layers.attention import AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from splip.errors import UserError
from splip.models.towers.base import Affine, Constants, Head, Norm, Parts, VisualTower
from splip.models.towers.clip import scaled


class TimmViT(VisualTower):
    """A pre-norm ViT of timm, with any number of class and register tokens before the patches."""

    family = "timm ViT"

    def __init__(self, module: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(module, mean, std)
        trunk = self.trunk = getattr(module, "trunk", module)
        self.image_size = int(trunk.patch_embed.img_size[0])
        self.grid = tuple(int(side) for side in trunk.patch_embed.grid_size)
        self.patch_size = self.image_size // self.grid[0]
        self.patches = self.grid[0] * self.grid[1]
        self.prefix = int(trunk.num_prefix_tokens)
        self.front = min(1, self.prefix)
        self.tokens = self.prefix + self.patches
        self.width, self.layers = int(trunk.embed_dim), len(trunk.blocks)
        self.embed_dim = width_of(module)

    @staticmethod
    def refusal(trunk: Any) -> str:
        """Why such a tower cannot be run; empty: it can."""
        odd = {type(b).__name__ for b in trunk.blocks if type(b) not in (Block, EvaBlock)}
        if odd:
            return f"its blocks are {', '.join(sorted(odd))}"
        if trunk.global_pool not in ("token", "map", "avg"):
            return f"it pools by '{trunk.global_pool}'"
        embed = trunk.patch_embed
        size, grid = embed.img_size, embed.grid_size
        ratio = embed.feat_ratio(as_scalar=False)
        if size[0] != size[1] or grid[0] * ratio[0] != size[0]:
            return f"pictures of {size[0]} pixels are no whole number of its patches of {ratio[0]}"
        if getattr(trunk, "rope_mixed", False):
            return "its rotary positions differ by layer"
        return ""

    def product(self) -> Affine | None:
        embed = self.trunk.patch_embed
        if not isinstance(getattr(embed, "proj", None), nn.Conv2d) or not isinstance(embed.norm, nn.Identity):
            return None  # a convolutional stem, or a norm behind it
        return embed.proj.weight.flatten(1), embed.proj.bias

    def stem(self, images: Tensor) -> Tensor:
        features: Tensor = self.trunk.patch_embed(images)
        return features if features.dim() == 3 else features.flatten(1, 2)

    def start(self, patches: Tensor) -> tuple[Tensor, Any]:
        trunk = self.trunk
        # With sizes that may change, timm keeps the grid until positions are added.
        found = trunk._pos_embed(patches.unflatten(1, self.grid) if trunk.dynamic_img_size else patches)
        x, rope = found if isinstance(trunk, Eva) else (trunk.patch_drop(found), None)
        return trunk.norm_pre(x), rope

    def block(self, layer: int, x: Tensor, written: int, state: Any) -> Tensor:
        block = self.trunk.blocks[layer]
        out: Tensor = block(x) if isinstance(block, Block) else block(x, rope=unturned(state, written))
        return out

    def prompted(self, layer: int, x: Tensor, prompts: Tensor, written: int, state: Any) -> Tensor:
        block = self.trunk.blocks[layer]
        tokens, normed = self.write(block.norm1, x, prompts, written)
        if isinstance(block, Block):
            x = tokens + block.drop_path1(block.ls1(block.attn(normed)))
            return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
        attended = block.attn(normed, rope=unturned(state, prompts.shape[-2]))
        x = tokens + block.drop_path1(attended if block.gamma_1 is None else block.gamma_1 * attended)
        widened = block.mlp(block.norm2(x))
        return x + block.drop_path2(widened if block.gamma_2 is None else block.gamma_2 * widened)

    def turn(self, x: Tensor, slots: int, state: Any) -> Tensor:
        table = unturned(state, slots)
        if table is None:
            return x
        half = bool(getattr(self.trunk.blocks[0].attn, "rotate_half", False))
        turned = apply_rot_embed_cat(x[:, :, self.prefix :], table, half=half)
        return torch.cat([x[:, :, : self.prefix], turned], dim=2)

    def finish(self, x: Tensor, norm: Norm | None) -> Tensor:
        trunk = self.trunk
        x = trunk.fc_norm(trunk.pool(trunk.norm(x)))
        x = x if norm is None else norm(x)
        x = trunk.head(trunk.head_drop(x))
        return x if trunk is self.module else self.module.head(x)

    def stem_module(self) -> nn.Module | None:
        embed = self.trunk.patch_embed
        if self.product() is not None:
            return None
        if not isinstance(embed, HybridEmbed):
            raise UserError(f"cannot export this backbone: its patch embedding is a {type(embed).__name__} with a norm")
        return copy.deepcopy(nn.Sequential(embed.backbone, embed.proj))

    def constants(self) -> Constants:
        trunk = self.trunk
        zeros = torch.zeros(1, self.patches, self.width, device=next(trunk.parameters()).device)
        found = trunk._pos_embed(zeros.unflatten(1, self.grid) if trunk.dynamic_img_size else zeros)
        x, turns = found if isinstance(trunk, Eva) else (found, None)
        pre_norm = _or_none(trunk.norm_pre)
        position = x[0, self.prefix :].detach()
        return Constants(
            prefix=trunk.norm_pre(x[0, : self.prefix]).detach(),
            position=position if bool(position.any()) else None,
            pre_norm=pre_norm,
            turns=None if turns is None else turns.detach(),
        )

    def head(self) -> Head:
        trunk = self.trunk
        project: list[Affine] = []
        for layer in (trunk.head, *([] if trunk is self.module else self.module.head.children())):
            if isinstance(layer, nn.Linear):
                project.append((layer.weight, layer.bias))
            elif not isinstance(layer, nn.Identity | nn.Dropout):
                raise UserError(f"cannot export this backbone: a {type(layer).__name__} follows its last layer")
        latent = trunk.attn_pool
        if latent is not None and (type(latent) is not AttentionPoolLatent or latent.pos_embed is not None):
            raise UserError(f"cannot export this backbone: it pools by {type(latent).__name__}")
        whole = isinstance(trunk, Eva) if latent is not None else getattr(trunk, "pool_include_prefix", False)
        return Head(
            kind=trunk.global_pool if latent is None else "map",
            norm=_or_none(trunk.norm),
            after=_or_none(trunk.fc_norm),
            project=project,
            first=0 if whole else self.prefix,
            latent=latent,
        )

    def parts(self, layer: int) -> Parts:
        block = self.trunk.blocks[layer]
        attention, mlp = block.attn, block.mlp
        if type(attention) not in (Attention, AttentionRope, EvaAttention) or getattr(attention, "gate", None):
            raise UserError(f"cannot export this backbone: its attention is a {type(attention).__name__}")
        if getattr(attention, "num_kv_groups", 1) != 1:
            raise UserError("cannot export this backbone: its attention shares keys between heads")
        eva = isinstance(block, EvaBlock)
        first, second = (block.gamma_1, block.gamma_2) if eva else (_gamma(block.ls1), _gamma(block.ls2))
        if type(mlp) not in (Mlp, SwiGLU):
            raise UserError(f"cannot export this backbone: its MLP is a {type(mlp).__name__}")
        gated = isinstance(mlp, SwiGLU)
        widen = mlp.fc1_g if gated else mlp.fc1
        return Parts(
            heads=attention.num_heads,
            norm_1=block.norm1,
            qkv=_qkv(attention),
            out=scaled(attention.proj, first),
            norm_2=block.norm2,
            widen=(widen.weight, widen.bias),
            activation=mlp.act,
            narrow=scaled(mlp.fc2, second),
            q_norm=_or_none(attention.q_norm),
            k_norm=_or_none(attention.k_norm),
            inner=_or_none(attention.norm),
            up=(mlp.fc1_x.weight, mlp.fc1_x.bias) if gated else None,
            mlp_norm=_or_none(mlp.norm),
            half=bool(getattr(attention, "rotate_half", False)),
        )


def is_timm_vit(module: Any) -> bool:
    return isinstance(getattr(module, "trunk", module), VisionTransformer | Eva)


def width_of(module: Any) -> int:
    """D: the width of what open_clip's wrapper, or timm's model itself, returns."""
    trunk = getattr(module, "trunk", module)
    width = int(trunk.num_classes) or int(trunk.num_features)
    for layer in [] if trunk is module else module.head.modules():
        if isinstance(layer, nn.Linear):
            width = layer.out_features
        elif hasattr(layer, "out_features"):  # pooling that projects
            width = int(layer.out_features)
    return width


def unturned(rope: Tensor | None, slots: int) -> Tensor | None:
    """Rotary positions ``[P, 2 * d_h]`` (sines, cosines) with ``slots`` tokens before them that are turned by nothing.

    timm leaves the first tokens alone, as many as the tower has before its patches, and turns the rest. With prompts
    there are ``slots`` more: a turn by zero, sine 0 and cosine 1, leaves them as they are, to the bit.
    """
    if rope is None or slots == 0:
        return rope
    sine, cosine = rope.chunk(2, dim=-1)
    still = torch.cat([torch.zeros_like(sine[:1]), torch.ones_like(cosine[:1])], dim=-1)
    return torch.cat([still.expand(slots, -1), rope])


def _gamma(scale: nn.Module) -> Tensor | None:
    gamma: Tensor | None = getattr(scale, "gamma", None)
    return gamma


def _or_none(norm: nn.Module) -> nn.LayerNorm | None:
    if norm is None or isinstance(norm, nn.Identity):
        return None
    if not isinstance(norm, nn.LayerNorm):
        raise UserError(f"cannot export this backbone: it normalises by {type(norm).__name__}")
    return norm


def _qkv(attention: Any) -> Affine:
    """One matrix for queries, keys and values, however the attention keeps them."""
    if attention.qkv is None:
        layers = (attention.q_proj, attention.k_proj, attention.v_proj)
        weight = torch.cat([layer.weight for layer in layers])
        biases = [layer.bias if layer.bias is not None else weight.new_zeros(len(layer.weight)) for layer in layers]
        return weight, torch.cat(biases)
    bias = attention.qkv.bias
    if getattr(attention, "q_bias", None) is not None:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    return attention.qkv.weight, bias
