"""Encoders behind one class: a checkpoint through torch, or an export folder through the engine that fits this machine.

Importing this module imports numpy and Pillow only; torch or an engine is imported when an encoder asks for it.

``engine="auto"``: a checkpoint runs in torch. Of an export folder the first of these that is there is taken: on a GPU
``tensorrt``, then ``onnxruntime`` with CUDA; on the CPU ``openvino``, then ``onnxruntime``.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from splip import images
from splip.encoders import compact, cuda, manifest, tensorrt_runtime
from splip.encoders.base import BATCH, Runner, flag, import_engine, installed
from splip.encoders.explanation import Box, Explanation, Method, Share, box, by_removal, share
from splip.encoders.manifest import MODALITIES, Manifest
from splip.encoders.onnxruntime import CUDA_PROVIDER, OnnxRuntimeRunner
from splip.encoders.openvino import OpenVinoRunner
from splip.encoders.tensorrt import TensorRtRunner
from splip.encoders.text import TextTower
from splip.encoders.torch import TorchRunner
from splip.errors import UserError
from splip.models import vocabulary
from splip.models.names import Model, resolve
from splip.models.vocabulary import Vocabulary

ENGINES = ("torch", "compile", "onnxruntime", "onnxruntime-tensorrt", "openvino", "tensorrt")
FILES = {"onnxruntime": "onnx", "onnxruntime-tensorrt": "onnx", "openvino": "openvino", "tensorrt": "tensorrt"}


class Encoder:
    """Sketches, photos (and texts) to unit-length vectors, by whichever engine.

    Made by :meth:`load`. Threads may share it.

    Example::

        encoder = Encoder.load("runs/sample")  # or vit-b-32, or a folder that `splip export` wrote
        pixels = encoder.prepare(images.read(Path("my.png")), "sketch")
        vector = encoder.encode(pixels[None], "sketch")[0]
    """

    def __init__(
        self,
        path: Path | str,
        engine: str,
        runner: Runner,
        about: Manifest,
        low: int = 1,
        high: int = BATCH,
        text: "TextTower | None" = None,
    ) -> None:
        self.path, self.engine, self.precision = path, engine, runner.precision
        self.image_size, self.embed_dim = about.image_size, about.embed_dim
        self.dimensions = tuple(about.dimensions) or (about.embed_dim,)  # that embed_dim may be, see sized()
        self.fit, self.crop_sketches = about.fit, about.crop_sketches
        self.identity, self.name = about.identity, about.name
        self._whole = about.embed_dim, about.identity, about.name
        self._runner: Runner | None = runner
        self._low, self._high = low, high
        self._model = about.model
        self._text = runner if isinstance(runner, TorchRunner) else text

    @classmethod
    def load(
        cls,
        name: Path | str | Model,
        engine: str = "auto",
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: str | None = None,
        cache: Path | None = None,
        dimensions: int | None = None,
    ) -> "Encoder":
        """An encoder that is ready to run.

        Args:
            name: a checkpoint (best.safetensors), a run's folder, one that ``splip export`` wrote, or any name of a model,
                see :mod:`splip.models.names`.
            engine: one of :data:`ENGINES`, or auto: see the top of this module.
            device: cpu, cuda, cuda:1; auto takes a GPU if the engine has one.
            threads: CPU threads; None: one for each processor. torch has one number for the whole process.
            precision: torch, compile: fp32 (default), bf16 or fp16 blocks with a float32 head. openvino: fp32 or
                bf16; default: bf16 if its export was verified so and this CPU has AMX. Others: as exported.
            cache: folder where openvino and onnxruntime-tensorrt keep what they compiled.
            dimensions: D, one of the sizes that the model was trained for; None: all components.

        Raises:
            UserError: no such model, damaged, an engine that is not installed or cannot run it here, or a size that
                the model was not trained for.
        """
        loaded = cls._load(name, engine, device, threads, precision, cache)
        try:
            return loaded if dimensions is None else loaded.sized(dimensions)
        except UserError:
            loaded.close()
            raise

    @classmethod
    def _load(
        cls,
        name: Path | str | Model,
        engine: str,
        device: str,
        threads: int | None,
        precision: str | None,
        cache: Path | None,
    ) -> "Encoder":
        if engine not in ("auto", *ENGINES):
            raise UserError(f"unknown engine {engine}: choose auto, {', '.join(ENGINES)}")
        if threads is not None and threads < 1:
            raise UserError(f"threads must be at least 1, got {threads}")
        index = _gpu_index(device)
        found = name if isinstance(name, Model) else resolve(name)
        if found.path is not None and found.kind == "export":
            return cls._load_export(found.path, engine, device, index, threads, precision, cache)
        if engine not in ("auto", "torch", "compile"):
            raise UserError(
                f"engine {engine} runs exports, {found.name} is a {found.kind}: `splip export {found.name}` first"
            )
        runner = TorchRunner(found, device, threads, precision or "fp32", engine == "compile")
        return cls(found.path or found.name, "torch" if engine == "auto" else engine, runner, runner.about)

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

    def sized(self, dimensions: int) -> "Encoder":
        """The same encoder with shorter vectors, or longer ones again; what one closes is closed for both.

        Args:
            dimensions: one of :attr:`dimensions`; vectors are their first so many components, at unit length again.

        Raises:
            UserError: the model was not trained for this size.
        """
        if dimensions not in self.dimensions:
            sizes = ", ".join(map(str, self.dimensions))
            more = "" if len(self.dimensions) > 1 else "; other sizes take a training with --loss.matryoshka"
            raise UserError(f"{self.path}: was not trained for {dimensions} dimensions, only for {sizes}{more}")
        view = copy.copy(self)
        whole, identity, name = self._whole
        part = None if dimensions == whole else dimensions
        view.embed_dim, view.identity = dimensions, manifest.identity_at(identity, part)
        view.name = name if part is None else f"{name}, {part} of {whole} dimensions"
        return view

    def encode(self, pixels: np.ndarray, modality: str) -> np.ndarray:
        """Unit-length features float32 ``[B, D]`` of prepared images, any B.

        Args:
            pixels: uint8 ``[B, S, S, 3]``.
            modality: sketch or photo.

        Raises:
            ValueError: another shape, dtype or modality.
        """
        runner = self._check(pixels, modality)
        out = np.empty((len(pixels), self.embed_dim), dtype=np.float32)
        for start in range(0, len(pixels), self._high):
            part = np.ascontiguousarray(pixels[start : start + self._high])
            count = len(part)
            if count < self._low:  # an engine built for larger batches: the last image fills it up
                part = np.concatenate([part, np.repeat(part[-1:], self._low - count, axis=0)])
            out[start : start + count] = compact.first(runner(part, modality)[:count], self.embed_dim)
        return out

    def settle(self) -> int:
        """Measure, in about a second, what encodes few pictures at a time soonest, and keep to it: for what serves searches.

        Returns:
            how many pictures at a time are encoded by one thread from now on; 0: none, all threads do it.
        """
        return self._runner.settle() if isinstance(self._runner, TorchRunner) else 0

    def _check(self, pixels: np.ndarray, modality: str) -> Runner:
        """The runner, for images of this shape."""
        if self._runner is None:
            raise RuntimeError("this encoder was closed")
        S = self.image_size
        if modality not in MODALITIES:
            raise ValueError(f"modality must be sketch or photo, got {modality!r}")
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (S, S, 3):
            raise ValueError(f"images must be uint8 [B, {S}, {S}, 3], got {pixels.dtype} {list(pixels.shape)}")
        return self._runner

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
            words = self._text.encode_text(texts[start : start + BATCH], modality)
            out[start : start + BATCH] = compact.first(words, self.embed_dim)
        return out

    # ---- why ----

    @property
    def explains_by(self) -> Method:
        """How :meth:`explain` finds out: see :mod:`splip.encoders.explanation`."""
        return "patches" if isinstance(self._runner, TorchRunner) and self._runner.sums else "removal"

    def explain(self, query: np.ndarray, photo: np.ndarray, modality: str = "sketch") -> Explanation:
        """Why a photo matches a drawing or another photo: their score as a sum over the patches of each, exactly.

        Args:
            query: prepared, uint8 ``[S, S, 3]``.
            photo: prepared, uint8 ``[S, S, 3]``.
            modality: of the query, sketch or photo.
        """
        return self.explain_query(self.encode(query[None], modality)[0], photo, query, modality)

    def explain_query(
        self,
        vector: np.ndarray,
        photo: np.ndarray,
        query: np.ndarray | None = None,
        modality: str = "sketch",
        check: Callable[[], None] = lambda: None,
    ) -> Explanation:
        """The same of any query: of words, or of several parts, one of which may be a picture.

        Args:
            vector: float32 ``[D]`` of unit length, of the whole query.
            photo: prepared, uint8 ``[S, S, 3]``.
            query: the picture among its parts, prepared; its shares are of its own score with the photo.
            modality: of that picture.
            check: called now and then; may raise what ends the work, which can take seconds.
        """
        of_photo = self.explain_towards(vector, photo, check=check)
        if query is None:
            return Explanation(of_photo.score, of_photo, None)
        found = self.encode(photo[None], "photo")[0]
        return Explanation(of_photo.score, of_photo, self.explain_towards(found, query, modality, check))

    def explain_towards(
        self,
        vector: np.ndarray,
        pixels: np.ndarray,
        modality: str = "photo",
        check: Callable[[], None] = lambda: None,
    ) -> Share:
        """What each patch of a picture adds to its score with any vector, as of a text or of several parts.

        Args:
            vector: float32 ``[D]`` of unit length.
            pixels: prepared, uint8 ``[S, S, 3]``.
            modality: of the picture.
            check: see :meth:`explain_query`.
        """
        check()
        if self.explains_by == "patches":
            return share(self.parts(pixels[None], modality)[0], vector)
        white = modality == "sketch" or self.fit == "pad"
        return by_removal(lambda batch: self.encode(batch, modality), pixels, vector, white, check)

    def parts(self, pixels: np.ndarray, modality: str) -> np.ndarray:
        """Features as sums: float32 ``[B, 1 + P, D]``, the rest and then the patches row by row.

        Their sums are what :meth:`encode` gives, but for rounding: see :mod:`splip.encoders.explain`.

        Args:
            pixels: uint8 ``[B, S, S, 3]``.
            modality: sketch or photo.

        Raises:
            UserError: this engine or model has none: :attr:`explains_by` is removal.
            ValueError: another shape, dtype or modality.
        """
        runner = self._check(pixels, modality)
        if not isinstance(runner, TorchRunner) or not runner.sums:
            raise UserError(
                f"{self.path}: its vectors are no sums over the patches of a picture, or not in this engine"
            )
        starts = range(0, len(pixels), BATCH)
        found = [runner.parts(np.ascontiguousarray(pixels[start : start + BATCH]), modality) for start in starts]
        parts = np.concatenate(found)[..., : self.embed_dim]
        if self.embed_dim < self._whole[0]:  # the first components alone, at unit length again
            parts = parts / np.maximum(np.linalg.norm(parts.sum(axis=1, keepdims=True), axis=2, keepdims=True), 1e-12)
        return np.ascontiguousarray(parts, dtype=np.float32)

    def box(self, image: Image.Image) -> Box:
        """What the square that :meth:`prepare` makes of a photo covers: see :func:`splip.encoders.explanation.box`."""
        return box(image, self.image_size, self.fit)

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The words that its text tower was shown; None: that is not known."""
        names = self._model.get("class_names")
        if names is None and self._model.get("classes"):  # an export of before says how many, not which
            return None
        return vocabulary.of(self._model.get("backbone") or {}, names or [])

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """Words of some texts that the model was never shown, each once; none where that is not known."""
        known = self.vocabulary
        return [] if known is None else known.unknown(texts)

    def prepare(self, image: Image.Image, modality: str) -> np.ndarray:
        """A picture as this model takes it: uint8 ``[S, S, 3]``."""
        crop = self.crop_sketches and modality == "sketch"
        return images.square(image, self.image_size, self.fit, crop)

    def save_model(self, path: Path) -> None:
        """Write the checkpoint of a model that has no file of its own.

        Raises:
            UserError: it cannot be written.
        """
        if not isinstance(self._runner, TorchRunner):
            raise RuntimeError("an export is a model of files")
        self._runner.save(path)

    def close(self) -> None:
        """Give back memory and the GPU; the encoder cannot be used any more."""
        runner, self._runner = self._runner, None
        self._text = None
        if runner is not None:
            runner.close()


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


def _gpu_for(engine: str, device: str, index: int | None) -> int | None:
    """The GPU that an engine is to use; onnxruntime takes one that it was not told to only if it can."""
    if engine == "onnxruntime" and device == "auto" and index is not None:
        return index if CUDA_PROVIDER in import_engine("onnxruntime").get_available_providers() else None
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
        raise UserError(f"{path}: holds {held}; engine {engine} needs `splip export --{flag(kind)}`")
    built, fixed = about.engines[kind], engine != "openvino"
    if fixed and precision is not None and precision != about.precision:
        raise UserError(f"{path}: was exported in {about.precision}, engine {engine} cannot run it in {precision}")
    about.check(path, kind)
    if engine == "openvino":
        return OpenVinoRunner(path, about, built, threads, precision, cache)
    if engine == "tensorrt":
        return TensorRtRunner(path, about, built, index)
    return OnnxRuntimeRunner(path, about, built, engine, index, threads, cache)
