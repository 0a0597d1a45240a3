"""An export's text tower."""

import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from splip.encoders import manifest
from splip.encoders.base import import_engine, limited_memory, try_out
from splip.encoders.manifest import MODALITIES, MODALITY, TOKENS, Manifest, Text
from splip.encoders.onnxruntime import open_session
from splip.encoders.openvino import cpu_settings, open_request
from splip.encoders.tokenizer import FILE, Reader


class TextTower:
    """That of an export, on the CPU and in float32 whatever the images run on: a text is little work.

    It is loaded when the first text comes.

    Args:
        engine: onnxruntime or openvino.
    """

    def __init__(self, folder: Path, about: Manifest, text: Text, engine: str, threads: int | None = None) -> None:
        self._folder, self._about, self._text = folder, about, text
        self._engine, self._threads = engine, threads
        self._parts = functools.cache(self._load)
        self._lock = threading.Lock()

    def encode_text(self, texts: Sequence[str], modality: str) -> np.ndarray:
        """Features float32 ``[C, D]``."""
        with self._lock:
            read, run = self._parts()
            tokens = read(texts)
            return run({TOKENS: tokens, MODALITY: np.full(len(tokens), MODALITIES.index(modality))})

    def _load(self) -> tuple[Reader, Callable[[dict[str, np.ndarray]], np.ndarray]]:
        self._about.check_files(self._folder, self._text.files)
        read = Reader(self._folder / FILE, self._text.end, self._text.length)
        paths = [self._folder / name for name in self._text.files]
        with limited_memory(paths):
            run = self._open(paths[0])
            feed = {TOKENS: np.full((1, 1), self._text.end), MODALITY: np.zeros(1, dtype=np.int64)}
            try_out(paths[0], lambda: run(feed), self._about.embed_dim)
        return read, run

    def _open(self, path: Path) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
        if self._engine == "openvino":
            request = open_request(import_engine("openvino").Core(), path, cpu_settings("fp32", self._threads))
            return lambda feed: cast(np.ndarray, request.infer(feed)[0].copy())
        session = open_session(path, self._threads, ["CPUExecutionProvider"])
        return lambda feed: cast(np.ndarray, session.run([manifest.OUTPUT], feed)[0])
