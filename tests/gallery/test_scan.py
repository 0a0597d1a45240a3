"""Answers of several parts of a gallery, merged: scores first, then the place, whichever part a row is in."""

import numpy as np
import pytest
import torch

from splip.gallery import scan
from splip.gallery.segments import Segments
from splip.ops import host, quantized

DIM = 4


def rows_of(*scores):
    """Unit vectors whose cosine with the first axis is the score."""
    scores = torch.tensor(scores, dtype=torch.float32)
    return torch.stack([scores, (1 - scores.square()).sqrt(), *[torch.zeros(len(scores))] * (DIM - 2)], dim=1)


def packed_rows(rows):
    return host.pack(rows.numpy())


QUERY = np.eye(DIM, dtype=np.float32)[:1]


def places(found):
    return [place for _, place in found[0]]


@pytest.mark.parametrize("packed", [True, False])
def test_equal_vectors_come_by_segment_then_row(packed):
    """(1, 5) comes before (2, 0), (2, 0) before (2, 3), and parts of one segment by their rows."""
    make = packed_rows if packed else lambda rows: rows
    plan = [
        scan.Run(2, 0, make(rows_of(0.5, 0.1, 0.9, 0.5))),
        scan.Run(1, 4, make(rows_of(0.2, 0.5, 0.9))),
        scan.Run(1, 0, make(rows_of(0.5, 0.0))),
    ]
    want = [(1, 6), (2, 2), (1, 0), (1, 5), (2, 0), (2, 3)]
    for order in (plan, plan[::-1], plan[1:] + plan[:1]):
        assert places(scan.scan(order, QUERY, 6)) == want
        assert places(scan.scan(order, QUERY, 5)) == want[:5]
        answers = [scan.answer([run], QUERY, 6) for run in order]  # as shards give them
        assert places(scan.hits(scan.merge(answers, 4))) == want[:4]


def test_what_is_missing_is_no_hit():
    rows = rows_of(0.3, 0.7, 0.1)
    run = scan.Run(3, 10, packed_rows(rows), np.array([False, True, False]))
    found = scan.scan([run], QUERY, 3)
    assert places(found) == [(3, 11)] and found[0][0][0] == pytest.approx(0.7, abs=1e-6)
    assert scan.scan([], QUERY, 3) == [[]]


def test_a_filter_looks_at_the_rows_of_its_part():
    """One row of two hundred is copied out; its number is that of the segment."""
    part = scan.Part(1, 100, packed_rows(rows_of(*np.linspace(0, 1, 200))), True)
    for number, few in ((3, False), (150, True)):
        mask = np.zeros(400, dtype=bool)
        mask[100 + number] = mask[5] = True
        if not few:
            mask[100:110] = True
        run = scan.choose(part, mask)
        assert places(scan.scan([run], QUERY, 1)) == [(1, 100 + number) if few else (1, 109)]


def test_a_tail_that_grows_is_packed_seldom(tmp_path):
    """As a binary counter: parts cover all rows once, in order, and few of them are made anew."""
    files = Segments(tmp_path, DIM)
    rows = rows_of(*np.linspace(0, 1, 70)).numpy()
    files.append(1, 0, rows, 0)
    old, made = [], 0
    for stop in range(1, 71):
        new = scan.cover(files, 1, 0, stop, old)
        made += sum(part.rows.shape[0] for part in new if all(part is not other for other in old))
        old = new
        assert [p.first for p in old] == [0, *(p.stop for p in old[:-1])] and old[-1].stop == stop
    assert made < 70 * 8 and len(old) < 8


@pytest.mark.parametrize("share", [0.9, 0.02])
@pytest.mark.parametrize("make", [packed_rows, quantized.prepare_gallery, lambda rows: rows])
def test_chosen_rows_of_every_form_of_a_part(make, share):
    """The same answers from rows that are packed, kept with their norms as on a GPU (here in PyTorch), or plain."""
    torch.manual_seed(0)
    rows = torch.randn(3000, 6)
    mask = torch.rand(3100).numpy() < share
    run = scan.choose(scan.Part(3, 50, make(rows), False), mask)

    if run.allowed is not None and isinstance(run.rows, torch.Tensor):
        pytest.skip("a mask needs a packed gallery on the CPU")
    queries = torch.randn(5, 6).numpy()
    found = scan.scan([run], queries, 7)
    kept = np.flatnonzero(mask[50:3050])
    unit = torch.nn.functional.normalize(rows[kept].double(), dim=1)
    scores = torch.nn.functional.normalize(torch.from_numpy(queries).double(), dim=1) @ unit.T
    want = kept[scores.argsort(dim=1, descending=True)[:, :7].numpy()] + 50
    assert [[place for _, place in one] for one in found] == [[(3, row) for row in line] for line in want.tolist()]
