"""The simulation of many hosts, where its answer is known, and the page that is made from it."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks/simulate_search.py"
spec = importlib.util.spec_from_file_location("simulate_search", SCRIPT)
simulate = importlib.util.module_from_spec(spec)
sys.modules["simulate_search"] = simulate
spec.loader.exec_module(simulate)
Cluster = simulate.Cluster
CALM = Cluster(rows=1e8, hosts=1, jitter=0, slow=0, hop_ms=0, per_query_ms=0, per_shard_ms=0, multiply=1e12)


def test_one_calm_shard_is_bytes_by_bandwidth():
    expected = 1e3 * 1e8 * (512 + 16) / 250e9
    assert CALM.scan_ms() == pytest.approx(expected)
    assert CALM.quantiles() == pytest.approx((expected, expected))
    assert replace(CALM, hop_ms=3, per_shard_ms=0.5).quantiles() == pytest.approx((expected + 3.5, expected + 3.5))
    many = replace(CALM, queries=8)
    assert replace(many, per_query_ms=2).quantiles()[0] == pytest.approx(many.quantiles()[0] + 16)


def test_without_stragglers_hosts_divide_the_time():
    one = CALM.quantiles()[0]
    for hosts in (2, 10):
        assert replace(CALM, hosts=hosts).quantiles()[1] == pytest.approx(one / hosts)
    # Shards on one host share its bandwidth: nothing is won.
    assert replace(CALM, shards_per_host=8).quantiles()[0] == pytest.approx(one)


def test_queries_are_free_until_multiplying_takes_longer():
    bound = replace(CALM, multiply=1_000)
    assert replace(CALM, queries=32).scan_ms() == pytest.approx(CALM.scan_ms(), rel=1e-3)
    assert replace(bound, queries=1000).scan_ms() == pytest.approx(1e3 * 1e8 * 512 * 1000 / 1e12, rel=1e-3)


def test_stragglers_reach_the_median_with_more_shards():
    """One shard in 100 is 5 times slower: one of S is with chance 1 - 0.99^S."""
    rare = replace(CALM, slow=0.01)
    ratios = []
    for hosts in (1, 16, 64, 128):
        cluster = replace(rare, hosts=hosts)
        times = cluster.times_ms(50_000)
        assert np.mean(times > 2 * cluster.scan_ms()) == pytest.approx(1 - 0.99**hosts, abs=0.01)
        ratios.append(cluster.quantiles()[0] / cluster.scan_ms())
    assert ratios[:3] == pytest.approx([1, 1, 1]) and ratios[3] == pytest.approx(5)  # 1 - 0.99^69 is a half
    tail = [
        replace(CALM, hosts=h, jitter=0.2).quantiles()[1] / replace(CALM, hosts=h).scan_ms() for h in (1, 4, 16, 64)
    ]
    assert tail == sorted(tail) and tail[0] == pytest.approx(np.exp(0.2 * 2.326), rel=0.02)


def test_more_hosts_do_not_help_for_ever():
    """The front's own work grows with the shards."""
    times = {hosts: replace(CALM, hosts=hosts, per_shard_ms=1).quantiles()[0] for hosts in (1, 14, 200)}
    assert times[14] < times[1] and times[14] < times[200]


def test_same_seed_same_answer():
    noisy = Cluster(hosts=8, slow=0.01)
    assert noisy.quantiles() == noisy.quantiles() != noisy.quantiles(seed=1)


def test_the_model_is_near_the_measured_scans():
    here = simulate.this_machine()
    for r in simulate.scans():
        ratio = r["median_ms"]["splip"] / replace(here, rows=r["N"], queries=r["Q"]).scan_ms()
        assert 0.8 < ratio < 1.6, r


def test_measured_files(tmp_path):
    times = [{"queries": 1, "cluster_ms": {"median": 9.0, "p99": 12.0}}, {"queries": 8, "cluster_ms": {"median": 9.5}}]
    rows = [{"case": "search", "shards": 3, "rows": 200_000, "dim": 512, "batches": times}, {"case": "embed"}]
    found = list(simulate.measured({"rows": rows}))
    own = {"rows": 200_000, "dim": 512, "shards_per_host": 3}
    assert found == [(own | {"queries": 1}, 9.0, 12.0), (own | {"queries": 8}, 9.5, None)]
    for name, content in (("good.json", {"rows": rows}), ("empty.json", {"rows": []})):
        (tmp_path / name).write_text(json.dumps(content))
    assert "9.0 / 12.0" in run("--measured", tmp_path / "good.json", "--bandwidth", "28").stdout
    assert "no searches in the measured file" in run("--measured", tmp_path / "empty.json").stderr
    assert run("--measured", tmp_path / "none.json").returncode == 2


def run(*args):
    return subprocess.run([sys.executable, SCRIPT, *map(str, args)], capture_output=True, text=True)


def test_command_line():
    out = run("--rows", "1e8", "--hosts", "1", "4", "--slow", "0", "--jitter", "0")
    assert out.returncode == 0 and out.stdout.count("\n") == 4 and "| 4 | 13 GB | 52.8 |" in out.stdout
    for bad in (("--rows", "0"), ("--hosts", "0"), ("--slow", "2"), ("--jitter", "-1")):
        assert run(*bad).returncode == 2


def test_page_comes_from_the_script():
    page = simulate.PAGE.read_text()
    assert simulate.updated(page) == page, "run python benchmarks/simulate_search.py --update"
    assert page.count("<!-- table: ") == len(simulate.TABLES)
    assert simulate.updated(page, simulate.Prices(host=8.0)) != page
