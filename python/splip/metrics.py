"""Retrieval metrics with their variants named.

Per query: rel(i) in {0, 1} at rank i, R relevant photos in the gallery, h hits in the top k,
S_k = sum over i <= k of P(i) rel(i).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Denominator = Literal["min(k,R)", "h", "k"]


def rank(queries: Tensor, gallery: Tensor, block: int = 1024) -> Tensor:
    """Gallery indices ``[Q, N]`` by falling cosine similarity, ties by index.

    Args:
        queries: ``[Q, D]`` float32, unit length.
        gallery: ``[N, D]`` float32, unit length.
        block: queries per score matrix.
    """
    blocks = [(q @ gallery.T).argsort(dim=1, descending=True, stable=True) for q in queries.split(block)]
    return torch.cat(blocks) if blocks else torch.empty(0, len(gallery), dtype=torch.int64)


def average_precision(relevant: Tensor, k: int | None = None, denominator: Denominator = "min(k,R)") -> Tensor:
    """Average precision of each query.

    Args:
        relevant: ``[Q, N]`` bool in ranked order, the whole gallery.
        k: only the first k ranks count; None: all (mAP@all).
        denominator: what divides S_k: min(k, R) as SAKE and ZSE do, h the hits in the top k (torchmetrics,
            SEM-PCYC: 8 to 20 points higher), or k (Yelamarthi). The same thing when k is None.

    Returns:
        ``[Q]`` float64; 0 for a query with nothing relevant.
    """
    total = relevant.sum(dim=1).double()
    top = relevant[:, :k].double()
    hits = top.cumsum(dim=1)
    precision = hits / torch.arange(1, top.shape[1] + 1, device=top.device)
    s_k = (precision * top).sum(dim=1)
    if k is None:
        divisor = total
    elif denominator == "min(k,R)":
        divisor = total.clamp(max=k)
    elif denominator == "h":
        divisor = top.sum(dim=1)
    else:
        divisor = torch.full_like(total, k)
    return torch.where(s_k > 0, s_k / divisor.clamp_min(1), torch.zeros_like(s_k))


def precision_at(relevant: Tensor, k: int) -> Tensor:
    """P@k = h / k of each query, ``[Q]`` float64. k may exceed the gallery; it still divides."""
    return relevant[:, :k].sum(dim=1).double() / k


def accuracy_at(relevant: Tensor, k: int) -> Tensor:
    """Acc@k: 1 if a relevant photo is among the first k, ``[Q]`` float64."""
    return relevant[:, :k].any(dim=1).double()


@dataclass
class Result:
    """Means over queries, and over classes of their queries, in the order of ``columns``."""

    query_mean: dict[str, float]
    class_mean: dict[str, float]
    queries: int
    gallery: int


def measure(
    queries: Tensor,
    query_labels: Tensor,
    query_instances: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    gallery_instances: Tensor,
) -> Result:
    """Category and instance retrieval of sketches in a gallery of photos.

    Columns: mAP@all and P@10 (same class), and if the gallery holds the very thing of any sketch,
    Acc@1 and Acc@5 (same instance, the whole gallery) and Acc@1 in class (same instance, photos of the
    sketch's class only).

    Args:
        queries: ``[Q, D]`` unit length; labels and instances ``[Q]`` int64.
        gallery: ``[N, D]`` unit length; labels and instances ``[N]`` int64.
    """
    order = rank(queries, gallery)
    same_class = gallery_labels[order] == query_labels[:, None]
    same_thing = gallery_instances[order] == query_instances[:, None]
    # The first photo of the sketch's own class, in ranked order.
    first = same_class.to(torch.uint8).argmax(dim=1, keepdim=True)
    in_class = (same_thing & same_class).gather(1, first).squeeze(1).double()
    columns: dict[str, Tensor] = {
        "mAP@all": average_precision(same_class),
        "P@10": precision_at(same_class, 10),
    }
    if bool(same_thing.any()):
        columns |= {
            "Acc@1": accuracy_at(same_thing, 1),
            "Acc@5": accuracy_at(same_thing, 5),
            "Acc@1 in class": in_class,
        }

    def by_class(values: Tensor) -> float:
        return float(torch.stack([values[query_labels == c].mean() for c in query_labels.unique()]).mean())

    return Result(
        {name: float(values.mean()) for name, values in columns.items()},
        {name: by_class(values) for name, values in columns.items()},
        len(queries),
        len(gallery),
    )
