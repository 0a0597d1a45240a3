"""``splip.open``: a gallery by its folder, or one's own."""

import os

from splip.errors import UserError
from splip.gallery.config import ADDRESS, default_gallery
from splip.gallery.gallery import Gallery


def open(
    folder: str | os.PathLike[str] | None = None,
    *,
    engine: str = "auto",
    device: str = "auto",
    model: str | os.PathLike[str] | None = None,
    write: bool = False,
) -> Gallery:
    """Open a gallery, and search it with a drawing::

        import splip

        gallery = splip.open("my-gallery")
        gallery.search("horse.png", k=10)

    The model is loaded with the first search; an export of it needs no torch.

    Args:
        folder: of the gallery; None: the one that `splip index add` takes by default.
        engine, device, model, write: see :meth:`splip.gallery.gallery.Gallery.open`.

    Raises:
        UserError: not a gallery, damaged, of another version or model, or being written by another process.
    """
    place = default_gallery() if folder is None else folder
    if isinstance(place, str) and place.startswith(ADDRESS):
        raise UserError(f"{place}: a collection of Milvus is opened with splip.milvus.open_gallery")
    return Gallery.open(
        os.fspath(place), engine=engine, device=device, model=None if model is None else os.fspath(model), write=write
    )
