"""CLIP's own ViT: open_clip's VisionTransformer with a class token that is pooled."""

from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from splip.errors import UserError
from splip.models.stem import ConvStem
from splip.models.towers.base import Affine, Constants, Head, Norm, Parts, VisualTower


class ClipViT(VisualTower):
    """Class token, learned positions, pre-norm blocks; the class token is pooled."""

    family = "CLIP ViT"
    trains_whole = True

    def __init__(self, module: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(module, mean, std)
        self.image_size = int(module.image_size[0])
        self.patch_size = int(module.patch_size[0])
        self.patches = int(module.grid_size[0] * module.grid_size[1])
        self.tokens = 1 + self.patches
        self.width = int(module.conv1.out_channels)
        self.layers = len(module.transformer.resblocks)
        self.embed_dim = int(module.output_dim)

    @staticmethod
    def refusal(module: Any) -> str:
        """Why such a tower cannot be run; empty: it can."""
        if module.attn_pool is not None or module.pool_type != "tok":
            return "it does not pool the class token"
        return blocks_refusal(module)

    def product(self) -> Affine | None:
        embedding = self.module.conv1
        return None if isinstance(embedding, ConvStem) else (embedding.weight.flatten(1), None)

    def stem(self, images: Tensor) -> Tensor:
        features: Tensor = self.module.conv1(images)
        return features.flatten(2).transpose(1, 2)

    def start(self, patches: Tensor) -> tuple[Tensor, Any]:
        visual = self.module
        token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        x = torch.cat([token, patches], dim=1)
        return visual.ln_pre(visual.patch_dropout(x + visual.positional_embedding.to(x.dtype))), None

    def block(self, layer: int, x: Tensor, written: int, state: Any) -> Tensor:
        out: Tensor = self.module.transformer.resblocks[layer](x)
        return out

    def prompted(self, layer: int, x: Tensor, prompts: Tensor, written: int, state: Any) -> Tensor:
        block = self.module.transformer.resblocks[layer]
        tokens, normed = self.write(block.ln_1, x, prompts, written)
        x = tokens + block.ls_1(block.attention(normed))
        out: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
        return out

    def finish(self, x: Tensor, norm: Norm | None) -> Tensor:
        visual = self.module
        x = visual.ln_post(x[:, 0])
        x = x if norm is None else norm(x)
        return x if visual.proj is None else x @ visual.proj

    def parts(self, layer: int) -> Parts:
        return open_clip_parts(self.module.transformer.resblocks[layer])

    def stem_module(self) -> nn.Module | None:
        embedding = self.module.conv1
        return embedding.merged() if isinstance(embedding, ConvStem) else None

    def constants(self) -> Constants:
        visual = self.module
        position = visual.positional_embedding.detach()
        # The class token is the same for every image until the first attention.
        token = visual.ln_pre(visual.class_embedding + position[0]).detach()
        pre_norm = visual.ln_pre if isinstance(visual.ln_pre, nn.LayerNorm) else None
        return Constants(token.view(1, -1), position[1:], pre_norm)

    def head(self) -> Head:
        visual = self.module
        return Head("token", visual.ln_post, None, [] if visual.proj is None else [(visual.proj.T, None)])

    def normalisations(self) -> list[nn.Parameter]:
        return [p for m in self.module.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()]

    def part(self, name: str) -> list[nn.Parameter]:
        visual = self.module
        if name == "attention-inputs":
            blocks = [block.attn for block in visual.transformer.resblocks]
            return [p for attn in blocks for p in (attn.in_proj_weight, attn.in_proj_bias) if p is not None]
        whole = {
            "class-token": visual.class_embedding,
            "positions": visual.positional_embedding,
            "projection": visual.proj,
        }
        return [p for p in (whole[name],) if isinstance(p, nn.Parameter)]

    def stem_affine(self) -> list[nn.Parameter]:
        embedding = self.module.conv1
        return embedding.affine() if isinstance(embedding, ConvStem) else []


def blocks_refusal(module: Any) -> str:
    """Why the blocks of one of open_clip's own transformers have no place for prompts; empty: they have."""
    types = {type(b) for b in getattr(module, "transformer", module).modules()}
    return "" if open_clip.transformer.ResidualAttentionBlock in types else "its blocks are not ResidualAttentionBlock"


def open_clip_parts(block: Any) -> Parts:
    """The maths of a ResidualAttentionBlock, of either tower."""
    attention, mlp = block.attn, block.mlp
    if not isinstance(attention, nn.MultiheadAttention) or attention.in_proj_weight is None:
        raise UserError(f"cannot export this backbone: its attention is a {type(attention).__name__}")
    names = [name for name, _ in mlp.named_children()]
    if names != ["c_fc", "gelu", "c_proj"]:
        raise UserError(f"cannot export this backbone: its MLP is made of {', '.join(names)}")
    return Parts(
        heads=attention.num_heads,
        norm_1=block.ln_1,
        qkv=(attention.in_proj_weight, attention.in_proj_bias),
        out=scaled(attention.out_proj, getattr(block.ls_1, "gamma", None)),
        norm_2=block.ln_2,
        widen=(mlp.c_fc.weight, mlp.c_fc.bias),
        activation=mlp.gelu,
        narrow=scaled(mlp.c_proj, getattr(block.ls_2, "gamma", None)),
    )


def scaled(layer: nn.Linear, scale: Tensor | None) -> Affine:
    """Weight and bias of a linear layer followed by LayerScale, or by nothing."""
    if scale is None:
        return layer.weight, layer.bias
    return layer.weight * scale[:, None], None if layer.bias is None else layer.bias * scale
