"""Trained encoders at work: one class, and the engines that run a checkpoint or an export."""

from typing import TYPE_CHECKING

from splip._lazy import lazy

if TYPE_CHECKING:
    from splip.encoders.encoder import ENGINES as ENGINES
    from splip.encoders.encoder import Encoder as Encoder
    from splip.encoders.manifest import Manifest as Manifest
    from splip.encoders.text import TextTower as TextTower

__getattr__, __dir__, __all__ = lazy(__name__, encoder="ENGINES Encoder", text="TextTower", manifest="Manifest")
