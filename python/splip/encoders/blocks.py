"""The blocks of the deploy graphs: one residual block with constant keys and values, and what is pooled after the last.

Sizes as in :mod:`splip.encoders.graph`.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splip.models.stem import as_affine
from splip.models.towers.base import Affine, Head, Parts


class Weights(nn.Module):
    """One residual block's matrices, shared by the encoders of both modalities; LayerScale is folded in.

    Args:
        parts: the block's maths.
        dtype: of the products.
        turned: queries and keys are turned by rotary positions; then the rows of a head are sorted so that its first half
            is turned against its second, whichever way the weights have it: a product of queries and keys stays the same.
    """

    def __init__(self, parts: Parts, dtype: torch.dtype, turned: bool = False) -> None:
        super().__init__()
        weight, bias = _sorted(parts, turned)
        self.heads, self.dtype = parts.heads, dtype
        self.norm_1, self.norm_2 = norm_copy(parts.norm_1), norm_copy(parts.norm_2)
        self.qkv = linear(weight, bias, dtype)
        self.q_norm, self.k_norm = (_head_norm(n, parts, turned) for n in (parts.q_norm, parts.k_norm))
        self.inner = None if parts.inner is None else norm_copy(parts.inner)
        self.out = linear(*parts.out, dtype)
        self.widen = linear(*parts.widen, dtype)
        self.up = None if parts.up is None else linear(*parts.up, dtype)
        self.activation = parts.activation
        self.mlp_norm = None if parts.mlp_norm is None else norm_copy(parts.mlp_norm)
        self.narrow = linear(*parts.narrow, dtype)

    def mlp(self, x: Tensor) -> Tensor:
        normed = self.norm_2(x).to(self.dtype)
        widened = self.activation(self.widen(normed))
        if self.up is not None:
            widened = widened * self.up(normed)
        if self.mlp_norm is not None:
            widened = self.mlp_norm(widened.float()).to(self.dtype)
        out: Tensor = self.narrow(widened)
        return out


class Turns(nn.Module):
    """Rotary positions: patches are turned, and the tokens before them are not.

    Args:
        table: ``[P, 2 * d_h]`` sines and cosines.
        half: as :class:`Parts` says of the table.
        still: tokens before the patches.
    """

    sine: Tensor
    cosine: Tensor

    def __init__(self, table: Tensor, half: bool, still: int) -> None:
        super().__init__()
        sine, cosine = table.float().chunk(2, dim=-1)
        d = sine.shape[-1]
        if not half:
            sine, cosine = (t[:, _halves(d)] for t in (sine, cosine))
        sign = torch.cat([-torch.ones(d // 2), torch.ones(d // 2)]).to(sine.device)
        self.register_buffer("sine", torch.cat([sine.new_zeros(still, d), sine * sign]))
        self.register_buffer("cosine", torch.cat([cosine.new_ones(still, d), cosine]))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, L, d_h]`` to the same."""
        first, second = x.chunk(2, dim=-1)
        return (x * self.cosine + torch.cat([second, first], dim=-1) * self.sine).to(x.dtype)


class Block(nn.Module):
    """A residual block that attends to its own tokens and to constant rows.

    Args:
        weights: see there.
        keys, values: ``[1, H, n, d_h]`` of the folded prompts; None: none.
        class_only: compute the class token only: after the last layer nothing else is read.
        turns: rotary positions; None: none.
    """

    keys: Tensor | None
    values: Tensor | None

    def __init__(
        self,
        weights: Weights,
        keys: Tensor | None,
        values: Tensor | None,
        class_only: bool,
        turns: Turns | None = None,
    ) -> None:
        super().__init__()
        self.weights, self.class_only, self.turns = weights, class_only, turns
        self.register_buffer("keys", keys)
        self.register_buffer("values", values)
        if class_only:
            W, b, rows = weights.qkv.weight, weights.qkv.bias, weights.qkv.out_features // 3
            self.query = linear(W[:rows], None if b is None else b[:rows], W.dtype)
            self.key_value = linear(W[rows:], None if b is None else b[rows:], W.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream, float32 ``[B, L, d_v]`` to the same, or to ``[B, 1, d_v]`` if class_only."""
        return self.attend(x, self.carried(x.shape[0]))

    def carried(self, B: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values ``[B, H, n, d_h]`` that the block brings itself; None: it has none."""
        if self.keys is None or self.values is None:
            return None
        return self.keys.expand(B, -1, -1, -1), self.values.expand(B, -1, -1, -1)

    def heads_of(self, x: Tensor, before: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """What attends and to what, ``[B, H, L, d_h]`` each: queries of the class token alone if class_only."""
        w = self.weights
        normed = w.norm_1(x).to(w.dtype)
        if self.class_only:
            q = self._heads(self.query(normed[:, :1]), 1)[0]
            k, v = self._heads(self.key_value(normed), 2)
        else:
            q, k, v = self._heads(w.qkv(normed), 3)
        if w.q_norm is not None:
            q = w.q_norm(q.float()).to(w.dtype)
        if w.k_norm is not None:
            k = w.k_norm(k.float()).to(w.dtype)
        if self.turns is not None:
            k = self.turns(k)
            q = q if self.class_only else self.turns(q)  # the class token is not turned
        if before is not None:
            k, v = (torch.cat([first, own], dim=2) for first, own in zip(before, (k, v), strict=True))
        return q, k, v

    def attend(self, x: Tensor, before: tuple[Tensor, Tensor] | None, mask: Tensor | None = None) -> Tensor:
        """The block, with keys and values ``[B, H, n, d_h]`` that come before the tokens' own."""
        w = self.weights
        q, k, v = self.heads_of(x, before)
        if self.class_only:
            x = x[:, :1]
        attended = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
        if w.inner is not None:
            attended = w.inner(attended.float()).to(w.dtype)
        x = x + w.out(attended).to(x.dtype)
        return x + w.mlp(x).to(x.dtype)

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """``[B, L, parts * H * d_h]`` to as many ``[B, H, L, d_h]``."""
        return x.unflatten(-1, (parts, self.weights.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class Pool(nn.Module):
    """The last layer's tokens to features ``[B, D]``, in float32.

    Args:
        head: what the tower does.
        batch_norm: of ``train_backbone``, behind the last LayerNorm; folded into it.
        sum_head: see :class:`DeployEncoder`.
    """

    projection: Tensor | None

    def __init__(self, head: Head, batch_norm: nn.Module, sum_head: bool) -> None:
        super().__init__()
        self.kind, self.first, self.sum_head = head.kind, head.first, sum_head
        self.norm = nn.Identity() if head.norm is None else post_norm(head.norm, batch_norm)
        self.after = nn.Identity() if head.after is None else norm_copy(head.after)
        self.latent = None if head.latent is None else _Latent(head.latent)
        self.register_buffer("projection", None)
        self.bias: Tensor | None = None
        if head.project:
            weight, bias = _product(head.project)
            self.projection = weight.detach().float().T.contiguous()
            self.bias = None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "token":
            x = self.norm(x[:, 0])
        else:
            x = self.norm(x[:, self.first :])
            x = x.mean(dim=1) if self.latent is None else self.latent(x)
        x = self.after(x)
        if self.projection is not None:
            x = (x.unsqueeze(2) * self.projection).sum(dim=1) if self.sum_head else x @ self.projection
            x = x if self.bias is None else x + self.bias
        return x


class _Latent(nn.Module):
    """Pooling by attention of one learned query, which is a constant here."""

    query: Tensor

    def __init__(self, pool: Any) -> None:
        super().__init__()
        pool = copy.deepcopy(pool).float()  # the model's own stays as it is, whatever is made of this
        latent: Tensor = pool.latent.detach().float()
        self.heads: int = pool.num_heads
        q = pool.q(latent).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        self.register_buffer("query", pool.q_norm(q).detach().contiguous())
        self.kv, self.k_norm, self.proj, self.norm = pool.kv, pool.k_norm, pool.proj, pool.norm
        self.mlp, self.kind = pool.mlp, pool.pool

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q = self.query.expand(x.shape[0], -1, -1, -1)
        x = F.scaled_dot_product_attention(q, self.k_norm(k), v).transpose(1, 2).flatten(2)
        x = self.proj(x)
        if self.mlp is not None:
            x = x + self.mlp(self.norm(x))
        return x.mean(dim=1) if self.kind == "avg" else x[:, 0]


def fold(parts: Parts, prompts: Tensor, dtype: torch.dtype, turned: bool = False) -> tuple[Tensor, Tensor]:
    """Keys and values ``[1, H, n, d_h]`` that prompts ``[n, d_v]`` have in a block, computed in float32.

    Prompts have no place in the picture: their keys are sorted as those of the others, and not turned.
    """
    norm, (weight, bias) = parts.norm_1, _sorted(parts, turned)
    rows = len(weight) // 3
    normed = F.layer_norm(prompts.float(), (prompts.shape[-1],), norm.weight.float(), norm.bias.float(), norm.eps)
    W, b = weight[rows:].float(), None if bias is None else bias[rows:].float()
    both = F.linear(normed, W, b).unflatten(-1, (2, parts.heads, -1)).permute(1, 2, 0, 3)
    keys, values = both.unsqueeze(1).unbind(0)
    k_norm = _head_norm(parts.k_norm, parts, turned)
    keys = keys if k_norm is None else k_norm(keys)
    return keys.to(dtype).contiguous(), values.to(dtype).contiguous()


def linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    """A layer with these numbers; it shares memory with them if the dtype stays."""
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
    return layer


def norm_copy(norm: nn.LayerNorm) -> nn.LayerNorm:
    copy = nn.LayerNorm(norm.normalized_shape, norm.eps)
    copy.weight = nn.Parameter(norm.weight.detach().float(), requires_grad=False)
    copy.bias = nn.Parameter(norm.bias.detach().float(), requires_grad=False)
    return copy


def post_norm(norm: nn.LayerNorm, batch_norm: nn.Module) -> nn.LayerNorm:
    """The last LayerNorm in float32, with the BatchNorm of ``train_backbone`` folded in."""
    post = norm_copy(norm)
    if isinstance(batch_norm, nn.BatchNorm1d):
        scale, shift = as_affine(batch_norm)
        post.weight = nn.Parameter((post.weight * scale).detach(), requires_grad=False)
        post.bias = nn.Parameter((post.bias * scale + shift).detach(), requires_grad=False)
    return post


def _halves(d: int) -> Tensor:
    """The order that brings neighbours, which are turned against each other, into the two halves of ``d``."""
    return torch.cat([torch.arange(0, d, 2), torch.arange(1, d, 2)])


def _sorted(parts: Parts, turned: bool) -> Affine:
    """Queries', keys' and values' rows, those of a head's queries and keys in halves if they are turned."""
    weight, bias = parts.qkv
    if not turned or parts.half:
        return weight, bias
    d = len(weight) // (3 * parts.heads)
    order = torch.arange(len(weight)).view(3, parts.heads, d)
    order[:2] = order[:2][..., _halves(d)]
    flat = order.flatten().to(weight.device)
    return weight[flat], None if bias is None else bias[flat]


def _head_norm(norm: nn.LayerNorm | None, parts: Parts, turned: bool) -> nn.LayerNorm | None:
    if norm is None:
        return None
    made = norm_copy(norm)
    if turned and not parts.half:
        order = _halves(len(made.weight)).to(made.weight.device)
        made.weight, made.bias = (nn.Parameter(t[order], requires_grad=False) for t in (made.weight, made.bias))
    return made


def _product(maps: list[Affine]) -> Affine:
    """Linear maps, one after the other, as one."""
    weight, bias = maps[0]
    for W, b in maps[1:]:
        bias = b if bias is None else W @ bias + (0 if b is None else b)
        weight = W @ weight
    return weight, bias
