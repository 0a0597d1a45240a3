"""What only a GPU can show: streams, graphs, devices, alignment, and the searches' many paths at full size."""

import pytest
import torch
import torch.nn.functional as F

from splip import _C, ops
from splip.ops import layernorm, patches, reference, topk

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not _C.has_cuda, reason="splip was built without CUDA"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
SCANS = list(topk.SCANS)  # what a GPU cannot do falls back to what it can
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def exact(queries, gallery, k, allowed=None):
    """Sums in float64, rounded; ties by index; -1 beyond the allowed rows. In pieces of the gallery."""
    q = F.normalize(queries.double(), dim=1)
    scores = torch.cat([(q @ F.normalize(part.double(), dim=1).T).float() for part in gallery.split(1 << 16)], 1)
    rows = torch.arange(len(gallery), device=scores.device) if allowed is None else allowed.nonzero()[:, 0]
    order = rows[scores[:, rows].argsort(dim=1, descending=True, stable=True)[:, :k]]
    missing = (0, k - order.shape[1])
    return F.pad(scores.gather(1, order), missing, value=float("-inf")), F.pad(order, missing, value=-1)


def check(queries, gallery, k, allowed=None, scan="automatic"):
    scores, indices = topk._cuda_topk(queries, gallery, k, allowed, scan)
    rows = gallery if isinstance(gallery, torch.Tensor) else gallery.rows
    rows = rows[:, : queries.shape[1]]
    want_scores, want = exact(queries, rows, k, allowed)
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
    queries, gallery = rows(Q, D, dtype), rows(N, D, dtype)
    check(queries, gallery, K, scan=scan)
    check(queries, ops.pack_gallery(gallery), K, scan=scan)
    check(queries, ops.eight_bit_gallery(gallery), K, scan=scan)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("D", [8, 64, 72, 512, 520, 1024, 2048])
def test_wgmma_gives_what_mma_gives(D, dtype):
    """Queries that stay in shared memory and queries that do not; one step, as many as stages, more."""
    for Q, N in ((1, 1000), (128, 256), (129, 30_001), (700, 9000)):
        queries, gallery = rows(Q, D, dtype), rows(N, D, dtype)
        for searched in (gallery, ops.pack_gallery(gallery), ops.eight_bit_gallery(gallery)):
            want = topk._cuda_topk(queries, searched, 10, None, "tiles128")
            for _ in range(3):  # a race would not lose every time
                got = topk._cuda_topk(queries, searched, 10, None, "wgmma")
                assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


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
    check(queries, gallery, 10, scan=scan)
    check(queries, ops.eight_bit_gallery(gallery), 10, scan=scan)


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("share", [0.9, 0.01, 0.0002, 0.0])
def test_topk_with_a_mask(share, scan):
    allowed = torch.rand(50_000, device="cuda") < share
    queries, gallery = rows(20, 64, torch.float16), rows(50_000, 64, torch.float16)
    check(queries, gallery, 10, allowed, scan)
    check(queries, ops.eight_bit_gallery(gallery), 10, allowed, scan)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scan", SCANS)
def test_topk_in_eight_bits_alone(scan, dtype):
    """Without the rows they were made of: exact in the rows as 8 bits remember them."""
    queries, gallery = rows(50, 200, dtype), rows(20_000, 200, dtype)
    gallery[3], gallery[9, 0] = 0, float("nan")
    eight_bits = ops.eight_bit_gallery(gallery, keep_rows=False)
    scores, indices = topk._cuda_topk(queries, eight_bits, 10, None, scan)
    want_scores, want = topk._approximate_topk(queries, eight_bits, 10, None)
    torch.testing.assert_close(scores, want_scores, rtol=0, atol=2e-6)
    assert (indices == want).float().mean() > 0.99
    torch.testing.assert_close(scores, exact(queries, gallery.nan_to_num(), 10)[0], rtol=0, atol=0.01)


def test_many_results_of_many_queries_in_eight_bits_read_the_rows():
    queries, gallery = rows(300, 64, torch.float16), rows(20_000, 64, torch.float16)
    check(queries, ops.eight_bit_gallery(gallery), 500)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("Q", [3, 80])
def test_prepared_galleries_through_the_public_function(Q, dtype):
    """Rows of an odd width are copied into longer ones; rows without a score have no norm."""
    queries, gallery = rows(Q, 33, dtype), rows(5000, 33, dtype)
    gallery[7], gallery[8, 3], gallery[9, 0] = 0, float("nan"), float("inf")
    allowed = torch.rand(5000, device="cuda") < 0.5
    for mask in (None, allowed):
        got = ops.cosine_topk(queries, ops.pack_gallery(gallery), 20, mask)
        want = ops.cosine_topk(queries, gallery, 20, mask)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_launches_that_fill_the_card():
    """More query tiles than half of the multiprocessors: several launches of wgmma."""
    queries, gallery = rows(9000, 64, torch.bfloat16), rows(3000, 64, torch.bfloat16)
    got = ops.cosine_topk(queries, ops.pack_gallery(gallery), 5)
    want = topk._cuda_topk(queries, gallery, 5, None, "tiles128")
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_topk_in_eight_bits_through_the_public_function():
    queries, gallery = rows(40, 96, torch.float16), rows(30_000, 96, torch.float16)
    got = ops.cosine_topk(queries, ops.eight_bit_gallery(gallery), 10)
    want = ops.cosine_topk(queries, gallery, 10)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


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
    want = reference.cosine_topk(queries, gallery, 20)
    for searched in (gallery, ops.eight_bit_gallery(gallery)):
        scores, indices = topk._cuda_topk(queries, searched, 20, None, scan)
        torch.testing.assert_close(scores, want[0], rtol=0, atol=2e-6)
        assert torch.equal(indices[[1, 2, 3]], want[1][[1, 2, 3]])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("offset", [1, 2, 4])
@pytest.mark.parametrize("D", [64, 33])
def test_topk_of_misaligned_views(D, offset, dtype):
    store = rows(1, 3000 * D + 8, dtype)[0]
    gallery = store[offset : offset + 3000 * D].view(3000, D)
    check(rows(40, D, dtype), gallery, 10)
    check(gallery[:7], rows(3000, D, dtype), 10)
    check(gallery[:7], ops.eight_bit_gallery(gallery), 10)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_topk_of_strided_views(dtype):
    queries, gallery = rows(80, 128, dtype)[::2, :64], rows(64, 5000, dtype).T
    allowed = (torch.rand(10_000, device="cuda") < 0.5)[::2]
    check(queries, gallery, 10, allowed)
    check(queries, ops.eight_bit_gallery(gallery), 10, allowed)


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


@pytest.mark.parametrize("scan", SCANS)
def test_topk_gives_the_same_bits_every_time(scan):
    queries, gallery = rows(200, 64, torch.bfloat16), rows(500, 64, torch.bfloat16).repeat(60, 1)
    first = ops.cosine_topk(queries, gallery, 130)
    for _ in range(3):
        again = topk._cuda_topk(queries, gallery, 130, None, scan)
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
    half, eight_bits = many.half(), ops.eight_bit_gallery(gallery.half())
    tokens, _, mean, rstd = layernorm._prompt_layernorm_native(x, prompts[None], gamma, beta, 1e-5, 0)
    grads = [torch.randn_like(tokens) for _ in range(2)]

    def in_eight_bits(q, *parts):  # the centre is not rolled with the rows
        return ops.cosine_topk(q, ops.EightBitGallery(*parts, eight_bits.centre), 10)

    def backward(*inputs):
        return layernorm._prompt_layernorm_backward_native(*inputs, 1, x.shape[1], 0)

    def uncut(d_patches, p):
        return patches._patchify_backward_native(d_patches, p, images.shape, 16, STD, 3)

    def by_wgmma(q, g):
        return topk._cuda_topk(q, g, 10, None, "wgmma")

    return {
        "prompt_layernorm_backward": (backward, [*grads, tokens, gamma, mean, rstd]),
        "patchify_backward": (uncut, [rows(4 * 9, 768).view(4, 9, 768), permutation]),
        "cosine_topk in 8 bits, few queries": (in_eight_bits, [half[:5], *eight_bits[:4]]),
        "cosine_topk in 8 bits, many queries": (in_eight_bits, [half, *eight_bits[:4]]),
        "cosine_topk, wgmma": (by_wgmma, [half, gallery.half()]),
        "prompt_layernorm": (ops.prompt_layernorm, [x, prompts, gamma, beta]),
        "patchify": (lambda i, p: ops.patchify(i, 16, MEAN, STD, p), [images, permutation]),
        "cosine_topk, few queries": (lambda q, g: ops.cosine_topk(q, g, 10), [few, gallery]),
        "cosine_topk, many queries": (lambda q, g: ops.cosine_topk(q, g, 10), [many, gallery]),
    }


NAMES = [
    "prompt_layernorm", "prompt_layernorm_backward", "patchify", "patchify_backward", "cosine_topk, few queries",
    "cosine_topk, many queries", "cosine_topk, wgmma", "cosine_topk in 8 bits, few queries",
    "cosine_topk in 8 bits, many queries",
]  # fmt: skip


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


def test_layernorm_backward_is_twice_the_same():
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


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["misaligned", "strided"])
def test_layernorm_of_views(kind, dtype):
    tol = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    if kind == "misaligned":
        x, prompts = rows(1, 4 * 5 * 64 + 1, dtype)[0, 1:].view(4, 5, 64), rows(1, 2 * 64 + 1, dtype)[0, 1:].view(2, 64)
    else:
        x, prompts = rows(64, 20, dtype).view(64, 4, 5).permute(1, 2, 0), rows(4, 128, dtype)[::2, ::2]
    leaves = [t.detach().requires_grad_() for t in (x, prompts, torch.randn(65).cuda()[1:], torch.randn(64).cuda())]
    got, want = ops.prompt_layernorm(*leaves), reference.prompt_layernorm(*leaves)
    grads = [torch.randn_like(t.transpose(0, 1)).transpose(0, 1) for t in got]
    torch.testing.assert_close(got, want, rtol=tol, atol=tol)
    for g, w in zip(torch.autograd.grad(got, leaves, grads), torch.autograd.grad(want, leaves, grads), strict=True):
        torch.testing.assert_close(g, w, rtol=tol, atol=tol * float(w.abs().max().clamp_min(1)))


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
