"""Convolutional towers: ResNet and ConvNeXt CLIPs, MobileCLIP's FastViT.

They have no sequence of tokens that a prompt could join: a slot would need a place in the picture. They are run as they
are, and their normalisations can be trained.
"""

import copy
from typing import Any

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from splip.models.towers.base import Norm, VisualTower, patch_side
from splip.models.towers.table import CONVOLUTIONAL
from splip.models.towers.timm_vit import width_of


class ConvTower(VisualTower):
    """A tower that is run whole: E_0 are the normalised pixels."""

    family = "convolutional"
    no_prompts = CONVOLUTIONAL
    patches = 0
    layers = 0

    def __init__(self, module: Any, mean: tuple[float, ...], std: tuple[float, ...], size: int) -> None:
        super().__init__(module, mean, std)
        self.image_size, self.patch_size = size, patch_side(size)
        own = getattr(module, "output_dim", None)
        self.embed_dim = self.width = width_of(module) if own is None else int(own)
        self.tokens = 1

    def stem(self, images: Tensor) -> Tensor:
        return images

    def encode(
        self, patches: Tensor, prompts: list[Tensor] | None = None, norm: Norm | None = None
    ) -> tuple[Tensor, Tensor]:
        if prompts:
            raise ValueError(self.no_prompts)
        features: Tensor = self.module(patches)
        features = features if norm is None else norm(features)
        return features, torch.unsqueeze(features, 1)

    def deployed(self) -> nn.Module:
        """A copy for inference; what timm can merge of its branches is merged (FastViT)."""
        made = copy.deepcopy(self.module).eval()
        merged: nn.Module = reparameterize_model(made, inplace=True)
        return merged
