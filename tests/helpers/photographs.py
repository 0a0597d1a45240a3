"""Small pictures with what a camera writes to them."""

import io

import numpy as np
from PIL import Image

from splip.images import decode

CAMERA = {0x010F: "Canon", 0x0110: "Canon EOS 80D"}


def exif(taken="2019:07:14 10:02:03", orientation=1, main=None, **more):
    """EXIF as bytes; ``more`` has ``digitized`` and ``changed``, ``main`` other tags of the main directory."""
    tags = Image.Exif()
    for tag, value in (CAMERA if main is None else main).items():
        tags[tag] = value
    tags[0x0112] = orientation
    if "changed" in more:
        tags[0x0132] = more["changed"]
    inner = tags.get_ifd(0x8769)
    if taken is not None:
        inner[0x9003] = taken
    if "digitized" in more:
        inner[0x9004] = more["digitized"]
    return tags.tobytes()


def photograph(path=None, form="JPEG", seed=0, size=(40, 30), tags=None):
    """A picture of noise with EXIF; its bytes, which are written to ``path`` too."""
    decode.formats()  # for HEIF
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **({} if tags == b"" else {"exif": exif() if tags is None else tags}))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(out.getvalue())
    return out.getvalue()
