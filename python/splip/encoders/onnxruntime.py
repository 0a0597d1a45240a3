"""An export's ONNX files, run by onnxruntime."""

import os
from pathlib import Path
from typing import Any, cast

import numpy as np

from splip.encoders import cuda, manifest
from splip.encoders.base import FileRunner, import_engine
from splip.encoders.manifest import MODALITIES, Built, Manifest
from splip.errors import UserError

CUDA_PROVIDER, TENSORRT_PROVIDER = "CUDAExecutionProvider", "TensorrtExecutionProvider"


def open_session(path: Path, threads: int | None, providers: list[Any]) -> Any:
    ort = import_engine("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    # Errors: a provider that cannot start is for the caller to see. On the CPU all that is said is raised, too.
    options.log_severity_level = 3 if providers != ["CPUExecutionProvider"] else 4
    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its exceptions have no common class
        raise UserError(f"{path}: onnxruntime cannot load it: {' '.join(str(error).split())[:300]}") from None
    session.disable_fallback()
    return session


class OnnxRuntimeRunner(FileRunner):
    """onnxruntime on the CPU, with CUDA, or with its TensorRT provider; never on another than was asked for."""

    def __init__(
        self,
        folder: Path,
        about: Manifest,
        built: Built,
        engine: str,
        index: int | None,
        threads: int | None,
        cache: Path | None,
    ) -> None:
        super().__init__(folder, about, built)
        self.precision = about.precision
        self._ort, self._threads = import_engine("onnxruntime"), threads
        self._providers: list[Any] = ["CPUExecutionProvider"]
        if engine == "onnxruntime-tensorrt":
            low, best, high = about.batch
            shape = "x".join(map(str, about.image_shape()))
            options: dict[str, Any] = {
                f"trt_profile_{name}_shapes": f"{manifest.INPUT}:{count}x{shape}"
                for name, count in (("min", low), ("opt", best), ("max", high))
            }
            if cache is not None:
                options |= {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(cache)}
            self._providers = [(TENSORRT_PROVIDER, options | {"device_id": index or 0})]
        elif index is not None:
            # TF32 would cost three digits without a word.
            self._providers = [(CUDA_PROVIDER, {"device_id": index, "use_tf32": 0})]
        self._wanted = self._providers[0] if isinstance(self._providers[0], str) else self._providers[0][0]
        if self._wanted not in self._ort.get_available_providers():
            raise UserError(
                f"this onnxruntime has no {self._wanted}: "
                "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'; never both at a time"
            )
        if self._wanted != "CPUExecutionProvider":
            self.on_cpu = False  # a GPU's driver takes hold of far more addresses than memory
            if not cuda.gpus():
                raise UserError(f"engine {engine} with {self._wanted}: no NVIDIA GPU, or no driver")
            if hasattr(self._ort, "preload_dlls"):
                self._ort.preload_dlls()
            self._session(MODALITIES[0])  # what fails must fail now

    def _open(self, path: Path) -> Any:
        session = open_session(path, self._threads, self._providers)
        if self._wanted not in session.get_providers():
            raise UserError(
                f"onnxruntime could not start {self._wanted} and would run on {session.get_providers()[0]}: "
                "are CUDA, cuDNN (and TensorRT 10) of the versions it was built for installed?"
            )
        return session

    def _run(self, session: Any, images: np.ndarray) -> np.ndarray:
        return cast(np.ndarray, session.run([manifest.OUTPUT], {manifest.INPUT: images})[0])

    def __call__(self, pixels: np.ndarray, modality: str) -> np.ndarray:
        return self._run(self._session(modality), self._input(pixels))
