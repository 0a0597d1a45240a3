"""Settings of data sets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass
class DataConfig:
    """Which pictures, and their split into seen and unseen classes."""

    root: Path | None = None
    """Folder of the data set or its parent; for a tree, the one that holds sketch/ and photo/."""
    dataset: Literal["tree", "sketchy", "tuberlin", "quickdraw"] = "tree"
    """tree: {sketch,photo}/<class>/*; the others in any of the layouts they are passed around in."""
    sketches: Literal["drawn", "pseudo"] = "drawn"
    """Of seen classes. pseudo: lines of their photos, so that a folder of photos is enough: photo/<class>/*, <class>/*, or
    photos alone. Sketches that a tree holds are what is measured on then."""
    split: str | None = None
    """Named split of the data set: sketchy-2 (or just 2), sketchy-1, sketchy-1-sempcyc, tuberlin, tuberlin-sempcyc,
    tuberlin-kdsbir, quickdraw, quickdraw-kdsbir; none: sketchy-2, tuberlin, quickdraw."""
    extended: bool = True
    """Sketchy: all 73,002 photos, or only the 12,500 that were drawn from (fine-grained)."""
    dedup: bool = True
    """Sketchy: count a photo once that both the basic and the extended folder hold."""
    captions: Path | None = None
    """Text file, one `class<TAB>words` a line: how classes are written in prompts."""
    unseen: tuple[str, ...] = ()
    """Test classes, never trained on. Default: those of split; of a tree, its dataset.json or val/, else a seeded
    choice."""
    unseen_fraction: float = 0.2
    """Share of the classes that become unseen when neither this file nor the tree names them."""
    validation: tuple[str, ...] = ()
    """Seen classes held out to choose the best checkpoint. Default: dataset.json, else a seeded choice."""
    validation_classes: int | None = None
    """How many to hold out when nothing names them; none: a sixth, at most 12; 0: none, the last step is the best."""
    split_seed: int = 0
    """Seed of the choices above."""
    fit: Literal["pad", "stretch", "crop", "pad-black"] = "pad"
    """How a picture becomes square: white borders, stretched, its centre, or black borders (CLIP-AT's released code)."""
    crop_sketches: bool = False
    """Crop every sketch to its ink plus a small border before it becomes square."""
    augment: Literal["none", "light", "strong"] = "light"
    """Random flips, affine maps, colours, stroke widths and cut-outs in training."""
    partial: float = 0.0
    """Share of sketches that training shows unfinished, as the page sees them: the first of their lines."""
    partial_least: float = 0.2
    """Share of a sketch's lines that stays at least."""
    sample_fraction: float = 1.0
    """Share of each seen class's sketches and photos to train on, chosen by split_seed."""
    class_fraction: float = 1.0
    """Share of the seen classes to train on, chosen by split_seed."""
    memory_gb: float = 2.0
    """A list of pictures is decoded once and kept if it fits in this many GB, else decoded for every use."""
    cache: Path | None = None
    """Folder for decoded pictures: memory-mapped, made once, used by later runs, may be larger than memory."""


@dataclass
class SampleConfig:
    """Unpack the sample data set: 738 things, three sketches and three pictures of each."""

    out: Path
    """Folder to write sketch/<class>/ and photo/<class>/ into."""


@dataclass
class CheckConfig:
    """Say what a data set holds; of Sketchy, TU-Berlin and QuickDraw also what it should hold."""

    root: Path
    """Folder of the data set or its parent; for a tree, the one that holds sketch/ and photo/."""
    dataset: Literal["tree", "sketchy", "tuberlin", "quickdraw"] = "tree"
    """tree: {sketch,photo}/<class>/*; the others in any layout that data.dataset reads."""
    split: str | None = None
    """Named split to count for, e.g. sketchy-2 or 2; none: the usual one."""
    extended: bool = True
    """Sketchy: expect the extended photos too, or only the 12,500 that were drawn from."""
    decode: bool = False
    """Decode every picture and list those that cannot be read."""
    json: bool = False
    """Print JSON."""
