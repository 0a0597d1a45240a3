"""Which files are pictures that can be read here."""

import functools

from PIL import Image

from splip import images


@functools.cache
def suffixes() -> frozenset[str]:
    """Endings of the names of pictures; HEIC if pillow-heif is installed, AVIF if Pillow was built with it.

    Called before pictures are read, it also tells Pillow of HEIC.
    """
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    Image.init()
    return images.SUFFIXES | {s for s in (".avif", ".heic", ".heif", ".hif") if s in Image.registered_extensions()}
