"""Packed galleries without torch: the same answers, the same refusals."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from splip import ops
from splip.ops import host


@pytest.fixture(scope="module")
def rows():
    rows = np.random.default_rng(0).standard_normal((300, 37)).astype(np.float32)
    rows[7], rows[9, 3] = 0, np.nan
    return rows


@pytest.mark.parametrize("share", [None, 0.5, 0.01, 0.0])
def test_the_same_as_with_torch(rows, share):
    queries = np.random.default_rng(1).standard_normal((5, 37)).astype(np.float32)
    allowed = None if share is None else np.random.default_rng(2).random(300) < share
    mine, theirs = host.pack(rows), ops.pack_gallery(torch.from_numpy(rows))
    for one, other in zip(mine, theirs, strict=True):
        assert np.array_equal(one, other.numpy(), equal_nan=True)
    mask = None if allowed is None else torch.from_numpy(allowed)
    for k in (0, 1, 20, 300):
        got = host.topk(queries, mine, k, allowed)
        want = ops.cosine_topk(torch.from_numpy(queries), theirs, k, mask)
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.numpy().dtype and np.array_equal(a, b.numpy())
    assert host.topk(queries[:0], mine, 3)[0].shape == (0, 3)
    scores, indices = host.topk(queries, host.pack(rows[:0]), 0)
    assert scores.shape == indices.shape == (5, 0)


def test_rows_that_are_not_contiguous(rows):
    wide = np.repeat(rows, 2, axis=1)
    got = host.topk(wide[:3, ::2], host.pack(wide[:, ::2]), 5)
    want = host.topk(rows[:3].copy(), host.pack(rows), 5)
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


def test_refusals(rows):
    packed, queries = host.pack(rows), np.ones((2, 37), np.float32)
    for wrong in (rows.astype(np.float64), rows[0], rows[:, :0]):
        with pytest.raises(ValueError, match="gallery must be float32"):
            host.pack(wrong)
    for wrong in (queries[:, :5], queries[0], queries.astype(np.float64)):
        with pytest.raises(ValueError, match="queries must be float32"):
            host.topk(wrong, packed, 1)
    for k in (-1, 301):
        with pytest.raises(ValueError, match="k must be between 0 and the gallery's size 300"):
            host.topk(queries, packed, k)
    for wrong in (np.ones(299, bool), np.ones(300, np.uint8)):
        with pytest.raises(ValueError, match=r"allowed must be bool \[300\]"):
            host.topk(queries, packed, 1, wrong)
    unaligned = host.aligned(len(packed.panels) + 1)[1:]
    unaligned[:] = packed.panels
    for name, value, message in (
        ("panels", packed.panels[:-32], "panels of a packed gallery"),
        ("panels", unaligned, "multiple of 64"),
        ("inverse", packed.inverse[:-1], "inverse of a packed"),
        ("scale", np.repeat(packed.scale, 2)[::2], "scale of a packed gallery must be contiguous"),
        ("centre", packed.centre.astype(np.float64), "centre of a packed"),
    ):
        with pytest.raises(ValueError, match=message):
            host.topk(queries, packed._replace(**{name: value}), 1)


def test_threads(monkeypatch):
    """What torch is set to goes first; without it the variable, else the cores that there are."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert host.threads() == 3
        monkeypatch.setattr(host, "_limit", None)
        host.limit(5)
        assert host.threads() == 5
    finally:
        torch.set_num_threads(before)
    code = "import sys; from splip.ops import host; print(host.threads(), 'torch' in sys.modules)"
    for given, want in (("7", "7"), ("4,2", "4"), ("", str(host.cores())), ("many", str(host.cores()))):
        env = os.environ | {"OMP_NUM_THREADS": given}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
        assert run.stdout.split() == [want, "False"]
    assert 1 <= host.cores() <= os.cpu_count()
