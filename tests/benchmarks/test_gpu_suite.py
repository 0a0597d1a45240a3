"""The GPU suite where there is no GPU: the driver with stages that fail in every way, the plan, floors, the table."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_stages  # noqa: E402
import gpu_suite  # noqa: E402
from gpu import (  # noqa: E402, I001
    build,
    cuda_tests,
    galleries,
    headline,
    plan,
    process,
    profile,
    rounding,
    sanitizer,
    suite,
    sweep,
    table,
    timing,
)

from splip.ops import reference, topk  # noqa: E402

CEILING = {"copy_GB_per_s": 3000.0, "read_GB_per_s": 3200.0, "bf16_TFLOP_per_s": 800.0, "int8_TOP_per_s": 1500.0}


# ---- the driver ----


def stage(name, limit=60, needs=(), estimate=1):
    return plan.Stage(name, f"gpu_stages.{name}", estimate, limit, needs)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A suite that finds the stages of the tests; (suite, logs so far)."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests/helpers"))
    (tmp_path / "site").mkdir()
    told = {"site": str(tmp_path / "site"), "shared": str(tmp_path), "out": str(tmp_path / "out"), "arch": "90a",
            "module": None, "leave_out": []}  # fmt: skip
    made = suite.Suite(300, tmp_path / "out", tmp_path / "scratch", told)
    return made, lambda: (tmp_path / "out/logs.txt").read_text()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.exhaustive
def test_a_stage_that_hangs_is_killed_and_what_it_had_is_kept(run, capsys):
    made, logs = run
    began = time.monotonic()
    made.run(stage("hangs", limit=12))
    assert time.monotonic() - began < 60
    entry = made.report["stages"]["hangs"]
    assert entry["error"] == "killed after 12 s" and made.failed
    assert "hangs: the last words" in logs() and [row["sizes"] for row in made.report["rows"]] == ["Q=8"]
    deadline = time.monotonic() + 20  # a signal takes effect when its process gets to run
    while alive(entry["found"]["sleeper"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(entry["found"]["sleeper"])
    assert "hangs: killed after 12 s" in capsys.readouterr().out


def test_stages_that_raise_or_die_do_not_stop_the_others(run):
    made, logs = run
    made.run(stage("raises"))
    made.run(stage("dies"))
    made.run(stage("good", needs=()))
    stages = made.report["stages"]
    assert stages["raises"]["error"].startswith("RuntimeError: CUDA error: an illegal memory access")
    assert stages["dies"]["error"] == "ended by SIGSEGV" and "error" not in stages["good"]
    assert [row["sizes"] for row in made.report["rows"]] == ["Q=32", "Q=64", "Q=1"]
    text = logs()
    assert "dies: the last words" in text and "Fatal Python error: Segmentation fault" in text
    assert "Traceback" in text and text.index("==== raises") < text.index("==== dies") < text.index("good begins")
    assert made.report["machine"] == {"gpu": "a card"}


def test_what_a_stage_needs_and_what_no_longer_fits(run):
    made, _ = run
    made.run(stage("raises"))
    made.run(stage("good", needs=("raises",)))
    made.run(stage("sees", estimate=2000))
    why = {s["stage"]: s["why"] for s in made.report["skipped"]}
    assert why["good"] == "needs raises" and why["sees"].endswith("s left, takes about 2000")
    made.run(stage("good", needs=("ceilings",)), frozenset({"ceilings"}))
    assert made.ended_well("good")


def test_what_a_stage_leaves_out_the_others_leave_out(run):
    made, _ = run
    made.leave_out = {"tiles256"}
    made.run(stage("leaves_out"))
    made.run(stage("good")._replace(name="ceilings"))
    made.run(stage("sees"))
    stages = made.report["stages"]
    assert stages["leaves_out"]["skipped"] == "no more" and made.failed  # what was wrong before it stopped counts
    assert stages["sees"]["found"]["leave_out_was"] == ["tiles256", "wgmma"]
    assert stages["sees"]["found"]["ceiling"]["copy_GB_per_s"] == 3000 and 0 < stages["sees"]["found"]["left"] < 60


def test_the_report_is_there_after_every_stage_and_compares_with_an_earlier_one(run, tmp_path):
    made, _ = run
    made.baseline = {"rows": [gpu_stages.row("Q=1", 6.0), gpu_stages.row("Q=2", 1.0)]}
    made.run(stage("good"))
    made.run(stage("raises"))
    made.skip("long", "no time")
    made.write()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["gpu_suite.json", "gpu_suite.md", "logs.txt"]
    report = json.loads((tmp_path / "out/gpu_suite.json").read_text())
    assert report["failed"] and report["rows"][0]["to_baseline"] == 3 and "to_baseline" not in report["rows"][1]
    text = (tmp_path / "out/gpu_suite.md").read_text()
    assert "| cosine_topk | Q=1 | 2.000 | 50% | memory | torch 2.50x | 1 | 3.00 |" in text
    assert "- skipped long: no time" in text and "RuntimeError: CUDA error" in text
    told = subprocess.run([sys.executable, ROOT / "benchmarks/gpu_suite.py", "--table", tmp_path / "out/gpu_suite.json"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert told.stdout.strip() == text.strip()


def test_whoever_ends_the_suite_gets_what_there_is(run, tmp_path, monkeypatch):
    made, _ = run

    def interrupted(told, seconds, log, take):
        take({"row": gpu_stages.row("Q=1", 2.0)})
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "run_worker", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.run(stage("good"))
    report = json.loads((tmp_path / "out/gpu_suite.json").read_text())
    assert report["stages"]["good"]["error"] == "the suite was ended: KeyboardInterrupt" and len(report["rows"]) == 1


def test_output_without_end_is_cut(run, monkeypatch):
    made, logs = run
    monkeypatch.setattr(process, "MOST_LOG", 5)
    made.run(stage("good"))
    assert "good \n... cut" in logs() and "begins" not in logs()


# ---- the command ----


def command(*words, **more):
    tool = [sys.executable, ROOT / "benchmarks/gpu_suite.py", *words]
    return subprocess.run(tool, capture_output=True, text=True, **more)


def test_dry_run_prints_a_plan_that_fits():
    """The real one: every stage is imported, the build's commands and the times are printed."""
    told = command("--dry-run")
    assert told.returncode == 0, told.stdout + told.stderr
    lines = told.stdout.splitlines()
    assert any(line.startswith("  $ cmake -S") and "-DSPLIP_CUDA_ARCHS=90a" in line for line in lines)
    planned = [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in plan.BY_NAME]
    assert planned == [s.name for s in plan.STAGES]
    assert planned.index("headline") < planned.index("memcheck") < planned.index("tests") < planned.index("compiled")
    assert "FAILED" not in told.stdout and "not imported" not in told.stdout
    assert sum(s.estimate for s in plan.STAGES) + suite.MARGIN <= 480
    assert all(s.estimate < s.limit for s in plan.STAGES)


def test_dry_run_of_a_part_and_what_it_needs():
    told = command("--dry-run", "--only", "sweep", "tests", "--seconds", "240", "--arch", "80")
    assert told.returncode == 0 and "4 stages, about" in told.stdout and "arch=compute_80,code=sm_80" in told.stdout
    order = [s.name for s in plan.choose(["tests", "sweep"], set())]
    assert order == ["build", "ceilings", "sweep", "tests"]
    assert [s.name for s in plan.choose(["sweep"], {"ceilings"})] == ["build", "sweep"]
    assert command("--dry-run", "--seconds", "100").returncode == 1  # it does not fit


@pytest.mark.parametrize(
    "words", [["--only", "nothing"], ["--baseline", "/nowhere"], ["--module", "/"], ["--seconds", "3"]]
)
def test_wrong_usage(words):
    told = command("--dry-run", *words)
    assert told.returncode == 2 and words[0] in told.stderr


def test_without_a_gpu_it_says_so(tmp_path):
    told = command("--out", tmp_path, env={**os.environ, "LD_LIBRARY_PATH": ""})
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert told.returncode == 3 and told.stdout.rstrip().endswith("gpu_suite: no GPU")
    report = json.loads((tmp_path / "gpu_suite.json").read_text())
    assert not report["failed"] and not report["stages"]
    assert [s["stage"] for s in report["skipped"]] == [s.name for s in plan.STAGES]


def test_the_whole_command_on_a_card(tmp_path, monkeypatch, capsys):
    """With stages of this test: what is asked for, what it needs, files, exit codes, an earlier run."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests/helpers"))
    card = {"gpu": "a card", "capability": [9, 0]}
    monkeypatch.setattr(gpu_suite.machine, "gpu", lambda: card)
    monkeypatch.setattr(gpu_suite.machine, "missing", lambda *names: [])
    stages = (stage("good")._replace(name="build"), stage("sees")._replace(name="ceilings"),
              stage("good", needs=("build", "ceilings"))._replace(name="sweep"), stage("raises"))  # fmt: skip
    monkeypatch.setattr(plan, "STAGES", stages)
    monkeypatch.setattr(plan, "BY_NAME", {s.name: s for s in stages})
    assert gpu_suite.main(["--out", str(tmp_path / "a"), "--only", "sweep"]) == 0
    report = json.loads((tmp_path / "a/gpu_suite.json").read_text())
    assert list(report["stages"]) == ["build", "ceilings", "sweep"] and not report["failed"]
    assert report["machine"]["gpu"] == "a card" and report["machine"]["capability"] == [9, 0]
    words = ["--out", str(tmp_path / "b"), "--baseline", str(tmp_path / "a/gpu_suite.json")]
    assert gpu_suite.main(words) == 1  # one stage raises
    report = json.loads((tmp_path / "b/gpu_suite.json").read_text())
    assert len(report["stages"]) == 4 and report["rows"][0]["to_baseline"] == 1
    assert gpu_suite.main([*words, "--only", "sweep"]) == 0
    report = json.loads((tmp_path / "b/gpu_suite.json").read_text())
    assert list(report["stages"]) == ["build", "sweep"] and report["ceilings"]["left"] > 0
    assert "1.00x as fast as before" in capsys.readouterr().out
    assert "raises" not in (tmp_path / "b/logs.txt").read_text()  # of the run before


def test_ceilings_of_an_earlier_run_of_such_a_card():
    args = gpu_suite.arguments(["--only", "sweep"])
    earlier = {"machine": {"gpu": "H100"}, "ceilings": CEILING}
    assert gpu_suite.known(args, earlier, {"gpu": "H100"}) == {"ceilings"}
    assert not gpu_suite.known(args, earlier, {"gpu": "H200"}) and not gpu_suite.known(args, {}, {"gpu": "H100"})
    assert not gpu_suite.known(gpu_suite.arguments([]), earlier, {"gpu": "H100"})


# ---- what the stages count ----


def test_floor_is_the_longer_of_bytes_and_products():
    few = timing.floor_of(10_000_000 * 512 * 2, 8 * 10_000_000 * 512, CEILING)
    assert few["bound"] == "memory" and few["floor_ms"] == pytest.approx(3.413, abs=1e-3)
    scan = timing.scan_floor(8, 10_000_000, 512, "float16", CEILING)
    assert scan["floor_ms"] == pytest.approx(3.2, abs=1e-3)  # a scan only reads
    many = timing.scan_floor(4096, 1_000_000, 512, "bfloat16", CEILING)
    assert many["bound"] == "arithmetic" and many["floor_ms"] == pytest.approx(5.243, abs=1e-3)
    eight_bits = timing.scan_floor(4096, 1_000_000, 512, "int8", CEILING)
    assert eight_bits["floor_ms"] == pytest.approx(2.796, abs=1e-3)


def test_a_row_and_its_peers():
    times = {"splip": {"median": 2.0}, "torch": {"median": 5.0}, "torch in chunks": {"error": "out of memory"}}
    row = timing.row_of("cosine_topk", "Q=1", timing.floor_of(3e9, 0, CEILING), times, recall=1.0,
                        peers_recall={"torch": 0.98})  # fmt: skip
    assert row["of_floor"] == 0.5 and row["ratio"] == {"splip": 1.0, "torch": 2.5} and row["GB_per_s"] == 1500
    assert table.peers_of(row) == "torch 2.50x (recall 0.980), torch in chunks: out of memory"
    swept = {"ms": {"stream": 0.4, "tiles64": 0.5}, "best": "stream", "of_floor": 0.75}
    stages = {
        "sweep": {"seconds": 3, "wrong": ["x"], "found": {"automatic": {"stream": 32}, "int8": {"queries": {8: swept}}}}
    }
    text = table.markdown({"machine": {"gpu": "a card"}, "rows": [{**row, "published": 1.09}], "stages": stages})
    assert "| int8, ms by Q | stream | tiles64 | of the floor |" in text and "| 8 | 0.400 | 0.500 | 75% |" in text
    assert "LiteTopK says" in text and "1.09x |" in text and "  - WRONG: x" in text
    assert "no GPU" in table.markdown({})


def test_every_case_fits_the_card():
    for series in headline.SERIES:
        assert 3 * series.N * series.D * 2 < 75e9 and max(series.queries) <= galleries.POOL
    assert {(s.N, s.dtype) for s in headline.SERIES if s.D == 768} == {
        (n, d) for n in (1_000_000, 4_000_000) for d in ("float16", "bfloat16")
    }
    assert max(sweep.SWEEP) <= galleries.POOL and set(sweep.SWEEP_MOST) < set(topk.SCANS)
    assert headline.published(headline.SERIES[1], 128) == 2.20 and headline.published(headline.SERIES[0], 128) is None


def test_where_each_way_to_multiply_ends():
    rows = {Q: {"best": best} for Q, best in ((8, "stream"), (64, "tiles64"), (32, "stream"), (256, "tiles128"))}
    assert sweep.last_of_each(rows) == {"stream": 32, "tiles64": 64, "tiles128": 256}


def test_chunks_hold_the_scores_that_they_should():
    assert galleries.chunk_sizes(1, 1_000_000, 10, 2) == []  # all scores at once are small
    assert galleries.chunk_sizes(1024, 1_000_000, 10, 2) == [14592, 29184, 58368]
    assert galleries.chunk_sizes(32, 1_000_000, 10, 2) == [468736, 937472]
    assert galleries.chunk_sizes(4096, 10_000, 3000, 2) == [3584, 7168]


def test_peers_find_what_the_exact_search_finds(monkeypatch):
    monkeypatch.setattr(galleries, "DEVICE", "cpu")
    monkeypatch.setattr(galleries, "PIECE", 700)
    for kind in ("random", "clustered", "ascending"):
        gallery, pool = galleries.make_gallery(2500, 24, torch.float32, kind)
        queries = pool[:9]
        scores, ids = galleries.exact_topk(queries, gallery, 10)
        want = reference.cosine_topk(queries, gallery, 10)
        torch.testing.assert_close(scores, want[0], rtol=0, atol=1e-6)
        assert galleries.recall(ids, want[1]) == 1 and galleries.recall(ids.flip(1), ids) == 1
        assert galleries.recall(galleries.chunked(queries, gallery, 10, 333)[1], ids) > 0.99
        assert galleries.recall(galleries.whole(queries, gallery, 10)[1], ids) > 0.99
        assert galleries.recall(ids + 5000, ids) == 0
    allowed = torch.arange(2500) % 7 == 3
    assert (galleries.exact_topk(queries, gallery, 5, allowed)[1] % 7 == 3).all()


def test_scores_are_read_from_keys():
    scores = torch.tensor([[-1.0, -0.25, 0.0, 0.5, 1.0]])
    bits = scores.view(torch.int32).long() & 0xFFFFFFFF
    order = torch.where(bits >= 1 << 31, 0xFFFFFFFF - bits, bits + (1 << 31))
    index = torch.tensor([[3, 0, 4, 1, 2]])
    keys = (order << 32) | (0xFFFFFFFF - index)
    assert rounding.scores_of_keys(keys).tolist() == [[-0.25, 0.5, 1.0, -1.0, 0.0]]
    assert rounding.score_error(512, False) == 2080 / 2**24


# ---- what tools say ----


def test_the_slowest_file_is_read_from_ninjas_log():
    log = "# ninja log v5\n0\t900\t1\tCMakeFiles/_C.dir/csrc/bindings.cpp.o\tabc\n100\t7600\t1\tCMakeFiles/_C.dir/csrc/cuda/patchify.cu.o\tabc\n"
    assert build.slowest(log) == [("csrc/cuda/patchify.cu", 7.5), ("csrc/bindings.cpp", 0.9)]


def test_memcheck_watches_our_kernels_alone():
    def knows(option):
        return lambda words: "" if option in words else "unrecognised option"

    for option in ("--kernel-name", "--kernel-regex", "--kernel-name-exclude"):
        assert sanitizer.command("memcheck", knows(option))[-2] == option
    assert sanitizer.command("memcheck", knows("nothing"))[-2:] == ["--print-limit", "20"]


def test_tests_are_run_with_workers_and_their_report_names_no_machine(tmp_path):
    words = cuda_tests.command("junit.xml", {"wgmma", "tiles256"})
    assert words[words.index("-k") + 1] == "not tiles256 and not wgmma" and "--junitxml=junit.xml" in words
    report = tmp_path / "junit.xml"
    report.write_text('<testsuites><testsuite name="pytest" tests="3" hostname="here" /></testsuites>')
    cuda_tests.tidy(report)
    assert report.read_text() == '<testsuites><testsuite name="pytest" tests="3" /></testsuites>'


NCU = """
  void splip::cuda::stream_kernel<__half>(Pass, int) (264, 1, 1)x(128, 1, 1), Context 1, Stream 7, Device 0, CC 9.0
    Section: GPU Speed Of Light Throughput
    ----------------------- ----------- ------------
    Metric Name             Metric Unit Metric Value
    Memory Throughput                 %        91.34
    Duration                         us       352.10
    Registers Per Thread register/thread          96
"""


def test_what_ncu_says_is_read():
    assert profile.headlines(NCU) == [
        {"kernel": "void splip::cuda::stream_kernel<__half>(Pass, int)", "Memory Throughput": "91.34 %",
         "Duration": "352.10 us", "Registers Per Thread": "96 register/thread"}
    ]  # fmt: skip
    page = '"Kernel Name","stream_kernel"\n"#","Source","Warp Stall Sampling (All Samples)"\n"0","LDG","5"\n"1","FMUL","70"\n"2","EXIT","0"\n'
    assert profile.hottest(page).split() == [
        "Kernel",
        "Name",
        "stream_kernel",
        "Samples",
        "and",
        "instructions,",
        "the",
        "most",
        "first",
        "70",
        "FMUL",
        "5",
        "LDG",
    ]
    assert profile.hottest("==PROF== nothing\n").strip() == ""


def test_needs_only_torch_and_numpy():
    """The suite runs where nothing of splip's requirements is installed."""
    script = "import sys; sys.modules.update(dict.fromkeys(('PIL','tyro','yaml','rich','open_clip','scipy'))); import "
    subprocess.run([sys.executable, "-c", script + "splip.ops, splip.ops.reference"], check=True)
