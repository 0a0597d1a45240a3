"""Checkpoints for tests."""

import torch

from splip.models import SpLIP
from splip.models.checkpoint import write_checkpoint
from splip.models.config import BackboneConfig, TrainConfig


def save_model(path, seed):
    torch.manual_seed(seed)
    model = SpLIP(TrainConfig(backbone=BackboneConfig(name="splip-tiny")), ["ball", "box"])
    if path.suffix == ".safetensors":
        write_checkpoint(model.checkpoint(), path)
    else:  # as earlier versions wrote them
        torch.save(model.checkpoint(), path)
    return path
