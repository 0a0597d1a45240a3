"""Make the checkpoints in tests/fixtures/checkpoints and the features that they have to give for ever.

    python tools/build_stored_features.py --out tests/fixtures/checkpoints

Only when the checkpoints' format or the packaged backbone changes: what this writes is what the tests then hold.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch

from splip.data.trees import MODALITIES
from splip.models import Retriever, build
from splip.models.config import BackboneConfig, LossConfig, PromptConfig, TrainConfig

MODELS = {
    "splip": {},
    "splip-depth-3": {"prompts": PromptConfig(depth=3, layer_tokens=1)},
    "splip-instance": {"prompts": PromptConfig(conditioning="instance")},
    "zero-shot": {"method": "zero-shot", "prompts": PromptConfig(template="a photo of a")},
    "clip-ln": {"method": "clip-ln"},
    "clip-at": {"method": "clip-at"},
    "maple": {"method": "maple"},
}
CLASSES = ("dog", "palm tree", "cup")
TEXTS = ("dog", "a red car", "two cups on a table")


def pictures(side: int) -> np.ndarray:
    """Two pictures uint8 ``[2, 3, S, S]`` by a formula, so that no random numbers have to stay the same."""
    channel, row, column = np.meshgrid(np.arange(3), np.arange(side), np.arange(side), indexing="ij")
    first = (37 * channel + row * row + 3 * column) % 256
    second = np.where((row - side // 2) ** 2 + (column - side // 3) ** 2 < (side // 4) ** 2, 20 + 60 * channel, 255)
    return np.stack([first, second]).astype(np.uint8)


def features(model: Retriever) -> dict[str, np.ndarray]:
    """What a model says of the pictures and the texts, by modality."""
    images = torch.from_numpy(pictures(model.backbone.image_size))
    found = {}
    for number, name in enumerate(MODALITIES):
        found[f"{name} images"] = model.encode_image(images, number).numpy()
        found[f"{name} texts"] = model.encode_text(TEXTS, number).numpy()
    return found


def make(changes: dict) -> Retriever:
    """A model in which every part matters: far from where its parts start."""
    config = TrainConfig(backbone=BackboneConfig(name="splip-tiny"), loss=LossConfig(jigsaw=0))
    model = build(dataclasses.replace(config, **changes), CLASSES)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        model.patch_mean.copy_(torch.randn(model.patch_mean.shape, generator=generator))
        model.batches_seen.fill_(3)
        for name, parameter in model.trainable().items():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.startswith("backbone."):
                parameter.add_(0.2 * noise)
            else:
                parameter.mul_(8).add_(0.02 * noise)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    stored = {}
    for name, changes in MODELS.items():
        model = make(changes)
        torch.save(model.checkpoint(), out / f"{name}.pt")
        stored |= {f"{name} {what}": value for what, value in features(model).items()}
    np.savez(out / "features.npz", **stored)


if __name__ == "__main__":
    main()
