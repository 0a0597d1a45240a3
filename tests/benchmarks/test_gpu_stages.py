"""The code of the GPU suite's stages, run on the CPU in place of a card, with plain PyTorch in place of the kernels.

What they measure then means nothing; that they run to their end, and notice a wrong result, does.
"""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu import (  # noqa: E402
    ceilings,
    compiled,
    cuda_tests,
    encoder,
    galleries,
    headline,
    layernorm,
    patchify,
    profile,
    rounding,
    sanitizer,
    small_cases,
    smoke,
    sweep,
    timing,
)  # fmt: skip
from gpu.worker import Job, Skipped  # noqa: E402

from splip import _C, ops  # noqa: E402
from splip.ops import reference, topk  # noqa: E402

CEILING = {"copy_GB_per_s": 3000.0, "read_GB_per_s": 3200.0, "bf16_TFLOP_per_s": 800.0, "int8_TOP_per_s": 1500.0}


class OnCpu(TorchFunctionMode):
    """What asks for a GPU gets the CPU."""

    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        args = tuple("cpu" if isinstance(a, (str, torch.device)) and str(a) == "cuda" else a for a in args)
        return function(*args, **kwargs)


class Event:
    def __init__(self, enable_timing):
        pass

    record = synchronize = lambda self: None

    def elapsed_time(self, end):
        return 1.0


def no_graph(graph):
    graph.replay = None
    raise RuntimeError("no CUDA graph here")


def searched_on_cpu(queries, gallery, k, allowed=None, scan="automatic"):
    if isinstance(gallery, ops.EightBitGallery):
        if gallery.rows is None:
            return topk._approximate_topk(queries, gallery, k, allowed)
        gallery = gallery.rows
    if isinstance(gallery, ops.PreparedGallery):
        gallery = gallery.rows[:, : gallery.width]
    if allowed is None and bool(queries.isfinite().all()) and len(gallery) > k:
        return galleries.exact_topk(queries, gallery, k)
    return reference.cosine_topk(queries, gallery, k, allowed)


@pytest.fixture
def card(monkeypatch):
    properties = types.SimpleNamespace(
        name="a card", multi_processor_count=2, L2_cache_size=1 << 10, total_memory=1 << 40
    )
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", types.SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "graph", no_graph)
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(topk, "_cuda_topk", searched_on_cpu)
    monkeypatch.setattr(galleries, "POOL", 64)
    with OnCpu():
        yield


@pytest.fixture
def job(tmp_path):
    told = {"scratch": tmp_path, "out": tmp_path, "site": tmp_path, "shared": tmp_path, "arch": "90a", "module": None,
            "leave_out": [], "ceiling": CEILING, "seconds": 1000, "results": tmp_path / "results"}  # fmt: skip
    return Job(told)


def results(job):
    """All that a stage has found: rows, facts, what is wrong."""
    lines = [json.loads(line) for line in job._results.read_text().splitlines()]
    facts = {}
    for line in lines:
        facts |= line.get("found", {})
    return [s["row"] for s in lines if "row" in s], facts, [s["wrong"] for s in lines if "wrong" in s]


def test_ceilings(card, job, monkeypatch):
    monkeypatch.setattr(ceilings, "COPIED", 1 << 12)
    monkeypatch.setattr(ceilings, "READ", 1 << 12)
    monkeypatch.setattr(ceilings, "SIDE", 32)
    ceilings.ceilings(job)
    _, facts, wrong = results(job)
    assert CEILING.keys() < facts.keys() and not wrong
    assert facts["read_GB_per_s"] == max(facts["reading"].values()) and len(facts["reading"]) == 3


def small_headline(monkeypatch):
    series = [
        headline.Series(3000, 16, "float16", (1, 8, 20), eight=True),
        headline.Series(2000, 24, "bfloat16", (1, 4)),
    ]
    monkeypatch.setattr(headline, "SERIES", series)
    monkeypatch.setattr(headline, "QUERIES", (1, 8, 20))
    monkeypatch.setattr(galleries, "CHUNK_BYTES", 30_000)


@pytest.mark.exhaustive
def test_headline(card, job, monkeypatch):
    small_headline(monkeypatch)
    headline.headline(job)
    rows, _, wrong = results(job)
    assert len(rows) == 8 and not wrong and all(row["recall"] == 1 for row in rows)
    assert rows[1]["sizes"] == "Q=1 N=3,000 D=16 K=10 int8" and rows[1]["times"]["torch"] == rows[0]["times"]["torch"]
    many = rows[4]
    assert many["times"]["torch in chunks"]["rows"] in galleries.chunk_sizes(20, 3000, 10, 2)
    assert many["peers_recall"].keys() == {"torch", "torch in chunks"}


def test_headline_notices_a_missed_row_and_the_end_of_its_time(card, job, monkeypatch):
    small_headline(monkeypatch)

    def misses(queries, gallery, k, *more):
        scores, ids = searched_on_cpu(queries, gallery, k + 1, *more)
        return scores[:, 1:], ids[:, 1:]

    monkeypatch.setattr(topk, "_cuda_topk", misses)
    monkeypatch.setattr(headline, "SERIES", headline.SERIES[1:])
    headline.headline(job)
    assert len(results(job)[2]) == 2

    def fails(*arguments):
        raise ValueError("not this")

    monkeypatch.setattr(topk, "_cuda_topk", fails)
    headline.headline(job)  # each case by itself
    assert len(results(job)[2]) == 4 and "Q=4: ValueError: not this" in results(job)[2][-1]
    monkeypatch.setattr(job, "left", lambda: 1.0)
    headline.headline(job)
    assert "the time is up" in str(results(job)[1])


@pytest.mark.exhaustive
def test_sweep(card, job, monkeypatch):
    monkeypatch.setattr(sweep, "N", 2000)
    monkeypatch.setattr(sweep, "SWEEP", (1, 16))
    sweep.sweep(job)
    _, facts, wrong = results(job)
    assert not wrong and facts["int8"]["queries"].keys() == {"1", "16"}
    for dtype in sweep.DTYPES:
        assert facts[dtype]["queries"]["1"]["ms"].keys() == set(topk.SCANS) - {"automatic"}


@pytest.mark.parametrize("scan", ["tiles128", small_cases.OTHER])
def test_small_cases(card, scan, capsys):
    assert small_cases.main(scan) == 0, capsys.readouterr().out
    assert f"small cases of {scan}: all right" in capsys.readouterr().out


def test_small_cases_notice_wrong_answers(card):
    case = list(small_cases.search_cases(torch.float32))[6]
    assert case.name == "odd queries" and len(case.queries) == 70
    want = reference.cosine_topk(case.queries, case.gallery, 10)
    assert small_cases.differs(case, want, want) is None
    scores, ids = (t.clone() for t in want)
    scores[7, 3] += 1e-5
    assert "scores off by 1e-05" in small_cases.differs(case, (scores, ids), want)
    ids[7] = ids[8].clone()
    ids[9, 1] = ids[9, 0]
    assert small_cases.differs(case, (want[0], ids), want) == "a row twice"
    ids = want[1].clone()
    ids[1] = ids[1] + 1  # of a zero query, all of whose scores are 0
    assert "every score is the same" in small_cases.differs(case, (want[0], ids), want)
    masked = case._replace(allowed=torch.zeros(6000, dtype=torch.bool))
    assert small_cases.differs(masked, want, want) == "rows that are not allowed"
    assert small_cases.differs(case, (want[0], want[1].flip(0)), want) is not None


def test_wgmma(card, job, monkeypatch):
    monkeypatch.setattr(smoke, "TRIALS", [(3, 300, 16)])
    monkeypatch.setattr(_C, "cuda_has_wgmma", lambda device: False)
    with pytest.raises(Skipped):
        smoke.wgmma(job)
    assert results(job)[1]["leave_out"] == ["wgmma"]
    monkeypatch.setattr(_C, "cuda_has_wgmma", lambda device: True)
    smoke.wgmma(job)
    assert results(job)[1]["leave_out"] == []
    monkeypatch.setattr(
        topk, "_cuda_topk", lambda q, g, k, a, scan: searched_on_cpu(q if scan != "wgmma" else q.flip(0), g, k)
    )
    smoke.wgmma(job)
    assert results(job)[1]["leave_out"] == ["wgmma"] and len(results(job)[2]) == 1


def test_smoke_and_memcheck_leave_out_what_fails(card, job, monkeypatch):
    monkeypatch.setattr(smoke, "run_small_cases", lambda job, name, *more: "it hangs" if name == "tiles64" else None)
    smoke.smoke(job)
    _, facts, wrong = results(job)
    assert facts["leave_out"] == ["tiles64"] and len(wrong) == 1 and facts["stream"] == "all right"
    monkeypatch.setattr(sanitizer.shutil, "which", lambda tool: None)
    with pytest.raises(Skipped, match="no compute-sanitizer"):
        sanitizer.memcheck(job)


def test_rounding(card, job, monkeypatch):
    monkeypatch.setattr(rounding, "ROWS", 100)
    monkeypatch.setattr(rounding, "WIDTHS", (16, 40))
    monkeypatch.setattr(rounding, "matmul_scores", lambda q, g: q.float() @ g.float().T)
    # A build with CUDA code has it also where no card is; without one there is nothing to launch it on.
    monkeypatch.setattr(rounding, "_C", types.SimpleNamespace())
    rounding.rounding(job)
    _, facts, wrong = results(job)
    assert facts["ours"] == "not in this build" and not wrong
    assert 0 < facts["torch.matmul bfloat16 D=40 positive"]["of_bound"] < 1
    monkeypatch.setattr(rounding, "matmul_scores", lambda q, g: q.float() @ g.float().T + 0.01)
    rounding.rounding(job)
    assert len(results(job)[2]) == 12


def test_layernorm_and_patchify(card, job, monkeypatch):
    monkeypatch.setattr(layernorm, "LAYERNORM", [(9, 5, 2, 16, "bfloat16"), (9, 5, 2, 16, "float32")])
    monkeypatch.setattr(patchify, "PATCHIFY", [(3, 24, 8, "float32")])
    monkeypatch.setattr(layernorm, "copies_beyond_cache", lambda moved: 2)
    layernorm.layernorm(job)
    patchify.patchify(job)
    rows, _, wrong = results(job)
    assert [row["op"] for row in rows] == ["prompt_layernorm", "prompt_layernorm + backward"] * 2 + ["patchify"] * 2
    assert not wrong and all("median" in took for row in rows for took in row["times"].values())


def test_profile_without_ncu(card, job, monkeypatch):
    monkeypatch.setattr(profile, "N", 500)
    monkeypatch.setattr(profile, "kernel_times", lambda call: {"kernel": float(len(call()[0]))})
    monkeypatch.setattr(profile.shutil, "which", lambda tool: None)
    monkeypatch.setattr(profile, "SHARES", ((4, "stream", "float16"), (5, "wgmma", "int8"), (6, "tiles128", "float32")))
    with pytest.raises(Skipped, match="no ncu"):
        profile.ncu(job)
    assert [times["kernel"] for times in results(job)[1].values()] == [4, 5, 6]


def test_compiled(card, job, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(layernorm, "LAYERNORM", [(9, 5, 2, 16, "bfloat16")])
    monkeypatch.setattr(patchify, "PATCHIFY", [(3, 24, 8, "float32")])
    monkeypatch.setattr(layernorm, "copies_beyond_cache", lambda moved: 2)
    monkeypatch.setattr(compiled, "TOPK", ((4, 1000, 16),))
    compiled.compiled(job)
    rows, _, wrong = results(job)
    assert len(rows) == 5 and not wrong and all("median" in row["times"]["torch.compile"] for row in rows)


@pytest.mark.exhaustive
def test_training_and_encoder(card, job, monkeypatch):
    pytest.importorskip("open_clip")
    for name, value in {
        "BACKBONE": "splip-tiny",
        "BATCH": 2,
        "ENCODED": (1,),
        "REPEATS": 1,
        "WHOLE": 3,
        "PRECISIONS": ("fp32", "bf16"),
    }.items():
        monkeypatch.setattr(encoder, name, value)
    for name, value in {"reset_peak_memory_stats": None, "max_memory_allocated": 12}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    encoder.training(job)
    _, facts, wrong = results(job)
    whole = [f"whole step, splip-tiny, batch 3, {precision}" for precision in ("fp32", "bf16")]
    assert not wrong
    assert set(facts) == {"training step, splip-tiny, batch 2", "encode_sketch, splip-tiny, batch 1", *whole}
    assert all(facts[name]["peak_bytes"] == 12 and facts[name]["ms"] > 0 for name in whole)
    monkeypatch.setattr(encoder, "NEEDED", ("no_such_module",))
    for stage in (encoder.training, encoder.tensorrt):
        with pytest.raises(Skipped, match="no module no_such_module"):
            stage(job)


def test_what_runs_under_ncu(card, monkeypatch, capsys):
    monkeypatch.setattr(profile, "N", 500)
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: print("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: print("stop"))
    profile.under_ncu({"wgmma"})
    assert capsys.readouterr().out.split("\n")[:2] == ["start", "stop"]


TESTS = """
import time, pytest
pytestmark = pytest.mark.cuda

def test_passes(): pass
def test_fails(): assert not "this"
def test_hangs(): time.sleep({seconds})
"""


@pytest.fixture
def few_plugins(monkeypatch):
    """In the pytest that is started: those of this environment take longer than the tests."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p xdist")


@pytest.mark.exhaustive
def test_the_cuda_tests_and_their_report(job, monkeypatch, tmp_path, few_plugins):
    (tmp_path / "test_some.py").write_text(TESTS.format(seconds=0))
    monkeypatch.setattr(cuda_tests, "TESTS", (tmp_path / "test_some.py",))
    monkeypatch.setattr(cuda_tests, "WORKERS", 2)
    cuda_tests.cuda_tests(job)
    _, facts, wrong = results(job)
    assert facts["summary"] == "3 tests, 1 failures, 0 errors, 0 skipped"
    assert wrong == ["tests: pytest's exit code is 1"]
    assert "hostname" not in (tmp_path / "junit.xml").read_text()


@pytest.mark.exhaustive
def test_cuda_tests_that_hang_leave_the_report_of_the_others(job, monkeypatch, tmp_path, few_plugins):
    (tmp_path / "test_some.py").write_text(TESTS.format(seconds=1000))
    monkeypatch.setattr(cuda_tests, "TESTS", (tmp_path / "test_some.py",))
    monkeypatch.setattr(cuda_tests, "WORKERS", 2)
    monkeypatch.setattr(job, "left", lambda: 55.0)  # two processes import torch first
    cuda_tests.cuda_tests(job)
    _, facts, wrong = results(job)
    assert wrong[0] == "tests: the time was up" and facts["tests"] >= 2 and facts["failures"] >= 1
