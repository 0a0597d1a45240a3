"""Measuring retrieval: test sets, protocols, metrics, baselines, plots."""

from typing import TYPE_CHECKING

from splip._lazy import lazy

if TYPE_CHECKING:
    from splip.evaluation.config import EvalConfig as EvalConfig
    from splip.evaluation.protocols import Protocol as Protocol
    from splip.evaluation.test_set import Features as Features
    from splip.evaluation.test_set import TestSet as TestSet

__getattr__, __dir__, __all__ = lazy(__name__, test_set="Features TestSet", protocols="Protocol", config="EvalConfig")
