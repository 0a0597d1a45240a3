"""What engines share."""

import contextlib
import importlib
import importlib.util
import resource
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from splip.encoders import manifest
from splip.encoders.manifest import Built, Manifest
from splip.errors import UserError
from splip.models.names import Model, is_name

EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
BATCH = 64  # images that torch takes at once
SPARE = 4 << 30  # bytes that opening and first running a file may take, besides eight times its size
Precision = Literal["fp32", "bf16", "fp16"]


class Runner(Protocol):
    """What an engine must do."""

    precision: str

    def __call__(self, pixels: np.ndarray, modality: str) -> np.ndarray:
        """Features float32 ``[B, D]`` of uint8 ``[B, S, S, 3]``; called by several threads at a time."""

    def close(self) -> None: ...


def installed(package: str) -> bool:
    """Whether a package can be imported, without doing so."""
    return importlib.util.find_spec(package) is not None


def flag(kind: str) -> str:
    return {"tensorrt": "trt"}.get(kind, kind)


def no_telemetry() -> None:
    """OpenVINO reports its imports to its makers if this module is there. Called before any import of it or of nncf."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def import_engine(package: str) -> Any:
    no_telemetry()
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        reason = "is not installed" if missing else f"cannot be loaded ({' '.join(str(error).split())})"
        raise UserError(f"{package} {reason}: pip install 'splip[{EXTRAS[package]}]'") from None


def normalise(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Float32 ``[B, 3, S, S]`` for engines that take normalised images, of uint8 ``[B, S, S, 3]``."""
    values = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    values /= np.float32(255)
    values -= np.asarray(mean, dtype=np.float32)[:, None, None]
    values /= np.asarray(std, dtype=np.float32)[:, None, None]
    return values


def describe(found: Path | Model, model: Any) -> Manifest:
    """What a manifest says of a model, without any files.

    Args:
        found: its checkpoint, or what its name stands for.
        model: of it.
    """
    import splip
    from splip.models.registry import identity

    path, clip, config = found if isinstance(found, Path) else found.path, model.backbone, model.config
    named = isinstance(found, Model) and is_name(found.name)
    name = found.name if isinstance(found, Model) and named else "" if path is None else path.name
    return Manifest(
        format=manifest.FORMAT,
        splip=splip.__version__,
        identity=identity(model, path),
        name=name if path is None else f"{name} ({config.backbone.name}, {config.method})",
        image_size=clip.image_size,
        embed_dim=clip.embed_dim,
        fit=config.data.fit,
        crop_sketches=config.data.crop_sketches,
        mean=[float(v) for v in clip.mean],
        std=[float(v) for v in clip.std],
        fused=True,
        batch=[1, 1, BATCH],
        precision="fp32",
        opset=0,
        engines={},
        sha256={},
        model={
            "method": config.method,
            "backbone": model.backbone_identity,
            "patch_size": clip.patch_size,
            "layers": clip.visual_layers,
            "width": clip.visual_width,
            "prompts": [0 if p is None else sum(len(layer) for layer in p) for p in model.visual_prompts()],
            "classes": len(model.classes),
            "class_names": list(model.classes),
        },
        verification={},
        versions={},
        dimensions=list(model.dimensions),
    )


class FileRunner:
    """What runners of files share: a session for each modality, made when it is first needed."""

    on_cpu = True

    def __init__(self, folder: Path, about: Manifest, built: Built) -> None:
        self._folder, self._about, self._built = folder, about, built
        self._sessions: dict[str, Any] = {}
        self._making = threading.Lock()

    def _session(self, modality: str) -> Any:
        with self._making:
            if modality not in self._sessions:
                paths = [self._folder / name for name in self._built.files[modality]]
                with limited_memory(paths) if self.on_cpu else contextlib.nullcontext():
                    session = self._open(paths[0])
                    if self.on_cpu:
                        S = self._about.image_size
                        pixels = self._input(np.zeros((1, S, S, 3), dtype=np.uint8))
                        try_out(paths[0], lambda: self._run(session, pixels), self._about.embed_dim)
                self._sessions[modality] = session
            return self._sessions[modality]

    def _run(self, session: Any, images: np.ndarray) -> np.ndarray:
        """Features of images as the files take them."""
        raise NotImplementedError

    def _open(self, path: Path) -> Any:
        raise NotImplementedError

    def _input(self, pixels: np.ndarray) -> np.ndarray:
        return pixels if self._about.fused else normalise(pixels, self._about.mean, self._about.std)

    def close(self) -> None:
        self._sessions.clear()


_limiting = threading.Lock()


@contextlib.contextmanager
def limited_memory(paths: Sequence[Path]) -> Iterator[None]:
    """Bound what a model's files can make of a process's memory while they are opened and first run.

    A few kilobytes of ONNX can double a tensor until no memory is left; an error is then raised here instead.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])  # what RLIMIT_DATA counts
        room = SPARE + 8 * sum(path.stat().st_size for path in paths)
    except (OSError, ValueError, IndexError):
        yield
        return
    with _limiting:
        before, most = resource.getrlimit(resource.RLIMIT_DATA)
        limit = pages * resource.getpagesize() + room
        if before != resource.RLIM_INFINITY:
            limit = min(limit, before)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (before, most))


def try_out(path: Path, run: Callable[[], np.ndarray], dim: int) -> None:
    """Run a file once, on one input: what it cannot do must be known before anybody waits for it."""
    try:
        found = run()
    except Exception as error:  # of the engines, which have no common class
        reason = " ".join(str(error).split())[-300:] or type(error).__name__
        raise UserError(f"{path}: cannot be run on one input: {reason}") from None
    if found.shape != (1, dim) or found.dtype != np.float32:
        raise UserError(f"{path}: gives {found.dtype} {list(found.shape)} for one input, not float32 [1, {dim}]")
