"""What can be set: one dataclass per verb, its YAML, and the order defaults < file < flags.

Field docstrings are the ``--help`` texts. This module imports no torch, so that ``--help`` is quick.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
import yaml

from splip.errors import UserError

T = TypeVar("T")
CONFIGS = Path(__file__).parent / "configs"


@dataclass
class BackboneConfig:
    """The CLIP model that SpLIP adapts."""

    name: str = "ViT-B-32"
    """open_clip architecture (ViT-*), or splip-tiny."""
    pretrained: str | None = None
    """open_clip tag (openai, laion2b_s34b_b79k, ...) or a weights file; none: random weights."""
    seed: int = 0
    """Seed of the random weights when nothing is pretrained."""


@dataclass
class DataConfig:
    """Pictures as a tree {sketch,photo}/<class>/*."""

    root: Path | None = None
    """Folder that holds sketch/ and photo/."""
    unseen: tuple[str, ...] = ()
    """Test classes, never trained on. Default: dataset.json of the tree, else a seeded choice."""
    unseen_fraction: float = 0.2
    """Share of the classes that become unseen when neither this file nor the tree names them."""
    validation: tuple[str, ...] = ()
    """Seen classes held out to choose the best checkpoint. Default: dataset.json, else a seeded choice."""
    split_seed: int = 0
    """Seed of the choices above."""
    fit: Literal["pad", "stretch", "crop"] = "pad"
    """How a picture becomes square: white borders, stretched, or its centre."""
    crop_sketches: bool = False
    """Crop every sketch to its ink plus a small border before it becomes square."""
    augment: Literal["none", "light", "strong"] = "light"
    """Random flips, affine maps, colours, stroke widths and cut-outs in training."""
    memory_gb: float = 2.0
    """Pictures are decoded once and kept when they fit in this many GB, else decoded for every use."""


@dataclass
class PromptConfig:
    """Prompt tokens of both towers (paper, section 3)."""

    text_tokens: int = 4
    """m: tokens that B_t makes of the patch embeddings, for every text layer; 0 turns B_t off."""
    words: bool = True
    """B_v: the template's words as visual prompt tokens, the same in every layer."""
    layer_tokens: int = 2
    """n: tokens that B_vt makes of each text layer's states; 0 turns B_vt off."""
    depth: int | None = None
    """Layers that get prompts, counted from the input; none: all."""
    template: str = "{modality} of a"
    """Words before the class name; {modality} is sketch or photo."""
    ema: float = 0.99
    """Decay of the average patch embedding that stands for a modality after training."""


@dataclass
class LossConfig:
    """L = triplet * L_triplet + classification * L_class."""

    triplet: float = 1.0
    """Weight of the triplet loss."""
    classification: float = 1.0
    """Weight of the cross-entropy against the prompted class texts (alpha)."""
    logit_scale: float | None = None
    """Inverse temperature of the cross-entropy; none: the backbone's own."""
    margin: Literal["adaptive", "fixed"] = "adaptive"
    """adaptive: cosine of the two classes' frozen texts; fixed: fixed_margin."""
    fixed_margin: float = 0.2
    """Margin of the triplet loss when it is fixed."""


@dataclass
class TrainConfig:
    """Train SpLIP on the seen classes of a tree of sketches and photos."""

    out: Path = Path("runs/splip")
    """Folder of the run: config.yaml, best.pt, last.pt, log.csv, skipped.txt."""
    resume: bool = False
    """Continue the run in --out from last.pt."""
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train_layernorm: bool = True
    """Train the LayerNorms of the visual tower."""
    train_text_layernorm: bool = True
    """Train the LayerNorms of the text tower."""
    train_backbone: bool = False
    """Train all weights but the word embeddings, and a BatchNorm after each tower: for random weights."""
    positives: Literal["class", "instance"] = "class"
    """The positive photo: any of the sketch's class, or one of the same instance."""
    epochs: int = 60
    """Passes over the sketches."""
    steps: int | None = None
    """Optimiser steps; overrides epochs."""
    batch_size: int = 64
    """Sketches per step; each brings one positive and one negative photo."""
    lr: float = 1e-3
    """Peak learning rate of Adam."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW) of the matrices."""
    warmup: int = 50
    """Steps of linear warm-up, then the rate follows a cosine down to a hundredth."""
    eval_every: int = 100
    """Steps between measurements on the validation classes; the best checkpoint is kept."""
    seed: int = 0
    """Seed of the new weights, the batches and the augmentation."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""


@dataclass
class EvalConfig:
    """Measure zero-shot retrieval on the unseen classes and print a table."""

    checkpoint: Path
    """best.pt of a run."""
    root: Path | None = None
    """Tree of pictures; default: the one the checkpoint was trained on."""
    classes: Literal["unseen", "validation"] = "unseen"
    """Which of the held-out classes to measure."""
    baselines: bool = False
    """Also measure chance, raw pixels, HOG (needs scikit-image) and the plain backbone."""
    json: Path | None = None
    """Write the table to this file."""
    grid: Path | None = None
    """Write a picture of some queries and what they find to this file."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""


@dataclass
class IndexConfig:
    """Embed the pictures of folders and write a gallery that can be searched."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of pictures, searched through all levels, or single pictures."""
    gallery: Path
    """Folder of the gallery to write."""
    checkpoint: Path
    """best.pt of a run; a copy goes into the gallery."""
    overwrite: bool = False
    """Replace an existing gallery."""
    batch_size: int = 64
    """Pictures per forward pass."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""


@dataclass
class SearchConfig:
    """Find the photos of a gallery that match a sketch."""

    gallery: Path
    """Folder that `splip index` wrote."""
    sketch: tuple[Path, ...]
    """One or more drawings, dark on white or on transparency."""
    k: int = 10
    """Photos to show per sketch."""
    grid: Path | None = None
    """Write the sketches and their photos as a picture to this file."""
    json: bool = False
    """Print JSON instead of a table."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""


@dataclass
class SampleConfig:
    """Unpack the sample data set: 738 things, three sketches and three pictures of each."""

    out: Path
    """Folder to write sketch/<class>/ and photo/<class>/ into."""


@dataclass
class CheckConfig:
    """Read a tree of sketches and photos and say what is in it."""

    root: Path
    """Folder that holds sketch/ and photo/."""
    decode: bool = False
    """Decode every picture and list those that cannot be read."""


@dataclass
class DemoConfig:
    """The whole way on the sample data: unpack, train, measure, index, search, and a page to look at."""

    out: Path = Path("demo")
    """Folder of the results; what exists in it is used again."""
    steps: int | None = None
    """Training steps; default: those of the configuration `sample`."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""


@dataclass
class InfoConfig:
    """Print versions, instruction sets, the CUDA build and GPUs; paste it in a bug report."""


# ---- YAML ----


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain YAML values."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


def from_dict(cls: type[T], values: Any, source: str, prefix: str = "") -> T:
    """Fill a dataclass; unknown keys and wrong types are a UserError that names them."""
    if not isinstance(values, dict):
        raise UserError(f"{source}: {prefix.rstrip('.') or 'the file'} must be a mapping, got {values!r}")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            known = ", ".join(hints)
            raise UserError(f"{source}: unknown key '{prefix}{key}'; known keys: {known}")
    filled = {key: _convert(hints[key], value, source, prefix + key) for key, value in values.items()}
    return cls(**filled)


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type[Any], hint), value, source, key + ".")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, source, key)
    if origin is Literal:
        if value in args:
            return value
        raise UserError(f"{source}: {key} must be one of {', '.join(map(str, args))}, got {value!r}")
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_convert(args[0], v, source, key) for v in value)
        raise UserError(f"{source}: {key} must be a list, got {value!r}")
    if hint is float and not isinstance(value, bool):
        try:  # PyYAML reads 2e-3 as a string
            return float(value)
        except (TypeError, ValueError):
            pass
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif type(value) is hint:
        return value
    name = "a path" if hint is Path else hint.__name__
    raise UserError(f"{source}: {key} must be {name}, got {value!r}")


def load(cls: type[T], path: str) -> T:
    """Read a YAML file, or a shipped configuration by its name."""
    shipped = {p.stem: p for p in sorted(CONFIGS.glob("*.yaml"))}
    file = shipped.get(path, Path(path))
    if not file.is_file():
        raise UserError(f"no configuration {path}: not a file, and the shipped ones are {', '.join(shipped)}")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    return from_dict(cls, values or {}, str(file))


def save(config: Any, path: Path) -> None:
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def differences(a: Any, b: Any) -> list[str]:
    """Settings that differ, as ``key: old -> new``."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in values.items():
            out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return out

    old, new = flat(to_dict(a)), flat(to_dict(b))
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in new if old.get(key) != new.get(key)]
