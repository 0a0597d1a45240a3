"""Retrieval models: the prompted CLIP, the methods (SpLIP and the baselines) by name, and their checkpoints."""

from typing import TYPE_CHECKING

from splip._lazy import lazy

if TYPE_CHECKING:
    from splip.models.checkpoint import read_checkpoint as read_checkpoint
    from splip.models.clip import PromptedCLIP as PromptedCLIP
    from splip.models.config import TrainConfig as TrainConfig
    from splip.models.registry import build as build
    from splip.models.registry import load_model as load_model
    from splip.models.registry import register as register
    from splip.models.retriever import Retriever as Retriever
    from splip.models.splip import SpLIP as SpLIP

__getattr__, __dir__, __all__ = lazy(
    __name__,
    checkpoint="read_checkpoint",
    clip="PromptedCLIP",
    config="TrainConfig",
    registry="build load_model register",
    retriever="Retriever",
    splip="SpLIP",
)
