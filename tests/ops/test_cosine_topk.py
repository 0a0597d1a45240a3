import pytest
import torch

from splip import ops
from splip.ops import reference, topk

TOL = {torch.float32: 2e-6, torch.float16: 2e-6, torch.bfloat16: 2e-6}  # sums run in float32 for every type
# Q, N, D, K: one of each, odd sizes, all of the gallery, several blocks and chunks
SHAPES = [(1, 1, 1, 1), (3, 50, 17, 10), (5, 7, 64, 7), (70, 300, 33, 5), (2, 9001, 24, 100)]


def make(shape, device, dtype=torch.float32):
    Q, N, D, _ = shape
    return torch.randn(Q, D, device=device).to(dtype), torch.randn(N, D, device=device).to(dtype)


def cosines(queries, gallery):
    q, g = queries.double(), gallery.double()
    return torch.nn.functional.normalize(q, dim=1) @ torch.nn.functional.normalize(g, dim=1).T


@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, dtype, device):
    queries, gallery = make(shape, device, dtype)
    scores, indices = ops.cosine_topk(queries, gallery, shape[3])
    want, _ = reference.cosine_topk(queries, gallery, shape[3])
    torch.testing.assert_close(scores, want, rtol=0, atol=TOL[dtype])
    # Near ties may change places between implementations, so compare the scores of the chosen rows.
    exact = cosines(queries, gallery).gather(1, indices).float()
    torch.testing.assert_close(exact, want, rtol=0, atol=TOL[dtype])
    assert all(len(set(row)) == len(row) for row in indices.tolist())


def test_gradients_match_reference(device):
    queries, gallery = (t.requires_grad_() for t in make((4, 30, 12, 5), device))
    got, want = ops.cosine_topk(queries, gallery, 5), reference.cosine_topk(queries, gallery, 5)
    assert not got[1].requires_grad
    grad = torch.randn_like(got[0])
    for g, w in zip(
        torch.autograd.grad(got[0], (queries, gallery), grad),
        torch.autograd.grad(want[0], (queries, gallery), grad),
        strict=True,
    ):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-6)


def test_ties_by_index(device):
    gallery = torch.randn(40, 16, device=device).repeat(60, 1)  # every row 60 times, far apart
    queries = torch.randn(3, 16, device=device)
    scores, indices = ops.cosine_topk(queries, gallery, 130)
    for row, index in zip(scores.tolist(), indices.tolist(), strict=True):
        assert list(zip([-s for s in row], index, strict=True)) == sorted(zip([-s for s in row], index, strict=True))
    assert (indices[:, :60] % 40 == indices[:, :1] % 40).all() and (indices[:, :60].diff() == 40).all()


def test_scale_does_not_matter(device):
    queries, gallery = make((3, 50, 16, 5), device)
    scaled = ops.cosine_topk(queries * 1e3, gallery * torch.rand(50, 1, device=device).add(0.1), 5)
    plain = ops.cosine_topk(queries, gallery, 5)
    torch.testing.assert_close(scaled[0], plain[0], rtol=0, atol=2e-6)
    assert torch.equal(scaled[1], plain[1])


def test_zero_and_not_finite_rows(device):
    gallery = torch.eye(6, device=device)
    gallery[1], gallery[3, 0], gallery[4, 0] = 0, float("nan"), float("inf")
    queries = torch.tensor([[1.0, 0, 0, 0, 0, 0.5], [0, 0, 0, 0, 0, 0]], device=device)
    scores, indices = ops.cosine_topk(queries, gallery, 6)
    assert indices[0].tolist() == [0, 5, 1, 2, 3, 4]
    assert scores[0, 2] == 0 and (scores[0, 4:] == float("-inf")).all()
    assert indices[1].tolist() == [0, 1, 2, 5, 3, 4] and (scores[1, :4] == 0).all()
    torch.testing.assert_close((scores, indices), reference.cosine_topk(queries, gallery, 6))


def test_reference_with_a_mask():
    """The definition of `allowed`: rows that may be results, then -1."""
    queries, gallery = make((3, 20, 8, 4), "cpu")
    gallery[5] = float("nan")
    allowed = torch.arange(20) % 5 == 0
    scores, indices = reference.cosine_topk(queries, gallery, 6, allowed)
    kept = allowed.nonzero()[:, 0]
    want = reference.cosine_topk(queries, gallery[kept], 4)
    assert torch.equal(scores[:, :4], want[0]) and torch.equal(indices[:, :4], kept[want[1]])
    assert (indices[:, 3] == 5).all() and (scores[:, 3:] == float("-inf")).all() and (indices[:, 4:] == -1).all()


def test_norms_that_overflow(device):
    gallery = torch.tensor([[-1.0, 0.0], [1e20, 0.0], [1.0, 1.0]], device=device)
    for queries in (torch.tensor([[1.0, 0.0]], device=device), torch.tensor([[1e20, 1e20]], device=device)):
        scores, indices = ops.cosine_topk(queries, gallery, 3)
        torch.testing.assert_close((scores, indices), reference.cosine_topk(queries, gallery, 3))
    assert ops.cosine_topk(torch.tensor([[1.0, 0.0]], device=device), gallery, 3)[1].tolist() == [[2, 0, 1]]


def test_fixed_gallery_gets_no_gradient(device):
    queries, gallery = make((3, 20, 8, 4), device)
    scores, _ = ops.cosine_topk(queries.requires_grad_(), gallery, 4)
    scores.sum().backward()
    assert queries.grad.abs().sum() > 0 and gallery.grad is None


def test_is_recorded_when_traced():
    """A tracer must see the op, not the empty tensors that the native call fills."""
    queries, gallery = make((3, 20, 8, 4), "cpu")
    traced = torch.jit.trace(lambda q, g: ops.cosine_topk(q, g, 4), (queries, gallery))
    other = torch.randn_like(queries)
    assert torch.equal(traced(other, gallery)[1], ops.cosine_topk(other, gallery, 4)[1])


def test_does_not_depend_on_threads():
    queries, gallery = make((3, 20000, 16, 50), "cpu")
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(ops.cosine_topk(queries, gallery, 50))
    finally:
        torch.set_num_threads(before)
    for scores, indices in results[1:]:
        assert torch.equal(scores, results[0][0]) and torch.equal(indices, results[0][1])


def test_strided_input(device):
    queries, gallery = torch.randn(16, 6, device=device).T[::2], torch.randn(40, 32, device=device)[:, ::2]
    got, want = ops.cosine_topk(queries, gallery, 4), reference.cosine_topk(queries, gallery, 4)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(0, 5, 8, 3), (3, 5, 8, 0), (3, 0, 8, 0), (0, 0, 8, 0)], ids=str)
def test_empty_batch(shape, device):
    scores, indices = ops.cosine_topk(*make(shape, device), shape[3])
    assert scores.shape == indices.shape == (shape[0], shape[3])
    assert scores.dtype == torch.float32 and indices.dtype == torch.int64


def test_opcheck(device):
    queries, gallery = (t.requires_grad_() for t in make((3, 20, 8, 4), device))
    torch.library.opcheck(topk._cosine_topk, (queries, gallery, 4))


def test_compile_and_export(device):
    class Module(torch.nn.Module):
        def forward(self, queries, gallery):
            scores, indices = ops.cosine_topk(queries, gallery, 4)
            return scores * 2, indices

    args = make((3, 20, 8, 4), device)
    want = Module()(*args)
    torch.testing.assert_close(torch.compile(Module(), fullgraph=True, backend="aot_eager")(*args), want)
    exported = torch.export.export(Module(), args)
    assert "splip.cosine_topk" in exported.graph_module.code
    torch.testing.assert_close(exported.module()(*args), want)
    with ops.reference_only():
        plain = torch.export.export(Module(), args)
    assert "splip" not in plain.graph_module.code
    torch.testing.assert_close(plain.module()(*args), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.zeros(8)}, r"must be \[Q, D\] and \[N, D\].*got \[8\]"),
        ({"gallery": torch.zeros(5, 9)}, r"got \[3, 8\] and \[5, 9\]"),
        ({"queries": torch.zeros(3, 8, dtype=torch.int64)}, "queries must be float32"),
        ({"gallery": torch.zeros(5, 8, dtype=torch.float16)}, "gallery must be torch.float32"),
        ({"k": 6}, "k must be between 0 and the gallery's size 5, got 6"),
        ({"k": -1}, "got -1"),
        ({"gallery": torch.zeros(5, 8, device="meta")}, "different devices"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_rejects_bad_arguments(change, message):
    args = dict(queries=torch.zeros(3, 8), gallery=torch.zeros(5, 8), k=2)
    with pytest.raises(ValueError, match=message):
        ops.cosine_topk(**{**args, **change})
