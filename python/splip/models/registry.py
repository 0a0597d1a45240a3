"""The methods by name: what ``method`` may say, and models that are built of it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from splip import disk
from splip.config import from_dict
from splip.errors import UserError, short
from splip.models.activation import as_recorded, folder_of, read_folder
from splip.models.checkpoint import read_checkpoint
from splip.models.config import TrainConfig, as_saved
from splip.models.names import Model, resolve
from splip.models.retriever import Retriever
from splip.plugins import Registry

METHODS: Registry[type[Retriever]] = Registry(
    "method", "splip.models.splip", "splip.models.baselines", "splip.models.support"
)
UNTRAINED = "zero-shot"
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


def load_model(name: Path | str | Model, device: torch.device | str = "cpu") -> Retriever:
    """A model by its name, ready for inference. No code is run that a checkpoint brings or names.

    Args:
        name: a checkpoint, its run's folder, or any of :mod:`splip.models.names`.
        device: where it runs.

    Raises:
        UserError: no such model, damaged, of a method that is not registered, or its backbone cannot be built again
            with the same weights.
    """
    found = name if isinstance(name, Model) else resolve(name)
    if found.kind == "export":
        raise UserError(f"{found.path}: is an export: give the checkpoint it was made of")
    if found.backbone is not None:  # as it is: there is nothing to restore
        return build(TrainConfig(method=UNTRAINED, backbone=found.backbone), []).to(device).eval()
    path = found.path
    assert path is not None
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


def identity(model: Retriever, path: Path | None = None) -> str:
    """What tells a model from every other, as galleries note it: sha256, in hexadecimal digits.

    Of a checkpoint that of its file. A model without training is no file: what its features follow from is hashed,
    its weights and what is done with pictures and texts, so that it is the same under all its names.

    Args:
        model: from :func:`load_model`.
        path: of its checkpoint.
    """
    if path is not None and (model.config.method != UNTRAINED or path.suffix != ".safetensors"):
        return disk.file_hash(path)
    clip, data = model.backbone, model.config.data
    facts = {
        "weights": model.backbone_identity["sha256"],
        "quick_gelu": clip.quick_gelu,
        "heads": [m.num_heads for m in clip.clip.modules() if isinstance(getattr(m, "num_heads", None), int)],
        "pictures": [clip.image_size, *map(float, (*clip.mean, *clip.std)), data.fit, data.crop_sketches],
        "texts": model.config.prompts.template,
    }
    folder = folder_of(model.config.backbone)
    if folder is not None:  # its configuration is its own: the same tensors may be run otherwise
        facts["architecture"] = read_folder(folder, model.config.backbone)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
