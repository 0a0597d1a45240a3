"""Why a photo is found: what each patch of a picture adds to its vector, and so to a score.

The features of a picture are a sum, **exactly**: a vector for each patch and one for the rest. What is pooled is linear in
what was added to it. The class token is what it was at the start, and what attention and the MLP of each layer added; what
attention added is a sum over the tokens it looked at. The last LayerNorm and the projection are linear once the deviation
that they divide by is known, and it is: that of this picture. So is the length that features are divided by. Towers that pool
the patches by a mean or by attention are sums over patches at once. The rest is what no single patch brought: the class
token's start, the MLPs, biases, and attention to prompts, registers and the class token itself.

It says what a patch brought to the vector in the end, not what would happen if the patch were not there; and a patch of a
later layer knows of its neighbours. Sizes as in :mod:`splip.encoders.graph`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splip.encoders.blocks import Block, Pool, Weights
from splip.encoders.graph import DeployEncoder, image_inputs


class PartsEncoder(nn.Module):
    """Features as sums: the graph of a :class:`DeployEncoder`, with which it shares its weights.

    Args:
        encoder: of one modality.
    """

    def __init__(self, encoder: DeployEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.image_size, self.embed_dim, self.grid = encoder.image_size, encoder.embed_dim, encoder.grid
        self.fused = encoder.fused

    def forward(self, images: Tensor) -> Tensor:
        """Vectors ``[B, 1 + P, D]`` whose sum is the features: the rest, then those of the patches, row by row.

        Images as :meth:`DeployEncoder.forward` takes them.
        """
        e = self.encoder
        x = e.embed_patches(images).float()
        x = e.norm_pre(x if e.position is None else x + e.position)
        B, P = x.shape[:2]
        if e.prefix.shape[1]:
            x = torch.cat([e.prefix.expand(B, -1, -1), x], dim=1)
        token = e.pool.kind == "token"
        parts = torch.cat([x[:, :1], x.new_zeros(B, P, x.shape[2])], dim=1)  # of the first token
        for layer, block in enumerate(e.blocks):
            assert isinstance(block, Block)
            if layer == e.carried_from:
                x = torch.cat([x[:, : e.front], e.carried.expand(B, -1, -1), x[:, e.front :]], dim=1)
            if token:
                x, added = _token_parts(block, x, P)
                parts = parts + added
            else:
                x = block(x)
        if not token:
            if e.carried_from is not None:
                x = torch.cat([x[:, : e.front], x[:, e.front + e.carried.shape[1] :]], dim=1)
            parts = _pooled(e.pool, x, P)
        return _finish(e.pool, parts)

    def inputs(self, longest: int) -> tuple[dict[str, Tensor], list[dict[int, Any]]]:
        """Examples of what the graph takes, and which of their axes may have any length."""
        return image_inputs(self.image_size, self.fused, longest)


def _token_parts(block: Block, x: Tensor, P: int) -> tuple[Tensor, Tensor]:
    """A block's output, and what it added to the first token: ``[B, 1 + P, d_v]``, its P last tokens are the patches."""
    w: Weights = block.weights
    q, k, v = block.heads_of(x, block.carried(x.shape[0]))
    weights = _attention(q[:, :, :1], k)  # [B, H, 1, n + L]
    of_patches = weights[..., -P:].transpose(2, 3) * v[:, :, -P:].float()
    of_others = weights[..., :-P] @ v[:, :, :-P].float()
    attended = torch.cat([of_others, of_patches], dim=2).transpose(1, 2).flatten(2)  # [B, 1 + P, H * d_h]
    if w.inner is not None:
        attended = _through(w.inner, attended)
    added = _rest_only(F.linear(attended, w.out.weight.float()), w.out.bias)
    if block.class_only:
        whole = x[:, :1] + added.sum(dim=1, keepdim=True)
    else:
        all_of_them = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if w.inner is not None:
            all_of_them = w.inner(all_of_them.float()).to(w.dtype)
        whole = x + w.out(all_of_them).to(x.dtype)
    more = w.mlp(whole).to(x.dtype)
    return whole + more, _rest_only(added, more[:, 0])


def _attention(q: Tensor, k: Tensor) -> Tensor:
    """How much a query ``[B, H, n, d_h]`` looks at each key ``[B, H, L, d_h]``, float32 ``[B, H, n, L]``."""
    return (q.float() @ k.float().transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=-1)


def _pooled(pool: Pool, x: Tensor, P: int) -> Tensor:
    """What is pooled of the last layer's tokens ``[B, L, d_v]``, as a sum ``[B, 1 + P, d_v]``.

    Pooled are the patches, and what stands between the first that is pooled and them belongs to the rest.
    """
    x = pool.norm(x)
    first = min(pool.first, x.shape[1] - P)
    others, patches = x[:, first : x.shape[1] - P], x[:, x.shape[1] - P :]
    count = others.shape[1]
    if pool.latent is None:
        every = torch.cat([others.sum(dim=1, keepdim=True), patches], dim=1)
        return every / (count + P)
    latent: Any = pool.latent
    k, v = latent.kv(torch.cat([others, patches], dim=1)).unflatten(-1, (2, latent.heads, -1)).permute(2, 0, 3, 1, 4)
    weights = _attention(latent.query.expand(x.shape[0], -1, -1, -1), latent.k_norm(k))
    weights = weights if latent.kind == "avg" else weights[:, :, :1]  # of the queries that are pooled, by a mean
    looked = weights.mean(dim=2).unsqueeze(3) * v  # [B, H, count + P, d_h]
    looked = torch.cat([looked[:, :, :count].sum(dim=2, keepdim=True), looked[:, :, count:]], dim=2)
    parts = _rest_only(F.linear(looked.transpose(1, 2).flatten(2), latent.proj.weight), latent.proj.bias)
    if latent.mlp is not None:
        whole = latent.proj((weights @ v).transpose(1, 2).flatten(2))  # of each query: [B, n, d_v]
        parts = _rest_only(parts, latent.mlp(latent.norm(whole)).mean(dim=1))
    return parts


def _finish(pool: Pool, parts: Tensor) -> Tensor:
    """Parts ``[B, 1 + P, d_v]`` of what was pooled, through all that comes behind: ``[B, 1 + P, D]``."""
    for norm in (pool.norm,) * (pool.kind == "token") + (pool.after,):
        if isinstance(norm, nn.LayerNorm):
            parts = _through(norm, parts)
    if pool.projection is not None:
        parts = _rest_only(parts @ pool.projection, pool.bias)
    return parts / parts.sum(dim=1, keepdim=True).norm(dim=2, keepdim=True).clamp_min(1e-12)


def _through(norm: nn.LayerNorm, parts: Tensor) -> Tensor:
    """Parts ``[B, n, d]`` of a LayerNorm's input as parts of its output; its shift goes to the first, the rest."""
    whole = parts.sum(dim=1, keepdim=True)
    deviation = (whole.var(dim=2, unbiased=False, keepdim=True) + norm.eps).sqrt()
    centred = parts - parts.mean(dim=2, keepdim=True)
    return _rest_only(centred / deviation * norm.weight, norm.bias)


def _rest_only(parts: Tensor, vector: Tensor | None) -> Tensor:
    """Parts ``[B, n, d]`` with a vector ``[d]`` or ``[B, d]`` added to the first of them."""
    if vector is None:
        return parts
    first = parts[:, :1] + vector.float().reshape(-1, 1, parts.shape[2])
    return torch.cat([first, parts[:, 1:]], dim=1)
