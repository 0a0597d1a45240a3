"""What a packed scan may not get wrong: galleries and queries made to be missed by a bound that is a little too tight."""

import pytest
import torch
import torch.nn.functional as F

from splip import ops


def assert_finds(queries, gallery, k):
    """The float64 top k, ties by index."""
    scores = (F.normalize(queries.double(), dim=1) @ F.normalize(gallery.double(), dim=1).T).float()
    want = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    assert torch.equal(ops.cosine_topk(queries, ops.pack_gallery(gallery), k)[1], want)


def signs(*shape):
    return torch.randint(2, shape).float() * 2 - 1


# Where 16 bits hold the sum of two or four neighbours' products: all of one sign, one of two, half of a step, alone.
PATTERNS = [[1.0] * 8, [1, -1] * 4, [1, 1, 0, 0] * 2, [1, 1, -1, -1] * 2, [1, 1, 0, 0, 0, 0, 0, 0], [1.0] + [0] * 7,
            [1, 0.02, 0.01, 0, 1, 0.02, 0, 0], [127, 126, 2, 1, 127, 125, 3, 4]]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_sums_of_byte_products_do_not_saturate(pattern, level):
    """Rows whose bytes are the greatest and the least there are, and the queries that they answer best."""
    D = 64
    towards = torch.tensor(pattern).repeat(D // 8)
    best = torch.where(towards == 0, signs(D), towards.sign())
    gallery = signs(700, D)
    changes = torch.ones(60, D)
    changes[torch.arange(60), torch.randint(D, (60,))] = -1  # near the best, at places all over the list
    gallery[torch.randperm(700)[:60]] = best * changes
    gallery = torch.cat([gallery, -gallery])  # a mean of zero, so that bytes are +-127
    assert_finds(torch.stack([towards, -towards, towards * 1e-3]), gallery, 40)


# The greatest components of a query, in steps of its 8-bit numbers: one is 127; or the most that four may sum to.
PEAKS = {"one": [127.0], "four": [31.54, 31.54, 31.54, 31.54, 31.54, 31.38, 31.54, 31.38]}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("peak", PEAKS)
def test_what_a_query_lost_in_8_bits(peak, sign, level):
    """One row has what the query's rounding loses, a thousand have less than nothing of it, and score a little worse.

    In 8 bits they score better, all of them: only the bound of the query's rounding keeps the one row.
    """
    D = 64
    query = signs(D) * (torch.randint(8, 30, (D,)) + 0.54)
    query[: len(PEAKS[peak])] = torch.tensor(PEAKS[peak])
    lost = query - query.round()
    lost -= query * (lost @ query) / (query @ query)
    unit, loss = F.normalize(query, dim=0), F.normalize(lost, dim=0) * sign
    aside = torch.randn(1001, D)
    aside = 0.1 * F.normalize(aside - aside @ torch.stack([unit, loss]).T @ torch.stack([unit, loss]), dim=1)
    others, one = 0.4 * unit - 0.9 * loss + aside[1:], 0.4005 * unit + 0.9 * loss + aside[:1]
    gallery = torch.cat([others, -others, one, -one])[torch.randperm(2002)]
    assert_finds(query[None], gallery, 20)
    assert_finds(query.repeat(9, 1), gallery, 20)


def test_a_centre_far_from_the_mean(level):
    """The mean of a large gallery is that of every so-manieth row; here they are all on the other side."""
    gallery = F.normalize(torch.ones(8) + 0.3 * torch.randn(33_000, 8), dim=1)
    gallery[::3] *= -1
    assert_finds(torch.cat([gallery[:2], torch.eye(8)[:1]]), gallery, 10)


@pytest.mark.parametrize("Q", [1, 2, 3, 4, 7, 9])
def test_several_queries_at_once_have_the_bits_of_one(Q, level):
    """Galleries that are not packed, in every number of queries that a row is widened for, with numbers left over."""
    gallery, queries = torch.randn(60, 37), torch.randn(Q, 37)
    packed = ops.cosine_topk(queries, ops.pack_gallery(gallery), 60)
    for a, b in zip(packed, ops.cosine_topk(queries, gallery, 60), strict=True):
        assert torch.equal(a, b)
