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
from splip.encoders.blocks import Block, Pool, Turns, Weights, fold, linear, norm_copy, post_norm
from splip.encoders.manifest import INPUT, MODALITY, TOKENS
from splip.errors import UserError
from splip.models.retriever import Retriever

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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
    position: Tensor | None
    prefix: Tensor
    carried: Tensor

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
        clip, tower = model.backbone, model.backbone.visual_tower
        self.fused, self.dtype = fused, dtype
        self.patch, self.front = clip.patch_size, tower.front
        self.image_size, self.embed_dim, self.grid = clip.image_size, clip.embed_dim, clip.image_size // clip.patch_size
        self.register_buffer("mean", torch.tensor(clip.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(clip.std).view(-1, 1, 1))
        product, stem = tower.product(), tower.stem_module()
        self.stem = None if stem is None else stem.to(dtype)
        self.embed = nn.Identity() if product is None else linear(*product, dtype)
        added = tower.constants()
        self.register_buffer("position", None if added.position is None else added.position.detach().clone())
        self.norm_pre = nn.Identity() if added.pre_norm is None else norm_copy(added.pre_norm)
        self.register_buffer("prefix", added.prefix.detach().unsqueeze(0).clone())

        prompts = model.visual_prompts()[modality] or []
        last = len(prompts) - 1
        self.carried_from = last if 0 <= last < tower.layers - 1 else None
        carried = prompts[last].detach().float().unsqueeze(0) if self.carried_from is not None else None
        self.register_buffer("carried", carried)
        head = tower.head()
        self.blocks = nn.ModuleList()
        turns: Turns | None = None
        for layer in range(tower.layers):
            parts, keys, values = tower.parts(layer), None, None
            if layer < len(prompts) and layer != self.carried_from:
                keys, values = fold(parts, prompts[layer], dtype, added.turns is not None)
            if added.turns is not None and layer in (0, self.carried_from):
                before = tower.tokens - tower.patches
                before += prompts[last].shape[-2] if layer == self.carried_from else 0
                turns = Turns(added.turns, parts.half, before)
            class_only = layer == tower.layers - 1 and head.kind == "token"
            self.blocks.append(Block(weights[layer], keys, values, class_only, turns))
        self.pool = Pool(head, model.visual_norm, sum_head)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``[B, D]`` float32 of uint8 ``[B, S, S, 3]`` if fused, else of normalised float32 ``[B, 3, S, S]``."""
        x = self.embed_patches(images).float()
        x = self.norm_pre(x if self.position is None else x + self.position)
        B, front = x.shape[0], self.front
        if self.prefix.shape[1]:
            x = torch.cat([self.prefix.expand(B, -1, -1), x], dim=1)
        for layer, block in enumerate(self.blocks):
            if layer == self.carried_from:
                x = torch.cat([x[:, :front], self.carried.expand(B, -1, -1), x[:, front:]], dim=1)
            x = block(x)
        if self.carried_from is not None and self.pool.kind != "token":
            x = torch.cat([x[:, :front], x[:, front + self.carried.shape[1] :]], dim=1)
        return F.normalize(self.pool(x), dim=-1)

    def inputs(self, longest: int) -> tuple[dict[str, Tensor], list[dict[int, Any]]]:
        """Examples of what the graph takes, and which of their axes may have any length."""
        return image_inputs(self.image_size, self.fused, longest)

    def embed_patches(self, images: Tensor) -> Tensor:
        """Patch embeddings E_0 ``[B, P, d_v]`` by one matrix product on the pixels of each patch, or by the stem."""
        g, p = self.grid, self.patch
        if self.fused:
            images = normalised(images, self.mean, self.std)
        if self.stem is not None:
            return self.stem(images.to(self.dtype)).flatten(2).transpose(1, 2)
        patches = images.reshape(-1, 3, g, p, g, p).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return self.embed(patches.to(self.dtype))


class WholeEncoder(nn.Module):
    """The same of a convolutional tower, which has no blocks and takes no prompts; in ``dtype`` but for its last step.

    Args as for :class:`DeployEncoder`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Retriever, fused: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        clip = model.backbone
        self.fused, self.dtype = fused, dtype
        self.image_size, self.embed_dim = clip.image_size, clip.embed_dim
        self.register_buffer("mean", torch.tensor(clip.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(clip.std).view(-1, 1, 1))
        self.tower = clip.visual_tower.deployed().to(dtype)

    def forward(self, images: Tensor) -> Tensor:
        """As :meth:`DeployEncoder.forward`."""
        x = normalised(images, self.mean, self.std) if self.fused else images
        return F.normalize(self.tower(x.to(self.dtype)).float(), dim=-1)

    def inputs(self, longest: int) -> tuple[dict[str, Tensor], list[dict[int, Any]]]:
        """Examples of what the graph takes, and which of their axes may have any length."""
        return image_inputs(self.image_size, self.fused, longest)


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Float32 ``[B, 3, S, S]`` of uint8 ``[B, S, S, 3]``."""
    return ((images.float() / 255).permute(0, 3, 1, 2) - mean) / std


def image_inputs(S: int, fused: bool, longest: int) -> tuple[dict[str, Tensor], list[dict[int, Any]]]:
    """An example of the images that a graph takes, and which of its axes may have any length."""
    example = torch.zeros(2, S, S, 3, dtype=torch.uint8) if fused else torch.zeros(2, 3, S, S)
    return {INPUT: example}, [{0: torch.export.Dim("batch", min=1, max=max(1024, longest))}]


class TextEncoder(nn.Module):
    """Words to unit-length features, equal to ``Retriever.encode_text`` but for rounding; always in float32.

    Args:
        model: in eval mode.
    """

    mask: Tensor
    position: Tensor

    def __init__(self, model: Retriever) -> None:
        super().__init__()
        clip, reader = model.backbone, model.backbone.reader
        text, states = reader.module, model.text_prefix()
        shared = states[0].shape[1]
        self.embed_dim, self.length = clip.embed_dim, int(text.context_length) - shared
        self.words = nn.Embedding.from_pretrained(text.token_embedding.weight.detach().float())
        self.register_buffer("position", text.positional_embedding.detach()[shared:].float().clone())
        # A word sees all that comes before the words, and of the words itself and those before it.
        own = torch.full((self.length, self.length), -math.inf).triu(1)
        self.register_buffer("mask", torch.cat([torch.zeros(self.length, shared), own], dim=1))
        self.blocks = nn.ModuleList()
        for layer, state in enumerate(states):
            parts = reader.parts(layer)
            folded = [fold(parts, state[m], torch.float32) for m in range(len(MODALITIES))]
            keys, values = (torch.cat(rows) for rows in zip(*folded, strict=True))  # [2, H, a, d_h]
            self.blocks.append(Block(Weights(parts, torch.float32), keys, values, class_only=False))
        self.norm_final = post_norm(text.ln_final, model.text_norm)
        self.project = _projection(text)

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
        return text_inputs(self.length, longest)


class WholeTextEncoder(nn.Module):
    """The same of a text tower that is not causal: a text keeps its full length, padding included, in every layer.

    What comes before the words (the start, the template) are tokens as theirs are. Prompts are constant keys and values,
    as they are in the visual tower.

    Args:
        model: in eval mode.
    """

    before: Tensor
    position: Tensor
    padding: Tensor
    carried: Tensor

    def __init__(self, model: Retriever) -> None:
        super().__init__()
        clip, reader = model.backbone, model.backbone.reader
        text, slots, start = reader.module, model.text_tokens, reader.start
        template = model.word_ids  # [2, a], with the start
        self.embed_dim, self.length = clip.embed_dim, reader.length - slots - template.shape[1]
        self.words = nn.Embedding.from_pretrained(text.token_embedding.weight.detach().float())
        position = text.positional_embedding.detach().float()
        own = torch.cat([position[:start], position[start + slots :]])  # of all but the slots
        self.register_buffer("before", self.words(template) + own[: template.shape[1]])
        self.register_buffer("position", own[template.shape[1] :].clone())
        self.register_buffer("padding", torch.zeros(1, self.length, dtype=torch.int64))
        prompts = model.text_prompts() or []
        prompts = [reader.in_slots(p.detach().float(), position, layer) for layer, p in enumerate(prompts)]
        last = len(prompts) - 1
        self.carried_from = last if 0 <= last < reader.layers - 1 else None
        self.register_buffer("carried", prompts[last] if self.carried_from is not None else None)
        self.blocks = nn.ModuleList()
        for layer in range(reader.layers):
            parts, keys, values = reader.parts(layer), None, None
            if layer < len(prompts) and layer != self.carried_from:
                folded = [fold(parts, prompts[layer][m], torch.float32) for m in range(len(MODALITIES))]
                keys, values = (torch.cat(rows) for rows in zip(*folded, strict=True))  # [2, H, m, d_h]
            self.blocks.append(Block(Weights(parts, torch.float32), keys, values, class_only=False))
        self.norm_final = post_norm(text.ln_final, model.text_norm)
        self.project = _projection(text)

    def forward(self, tokens: Tensor, modality: Tensor) -> Tensor:
        """As :meth:`TextEncoder.forward`; zeros behind a text are what its tokenizer fills it up with."""
        W = tokens.shape[1]
        filled = torch.cat([tokens, self.padding[:, W:].expand(tokens.shape[0], -1)], dim=1)
        before = self.before[modality]
        x = torch.cat([before, self.words(filled) + self.position], dim=1)
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if layer == self.carried_from:
                x = torch.cat([x, self.carried[modality]], dim=1)
            constant = None
            if block.keys is not None and block.values is not None:
                constant = block.keys[modality], block.values[modality]
            x = block.attend(x, constant)
        end = tokens.argmax(dim=1) + before.shape[1]  # it has the largest id
        x = x.gather(1, end[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
        return F.normalize(self.project(self.norm_final(x)), dim=-1)

    def inputs(self, longest: int) -> tuple[dict[str, Tensor], list[dict[int, Any]]]:
        """Examples of what the graph takes, and which of their axes may have any length."""
        return text_inputs(self.length, longest)


ImageEncoder = DeployEncoder | WholeEncoder
WordEncoder = TextEncoder | WholeTextEncoder


def text_inputs(length: int, longest: int) -> tuple[dict[str, Tensor], list[dict[int, Any]]]:
    """An example of the texts that a graph takes, and which of its axes may have any length."""
    batch = torch.export.Dim("batch", min=1, max=max(1024, longest))
    words = torch.export.Dim("words", min=1, max=length)
    examples = {TOKENS: torch.ones(2, 3, dtype=torch.int64), MODALITY: torch.zeros(2, dtype=torch.int64)}
    return examples, [{0: batch, 1: words}, {0: batch}]


def text_encoder(model: Retriever) -> WordEncoder:
    """The text tower of a model in eval mode.

    Raises:
        UserError: prompts that depend on the image, blocks that are not understood, or texts that are read in another way
            than CLIP reads them.
    """
    _check(model)
    model.backbone.byte_pairs()
    made = TextEncoder if model.backbone.reader.causal else WholeTextEncoder
    with torch.no_grad():
        return made(model).eval().requires_grad_(False)


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
) -> dict[str, ImageEncoder]:
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
    tower = model.backbone.visual_tower
    made: dict[str, ImageEncoder]
    with torch.no_grad():
        if not tower.layers:
            whole = WholeEncoder(model, fused, dtype)  # no prompts: both modalities have the same
            made = dict.fromkeys(MODALITIES, whole)
        else:
            turned = tower.constants().turns is not None
            weights = [Weights(tower.parts(layer), dtype, turned) for layer in range(tower.layers)]
            made = {name: DeployEncoder(model, m, weights, fused, dtype, sum_head) for m, name in enumerate(MODALITIES)}
    return {name: encoder.eval().requires_grad_(False) for name, encoder in made.items()}


def _projection(text: Any) -> nn.Module:
    """What a text tower does after its last norm."""
    projection = text.text_projection
    if isinstance(projection, nn.Linear):
        return linear(projection.weight, projection.bias, torch.float32)
    return nn.Identity() if projection is None else linear(projection.T, None, torch.float32)
