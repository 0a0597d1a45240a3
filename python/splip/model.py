"""SpLIP: CLIP with prompts that each tower writes for the other (ECCV 2024, arXiv 2407.04207).

Sizes: B images, C training classes, P patches, M text context, m and n prompt tokens, w template
words with [SOS], d_v and d_t widths, D joint embedding.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splip import config as configuration
from splip.clip import PromptedCLIP
from splip.config import TrainConfig
from splip.data import MODALITIES
from splip.errors import UserError
from splip.prompts import LayersToVision, VisionToText, WordsToVision

FORMAT = 1


class SpLIP(nn.Module):
    """The prompted model, its trainable parts, and the classes it was trained on.

    Prompts depend on the modality, not on the image: the patch embeddings are averaged over the
    images of a modality in the batch, and over training (``patch_mean``) for inference. Then both
    towers' prompts are constants.

    Args:
        config: see :class:`splip.config.TrainConfig`.
        classes: names of the C training classes, as words.
    """

    patch_mean: Tensor
    batches_seen: Tensor
    class_similarity: Tensor

    def __init__(self, config: TrainConfig, classes: Sequence[str]) -> None:
        super().__init__()
        self.config, self.classes = config, list(classes)
        # What the trainer used, as words: seen, validation and unseen classes, and a hash of the pictures' names.
        self.data: dict[str, Any] = {"seen": self.classes, "validation": [], "unseen": [], "pictures": ""}
        self.backbone = PromptedCLIP(config.backbone)
        self.backbone_identity = self.backbone.identity()
        clip, p = self.backbone, config.prompts
        if "{modality}" not in p.template:
            raise UserError(f"prompts.template must contain {{modality}}, got '{p.template}'")
        layers = max(clip.visual_layers, clip.text_layers)
        if p.depth is not None and not 0 <= p.depth <= layers:
            raise UserError(f"prompts.depth must be between 0 and {layers} for {config.backbone.name}, got {p.depth}")
        if min(p.text_tokens, p.layer_tokens) < 0:
            raise UserError("prompts.text_tokens and prompts.layer_tokens must not be negative")
        with torch.random.fork_rng(devices=[]):  # the weights are made on the CPU
            torch.manual_seed(config.seed)
            d_v, d_t = clip.visual_width, clip.text_width
            self.b_t = VisionToText(clip.patches, d_v, d_t, p.text_tokens) if p.text_tokens else None
            self.b_v = WordsToVision(d_t, d_v) if p.words else None
            self.b_vt = LayersToVision(d_t, d_v, p.layer_tokens) if p.layer_tokens else None
        # From random weights a loss on cosines collapses: every input soon gets the same feature. A
        # BatchNorm after the last LayerNorm of each tower keeps the features apart. In inference it is
        # a constant affine map. Pre-trained towers need none.
        self.visual_norm = nn.BatchNorm1d(d_v) if config.train_backbone else nn.Identity()
        self.text_norm = nn.BatchNorm1d(d_t) if config.train_backbone else nn.Identity()
        self.register_buffer("patch_mean", torch.zeros(len(MODALITIES), clip.patches, d_v))
        self.register_buffer("batches_seen", torch.zeros(len(MODALITIES)))
        for modality, text in enumerate(MODALITIES):
            self.register_buffer(f"tokens_{text}", self._tokens(self.classes, modality), persistent=False)
        # How alike two classes are to the frozen text tower: the adaptive margin.
        with torch.no_grad():
            plain, _ = clip.encode_text(clip.tokenize([f"a photo of a {name}" for name in self.classes]))
        plain = F.normalize(plain, dim=-1)
        self.register_buffer("class_similarity", plain @ plain.T, persistent=False)
        self._constant_prompts: list[list[Tensor] | None] | None = None
        self._set_trainable()

    # ---- what is trained ----

    def _set_trainable(self) -> None:
        """LayerNorms and the three maps; with ``train_backbone`` everything but logit scale and word embeddings."""
        c = self.config
        for parameter in self.parameters():
            parameter.requires_grad = False
        for module in (self.b_t, self.b_v, self.b_vt):
            for parameter in module.parameters() if module is not None else ():
                parameter.requires_grad = True
        clip = self.backbone
        visual_norms = [m for m in clip.visual.modules() if isinstance(m, nn.LayerNorm)]
        text_norms = [m for m in (*clip.text.transformer.modules(), clip.text.ln_final) if isinstance(m, nn.LayerNorm)]
        wanted = visual_norms * c.train_layernorm + text_norms * c.train_text_layernorm
        for norm in wanted:
            for parameter in norm.parameters():
                parameter.requires_grad = True
        if c.train_backbone:
            for parameter in self.parameters():
                parameter.requires_grad = True
            clip.clip.logit_scale.requires_grad = False
            # Three quarters of a tiny model: random vectors tell words apart as well as trained ones.
            clip.text.token_embedding.weight.requires_grad = False

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    # ---- texts ----

    def _tokens(self, classes: Sequence[str], modality: int) -> Tensor:
        """Ids ``[C, M]``: [SOS], m placeholders, template, class, [EOS]."""
        placeholders = "X " * self.config.prompts.text_tokens
        texts = [f"{placeholders}{self._template(modality)} {name}" for name in classes]
        room = int(self.backbone.text.context_length)
        for text, name in zip(texts, classes, strict=True):
            if len(self.backbone.tokenizer.encode(text)) + 2 > room:  # [SOS] and [EOS]
                raise UserError(
                    f"the prompt for '{name}' is longer than the backbone's {room} tokens: "
                    "shorten the name, prompts.template or prompts.text_tokens"
                )
        return self.backbone.tokenize(texts)

    def _template(self, modality: int) -> str:
        return self.config.prompts.template.replace("{modality}", MODALITIES[modality])

    def _words(self, modality: int) -> Tensor:
        """Token embeddings ``[w, d_t]`` of [SOS] and the template's words."""
        tokens = self.backbone.tokenize([self._template(modality)])[0, :-1]  # without [EOS]
        embedding = self.backbone.text.token_embedding
        words: Tensor = embedding(tokens.to(embedding.weight.device))
        return words

    def _depth(self, layers: int) -> int:
        depth = self.config.prompts.depth
        return layers if depth is None else min(depth, layers)

    def _encode_classes(self, tokens: Tensor, patch_mean: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Prompted texts of one modality: features ``[C, D]``, normalised, and states after each layer."""
        prompts = None
        if self.b_t is not None:
            prompts = [self.b_t(patch_mean)] * self._depth(self.backbone.text_layers)
        features, hidden = self.backbone.encode_text(tokens, prompts, self.text_norm)
        return F.normalize(features, dim=-1), hidden

    # ---- visual prompts ----

    def _visual_prompts(self, modality: int, tokens: Tensor, hidden: list[Tensor]) -> list[Tensor] | None:
        """For every prompted visual layer ``[w + n, d_v]``: the template's words, then the text layer's summary."""
        parts: list[list[Tensor]] = [[] for _ in range(self._depth(self.backbone.visual_layers))]
        if self.b_v is not None:
            words = self.b_v(self._words(modality))
            for layer in parts:
                layer.append(words)
        if self.b_vt is not None and parts:
            eos = tokens.argmax(dim=1)
            position = torch.arange(tokens.shape[1], device=tokens.device)
            # The words proper: after [SOS] and the m slots, before [EOS].
            is_word = (position > self.config.prompts.text_tokens) & (position < eos[:, None])
            weight = is_word.float() / is_word.sum(dim=1, keepdim=True) / len(tokens)
            rows = torch.arange(len(tokens), device=tokens.device)
            summaries = [
                self.b_vt(h[rows, eos].mean(dim=0), torch.einsum("cm,cmd->d", weight.to(h.dtype), h)) for h in hidden
            ]
            for number, part in enumerate(parts):
                # Towers of different depth: visual layer l takes text layer floor(l * L_t / L_v).
                part.append(summaries[number * len(hidden) // self.backbone.visual_layers])
        prompts = [torch.cat(part) for part in parts if part]
        return prompts or None

    def _patch_mean(self, patches: Tensor, modality: int) -> Tensor:
        """Mean over the images of one modality; training also moves the average that inference uses."""
        mean = patches.mean(dim=0)
        with torch.no_grad():
            seen = float(self.batches_seen[modality])
            decay = min(self.config.prompts.ema, seen / (seen + 1))
            self.patch_mean[modality].lerp_(mean.detach().float(), 1 - decay)
            self.batches_seen[modality] += 1
        return mean

    def forward(self, images: Tensor, modality: Tensor) -> tuple[Tensor, Tensor]:
        """A training step's features.

        Args:
            images: ``[B, 3, S, S]`` uint8.
            modality: ``[B]`` int64, 0 sketch, 1 photo; both must occur.

        Returns:
            ``(image features [B, D], text features [2, C, D])``, all of unit length.
        """
        patches = self.backbone.embed_patches(images)
        texts, prompts = [], []
        for m, name in enumerate(MODALITIES):
            mean = self._patch_mean(patches[modality == m], m)
            tokens = getattr(self, f"tokens_{name}")
            features, hidden = self._encode_classes(tokens, mean)
            texts.append(features)
            prompts.append(self._visual_prompts(m, tokens, hidden))
        # One pass through the visual tower: each image takes its own modality's prompts.
        mixed = None
        sketch_prompts, photo_prompts = prompts
        if sketch_prompts is not None and photo_prompts is not None:
            # A product with a one-hot matrix, not an index: the gradient of an index into few rows is
            # summed by several threads in no fixed order, and a run could not be repeated.
            pairs = zip(sketch_prompts, photo_prompts, strict=True)
            choice = F.one_hot(modality, len(MODALITIES)).to(patches.dtype)
            mixed = [torch.einsum("bm,mpd->bpd", choice, torch.stack(pair)) for pair in pairs]
        features = self.backbone.encode_visual(patches, mixed, self.visual_norm)
        return F.normalize(features, dim=-1), torch.stack(texts)

    # ---- inference ----

    def train(self, mode: bool = True) -> "SpLIP":
        self._constant_prompts = None
        super().train(mode)
        return self

    @torch.no_grad()
    def visual_prompts(self) -> list[list[Tensor] | None]:
        """The constant visual prompts of each modality; computed once, until training goes on."""
        if self._constant_prompts is None:
            self._constant_prompts = []
            for m, name in enumerate(MODALITIES):
                tokens = getattr(self, f"tokens_{name}")
                _, hidden = self._encode_classes(tokens, self.patch_mean[m])
                self._constant_prompts.append(self._visual_prompts(m, tokens, hidden))
        return self._constant_prompts

    @torch.no_grad()
    def encode_image(self, images: Tensor, modality: int) -> Tensor:
        """Unit-length features ``[B, D]`` of uint8 images ``[B, 3, S, S]`` of one modality."""
        if self.training:
            raise RuntimeError("call eval() before encode_image")
        patches = self.backbone.embed_patches(images)
        features = self.backbone.encode_visual(patches, self.visual_prompts()[modality], self.visual_norm)
        return F.normalize(features, dim=-1).float()

    def encode_sketch(self, images: Tensor) -> Tensor:
        """Unit-length features ``[B, D]`` of sketches, uint8 ``[B, 3, S, S]``."""
        return self.encode_image(images, 0)

    def encode_photo(self, images: Tensor) -> Tensor:
        """Unit-length features ``[B, D]`` of photos, uint8 ``[B, 3, S, S]``."""
        return self.encode_image(images, 1)

    @torch.no_grad()
    def encode_text(self, names: Sequence[str], modality: int = 1) -> Tensor:
        """Unit-length features ``[C, D]`` of class names, prompted as sketches or photos."""
        tokens = self._tokens(names, modality).to(self.patch_mean.device)
        return self._encode_classes(tokens, self.patch_mean[modality])[0].float()

    # ---- checkpoints ----

    def _kept_buffers(self) -> dict[str, Tensor]:
        """What training changes besides parameters: the average patch embeddings and BatchNorm statistics."""
        return {name: b for name, b in self.named_buffers() if not name.startswith(("backbone.", "tokens_", "class_"))}

    def checkpoint(self) -> dict[str, Any]:
        """What training changed, and what is needed to build the rest again."""
        return {
            "format": FORMAT,
            "config": configuration.to_dict(self.config),
            "classes": self.classes,
            "data": self.data,
            "backbone": self.backbone_identity,
            "trainable": {name: p.detach().cpu().clone() for name, p in self.trainable().items()},
            "buffers": {name: b.cpu().clone() for name, b in self._kept_buffers().items()},
        }

    def restore(self, state: dict[str, Any], source: object) -> None:
        """Load what :meth:`checkpoint` returned."""
        if state["backbone"]["sha256"] != self.backbone_identity["sha256"]:
            ours, theirs = self.backbone_identity, state["backbone"]
            raise UserError(
                f"{source}: was trained on another backbone: {_name(theirs)}, but this one is {_name(ours)}"
            )
        own = self.trainable()
        if set(own) != set(state["trainable"]):
            odd = sorted(set(own) ^ set(state["trainable"]))
            raise UserError(f"{source}: holds other parameters than this configuration, e.g. {odd[0]}")
        with torch.no_grad():
            for name, parameter in own.items():
                value = state["trainable"][name]
                if value.shape != parameter.shape:
                    shapes = f"{list(value.shape)}, expected {list(parameter.shape)}"
                    raise UserError(f"{source}: {name} has shape {shapes}")
                parameter.copy_(value)
            self.data = state["data"]
            for name, buffer in self._kept_buffers().items():
                buffer.copy_(state["buffers"][name])
        self._constant_prompts = None


def _name(identity: dict[str, Any]) -> str:
    weights = identity["pretrained"] or f"random weights of seed {identity['seed']}"
    return f"{identity['name']} ({weights}, sha256 {identity['sha256'][:12]})"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read and check a checkpoint file, without building its model."""
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not a splip checkpoint, or damaged ({type(error).__name__}: {reason})") from None
    if not isinstance(state, dict) or "trainable" not in state or "format" not in state:
        raise UserError(f"{path}: not a splip checkpoint")
    if state["format"] != FORMAT:
        raise UserError(f"{path}: checkpoint format {state['format']}, this version reads {FORMAT}")
    return state


def load_model(path: Path, device: torch.device | str = "cpu") -> SpLIP:
    """The model of a checkpoint, ready for inference.

    Raises:
        UserError: no checkpoint, damaged, or its backbone cannot be built again with the same weights.
    """
    state = read_checkpoint(path)
    config = configuration.from_dict(TrainConfig, state["config"], str(path))
    model = SpLIP(config, state["classes"])
    model.restore(state, path)
    return model.to(device).eval()


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def pick_device(name: str) -> torch.device:
    """``auto``, or any device that torch knows and this machine has."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("only cpu and cuda can be used")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"no device {name}: {str(error).splitlines()[0]}") from None
    return device
