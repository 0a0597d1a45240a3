"""Which family a backbone's towers are of, and why some are refused."""

import json
from pathlib import Path
from typing import Any

import open_clip

from splip.errors import UserError, short
from splip.models.towers import pieces, timm_models
from splip.models.towers.base import VisualTower
from splip.models.towers.clip import ClipViT
from splip.models.towers.conv import ConvTower
from splip.models.towers.text import TextTower, make
from splip.models.towers.timm_vit import TimmViT, is_timm_vit

FOLDER = "local-dir:"
# timm's trunks without a sequence of tokens, by the class: run whole.
CONVOLUTIONAL = ("ConvNeXt", "FastVit", "ResNet", "ByobNet", "RegNet", "EfficientNet", "MetaFormer")


def visual_of(name: str, clip: Any) -> VisualTower:
    """The adapter of a backbone's visual tower.

    Raises:
        UserError: no family's.
    """
    visual = clip.visual
    mean, std, size = _preprocessing(name, clip)
    trunk = getattr(visual, "trunk", visual)
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        _refuse(name, ClipViT.refusal(visual))
        return ClipViT(visual, mean, std)
    if is_timm_vit(visual):
        _refuse(name, TimmViT.refusal(trunk))
        return TimmViT(visual, mean, std)
    if isinstance(visual, open_clip.modified_resnet.ModifiedResNet) or type(trunk).__name__ in CONVOLUTIONAL:
        return ConvTower(visual, mean, std, size)
    raise UserError(f"backbone {name} is not supported: its visual tower is a {type(trunk).__name__}")


def text_of(name: str, clip: Any, folder: Path | None) -> TextTower | None:
    """The adapter of its text tower; None: it has none.

    Raises:
        UserError: it cannot be run.
    """
    if isinstance(clip, timm_models.VisionOnly):
        return None
    text = getattr(clip, "text", clip)
    _refuse(name, TextTower.refusal(text))
    config = _text_config(name, folder)
    hub = config.get("hf_tokenizer_name")
    if hub:
        source: str | Path = folder if folder is not None else str(hub)
        return make(text, lambda: pieces.load(source, config, name), True, name)
    if folder is not None and config.get("tokenizer_kwargs"):
        raise UserError(
            f"{name}: tokenizer_kwargs is {short(config['tokenizer_kwargs'])}; CLIP's own tokenizer takes none"
        )
    source = f"{FOLDER}{folder}" if folder is not None else name
    return make(text, lambda: open_clip.get_tokenizer(str(source)), False, name)


def _preprocessing(name: str, clip: Any) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Mean and deviation of the pixels, and the side of a picture."""
    if isinstance(clip, timm_models.VisionOnly):
        visual: Any = clip.visual
        found, side = visual.pretrained_cfg, timm_models.side_of(visual)
    else:
        found = open_clip.get_model_preprocess_cfg(clip)
        side = found["size"][0] if isinstance(found["size"], tuple | list) else found["size"]
        default = tuple(found["mean"]) == open_clip.OPENAI_DATASET_MEAN  # else a tag or a folder has said it
        if default and not isinstance(clip.visual, open_clip.transformer.VisionTransformer):
            found = {**found, **_agreed(name)}
    return tuple(map(float, found["mean"])), tuple(map(float, found["std"])), int(side)


def _agreed(name: str) -> dict[str, Any]:
    """Mean and deviation that all weights of an architecture were trained with, if open_clip knows them.

    open_clip gives a file the defaults, CLIP's: SigLIP's weights, whoever brings them, want .5 and .5.
    """
    tags = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    agreed = {(tuple(tag["mean"]), tuple(tag["std"])) for tag in tags if "mean" in tag and "std" in tag}
    if len(agreed) != 1:
        return {}
    mean, std = agreed.pop()
    return {"mean": mean, "std": std}


def _text_config(name: str, folder: Path | None) -> dict[str, Any]:
    if folder is None:
        return dict(open_clip.get_model_config(name)["text_cfg"])
    values = json.loads((folder / "open_clip_config.json").read_bytes())  # read before: activation.read_folder
    return dict(values["model_cfg"]["text_cfg"])


def _refuse(name: str, reason: str) -> None:
    if reason:
        raise UserError(f"backbone {name} is not supported: {reason}")
