"""Pictures from files: reading and decoding, tar files, SVG, grids of pictures."""

from typing import TYPE_CHECKING

from splip._lazy import lazy

if TYPE_CHECKING:
    from splip.images.decode import Budget as Budget
    from splip.images.decode import crop_to_ink as crop_to_ink
    from splip.images.decode import find as find
    from splip.images.decode import least_side as least_side
    from splip.images.decode import read as read
    from splip.images.decode import square as square
    from splip.images.decode import write_skipped as write_skipped

__getattr__, __dir__, __all__ = lazy(__name__, decode="Budget crop_to_ink find least_side read square write_skipped")
