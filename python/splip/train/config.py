"""Settings of `splip pretrain`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass
class PretrainConfig:
    """Train a small CLIP from pictures and their names: splip-tiny's weights."""

    pictures: Path
    """Folder with pictures.csv (path, thing, name, class), as tools/build_pictures.py writes it."""
    out: Path = Path("runs/splip-tiny")
    """Folder of the run: config.yaml, last.safetensors, log.csv, weights.safetensors."""
    resume: bool = False
    """Go on with a run that was stopped."""
    backbone: str = "splip-tiny"
    """Architecture to train, from random weights."""
    sample: Path | None = None
    """The sample data (splip data sample): its validation classes are measured while training, and learned by nothing."""
    start: str | None = None
    """Weights of the same shape to go on from: a file, or the name of packaged ones, as splip-tiny; none: random."""
    steps: int = 12_000
    """Steps for the visual tower."""
    text_steps: int = 2_000
    """Steps for the text tower, afterwards: it is fitted to what the visual tower sees."""
    batch_size: int = 96
    """Pictures in a step; every picture is another thing, in one of its designs."""
    lr: float = 2e-3
    """Peak learning rate; cosine decay."""
    weight_decay: float = 0.05
    """AdamW's, on matrices."""
    warmup: int = 200
    """Steps of linear warm-up."""
    scale: float = 16.0
    """Inverse temperature of the cosine between a picture and the prototypes of things and classes."""
    class_weight: float = 0.5
    """Weight of the loss on classes beside the one on things."""
    outlines: float = 0.2
    """Share of pictures that are shown as their edges, dark on white."""
    pair_weight: float = 0.0
    """Above 0 every thing of a batch is shown twice, as a picture and as a drawing, and this is the weight of the loss on
    finding one by the other."""
    scenes: float = 0.0
    """Share of pictures that are lit, on textured grounds, out of focus and noisy, as photographs are."""
    ema: float = 0.999
    """Decay of the averaged weights, which are what is saved."""
    eval_every: int = 500
    """Steps between two checkpoints."""
    compile: bool = False
    """Compile the visual tower (needs a C++ compiler): about a third faster on a CPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: the visual tower trains in mixed precision, for GPUs."""
    seed: int = 0
    """Seed of weights, batches and augmentation."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N. On a GPU all pictures are kept and painted there."""
