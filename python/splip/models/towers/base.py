"""What every visual tower does, and what a family of towers says of itself.

Sizes: B images, S image side, P patches, T tokens (P and the class and register tokens before them), n prompts a layer,
d_v width, D embedding, H heads, d_h width of a head.

**Where prompts stand.** Behind the first token, the class token, if the tower has one, else before all. Attention does
not know the order of tokens, only the positions that were added to them, so the place changes nothing: register tokens
may stand behind the prompts. Prompts get no position: in a tower with rotary positions they are not turned.

**What is pooled.** Prompt slots are left out before anything is pooled, by attention or by a mean: what a layer computes
in a slot is read by nobody, so that constant prompts are constant keys and values.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splip import ops

Affine = tuple[Tensor, Tensor | None]  # weight and bias of a linear map
Norm = Callable[[Tensor], Tensor]


class Parts(NamedTuple):
    """The maths of one pre-norm block, its LayerScale folded into ``out`` and ``narrow``."""

    heads: int
    norm_1: nn.LayerNorm
    qkv: Affine  # [3 * H * d_h, d_v]
    out: Affine  # [d_v, H * d_h]
    norm_2: nn.LayerNorm
    widen: Affine
    activation: nn.Module
    narrow: Affine
    q_norm: nn.LayerNorm | None = None  # over d_h
    k_norm: nn.LayerNorm | None = None
    inner: nn.LayerNorm | None = None  # before ``out``
    up: Affine | None = None  # of a gated MLP: activation(widen(x)) * up(x)
    mlp_norm: nn.LayerNorm | None = None  # before ``narrow``
    half: bool = True  # rotary positions turn the first half of d_h against the second, else neighbours


class Constants(NamedTuple):
    """What a visual tower adds to every picture."""

    prefix: Tensor  # [T - P, d_v] class and register tokens as the first layer gets them
    position: Tensor | None  # [P, d_v] added to the patches, before pre_norm
    pre_norm: nn.LayerNorm | None
    turns: Tensor | None = None  # [P, 2 * d_h] sines and cosines of rotary positions


class Head(NamedTuple):
    """What is made of the last layer's tokens."""

    kind: str  # token: the first; avg: the mean of the patches; map: attention
    norm: nn.LayerNorm | None  # of all that is pooled
    after: nn.LayerNorm | None  # of what was pooled
    project: list[Affine]
    first: int = 0  # the first token that avg and map pool
    latent: Any = None  # map: timm's AttentionPoolLatent


class VisualTower:
    """One visual tower, run layer by layer. It holds no weights of its own: they are the library's module's.

    Args:
        module: the library's tower.
        mean, std: of the pixels, as its weights were trained.
    """

    family: ClassVar[str] = ""
    no_prompts: ClassVar[str] = ""  # why no prompts can be written
    trains_whole: ClassVar[bool] = False  # --train-backbone: its last norm can take a BatchNorm in
    front: int = 1  # tokens before the prompt slots

    image_size: int
    patch_size: int
    patches: int  # P
    tokens: int  # T
    width: int  # d_v
    layers: int
    embed_dim: int  # D

    def __init__(self, module: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.module, self.mean, self.std = module, mean, std

    # ---- what a family says ----

    def product(self) -> Affine | None:
        """The patch embedding as one matrix product ``[d_v, 3 * S * S]`` on a patch's pixels; None: it is more than that."""
        return None

    def stem(self, images: Tensor) -> Tensor:
        """E_0 ``[B, P, d_v]`` of normalised images ``[B, 3, S, S]``."""
        raise NotImplementedError

    def start(self, patches: Tensor) -> tuple[Tensor, Any]:
        """Tokens ``[B, T, d_v]`` before the first layer, of E_0, and what the layers need besides."""
        raise NotImplementedError

    def block(self, layer: int, x: Tensor, written: int, state: Any) -> Tensor:
        """One layer as the library runs it; ``written`` of the tokens are prompts of an earlier layer."""
        raise NotImplementedError

    def prompted(self, layer: int, x: Tensor, prompts: Tensor, written: int, state: Any) -> Tensor:
        """One layer with its slots written anew, in place of ``written`` older ones."""
        raise NotImplementedError

    def finish(self, x: Tensor, norm: Norm | None) -> Tensor:
        """Features ``[B, D]`` of the last layer's tokens ``[B, T, d_v]``; ``norm`` is applied to what was pooled."""
        raise NotImplementedError

    def parts(self, layer: int) -> Parts:
        """One layer's maths, for the deploy graph.

        Raises:
            UserError: it does what the graph does not know.
        """
        raise NotImplementedError

    def stem_module(self) -> nn.Module | None:
        """Where :meth:`product` is None: a copy, for inference, that makes ``[B, d_v, h, w]`` of normalised images."""
        return None

    def constants(self) -> Constants:
        """For the deploy graph: what :meth:`start` adds."""
        raise NotImplementedError

    def head(self) -> Head:
        """For the deploy graph: what :meth:`finish` does.

        Raises:
            UserError: it does what the graph does not know.
        """
        raise NotImplementedError

    def deployed(self) -> nn.Module:
        """Of a tower without layers: a copy for inference, which gives ``[B, D]`` of normalised images."""
        raise NotImplementedError

    def normalisations(self) -> list[nn.Parameter]:
        """The scales and shifts of all its LayerNorms and BatchNorms; statistics of BatchNorms stay as they are."""
        kinds = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)
        return [p for m in self.module.modules() if isinstance(m, kinds) for p in m.parameters(recurse=False)]

    def stem_affine(self) -> list[nn.Parameter]:
        """The scales and shifts of a stem of this package, which its BatchNorms left."""
        return []

    def part(self, name: str) -> list[nn.Parameter]:
        """The parameters that ``train_also`` calls so; empty: this family has no such part."""
        return []

    def turn(self, x: Tensor, slots: int, state: Any) -> Tensor:
        """Queries or keys ``[B, H, L, d_h]`` with their rotary positions; ``slots`` of the tokens are prompts."""
        return x

    # ---- what all do ----

    def embed(self, images: Tensor, permutation: Tensor | None = None, grid: int = 3) -> Tensor:
        """E_0 of uint8 or of normalised images, see :meth:`PromptedCLIP.embed_patches`."""
        S = self.image_size
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, S, S):
            raise ValueError(f"images must be [B, 3, {S}, {S}], got {list(images.shape)}")
        if images.dtype == torch.uint8:
            dtype = next(self.module.parameters()).dtype
            patches = ops.patchify(images, self.patch_size, self.mean, self.std, permutation, grid, dtype)
            product = self.product()
            if product is not None:
                weight, bias = product
                return patches @ weight.T if bias is None else F.linear(patches, weight, bias)
            images = F.fold(patches.transpose(1, 2), S, self.patch_size, stride=self.patch_size)
        elif permutation is not None:
            raise ValueError("tiles can be shuffled in uint8 images only")
        return self.stem(images)

    def encode(
        self, patches: Tensor, prompts: list[Tensor] | None = None, norm: Norm | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features and the last layer's tokens, see :meth:`PromptedCLIP.encode_visual_tokens`."""
        x, state = self.start(patches)
        written = 0
        for layer in range(self.layers):
            if prompts is not None and layer < len(prompts):
                x = self.prompted(layer, x, prompts[layer], written, state)
                written = prompts[layer].shape[-2]
            else:
                x = self.block(layer, x, written, state)
        tokens = torch.cat([x[:, : self.front], x[:, self.front + written :]], dim=1) if written else x
        return self.finish(tokens, norm), tokens

    @torch.no_grad()
    def patch_states(self, patches: Tensor) -> Tensor:
        """The mean state of patches before each layer, without prompts: ``[layers, d_v]``, of E_0 ``[B, P, d_v]``."""
        total = torch.zeros(self.layers, self.width).to(patches)
        for part in patches.split(64):
            x, state = self.start(part)
            for layer in range(self.layers):
                total[layer] += x[:, self.tokens - self.patches :].sum(dim=(0, 1))
                x = self.block(layer, x, 0, state)
        return total / (len(patches) * self.patches)

    @torch.no_grad()
    def slot_attention(self, patches: Tensor, prompts: list[Tensor]) -> Tensor:
        """The share of the first token's attention that goes to the prompts, see :meth:`PromptedCLIP.slot_attention`.

        Without a class token it is the mean over all patches.
        """
        x, state = self.start(patches)
        shares, written = [], 0
        for layer, prompt in enumerate(prompts):
            parts, n = self.parts(layer), prompt.shape[-2]
            _, normed = self.write(parts.norm_1, x, prompt, written)
            (weight, bias), rows = parts.qkv, len(parts.qkv[0]) // 3
            both = F.linear(normed, weight[: 2 * rows], None if bias is None else bias[: 2 * rows])
            q, k = both.unflatten(-1, (2, parts.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            q, k = (t if norm is None else norm(t) for t, norm in ((q, parts.q_norm), (k, parts.k_norm)))
            q, k = self.turn(q, n, state), self.turn(k, n, state)
            asking = q[:, :, :1] if self.front else q[:, :, n:]
            scores = (asking @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
            shares.append(scores.softmax(dim=-1)[..., self.front : self.front + n].sum(dim=-1).mean())
            x = self.prompted(layer, x, prompt, written, state)
            written = n
        return torch.stack(shares)

    def write(self, norm: nn.Module, x: Tensor, prompts: Tensor, written: int) -> tuple[Tensor, Tensor]:
        """The tokens with the slots written anew, and these normalised."""
        prompts = prompts.to(x.dtype)
        if self.front == 1 and isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None:
            return ops.prompt_layernorm(x, prompts, norm.weight.float(), norm.bias.float(), norm.eps, written)
        front = self.front
        tokens = torch.cat([x[:, :front], prompts.expand(len(x), -1, -1), x[:, front + written :]], dim=1)
        return tokens, norm(tokens)


def patch_side(size: int) -> int:
    """Pixels of the squares that a picture is cut into where its tower has no patches: the largest that divides it."""
    return next(p for p in (32, 28, 24, 16, 14, 12, 8, 4, 2, 1) if size % p == 0)
