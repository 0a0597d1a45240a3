"""Searches in packed galleries: exact, at every level of kernels."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from splip import _C, ops
from splip.ops import quantized, reference, topk

# Q, N, D, K: one of each, odd sizes, all of the gallery, panels that are not full, many blocks
SHAPES = [(1, 1, 1, 1), (3, 50, 17, 10), (5, 7, 64, 7), (70, 300, 33, 5), (9, 9001, 24, 100), (2, 3000, 130, 1024)]


def exact(queries, gallery, k, allowed=None):
    """Scores summed in float64, ties by index."""
    scores = F.normalize(queries.double(), dim=1) @ F.normalize(gallery.double(), dim=1).T
    scores = scores.float()
    if allowed is not None:
        scores[:, ~allowed] = float("-inf")
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, order), order


def check(queries, gallery, k, allowed=None):
    scores, indices = ops.cosine_topk(queries, ops.pack_gallery(gallery), k, allowed)
    want_scores, want = exact(queries, gallery, k, allowed)
    torch.testing.assert_close(scores, want_scores, rtol=0, atol=1e-7)
    assert torch.equal(indices, want)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, level):
    Q, N, D, K = shape
    queries, gallery = torch.randn(Q, D), torch.randn(N, D) * torch.rand(N, 1).mul(5).add(0.1)
    check(queries, gallery, K)
    scores, _ = ops.cosine_topk(queries, ops.pack_gallery(gallery), K)
    torch.testing.assert_close(scores, reference.cosine_topk(queries, gallery, K)[0], rtol=0, atol=2e-6)


def crowded(N, D):
    """Like features of a network: all in one direction, with small differences."""
    return F.normalize(torch.randn(1, D) + 0.2 * torch.randn(N, D), dim=1)


def clustered(N, D):
    return F.normalize(torch.randn(20, D).repeat(N // 20 + 1, 1)[:N] + 0.05 * torch.randn(N, D), dim=1)


def heavy(N, D):
    """A few components hold nearly everything: the worst case for one scale a row."""
    return torch.randn(N, D) ** 9


def sorted_by_score(N, D):
    gallery = torch.randn(N, D)
    return gallery[gallery[:, 0].div(gallery.norm(dim=1)).argsort()]


@pytest.mark.parametrize("make", [crowded, clustered, heavy, sorted_by_score])
def test_kinds_of_galleries(make, level):
    gallery = make(6000, 64)
    queries = torch.cat([F.normalize(gallery[:5] + 0.1 * torch.randn(5, 64), dim=1), torch.eye(64)[:2]])
    check(queries, gallery, 10)
    check(queries, gallery, 300)
    check(queries, gallery, 2000)  # lower bounds are counted, not selected


def test_ties_by_index(level):
    """Every row 200 times: more equal scores than any list holds, and the lower index first."""
    gallery = torch.randn(40, 16).repeat(200, 1)
    queries = torch.randn(3, 16)
    scores, indices = ops.cosine_topk(queries, ops.pack_gallery(gallery), 250)
    assert (scores[:, :200] == scores[:, :1]).all() and (scores[:, 200] < scores[:, 0]).all()
    assert (indices[:, :200].diff() == 40).all() and (indices[:, 0] < 40).all()
    same = torch.ones(5000, 16)  # nothing but ties
    scores, indices = ops.cosine_topk(queries, ops.pack_gallery(same), 7)
    assert torch.equal(indices, torch.arange(7).expand(3, 7))


def test_ties_of_the_reference_by_index():
    """What kernels are compared with has the same order."""
    gallery = torch.eye(8).repeat(30, 1)
    scores, indices = reference.cosine_topk(torch.eye(8)[:3], gallery, 40)
    assert torch.equal(indices[:, :30], torch.arange(3)[:, None] + 8 * torch.arange(30))
    others = [[i for i in range(240) if i % 8 != query][:10] for query in range(3)]
    assert indices[:, 30:].tolist() == others and (scores[:, 30:] == 0).all()


def test_zero_and_not_finite_rows(level):
    gallery = torch.eye(6)
    gallery[1], gallery[3, 0], gallery[4, 0] = 0, float("nan"), float("inf")
    queries = torch.tensor([[1.0, 0, 0, 0, 0, 0.5], [0, 0, 0, 0, 0, 0], [float("nan"), 0, 0, 0, 0, 0]])
    scores, indices = ops.cosine_topk(queries, ops.pack_gallery(gallery), 6)
    torch.testing.assert_close((scores, indices), reference.cosine_topk(queries, gallery, 6))
    assert indices[0].tolist() == [0, 5, 1, 2, 3, 4] and (scores[2] == float("-inf")).all()


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-6, 1e6, 1e18])
def test_scale_does_not_matter(size, level):
    queries, gallery = torch.randn(3, 16), torch.randn(500, 16)
    plain = ops.cosine_topk(queries, ops.pack_gallery(gallery), 9)
    scaled = ops.cosine_topk(queries, ops.pack_gallery(gallery * size), 9)
    if size > 1e-10:
        torch.testing.assert_close(scaled[0], plain[0], rtol=0, atol=2e-7)
        assert torch.equal(scaled[1], plain[1])
    else:  # norms below 1e-12 count as 1e-12
        assert scaled[0].abs().max() < 1e-6


def test_norms_that_overflow(level):
    gallery = torch.tensor([[-1.0, 0.0], [1e20, 0.0], [1.0, 1.0]])
    for queries in (torch.tensor([[1.0, 0.0]]), torch.tensor([[1e20, 1e20]])):
        got = ops.cosine_topk(queries, ops.pack_gallery(gallery), 3)
        torch.testing.assert_close(got, reference.cosine_topk(queries, gallery, 3))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 1.0])
def test_allowed(share, level):
    queries, gallery = torch.randn(10, 48), torch.randn(5000, 48)
    allowed = torch.rand(5000) < share
    k = min(20, int(allowed.sum()))
    scores, indices = ops.cosine_topk(queries, ops.pack_gallery(gallery), 20, allowed)
    want_scores, want = exact(queries, gallery, k, allowed)
    assert torch.equal(indices[:, :k], want)
    torch.testing.assert_close(scores[:, :k], want_scores, rtol=0, atol=1e-7)
    assert (indices[:, k:] == -1).all() and (scores[:, k:] == float("-inf")).all()


def test_levels_and_threads_agree():
    """The same bits whatever computes them."""
    queries, gallery = torch.randn(33, 72), torch.cat([crowded(9000, 72), torch.randn(9000, 72)])
    before, isa = torch.get_num_threads(), _C.isa()
    results = []
    try:
        for level in _C.levels():
            _C.set_isa(level)
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                results.append(ops.cosine_topk(queries, ops.pack_gallery(gallery), 50))
    finally:
        torch.set_num_threads(before)
        _C.set_isa(isa)
    for scores, indices in results[1:]:
        assert torch.equal(scores, results[0][0]) and torch.equal(indices, results[0][1])


def test_more_queries_than_a_batch(level):
    queries, gallery = torch.randn(1100, 16), torch.randn(700, 16)
    check(queries, gallery, 3)


@pytest.mark.exhaustive
def test_fewer_threads_than_asked_for():
    """An OpenMP that hands out fewer threads: nothing depends on those that do not come."""
    code = (
        "import torch; torch.set_num_threads(8); from splip import ops;"
        "g = torch.randn(9000, 32, generator=torch.Generator().manual_seed(0)); q = g[:5] + 0.1;"
        "print(ops.cosine_topk(q, ops.pack_gallery(g), 3)[1].tolist())"
    )
    runs = []
    for limit in ("1", "64"):
        env = {**os.environ, "OMP_THREAD_LIMIT": limit}
        runs.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True))
    assert runs[0].stdout == runs[1].stdout and runs[0].stdout.startswith("[[0, ")


def test_from_several_python_threads():
    queries, packed = torch.randn(4, 40, 32), ops.pack_gallery(torch.randn(20000, 32))
    want = [ops.cosine_topk(q, packed, 10) for q in queries]
    got = [None] * 4

    def search(i):
        for _ in range(5):
            got[i] = ops.cosine_topk(queries[i], packed, 10)

    threads = [threading.Thread(target=search, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_against_float64(data):
    """Any small gallery, also with many equal, opposite, tiny and zero rows."""
    N, D = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 70))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    values = data.draw(st.sampled_from(["normal", "signs", "sparse"]))
    draw = {
        "normal": lambda shape: rng.normal(size=shape),
        "signs": lambda shape: rng.choice([-1.0, 1.0], shape),
        "sparse": lambda shape: rng.choice([0.0, 0.0, 0.0, 1.0, -2.0], shape),
    }[values]
    gallery = torch.from_numpy(draw((N, D)).astype(np.float32))
    queries = torch.from_numpy(draw((data.draw(st.integers(1, 12)), D)).astype(np.float32))
    k = data.draw(st.integers(1, N))
    scores, indices = ops.cosine_topk(queries, ops.pack_gallery(gallery), k)
    want, _ = exact(queries, gallery, k)
    torch.testing.assert_close(scores, want, rtol=0, atol=1e-7)
    for row, index in zip(scores.tolist(), indices.tolist(), strict=True):
        pairs = [(-s, i) for s, i in zip(row, index, strict=True)]
        assert pairs == sorted(pairs) and len(set(index)) == k


@pytest.mark.parametrize(("Q", "N", "k"), [(0, 5, 3), (3, 5, 0), (3, 0, 0)])
def test_empty(Q, N, k, level):
    scores, indices = ops.cosine_topk(torch.randn(Q, 8), ops.pack_gallery(torch.randn(N, 8)), k)
    assert scores.shape == indices.shape == (Q, k)


def test_strided_input(level):
    queries, gallery = torch.randn(16, 6).T[::2], torch.randn(40, 32)[:, ::2]
    check(queries, gallery, 4)


def test_same_bits_as_an_unpacked_gallery(level):
    queries, gallery = torch.randn(5, 72), torch.cat([crowded(900, 72), torch.randn(900, 72)])
    for packed, plain in zip(
        ops.cosine_topk(queries, ops.pack_gallery(gallery), 40), ops.cosine_topk(queries, gallery, 40), strict=True
    ):
        assert torch.equal(packed, plain)


def test_many_queries_pack_by_themselves(monkeypatch):
    queries, gallery = torch.randn(topk.PACK_QUERIES, 24), torch.randn(topk.PACK_ROWS, 24)
    calls = []
    monkeypatch.setattr(topk, "pack_for_cpu", lambda g, real=quantized.pack_for_cpu: calls.append(g.shape) or real(g))
    got = ops.cosine_topk(queries, gallery, 7)
    assert calls == [gallery.shape]
    for a, b in zip(
        got,
        (torch.cat(t) for t in zip(*(ops.cosine_topk(q[None], gallery, 7) for q in queries), strict=True)),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.exhaustive
def test_panels_of_more_than_2_gib():
    """Offsets in bytes do not fit in 32 bits. Rows of zeros are pages that nobody owns: 2 GB in all."""
    N, D = 4_300_000, 512
    gallery = torch.from_numpy(np.zeros((N, D), dtype=np.float32))
    places = torch.tensor([0, 2**22 - 1, 2**22, 2**22 + 1, N - 33, N - 1])
    gallery[places] = torch.randn(len(places), D)
    packed = ops.pack_gallery(gallery)
    assert packed.panels.numel() > 2**31
    for Q in (1, 3):
        queries = gallery[places[-Q:]]
        scores, indices = ops.cosine_topk(queries, packed, 2)
        assert torch.equal(indices[:, 0], places[-Q:]) and torch.allclose(scores[:, 0], torch.ones(Q))


def test_set_isa():
    with pytest.raises(ValueError, match="no turbo kernels"):
        _C.set_isa("turbo")
    assert "scalar" in _C.levels() and _C.isa() == _C.levels()[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.zeros(3, 8, dtype=torch.float64)}, "queries must be float32"),
        ({"queries": torch.zeros(3, 8, dtype=torch.bfloat16)}, "must be float32 on the CPU"),
        ({"queries": torch.zeros(3, 9)}, r"got \[3, 9\] and \[5, 8\]"),
        ({"k": 6}, "k must be between 0 and the gallery's size 5, got 6"),
        ({"allowed": torch.zeros(4, dtype=torch.bool)}, r"allowed must be bool \[5\]"),
        ({"allowed": torch.zeros(5)}, r"allowed must be bool \[5\], got torch.float32"),
        ({"gallery": torch.zeros(5, 8), "allowed": torch.ones(5, dtype=torch.bool)}, "allowed needs a packed gallery"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_rejects_bad_arguments(change, message):
    args = dict(queries=torch.zeros(3, 8), gallery=ops.pack_gallery(torch.ones(5, 8)), k=2)
    with pytest.raises(ValueError, match=message):
        ops.cosine_topk(**{**args, **change})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("rows", lambda t: t.T.contiguous().T, "rows of a packed gallery must be contiguous"),
        ("rows", lambda t: t.double(), r"rows .* must be torch.float32 \[300, 8\], got torch.float64"),
        ("rows", lambda t: t[:290], r"panels of a packed gallery \[290, 8\]|scale of|inverse of"),
        ("panels", lambda t: t[:-64], r"panels of a packed gallery \[300, 8\] must be torch.uint8"),
        ("panels", lambda t: t[:0], "panels of"),
        ("panels", lambda t: torch.cat([t[:1], t])[1:], "must begin at a multiple of 64 bytes"),
        ("scale", lambda t: t[:300], r"scale .* must be torch.float32 \[320\], got torch.float32 \[300\]"),
        ("error", lambda t: t.repeat(2)[::2], "error of a packed gallery must be contiguous"),
        ("error", lambda t: t[:-1], "error of"),
        ("inverse", lambda t: t.float(), "inverse .* got torch.float32"),
        ("inverse", lambda t: t[1:], "inverse of"),
        ("centre", lambda t: t[:-1], r"centre .* must be torch.float32 \[9\]"),
        ("centre", lambda t: t.to("meta"), "centre .* on meta"),
    ],
)
def test_packs_out_of_bounds(name, change, message):
    """What the scan would read past its end is an error, not a crash."""
    good = ops.pack_gallery(torch.randn(300, 8))
    bad = good._replace(**{name: change(getattr(good, name))})
    with pytest.raises(ValueError, match=message):
        ops.cosine_topk(torch.randn(2, 8), bad, 3)


@pytest.mark.parametrize("gallery", [torch.zeros(8), torch.zeros(5, 8).half(), torch.zeros(5, 0)], ids=str)
def test_galleries_that_cannot_be_packed(gallery):
    with pytest.raises(ValueError, match="gallery must be"):
        ops.pack_gallery(gallery)
