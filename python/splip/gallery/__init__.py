"""Galleries: embedded pictures in a folder, searched exactly while a writer adds to it."""

from typing import TYPE_CHECKING

from splip._lazy import lazy

if TYPE_CHECKING:
    from splip.gallery.catalog import Filter as Filter
    from splip.gallery.catalog import Item as Item
    from splip.gallery.gallery import Gallery as Gallery
    from splip.gallery.ingest import Added as Added
    from splip.gallery.ingest import Picture as Picture
    from splip.gallery.matches import Match as Match
    from splip.gallery.matches import Matches as Matches

__getattr__, __dir__, __all__ = lazy(
    __name__, gallery="Gallery", catalog="Filter Item", matches="Match Matches", ingest="Added Picture"
)
