"""The methods by name: what ``method`` may say, and models that are built of it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from splip.config import from_dict
from splip.errors import UserError, short
from splip.models.activation import as_recorded
from splip.models.checkpoint import read_checkpoint
from splip.models.config import TrainConfig, as_saved
from splip.models.retriever import Retriever
from splip.plugins import Registry

METHODS: Registry[type[Retriever]] = Registry("method", "splip.models.splip", "splip.models.baselines")
M = TypeVar("M", bound=type[Retriever])


def register(name: str) -> Callable[[M], M]:
    """A decorator that makes a class the method of this name.

    Raises:
        ValueError: another class has the name.
    """
    add = METHODS.register(name)

    def decorate(cls: M) -> M:
        cls.method = name
        return add(cls)

    return decorate


def build(config: TrainConfig, classes: Sequence[str]) -> Retriever:
    """A new model of ``config.method``, on the CPU and in training mode.

    Args:
        config: the same settings make the same weights.
        classes: names of the C training classes, as words.

    Raises:
        UserError: no such method, or settings or classes that it cannot work with.
    """
    return METHODS[config.method](config, classes)


def load_model(path: Path, device: torch.device | str = "cpu") -> Retriever:
    """The model of a checkpoint, ready for inference. No code is run that the checkpoint brings or names.

    Raises:
        UserError: no checkpoint, damaged, of a method that is not registered, or its backbone cannot be built again
            with the same weights.
    """
    state = read_checkpoint(path)
    config = from_dict(TrainConfig, as_saved(state["config"]), str(path))
    if config.method not in METHODS:
        raise UserError(
            f"method {short(config.method)} of {path} is not known here: name the file that defines it with --plugin"
        )
    config.backbone = as_recorded(config.backbone, state["backbone"])
    model = build(config, state["classes"])
    model.restore(state, path)
    return model.to(device).eval()
