"""Text towers: CLIP's, which is causal, and those that see the whole text (SigLIP, MobileCLIP2).

Sizes: C texts, M text context, G groups of texts that share their prompts, a and s tokens of a text that its group shares
and that are its own, m prompt slots, d_t width, D embedding.

Two things are exact in a causal tower only, because there a token's state does not depend on those behind it: a text may
end at its [EOS], and what all texts of a group begin with is computed once. Elsewhere every text keeps its full length,
padding included (SigLIP pools the last place of it), and nothing is shared: a = 0.
"""

from collections.abc import Callable
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splip import ops
from splip.models.towers.base import Norm, Parts
from splip.models.towers.clip import blocks_refusal, open_clip_parts

Hidden = list[tuple[Tensor, Tensor]]


class TextTower:
    """One of open_clip's text transformers, run layer by layer.

    Args:
        module: it, or the CLIP that has its parts.
        tokenizer: makes the tokenizer when it is first needed: some have to be fetched.
        name: of the backbone, for messages.
    """

    start = 1  # the first prompt slot: [SOS] is before it
    length: int  # most tokens of a text

    def __init__(self, module: Any, tokenizer: Callable[[], Any], name: str) -> None:
        self.module, self.name = module, name
        self.causal = module.attn_mask is not None
        self.pools_last = _pool_type(module) == "last"
        self.width = int(module.token_embedding.embedding_dim)
        self.layers = len(module.transformer.resblocks)
        self.length = int(module.context_length)
        self._make, self._made = tokenizer, None

    @staticmethod
    def refusal(text: Any) -> str:
        """Why such a tower cannot be run; empty: it can."""
        if not hasattr(text, "token_embedding") or not hasattr(text, "positional_embedding"):
            return f"its text tower is a {type(text).__name__}"
        if getattr(text, "cls_emb", None) is not None or getattr(text, "use_pad_mask", False):
            return "its text tower appends a class token or hides padding"
        if _pool_type(text) not in ("argmax", "last") or (_pool_type(text) == "last" and text.attn_mask is not None):
            return "its text tower does not pool [EOS]"
        return blocks_refusal(text)

    # ---- tokens ----

    @property
    def tokenizer(self) -> Any:
        """What reads its texts.

        Raises:
            UserError: it is not here, and cannot be had.
        """
        if self._made is None:
            self._made = self._make()
        return self._made

    @property
    def reads_byte_pairs(self) -> bool:
        """Whether texts are read as CLIP's own tokenizer reads them."""
        tokenizer = self.tokenizer
        return isinstance(tokenizer, open_clip.SimpleTokenizer) and tokenizer.clean_fn("A, b") == "a, b"

    def tokenize(self, texts: list[str], slots: int = 0, truncate: bool = True) -> Tensor:
        """Token ids ``[C, M]`` of texts behind ``slots`` placeholders.

        A causal tower's end with the longest text: what follows [EOS] is never seen.
        """
        placeholders = "X " * slots
        tokens: Tensor = self.tokenizer([f"{placeholders}{text}".strip() if slots else text for text in texts])
        return tokens[:, : int(tokens.argmax(dim=1).max()) + 1] if truncate and self.causal else tokens

    def count(self, text: str, slots: int = 0) -> int:
        """Tokens of a text, with all that is put around it."""
        return len(self.tokenizer.encode(f"{'X ' * slots}{text}".strip())) + 2  # [SOS] and [EOS]

    def template_ids(self, text: str) -> Tensor:
        """Ids ``[w]`` of words that a text begins with, and of what stands before them."""
        tokens = self.tokenize([text])[0]
        return tokens[: int(tokens.argmax())]  # without [EOS]

    def word_ids(self, text: str, count: int) -> Tensor:
        """The first ids of a text's own, ``[count]``."""
        return self.tokenize([text])[0, self.start : self.start + count]

    def end(self, tokens: Tensor) -> Tensor:
        """Where texts end: the place of [EOS] in ``[..., M]``."""
        return tokens.argmax(dim=-1)  # it has the largest id

    def pooled(self, tokens: Tensor) -> Tensor:
        """The place in ``[..., M]`` whose state is read off."""
        return torch.full_like(tokens[..., 0], tokens.shape[-1] - 1) if self.pools_last else self.end(tokens)

    def shared(self, tokens: Tensor) -> int:
        """a: how many first tokens of ``[G, C, M]`` all texts of every group have in common and compute once."""
        if not self.causal:
            return 0
        same = (tokens == tokens[:, :1]).all(dim=1).all(dim=0).long().cumprod(dim=0).sum()
        return min(int(same), int(self.end(tokens).min()))

    # ---- the layers ----

    def in_slots(self, prompt: Tensor, position: Tensor, layer: int) -> Tensor:
        """Prompts ``[..., m, d_t]`` as they are written before a layer: with positions before the first."""
        return prompt if layer else prompt + position[self.start : self.start + prompt.shape[-2]]

    def encode(
        self, tokens: Tensor, prompts: list[Tensor] | None = None, norm: Norm | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Features and hidden states, see :meth:`PromptedCLIP.encode_text`."""
        text, M = self.module, tokens.shape[1]
        cast = text.transformer.get_cast_dtype()
        position = text.positional_embedding[:M].to(cast)
        x = text.token_embedding(tokens).to(cast) + position
        mask = text.attn_mask[:M, :M] if self.causal else None
        hidden = []
        for layer, block in enumerate(text.transformer.resblocks):
            if prompts is not None and layer < len(prompts):
                x = self._prompted(block, x, self.in_slots(prompts[layer], position, layer), mask)
            else:
                x = block(x, attn_mask=mask)
            hidden.append(x)
        x = text.ln_final(x[torch.arange(len(x), device=x.device), self.pooled(tokens)])
        return self._project(x if norm is None else norm(x)), hidden

    def _prompted(self, block: Any, x: Tensor, prompt: Tensor, mask: Tensor | None) -> Tensor:
        """One residual block with the slots written anew."""
        slots, norm, prompt = prompt.shape[-2], block.ln_1, prompt.to(x.dtype)
        if self.start == 1:
            tokens, normed = ops.prompt_layernorm(x, prompt, norm.weight.float(), norm.bias.float(), norm.eps, slots)
        else:
            first, rest = x[:, : self.start], x[:, self.start + slots :]
            tokens = torch.cat([first, prompt.expand(len(x), -1, -1), rest], dim=1)
            normed = norm(tokens)
        x = tokens + block.ls_1(block.attention(normed, attn_mask=mask))
        out: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
        return out

    def _project(self, x: Tensor) -> Tensor:
        projection = self.module.text_projection
        if isinstance(projection, nn.Linear):
            return projection(x)
        return x if projection is None else x @ projection

    def encode_groups(
        self, tokens: Tensor, shared: int, prompts: list[Tensor] | None = None, norm: Norm | None = None
    ) -> tuple[Tensor, Hidden]:
        """Features and hidden states of groups, see :meth:`PromptedCLIP.encode_groups`."""
        if not self.causal:
            return self._encode_whole(tokens, prompts, norm)
        text, (G, C, M) = self.module, tokens.shape
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
                prompt, norm_1 = self.in_slots(prompts[layer].to(x.dtype), position, layer), block.ln_1
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
        at_eos = F.one_hot(self.end(tokens) - shared, M - shared).to(x.dtype)
        x = text.ln_final(torch.einsum("gcs,gcsd->gcd", at_eos, hidden[-1][1]).flatten(0, 1))
        x = x if norm is None else norm(x)
        return self._project(x).unflatten(0, (G, C)), hidden

    def _encode_whole(self, tokens: Tensor, prompts: list[Tensor] | None, norm: Norm | None) -> tuple[Tensor, Hidden]:
        """The same of a tower that is not causal: every text by itself, with its group's prompts."""
        (G, C, _), own = tokens.shape, None
        if prompts is not None:
            own = [p.unsqueeze(1).expand(-1, C, -1, -1).flatten(0, 1) for p in prompts]
        features, hidden = self.encode(tokens.flatten(0, 1), own, norm)
        states = [x.unflatten(0, (G, C)) for x in hidden]
        return features.unflatten(0, (G, C)), [(x[:, 0, :0], x) for x in states]

    def parts(self, layer: int) -> Parts:
        """One layer's maths, for the deploy graph."""
        return open_clip_parts(self.module.transformer.resblocks[layer])


class PieceTower(TextTower):
    """SigLIP's: texts without a start token, read by a tokenizer of Hugging Face's, pooled at the last place.

    Prompt slots are the first m places; the text moves back by m, and as much padding falls away.
    """

    _first: int | None = None

    @property
    def start(self) -> int:  # type: ignore[override]
        if self._first is None:
            self._first = self.tokenizer.start
        return self._first

    @property
    def reads_byte_pairs(self) -> bool:
        return False

    def tokenize(self, texts: list[str], slots: int = 0, truncate: bool = True) -> Tensor:
        tokens: Tensor = self.tokenizer(texts)
        if not slots:
            return tokens
        start = self.start
        word = next(number for number in range(len(self.tokenizer.ends) + 1) if number not in self.tokenizer.ends)
        places = torch.full((len(tokens), slots), word, dtype=tokens.dtype)  # of any that ends no text: written over
        return torch.cat([tokens[:, :start], places, tokens[:, start : tokens.shape[1] - slots]], dim=1)

    def count(self, text: str, slots: int = 0) -> int:
        return slots + int(self.tokenizer.count(text))

    def template_ids(self, text: str) -> Tensor:
        tokens = self.tokenize([text])[0]
        return tokens[: int(self.end(tokens))]

    def end(self, tokens: Tensor) -> Tensor:
        ends = torch.zeros_like(tokens, dtype=torch.bool)
        for number in self.tokenizer.ends:
            ends |= tokens == number
        return ends.int().argmax(dim=-1)  # the first


def make(text: Any, tokenizer: Callable[[], Any], pieces: bool, name: str) -> TextTower:
    """The text tower of a CLIP.

    Args:
        pieces: its tokenizer is one of Hugging Face's.
    """
    return (PieceTower if pieces else TextTower)(text, tokenizer, name)


def _pool_type(text: Any) -> str:
    return str(getattr(text, "text_pool_type", getattr(text, "pool_type", "")))


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
