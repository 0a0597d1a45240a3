"""What all retrieval methods share: the prompted backbone, its texts, the constants of inference, checkpoints.

A method is a class: it says which prompts it writes and what it trains, and registers its name
(:func:`splip.models.register`). ``splip.py`` and ``baselines.py`` hold those of the package.

Sizes: B images, C training classes, P patches, M text context, m and n prompt tokens, w template
words with [SOS], d_v and d_t widths, D joint embedding, G groups of images that share their texts.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splip import distributed
from splip.data.trees import MODALITIES
from splip.errors import UserError, short
from splip.models import rotation, selection
from splip.models.clip import PromptedCLIP
from splip.models.config import TrainConfig, check_numbers, trained_sizes
from splip.models.jigsaw import WITH_HEAD, JigsawHead, permutation_bank
from splip.models.prompts import of_size
from splip.models.saved import restore, state_of
from splip.models.stem import as_affine
from splip.models.towers.clip import ClipViT
from splip.models.towers.pieces import NoTokenizer
from splip.models.words import bare

R = TypeVar("R", bound="Retriever")


class Conditions(NamedTuple):
    """What the text tower says to G groups of images: a modality, or one image each."""

    texts: Tensor  # [G, C, D] class texts, unit length
    prompts: list[Tensor] | None  # for each of the first visual layers [G, n, d_v]


class Retriever(nn.Module):
    """A CLIP with prompts in either tower, its trainable parts, and the classes it was trained on.

    This class itself writes no prompts and trains LayerNorms. A method overrides ``make_prompts``, and of
    ``write_text``, ``summarise``, ``write_visual``, ``trained`` and ``check`` what it needs. Modules and parameters that
    it makes are trained and kept in checkpoints under the names that it gives them.

    Unless ``per_image`` is set, prompts depend on the modality, not on the image: patch embeddings are averaged over
    the images of a modality in the batch, and over training (``patch_mean``) for inference. Then both towers' prompts
    are constants after training, and the model can be exported.

    Args:
        config: see :class:`splip.models.config.TrainConfig`.
        classes: names of the C training classes, as words.

    Raises:
        UserError: settings or classes that the method or the backbone cannot work with.
        ValueError: ``config.method`` is another class's.
    """

    method: ClassVar[str] = ""  # set by register
    title: ClassVar[str] = ""  # in tables, where it is not the method's name
    trains: ClassVar[bool] = True  # False: a run measures, and trains nothing
    any_depth: ClassVar[bool] = False  # a prompts.depth beyond the tower means all layers
    per_image: bool = False  # every image has texts and prompts of its own
    text_tokens: int = 0  # m, slots that write_text fills
    reads_texts: bool = False  # prompts are made of texts
    no_words: str  # why texts cannot be read; empty: they can

    patch_mean: Tensor
    batches_seen: Tensor
    class_similarity: Tensor
    tokens: Tensor
    word_ids: Tensor
    permutations: Tensor | None
    rotation: Tensor | None
    jigsaw: JigsawHead | None

    def __init__(self, config: TrainConfig, classes: Sequence[str]) -> None:
        super().__init__()
        if self.method and config.method != self.method:
            raise ValueError(f"{type(self).__name__} is method {self.method}, not {config.method}: use build()")
        self.config, self.classes = config, list(classes)
        # What the trainer used, as words: seen, validation and unseen classes, and a hash of the pictures' names.
        self.data: dict[str, Any] = {"seen": self.classes, "validation": [], "unseen": [], "pictures": ""}
        self.check(config)
        self.backbone = clip = PromptedCLIP(config.backbone)
        if config.train_backbone:
            clip.need_last_norm()
        self.backbone_identity = clip.identity()
        check_numbers(config, max(clip.visual_layers, clip.text_layers), self.any_depth)
        self.dimensions = trained_sizes(config.loss, clip.embed_dim)  # that vectors may have, the last is D
        self.jigsaw = None
        with torch.random.fork_rng(devices=[]):  # the weights are made on the CPU
            torch.manual_seed(config.seed)
            self.make_prompts()
            if config.loss.jigsaw and config.loss.jigsaw_form in WITH_HEAD and self.trains:
                if not clip.patches:
                    raise UserError(
                        f"backbone {config.backbone.name}: loss.jigsaw must be 0, or its form permuted-triplet: its visual "
                        "tower has no tokens that the conditional form could read"
                    )
                self.jigsaw = JigsawHead(
                    clip.visual_tower.tokens - 1, clip.visual_width, config.loss.permutations, config.loss.jigsaw_width
                )
        # The bank is part of what was learned: it is saved with the model.
        bank = (
            permutation_bank(config.loss.permutations, config.loss.tiles, config.seed) if config.loss.jigsaw else None
        )
        self.register_buffer("permutations", bank)
        self.register_buffer("rotation", rotation.none(clip, config.loss))
        # From random weights a loss on cosines collapses: every input soon gets the same feature. A
        # BatchNorm after the last LayerNorm of each tower keeps the features apart. In inference it is
        # a constant affine map. Pre-trained towers need none.
        self.visual_norm = distributed.BatchNorm(clip.visual_width) if config.train_backbone else nn.Identity()
        # The texts of a modality are the same in all processes, those of an image are not.
        text_norm = distributed.BatchNorm if self.per_image else nn.BatchNorm1d
        self.text_norm = text_norm(clip.text_width) if config.train_backbone else nn.Identity()
        self.register_buffer("patch_mean", torch.zeros(len(MODALITIES), clip.patches, clip.visual_width))
        self.register_buffer("batches_seen", torch.zeros(()))
        self._read_classes()
        self._constants: Conditions | None = None
        self._constant_texts: tuple[Tensor, Any] | None = None
        for parameter in self.parameters():
            parameter.requires_grad = False
        for parameter in self.trained():
            parameter.requires_grad = True

    def _read_classes(self) -> None:
        """Ids of class texts and template, and how alike the classes are; ``no_words`` says why none can be read."""
        classes = self.classes or ["thing"]  # a model without training needs none: a stand-in keeps the shapes
        clip, template, C = self.backbone, self.config.prompts.template, len(classes)
        self.no_words = ""
        try:
            tokens, words = self._tokens(classes), [clip.reader.template_ids(self._template(m)) for m in (0, 1)]
        except NoTokenizer as error:
            self.no_words, similarity = str(error), torch.eye(C)
            tokens, words = torch.zeros(2, C, 0, dtype=torch.int64), [torch.zeros(0, dtype=torch.int64)] * 2
        else:
            with torch.no_grad():
                plain, _ = clip.encode_text(clip.tokenize([f"a photo of a {name}" for name in classes]))
            plain = F.normalize(plain, dim=-1)
            similarity = plain @ plain.T
        if self.no_words and self.reads_texts:
            raise UserError(f"method {self.config.method} makes its prompts of texts: {self.no_words}")
        if len(words[0]) != len(words[1]):
            raise UserError(
                f"prompts.template '{template}' has {len(words[0])} tokens for sketches and {len(words[1])} for "
                "photos: both need the same number"
            )
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("word_ids", torch.stack(words), persistent=False)
        self.register_buffer("class_similarity", similarity, persistent=False)  # the adaptive margin
        self.shared = 0 if self.no_words else clip.reader.shared(tokens)

    # ---- what a method says ----

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        """Refuse settings that the method cannot work with.

        Raises:
            UserError: one line that names the setting.
        """

    def make_prompts(self) -> None:
        """Make the modules and parameters of the prompts, and set ``text_tokens`` and ``per_image``.

        ``config`` and ``backbone`` are there already. Random numbers drawn here come from ``config.seed``.
        """

    def begin(self, patches: Tensor, modality: Tensor) -> None:
        """Before the first step of a new run: set what starts from the data. The same in all processes.

        Args:
            patches: ``[B, P, d_v]`` patch embeddings of the first batch, this process's part.
            modality: ``[B]`` int64, 0 sketch, 1 photo.
        """

    def write_text(self, groups: int, patches: Tensor | None) -> list[Tensor] | None:
        """What is written into the slots of the texts before each of the first text layers; None: nothing.

        Args:
            groups: G.
            patches: ``[G, P, d_v]`` average patch embeddings of a group's images; None where nobody reads them.

        Returns:
            For each layer ``[G, m, d_t]``, m being ``text_tokens``.
        """
        return None

    def summarise(self, tokens: Tensor, shared: int, hidden: list[tuple[Tensor, Tensor]]) -> Any:
        """What :meth:`write_visual` needs of the text tower's states, small enough to be kept.

        Args:
            tokens: ``[G, C, M]`` ids of the class texts.
            shared: a, tokens that the texts of a group begin with.
            hidden: after each text layer ``([G, a, d_t], [G, C, s, d_t])``, a + s = M.
        """
        return None

    def write_visual(self, modality: Tensor, summary: Any) -> list[Tensor] | None:
        """What is written after the class token before each of the first visual layers; None: nothing.

        Args:
            modality: ``[G]`` int64, of each group: 0 sketch, 1 photo.
            summary: what :meth:`summarise` returned.

        Returns:
            For each layer ``[G, n, d_v]``, n the same in all.
        """
        return None

    def trained(self) -> list[nn.Parameter]:
        """The parameters that training changes, see :mod:`splip.models.selection`."""
        return selection.trained(self)

    def depth(self, layers: int) -> int:
        """How many of a tower's layers get prompts: ``prompts.depth``, or all."""
        depth = self.config.prompts.depth
        return layers if depth is None else min(depth, layers)

    # ---- what is trained ----

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def _texts_are_constant(self) -> bool:
        """Nothing that training changes reaches the text tower: it runs once."""
        if self.no_words:
            return True
        text = [*self.backbone.text.transformer.parameters(), *self.backbone.text.ln_final.parameters()]
        return self.text_tokens == 0 and not any(p.requires_grad for p in text)

    # ---- texts ----

    def _tokens(self, classes: Sequence[str]) -> Tensor:
        """Ids ``[2, C, M]`` for sketch and photo: [SOS], m placeholders, template, class, [EOS]."""
        reader, m = self.backbone.reader, self.text_tokens
        texts = [f"{self._template(kind)} {name}".strip() for kind in range(len(MODALITIES)) for name in classes]
        for text, name in zip(texts, list(classes) * len(MODALITIES), strict=True):
            if reader.count(text, m) > reader.length:
                raise UserError(
                    f"the prompt for {short(name)} is longer than the backbone's {reader.length} tokens: "
                    "shorten the name, prompts.template or prompts.text_tokens"
                )
        return reader.tokenize(texts, m).unflatten(0, (len(MODALITIES), -1))

    def _template(self, modality: int) -> str:
        return self.config.prompts.template.replace("{modality}", MODALITIES[modality])

    @torch.no_grad()
    def text_prefix(self) -> list[Tensor]:
        """What each text layer gets of the tokens that all texts begin with ([SOS], prompts, template): ``[2, a, d_t]``.

        The tower is causal: they do not depend on the words that follow. Sketches first, then photos.
        """
        tokens, reader = self._tokens(["x", "y"]), self.backbone.reader
        shared, text = reader.shared(tokens), reader.module
        tokens = tokens[:, :1].to(self.tokens.device)
        prompts = self._text_prompts(len(MODALITIES), self.patch_mean) or []
        _, hidden = self.backbone.encode_groups(tokens, shared, prompts)
        position = text.positional_embedding[:shared]
        states = [text.token_embedding(tokens[:, 0, :shared]) + position, *(start for start, _ in hidden[:-1])]
        for layer, prompt in enumerate(prompts):
            start, rest = states[layer][:, :1], states[layer][:, 1 + prompt.shape[1] :]
            states[layer] = torch.cat([start, reader.in_slots(prompt, position, layer), rest], dim=1)
        return states

    @torch.no_grad()
    def text_prompts(self) -> list[Tensor] | None:
        """The constant text prompts of both modalities, ``[2, m, d_t]`` for each prompted layer."""
        return self._text_prompts(len(MODALITIES), self.patch_mean)

    def _encode_classes(self, tokens: Tensor, shared: int, patches: Tensor | None) -> tuple[Tensor, Any]:
        """Prompted texts of G groups: features ``[G, C, D]``, normalised, and the method's summary of all layers.

        Args:
            tokens: ``[G, C, M]``.
            shared: tokens that the texts of a group begin with.
            patches: ``[G, P, d_v]``, for :meth:`write_text`.
        """
        if self.no_words:
            return torch.zeros(len(tokens), 0, self.backbone.embed_dim, device=tokens.device), None
        prompts = self._text_prompts(len(tokens), patches)
        features, hidden = self.backbone.encode_groups(tokens, shared, prompts, self.text_norm)
        return F.normalize(features.float(), dim=-1), self.summarise(tokens, shared, hidden)

    # ---- conditions: texts and visual prompts ----

    def _text_prompts(self, groups: int, patches: Tensor | None) -> list[Tensor] | None:
        size = (groups, self.text_tokens, self.backbone.text_width)
        return of_size(self.write_text(groups, patches), size, f"{type(self).__name__}.write_text")

    def _visual_prompts(self, modality: Tensor, summary: Any) -> list[Tensor] | None:
        prompts = self.write_visual(modality, summary)
        size = (len(modality), prompts[0].shape[1] if prompts else 0, self.backbone.visual_width)
        return of_size(prompts, size, f"{type(self).__name__}.write_visual")

    def condition_modalities(self, mean: Tensor) -> Conditions:
        """Texts and visual prompts of both modalities.

        Args:
            mean: ``[2, P, d_v]`` average patch embeddings.
        """
        modality = torch.arange(len(MODALITIES), device=self.tokens.device)
        if not self._texts_are_constant():
            return self._conditions(modality, mean)
        if self._constant_texts is None:
            with torch.no_grad():
                self._constant_texts = self._encode_classes(self.tokens, self.shared, mean)
        texts, summary = self._constant_texts
        return Conditions(texts, self._visual_prompts(modality, summary))

    def condition(self, patches: Tensor, modality: Tensor, mean: Tensor, labels: Tensor) -> Conditions:
        """Of a training batch; ``labels [3 * B]``: classes of its first images. Else see the two below."""
        return self.condition_images(patches, modality) if self.per_image else self.condition_modalities(mean)

    def condition_images(self, patches: Tensor, modality: Tensor) -> Conditions:
        """Texts and visual prompts of each image, from itself.

        Args:
            patches: ``[B, P, d_v]`` patch embeddings.
            modality: ``[B]`` int64, 0 sketch, 1 photo.
        """
        return self._conditions(modality, patches)

    def _conditions(self, modality: Tensor, patches: Tensor) -> Conditions:
        texts, summary = self._encode_classes(self.tokens[modality], self.shared, patches)
        return Conditions(texts, self._visual_prompts(modality, summary))

    # ---- training ----

    @torch.no_grad()
    def start(self, images: Tensor) -> None:
        """Before the first step of a new run, see :meth:`begin`.

        Args:
            images: ``[3 * B, 3, S, S]`` uint8 of the first batch: a third of sketches, two of photos.
        """
        patches = torch.cat([self.backbone.embed_patches(part) for part in images.split(64)])
        self.begin(patches, (torch.arange(len(images), device=images.device) >= len(images) // 3).long())
        self._forget()

    def average(self, patches: Tensor, modality: Tensor) -> Tensor:
        """Mean patch embeddings of the two modalities over the batch, of all processes: ``[2, P, d_v]``.

        Args:
            patches: ``[B, P, d_v]``.
            modality: ``[B]`` int64; both must occur.
        """
        if not self.backbone.patches:  # a convolutional tower: nobody reads them
            return self.patch_mean
        choice = F.one_hot(modality, len(MODALITIES)).to(patches.dtype)
        mean = torch.einsum("bm,bpd->mpd", choice / choice.sum(dim=0), patches)
        return distributed.mean(mean)

    @torch.no_grad()
    def remember(self, mean: Tensor) -> None:
        """Move the average that inference uses towards a batch's: a plain mean until the decay is the slower."""
        decay = torch.clamp(self.batches_seen / (self.batches_seen + 1), max=self.config.prompts.ema)
        self.patch_mean.lerp_(mean.detach().float(), 1 - decay)
        self.batches_seen += 1

    def encode(self, patches: Tensor, modality: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """One pass of the visual tower; each image takes its modality's prompts, or its own.

        Args:
            patches: ``[B, P, d_v]``.
            modality: ``[B]`` int64.

        Returns:
            ``(features [B, D] of unit length, tokens [B, 1 + P, d_v])``.
        """
        prompts = conditions.prompts
        if prompts is not None and not self.per_image:
            # A product with a one-hot matrix, not an index: the gradient of an index into few rows is
            # summed by several threads in no fixed order, and a run could not be repeated.
            choice = F.one_hot(modality, len(MODALITIES))
            prompts = [torch.einsum("bg,gnd->bnd", choice.to(prompt.dtype), prompt) for prompt in prompts]
        features, tokens = self.backbone.encode_visual_tokens(patches, prompts, self.visual_norm)
        return F.normalize(features.float(), dim=-1), tokens

    def forward(self, images: Tensor, modality: Tensor) -> tuple[Tensor, Tensor]:
        """Features of a batch as training sees them.

        Args:
            images: ``[B, 3, S, S]`` uint8.
            modality: ``[B]`` int64, 0 sketch, 1 photo; both must occur.

        Returns:
            ``(image features [B, D], text features [G, C, D])``, all of unit length.
        """
        patches = self.backbone.embed_patches(images)
        mean = self.average(patches, modality)
        self.remember(mean)
        conditions = self.condition_images(patches, modality) if self.per_image else self.condition_modalities(mean)
        return self.encode(patches, modality, conditions)[0], conditions.texts

    # ---- inference ----

    def train(self: R, mode: bool = True) -> R:
        self._forget()
        super().train(mode)
        if not self.config.train_backbone and not isinstance(self.backbone.visual_tower, ClipViT):
            self.backbone.visual.eval()  # statistics of BatchNorms stay, and no layer is left out by chance
        return self

    def _apply(self: R, *args: Any, **options: Any) -> R:  # another device or dtype
        self._forget()
        super()._apply(*args, **options)
        return self

    def _forget(self) -> None:
        self._constants = self._constant_texts = None

    @torch.no_grad()
    def constants(self) -> Conditions:
        """Texts and prompts of both modalities; computed once, until training goes on.

        With ``conditioning: instance``, those of the average image.
        """
        if self._constants is None:
            self._constants = self.condition_modalities(self.patch_mean)
        return self._constants

    def visual_prompts(self) -> list[list[Tensor] | None]:
        """The constant visual prompts of each modality, ``[n, d_v]`` a layer."""
        prompts = self.constants().prompts
        return [None if prompts is None else [p[m] for p in prompts] for m in range(len(MODALITIES))]

    @torch.no_grad()
    def encode_image(self, images: Tensor, modality: int, prompts_of: int | None | Literal["own"] = "own") -> Tensor:
        """Unit-length features ``[B, D]`` of uint8 images ``[B, 3, S, S]`` of one modality.

        Args:
            prompts_of: the modality whose visual prompts are written, or None: no prompts. For tests of what they do.
        """
        if self.training:
            raise RuntimeError("call eval() before encode_image")
        patches = self.backbone.embed_patches(images)
        chosen = modality if prompts_of == "own" else prompts_of
        prompts = None if chosen is None else self.prompts_for(patches, chosen)
        features = self.backbone.encode_visual(patches, prompts, self.visual_norm)
        return F.normalize(features.float(), dim=-1)

    @torch.no_grad()
    def prompts_for(self, patches: Tensor, modality: int) -> list[Tensor] | None:
        """The visual prompts of images in inference: ``[n, d_v]`` a layer, or ``[B, n, d_v]`` with ``per_image``."""
        if not self.per_image:
            return self.visual_prompts()[modality]
        return self.condition_images(patches, torch.full((len(patches),), modality, device=patches.device)).prompts

    def encode_sketch(self, images: Tensor) -> Tensor:
        """Unit-length features ``[B, D]`` of sketches, uint8 ``[B, 3, S, S]``."""
        return self.encode_image(images, 0)

    def encode_photo(self, images: Tensor) -> Tensor:
        """Unit-length features ``[B, D]`` of photos, uint8 ``[B, 3, S, S]``."""
        return self.encode_image(images, 1)

    @torch.no_grad()
    def encode_text(self, names: Sequence[str], modality: int = 1) -> Tensor:
        """Unit-length features ``[C, D]`` of class names, prompted as sketches or photos; "a horse" is read as "horse"."""
        if self.no_words:
            raise UserError(self.no_words)
        tokens = self._tokens([bare(name) for name in names]).to(self.tokens.device)[modality : modality + 1]
        mean, shared = self.patch_mean[modality : modality + 1], self.backbone.reader.shared(tokens)
        return self._encode_classes(tokens, shared, mean)[0][0]

    # ---- checkpoints ----

    def plain_backbone(self) -> dict[str, Tensor]:
        """The backbone as open_clip knows it, to start from as ``--backbone.pretrained FILE``.

        The BatchNorms of ``train_backbone`` are folded into the LayerNorms before them: in inference both
        are a scale and a shift of each channel.
        """
        state = OrderedDict((name, t.detach().cpu().clone()) for name, t in self.backbone.clip.state_dict().items())
        state._metadata = {"": {"quick_gelu": self.backbone.quick_gelu}}  # type: ignore[attr-defined]
        if not self.config.train_backbone:
            return state
        prefix = "text." if self.backbone.text is not self.backbone.clip else ""
        for norm, name in ((self.visual_norm, "visual.ln_post"), (self.text_norm, f"{prefix}ln_final")):
            if isinstance(norm, nn.BatchNorm1d):
                scale, shift = (part.cpu() for part in as_affine(norm))
                state[f"{name}.weight"] *= scale
                state[f"{name}.bias"] = state[f"{name}.bias"] * scale + shift
        return state

    def checkpoint(self) -> dict[str, Any]:
        """What training changed, and what is needed to build the rest again."""
        return state_of(self)

    def restore(self, state: dict[str, Any], source: object) -> None:
        """Load what :meth:`checkpoint` returned."""
        restore(self, state, source)
        self._forget()
