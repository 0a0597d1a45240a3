"""The encoders as they are deployed: prompts folded into constants, standard operators only.

Sizes: B images, S image side, P patches, L = 1 + P tokens (and carried prompts), n prompts a layer, H heads,
d_h = d_v / H, d_v width, D embedding.

A prompt slot is written anew before each prompted layer, so what a layer computes in it is read by nobody: of the
slot only its keys and values in that layer matter, and those do not depend on the image. They are constants here,
``[1, H, n, d_h]`` a layer. After the last prompted layer nothing overwrites the slots; if unprompted layers follow,
the prompts of that layer travel on as tokens.

The text tower is causal, so that all that comes before the words ([SOS], prompts, the template) is constant in every
layer: keys and values again.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splip.data.trees import MODALITIES
from splip.encoders.manifest import INPUT, MODALITY, TOKENS
from splip.errors import UserError
from splip.models.retriever import Retriever
from splip.models.stem import ConvStem, as_affine

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Weights(nn.Module):
    """One residual block's matrices, shared by the encoders of both modalities; LayerScale is folded in."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        super().__init__()
        attention, mlp = block.attn, block.mlp
        if not isinstance(attention, nn.MultiheadAttention) or attention.in_proj_weight is None:
            raise UserError(f"cannot export this backbone: its attention is a {type(attention).__name__}")
        parts = [name for name, _ in mlp.named_children()]
        if parts != ["c_fc", "gelu", "c_proj"]:
            raise UserError(f"cannot export this backbone: its MLP is made of {', '.join(parts)}")
        self.heads, self.dtype = attention.num_heads, dtype
        self.norm_1, self.norm_2 = _norm(block.ln_1), _norm(block.ln_2)
        self.qkv = _linear(attention.in_proj_weight, attention.in_proj_bias, dtype)
        self.out = _linear(*_scaled(attention.out_proj, block.ls_1), dtype)
        self.widen = _linear(mlp.c_fc.weight, mlp.c_fc.bias, dtype)
        self.activation = mlp.gelu
        self.narrow = _linear(*_scaled(mlp.c_proj, block.ls_2), dtype)


class Block(nn.Module):
    """A residual block that attends to its own tokens and to constant rows.

    Args:
        weights: see there.
        keys, values: ``[1, H, n, d_h]`` of the folded prompts; None: none.
        class_only: compute the class token only: after the last layer nothing else is read.
    """

    keys: Tensor | None
    values: Tensor | None

    def __init__(self, weights: Weights, keys: Tensor | None, values: Tensor | None, class_only: bool) -> None:
        super().__init__()
        self.weights, self.class_only = weights, class_only
        self.register_buffer("keys", keys)
        self.register_buffer("values", values)
        if class_only:
            W, b, width = weights.qkv.weight, weights.qkv.bias, weights.qkv.in_features
            self.query = _linear(W[:width], b[:width], W.dtype)
            self.key_value = _linear(W[width:], b[width:], W.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream, float32 ``[B, L, d_v]`` to the same, or to ``[B, 1, d_v]`` if class_only."""
        B = x.shape[0]
        before = None
        if self.keys is not None and self.values is not None:
            before = self.keys.expand(B, -1, -1, -1), self.values.expand(B, -1, -1, -1)
        return self.attend(x, before)

    def attend(self, x: Tensor, before: tuple[Tensor, Tensor] | None, mask: Tensor | None = None) -> Tensor:
        """The block, with keys and values ``[B, H, n, d_h]`` that come before the tokens' own."""
        w = self.weights
        normed = w.norm_1(x).to(w.dtype)
        if self.class_only:
            x = x[:, :1]
            q = self._heads(self.query(normed[:, :1]), 1)[0]
            k, v = self._heads(self.key_value(normed), 2)
        else:
            q, k, v = self._heads(w.qkv(normed), 3)
        if before is not None:
            k, v = (torch.cat([first, own], dim=2) for first, own in zip(before, (k, v), strict=True))
        attended = F.scaled_dot_product_attention(q, k, v, mask)
        x = x + w.out(attended.transpose(1, 2).flatten(2)).to(x.dtype)
        widened = w.activation(w.widen(w.norm_2(x).to(w.dtype)))
        return x + w.narrow(widened).to(x.dtype)

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """``[B, L, parts * d_v]`` to as many ``[B, H, L, d_h]``."""
        return x.unflatten(-1, (parts, self.weights.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class DeployEncoder(nn.Module):
    """Images of one modality to unit-length features, equal to ``Retriever.encode_image`` but for rounding.

    Matrix products and attention of the blocks run in ``dtype``. The rest is float32 whatever that is: normalisation
    of the pixels, the residual stream and its LayerNorms, the last projection and normalisation.

    Args:
        model: in eval mode.
        modality: 0 sketch, 1 photo.
        weights: of each block, from :func:`encoders`.
        fused: take uint8 pixels and normalise them inside.
        dtype: of the blocks' products.
        sum_head: write the projection as products and a sum. OpenVINO told to use bfloat16 does so for every matrix
            product and what comes before it, but not after the last: this keeps its head in float32.
    """

    mean: Tensor
    std: Tensor
    position: Tensor
    class_token: Tensor
    carried: Tensor
    projection: Tensor | None

    def __init__(
        self,
        model: Retriever,
        modality: int,
        weights: list[Weights],
        fused: bool = False,
        dtype: torch.dtype = torch.float32,
        sum_head: bool = False,
    ) -> None:
        super().__init__()
        clip, visual = model.backbone, model.backbone.visual
        self.fused, self.dtype, self.sum_head = fused, dtype, sum_head
        self.patch = clip.patch_size
        self.image_size, self.embed_dim, self.grid = clip.image_size, clip.embed_dim, visual.grid_size[0]
        self.register_buffer("mean", torch.tensor(clip.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(clip.std).view(-1, 1, 1))
        self.stem = visual.conv1.merged().to(dtype) if isinstance(visual.conv1, ConvStem) else None
        self.embed = nn.Identity() if self.stem else _linear(visual.conv1.weight.flatten(1), None, dtype)
        position = visual.positional_embedding.detach()
        self.register_buffer("position", position[1:].clone())
        self.norm_pre = _norm(visual.ln_pre) if isinstance(visual.ln_pre, nn.LayerNorm) else nn.Identity()
        # The class token is the same for every image until the first attention.
        token = visual.ln_pre(visual.class_embedding + position[0]).detach()
        self.register_buffer("class_token", token.view(1, 1, -1))

        prompts = model.visual_prompts()[modality] or []
        layers = visual.transformer.resblocks
        last = len(prompts) - 1
        self.carried_from = last if 0 <= last < len(layers) - 1 else None
        carried = prompts[last].detach().float().unsqueeze(0) if self.carried_from is not None else None
        self.register_buffer("carried", carried)
        self.blocks = nn.ModuleList()
        for layer, block in enumerate(layers):
            keys, values = None, None
            if layer < len(prompts) and layer != self.carried_from:
                keys, values = _fold(block, prompts[layer], dtype)
            self.blocks.append(Block(weights[layer], keys, values, layer == len(layers) - 1))

        self.norm_post = _post_norm(visual.ln_post, model.visual_norm)
        self.register_buffer("projection", None if visual.proj is None else visual.proj.detach().float().clone())

    def forward(self, images: Tensor) -> Tensor:
        """Features ``[B, D]`` float32 of uint8 ``[B, S, S, 3]`` if fused, else of normalised float32 ``[B, 3, S, S]``."""
        x = self.norm_pre(self.embed_patches(images).float() + self.position)
        B = x.shape[0]
        x = torch.cat([self.class_token.expand(B, -1, -1), x], dim=1)
        for layer, block in enumerate(self.blocks):
            if layer == self.carried_from:
                x = torch.cat([x[:, :1], self.carried.expand(B, -1, -1), x[:, 1:]], dim=1)
            x = block(x)
        x = self.norm_post(x[:, 0])
        if self.projection is not None:
            x = (x.unsqueeze(2) * self.projection).sum(dim=1) if self.sum_head else x @ self.projection
        return F.normalize(x, dim=-1)

    def inputs(self, longest: int) -> tuple[dict[str, Tensor], list[dict[int, Any]]]:
        """Examples of what the graph takes, and which of their axes may have any length."""
        S = self.image_size
        example = torch.zeros(2, S, S, 3, dtype=torch.uint8) if self.fused else torch.zeros(2, 3, S, S)
        return {INPUT: example}, [{0: torch.export.Dim("batch", min=1, max=max(1024, longest))}]

    def embed_patches(self, images: Tensor) -> Tensor:
        """Patch embeddings E_0 ``[B, P, d_v]`` by one matrix product on the pixels of each patch, or by the stem."""
        g, p = self.grid, self.patch
        if self.fused:
            images = ((images.float() / 255).permute(0, 3, 1, 2) - self.mean) / self.std
        if self.stem is not None:
            return self.stem(images.to(self.dtype)).flatten(2).transpose(1, 2)
        patches = images.reshape(-1, 3, g, p, g, p).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return self.embed(patches.to(self.dtype))


class TextEncoder(nn.Module):
    """Words to unit-length features, equal to ``Retriever.encode_text`` but for rounding; always in float32.

    Args:
        model: in eval mode.
    """

    mask: Tensor
    position: Tensor

    def __init__(self, model: Retriever) -> None:
        super().__init__()
        clip, text = model.backbone, model.backbone.text
        states = model.text_prefix()
        shared = states[0].shape[1]
        self.embed_dim, self.length = clip.embed_dim, int(text.context_length) - shared
        self.words = nn.Embedding.from_pretrained(text.token_embedding.weight.detach().float())
        self.register_buffer("position", text.positional_embedding.detach()[shared:].float().clone())
        # A word sees all that comes before the words, and of the words itself and those before it.
        own = torch.full((self.length, self.length), -math.inf).triu(1)
        self.register_buffer("mask", torch.cat([torch.zeros(self.length, shared), own], dim=1))
        self.blocks = nn.ModuleList()
        for block, state in zip(text.transformer.resblocks, states, strict=True):
            folded = [_fold(block, state[m], torch.float32) for m in range(len(MODALITIES))]
            keys, values = (torch.cat(parts) for parts in zip(*folded, strict=True))  # [2, H, a, d_h]
            self.blocks.append(Block(Weights(block, torch.float32), keys, values, class_only=False))
        self.norm_final = _post_norm(text.ln_final, model.text_norm)
        projection = text.text_projection
        if isinstance(projection, nn.Linear):
            self.project: nn.Module = _linear(projection.weight, projection.bias, torch.float32)
        else:
            self.project = nn.Identity() if projection is None else _linear(projection.T, None, torch.float32)

    def forward(self, tokens: Tensor, modality: Tensor) -> Tensor:
        """Features ``[C, D]``.

        Args:
            tokens: ``[C, W]`` int64: ids of a text's own words, the end's, zeros; W at most ``length``.
            modality: ``[C]`` int64: prompted as sketches (0) or photos (1).
        """
        W = tokens.shape[1]
        x = self.words(tokens) + self.position[:W]
        mask = self.mask[:W, : self.mask.shape[1] - self.length + W]
        for block in self.blocks:
            assert isinstance(block, Block) and block.keys is not None and block.values is not None
            x = block.attend(x, (block.keys[modality], block.values[modality]), mask)
        end = tokens.argmax(dim=1)[:, None, None].expand(-1, 1, x.shape[2])  # it has the largest id
        return F.normalize(self.project(self.norm_final(x.gather(1, end).squeeze(1))), dim=-1)

    def inputs(self, longest: int) -> tuple[dict[str, Tensor], list[dict[int, Any]]]:
        """Examples of what the graph takes, and which of their axes may have any length."""
        batch = torch.export.Dim("batch", min=1, max=max(1024, longest))
        words = torch.export.Dim("words", min=1, max=self.length)
        examples = {TOKENS: torch.ones(2, 3, dtype=torch.int64), MODALITY: torch.zeros(2, dtype=torch.int64)}
        return examples, [{0: batch, 1: words}, {0: batch}]


def text_encoder(model: Retriever) -> TextEncoder:
    """The text tower of a model in eval mode.

    Raises:
        UserError: prompts that depend on the image, or blocks that are not understood.
    """
    _check(model)
    with torch.no_grad():
        return TextEncoder(model).eval().requires_grad_(False)


def _check(model: Retriever) -> None:
    if model.training:
        raise RuntimeError("call eval() before exporting")
    if model.per_image:
        raise UserError(
            "a model with prompts.conditioning: instance cannot be exported: its prompts depend on each image through "
            "the text tower, so they are no constants; train with conditioning: modality"
        )


def encoders(
    model: Retriever, precision: str = "fp32", fused: bool = False, sum_head: bool = False
) -> dict[str, DeployEncoder]:
    """The encoders of both modalities; they share all weights that are not prompts.

    Args:
        model: in eval mode.
        precision: of the blocks' products: fp32, fp16 or bf16.
        fused, sum_head: see :class:`DeployEncoder`.

    Raises:
        UserError: prompts that depend on the image, or blocks that are not understood.
    """
    _check(model)
    dtype = DTYPES[precision]
    with torch.no_grad():
        weights = [Weights(block, dtype) for block in model.backbone.visual.transformer.resblocks]
        made = {name: DeployEncoder(model, m, weights, fused, dtype, sum_head) for m, name in enumerate(MODALITIES)}
    return {name: encoder.eval().requires_grad_(False) for name, encoder in made.items()}


def _linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    """A layer with these numbers; it shares memory with them if the dtype stays."""
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
    return layer


def _norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    copy = nn.LayerNorm(norm.normalized_shape, norm.eps)
    copy.weight = nn.Parameter(norm.weight.detach().float(), requires_grad=False)
    copy.bias = nn.Parameter(norm.bias.detach().float(), requires_grad=False)
    return copy


def _scaled(layer: nn.Linear, scale: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer followed by LayerScale, or by nothing."""
    if isinstance(scale, nn.Identity):
        return layer.weight, layer.bias
    return layer.weight * scale.gamma[:, None], layer.bias * scale.gamma


def _fold(block: Any, prompts: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values ``[1, H, n, d_h]`` that prompts ``[n, d_v]`` have in a block, computed in float32."""
    attention, norm = block.attn, block.ln_1
    width = prompts.shape[-1]
    normed = F.layer_norm(prompts.float(), (width,), norm.weight.float(), norm.bias.float(), norm.eps)
    W, b = attention.in_proj_weight[width:].float(), attention.in_proj_bias[width:].float()
    both = F.linear(normed, W, b).unflatten(-1, (2, attention.num_heads, -1)).permute(1, 2, 0, 3)
    keys, values = both.unsqueeze(1).to(dtype).unbind(0)
    return keys.contiguous(), values.contiguous()


def _post_norm(norm: nn.LayerNorm, batch_norm: nn.Module) -> nn.LayerNorm:
    """The last LayerNorm in float32, with the BatchNorm of ``train_backbone`` folded in."""
    post = _norm(norm)
    if isinstance(batch_norm, nn.BatchNorm1d):
        scale, shift = as_affine(batch_norm)
        post.weight = nn.Parameter((post.weight * scale).detach(), requires_grad=False)
        post.bias = nn.Parameter((post.bias * scale + shift).detach(), requires_grad=False)
    return post
