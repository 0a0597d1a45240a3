"""Checkpoints for tests."""

import torch

from splip.models import SpLIP
from splip.models.checkpoint import write_checkpoint
from splip.models.config import BackboneConfig, LossConfig, TrainConfig


def save_model(path, seed, sizes=()):
    torch.manual_seed(seed)
    config = TrainConfig(backbone=BackboneConfig(name="splip-tiny"), loss=LossConfig(matryoshka=sizes))
    model = SpLIP(config, ["ball", "box"])
    if path.suffix == ".safetensors":
        write_checkpoint(model.checkpoint(), path)
    else:  # as earlier versions wrote them
        torch.save(model.checkpoint(), path)
    return path
