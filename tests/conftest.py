"""Seed, poison, and the devices that every op test runs on."""

import logging
import os
import platform

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Tests that run at a time share the cores: more threads than cores wait for each other. The kernels' own tests ask for
# two threads.
if at_a_time := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(at_a_time))))

import pytest
import torch
from drawing import draw
from levels import kernels

from splip import _C


@pytest.fixture(autouse=True)
def seed_and_poison():
    """torch.empty comes back as NaN, so a kernel that misses an element fails its test."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = False  # or a GPU's convolutions are good to three digits only
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def logs_as_before():
    """``splip serve`` sets up the logs of its process, which here is that of all tests."""
    loggers = [logging.getLogger(name) for name in ("splip.serve.process", "uvicorn")]
    before = [(one, one.handlers[:], one.propagate, one.level) for one in loggers]
    yield
    for one, handlers, propagate, level in before:
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


# From the slowest kernels to the fastest; a machine runs those that its processor has, whatever its best is.
LEVELS = ["scalar", "avx2", "avxvnni", "avx512", "amx"]

if platform.machine() in ("aarch64", "arm64"):
    LEVELS = ["scalar", "neon", "dotprod", "i8mm"]


@pytest.fixture
def two_threads():
    """At least, also where tests that run at a time have one each."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[*(f"cpu-{name}" for name in LEVELS), pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request, two_threads):
    """A torch device: the CPU with each level of kernels that it can run, and a GPU if there is one."""
    if request.param == "cuda":
        if not _C.has_cuda:
            pytest.skip("splip was built without CUDA")
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        yield torch.device("cuda")
        return
    with kernels(request.param.removeprefix("cpu-")):
        yield torch.device("cpu")


@pytest.fixture(params=[*LEVELS, "avxvnni-emulated", "amx-emulated"])
def level(request, two_threads):
    """Each level of CPU kernels that this machine can run, AVX-VNNI in AVX-512's encoding, AMX in plain C++."""
    with kernels(request.param):
        yield request.param


NAMES = ["ball", "box", "slash", "dash", "cone", "pole", "red_ball", "red-box"]


@pytest.fixture
def tree(tmp_path):
    """{sketch,photo}/<class>/*: eight classes, three sketches and two photos each."""
    root = tmp_path / "tree"
    for number, name in enumerate(NAMES):
        for i in range(3):
            draw(root / "sketch" / name / f"{i}.png", number % 6, "black", i)
        for i in range(2):
            draw(root / "photo" / name / f"{i}.jpg", number % 6, "red" if number > 5 else "blue", i + 2)
    return root


@pytest.fixture
def settings(tree, tmp_path):
    """A training run of a few steps on the tiny backbone."""
    from splip.data.config import DataConfig
    from splip.models.config import BackboneConfig, TrainConfig

    return TrainConfig(
        out=tmp_path / "run",
        data=DataConfig(root=tree, unseen=("box", "cone"), validation=("pole",)),
        backbone=BackboneConfig(name="splip-tiny"),
        steps=4,
        batch_size=4,
        eval_every=2,
        warmup=1,
        device="cpu",
    )


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """The unpacked sample data, to read."""
    from splip.data.config import SampleConfig
    from splip.data.sample import unpack

    folder = tmp_path_factory.mktemp("sample")
    unpack(SampleConfig(out=folder))
    return folder


@pytest.fixture
def cli(capsys):
    """Run a command line; returns (exit code, stdout, stderr)."""
    from splip.cli.main import main

    def run(*args):
        capsys.readouterr()
        code = main([str(a) for a in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refused(cli):
    """A command line that must end in one line on stderr and exit code 2."""

    def run(*args):
        code, _, err = cli(*args)
        assert code == 2, err
        assert err.startswith("splip: error: ") and err.count("\n") == 1, err
        return err

    return run


@pytest.fixture
def plugged():
    """What a test registers is forgotten after it."""
    from splip import plugins
    from splip.models.registry import METHODS
    from splip.train import losses, terms

    registries = (METHODS, losses.MARGINS, losses.NEGATIVES, terms.TERMS, terms.FORMS)

    def forget():
        """As in a new process."""
        for registry, known in before:
            registry._known = dict(known)
        plugins.loaded.clear()
        plugins._installed.clear()

    registries[0].names()  # those of the package
    before = [(registry, dict(registry._known)) for registry in registries]
    yield forget
    forget()
