"""A backbone with prompt slots in every layer of its towers.

Sizes: B images, C texts, P patches, T visual tokens, M text context, d_v and d_t widths of the visual and text tower,
D joint embedding, L_v and L_t layers, G groups of texts that share their prompts, a and s tokens
of a text that its group shares and that are its own.
"""

import contextlib
import difflib
import hashlib
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_state_dict
from torch import Tensor, nn

from splip.config import CONFIGS
from splip.errors import UserError
from splip.models import activation, hub, seeded
from splip.models.config import BackboneConfig
from splip.models.stem import STEMS, ConvStem
from splip.models.towers import families, timm_models
from splip.models.towers.base import VisualTower
from splip.models.towers.pieces import NoTokenizer
from splip.models.towers.text import TextTower

open_clip.add_model_config(CONFIGS / "models")
WEIGHTS = Path(__file__).parents[1] / "weights"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of its pixels


class PromptedCLIP(nn.Module):
    """Both towers of a backbone, run block by block so that prompts can be written before each.

    Without prompts the blocks run as their library runs them, so outputs are the library's own. How each family does
    it, its adapter in :mod:`splip.models.towers` says.

    Args:
        config: which architecture and weights.

    Raises:
        UserError: no such architecture or weights, or one that cannot be run.
    """

    clip: Any
    visual_tower: VisualTower
    text_tower: TextTower | None  # None: the backbone reads no texts

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.clip, self.quick_gelu = _create(config)
        self.config = config
        self.revision = hub.commit_of(config)  # of weights from the hub
        self.visual_tower = tower = families.visual_of(config.name, self.clip)
        if config.normalisation == "imagenet":
            tower.mean, tower.std = IMAGENET
        self.text_tower = families.text_of(config.name, self.clip, activation.folder_of(config))
        self.image_size, self.patch_size, self.patches = tower.image_size, tower.patch_size, tower.patches
        self.visual_width, self.visual_layers, self.embed_dim = tower.width, tower.layers, tower.embed_dim
        self.text_width = 0 if self.text_tower is None else self.text_tower.width
        self.text_layers = 0 if self.text_tower is None else self.text_tower.layers
        self.mean, self.std = tower.mean, tower.std

    @property
    def visual(self) -> Any:
        """The library's visual tower."""
        return self.clip.visual

    @property
    def text(self) -> Any:
        """open_clip's text tower: a module of its own, or the model itself."""
        return self.reader.module

    @property
    def reader(self) -> TextTower:
        """The text tower.

        Raises:
            UserError: the backbone has none.
        """
        if self.text_tower is None:
            raise NoTokenizer(f"backbone {self.config.name} has no text tower: it reads no words")
        return self.text_tower

    @property
    def tokenizer(self) -> Any:
        """What reads texts.

        Raises:
            UserError: it is not here, or the backbone reads none.
        """
        return self.reader.tokenizer

    def identity(self) -> dict[str, Any]:
        """Names the backbone and its exact weights; call before any training."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.clip.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        c = self.config
        source = c.pretrained if c.pretrained or _source(c) is None else "package"
        if source is None and activation.brings_all(c.name):
            source = c.name
        if isinstance(self.clip, timm_models.VisionOnly):
            source = self.clip.source
        return {
            "name": c.name,
            "pretrained": source,
            "seed": c.seed,
            "revision": self.revision,
            "quick_gelu": self.quick_gelu,
            "sha256": digest.hexdigest(),
        }

    # ---- what a method needs ----

    def need_prompts(self) -> None:
        """Raises UserError if the visual tower has no place for prompts."""
        reason = self.visual_tower.no_prompts
        if reason:
            raise UserError(f"backbone {self.config.name} takes no prompts: {reason}; use method clip-ln or zero-shot")

    def need_words(self, method: str) -> None:
        """Raises UserError if there is no text tower that prompts could be made of."""
        if self.text_tower is None:
            raise UserError(
                f"backbone {self.config.name} has no text tower, and method {method} makes its prompts of texts: "
                "use method clip-at, clip-ln or zero-shot"
            )

    def need_last_norm(self) -> None:
        """Raises UserError if the towers have no last LayerNorm that a BatchNorm behind it could be folded into."""
        if not self.visual_tower.trains_whole:
            raise UserError(
                f"backbone {self.config.name}: whole towers are trained (--train-backbone, splip pretrain) of CLIP ViTs only: "
                "others have no last LayerNorm that the BatchNorm behind it could be folded into"
            )

    # ---- visual tower ----

    def embed_patches(self, images: Tensor, permutation: Tensor | None = None, grid: int = 3) -> Tensor:
        """Patch embeddings E_0, before position and class token.

        Args:
            images: ``[B, 3, S, S]`` uint8, normalised here in one pass with the cut into patches; or
                float, already normalised, for the library's own preprocessing.
            permutation: shuffles the tiles of uint8 images, see :func:`splip.ops.patchify`.

        Returns:
            ``[B, P, d_v]``; of a convolutional tower the normalised images ``[B, 3, S, S]``.
        """
        return self.visual_tower.embed(images, permutation, grid)

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
                behind the first token before that layer; None: the plain tower.
            norm: applied to what is pooled, after the last LayerNorm.

        Returns:
            ``(features [B, D] not normalised, tokens [B, T, d_v])``: class token, if there is one, and patches after
            the last layer, before its LayerNorm, without the prompt slots.
        """
        return self.visual_tower.encode(patches, prompts, norm)

    def patch_states(self, patches: Tensor) -> Tensor:
        """The mean state of patches before each layer, without prompts: ``[L_v, d_v]``, of E_0 ``[B, P, d_v]``."""
        return self.visual_tower.patch_states(patches)

    def slot_attention(self, patches: Tensor, prompts: list[Tensor]) -> Tensor:
        """The share of the class token's attention that goes to the prompts: mean over images and heads, ``[layers]``.

        Of a tower without a class token: of all patches' attention. Arguments as for :meth:`encode_visual_tokens`.
        """
        return self.visual_tower.slot_attention(patches, prompts)

    # ---- text tower ----

    def tokenize(self, texts: list[str], slots: int = 0, truncate: bool = True) -> Tensor:
        """Token ids ``[C, M]`` behind ``slots`` placeholders; of a causal tower M is the longest text's."""
        return self.reader.tokenize(texts, slots, truncate)

    @property
    def reads_byte_pairs(self) -> bool:
        """Whether texts are read as CLIP's own tokenizer reads them."""
        return self.text_tower is not None and self.text_tower.reads_byte_pairs

    def byte_pairs(self) -> tuple[dict[tuple[str, str], int], dict[str, int], int]:
        """CLIP's vocabulary: the order in which pairs of parts are joined, the id of every part, the id of [EOS].

        Raises:
            UserError: this backbone reads texts in another way, or none.
        """
        if not self.reader.reads_byte_pairs:
            raise UserError(f"--text: {self.config.name} does not read texts with CLIP's own tokenizer")
        tokenizer = self.tokenizer
        return tokenizer.bpe_ranks, tokenizer.encoder, tokenizer.eot_token_id

    def encode_text(
        self, tokens: Tensor, prompts: list[Tensor] | None = None, norm: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The text tower.

        Args:
            tokens: ``[C, M]`` ids; with prompts, the places of the slots hold placeholders.
            prompts: for each of the first layers ``[m, d_t]`` or ``[C, m, d_t]``, written into the slots (places 1..m;
                0..m-1 where texts have no start token) before that layer. Positional embeddings are added to those of
                the first.
            norm: applied to the state that is pooled ([EOS], or the last place) after the last LayerNorm.

        Returns:
            ``(features [C, D] not normalised, hidden)``: hidden holds ``[C, M, d_t]`` after each layer.
        """
        return self.reader.encode(tokens, prompts, norm)

    def encode_groups(
        self,
        tokens: Tensor,
        shared: int,
        prompts: list[Tensor] | None = None,
        norm: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The text tower on G groups of C texts that begin alike: what they share runs once a group.

        Same as :meth:`encode_text` on every text. Where the tower is causal, the states of the first ``shared``
        tokens ([SOS], prompt slots, the template's words) do not depend on the class that follows. Others share nothing.

        Args:
            tokens: ``[G, C, M]`` ids; the first ``shared`` are the same in all texts of a group.
            shared: a, at most the position of the first [EOS].
            prompts: for each of the first layers ``[G, m, d_t]``, m < a, as in :meth:`encode_text`.
            norm: applied to the state that is pooled after the last LayerNorm.

        Returns:
            ``(features [G, C, D] not normalised, hidden)``: hidden holds ``([G, a, d_t], [G, C, s, d_t])``
            after each layer, a + s = M.
        """
        return self.reader.encode_groups(tokens, shared, prompts, norm)


def _create(config: BackboneConfig) -> tuple[nn.Module, bool]:
    """The model, and whether its GELU is QuickGELU."""
    folder = activation.folder_of(config)
    if config.name.startswith(timm_models.PREFIX):
        if config.quick_gelu == "true":
            raise UserError(
                f"backbone {config.name}: timm's towers have one activation: leave out --backbone.quick_gelu"
            )
        return timm_models.create(config.name, config.pretrained, config.seed), False
    if not activation.brings_all(config.name) and config.name not in open_clip.list_models():
        near = ", ".join(difflib.get_close_matches(config.name, open_clip.list_models(), 5, 0.3))
        raise UserError(
            f"unknown backbone {config.name}: choose splip-tiny, one of open_clip's architectures "
            f"({near or 'ViT-B-32, ViT-B-16-SigLIP2'}, ...), {timm_models.PREFIX}NAME of timm's ViTs, or "
            f"{activation.FOLDER}FOLDER"
        )
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
    if stem is None and found.state is None and found.words is None:
        file, preprocess = hub.weights(config.name, pretrained, config.revision)
        options = {"force_preprocess_cfg": preprocess} if preprocess else {}
        return open_clip.create_model(config.name, pretrained=file, quick_gelu=quick_gelu, **options)
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
