"""What the batches' worker keeps between searches."""

from types import SimpleNamespace

import numpy as np

from splip.serve import batching
from splip.serve.batching import Batcher
from splip.serve.metrics import Telemetry


class Encoder:
    def __init__(self):
        self.asked = []

    def encode_text(self, texts, modality):
        self.asked += [text if modality == "photo" else f"{text} ({modality})" for text in texts]
        return np.ones((len(texts), 4), np.float32)


def test_vectors_of_few_texts_are_kept(monkeypatch):
    """The latest ones, and no more than there is room for: whoever types for a month fills no memory."""
    monkeypatch.setattr(batching, "TEXTS", 3)
    encoder = Encoder()
    batcher = Batcher(SimpleNamespace(encoder=encoder), Telemetry(), 8, 0.0, 8)
    try:
        for text in ("a", "b", "c", "a", "d"):  # b is the one that was not asked for longest
            assert batcher._text_vectors([(text, "photo")])[text, "photo"].shape == (4,)
        assert encoder.asked == ["a", "b", "c", "d"]
        batcher._text_vectors([(text, "photo") for text in ("a", "c", "d")])
        assert encoder.asked == ["a", "b", "c", "d"]
        batcher._text_vectors([("b", "photo")])
        assert encoder.asked[-1] == "b"
        batcher._text_vectors([("b", "sketch"), ("b", "photo")])  # prompted otherwise
        assert encoder.asked[-2:] == ["b", "b (sketch)"]
        batcher._text_vectors([(str(number), "photo") for number in range(100)])
        assert len(batcher._texts) == 3
    finally:
        batcher.close()
