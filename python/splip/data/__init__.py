"""Data sets: folders and the benchmarks' layouts, splits, the sample, decoded pictures, augmentation."""

from typing import TYPE_CHECKING

from splip._lazy import lazy

if TYPE_CHECKING:
    from splip.data.cache import Pictures as Pictures
    from splip.data.config import DataConfig as DataConfig
    from splip.data.splits import Split as Split
    from splip.data.splits import find_split as find_split
    from splip.data.trees import Items as Items
    from splip.data.trees import Tree as Tree
    from splip.data.trees import load_tree as load_tree

__getattr__, __dir__, __all__ = lazy(
    __name__, trees="Items Tree load_tree", cache="Pictures", splits="Split find_split", config="DataConfig"
)
