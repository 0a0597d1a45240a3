"""Two machines that train one model: two torchruns on this one, each with a folder of its own."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from runs import at_step_two, power_cut, rows

from splip.train import loop

TERMS = ("loss", "triplet", "classification", "jigsaw")


@pytest.fixture
def launch(tmp_path, settings):
    """Train on both machines; returns their exit codes and what they wrote to stdout and stderr."""

    def run(*args, of=((), ())):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        data = settings.data
        own = ["--data.root", data.root, "--data.unseen", *data.unseen, "--data.validation", *data.validation]
        own += ["--backbone.name", "splip-tiny", "--steps", settings.steps, "--batch-size", settings.batch_size]
        own += ["--eval-every", settings.eval_every, "--warmup", settings.warmup, "--device", "cpu"]
        started = []
        for node in range(2):
            place = tmp_path / f"machine-{node}"
            place.mkdir(exist_ok=True)
            command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1]
            command += [
                "--node-rank",
                node,
                "--master-addr",
                "127.0.0.1",
                "--master-port",
                port,
                "-m",
                "splip.train",
            ]
            started.append(
                subprocess.Popen(
                    [str(part) for part in (*command, *own, *args, *of[node])],
                    cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
        try:
            said = [process.communicate(timeout=300) for process in started]
        finally:
            for process in started:
                process.kill()
        return [process.returncode for process in started], [out for out, _ in said], [err for _, err in said]

    return run


def curve(run):
    return [[float(row[name]) for name in TERMS] for row in rows(run)]


@pytest.mark.exhaustive
def test_two_machines_are_one_process(settings, tmp_path, launch):
    """No storage in common: each fills a cache, the first one measures and writes."""
    codes, out, err = launch("--data.cache", "cache", "--out", "run")
    assert codes == [0, 0], err
    assert out[0].count("best validation") == 1 and "in 2 processes" in out[0] and out[1] == ""
    loop.train(settings)
    np.testing.assert_allclose(curve(tmp_path / "machine-0/run"), curve(settings.out), rtol=2e-3, atol=2e-4)
    assert [r["val_mAP"] for r in rows(tmp_path / "machine-0/run")] == [r["val_mAP"] for r in rows(settings.out)]
    assert not (tmp_path / "machine-1/run").exists()
    kinds = [[p.suffix for p in (tmp_path / f"machine-{n}/cache").iterdir()].count(".pixels") for n in range(2)]
    assert kinds == [4, 2]  # training, and in the first process validation; of sketches and photos


@pytest.mark.exhaustive
def test_resume_on_two_machines(settings, tmp_path, monkeypatch, launch):
    """The second one has no checkpoint: it gets the first one's. The cache is in a place that both see."""
    loop.train(settings)
    again = replace(settings, out=tmp_path / "machine-0/run")
    with at_step_two(monkeypatch, power_cut), pytest.raises(RuntimeError, match="power cut"):
        loop.train(again)
    codes, _, err = launch("--data.cache", tmp_path / "cache", "--out", "run", "--resume")
    assert codes == [0, 0], err
    assert [row["step"] for row in rows(again.out)] == ["1", "2", "3", "4"]
    np.testing.assert_allclose(curve(again.out), curve(settings.out), rtol=2e-3, atol=2e-4)
    names = [p.name for p in (tmp_path / "cache").iterdir()]
    assert sum(name.endswith(".pixels") for name in names) == 4 and not any(name.startswith(".first") for name in names)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("args", "of", "message"),
    [
        ((), (("--lr", "0.001"), ("--lr", "0.5")), "must train the same model; different: lr: 0.001 -> 0.5"),
        (("--resume",), ((), ()), "--resume: there is no run/last.safetensors"),
    ],
)
def test_refusals(settings, tmp_path, launch, args, of, message):
    codes, _, err = launch("--out", "run", *args, of=of)
    assert 0 not in codes and message in err[0] + err[1]
    assert not (tmp_path / "machine-0/run").exists()
