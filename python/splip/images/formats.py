"""Which files are pictures that can be read here."""

import functools

from splip.images import decode


@functools.cache
def suffixes() -> frozenset[str]:
    """Endings of the names of pictures; HEIC if pillow-heif is installed, AVIF if Pillow was built with it."""
    taken = decode.formats()
    more = {"AVIF": (".avif",), "HEIF": (".heic", ".heif", ".hif")}
    return decode.SUFFIXES.union(*(names for form, names in more.items() if form in taken))
