import pytest
import torch

from splip.models.jigsaw import JigsawHead, permutation_bank


@pytest.mark.parametrize(("count", "grid"), [(100, 3), (23, 2), (2, 3)])
def test_bank(count, grid):
    bank = permutation_bank(count, grid)
    assert bank.shape == (count, grid * grid) and bank.dtype == torch.int64
    assert torch.equal(bank.sort(dim=1).values, torch.arange(grid * grid).expand(count, -1))
    assert len(bank.unique(dim=0)) == count
    assert not (bank == torch.arange(grid * grid)).all(dim=1).any()  # the identity shuffles nothing


def distances(bank):
    d = (bank[:, None] != bank[None]).sum(-1)
    return d[~torch.eye(len(bank), dtype=torch.bool)]


def test_bank_is_spread_out():
    """Far better than chance: a hundred random permutations have two that differ in few places."""
    ours = distances(permutation_bank(100))
    chance = distances(torch.stack([torch.randperm(9) for _ in range(100)]))
    assert ours.min() >= 6 > chance.min() and ours.float().mean() > chance.float().mean()
    assert distances(permutation_bank(9)).min() == 9  # a Latin square exists and is found


def test_bank_follows_the_seed():
    assert torch.equal(permutation_bank(20, seed=3), permutation_bank(20, seed=3))
    assert not torch.equal(permutation_bank(20, seed=3), permutation_bank(20, seed=4))


@pytest.mark.parametrize(("count", "grid"), [(1, 3), (24, 2), (10, 4), (400_000, 3)])
def test_bank_that_cannot_be(count, grid):
    with pytest.raises(ValueError, match="must be"):
        permutation_bank(count, grid)


def test_head_tells_whole_from_pieces():
    head = JigsawHead(patches=4, visual_width=16, permutations=7, width=64)
    a, b = torch.randn(3, 5, 16), torch.randn(3, 5, 16)
    assert head(a, b).shape == (3, 7)
    assert not torch.allclose(head(a, b), head(b, a))
    assert not torch.allclose(head(a, b), head(a, b.flip(1)))  # order of the patches counts
