"""One thread of torch for few pictures, where that is sooner."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from splip.encoders import threads
from splip.encoders.encoder import Encoder
from splip.encoders.graph import DeployEncoder
from splip.encoders.threads import Threads
from splip.ops import host


class Torch:
    """Four threads, and a clock that runs while they work."""

    def __init__(self):
        self.count, self.now, self.asked = 4, 0.0, []

    def get_num_threads(self):
        return self.count

    def set_num_threads(self, count):
        self.count = count

    def model(self, wake, picture):
        """Encodes in ``picture`` seconds a picture, shared among the threads, of which each is woken in ``wake``."""

        def encode(count):
            self.asked.append((count, self.count))
            self.now += picture * count / self.count + wake * (self.count - 1)

        return encode


@pytest.mark.parametrize(
    ("wake", "picture", "few"),
    [
        (0.0, 0.01, 0),  # threads that cost nothing
        (0.001, 0.003, 1),  # 3 against 3.75 ms for one, 6 against 4.5 for two
        (0.00078, 0.003, 0),  # 3 against 3.09: that may be noise
        (0.003, 0.003, 2),  # 12 against 12 for four
        (0.1, 0.2, 0),  # a large model: not even tried with all of them
    ],
)
def test_what_is_measured_is_taken(monkeypatch, wake, picture, few):
    fake = Torch()
    monkeypatch.setattr(threads.time, "perf_counter", lambda: fake.now)
    chosen = Threads(fake)
    chosen.measure(fake.model(wake, picture))
    assert chosen.few == few and fake.count == 4
    for count in (1, 2, 4, 5):
        with chosen.of(count):
            assert fake.count == (1 if count <= few else 4)
        assert fake.count == 4, "searches in the same thread, and threads that begin, have all of them"
    if picture > threads.LARGE:
        assert fake.asked == [(1, 1)] * 2


def test_nothing_is_changed_before_it_was_measured():
    fake = Torch()
    with Threads(fake).of(1):
        assert fake.count == 4
    fake.count = 3  # as somebody sets it later
    with Threads(fake).of(1):
        assert fake.count == 3


def test_a_model_that_fails_leaves_the_threads_as_they_were():
    fake = Torch()

    def broken(count):
        raise RuntimeError("out of memory")

    chosen = Threads(fake)
    with pytest.raises(RuntimeError):
        chosen.measure(broken)
    assert fake.count == 4 and chosen.few == 0


def test_an_encoder_that_settled_gives_the_same(monkeypatch):
    encoder = Encoder.load("splip-tiny", device="cpu")
    pictures = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    before, most = encoder.encode(pictures, "photo"), torch.get_num_threads()
    while_encoding = []

    def measure(self, encode):
        encode(2)
        self.few = 4

    monkeypatch.setattr(Threads, "measure", measure)
    assert encoder.settle() == 4
    forward = DeployEncoder.forward
    monkeypatch.setattr(
        DeployEncoder, "forward", lambda *given: while_encoding.append(torch.get_num_threads()) or forward(*given)
    )

    def in_a_thread(count):
        np.testing.assert_allclose(encoder.encode(pictures[:count], "photo"), before[:count], atol=2e-6)
        return torch.get_num_threads(), host.threads()

    for count in (1, 4, 6):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(in_a_thread, count).result() == (most, host.threads())
        with ThreadPoolExecutor(1) as pool:  # one that begins afterwards
            assert pool.submit(torch.get_num_threads).result() == most
    assert while_encoding == [1, 1, most]
