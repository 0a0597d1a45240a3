"""Galleries: embedded pictures in a folder, searched exactly while a writer adds to it; and what any gallery is.

:class:`Gallery` is the one of a folder on this machine. :class:`Searchable` is what it has in common with those that a
Milvus collection (:mod:`splip.milvus`) and the machines of a cluster (:mod:`splip.cluster`) search.
"""

from typing import TYPE_CHECKING

from splip._lazy import lazy

if TYPE_CHECKING:
    from splip.gallery.browse import Browsed as Browsed
    from splip.gallery.browse import Timeline as Timeline
    from splip.gallery.catalog import Filter as Filter
    from splip.gallery.catalog import Item as Item
    from splip.gallery.gallery import Gallery as Gallery
    from splip.gallery.ingest import Added as Added
    from splip.gallery.ingest import Picture as Picture
    from splip.gallery.matches import Match as Match
    from splip.gallery.matches import Matches as Matches
    from splip.gallery.opening import open as open
    from splip.gallery.parts import Part as Part
    from splip.gallery.protocol import Searchable as Searchable

__getattr__, __dir__, __all__ = lazy(
    __name__,
    gallery="Gallery",
    browse="Browsed Timeline",
    catalog="Filter Item",
    matches="Match Matches",
    ingest="Added Picture",
    opening="open",
    parts="Part",
    protocol="Searchable",
)
