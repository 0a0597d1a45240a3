"""An engine, run by TensorRT."""

from pathlib import Path
from typing import Any, cast

import numpy as np

from splip.encoders import tensorrt_runtime
from splip.encoders.base import FileRunner
from splip.encoders.manifest import MODALITIES, Built, Manifest


class TensorRtRunner(FileRunner):
    """A TensorRT or TensorRT-RTX engine on a GPU."""

    on_cpu = False

    def __init__(self, folder: Path, about: Manifest, built: Built, index: int | None) -> None:
        super().__init__(folder, about, built)
        self.precision, self._index = about.precision, index or 0
        self._session(MODALITIES[0])  # an engine that does not fit this machine must be found out now

    def _open(self, path: Path) -> Any:
        return tensorrt_runtime.Engine(path, self._index)

    def __call__(self, pixels: np.ndarray, modality: str) -> np.ndarray:
        return self._run(self._session(modality), self._input(pixels))

    def _run(self, session: Any, images: np.ndarray) -> np.ndarray:
        return cast(np.ndarray, session.run(images))

    def close(self) -> None:
        for engine in self._sessions.values():
            engine.close()
        super().close()
