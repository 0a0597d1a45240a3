"""Seed, poison, and the devices that every op test runs on."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

from splip import _C


@pytest.fixture(autouse=True)
def seed_and_poison():
    """torch.empty comes back as NaN, so a kernel that misses an element fails its test."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["cpu-scalar", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    """A torch device, once per instruction set of the kernels and once for a GPU."""
    if request.param == "cuda":
        if not _C.has_cuda:
            pytest.skip("splip was built without CUDA")
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        return torch.device("cuda")
    assert _C.isa() == request.param.removeprefix("cpu-")
    return torch.device("cpu")
