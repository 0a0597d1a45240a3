import pytest
import torch

from splip import _C, ops
from splip.ops import layernorm, reference

TOL = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # a few ulp of the output type
# B, L, P, D, replace, own prompts per image: class token only, real sizes, odd D, deep prompting, no prompts
SHAPES = [
    (1, 1, 0, 8, 0, False),
    (2, 50, 4, 768, 0, False),
    (3, 197, 1, 1000, 0, True),
    (1, 5, 3, 17, 2, False),
    (4, 56, 6, 128, 6, True),
    (2, 9, 0, 33, 3, False),
]


def make(shape, device, dtype, requires_grad=True):
    B, L, P, D, _, own = shape
    x = torch.randn(B, L, D, device=device).mul(3).add(1).to(dtype)
    prompts = torch.randn(*((B,) if own else ()), P, D, device=device).to(dtype)
    gamma, beta = torch.randn(D, device=device), torch.randn(D, device=device)
    return [t.requires_grad_(requires_grad) for t in (x, prompts, gamma, beta)]


def same_gradients(got, want, dtype):
    for name, g, w in zip(["x", "prompts", "gamma", "beta"], got, want, strict=True):
        tol = TOL[dtype] * max(1.0, float(w.abs().max()) if w.numel() else 1.0)
        torch.testing.assert_close(g, w, rtol=TOL[dtype], atol=tol, msg=lambda m: f"d_{name}: {m}")


@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, dtype, device):
    args = make(shape, device, dtype)
    got = ops.prompt_layernorm(*args, replace=shape[4])
    want = reference.prompt_layernorm(*args, replace=shape[4])
    assert got[0].dtype == got[1].dtype == dtype
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=0)  # a copy must be exact
    torch.testing.assert_close(got[1], want[1], rtol=TOL[dtype], atol=TOL[dtype])
    grads = [torch.randn_like(t) for t in got]
    same_gradients(torch.autograd.grad(got, args, grads), torch.autograd.grad(want, args, grads), dtype)


@pytest.mark.parametrize("output", [0, 1], ids=["tokens", "normed"])
def test_gradient_of_one_output(output, device):
    args = make((2, 7, 3, 16, 2, False), device, torch.float32)
    got = ops.prompt_layernorm(*args, replace=2)[output]
    want = reference.prompt_layernorm(*args, replace=2)[output]
    grad = torch.randn_like(got)
    keep = args if output else args[:2]  # tokens do not depend on gamma and beta
    same = zip(torch.autograd.grad(got, keep, grad), torch.autograd.grad(want, keep, grad), strict=True)
    for g, w in same:
        torch.testing.assert_close(g, w, rtol=2e-5, atol=2e-5)


def test_bfloat16_gradients_are_as_accurate_as_float64(device):
    """Sums over the batch run in float32: gamma and beta's gradients lose no digits to bfloat16."""
    shape = (8, 50, 4, 64, 0, False)
    args = make(shape, device, torch.bfloat16)
    got = ops.prompt_layernorm(*args)[1]
    grad = torch.randn_like(got)
    d_gamma, d_beta = torch.autograd.grad(got, args[2:], grad)
    x, prompts, gamma, beta = (t.detach().double().requires_grad_() for t in args)
    tokens = torch.cat([x[:, :1], prompts.expand(8, -1, -1), x[:, 1:]], 1)
    exact = torch.autograd.grad(torch.layer_norm(tokens, (64,), gamma, beta), (gamma, beta), grad.double())
    for g, w in zip((d_gamma, d_beta), exact, strict=True):
        assert (g.double() - w).abs().max() < 1e-5 * w.abs().max()


def test_strided_input(device):
    x, prompts, gamma, beta = make((3, 6, 2, 20, 0, False), device, torch.float32)
    strided = torch.randn(3, 20, 6, device=device).transpose(1, 2)
    views = (strided, prompts.T.contiguous().T, gamma.repeat(2)[::2], beta.expand(20))
    got, want = ops.prompt_layernorm(*views), reference.prompt_layernorm(*views)
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=0)
    torch.testing.assert_close(got[1], want[1], rtol=2e-5, atol=2e-5)


def test_empty_batch(device):
    args = make((0, 6, 2, 20, 0, False), device, torch.float32)
    got = ops.prompt_layernorm(*args)
    assert got[0].shape == got[1].shape == (0, 8, 20)
    for g in torch.autograd.grad(got, args, [torch.ones_like(t) for t in got]):
        assert not g.any()


@pytest.mark.parametrize("shape", [(1, 5, 3, 20, 2, False), SHAPES[4]], ids=str)
def test_opcheck(shape, device):
    args = make(shape, device, torch.float32)
    args[1] = args[1] if shape[5] else args[1].detach()[None].requires_grad_()
    torch.library.opcheck(layernorm._prompt_layernorm, (*args, 1e-5, shape[4]))


def test_compile_and_export(device):
    class Module(torch.nn.Module):
        def forward(self, x, prompts, gamma, beta):
            tokens, normed = ops.prompt_layernorm(x, prompts, gamma, beta, replace=1)
            return tokens + normed

    args = make((2, 6, 2, 20, 0, False), device, torch.float32, requires_grad=False)
    want = Module()(*args)
    torch.testing.assert_close(torch.compile(Module(), fullgraph=True, backend="aot_eager")(*args), want)
    exported = torch.export.export(Module(), tuple(args))
    assert "splip.prompt_layernorm" in exported.graph_module.code
    torch.testing.assert_close(exported.module()(*args), want)
    with ops.reference_only():
        plain = torch.export.export(Module(), tuple(args))
    assert "splip" not in plain.graph_module.code
    torch.testing.assert_close(plain.module()(*args), want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 6)}, r"x must be \[B, L, D\].*\[2, 6\]"),
        ({"x": torch.zeros(2, 6, 20, dtype=torch.float64)}, "x must be float32.*float64"),
        ({"prompts": torch.zeros(2, 19)}, r"prompts must be .*\[2, 19\]"),
        ({"prompts": torch.zeros(3, 2, 20)}, r"prompts must be .*\[3, 2, 20\]"),
        ({"prompts": torch.zeros(2, 20, dtype=torch.bfloat16)}, "prompts must be torch.float32"),
        ({"gamma": torch.zeros(19)}, r"gamma must be float32 \[20\]"),
        ({"beta": torch.zeros(20, dtype=torch.bfloat16)}, r"beta must be float32 \[20\], got torch.bfloat16"),
        ({"replace": 6}, "replace must be between 0 and L - 1 = 5, got 6"),
        ({"gamma": torch.zeros(20, device="meta")}, "different devices.*gamma on meta"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_rejects_bad_arguments(change, message):
    args = dict(x=torch.zeros(2, 6, 20), prompts=torch.zeros(2, 20), gamma=torch.zeros(20), beta=torch.zeros(20))
    with pytest.raises(ValueError, match=message):
        ops.prompt_layernorm(**{**args, **change})


def test_rows_that_cuda_takes(monkeypatch):
    """Whole vectors that fit a warp's registers; with a gradient, those whose sums fit too."""
    monkeypatch.setattr(_C, "cuda_norm_bytes", 4096)
    monkeypatch.setattr(_C, "cuda_norm_gradients", 1024)
    for dtype, D, grad, fits in (
        (torch.float32, 768, True, True),
        (torch.float32, 1024, True, True),
        (torch.float32, 1028, False, False),
        (torch.float32, 18, False, False),
        (torch.float16, 20, False, False),
        (torch.float16, 1280, False, True),
        (torch.bfloat16, 1280, True, False),
        (torch.bfloat16, 2056, False, False),
    ):
        x, gamma = torch.empty(1, 2, D, dtype=dtype), torch.empty(D, requires_grad=grad)
        assert layernorm._rows_fit_cuda(x, gamma) is fits, (dtype, D, grad)
        with torch.no_grad():
            assert layernorm._rows_fit_cuda(x, gamma) is (D * x.element_size() <= 4096 and D % 8 == 0)
    assert not layernorm._rows_fit_cuda(torch.empty(0, 2, 8))
