"""The GPU suite's bookkeeping, which needs no GPU: floors, stages that do not fit, the report."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from splip import ops

ROOT = Path(__file__).resolve().parents[1]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def suite():
    return load(ROOT / "benchmarks/gpu_suite.py")


@pytest.fixture(scope="module")
def resources():
    return load(ROOT / "tools/cuda_resources.py")


CEILING = {"copy_GB_per_s": 3000.0, "bf16_TFLOP_per_s": 800.0, "int8_TOP_per_s": 1500.0}


def test_floor_is_the_longer_of_bytes_and_products(suite):
    few = suite.floor_of(10_000_000 * 512 * 2, 8 * 10_000_000 * 512, CEILING)
    assert few["bound"] == "memory" and few["floor_ms"] == pytest.approx(3.413, abs=1e-3)
    many = suite.floor_of(1_000_000 * 512 * 2, 4096 * 1_000_000 * 512, CEILING)
    assert many["bound"] == "arithmetic" and many["floor_ms"] == pytest.approx(5.243, abs=1e-3)
    eight_bits = suite.floor_of(1_000_000 * 520, 4096 * 1_000_000 * 512, CEILING, "int8_TOP_per_s")
    assert eight_bits["floor_ms"] == pytest.approx(2.796, abs=1e-3)


def test_stages_that_do_not_fit_or_fail_do_not_stop_the_others(suite, tmp_path, capsys):
    run = suite.Suite(seconds=100, out=tmp_path)
    assert run.stage("long", 500, lambda: 1) is None
    assert run.stage("wrong", 1, lambda: 1 / 0)["error"].startswith("ZeroDivisionError")
    assert run.failed and run.stage("right", 1, lambda: {"summary": "3 passed"}) == {"summary": "3 passed"}
    assert [s["stage"] for s in run.report["skipped"]] == ["long"]
    times = {"splip": {"median": 2.0}, "torch": {"median": 5.0}, "torch.compile": {"error": "out of memory"}}
    row = suite.row_of("cosine_topk", "Q=1", suite.floor_of(3e9, 0, CEILING), times, recall=1.0)
    assert row["of_floor"] == 0.5 and row["ratio"] == {"splip": 1.0, "torch": 2.5} and row["GB_per_s"] == 1500
    swept = {"ms": {"stream": 0.4, "tiles64": 0.5}, "best": "stream", "of_floor": 0.75}
    run.stage("sweep", 1, lambda: {"automatic": {"stream": 32}, "int8": {"queries": {8: swept}, "wrong": []}})
    run.report |= {"machine": {"gpu": "a card", "torch": "2"}, "rows": [row], "ceilings": CEILING}
    run.write()
    text = suite.markdown(json.loads((tmp_path / "gpu_suite.json").read_text()))
    assert "| int8, ms by Q | stream | tiles64 | of the floor |" in text and "| 8 | 0.400 | 0.500 | 75% |" in text
    assert "| cosine_topk | Q=1 | 2.000 | 50% | memory | torch 2.5x |" in text
    assert "- skipped long: " in text and "ZeroDivisionError" in text and "3 passed" in text


def test_every_case_has_a_floor_and_fits_the_card(suite):
    for Q, N, D, K, dtype, _ in suite.TOPK:
        size = 4 if dtype == "float32" else 2
        assert N * D * size < 12e9 and K <= 1024 and K <= N and Q <= 4096
    assert max(suite.SWEEP) <= 4096 and set(suite.SWEEP_MOST) < set(ops.SCANS)


def test_where_each_way_to_multiply_ends(suite):
    rows = {Q: {"best": best} for Q, best in ((8, "stream"), (64, "tiles64"), (32, "stream"), (256, "tiles128"))}
    assert suite.last_of_each(rows) == {"stream": 32, "tiles64": 64, "tiles128": 256}


def test_without_a_gpu_it_says_so(suite, tmp_path, monkeypatch, capsys):
    """Everything before the first CUDA call, but for the compiler, whose place its log takes."""
    monkeypatch.setattr(suite, "missing_tools", list)
    monkeypatch.setattr(suite, "build", lambda site, arch: {"arch": arch, "kernels": {}, "spilling": []})
    monkeypatch.setattr(suite, "run_tests", lambda site, seconds, collect_only: {"summary": f"listed: {collect_only}"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", "--out", str(tmp_path)])
    assert suite.main() == 3
    assert capsys.readouterr().out.rstrip().endswith("gpu_suite: no GPU")
    report = json.loads((tmp_path / "gpu_suite.json").read_text())
    assert report["stages"]["build"]["found"]["arch"] == "90a" and not report["failed"]
    skipped = {s["stage"] for s in report["skipped"]}
    assert {"sweep", "compute-sanitizer", "tensorrt"} < skipped and all(s["why"] == "no GPU" for s in report["skipped"])


def test_needs_only_torch_and_numpy():
    """The suite runs where nothing of splip's requirements is installed."""
    script = "import sys; sys.modules.update(dict.fromkeys(('PIL','tyro','yaml','rich','open_clip','scipy'))); import "
    subprocess.run([sys.executable, "-c", script + "splip.ops, splip.reference"], check=True)


def test_resources_are_read_from_the_compilers_words(resources, tmp_path):
    log = """
ptxas info    : Compiling entry function '_Z1av' for 'sm_80'
ptxas info    : Function properties for _Z1av
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 408 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90a'
ptxas info    : Function properties for _Z1bv
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""
    kernels = resources.parse(log)
    assert kernels[0] == ("sm_80", "_Z1av", 40, 2048, 0, 0)
    assert kernels[1] == ("sm_90a", "_Z1bv", 255, 0, 16, 20)
    (tmp_path / "log").write_text(log)
    tool = [sys.executable, ROOT / "tools/cuda_resources.py", "--log", tmp_path / "log"]
    run = subprocess.run(tool, capture_output=True, text=True)
    assert run.returncode == 1 and "2 kernels, 1 with a stack frame or spills" in run.stdout
    (tmp_path / "log").write_text(log.rsplit("ptxas info    : Used", 1)[0])
    run = subprocess.run(tool, capture_output=True, text=True)
    assert run.returncode == 1 and "2 kernels in the log" in run.stderr
