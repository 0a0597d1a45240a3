"""Towers of timm without a text tower: ``timm:NAME``, ``timm:NAME.TAG``, ``timm:NAME.TAG@SIDE``.

The tag names weights of the hub. ``@SIDE`` asks for pictures of another size than the tower's own, whose learned
positions are stretched to it as timm does it: DINOv2's own 518 pixels make 1,369 patches, ``@224`` makes 256.
"""

import difflib
import logging
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_checkpoint
from torch import Tensor, nn

from splip.errors import UserError

PREFIX = "timm:"
LARGEST = 2048  # pixels of a side


class VisionOnly(nn.Module):
    """A tower where others have a CLIP."""

    def __init__(self, visual: nn.Module, source: str | None) -> None:
        super().__init__()
        self.visual, self.source = visual, source  # tag or file of its weights; None: random

    def encode_image(self, images: Tensor) -> Tensor:
        """What timm's own forward pass gives, ``[B, D]``."""
        out: Tensor = self.visual(images)
        return out


def create(name: str, pretrained: str | None, seed: int) -> VisionOnly:
    """The tower that ``timm:...`` names, in eval mode.

    Args:
        name: as at the top of this module.
        pretrained: a tag of the hub's, a file, or random; None: the tag in the name, random without one.
        seed: of random weights.

    Raises:
        UserError: no such model, weights or size, or it cannot be loaded.
    """
    model, _, side = name.removeprefix(PREFIX).partition("@")
    base, _, tag = model.partition(".")
    if not timm.is_model(base):
        near = ", ".join(difflib.get_close_matches(base, timm.list_models(), 5, 0.3))
        raise UserError(f"unknown backbone {name}: timm has no {base}" + (f"; near: {near}" if near else ""))
    if side and (not side.isdecimal() or not 16 <= int(side) <= LARGEST):
        raise UserError(f"backbone {name}: @{side} is no side of 16 to {LARGEST} pixels")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
    file = None
    if pretrained is not None and pretrained != "random":
        if pretrained in tags:
            tag = pretrained
        elif Path(pretrained).is_file():
            file = Path(pretrained)
        else:
            raise UserError(
                f"no pretrained weights {pretrained} for {name}: not a file, and timm's tags are "
                f"{', '.join(filter(None, tags)) or 'none'}"
            )
    if tag and tag not in tags:
        raise UserError(f"backbone {name}: timm knows no {tag} of {base}, its tags are {', '.join(tags) or 'none'}")
    options: dict[str, Any] = {"img_size": int(side)} if side else {}
    fetch = bool(tag) and pretrained != "random" and file is None
    try:
        with torch.random.fork_rng(devices=[]):
            logging.disable(logging.WARNING)  # errors are reported here
            torch.manual_seed(seed)
            visual = timm.create_model(f"{base}.{tag}" if tag else base, pretrained=fetch, num_classes=0, **options)
        if file is not None:
            _load(visual, file)
    except UserError:
        raise
    except Exception as error:  # of timm, torch and the hub: no common class
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"cannot load {name} with pretrained weights {pretrained or tag or None}: {reason}") from None
    finally:
        logging.disable(logging.NOTSET)
    return VisionOnly(visual.eval(), str(file) if file is not None else tag if fetch else None)


def side_of(visual: Any) -> int:
    """Pixels of a side of the pictures that it takes."""
    embed = getattr(visual, "patch_embed", None)
    return int(embed.img_size[0] if embed is not None else visual.pretrained_cfg["input_size"][-1])


def _load(visual: nn.Module, file: Path) -> None:
    """Weights of a file: timm's own, or those that this package wrote of such a backbone."""
    from open_clip.factory import load_state_dict

    state = load_state_dict(str(file))
    own = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    if own and len(own) == len(state):
        visual.load_state_dict({k: t.float() if t.is_floating_point() else t for k, t in own.items()})
    else:
        load_checkpoint(visual, str(file), strict=True)
