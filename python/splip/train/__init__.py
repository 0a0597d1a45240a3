"""Training: the loop, the batches, the objective and its losses, and what adds a loss by name."""

from typing import TYPE_CHECKING

from splip._lazy import lazy

if TYPE_CHECKING:
    from splip.train.config import PretrainConfig as PretrainConfig
    from splip.train.loop import train as train
    from splip.train.losses import register_margin as register_margin
    from splip.train.losses import register_negatives as register_negatives
    from splip.train.objective import Objective as Objective
    from splip.train.terms import Encoded as Encoded
    from splip.train.terms import register_jigsaw as register_jigsaw
    from splip.train.terms import register_term as register_term

__getattr__, __dir__, __all__ = lazy(
    __name__,
    config="PretrainConfig",
    loop="train",
    losses="register_margin register_negatives",
    objective="Objective",
    terms="Encoded register_jigsaw register_term",
)
