"""Checkpoints for tests."""

import torch

from splip.models import SpLIP
from splip.models.config import BackboneConfig, LossConfig, TrainConfig


def save_model(path, seed, sizes=()):
    torch.manual_seed(seed)
    loss = LossConfig(matryoshka=sizes)
    model = SpLIP(TrainConfig(backbone=BackboneConfig(name="splip-tiny"), loss=loss), ["ball", "box"])
    torch.save(model.checkpoint(), path)
    return path
