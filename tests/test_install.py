"""What an installation must hold, and what the build promises."""

import importlib.metadata
import importlib.resources
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch

import splip
import splip.export
from splip import _C
from splip.ops import dispatch

# The checkout, if these tests are in one.
ROOT = next((folder for folder in Path(__file__).resolve().parents if (folder / "setup.py").is_file()), Path())


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
        "weights/splip-tiny-3.safetensors",
        "weights/splip-tiny-3-sets.csv",
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


# ---- The build ----

needs_source = pytest.mark.skipif(Path() == ROOT, reason="not in a checkout")


def program(name):
    """A tool of this environment or of the machine."""
    here = Path(sys.executable).parent
    found = shutil.which(name, path=os.pathsep.join([str(here), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"no {name}")
    return found


def script(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def decide(tmp_path):
    """What cmake/cuda_archs.cmake decides: (architectures, why), or its error. GPUs and nvcc are made up."""

    def run(cuda="auto", archs="", gpus="", smi=0, nvcc="12.8"):
        script(tmp_path / "bin/nvidia-smi", f"printf '{gpus}'; exit {smi}")
        compiler = script(tmp_path / "bin/nvcc", f"echo {' '.join(f'compute_{a}' for a in NVCC[nvcc])}") if nvcc else ""
        (tmp_path / "CheckLanguage.cmake").write_text(
            f"macro(check_language)\n  set(CMAKE_CUDA_COMPILER '{compiler}')\nendmacro()\n".replace("'", '"')
        )
        (tmp_path / "decide.cmake").write_text(
            f"""
            cmake_minimum_required(VERSION 3.20)
            set(CMAKE_MODULE_PATH "{tmp_path}")
            macro(enable_language)
              set(CMAKE_CUDA_COMPILER_VERSION {nvcc})
              set(CUDAToolkit_VERSION {nvcc})
            endmacro()
            macro(find_package)
            endmacro()
            set(SPLIP_CUDA "{cuda}")
            set(SPLIP_CUDA_ARCHS "{archs}")
            include("{ROOT}/cmake/cuda_archs.cmake")
            message("${{splip_archs}}|${{splip_why}}")
            """
        )
        path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
        command = [program("cmake"), "-P", tmp_path / "decide.cmake"]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path})
        if done.returncode:
            return " ".join(done.stderr.partition("(message):")[2].partition("Call Stack")[0].split())
        return tuple(done.stderr.strip().split("|"))

    return run


NVCC = {
    "11.7": (35, 50, 70, 75, 80, 86, 87),
    "12.4": (50, 70, 75, 80, 86, 87, 89, 90),
    "12.8": (50, 75, 80, 86, 87, 89, 90, 100, 101, 120),
}


@needs_source
def test_cuda_code_is_for_the_gpus_here(decide):
    for gpus, nvcc, archs in (
        ("8.0", "12.8", "80"),
        ("9.0\\n9.0\\n9.0\\n", "12.8", "90a"),  # wgmma
        ("9.0\\n8.6\\n", "12.8", "86;90a"),
        ("12.0\\n8.9\\n", "12.8", "89;120"),
        ("7.5\\n8.0\\n", "12.8", "80"),  # one of them is too old
        ("10.3", "12.8", "100"),  # newer than this nvcc, of a generation that it knows
        ("12.0", "12.4", "90-virtual"),  # of one that it does not
        ("9.0", "11.7", "86-virtual"),
        ("8.7", "12.8", "87"),
        ("8.6", "11.7", "86"),
    ):
        assert decide(gpus=gpus, nvcc=nvcc) == (archs, f"the GPUs of this machine, CUDA {nvcc}"), gpus
        assert decide(gpus=gpus, nvcc=nvcc, archs="native") == (archs, f"SPLIP_CUDA_ARCHS, CUDA {nvcc}"), gpus
        for major, minor in re.findall(r"([89]|1\d)\.(\d)", gpus):
            assert dispatch.runs_on(archs.split(";"), int(major), int(minor)), gpus


@needs_source
def test_no_cuda_code_without_a_gpu(decide):
    none = ("", "no GPU here; SPLIP_CUDA=on builds it anyway")
    assert decide() == none
    if not os.path.exists("/dev/nvidiactl"):
        assert decide(smi=9) == decide(smi=127) == decide(gpus="NVIDIA-SMI has failed. 12.8", smi=9) == none
    assert decide(gpus="7.5") == ("", "the GPU here, sm_75, is too old: the kernels need sm_80 or newer")
    assert decide(gpus="8.0", nvcc="")[0] == "" and "put one on PATH" in decide(gpus="8.0", nvcc="")[1]
    assert decide("off", gpus="8.0") == decide("off", archs="80") == ("", "SPLIP_CUDA=off")


@needs_source
def test_cuda_code_that_is_asked_for(decide):
    for nvcc, archs in (("12.8", "80;86;89;90a;100;120"), ("12.4", "80;86;89;90a"), ("11.7", "80;86")):
        assert decide("on", nvcc=nvcc) == (archs, f"SPLIP_CUDA=on, CUDA {nvcc}")
        assert decide("on", nvcc=nvcc, gpus="8.0")[0] == archs
    for cuda in ("on", "auto"):  # with a GPU or not
        assert decide(cuda, archs="80;90a")[0] == decide(cuda, archs="80;90a", gpus="8.6")[0] == "80;90a"


@needs_source
def test_wrong_cuda_settings_end_in_one_line(decide):
    for settings, message in (
        ({"cuda": "maybe"}, "SPLIP_CUDA must be auto, on or off, got 'maybe'"),
        ({"archs": "80;hopper"}, "SPLIP_CUDA_ARCHS: 'hopper' is no architecture"),
        ({"archs": "8.0"}, "SPLIP_CUDA_ARCHS: '8.0' is no architecture"),
        ({"archs": "all"}, "SPLIP_CUDA_ARCHS: 'all' is no architecture"),
        ({"archs": "75"}, "SPLIP_CUDA_ARCHS: '75' is too old"),
        ({"archs": "80;120", "nvcc": "12.4"}, "SPLIP_CUDA_ARCHS: nvcc 12.4 does not know '120', only 50 70"),
        ({"archs": "native"}, "SPLIP_CUDA_ARCHS=native, but there is no GPU here"),
        ({"archs": "native", "gpus": "7.5"}, "SPLIP_CUDA_ARCHS=native, but no GPU here (sm_75) is"),
        ({"archs": "80", "nvcc": ""}, "SPLIP_CUDA_ARCHS asks for CUDA code, but no nvcc"),
        ({"cuda": "on", "nvcc": ""}, "SPLIP_CUDA=on asks for CUDA code, but no nvcc"),
    ):
        assert decide(**settings).startswith(f"splip: {message}"), settings


@pytest.fixture
def checkout(tmp_path):
    """A copy of what a wheel is made of, after work in it."""
    if (
        importlib.util.find_spec("setuptools") is None
        or int(importlib.metadata.version("setuptools").split(".")[0]) < 77
    ):
        pytest.skip("no setuptools, or one that is too old to build splip")
    pytest.importorskip("pybind11")
    place = tmp_path / "checkout"
    made = shutil.ignore_patterns("__pycache__", "*.so")
    for folder in ("python", "export", "cmake"):
        shutil.copytree(ROOT / folder, place / folder, ignore=made)
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    return place


def build_wheel(checkout, out, **environment):
    """As pip does; the compiler and CMake are those of PATH."""
    code = f"import setuptools.build_meta as b; b.build_wheel({str(out)!r})"
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": here} | environment
    return subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, env=environment)


@needs_source
def test_wheel_holds_the_tree_and_nothing_else(checkout, tmp_path):
    """Every file of python/splip and export; nothing of an earlier build or of a run in the checkout."""
    want = {
        str(prefix / path.relative_to(folder))
        for folder, prefix in ((checkout / "python/splip", Path("splip")), (checkout / "export", Path("splip/export")))
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert {"splip/py.typed", "splip/_C.pyi", "splip/export/__init__.py", "splip/configs/sample.yaml"} <= want
    for name in ("python/splip/_C.abi3.so", "python/splip/serve/page/__pycache__/a.pyc", "export/__pycache__/b.pyc"):
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).touch()
    version = "".join(str(v) for v in sys.version_info[:2])
    stale = checkout / f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/splip/moved_{version}.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    cmake = script(tmp_path / "bin/cmake", "exit 0")  # compiles nothing
    done = build_wheel(checkout, tmp_path, PATH=os.pathsep.join([str(cmake.parent), os.environ["PATH"]]))
    assert done.returncode == 0, done.stderr
    assert "Package would be ignored" not in done.stderr and len(done.stderr.splitlines()) < 20, done.stderr
    (wheel,) = tmp_path.glob("splip-*.whl")
    got = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert got == want


@needs_source
def test_a_build_that_cannot_be_ends_in_one_line(checkout, tmp_path):
    program("cmake"), program("ninja"), program("c++")
    done = build_wheel(checkout, tmp_path, SPLIP_CUDA="Maybe")
    assert done.returncode == 1
    last = [line for line in done.stderr.splitlines() if line and not line.startswith("warning: ")]
    assert last == ["splip: SPLIP_CUDA must be auto, on or off, got 'maybe'"] and "Traceback" not in done.stdout
