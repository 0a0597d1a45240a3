import pytest
import torch

from splip import ops
from splip.ops import patches, reference

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
# The kernels do the same float32 operations as the reference: equal bits after rounding to the dtype.
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# B, H, W, S, grid: ViT-B/32 (224 / 3 leaves two pixels), the tiny ViT, odd sizes, one pixel, tiles of one pixel
SHAPES = [(2, 224, 224, 32, 3), (3, 64, 64, 8, 3), (2, 15, 21, 3, 4), (1, 1, 1, 1, 1), (2, 6, 6, 2, 6)]


def make(shape, device, kind="uint8", shuffle=True):
    B, H, W, _, grid = shape
    images = torch.randint(0, 256, (B, 3, H, W), dtype=torch.uint8, device=device)
    if kind == "float":
        images = (images / 255).requires_grad_()
    permutation = torch.stack([torch.randperm(grid * grid) for _ in range(B)]).to(device) if shuffle else None
    return images, permutation


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffle", "plain"])
@pytest.mark.parametrize("kind", ["uint8", "float"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, kind, shuffle, dtype, device):
    images, permutation = make(shape, device, kind, shuffle)
    args = (images, shape[3], MEAN, STD, permutation, shape[4], dtype)
    got, want = ops.patchify(*args), reference.patchify(*args)
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    if kind == "float":
        grad = torch.randn_like(got)
        (g,), (w,) = torch.autograd.grad(got, images, grad), torch.autograd.grad(want, images, grad)
        torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-6)


def test_is_the_convolution(device):
    """patches @ weight is what the patch embedding of a ViT computes."""
    images, _ = make((2, 64, 64, 8, 3), device)
    conv = torch.nn.Conv2d(3, 32, 8, 8, bias=False, device=device)
    normalised = (images / 255 - torch.tensor(MEAN, device=device).view(3, 1, 1)) / torch.tensor(
        STD, device=device
    ).view(3, 1, 1)
    want = conv(normalised).flatten(2).transpose(1, 2)
    got = ops.patchify(images, 8, MEAN, STD) @ conv.weight.flatten(1).T
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_shuffle_moves_tiles():
    """Against a loop over tiles: the meaning of the permutation, and the remainder that stays."""
    images = torch.arange(8 * 10, dtype=torch.float32).view(1, 1, 8, 10)
    permutation = torch.tensor([[3, 1, 0, 2, 8, 4, 5, 7, 6]])
    want = images.clone()
    for tile, source in enumerate(permutation[0].tolist()):
        (y, x), (v, u) = divmod(tile, 3), divmod(source, 3)
        want[..., 2 * y : 2 * y + 2, 3 * x : 3 * x + 3] = images[..., 2 * v : 2 * v + 2, 3 * u : 3 * u + 3]
    torch.testing.assert_close(reference.shuffle_tiles(images, permutation, 3), want)
    got = ops.patchify(images, 1, [0.0], [1.0], permutation)
    torch.testing.assert_close(got.view(8, 10), want[0, 0])


def test_strided_input(device):
    decoded = torch.randint(0, 256, (2, 40, 48, 3), dtype=torch.uint8, device=device)
    images = decoded.permute(0, 3, 1, 2)[:, :, 4:36, ::2][:, :, :24]  # channels last, cropped, every second column
    _, permutation = make((2, 24, 24, 8, 3), device)
    strided = permutation.T.contiguous().T
    got = ops.patchify(images, 8, MEAN, STD, strided)
    torch.testing.assert_close(got, reference.patchify(images.contiguous(), 8, MEAN, STD, permutation), rtol=0, atol=0)


@pytest.mark.parametrize("grid", [0, -1, 3_000_000_000])
def test_grid_is_not_looked_at_without_a_permutation(grid, device):
    images, _ = make((2, 16, 16, 8, 1), device)
    torch.testing.assert_close(ops.patchify(images, 8, MEAN, STD, grid=grid), ops.patchify(images, 8, MEAN, STD))


def test_empty_batch(device):
    images, _ = make((0, 16, 16, 8, 1), device, "float", shuffle=False)
    got = ops.patchify(images, 8, MEAN, STD, torch.empty(0, 9, dtype=torch.int64, device=device))
    assert got.shape == (0, 4, 192)
    assert torch.autograd.grad(got.sum(), images)[0].shape == images.shape


def test_opcheck(device):
    for kind in ("uint8", "float"):
        images, permutation = make((2, 12, 12, 4, 3), device, kind)
        for p in (permutation, None):
            torch.library.opcheck(patches._patchify, (images, p, 4, list(MEAN), list(STD), 3, torch.float32))


def test_compile_and_export(device):
    class Module(torch.nn.Module):
        def forward(self, images, permutation):
            return ops.patchify(images, 4, MEAN, STD, permutation) * 2

    args = make((2, 12, 12, 4, 3), device)
    want = Module()(*args)
    torch.testing.assert_close(torch.compile(Module(), fullgraph=True, backend="aot_eager")(*args), want)
    exported = torch.export.export(Module(), args)
    assert "splip.patchify" in exported.graph_module.code
    torch.testing.assert_close(exported.module()(*args), want)
    with ops.reference_only():
        plain = torch.export.export(Module(), args)
    assert "splip" not in plain.graph_module.code
    torch.testing.assert_close(plain.module()(*args), want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(3, 12, 12)}, r"images must be \[B, C, H, W\], got \[3, 12, 12\]"),
        ({"images": torch.zeros(2, 3, 12, 12, dtype=torch.float64)}, "images must be uint8 or float32"),
        ({"images": torch.zeros(2, 5, 12, 12)}, "1 to 4 channels, got 5"),
        ({"patch": 5}, "12 x 12 pixels cannot be cut into patches of 5"),
        ({"patch": 0}, "cannot be cut into patches of 0"),
        ({"mean": (0.5,)}, "mean and std must have 3 values, got 1 and 3"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"dtype": torch.uint8}, "dtype must be float32"),
        ({"grid": 13}, "grid must be between 1 and 12, got 13"),
        ({"permutation": torch.zeros(2, 8, dtype=torch.int64)}, r"permutation must be int64 \[2, 9\]"),
        ({"permutation": torch.arange(9).repeat(2, 1).int()}, "permutation must be int64"),
        ({"permutation": torch.stack([torch.arange(9), torch.arange(9) % 8])}, "row 1 is not a permutation of 0..8"),
        ({"permutation": torch.arange(1, 10).repeat(2, 1)}, "row 0 is not a permutation"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_rejects_bad_arguments(change, message):
    args = dict(images=torch.zeros(2, 3, 12, 12), patch=4, mean=MEAN, std=STD, permutation=torch.arange(9).repeat(2, 1))
    with pytest.raises(ValueError, match=message):
        ops.patchify(**{**args, **change})
