"""Running a TensorRT or TensorRT-RTX engine file: checked before it is loaded, no torch needed.

An engine fits one version of the library and one kind of GPU. Its JSON sidecar, ``<engine>.json``, says which.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from splip import disk
from splip.encoders import cuda
from splip.encoders.manifest import INPUT, OUTPUT
from splip.errors import UserError

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL = (
    "`pip install 'splip[trt-rtx]'` for TensorRT-RTX, or `pip install tensorrt-cu13` for full TensorRT, which fetches "
    "it from NVIDIA's own index"
)


class Unavailable(UserError):
    """TensorRT, or the GPU that it needs, is not here."""


@dataclass
class Metadata:
    """The sidecar of an engine."""

    flavour: str  # tensorrt or tensorrt-rtx
    version: str
    capabilities: list[str]  # of the GPUs it was built for, e.g. 8.9; empty: TensorRT-RTX's default list
    hardware: str  # none, ampere+ or same: which other GPUs it may run on
    version_compatible: bool
    batch: list[int]  # min, opt, max
    onnx_sha256: str
    engine_sha256: str

    def save(self, engine: Path) -> None:
        disk.write_text(sidecar(engine), json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def sidecar(engine: Path) -> Path:
    return engine.with_name(engine.name + ".json")


def read_metadata(engine: Path) -> Metadata:
    """The sidecar of an engine file, after comparing the file with it.

    Raises:
        UserError: one of the two is missing or damaged.
    """
    if not engine.is_file():
        raise UserError(f"no engine {engine}")
    try:
        metadata = Metadata(**json.loads(sidecar(engine).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{sidecar(engine)}: is missing; without it nobody knows what the engine is for") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{sidecar(engine)}: damaged: {error}") from None
    if disk.file_hash(engine) != metadata.engine_sha256:
        raise UserError(f"{engine}: damaged, or not the engine that {sidecar(engine).name} describes; export again")
    return metadata


def load_library(flavour: str | None = None) -> tuple[Any, str]:
    """The ``tensorrt`` module, else ``tensorrt_rtx``, or the one that is asked for; and its flavour.

    Raises:
        Unavailable: not installed, or it cannot be loaded.
    """
    reasons = []
    for name in [flavour] if flavour else MODULES:
        try:
            return importlib.import_module(MODULES[name]), name
        except ImportError as error:
            if not isinstance(error, ModuleNotFoundError):
                reasons.append(f"{name}: {' '.join(str(error).split())}")
    found = f" ({'; '.join(reasons)})" if reasons else ""
    raise Unavailable(f"{flavour or 'TensorRT'} is not installed{found}: {INSTALL}")


def make_logger(trt: Any) -> tuple[Any, list[str]]:
    """A logger that keeps errors, so that an exception can name them, and drops the rest."""
    errors: list[str] = []

    class Keep(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(" ".join(message.split()))

    return Keep(), errors


def check_fits(metadata: Metadata, engine: Path, version: str, gpu: cuda.Gpu) -> None:
    """Whether an engine can run here, before it is handed to a library that would only return None.

    Raises:
        UserError: built with another version, or for another GPU.
    """
    again = "run `splip export --trt` again on this machine"
    if metadata.version != version and not metadata.version_compatible:
        raise UserError(f"{engine}: was built with {metadata.flavour} {metadata.version}, here is {version}; {again}")
    here = f"{gpu.capability[0]}.{gpu.capability[1]}"
    if metadata.hardware == "ampere+" and gpu.capability >= (8, 0):
        return
    if metadata.capabilities and here not in metadata.capabilities:
        built = ", ".join(metadata.capabilities)
        raise UserError(f"{engine}: was built for GPUs of compute capability {built}; {gpu.name} has {here}; {again}")


class Engine:
    """An engine on a GPU.

    Args:
        path: the engine file; its sidecar lies beside it.
        index: which GPU.

    Raises:
        UserError: no GPU, no library, or an engine that does not fit.
    """

    def __init__(self, path: Path, index: int = 0) -> None:
        metadata = read_metadata(path)
        # Looked for first: creating a runtime without a driver kills the interpreter at its end.
        found = [gpu for gpu in cuda.gpus() if gpu.number == index]
        if not found:
            raise Unavailable(
                f"{path}: TensorRT needs an NVIDIA GPU{f' number {index}' if index else ''} and its driver"
            )
        trt, _ = load_library(metadata.flavour)
        check_fits(metadata, path, trt.__version__, found[0])
        self.path, self.metadata, self._trt = path, metadata, trt
        self._lock = threading.Lock()
        self._device = cuda.Device(index)
        self._buffers: dict[str, tuple[int, int]] = {}  # name: pointer, bytes
        self._logger, self._errors = make_logger(trt)
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._cache: Any = None
        self._cache_path: Path | None = None
        try:
            with self._device.current():
                self._output_width = self._load(metadata.version_compatible)
        except BaseException:
            self._context = self._engine = self._runtime = None  # they must go before their device
            self._device.close()
            raise

    def _load(self, version_compatible: bool) -> int:
        """Make the engine ready to run; returns D."""
        self._runtime = self._trt.Runtime(self._logger)
        if version_compatible:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(self.path.read_bytes())
        if self._engine is None:  # nothing is raised
            library = f"{self.metadata.flavour} {self._trt.__version__}"
            raise UserError(f"{self.path}: {library} refuses it: {self._reason()}")
        self._context = self._make_context()
        if self._context is None:
            raise UserError(f"{self.path}: cannot be prepared to run: {self._reason()}")
        return int(self._engine.get_tensor_shape(OUTPUT)[-1])

    def _make_context(self) -> Any:
        """TensorRT-RTX compiles its kernels now; what it compiled before lies beside the engine."""
        settings: Any = None
        if hasattr(self._engine, "create_runtime_config"):
            settings = self._engine.create_runtime_config()
        if not hasattr(settings, "create_runtime_cache"):  # full TensorRT, which compiled when it built
            return self._engine.create_execution_context()
        self._cache, self._cache_path = settings.create_runtime_cache(), self.path.with_name(self.path.name + ".cache")
        if self._cache_path.is_file():
            self._cache.deserialize(self._cache_path.read_bytes())
        settings.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(settings)

    def _reason(self) -> str:
        return self._errors[-1] if self._errors else "it gives no reason"

    def run(self, images: np.ndarray) -> np.ndarray:
        """Features float32 ``[B, D]`` of ``images`` as the engine takes them, contiguous, B within its profile."""
        low, _, high = self.metadata.batch
        if not low <= len(images) <= high:
            raise UserError(f"{self.path}: was built for batches of {low} to {high} images, got {len(images)}")
        out = np.empty((len(images), self._output_width), dtype=np.float32)
        with self._lock, self._device.current():
            if not self._context.set_input_shape(INPUT, tuple(images.shape)):
                raise UserError(f"{self.path}: does not take images of shape {list(images.shape)}: {self._reason()}")
            for name, array in ((INPUT, images), (OUTPUT, out)):
                self._context.set_tensor_address(name, self._room(name, array.nbytes))
            self._device.upload(self._buffers[INPUT][0], images)
            if not self._context.execute_async_v3(self._device.stream):
                raise RuntimeError(f"{self.path}: could not be run: {self._reason()}")
            self._device.download(out, self._buffers[OUTPUT][0])
            self._device.wait()
        return out

    def _room(self, name: str, size: int) -> int:
        """A buffer on the GPU of at least that many bytes."""
        pointer, before = self._buffers.get(name, (0, 0))
        if before < size:
            if before:
                self._device.free(pointer)
            self._buffers[name] = (self._device.allocate(size), size)
        return self._buffers[name][0]

    def close(self) -> None:
        with self._lock, self._device.current():
            if self._cache is not None and self._cache_path is not None:
                blob = self._cache.serialize()
                with contextlib.suppress(OSError):  # a read-only folder: compiled again next time
                    if blob is not None:
                        part = self._cache_path.with_name(f".{self._cache_path.name}.{os.getpid()}")
                        part.write_bytes(bytes(blob))
                        os.replace(part, self._cache_path)
            self._context = self._engine = self._runtime = None
            for pointer, _ in self._buffers.values():
                self._device.free(pointer)
            self._buffers.clear()
        self._device.close()
