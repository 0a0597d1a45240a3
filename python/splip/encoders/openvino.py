"""An export, run by OpenVINO."""

import os
import threading
from pathlib import Path
from typing import Any, cast

import numpy as np

from splip.encoders.base import FileRunner, import_engine
from splip.encoders.manifest import Built, Manifest
from splip.errors import UserError

OPENVINO_HINTS = {"fp32": "f32", "bf16": "bf16"}  # its names of what it computes in


def cpu_settings(precision: str, threads: int | None) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": OPENVINO_HINTS.get(precision, "f32"),  # int8: what is not quantised
        "INFERENCE_NUM_THREADS": threads or len(os.sched_getaffinity(0)),
    }


def open_request(core: Any, path: Path, settings: dict[str, Any]) -> Any:
    try:
        return core.compile_model(str(path), "CPU", settings).create_infer_request()
    except RuntimeError as error:
        raise UserError(f"{path}: OpenVINO cannot load it: {' '.join(str(error).split())[:300]}") from None


def has_amx() -> bool:
    """Whether this CPU multiplies bfloat16 tiles; without them bfloat16 is slower than float32 in OpenVINO."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return "amx_bf16" in flags.split()


class OpenVinoRunner(FileRunner):
    """OpenVINO on the CPU, tuned for latency."""

    def __init__(
        self,
        folder: Path,
        about: Manifest,
        built: Built,
        threads: int | None,
        precision: str | None,
        cache: Path | None,
    ) -> None:
        super().__init__(folder, about, built)
        openvino = import_engine("openvino")
        self._core, self._lock = openvino.Core(), threading.Lock()
        if precision is not None and precision not in (*OPENVINO_HINTS, *built.precisions):
            raise UserError(f"engine openvino runs fp32 or bf16, got precision {precision}")
        if precision == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UserError("engine openvino cannot compute in bf16 on this CPU: leave precision out, or take fp32")
        if precision is None:
            able = [p for p in built.precisions if p != "bf16" or has_amx()]
            precision = able[0] if able else "fp32"
        self.precision = precision
        self._settings = cpu_settings(precision, threads)
        if cache is not None:
            self._settings["CACHE_DIR"] = str(cache)

    def _open(self, path: Path) -> Any:
        return open_request(self._core, path, self._settings)

    def __call__(self, pixels: np.ndarray, modality: str) -> np.ndarray:
        request, feed = self._session(modality), self._input(pixels)
        with self._lock:  # one request at a time uses all cores
            return self._run(request, feed)

    def _run(self, session: Any, images: np.ndarray) -> np.ndarray:
        return cast(np.ndarray, session.infer([images], share_inputs=True)[0].copy())
