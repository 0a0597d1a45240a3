"""Find photographs from a drawing, words or examples: SpLIP and other models for sketch-based image retrieval.

A trained model, wherever it runs::

    from splip import Encoder

    encoder = Encoder.load("runs/sample/best.safetensors")  # a checkpoint, or a folder that `splip export` wrote

A gallery of photographs that it has seen, and a search with a drawing, which a notebook shows as pictures::

    import splip

    with splip.open("my-gallery") as gallery:
        for match in gallery.search("horse.png", k=10, filter=splip.Filter(labels=("horse",))):
            print(f"{match.score:.3f}", match.path)

Training and measuring are verbs of the command line (``splip --help``); ``load_model`` gives what they wrote as a torch
module. The fused operators are in ``splip.ops``. Everything else is by its field's name in a sub-package:
``splip.images``, ``splip.data``, ``splip.models``, ``splip.encoders``, ``splip.evaluation``, ``splip.train``,
``splip.gallery``, ``splip.milvus``, ``splip.cluster``, ``splip.serve``, ``splip.cli``, ``splip.export``.
"""

from typing import TYPE_CHECKING

from splip._lazy import lazy

if TYPE_CHECKING:
    from splip import ops as ops
    from splip.encoders import Encoder as Encoder
    from splip.gallery import Filter as Filter
    from splip.gallery import Gallery as Gallery
    from splip.gallery import Match as Match
    from splip.gallery import open as open
    from splip.models import load_model as load_model

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy(
    __name__, encoders="Encoder", gallery="Filter Gallery Match open", models="load_model", ops="ops"
)
__all__ += ["__version__"]
