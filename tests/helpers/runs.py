"""Training runs: their logs, and what happens in the middle of them."""

import contextlib
import csv

from splip.train.sampler import Sampler


def rows(run):
    with open(run / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def at_step_two(monkeypatch, happening):
    """Something happens when the batch of step 2 is drawn."""
    batch = Sampler.batch

    def draw(self, step):
        if step == 2:
            happening()
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "batch", draw)
        yield


def power_cut():
    raise RuntimeError("power cut")
