"""Training: the loop, the batches, the objective and its losses."""

from typing import TYPE_CHECKING

from splip._lazy import lazy

if TYPE_CHECKING:
    from splip.train.config import PretrainConfig as PretrainConfig
    from splip.train.loop import train as train
    from splip.train.objective import Objective as Objective

__getattr__, __dir__, __all__ = lazy(__name__, loop="train", objective="Objective", config="PretrainConfig")
