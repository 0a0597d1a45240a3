import pytest
import torch

from splip.data.augment import augment


def pictures():
    images = torch.full((8, 3, 32, 32), 255, dtype=torch.uint8)
    images[:, :, 8:24, 8:24] = torch.tensor([200, 30, 90], dtype=torch.uint8).view(1, 3, 1, 1)
    images[:4, :, 8:24, 8:24] = 0
    return images, torch.arange(8) < 4


@pytest.mark.parametrize("strength", ["none", "light", "strong"])
def test_augment(strength):
    images, is_sketch = pictures()
    first, again, other = (augment(images, is_sketch, strength, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert first.shape == images.shape and first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert torch.equal(first, images) == (strength == "none")
    assert torch.equal(first, other) == (strength == "none")
    sketches = first[:4].int()
    assert (sketches.amax(1) == sketches.amin(1)).all()  # sketches stay grey
    assert (first[:, :, 0, 0] == 255).float().mean() > 0.8  # the background stays white


def test_white_stays_white():
    """What is moved in from outside, cut out or recoloured is paper."""
    images = torch.full((64, 3, 16, 16), 255, dtype=torch.uint8)
    out = augment(images, torch.arange(64) < 32, "strong", torch.Generator().manual_seed(0))
    assert (out == 255).all()


def test_parts_of_a_batch_get_what_the_whole_gets():
    images, is_sketch = pictures()
    whole = augment(images, is_sketch, "strong", torch.Generator().manual_seed(0))
    rows = torch.tensor([1, 5, 6])
    part = augment(images[rows], is_sketch[rows], "strong", torch.Generator().manual_seed(0), rows, 8)
    torch.testing.assert_close(part.int(), whole[rows].int(), atol=1, rtol=0)


def test_pairs_are_mirrored_together():
    """A triplet's three pictures lean to the same side."""
    images = torch.full((30, 3, 32, 32), 255, dtype=torch.uint8)
    images[:, :, 12:20, :12] = 0  # ink on the left
    out = augment(images, torch.arange(30) < 10, "light", torch.Generator().manual_seed(0), pairs=True)
    left = ((255 - out[:, 0, :, :16].float()).sum((1, 2)) > (255 - out[:, 0, :, 16:].float()).sum((1, 2))).view(3, 10)
    assert (left == left[:1]).all() and left.any() and not left.all()


def test_pictures_stay_on_their_device():
    """With the shapes of a GPU's tensors, and no GPU: an operation on two devices would fail."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(6, 3, 32, 32, dtype=torch.uint8, device="cuda")
        for strength in ("light", "strong"):
            out = augment(images, torch.arange(6) < 2, strength, torch.Generator().manual_seed(0), pairs=True)
            assert out.device.type == "cuda" and out.shape == images.shape and out.dtype == torch.uint8
