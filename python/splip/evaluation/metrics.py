"""Retrieval metrics with their variants named; exact, and never with the scores of all queries at once.

Per query: rel(i) in {0, 1} at rank i, P(i) the precision of the first i, R relevant photos in the
gallery, h hits in the top k, S_k = sum over i <= k of P(i) rel(i).

Photos are ranked by falling float32 score, equal scores by gallery index. Each photo becomes one
int64, so that a sort of integers, with the vector instructions that numpy has for it, does the ranking;
the metrics then need only the ranks of the relevant photos.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
Denominator = Literal["min(k,R)", "h", "k"]
Relevance = Literal["class", "instance", "instance in class"]

BLOCK = 1 << 23  # scores in one matrix product: 32 MB
PIECE = 1 << 18  # keys that one thread sorts at a time: 2 MB stay in its cache


# ---- metrics of ranked relevance ----


class Hits:
    """Where the relevant photos of each query stand: all that the metrics need.

    Args:
        row: ``[H]`` int64, the query of every hit, rising.
        rank: ``[H]`` int64, its rank, counted from 1, rising within a query.
        queries: Q, with those that have no hit.
    """

    def __init__(self, row: np.ndarray, rank: np.ndarray, queries: int) -> None:
        self.row, self.rank, self.queries = row, rank, queries
        self.total = np.bincount(row, minlength=queries)  # R
        self.nth = np.arange(1, len(row) + 1) - (np.cumsum(self.total) - self.total)[row]  # 1, 2, ... in each query

    @classmethod
    def of(cls, relevant: np.ndarray | Tensor) -> "Hits":
        """From ``[Q, N]`` bool in ranked order, the whole gallery."""
        relevant = np.asarray(relevant)
        return cls.at(np.flatnonzero(relevant), relevant.shape)

    @classmethod
    def at(cls, flat: np.ndarray, shape: Sequence[int]) -> "Hits":
        """From the positions of the hits in a flattened ``[Q, N]``."""
        row, column = np.divmod(flat, max(1, shape[1]))
        return cls(row, column + 1, shape[0])

    def first(self, k: int) -> "Hits":
        """Those in the top k; their ``total`` is h."""
        inside = self.rank <= k
        return Hits(self.row[inside], self.rank[inside], self.queries)


def average_precision(
    hits: Hits, k: int | None = None, denominator: Denominator = "min(k,R)", interpolated: bool = False
) -> np.ndarray:
    """Average precision of each query.

    Args:
        hits: in the ranking of the whole gallery.
        k: only the first k ranks count; None: all (mAP@all).
        denominator: what divides S_k: min(k, R) as SAKE and ZSE do, h the hits in the top k (torchmetrics,
            SEM-PCYC: 8 to 20 points higher), or k (Yelamarthi). The same thing when k is None.
        interpolated: P(i) is replaced by the best precision at rank i or a later one that counts (PASCAL VOC).

    Returns:
        ``[Q]`` float64; 0 for a query with nothing relevant.
    """
    top = hits if k is None else hits.first(k)
    precision = top.nth / top.rank
    if interpolated:
        precision = _envelope(top, precision)
    s_k = np.bincount(top.row, weights=precision, minlength=hits.queries)
    divisor = hits.total
    if k is not None:
        divisor = {"min(k,R)": np.minimum(k, hits.total), "h": top.total, "k": np.array(k)}[denominator]
    return s_k / np.maximum(divisor, 1)


def _envelope(hits: Hits, precision: np.ndarray) -> np.ndarray:
    """The greatest precision at a query's hit or one of its later hits."""
    dense = np.zeros((hits.queries, max(1, hits.total.max(initial=0))))
    dense[hits.row, hits.nth - 1] = precision
    best: np.ndarray = np.maximum.accumulate(dense[:, ::-1], axis=1)[:, ::-1]
    return best[hits.row, hits.nth - 1]


def precision_at(hits: Hits, k: int, denominator: Literal["k", "min(k,R)"] = "k") -> np.ndarray:
    """P@k = h / k of each query, ``[Q]`` float64; k may exceed the gallery and still divides. Or h / min(k, R)."""
    divisor = np.array(k) if denominator == "k" else np.maximum(np.minimum(k, hits.total), 1)
    return hits.first(k).total / divisor


def precision_at_reachable(hits: Hits, k: int) -> np.ndarray:
    """Precision among the first min(k, R), ``[Q]`` float64: ZSE's P@k. 0 for a query with nothing relevant."""
    reach = np.minimum(k, hits.total)
    inside = hits.rank <= reach[hits.row]
    return np.bincount(hits.row[inside], minlength=hits.queries) / np.maximum(reach, 1)


def accuracy_at(hits: Hits, k: int) -> np.ndarray:
    """Acc@k: 1 if a relevant photo is among the first k, ``[Q]`` float64."""
    return (hits.first(k).total > 0).astype(np.float64)


# ---- columns of a table ----


@dataclass(frozen=True)
class Column:
    """A metric with its name in tables, and in words what it is."""

    name: str
    meaning: str
    of: Callable[[Hits], np.ndarray]
    relevance: Relevance = "class"


def map_column(k: int | None = None, denominator: Denominator = "min(k,R)", interpolated: bool = False) -> Column:
    """mAP@all, or mAP@k with its denominator; the name shows a denominator only if it is not ours."""
    name, meaning = "mAP@all", "S_N / R"
    if k is not None:
        name = f"mAP@{k}" if denominator == "min(k,R)" else f"mAP@{k} /{denominator}"
        users = {"min(k,R)": "SAKE, ZSE", "h": "torchmetrics, SEM-PCYC", "k": "Yelamarthi"}[denominator]
        meaning = f"S_{k} / {denominator.replace('k', str(k)).replace(',', ', ')} ({users})"
    if interpolated:
        name, meaning = name + " VOC", meaning + ", precision interpolated as in PASCAL VOC"
    return Column(name, "mean of " + meaning, lambda hits: average_precision(hits, k, denominator, interpolated))


def precision_column(k: int, denominator: Literal["k", "min(k,R)"] = "k") -> Column:
    if denominator == "k":
        return Column(f"P@{k}", f"mean of h / {k}", lambda hits: precision_at(hits, k))
    name, meaning = f"P@{k} /min(k,R)", f"mean of h / min({k}, R)"
    return Column(name, meaning, lambda hits: precision_at(hits, k, denominator))


def reachable_column(k: int) -> Column:
    meaning = f"mean of the precision among the first min({k}, R) (ZSE)"
    return Column(f"P@min({k},R)", meaning, lambda hits: precision_at_reachable(hits, k))


def accuracy_column(k: int, in_class: bool = False) -> Column:
    what = "photos of the sketch's own class" if in_class else "the whole gallery"
    return Column(
        f"Acc@{k} in class" if in_class else f"Acc@{k}",
        f"share of sketches whose very thing is among the first {k} of {what}",
        lambda hits: accuracy_at(hits, k),
        "instance in class" if in_class else "instance",
    )


DEFAULT = (map_column(), precision_column(10), accuracy_column(1), accuracy_column(5), accuracy_column(1, True))


def category_columns(ks: Sequence[int], variants: bool = False) -> list[Column]:
    """mAP@all, then mAP@k and P@k of every k; ``variants``: with every denominator, and interpolated."""
    columns = [map_column()] + [map_column(interpolated=True)] * variants
    for k in ks:
        columns.append(map_column(k))
        if variants:
            columns += [map_column(k, "h"), map_column(k, "k"), map_column(k, interpolated=True)]
        columns.append(precision_column(k))
        if variants:
            columns += [precision_column(k, "min(k,R)"), reachable_column(k)]
    return columns


# ---- ranking ----


def _falling(bits: Any) -> Any:
    """Bits of float32 as int32 (array or tensor) to integers that rise as the floats fall; there must be no -0.0."""
    return ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))


def _sorted_keys(scores: np.ndarray, tags: np.ndarray) -> np.ndarray:
    """Keys in ranked order, ``[Q, N]`` int64: score (32 bits), gallery index (30 bits), two flags.

    The flags ride along, so that nothing has to be looked up in ranked order afterwards.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # -0.0 + 0 is 0.0: equal scores need equal bits
    keys: np.ndarray = _falling(bits).astype(np.int64) << 32
    keys |= tags
    keys.sort(axis=1)
    return keys


def _sorted_keys_torch(scores: Tensor, tags: Tensor) -> Tensor:
    """The same on a GPU."""
    keys = _falling((scores + 0.0).view(torch.int32)).long() << 32
    return (keys | tags).sort(dim=1).values


def _index(keys: Any) -> Any:
    return (keys & 0xFFFFFFFF) >> 2


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    """Matrix products in float32, even if training was allowed less."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _rank_blocks(
    queries: Tensor, gallery: Tensor, tags: Callable[[slice], Any], use: Callable[[Any], T], block: int | None
) -> list[T]:
    """Rank the gallery for a few queries at a time.

    Args:
        queries: ``[Q, D]``.
        gallery: ``[N, D]``, on the same device.
        tags: gallery index and flags of some queries, ``[b, N]`` int64; arrays on the CPU, tensors on a GPU.
        use: what to keep of sorted keys ``[b, N]``.
        block: queries per matrix product; None: as many as make BLOCK scores.
    """
    Q, N = len(queries), max(1, len(gallery))
    block = block or max(1, min(1024, BLOCK // N))
    step = max(1, PIECE // N)
    results: list[T] = []
    with torch.no_grad(), _float32(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start in range(0, Q, block):
            scores = queries[start : start + block].float() @ gallery.float().T
            rows = [slice(i, min(i + step, len(scores))) for i in range(0, len(scores), step)]
            if scores.is_cuda:
                results.append(use(_sorted_keys_torch(scores, tags(slice(start, start + len(scores))))))
                continue
            array = scores.numpy()

            def one(piece: slice) -> T:
                return use(_sorted_keys(array[piece], tags(slice(start + piece.start, start + piece.stop))))

            results += pool.map(one, rows)
    return results


def _check(name: str, features: Tensor, *labels: Tensor) -> None:
    if features.dim() != 2 or len(features) == 0:
        raise ValueError(f"{name}: expected features [rows, D] with at least one row, got {list(features.shape)}")
    finite = features.isfinite().all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(f"{name}: row {row} holds a value that is not finite ({int((~finite).sum())} such rows)")
    for label in labels:
        if label.shape != features.shape[:1]:
            raise ValueError(f"{name}: {len(features)} rows, but labels of shape {list(label.shape)}")


def rank(queries: Tensor, gallery: Tensor, block: int | None = None) -> Tensor:
    """Gallery indices ``[Q, N]`` int64 by falling score, ties by index.

    Args:
        queries: ``[Q, D]``, unit length.
        gallery: ``[N, D]``, unit length.
        block: queries per matrix product.

    Raises:
        ValueError: no rows, or a value that is not finite.
    """
    _check("queries", queries)
    _check("gallery", gallery)
    tags = torch.arange(len(gallery), device=gallery.device)[None] << 2
    plain = tags if gallery.is_cuda else tags.numpy()
    parts = _rank_blocks(queries, gallery, lambda rows: plain, lambda keys: torch.as_tensor(_index(keys)), block)
    return torch.cat(parts)


# ---- measuring ----


@dataclass
class Result:
    """Values of each column: means over queries and over classes of queries, and what they are means of."""

    query_mean: dict[str, float]
    class_mean: dict[str, float]
    queries: int
    gallery: int
    per_class: dict[int, dict[str, float]]  # by label
    per_query: dict[str, np.ndarray]  # [Q] float64
    ap: np.ndarray = field(repr=False)  # [Q], in the sense of relevance of the first column
    top: np.ndarray = field(repr=False)  # [Q, <= 10] gallery indices of the best photos

    @classmethod
    def of(
        cls, per_query: dict[str, np.ndarray], labels: np.ndarray, gallery: int, ap: np.ndarray, top: np.ndarray
    ) -> "Result":
        """Take the means. ``labels``: ``[Q]``, the class of each query."""
        classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
        by_class = {name: np.bincount(inverse, weights=values) / counts for name, values in per_query.items()}
        return cls(
            {name: float(values.mean()) for name, values in per_query.items()},
            {name: float(values.mean()) for name, values in by_class.items()},
            len(labels),
            gallery,
            {int(c): {name: float(v[i]) for name, v in by_class.items()} for i, c in enumerate(classes)},
            per_query,
            ap,
            top,
        )


def measure(
    queries: Tensor,
    query_labels: Tensor,
    query_instances: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    gallery_instances: Tensor,
    columns: Sequence[Column] = DEFAULT,
    block: int | None = None,
) -> Result:
    """Category and instance retrieval of sketches in a gallery of photos.

    Columns that ask for instances are left out if the gallery holds no sketch's very thing and other
    columns remain. On the CPU this needs about 100 MB besides its arguments, whatever Q is.

    Args:
        queries: ``[Q, D]`` unit length; labels and instances ``[Q]`` int64.
        gallery: ``[N, D]`` unit length, N < 2^30; labels and instances ``[N]`` int64. On the device of the queries.
        columns: what to measure.
        block: queries per matrix product; no more than rounding depends on it.

    Raises:
        ValueError: no rows, shapes that do not match, or a feature that is not finite.
    """
    _check("queries", queries, query_labels, query_instances)
    _check("gallery", gallery, gallery_labels, gallery_instances)
    if not bool(torch.isin(query_instances.cpu(), gallery_instances.cpu()).any()):
        columns = [c for c in columns if c.relevance == "class"] or columns
    device, N = queries.device, len(gallery)
    parts: list[Any] = [query_labels, query_instances, gallery_labels, gallery_instances, torch.arange(N)]
    parts = [p.to(device) if queries.is_cuda else p.numpy() for p in parts]
    own_label, own_thing, label, thing, index = parts

    def tags(rows: slice) -> Any:
        return index << 2 | (own_label[rows, None] == label) * 2 | (own_thing[rows, None] == thing) * 1

    def use(keys: Any) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        category, instance = _positions(keys & 2), _positions(keys & 1)
        hits: dict[Relevance, Hits] = {
            "class": Hits.at(category, keys.shape),
            "instance": Hits.at(instance, keys.shape),
        }
        # Photos of the class alone, in the same order: the rank among them is the number of the hit.
        both = np.flatnonzero(np.isin(category, instance, assume_unique=True))
        hits["instance in class"] = Hits(hits["class"].row[both], hits["class"].nth[both], len(keys))
        values = {c.name: c.of(hits[c.relevance]) for c in columns}
        top = np.asarray(torch.as_tensor(_index(keys[:, :10])).cpu())
        return values, average_precision(hits[columns[0].relevance]), top

    done = _rank_blocks(queries, gallery, tags, use, block)
    per_query = {c.name: np.concatenate([values[c.name] for values, _, _ in done]) for c in columns}
    ap, top = np.concatenate([a for _, a, _ in done]), np.concatenate([t for _, _, t in done])
    return Result.of(per_query, query_labels.cpu().numpy(), N, ap, top)


def _positions(mask: Any) -> np.ndarray:
    """Where a ``[Q, N]`` array or tensor is not zero, as positions in it when flattened."""
    if isinstance(mask, np.ndarray):
        return np.flatnonzero(mask)
    found: np.ndarray = mask.flatten().nonzero().squeeze(1).cpu().numpy()
    return found
