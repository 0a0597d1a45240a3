"""The machines of a Ray cluster: they embed pictures together, and search the parts of a gallery."""

from typing import TYPE_CHECKING

from splip._lazy import lazy

if TYPE_CHECKING:
    from splip.cluster.ray import Cluster as Cluster
    from splip.cluster.ray import connect as connect
    from splip.cluster.shards import ShardedGallery as ShardedGallery
    from splip.cluster.shards import open_sharded as open_sharded
    from splip.cluster.work import Embedded as Embedded

__getattr__, __dir__, __all__ = lazy(
    __name__, ray="Cluster connect", shards="ShardedGallery open_sharded", work="Embedded"
)
