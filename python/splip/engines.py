"""Encoders behind one class: a checkpoint through torch, or an export folder through the engine that fits this machine.

Importing this module imports numpy and Pillow only; torch or an engine is imported when an encoder asks for it.

``engine="auto"``: a checkpoint runs in torch. Of an export folder the first of these that is there is taken: on a GPU
``tensorrt``, then ``onnxruntime`` with CUDA; on the CPU ``openvino``, then ``onnxruntime``.
"""

import contextlib
import functools
import importlib
import importlib.util
import os
import resource
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
from PIL import Image

from splip import images, words
from splip.errors import UserError
from splip.export import cuda, manifest, tensorrt_runtime
from splip.export.manifest import MODALITIES, MODALITY, TOKENS, Built, Manifest, Text

ENGINES = ("torch", "compile", "onnxruntime", "onnxruntime-tensorrt", "openvino", "tensorrt")
FILES = {"onnxruntime": "onnx", "onnxruntime-tensorrt": "onnx", "openvino": "openvino", "tensorrt": "tensorrt"}
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
BATCH = 64  # images that torch takes at once
SPARE = 4 << 30  # bytes that opening and first running a file may take, besides eight times its size
OPENVINO_HINTS = {"fp32": "f32", "bf16": "bf16"}  # its names of what it computes in
CUDA_PROVIDER, TENSORRT_PROVIDER = "CUDAExecutionProvider", "TensorrtExecutionProvider"

Precision = Literal["fp32", "bf16", "fp16"]


class Runner(Protocol):
    """What an engine must do."""

    precision: str

    def __call__(self, pixels: np.ndarray, modality: str) -> np.ndarray:
        """Features float32 ``[B, D]`` of uint8 ``[B, S, S, 3]``; called by several threads at a time."""

    def close(self) -> None: ...


class Encoder:
    """Sketches, photos (and texts) to unit-length vectors, by whichever engine.

    Made by :meth:`load`. Threads may share it.

    Example::

        encoder = Encoder.load("runs/sample/best.pt")  # or a folder that `splip export` wrote
        pixels = encoder.prepare(images.read(Path("my.png")), "sketch")
        vector = encoder.encode(pixels[None], "sketch")[0]
    """

    def __init__(
        self,
        path: Path,
        engine: str,
        runner: Runner,
        about: Manifest,
        low: int = 1,
        high: int = BATCH,
        text: "TextTower | None" = None,
    ) -> None:
        self.path, self.engine, self.precision = path, engine, runner.precision
        self.image_size, self.embed_dim = about.image_size, about.embed_dim
        self.fit, self.crop_sketches = about.fit, about.crop_sketches
        self.identity, self.name = about.identity, about.name
        self._runner: Runner | None = runner
        self._low, self._high = low, high
        self._text = runner if isinstance(runner, _Torch) else text

    @classmethod
    def load(
        cls,
        path: Path | str,
        engine: str = "auto",
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: str | None = None,
        cache: Path | None = None,
    ) -> "Encoder":
        """An encoder that is ready to run.

        Args:
            path: a checkpoint (best.pt), or a folder that ``splip export`` wrote.
            engine: one of :data:`ENGINES`, or auto: see the top of this module.
            device: cpu, cuda, cuda:1; auto takes a GPU if the engine has one.
            threads: CPU threads; None: one for each processor. torch has one number for the whole process.
            precision: torch, compile: fp32 (default), bf16 or fp16 blocks with a float32 head. openvino: fp32 or
                bf16; default: bf16 if its export was verified so and this CPU has AMX. Others: as exported.
            cache: folder where openvino and onnxruntime-tensorrt keep what they compiled.

        Raises:
            UserError: no such model, damaged, an engine that is not installed or cannot run it here.
        """
        path = Path(path)
        if engine not in ("auto", *ENGINES):
            raise UserError(f"unknown engine {engine}: choose auto, {', '.join(ENGINES)}")
        if threads is not None and threads < 1:
            raise UserError(f"threads must be at least 1, got {threads}")
        index = _gpu_index(device)
        if manifest.is_export(path):
            return cls._load_export(path, engine, device, index, threads, precision, cache)
        if path.is_dir():
            raise UserError(f"{path}: not an export (no {manifest.FILE}), and a checkpoint is a file such as best.pt")
        if engine not in ("auto", "torch", "compile"):
            raise UserError(f"engine {engine} runs exports, {path} is a checkpoint: `splip export {path}` first")
        runner = _Torch(path, device, threads, precision or "fp32", engine == "compile")
        return cls(path, "torch" if engine == "auto" else engine, runner, runner.about)

    @classmethod
    def _load_export(
        cls,
        path: Path,
        engine: str,
        device: str,
        index: int | None,
        threads: int | None,
        precision: str | None,
        cache: Path | None,
    ) -> "Encoder":
        about = manifest.read(path)
        if engine in ("torch", "compile"):
            raise UserError(
                f"engine {engine} runs checkpoints, {path} is an export: give the checkpoint it was made of"
            )
        if engine == "openvino" and device.startswith("cuda"):
            raise UserError(f"engine openvino runs on the CPU here, not on {device}")
        if engine.endswith("tensorrt") and device == "cpu":
            raise UserError(f"engine {engine} runs on a GPU, not on the CPU")
        choices = _candidates(about, device) if engine == "auto" else [(engine, _gpu_for(engine, device, index))]
        for position, (name, gpu) in enumerate(choices):
            try:
                runner = _make_runner(path, about, name, gpu, threads, precision, cache)
            except UserError as error:
                if position == len(choices) - 1:
                    raise
                warnings.warn(f"{error}; trying {choices[position + 1][0]}", RuntimeWarning, stacklevel=3)
                continue
            low, _, high = about.batch
            text = None
            if about.text is not None:  # onnxruntime takes texts of changing lengths better
                which = "onnxruntime" if installed("onnxruntime") else "openvino"
                text = TextTower(path, about, about.text, which, threads)
            return cls(path, name, runner, about, low if name.endswith("tensorrt") else 1, high, text)
        raise UserError(_nothing_runs(path, about, device))

    def encode(self, pixels: np.ndarray, modality: str) -> np.ndarray:
        """Unit-length features float32 ``[B, D]`` of prepared images, any B.

        Args:
            pixels: uint8 ``[B, S, S, 3]``.
            modality: sketch or photo.

        Raises:
            ValueError: another shape, dtype or modality.
        """
        if self._runner is None:
            raise RuntimeError("this encoder was closed")
        S = self.image_size
        if modality not in MODALITIES:
            raise ValueError(f"modality must be sketch or photo, got {modality!r}")
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (S, S, 3):
            raise ValueError(f"images must be uint8 [B, {S}, {S}, 3], got {pixels.dtype} {list(pixels.shape)}")
        out = np.empty((len(pixels), self.embed_dim), dtype=np.float32)
        for start in range(0, len(pixels), self._high):
            part = np.ascontiguousarray(pixels[start : start + self._high])
            count = len(part)
            if count < self._low:  # an engine built for larger batches: the last image fills it up
                part = np.concatenate([part, np.repeat(part[-1:], self._low - count, axis=0)])
            out[start : start + count] = self._runner(part, modality)[:count]
        return out

    def encode_text(self, texts: Sequence[str], modality: str = "photo") -> np.ndarray:
        """Unit-length features float32 ``[C, D]`` of class names or short descriptions.

        Args:
            texts: "a horse" is read as "horse".
            modality: what they are prompted as, sketch or photo.

        Raises:
            UserError: this model has no text tower here, or a text is too long for it.
        """
        if self._runner is None:
            raise RuntimeError("this encoder was closed")
        if self._text is None:
            raise UserError(
                f"{self.path}: this export holds no text tower: export the checkpoint again, with --text, or search "
                "with the checkpoint itself"
            )
        if modality not in MODALITIES:
            raise ValueError(f"modality must be sketch or photo, got {modality!r}")
        out = np.empty((len(texts), self.embed_dim), dtype=np.float32)
        for start in range(0, len(texts), BATCH):
            out[start : start + BATCH] = self._text.encode_text(texts[start : start + BATCH], modality)
        return out

    def prepare(self, image: Image.Image, modality: str) -> np.ndarray:
        """A picture as this model takes it: uint8 ``[S, S, 3]``."""
        crop = self.crop_sketches and modality == "sketch"
        return images.square(image, self.image_size, self.fit, crop)

    def close(self) -> None:
        """Give back memory and the GPU; the encoder cannot be used any more."""
        runner, self._runner = self._runner, None
        self._text = None
        if runner is not None:
            runner.close()


# ---- which engine ----


def _gpu_index(device: str) -> int | None:
    """The GPU that a device names: cuda is 0, auto is 0 if there is one, cpu is None."""
    if device == "cpu":
        return None
    if device == "auto":
        return 0 if cuda.gpus() else None
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number.isdigit() or (not number and device == "cuda")):
        raise UserError(f"no device {device}: choose auto, cpu, cuda, cuda:0, ...")
    return int(number or 0)


def installed(package: str) -> bool:
    """Whether a package can be imported, without doing so."""
    return importlib.util.find_spec(package) is not None


def _gpu_for(engine: str, device: str, index: int | None) -> int | None:
    """The GPU that an engine is to use; onnxruntime takes one that it was not told to only if it can."""
    if engine == "onnxruntime" and device == "auto" and index is not None:
        return index if CUDA_PROVIDER in _import("onnxruntime").get_available_providers() else None
    return index


def _candidates(about: Manifest, device: str) -> list[tuple[str, int | None]]:
    """The engines that may run an export here and their GPUs, the fastest first."""
    found: list[tuple[str, int | None]] = []
    index, onnx = _gpu_index(device), "onnx" in about.engines and installed("onnxruntime")
    if index is not None:
        if "tensorrt" in about.engines and any(map(installed, tensorrt_runtime.MODULES.values())):
            found.append(("tensorrt", index))
        if onnx and _gpu_for("onnxruntime", device, index) is not None:
            found.append(("onnxruntime", index))
    if not device.startswith("cuda"):
        if ("openvino" in about.engines or "onnx" in about.engines) and installed("openvino"):
            found.append(("openvino", None))
        if onnx and about.precision != "bf16":  # onnxruntime multiplies no bfloat16 on a CPU
            found.append(("onnxruntime", None))
    return found


def _nothing_runs(path: Path, about: Manifest, device: str) -> str:
    if not about.engines:
        return f"{path}: holds no engine that passed its verification"
    held = ", ".join(about.engines)
    return (
        f"{path}: holds {held}, and nothing here runs that on {device}: "
        "pip install 'splip[openvino]' or 'splip[onnx]', or for engines " + tensorrt_runtime.INSTALL
    )


def _make_runner(
    path: Path,
    about: Manifest,
    engine: str,
    index: int | None,
    threads: int | None,
    precision: str | None,
    cache: Path | None,
) -> Runner:
    kind = FILES[engine]
    if engine == "openvino" and kind not in about.engines:
        kind = "onnx"  # it reads those too
    if kind not in about.engines:
        held = ", ".join(about.engines) or "nothing that passed its verification"
        raise UserError(f"{path}: holds {held}; engine {engine} needs `splip export --{_flag(kind)}`")
    built, fixed = about.engines[kind], engine != "openvino"
    if fixed and precision is not None and precision != about.precision:
        raise UserError(f"{path}: was exported in {about.precision}, engine {engine} cannot run it in {precision}")
    about.check(path, kind)
    if engine == "openvino":
        return _OpenVino(path, about, built, threads, precision, cache)
    if engine == "tensorrt":
        return _TensorRt(path, about, built, index)
    return _OnnxRuntime(path, about, built, engine, index, threads, cache)


def _flag(kind: str) -> str:
    return {"tensorrt": "trt"}.get(kind, kind)


def _import(package: str) -> Any:
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


# ---- engines ----


class _Torch:
    """The deploy graph of a checkpoint, in torch."""

    def __init__(self, path: Path, device: str, threads: int | None, precision: str, compiled: bool) -> None:
        try:
            import torch

            from splip.export import graph
            from splip.model import load_model, pick_device
        except ImportError as error:
            raise UserError(
                f"{path}: a checkpoint needs PyTorch and open_clip ({error}); without them, `splip export` it elsewhere"
            ) from None
        if precision not in graph.DTYPES:
            raise UserError(f"precision must be one of {', '.join(graph.DTYPES)}, got {precision}")
        self._torch, self._device = torch, pick_device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        model = load_model(path, self._device)
        self._model: Any = model
        self.precision = precision
        self.about = describe(path, model)
        self._encoders: dict[str, Any]
        if model.per_image:  # prompts that depend on the image: the deploy graph has constants only
            if compiled or precision != "fp32":
                raise UserError(f"{path}: conditioning: instance runs in engine torch and fp32 only")
            self._encoders = {name: self._per_image(number) for number, name in enumerate(MODALITIES)}
        else:
            encoders = graph.encoders(model, precision, fused=True)
            self._encoders = {name: encoder.to(self._device) for name, encoder in encoders.items()}
        self._tower = functools.cache(self._fold_text)  # made when the first text comes
        self._lock = threading.Lock()
        self._serial = compiled  # compiled functions are made when they are first called
        if compiled:
            self._encoders = {name: torch.compile(encoder) for name, encoder in self._encoders.items()}

    def __call__(self, pixels: np.ndarray, modality: str) -> np.ndarray:
        if not pixels.flags.writeable:
            pixels = pixels.copy()  # torch warns of arrays that it must not write to
        with self._torch.inference_mode():
            batch = self._torch.from_numpy(pixels).to(self._device)
            if not self._serial:
                return cast(np.ndarray, self._encoders[modality](batch).cpu().numpy())
            with self._lock:
                try:
                    return cast(np.ndarray, self._encoders[modality](batch).cpu().numpy())
                except self._torch._dynamo.exc.BackendCompilerFailed as error:
                    reason = " ".join(str(error).split())[:200]
                    raise UserError(f"engine compile needs a C++ compiler that torch can use: {reason}") from None

    def _per_image(self, number: int) -> Callable[[Any], Any]:
        return lambda batch: self._model.encode_image(batch.permute(0, 3, 1, 2), number)

    def encode_text(self, texts: Sequence[str], modality: str) -> np.ndarray:
        number = MODALITIES.index(modality)
        with self._lock:
            tower = self._tower()
            if tower is None:
                features = self._model.encode_text(list(texts), number)
                return cast(np.ndarray, features.float().cpu().numpy())
        tokenizer = self._model.backbone.tokenizer
        tokens = words.stack(texts, tokenizer.encode, tokenizer.eot_token_id, tower.length)
        modalities = self._torch.full((len(tokens),), number, device=self._device)
        with self._torch.inference_mode():
            features = tower(self._torch.from_numpy(tokens).to(self._device), modalities)
        return cast(np.ndarray, features.cpu().numpy())

    def _fold_text(self) -> Any:
        """The text tower, its prompts folded in; None: texts have to run as the model runs them."""
        from splip.export import graph

        if not self._model.per_image and self._model.backbone.reads_byte_pairs:
            with contextlib.suppress(UserError):  # blocks that are not understood
                return graph.text_encoder(self._model).to(self._device)
        return None

    def close(self) -> None:
        self._encoders.clear()
        self._tower.cache_clear()
        self._model = None


def describe(path: Path, model: Any) -> Manifest:
    """What a manifest says of a checkpoint's model, without any files."""
    import splip

    clip, config = model.backbone, model.config
    return Manifest(
        format=manifest.FORMAT,
        splip=splip.__version__,
        identity=manifest.file_hash(path),
        name=f"{path.name} ({config.backbone.name}, {config.method})",
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
        },
        verification={},
        versions={},
    )


class _PerModality:
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
                with _limited_memory(paths) if self.on_cpu else contextlib.nullcontext():
                    session = self._open(paths[0])
                    if self.on_cpu:
                        S = self._about.image_size
                        pixels = self._input(np.zeros((1, S, S, 3), dtype=np.uint8))
                        _try_out(paths[0], lambda: self._run(session, pixels), self._about.embed_dim)
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
def _limited_memory(paths: Sequence[Path]) -> Iterator[None]:
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


def _try_out(path: Path, run: Callable[[], np.ndarray], dim: int) -> None:
    """Run a file once, on one input: what it cannot do must be known before anybody waits for it."""
    try:
        found = run()
    except Exception as error:  # of the engines, which have no common class
        reason = " ".join(str(error).split())[-300:] or type(error).__name__
        raise UserError(f"{path}: cannot be run on one input: {reason}") from None
    if found.shape != (1, dim) or found.dtype != np.float32:
        raise UserError(f"{path}: gives {found.dtype} {list(found.shape)} for one input, not float32 [1, {dim}]")


def _onnxruntime_session(path: Path, threads: int | None, providers: list[Any]) -> Any:
    ort = _import("onnxruntime")
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


def _openvino_settings(precision: str, threads: int | None) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": OPENVINO_HINTS.get(precision, "f32"),  # int8: what is not quantised
        "INFERENCE_NUM_THREADS": threads or len(os.sched_getaffinity(0)),
    }


def _openvino_request(core: Any, path: Path, settings: dict[str, Any]) -> Any:
    try:
        return core.compile_model(str(path), "CPU", settings).create_infer_request()
    except RuntimeError as error:
        raise UserError(f"{path}: OpenVINO cannot load it: {' '.join(str(error).split())[:300]}") from None


class _OnnxRuntime(_PerModality):
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
        self._ort, self._threads = _import("onnxruntime"), threads
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
        session = _onnxruntime_session(path, self._threads, self._providers)
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


def has_amx() -> bool:
    """Whether this CPU multiplies bfloat16 tiles; without them bfloat16 is slower than float32 in OpenVINO."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return "amx_bf16" in flags.split()


class _OpenVino(_PerModality):
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
        openvino = _import("openvino")
        self._core, self._lock = openvino.Core(), threading.Lock()
        if precision is not None and precision not in (*OPENVINO_HINTS, *built.precisions):
            raise UserError(f"engine openvino runs fp32 or bf16, got precision {precision}")
        if precision == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UserError("engine openvino cannot compute in bf16 on this CPU: leave precision out, or take fp32")
        if precision is None:
            able = [p for p in built.precisions if p != "bf16" or has_amx()]
            precision = able[0] if able else "fp32"
        self.precision = precision
        self._settings = _openvino_settings(precision, threads)
        if cache is not None:
            self._settings["CACHE_DIR"] = str(cache)

    def _open(self, path: Path) -> Any:
        return _openvino_request(self._core, path, self._settings)

    def __call__(self, pixels: np.ndarray, modality: str) -> np.ndarray:
        request, feed = self._session(modality), self._input(pixels)
        with self._lock:  # one request at a time uses all cores
            return self._run(request, feed)

    def _run(self, session: Any, images: np.ndarray) -> np.ndarray:
        return cast(np.ndarray, session.infer([images], share_inputs=True)[0].copy())


class _TensorRt(_PerModality):
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

    def _load(self) -> tuple[words.Reader, Callable[[dict[str, np.ndarray]], np.ndarray]]:
        self._about.check_files(self._folder, self._text.files)
        read = words.Reader(self._folder / words.FILE, self._text.end, self._text.length)
        paths = [self._folder / name for name in self._text.files]
        with _limited_memory(paths):
            run = self._open(paths[0])
            feed = {TOKENS: np.full((1, 1), self._text.end), MODALITY: np.zeros(1, dtype=np.int64)}
            _try_out(paths[0], lambda: run(feed), self._about.embed_dim)
        return read, run

    def _open(self, path: Path) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
        if self._engine == "openvino":
            request = _openvino_request(_import("openvino").Core(), path, _openvino_settings("fp32", self._threads))
            return lambda feed: cast(np.ndarray, request.infer(feed)[0].copy())
        session = _onnxruntime_session(path, self._threads, ["CPUExecutionProvider"])
        return lambda feed: cast(np.ndarray, session.run([manifest.OUTPUT], feed)[0])
