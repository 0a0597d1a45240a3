"""Queries that are zero, NaN or too long on the CPU: their answer is known before the gallery is scanned."""

import subprocess
import sys

import pytest
import torch
from levels import kernels

from splip import _C, ops
from splip.ops import reference

INF, NAN = float("inf"), float("nan")


def questions(D):
    """Ordinary queries among all that have a trivial answer."""
    queries = torch.randn(9, D)
    for place, value in ((1, 0.0), (2, NAN), (3, INF), (4, 1e20), (6, -0.0), (8, -INF)):
        queries[place] = value
    queries[5], queries[7] = 0, 0
    queries[5, 0], queries[7, 0] = 1e-30, NAN  # short, but a query; one element spoils a row
    return queries


@pytest.mark.parametrize("level", ["scalar", "avx512", "amx"])
@pytest.mark.parametrize("N, k", [(40, 7), (40, 40), (5000, 20)])
@pytest.mark.parametrize("masked", [False, True])
def test_answers_are_the_references(N, k, masked, level):
    queries, gallery = questions(24), torch.randn(N, 24)
    gallery[2], gallery[3, 1], gallery[5], gallery[N - 1, 0] = 0, NAN, 1e20, INF
    allowed = torch.arange(N) % 3 != 0 if masked else None
    want = reference.cosine_topk(queries, gallery, k, allowed)
    with kernels(level):
        found = [ops.cosine_topk(queries, ops.pack_gallery(gallery), k, allowed)]
        if not masked:
            found += [ops.cosine_topk(queries[i : i + 4], gallery, k) for i in (0, 5)]
    trivial = [1, 2, 3, 4, 6, 7, 8]
    assert torch.equal(found[0][1][trivial], want[1][trivial]) and torch.equal(found[0][0][trivial], want[0][trivial])
    torch.testing.assert_close(found[0][0], want[0], rtol=0, atol=1e-6)
    for first, (scores, indices) in zip((0, 5), found[1:], strict=False):
        part = slice(first, first + 4)
        torch.testing.assert_close(scores, want[0][part], rtol=0, atol=1e-6)
        own = [i - first for i in trivial if first <= i < first + 4]
        assert torch.equal(indices[own], want[1][part][own])


# The gallery is memory that nobody may read, but for its first rows.
SCRIPT = """
import ctypes, sys
import torch
from splip import _C
from splip.ops import quantized

packed, k, N, D = sys.argv[1] == "packed", 5, 1 << 16, 64
queries = torch.zeros(4, D)
for place, value in enumerate(eval(sys.argv[2])):
    queries[place] = value
libc = ctypes.CDLL(None)
libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

def forbidden(size, readable):
    place = libc.mmap(None, size, 0, 0x22, -1, 0)
    assert libc.mprotect(place, 4096, 3) == 0
    ctypes.memset(place, readable, 4096)
    return place

rows = forbidden(4 * N * D, 0x3F)  # 16 rows of 0.74...
scores, indices = torch.empty(4, k), torch.empty(4, k, dtype=torch.int64)
given = {"queries": queries.data_ptr(), "gallery": rows, "scores": scores.data_ptr(), "indices": indices.data_ptr()}
given |= {"Q": 4, "N": N, "D": D, "K": k, "device": -1, "stream": 0, "threads": 2}
if packed:
    scratch = quantized.aligned(_C.packed_topk_scratch(Q=4, D=D, K=k, threads=2))
    names = ("panels", "scale", "inverse", "centre", "error")
    _C.packed_topk(scratch=scratch.data_ptr(), allowed=0, **{n: forbidden(1 << 24, 0x3F) for n in names}, **given)
else:
    scratch = torch.empty(_C.cosine_topk_scratch(Q=4, N=N, D=D, K=k, threads=2), dtype=torch.uint8)
    _C.cosine_topk(scratch=scratch.data_ptr(), dtype=0, **given)
print(indices.tolist(), scores.tolist())
"""


@pytest.mark.parametrize("kind", ["packed", pytest.param("plain", marks=pytest.mark.exhaustive)])
def test_nothing_is_scanned(kind):
    def run(values):
        return subprocess.run([sys.executable, "-c", SCRIPT, kind, values], capture_output=True, text=True)

    run_all = run("[0.0, float('nan'), float('inf'), 1e20]")
    first, never = [0, 1, 2, 3, 4], [-INF] * 5
    assert run_all.returncode == 0, run_all.stderr
    assert run_all.stdout.strip() == f"{[first] * 4} {[[0.0] * 5] + [never] * 3}"
    assert run("[1.0]").returncode < 0  # the script would see a scan: it ends with a fault


def test_what_the_cpu_cannot_do_is_refused():
    """Rather than ignored: a mask that does nothing gives rows that were excluded."""
    queries, gallery = torch.randn(1, 4), torch.randn(3, 4)
    scores, indices, other = torch.empty(1, 1), torch.empty(1, 1, dtype=torch.int64), torch.zeros(64)
    scratch = torch.empty(_C.cosine_topk_scratch(Q=1, N=3, D=4, K=1), dtype=torch.uint8)
    given = {"queries": queries.data_ptr(), "gallery": gallery.data_ptr(), "scores": scores.data_ptr(),
             "indices": indices.data_ptr(), "scratch": scratch.data_ptr(), "Q": 1, "N": 3, "D": 4, "K": 1, "dtype": 0,
             "device": -1, "stream": 0, "threads": 1}  # fmt: skip
    _C.cosine_topk(**given)
    for name, value, message in (("allowed", other.data_ptr(), "no mask"), ("scan", 2, "CUDA"),
                                 ("eight_bit_rows", other.data_ptr(), "CUDA"),
                                 ("inverse", other.data_ptr(), "CUDA")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            _C.cosine_topk(**given, **{name: value})
