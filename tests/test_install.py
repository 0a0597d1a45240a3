"""What an installation must hold, and what the build promises."""

import importlib.metadata
import importlib.resources
import subprocess
import sys

import pytest
import torch

import splip
import splip.export
from splip import _C
from splip.ops import dispatch


def test_poison():
    """conftest.py makes fresh tensors NaN; without it the op tests would miss unwritten elements."""
    assert torch.empty(3).isnan().all() and torch.zeros(1).new_empty(3).isnan().all()


def test_version_is_one():
    assert importlib.metadata.version("splip") == splip.__version__ == _C.version


def test_package_data():
    files = importlib.resources.files("splip")
    for name in (
        "py.typed",
        "_C.pyi",
        "configs/sample.yaml",
        "configs/models/splip-tiny.json",
        "sample_data/fluent.webp",
    ):
        assert files.joinpath(name).is_file(), name
    assert splip.__file__ and splip.export.__file__


def test_native_core_does_not_link_torch():
    """It must build without torch and load beside any version of it."""
    out = subprocess.run(["ldd", _C.__file__], capture_output=True, text=True).stdout
    assert "libc" in out and "torch" not in out and "libcuda" not in out and "cudart" not in out


def test_core_loads_without_a_driver():
    code = "import splip._C as c\ntry:\n  print(len(c.cuda_devices()))\nexcept RuntimeError as e:\n  print(e)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip()
    if not torch.cuda.is_available() and _C.has_cuda:
        assert "cuda" in run.stdout


def test_native_arguments_go_by_name():
    """A wrong name or type is an error that says which; nothing goes by its place among twenty numbers."""
    none = {"queries": 0, "gallery": 0, "scores": 0, "indices": 0, "scratch": 0, "Q": 0, "N": 0, "D": 0, "K": 0}
    given = none | {"dtype": 0, "device": -1, "stream": 0, "threads": 1}
    _C.cosine_topk(**given)  # no queries: nothing to do
    for wrong, message in (
        ({"querys": 0}, "unknown argument: querys"),
        ({"Q": "a"}, "Q: .*str"),
        ({"N": 2**70}, "N: .*too big"),
        ({"scratch": None}, "scratch: .*integer"),
    ):
        with pytest.raises(TypeError, match=message):
            _C.cosine_topk(**given | wrong)
    for name in given:
        with pytest.raises(TypeError, match=f"missing argument: {name}$"):
            _C.cosine_topk(**{key: value for key, value in given.items() if key != name})
    with pytest.raises(TypeError):
        _C.cosine_topk(*given.values())


def test_gpus_that_a_build_runs_on():
    """Code with an "a" is for one GPU alone, its PTX too: a newer one has to take PyTorch."""
    for archs, runs, not_on in (
        ("90a", [(9, 0)], [(8, 0), (10, 0), (12, 0)]),
        ("80 90a", [(8, 0), (8, 6), (8, 9), (9, 0)], [(7, 5), (10, 0)]),
        ("86", [(8, 6), (8, 9), (9, 0), (12, 0)], [(8, 0), (7, 5)]),
        ("80-real 86-real", [(8, 0), (8, 6), (8, 9)], [(9, 0)]),
        (
            "80 86 89 90a 100 120",
            [(8, 0), (8, 7), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1), (13, 0)],
            [(7, 5), (11, 0)],
        ),
        ("90-virtual", [(9, 0), (10, 0)], [(8, 9)]),
        ("100f", [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
        ("native", [(9, 0)], []),
    ):
        for capability in runs:
            assert dispatch.runs_on(archs.split(), *capability), (archs, capability)
        for capability in not_on:
            assert not dispatch.runs_on(archs.split(), *capability), (archs, capability)


def test_a_build_for_another_gpu_says_so_once(monkeypatch):
    monkeypatch.setattr(_C, "cuda_archs", "90a")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    dispatch._has_code_for.cache_clear()
    try:
        with pytest.warns(UserWarning, match="built for sm_90a, which an sm_100 cannot run: PyTorch is used") as seen:
            assert not any(dispatch._has_code_for(torch.device("cuda", 0)) for _ in range(3))
        assert len(seen) == 1 and "\n" not in str(seen[0].message)
    finally:
        dispatch._has_code_for.cache_clear()
