"""Galleries whose vectors a Milvus collection keeps and searches: filled by a push, searched as those of a folder."""

from typing import TYPE_CHECKING

from splip._lazy import lazy

if TYPE_CHECKING:
    from splip.milvus.address import Address as Address
    from splip.milvus.address import is_address as is_address
    from splip.milvus.address import parse as parse
    from splip.milvus.gallery import MilvusGallery as MilvusGallery
    from splip.milvus.gallery import open_gallery as open_gallery
    from splip.milvus.push import Pushed as Pushed

__getattr__, __dir__, __all__ = lazy(
    __name__, address="Address is_address parse", gallery="MilvusGallery open_gallery", push="Pushed"
)
