"""Galleries made on the card, what searches in them have to find, and the plain PyTorch that a search is compared with."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

DEVICE = "cuda"
POOL = 4096  # queries
CHECKED = 16  # of them, against float64
PIECE = 1 << 18  # gallery rows made, or multiplied in float64, at a time
CHUNK_BYTES = 30_000_000  # of scores: about what stays in the L2 cache; twice and four times as many are tried too


def make_gallery(N: int, D: int, dtype: torch.dtype, kind: str = "random") -> tuple[Tensor, Tensor]:
    """[N, D] unit rows, made in pieces, and a pool of queries like them."""
    torch.manual_seed(0)
    gallery = torch.empty(N, D, dtype=dtype, device=DEVICE)
    common, centres = torch.randn(1, D, device=DEVICE), 0.5 * torch.randn(1000, D, device=DEVICE)

    def rows(n: int) -> Tensor:
        if kind != "clustered":
            return F.normalize(torch.randn(n, D, device=DEVICE), dim=1)
        groups = centres[torch.randint(1000, (n,), device=DEVICE)]
        return F.normalize(common + groups + 0.5 * torch.randn(n, D, device=DEVICE), dim=1)

    for part in gallery.split(PIECE):
        part.copy_(rows(len(part)))
    queries = rows(POOL)
    if kind == "ascending":  # all queries lie near the first, so the order is theirs too
        gallery = gallery[(gallery @ queries[0].to(dtype)).argsort()]
        queries = F.normalize(queries[:1] + 0.02 * torch.randn(POOL, D, device=DEVICE), dim=1)
    return gallery, queries.to(dtype)


def exact_topk(queries: Tensor, gallery: Tensor, k: int, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scores summed in float64 and rounded, and indices, ties by index."""
    found = []
    unit = queries.double() / queries.double().norm(dim=1, keepdim=True)
    for first in range(0, len(gallery), PIECE):
        part = gallery[first : first + PIECE].double()
        part /= part.norm(dim=1, keepdim=True)
        scores = (unit @ part.T).float()
        if allowed is not None:
            scores.masked_fill_(~allowed[first : first + PIECE], float("-inf"))
        s, order = scores.sort(dim=1, descending=True, stable=True)
        found.append((s[:, :k], order[:, :k] + first))
    scores, ids = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, order), ids.gather(1, order)


def recall(got: Tensor, want: Tensor) -> float:
    """Share of the wanted ids [Q, K] that are among those found, of the queries that both have."""
    got = got[: len(want)]
    want = want[: len(got)]
    return float((want[:, :, None] == got[:, None, :]).any(2).double().mean())


# ---- peers: scores of unit rows by matmul, the best by torch.topk ----


def whole(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores, ids = (queries @ gallery.T).topk(k)
    return scores, ids


def chunked(queries: Tensor, gallery: Tensor, k: int, rows: int) -> tuple[Tensor, Tensor]:
    found = []
    for first in range(0, len(gallery), rows):
        part = gallery[first : first + rows]
        s, i = (queries @ part.T).topk(min(k, len(part)))
        found.append((s, i + first))
    scores, ids = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    s, order = scores.topk(k)
    return s, ids.gather(1, order)


def chunk_sizes(Q: int, N: int, k: int, size: int) -> list[int]:
    """Rows of a chunk whose scores take about CHUNK_BYTES, twice and four times that; none if one holds them all."""
    sizes = [max(k, CHUNK_BYTES * times // (Q * size) // 256 * 256, 256) for times in (1, 2, 4)]
    return [rows for rows in dict.fromkeys(sizes) if rows < N]


class Peers(NamedTuple):
    times: dict[str, dict[str, Any]]
    recall: dict[str, float]


def time_peers(
    batches: list[Tensor],
    gallery: Tensor,
    k: int,
    want: Tensor,
    timed: Callable[..., dict[str, Any]],
    most_bytes: float = 24e9,
) -> Peers:
    """torch whole, and in chunks of the size that turned out fastest, each with its recall."""
    times: dict[str, dict[str, Any]] = {}
    found: dict[str, float] = {}
    (Q, _), N, size = batches[0].shape, len(gallery), gallery.element_size()

    def on_all(search: Callable[..., Any], *more: int) -> list[Callable[[], Any]]:
        return [functools.partial(search, q, gallery, k, *more) for q in batches]

    def ids(search: Callable[..., Any], *more: int) -> Tensor:
        return search(batches[0][: max(len(want), 1)], gallery, k, *more)[1]

    if Q * N * size <= most_bytes:
        torch.cuda.empty_cache()  # a graph's memory is its own: nothing that lies idle may be in its way
        times["torch"] = timed(on_all(whole))
        if "median" in times["torch"]:
            found["torch"] = recall(ids(whole), want)
    else:
        times["torch"] = {"error": f"its scores take {Q * N * size / 1e9:.0f} GB"}
    tried = {rows: timed(on_all(chunked, rows), 0.02) for rows in chunk_sizes(Q, N, k, size)}
    good = {rows: t["median"] for rows, t in tried.items() if "median" in t}
    if good:
        rows = min(good, key=lambda r: good[r])
        best = tried[rows] if good[rows] > 20 else timed(on_all(chunked, rows))
        times["torch in chunks"] = best | {"rows": rows, "tried": good}
        found["torch in chunks"] = recall(ids(chunked, rows), want)
    elif tried:
        times["torch in chunks"] = next(iter(tried.values()))
    return Peers(times, found)
