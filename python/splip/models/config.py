"""Settings of a model and its training: a checkpoint keeps them, and is built again from them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from splip.data.config import DataConfig
from splip.errors import UserError

SMALLEST = 8  # components of a vector that is cut
LEAST = {"text_tokens": 0, "layer_tokens": 0, "visual_tokens": 1, "support": 1}
MOST_TOKENS, MOST_WIDTH = 1000, 8192  # beyond any use: sizes that a damaged file could ask for fill the memory


@dataclass
class BackboneConfig:
    """The backbone that SpLIP adapts."""

    name: str = "ViT-B-32"
    """open_clip architecture, splip-tiny, timm:NAME of timm's ViTs (timm:NAME.TAG with weights, timm:NAME@SIDE for pictures of
    another size), or local-dir:FOLDER with an open_clip_config.json and its weights."""
    pretrained: str | None = None
    """open_clip's or timm's tag (openai, laion2b_s34b_b79k, ...), a weights file, local-dir:FOLDER, or random; none: the weights in the
    package for splip-tiny, those of the tag in timm:NAME.TAG, random ones for others."""
    seed: int = 0
    """Seed of random weights."""
    quick_gelu: Literal["auto", "true", "false"] = "auto"
    """Whether the weights were trained with QuickGELU, as OpenAI's were; auto: as open_clip knows of its tags, and a file
    or a configuration beside it says."""
    normalisation: Literal["own", "imagenet"] = "own"
    """Mean and deviation of the pixels: those that the weights were trained with, or ImageNet's (CLIP-AT's released code)."""
    revision: str | None = None
    """Commit of the hub's repository that a tag's weights come from; none: the newest, which checkpoints note."""


@dataclass
class PromptConfig:
    """Prompt tokens of both towers (paper, section 3)."""

    text_tokens: int = 4
    """m: tokens that B_t makes of the patch embeddings, for every text layer; 0 turns B_t off. MaPLe: its tokens."""
    words: bool = True
    """B_v: the template's words as visual prompt tokens, the same in every layer."""
    layer_tokens: int = 2
    """n: tokens that B_vt makes of each text layer's states; 0 turns B_vt off."""
    visual_tokens: int = 3
    """CLIP-AT: learned tokens of each modality at the visual input."""
    visual_std: float = 0.02
    """CLIP-AT: standard deviation of these tokens at the start."""
    support: int = 3
    """DP-CLIP: photos of a category that its prompts are made of in training."""
    channel_scales: bool = False
    """DP-CLIP: scale the components of features by the category's name, where it is known."""
    depth: int | None = None
    """Layers that get prompts, counted from the input; none: all."""
    template: str = "{modality} of a"
    """Words before the class name; {modality} is sketch or photo."""
    conditioning: Literal["modality", "instance"] = "modality"
    """What B_t sees: the mean patch embedding of a modality (constants after training), or each image's own (slow)."""
    ema: float = 0.99
    """Decay of the average patch embedding that stands for a modality after training."""
    start: Literal["patches", "random"] = "patches"
    """Where visual prompts start: around the mean state of patches, where they do no harm; or random numbers."""
    text_std: float | None = 0.02
    """Standard deviation of B_t's tokens at the start, that of CLIP's word embeddings; none: random small numbers."""
    words_norm: bool = True
    """A LayerNorm on the words' embeddings before B_v."""
    words_start: bool = True
    """The token that starts a text is the first of B_v's words."""
    pooling: Literal["ends-and-words", "all"] = "ends-and-words"
    """What B_vt reads of a text layer: the means at [EOS] and over the words; or the mean over all tokens, twice."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Between the linear layers of B_t and B_vt."""


@dataclass
class LossConfig:
    """L = triplet * L_triplet + classification * L_class + jigsaw * L_cjs (+ other terms by their weights)."""

    triplet: float = 1.0
    """Weight of the triplet loss."""
    classification: float = 1.0
    """Weight of the cross-entropy against the prompted class texts (alpha)."""
    jigsaw: float = 0.1
    """Weight of the jigsaw loss (beta)."""
    divergence: float = 0.0
    """Weight of CLIP-AT's f-divergence between the classes' relative distances; needs per_class of 2 or more."""
    elastic: float = 0.0
    """DisAmb's elastic matching, 0 to 1: how much of the triplet loss the most ambiguous pairs lose; needs a second copy of
    the backbone, which says before training what is ambiguous."""
    elastic_scales: Literal["margin", "weight"] = "margin"
    """What of the triplet loss elastic scales."""
    icon: float = 0.0
    """Weight of SketchScape's ICon: similarities to the batch's photos match a target distribution."""
    icon_temperature: float = 0.07
    """ICon: of the similarities."""
    icon_spread: float = 0.2
    """ICon: the share of the target that all photos get alike, because sketches are ambiguous."""
    consistency: float = 0.0
    """Weight of the divergence between how sketches and how their photos relate to the rest of the batch, our reading of MCC's."""
    consistency_temperature: float = 0.1
    """Consistency: of the similarities."""
    matryoshka: tuple[int, ...] = ()
    """Sizes, e.g. 64 128 256: what the losses say of features and texts is the mean over their first so many components,
    normalised again, and over all of them. Vectors may be cut to these sizes afterwards (--dimensions); none: they may not."""
    rotate: bool = True
    """With matryoshka, before training: turn all vectors to the principal axes of the training pictures, which changes no
    cosine. The first components of a pre-trained backbone, whose last projection is not trained, say no more than others."""
    logit_scale: float | None = None
    """Inverse temperature of the cross-entropy; none: the backbone's own."""
    margin: str = "adaptive"
    """adaptive: cosine of the two classes' frozen texts (1 for the same class); fixed: fixed_margin; or a plugin's."""
    fixed_margin: float = 0.2
    """Margin of the triplet loss when it is fixed, and of the permuted triplet."""
    margin_floor: float | None = 0.2
    """Least adaptive margin; none: the cosine as it is, which may be negative."""
    negatives: str = "random"
    """The negative photo. random: the one drawn; semi-hard: the nearest of the batch (of its part, if it is computed in
    parts) that is further away than the positive; or a plugin's choice."""
    jigsaw_form: str = "conditional"
    """conditional: SpLIP's cross-modal jigsaw; permuted-triplet: CLIP-AT's triplet of shuffled pictures; or a plugin's."""
    permutations: int = 100
    """|Y|: tile permutations in the bank, chosen to differ in as many places as possible."""
    tiles: Literal[2, 3] = 3
    """Tiles per side of the jigsaw."""
    jigsaw_width: int = 256
    """Width of F_js; 32 a head."""
    terms: dict[str, float] = field(default_factory=dict)
    """Weights of further terms, which plugins define, by name."""


@dataclass
class TrainConfig:
    """Train SpLIP, or a baseline, on the seen classes of a data set."""

    out: Path = Path("runs/splip")
    """Folder of the run: config.yaml, best.safetensors, last.safetensors, log.csv, skipped.txt."""
    resume: bool = False
    """Continue the run in --out from where it stopped."""
    method: str = "splip"
    """splip, zero-shot (trains nothing), clip-ln (LayerNorms only), clip-at, maple, dp-clip (fine-grained), or one of a plugin;
    `--config clip-at`, `--config maple` and `--config dp-clip` set their recipes."""
    setting: Literal["category", "fine-grained"] = "category"
    """What a sketch is to find: photos of its class, or the photo it was drawn from."""
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    extra: dict[str, float] = field(default_factory=dict)
    """Numbers for what plugins define, by name."""
    train_layernorm: bool = True
    """Train the LayerNorms of the visual tower."""
    train_text_layernorm: bool = True
    """Train the LayerNorms of the text tower."""
    train_stem: bool | None = None
    """Train the scales and shifts of a convolutional stem; none: as train_layernorm."""
    train_also: tuple[Literal["attention-inputs", "class-token", "positions", "projection"], ...] = ()
    """Parts of a CLIP ViT's visual tower that are trained besides, at layernorm_lr: what CLIP-AT's released code leaves unfrozen."""
    train_backbone: bool = False
    """Train all weights but the word embeddings, and a BatchNorm after each tower: for random weights."""
    positives: Literal["class", "instance"] = "class"
    """The positive photo: any of the sketch's class, or one of the same instance (always so when fine-grained)."""
    sampling: Literal["uniform", "class", "instance"] = "uniform"
    """Every sketch once an epoch (but for the last partial batch), or classes or instances drawn with equal chances."""
    per_class: int = 1
    """Sketches of a class in a batch come in groups of this size; above 1, they are drawn anew for each batch."""
    epochs: int = 60
    """Passes over the sketches."""
    steps: int | None = None
    """Optimiser steps; overrides epochs."""
    batch_size: int = 64
    """Sketches per step, over all processes; each brings one positive and one negative photo."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other, to save memory; BatchNorms see parts."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16: matrix products in bfloat16 (autocast), weights and losses in float32. fp16: the same in float16, with a scaled
    loss, for GPUs that are slow in bfloat16 (before Ampere)."""
    lr: float = 1e-3
    """Peak learning rate of Adam."""
    layernorm_lr: float | None = None
    """Peak learning rate of the backbone's LayerNorms; none: lr."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW) of the matrices."""
    clip_gradient: float | None = None
    """Largest norm of the gradient of all trained numbers together; none: any."""
    warmup: int = 50
    """Steps of linear warm-up, then the rate follows the schedule."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The learning rate after the warm-up: a cosine down to a hundredth, or as it is."""
    eval_every: int = 100
    """Steps between measurements on the validation classes; the best checkpoint is kept."""
    eval_gallery: Literal["all", "paired-photo"] = "all"
    """What they search there: all photos of these classes, or one for each sketch, drawn from its class (CLIP-AT's code)."""
    eval_prompts: bool = True
    """Measure there also without the visual prompts, and with the other modality's."""
    tensorboard: bool = False
    """Also log to TensorBoard in --out."""
    seed: int = 0
    """Seed of the new weights, the batches and the augmentation."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""


# What settings were before they could be set: a checkpoint that does not name them was trained so.
BEFORE: dict[str, dict[str, Any]] = {
    "prompts": {"start": "random", "text_std": None, "words_norm": False},
    "loss": {"margin_floor": None},
}


def unnamed(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Part and name of the settings that the version of a checkpoint had no name for."""
    parts = ((part, values[part]) for part in BEFORE if isinstance(values.get(part), dict))
    return [(part, name) for part, given in parts for name in BEFORE[part] if name not in given]


def as_saved(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint, with what its version of the package had no name for."""
    found = dict(values)
    for part, before in BEFORE.items():
        if isinstance(found.get(part), dict):
            found[part] = {**before, **found[part]}
    return found


def trained_sizes(loss: LossConfig, dim: int) -> tuple[int, ...]:
    """The sizes that a model's vectors may have: those of ``loss.matryoshka``, rising, and all ``dim`` components last.

    Raises:
        UserError: sizes that no vector of this model can have.
    """
    given = list(loss.matryoshka)
    listed = " ".join(map(str, given[:8])) + (" ..." if len(given) > 8 else "")
    if given != sorted(set(given)):
        raise UserError(f"loss.matryoshka must rise, got {listed}")
    if given and given[0] < SMALLEST:
        raise UserError(f"loss.matryoshka: sizes must be at least {SMALLEST}, got {given[0]}")
    if given and given[-1] > dim:
        raise UserError(f"loss.matryoshka: this model's vectors have {dim} components, got {given[-1]}")
    return tuple(given) if given and given[-1] == dim else (*given, dim)


def check_numbers(config: TrainConfig, layers: int, any_depth: bool) -> None:
    """Refuse numbers that no model can have.

    Args:
        config: of a model, maybe from a damaged file.
        layers: of the deeper tower.
        any_depth: a depth beyond it is allowed.

    Raises:
        UserError: one line that names the setting.
    """
    p, loss = config.prompts, config.loss
    if p.depth is not None and (p.depth < 0 or (p.depth > layers and not any_depth)):
        raise UserError(f"prompts.depth must be between 0 and {layers} for {config.backbone.name}, got {p.depth}")
    if not 0 <= p.ema <= 1:
        raise UserError(f"prompts.ema must be between 0 and 1, got {p.ema}")
    if not 0 <= p.visual_std < float("inf"):
        raise UserError(f"prompts.visual_std must not be negative, got {p.visual_std}")
    for name, least in LEAST.items():
        if getattr(p, name) < least:
            raise UserError(f"prompts.{name} must be at least {least}, got {getattr(p, name)}")
        if getattr(p, name) > MOST_TOKENS:
            raise UserError(f"prompts.{name} must be at most {MOST_TOKENS}, got {getattr(p, name)}")
    if not 32 <= loss.jigsaw_width <= MOST_WIDTH or loss.jigsaw_width % 32:
        raise UserError(f"loss.jigsaw_width must be a multiple of 32 and at most {MOST_WIDTH}, got {loss.jigsaw_width}")
    most = 23 if loss.tiles == 2 else 10_000
    if loss.jigsaw and not 2 <= loss.permutations <= most:
        raise UserError(f"loss.permutations must be between 2 and {most}, got {loss.permutations}")
