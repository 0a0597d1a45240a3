"""What only a GPU can show: streams, graphs, devices, alignment, and the searches' many paths at full size."""

import pytest
import torch
import torch.nn.functional as F

from splip import _C, ops, reference

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not _C.has_cuda, reason="splip was built without CUDA"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
SCANS = {"automatic": 0, "stream": 1, "tiles64": 2, "tiles128": 3}
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def exact(queries, gallery, k, allowed=None):
    """Sums in float64, rounded; ties by index; -1 beyond the allowed rows. In pieces of the gallery."""
    q = F.normalize(queries.double(), dim=1)
    scores = torch.cat([(q @ F.normalize(part.double(), dim=1).T).float() for part in gallery.split(1 << 16)], 1)
    rows = torch.arange(len(gallery), device=scores.device) if allowed is None else allowed.nonzero()[:, 0]
    order = rows[scores[:, rows].argsort(dim=1, descending=True, stable=True)[:, :k]]
    missing = (0, k - order.shape[1])
    return F.pad(scores.gather(1, order), missing, value=float("-inf")), F.pad(order, missing, value=-1)


def check(queries, gallery, k, allowed=None, scan=0):
    scores, indices = ops._cosine_topk_native(queries, gallery, k, allowed, scan)
    want_scores, want = exact(queries, gallery, k, allowed)
    torch.testing.assert_close(scores, want_scores, rtol=0, atol=1.2e-7)
    # Two sums in float64 that round to neighbouring floats may change places; nothing else may.
    moved = indices != want
    torch.testing.assert_close(scores[moved], want_scores[moved], rtol=0, atol=1.2e-7)
    assert moved.float().mean() < 0.01
    ordered = scores[:, 1:] < scores[:, :-1]
    assert (ordered | ((scores[:, 1:] == scores[:, :-1]) & ((indices.diff() > 0) | (indices[:, 1:] < 0)))).all()


def rows(n, D, dtype=torch.float32):
    return torch.randn(n, D, device="cuda").to(dtype)


# ---- cosine_topk ----


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize(
    ("Q", "N", "D", "K"),
    [(1, 1, 8, 1), (9, 130, 40, 130), (33, 5000, 512, 10), (129, 20_001, 768, 100), (8, 70_000, 64, 1024),
     (300, 40_000, 136, 33), (5, 3000, 4104, 7)],
)  # fmt: skip
def test_topk_is_exact(Q, N, D, K, scan, dtype):
    check(rows(Q, D, dtype), rows(N, D, dtype), K, scan=SCANS[scan])


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("kind", ["crowded", "clustered", "ascending", "taking turns", "equal", "scaled"])
def test_topk_of_difficult_galleries(kind, scan):
    N, D = 60_000, 96
    queries, gallery = rows(40, D, torch.bfloat16), rows(N, D, torch.bfloat16)
    if kind == "crowded":
        gallery = (torch.randn(1, D, device="cuda") + 0.02 * torch.randn(N, D, device="cuda")).bfloat16()
    elif kind == "clustered":
        gallery = rows(20, D)[torch.randint(20, (N,), device="cuda")].add(0.01 * rows(N, D)).bfloat16()
    elif kind == "ascending":
        gallery = gallery[(F.normalize(gallery.float(), dim=1) @ queries[0].float()).argsort()]
        queries = queries[:1].repeat(40, 1)
    elif kind == "taking turns":
        gallery[::2] = queries[0] + 0.1 * gallery[::2]
    elif kind == "equal":
        gallery, queries = gallery[:1].repeat(N, 1), queries[:4]
    else:
        gallery = gallery * torch.rand(N, 1, device="cuda").mul(100).add(0.01).bfloat16()
    check(queries, gallery, 10, scan=SCANS[scan])


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("share", [0.9, 0.01, 0.0002, 0.0])
def test_topk_with_a_mask(share, scan):
    allowed = torch.rand(50_000, device="cuda") < share
    check(rows(20, 64, torch.float16), rows(50_000, 64, torch.float16), 10, allowed, SCANS[scan])


def test_topk_mask_through_the_public_function():
    queries, gallery = rows(3, 16), rows(100, 16)
    allowed = torch.arange(100, device="cuda") % 10 == 3
    scores, indices = ops.cosine_topk(queries.requires_grad_(), gallery, 12, allowed)
    assert (indices[:, :10] % 10 == 3).all() and (indices[:, 10:] == -1).all()
    assert (scores[:, 10:] == float("-inf")).all()
    scores[:, :10].sum().backward()
    assert queries.grad.isfinite().all()
    want = reference.cosine_topk(queries, gallery, 12, allowed)
    torch.testing.assert_close((scores, indices), want, rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match=r"allowed must be bool \[100\]"):
        ops.cosine_topk(queries, gallery, 2, allowed[:50])
    with pytest.raises(ValueError, match="different devices"):
        ops.cosine_topk(queries, gallery, 2, allowed.cpu())


@pytest.mark.parametrize("scan", SCANS)
def test_topk_of_rows_without_a_score(scan):
    gallery = rows(5000, 32)
    gallery[::3, 5], gallery[1::3, 7] = float("nan"), float("inf")
    gallery[2] = 0
    queries = rows(6, 32)
    queries[1], queries[2, 0], queries[3], queries[4] = 0, float("nan"), 1e20, 1e18
    scores, indices = ops._cosine_topk_native(queries, gallery, 20, None, SCANS[scan])
    want = reference.cosine_topk(queries, gallery, 20)
    torch.testing.assert_close(scores, want[0], rtol=0, atol=2e-6)
    assert torch.equal(indices[[1, 2, 3]], want[1][[1, 2, 3]])


@pytest.mark.parametrize("offset", [1, 2, 4])
@pytest.mark.parametrize("D", [64, 33])
def test_topk_of_misaligned_views(D, offset):
    store = rows(1, 3000 * D + 8, torch.bfloat16)[0]
    gallery = store[offset : offset + 3000 * D].view(3000, D)
    check(rows(40, D, torch.bfloat16), gallery, 10)
    check(gallery[:7], rows(3000, D, torch.bfloat16), 10)


def test_topk_takes_many_queries_in_blocks():
    queries, gallery = rows(20_000, 16, torch.float16), rows(3000, 16, torch.float16)
    scores, indices = ops.cosine_topk(queries, gallery, 3)
    for part in (slice(0, 50), slice(9990, 10_010), slice(-50, None)):
        want_scores, want = exact(queries[part], gallery, 3)
        torch.testing.assert_close(scores[part], want_scores, rtol=0, atol=1.2e-7)
        assert (indices[part] == want).float().mean() > 0.99


def test_topk_beyond_32_bit_offsets():
    """More than 2**31 elements: the last rows are found too."""
    D, N = 512, (1 << 22) + 1000
    if torch.cuda.mem_get_info()[0] < 6 * N * D:
        pytest.skip("not enough GPU memory")
    gallery = torch.empty(N, D, device="cuda", dtype=torch.float16)
    for part in gallery.split(1 << 18):
        part.normal_()
    last = torch.tensor([N - 1, N - 700, 5], device="cuda")
    for repeat in (1, 30):  # the stream, and tiles
        _, indices = ops.cosine_topk(gallery[last].repeat(repeat, 1), gallery, 2)
        assert torch.equal(indices[:, 0], last.repeat(repeat))


def test_topk_gives_the_same_bits_every_time():
    queries, gallery = rows(200, 64, torch.bfloat16), rows(500, 64, torch.bfloat16).repeat(60, 1)
    first = ops.cosine_topk(queries, gallery, 130)
    for _ in range(5):
        again = ops.cosine_topk(queries, gallery, 130)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


# ---- all ops: streams, graphs, devices ----


def calls():
    """Each op on inputs of its own: (function of fresh inputs, inputs)."""
    x, prompts, gamma, beta = (
        rows(6 * 9, 64).view(6, 9, 64),
        rows(3, 64),
        torch.randn(64).cuda(),
        torch.randn(64).cuda(),
    )
    images = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8, device="cuda")
    permutation = torch.stack([torch.randperm(9) for _ in range(4)]).cuda()
    few, many, gallery = rows(5, 64), rows(100, 64), rows(9000, 64)
    return {
        "prompt_layernorm": (ops.prompt_layernorm, [x, prompts, gamma, beta]),
        "patchify": (lambda i, p: ops.patchify(i, 16, MEAN, STD, p), [images, permutation]),
        "cosine_topk, few queries": (lambda q, g: ops.cosine_topk(q, g, 10), [few, gallery]),
        "cosine_topk, many queries": (lambda q, g: ops.cosine_topk(q, g, 10), [many, gallery]),
    }


NAMES = ["prompt_layernorm", "patchify", "cosine_topk, few queries", "cosine_topk, many queries"]


def tensors(out):
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("name", NAMES)
def test_runs_on_the_current_stream(name):
    """Inputs that a side stream is still writing: a kernel on another stream would read the old ones."""
    function, inputs = calls()[name]
    want = tensors(function(*inputs))
    late = [torch.zeros_like(t) for t in inputs]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        for target, source in zip(late, inputs, strict=True):
            target.copy_(source)
        got = tensors(function(*late))
    torch.cuda.synchronize()
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_records_it(name):
    function, inputs = calls()[name]
    static = [t.clone() for t in inputs]
    function(*static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = tensors(function(*static))
    for shift in (1, 2):
        fresh = [t.roll(shift, 0) for t in inputs]
        for target, source in zip(static, fresh, strict=True):
            target.copy_(source)
        graph.replay()
        for g, w in zip(out, tensors(function(*fresh)), strict=True):
            assert torch.equal(g, w)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_where_its_tensors_are(name):
    function, inputs = calls()[name]
    want = tensors(function(*inputs))
    assert torch.cuda.current_device() == 0
    got = tensors(function(*(t.to("cuda:1") for t in inputs)))
    assert torch.cuda.current_device() == 0
    for g, w in zip(got, want, strict=True):
        assert g.device.index == 1 and torch.equal(g.to(w.device), w)


def test_layernorm_backward_in_a_graph_and_twice_the_same():
    x, prompts = rows(300 * 50, 768, torch.bfloat16).view(300, 50, 768), rows(6, 768, torch.bfloat16)
    leaves = [t.requires_grad_() for t in (x, prompts, torch.randn(768).cuda(), torch.randn(768).cuda())]
    out = ops.prompt_layernorm(*leaves, replace=6)
    grads = [torch.randn_like(t) for t in out]
    first = torch.autograd.grad(out, leaves, grads, retain_graph=True)
    again = torch.autograd.grad(out, leaves, grads)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("D", [512, 768, 1024, 1280, 2048, 2056])
def test_layernorm_of_every_width_of_vectors(D, dtype):
    """Widths at which the kernels change: one warp's registers, and rows too wide for them."""
    leaves = [rows(40 * 7, D, dtype).view(40, 7, D), rows(2, D, dtype), torch.randn(D).cuda(), torch.randn(D).cuda()]
    leaves = [t.requires_grad_() for t in leaves]
    got, want = ops.prompt_layernorm(*leaves), reference.prompt_layernorm(*leaves)
    grads = [torch.randn_like(t) for t in got]
    tol = {torch.float32: 3e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(got[1], want[1], rtol=tol, atol=tol)
    for g, w in zip(torch.autograd.grad(got, leaves, grads), torch.autograd.grad(want, leaves, grads), strict=True):
        torch.testing.assert_close(g, w, rtol=tol, atol=tol * float(w.abs().max().clamp_min(1)))


def test_layernorm_of_a_misaligned_view():
    store = rows(1, 4 * 5 * 64 + 1)[0]
    x = store[1:].view(4, 5, 64)
    args = (x, rows(2, 64), torch.randn(65).cuda()[1:], torch.randn(64).cuda())
    torch.testing.assert_close(ops.prompt_layernorm(*args), reference.prompt_layernorm(*args), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("S", [14, 16, 32])
@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_patchify_of_cropped_pictures(S, offset):
    """Channels last, starting at any byte, rows of any pitch."""
    side = 224
    decoded = torch.randint(0, 256, (3, side + 9, side + 7, 3), dtype=torch.uint8, device="cuda")
    images = decoded[:, offset : offset + side, offset : offset + side].permute(0, 3, 1, 2)
    permutation = torch.stack([torch.randperm(9) for _ in range(3)]).cuda()
    for tiles in (permutation, None):
        for dtype in FLOATS:
            got = ops.patchify(images, S, MEAN, STD, tiles, dtype=dtype)
            assert torch.equal(got, reference.patchify(images, S, MEAN, STD, tiles, dtype=dtype))
