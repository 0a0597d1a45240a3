"""An open_clip model with prompt slots in every layer of both towers.

Sizes: B images, C texts, P patches, M text context, d_v and d_t widths of the visual and text tower,
D joint embedding, L_v and L_t layers, G groups of texts that share their prompts, a and s tokens
of a text that its group shares and that are its own.
"""

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.factory import load_state_dict
from torch import Tensor, nn

from splip import ops
from splip.config import CONFIGS
from splip.errors import UserError
from splip.models import activation, seeded
from splip.models.config import BackboneConfig
from splip.models.stem import STEMS, ConvStem

open_clip.add_model_config(CONFIGS / "models")
WEIGHTS = Path(__file__).parents[1] / "weights"


class PromptedCLIP(nn.Module):
    """Both towers of an open_clip ViT, run block by block so that prompts can be written before each.

    Without prompts the blocks run as open_clip runs them, so outputs are open_clip's own.

    Args:
        config: which architecture and weights.

    Raises:
        UserError: no such architecture or weights, or one whose blocks have no place for prompts.
    """

    clip: Any

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.clip, self.quick_gelu = _create(config)
        self.config = config
        visual, text = self.visual, self.text
        _check_supported(config.name, visual, text)
        self.image_size = int(visual.image_size[0])
        self.patch_size = int(visual.patch_size[0])
        self.patches = int(visual.grid_size[0] * visual.grid_size[1])
        self.visual_width = int(visual.conv1.out_channels)
        self.text_width = int(text.token_embedding.embedding_dim)
        self.visual_layers = len(visual.transformer.resblocks)
        self.text_layers = len(text.transformer.resblocks)
        self.embed_dim = int(visual.output_dim)
        preprocess = open_clip.get_model_preprocess_cfg(self.clip)
        self.mean, self.std = tuple(preprocess["mean"]), tuple(preprocess["std"])
        folder = activation.folder_of(config)
        self.tokenizer = open_clip.get_tokenizer(config.name if folder is None else f"{activation.FOLDER}{folder}")

    @property
    def visual(self) -> Any:
        """open_clip's visual tower."""
        return self.clip.visual

    @property
    def text(self) -> Any:
        """open_clip's text tower: a module of its own, or the model itself."""
        return getattr(self.clip, "text", self.clip)

    def identity(self) -> dict[str, Any]:
        """Names the backbone and its exact weights; call before any training."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.clip.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        c = self.config
        source = c.pretrained if c.pretrained or _source(c) is None else "package"
        if source is None and c.name.startswith(activation.FOLDER):
            source = c.name
        return {
            "name": c.name,
            "pretrained": source,
            "seed": c.seed,
            "quick_gelu": self.quick_gelu,
            "sha256": digest.hexdigest(),
        }

    # ---- visual tower ----

    def embed_patches(self, images: Tensor, permutation: Tensor | None = None, grid: int = 3) -> Tensor:
        """Patch embeddings E_0, before position and class token.

        Args:
            images: ``[B, 3, S, S]`` uint8, normalised here in one pass with the cut into patches; or
                float, already normalised, for open_clip's own preprocessing.
            permutation: shuffles the tiles of uint8 images, see :func:`splip.ops.patchify`.

        Returns:
            ``[B, P, d_v]``
        """
        S = self.image_size
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, S, S):
            raise ValueError(f"images must be [B, 3, {S}, {S}], got {list(images.shape)}")
        embedding = self.visual.conv1
        stem = isinstance(embedding, ConvStem)
        if images.dtype == torch.uint8:
            dtype = next(embedding.parameters()).dtype
            patches = ops.patchify(images, self.patch_size, self.mean, self.std, permutation, grid, dtype)
            if not stem:
                return patches @ embedding.weight.flatten(1).T
            images = F.fold(patches.transpose(1, 2), S, self.patch_size, stride=self.patch_size)
        elif permutation is not None:
            raise ValueError("tiles can be shuffled in uint8 images only")
        features: Tensor = embedding(images)
        return features.flatten(2).transpose(1, 2)

    def encode_visual(
        self, patches: Tensor, prompts: list[Tensor] | None = None, norm: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """The visual tower on patch embeddings: ``[B, D]``, not normalised.

        Arguments as for :meth:`encode_visual_tokens`.
        """
        return self.encode_visual_tokens(patches, prompts, norm)[0]

    def encode_visual_tokens(
        self, patches: Tensor, prompts: list[Tensor] | None = None, norm: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The visual tower on patch embeddings, and the states of its last layer.

        Args:
            patches: E_0 ``[B, P, d_v]``.
            prompts: for each of the first layers ``[n, d_v]`` or ``[B, n, d_v]``, the same n, written
                after the class token before that layer; None: plain CLIP.
            norm: applied to the class token after the last LayerNorm.

        Returns:
            ``(features [B, D] not normalised, tokens [B, 1 + P, d_v])``: class token and patches after
            the last layer, before its LayerNorm, without the prompt slots.
        """
        visual = self.visual
        token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        x = torch.cat([token, patches], dim=1)
        x = visual.ln_pre(visual.patch_dropout(x + visual.positional_embedding.to(x.dtype)))
        written = 0
        for layer, block in enumerate(visual.transformer.resblocks):
            if prompts is not None and layer < len(prompts):
                x = _prompted_block(block, x, prompts[layer], replace=written)
                written = prompts[layer].shape[-2]
            else:
                x = block(x)
        tokens = torch.cat([x[:, :1], x[:, 1 + written :]], dim=1) if written else x
        x = visual.ln_post(x[:, 0])
        x = x if norm is None else norm(x)
        return (x if visual.proj is None else x @ visual.proj), tokens

    # ---- text tower ----

    def tokenize(self, texts: list[str], truncate: bool = True) -> Tensor:
        """Token ids ``[C, M]``, M the longest text: the tower is causal, so what follows [EOS] is never seen."""
        tokens: Tensor = self.tokenizer(texts)
        return tokens[:, : int(tokens.argmax(dim=1).max()) + 1] if truncate else tokens

    @property
    def reads_byte_pairs(self) -> bool:
        """Whether texts are read as CLIP's own tokenizer reads them."""
        tokenizer = self.tokenizer
        return isinstance(tokenizer, open_clip.SimpleTokenizer) and tokenizer.clean_fn("A, b") == "a, b"

    def byte_pairs(self) -> tuple[dict[tuple[str, str], int], dict[str, int], int]:
        """CLIP's vocabulary: the order in which pairs of parts are joined, the id of every part, the id of [EOS].

        Raises:
            UserError: this backbone reads texts in another way.
        """
        tokenizer = self.tokenizer
        if not self.reads_byte_pairs:
            raise UserError(f"--text: {self.config.name} does not read texts with CLIP's own tokenizer")
        return tokenizer.bpe_ranks, tokenizer.encoder, tokenizer.eot_token_id

    def encode_text(
        self, tokens: Tensor, prompts: list[Tensor] | None = None, norm: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The text tower.

        Args:
            tokens: ``[C, M]`` ids; with prompts, positions 1..m hold placeholders.
            prompts: for each of the first layers ``[m, d_t]`` or ``[C, m, d_t]``, written into positions
                1..m before that layer. Positional embeddings are added to those of the first.
            norm: applied to the [EOS] state after the last LayerNorm.

        Returns:
            ``(features [C, D] not normalised, hidden)``: hidden holds ``[C, M, d_t]`` after each layer.
        """
        text, M = self.text, tokens.shape[1]
        cast = text.transformer.get_cast_dtype()
        position = text.positional_embedding[:M].to(cast)
        x = text.token_embedding(tokens).to(cast) + position
        mask = text.attn_mask[:M, :M]
        hidden = []
        for layer, block in enumerate(text.transformer.resblocks):
            if prompts is not None and layer < len(prompts):
                prompt = in_slots(prompts[layer], position, layer)
                x = _prompted_block(block, x, prompt, replace=prompt.shape[-2], mask=mask)
            else:
                x = block(x, attn_mask=mask)
            hidden.append(x)
        x = text.ln_final(x[torch.arange(len(x), device=x.device), tokens.argmax(dim=1)])
        x = x if norm is None else norm(x)
        projection = text.text_projection
        if isinstance(projection, nn.Linear):
            return projection(x), hidden
        return (x if projection is None else x @ projection), hidden

    def encode_groups(
        self,
        tokens: Tensor,
        shared: int,
        prompts: list[Tensor] | None = None,
        norm: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The text tower on G groups of C texts that begin alike: what they share runs once a group.

        Same as :meth:`encode_text` on every text. The tower is causal, so the states of the first ``shared``
        tokens ([SOS], prompt slots, the template's words) do not depend on the class that follows.

        Args:
            tokens: ``[G, C, M]`` ids; the first ``shared`` are the same in all texts of a group.
            shared: a, at most the position of the first [EOS].
            prompts: for each of the first layers ``[G, m, d_t]``, m < a, as in :meth:`encode_text`.
            norm: applied to the [EOS] state after the last LayerNorm.

        Returns:
            ``(features [G, C, D] not normalised, hidden)``: hidden holds ``([G, a, d_t], [G, C, s, d_t])``
            after each layer, a + s = M.
        """
        text, (G, C, M) = self.text, tokens.shape
        cast = text.transformer.get_cast_dtype()
        position = text.positional_embedding[:M].to(cast)
        rows = G * shared  # the shared tokens come first, then the texts' own: one matrix product for both
        ids = torch.cat([tokens[:, 0, :shared].reshape(-1), tokens[:, :, shared:].reshape(-1)])
        places = torch.cat([position[:shared].repeat(G, 1), position[shared:].repeat(G * C, 1)])
        x = text.token_embedding(ids).to(cast) + places
        mask = text.attn_mask[:M, :M]
        hidden = []
        for layer, block in enumerate(text.transformer.resblocks):
            if prompts is not None and layer < len(prompts):
                prompt, norm_1 = in_slots(prompts[layer].to(x.dtype), position, layer), block.ln_1
                written, normed = ops.prompt_layernorm(
                    x[:rows].unflatten(0, (G, shared)),
                    prompt,
                    norm_1.weight.float(),
                    norm_1.bias.float(),
                    norm_1.eps,
                    prompt.shape[-2],
                )
                x = torch.cat([written.flatten(0, 1), x[rows:]])
                normed = torch.cat([normed.flatten(0, 1), norm_1(x[rows:])])
            else:
                normed = block.ln_1(x)
            x = x + block.ls_1(_group_attention(block.attn, normed, G, C, shared, mask))
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
            hidden.append((x[:rows].unflatten(0, (G, shared)), x[rows:].unflatten(0, (G, C, M - shared))))
        # [EOS] by a product, not by an index: the gradient of an index has no fixed order of summation.
        at_eos = F.one_hot(tokens.argmax(dim=2) - shared, M - shared).to(x.dtype)
        x = text.ln_final(torch.einsum("gcs,gcsd->gcd", at_eos, hidden[-1][1]).flatten(0, 1))
        x = x if norm is None else norm(x)
        projection = text.text_projection
        if isinstance(projection, nn.Linear):
            x = projection(x)
        elif projection is not None:
            x = x @ projection
        return x.unflatten(0, (G, C)), hidden


def in_slots(prompt: Tensor, position: Tensor, layer: int) -> Tensor:
    """Text prompts ``[..., m, d_t]`` as they are written before a layer: with positional embeddings before the first."""
    return prompt if layer else prompt + position[1 : 1 + prompt.shape[-2]]


def _group_attention(attention: nn.MultiheadAttention, x: Tensor, G: int, C: int, shared: int, mask: Tensor) -> Tensor:
    """Causal self-attention of groups of texts; ``x`` and the result as rows ``[G * a + G * C * s, d_t]``."""
    rows, heads = G * shared, attention.num_heads
    q, k, v = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)

    def common(t: Tensor) -> Tensor:  # [G, heads, a, d]
        return t[:rows].unflatten(0, (G, shared)).unflatten(-1, (heads, -1)).transpose(1, 2)

    def own(t: Tensor) -> Tensor:  # [G * C, heads, s, d]
        return t[rows:].unflatten(0, (G * C, -1)).unflatten(-1, (heads, -1)).transpose(1, 2)

    def before(t: Tensor) -> Tensor:  # [G * C, heads, a + s, d]
        first = common(t).unsqueeze(1).expand(-1, C, -1, -1, -1).flatten(0, 1)
        return torch.cat([first, own(t)], dim=2)

    mask = mask.to(x.dtype)
    attend = F.scaled_dot_product_attention
    first = attend(common(q), common(k), common(v), mask[:shared, :shared])
    second = attend(own(q), before(k), before(v), mask[shared:])
    parts = [t.transpose(1, 2).flatten(2).flatten(0, 1) for t in (first, second)]
    out: Tensor = F.linear(torch.cat(parts), attention.out_proj.weight, attention.out_proj.bias)
    return out


def _prompted_block(block: Any, x: Tensor, prompts: Tensor, replace: int, mask: Tensor | None = None) -> Tensor:
    """One residual block on the sequence with the prompt slots written anew."""
    norm = block.ln_1
    tokens, normed = ops.prompt_layernorm(
        x, prompts.to(x.dtype), norm.weight.float(), norm.bias.float(), norm.eps, replace
    )
    x = tokens + block.ls_1(block.attention(normed, attn_mask=mask))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _create(config: BackboneConfig) -> tuple[nn.Module, bool]:
    """The model, and whether its GELU is QuickGELU."""
    folder = activation.folder_of(config)
    if not config.name.startswith(activation.FOLDER) and config.name not in open_clip.list_models():
        names = ", ".join(m for m in open_clip.list_models() if m.startswith("ViT-") and "SigLIP" not in m)
        raise UserError(f"unknown backbone {config.name}: choose splip-tiny or one of open_clip's {names}")
    pretrained = _source(config) if folder is None else None
    if pretrained is not None and not activation.is_tag(config.name, pretrained) and not Path(pretrained).is_file():
        known = ", ".join(open_clip.list_pretrained_tags_by_model(config.name)) or "none"
        raise UserError(
            f"no pretrained weights {pretrained} for {config.name}: not a file, and open_clip's tags are {known}"
        )
    try:
        file = pretrained is not None and not activation.is_tag(config.name, pretrained)
        found = activation.look(Path(str(pretrained)), config.name) if file else activation.Found()
        quick_gelu = activation.choose(config, pretrained, folder, found)
        # open_clip reports what it loads through logging and warnings; errors are reported here.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            torch.manual_seed(config.seed)
            return _load(config, pretrained, folder, found, quick_gelu).eval(), quick_gelu
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"cannot load {config.name} with pretrained weights {pretrained}: {reason}") from None
    finally:
        logging.disable(logging.NOTSET)


def _load(
    config: BackboneConfig, pretrained: str | None, folder: Path | None, found: activation.Found, quick_gelu: bool
) -> nn.Module:
    stem = STEMS.get(config.name)
    if folder is not None:
        name, weights = f"{activation.FOLDER}{folder}", config.pretrained != "random"
        return open_clip.create_model(name, load_weights=weights, quick_gelu=quick_gelu)
    if stem is None and found.state is None:
        return open_clip.create_model(config.name, pretrained=pretrained, quick_gelu=quick_gelu)
    model = open_clip.create_model(config.name, quick_gelu=quick_gelu)
    if stem is not None:
        model.visual.conv1 = ConvStem(model.visual.conv1.out_channels, stem)
    if pretrained is not None:
        state = load_state_dict(pretrained) if found.state is None else found.state
        if found.words is not None:
            state = seeded.with_words(state, found.words, model.token_embedding.weight, pretrained)
        model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    return model


def _source(config: BackboneConfig) -> str | None:
    """Tag or file of the weights; None: random."""
    if config.pretrained is None:
        packaged = WEIGHTS / f"{config.name}.safetensors"
        return str(packaged) if packaged.is_file() else None
    return None if config.pretrained == "random" else config.pretrained


def _check_supported(name: str, visual: Any, text: Any) -> None:
    """Prompts need pre-norm blocks, a class token that is pooled, and a causal text tower."""
    block_types = {type(b).__name__ for t in (visual, text) for b in getattr(t, "transformer", t).modules()}
    reason = ""
    if not isinstance(visual, open_clip.transformer.VisionTransformer):
        reason = f"its visual tower is a {type(visual).__name__}"
    elif visual.attn_pool is not None or visual.pool_type != "tok":
        reason = "it does not pool the class token"
    elif not hasattr(text, "token_embedding") or not hasattr(text, "positional_embedding"):
        reason = f"its text tower is a {type(text).__name__}"
    elif text.attn_mask is None or getattr(text, "cls_emb", None) is not None:
        reason = "its text tower is not causal"
    elif getattr(text, "text_pool_type", getattr(text, "pool_type", "")) != "argmax":
        reason = "its text tower does not pool [EOS]"
    elif "ResidualAttentionBlock" not in block_types:
        reason = "its blocks are not ResidualAttentionBlock"
    if reason:
        raise UserError(f"backbone {name} is not supported: {reason}")
