"""Which files are pictures that can be read here."""

import functools

from splip import images


@functools.cache
def suffixes() -> frozenset[str]:
    """Endings of the names of pictures; HEIC if pillow-heif is installed, AVIF if Pillow was built with it."""
    taken = images.formats()
    more = {"AVIF": (".avif",), "HEIF": (".heic", ".heif", ".hif")}
    return images.SUFFIXES.union(*(names for form, names in more.items() if form in taken))
