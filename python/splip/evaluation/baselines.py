"""What a model must beat: chance, raw pixels, HOG, the plain backbone."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from splip.errors import UserError
from splip.evaluation import metrics
from splip.evaluation.test_set import Features, TestSet
from splip.models.clip import PromptedCLIP
from splip.models.retriever import Retriever


def chance(test: TestSet) -> Iterator[Features]:
    """Ten random orders."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        vectors = [torch.randn(len(items), 64, generator=generator) for items in (test.sketches, test.photos)]
        yield Features(*(F.normalize(v, dim=1) for v in vectors))


def mean(results: Sequence[metrics.Result], labels: Sequence[int]) -> metrics.Result:
    """Of several measurements of the same queries."""
    per_query = {
        name: np.mean([r.per_query[name] for r in results], axis=0) for name in results[0].per_query
    }  # fmt: skip
    ap = np.mean([r.ap for r in results], axis=0)
    return metrics.Result.of(per_query, np.asarray(labels), results[0].gallery, ap, results[0].top)


def _grey(images: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images.float() * weights).sum(dim=1)  # [B, S, S], 0 to 255


def raw_pixels(test: TestSet) -> Features:
    """Grey pixels at 32 x 32, each picture's mean taken away."""

    def encode(images: Tensor) -> Tensor:
        small = F.interpolate(_grey(images)[:, None], size=(32, 32), mode="area").flatten(1)
        return F.normalize(small - small.mean(dim=1, keepdim=True), dim=1)

    return test.embed_alike(encode, torch.device("cpu"))


def need_hog() -> None:
    """Say that scikit-image is missing before any work is done."""
    try:
        import skimage.feature  # noqa: F401
    except ImportError:
        raise UserError("the HOG baseline needs scikit-image: pip install scikit-image") from None


def hog(test: TestSet) -> Features:
    """Histograms of oriented gradients (scikit-image) at 64 x 64: no learning, and strong on drawings."""
    from skimage.feature import hog as describe

    def encode(images: Tensor) -> Tensor:
        grey = F.interpolate(_grey(images)[:, None], size=(64, 64), mode="area")[:, 0].numpy()
        rows = [describe(g, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2)) for g in grey]
        return F.normalize(torch.from_numpy(np.stack(rows)).float(), dim=1)

    return test.embed_alike(encode, torch.device("cpu"))


def plain_backbone(test: TestSet, model: Retriever, device: torch.device) -> Features:
    """The backbone before any training, without prompts."""
    backbone = PromptedCLIP(model.config.backbone).to(device).eval()

    def encode(images: Tensor) -> Tensor:
        return F.normalize(backbone.encode_visual(backbone.embed_patches(images)), dim=1)

    return test.embed_alike(encode, device)


def backbone_words(model: Retriever) -> str:
    """The backbone's name and, unless the package holds them, where its weights come from."""
    source = model.backbone_identity["pretrained"]
    if source == "package":
        return model.config.backbone.name
    return f"{model.config.backbone.name} ({'random weights' if source in (None, 'random') else source})"
