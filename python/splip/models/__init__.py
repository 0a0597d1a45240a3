"""Retrieval models: the prompted CLIP, SpLIP and the baselines, and their checkpoints."""

from typing import TYPE_CHECKING

from splip._lazy import lazy

if TYPE_CHECKING:
    from splip.models.checkpoint import pick_device as pick_device
    from splip.models.checkpoint import read_checkpoint as read_checkpoint
    from splip.models.clip import PromptedCLIP as PromptedCLIP
    from splip.models.config import BackboneConfig as BackboneConfig
    from splip.models.config import LossConfig as LossConfig
    from splip.models.config import PromptConfig as PromptConfig
    from splip.models.config import TrainConfig as TrainConfig
    from splip.models.retriever import SpLIP as SpLIP
    from splip.models.retriever import load_model as load_model

__getattr__, __dir__, __all__ = lazy(
    __name__,
    retriever="SpLIP load_model",
    checkpoint="read_checkpoint pick_device",
    clip="PromptedCLIP",
    config="BackboneConfig LossConfig PromptConfig TrainConfig",
)
