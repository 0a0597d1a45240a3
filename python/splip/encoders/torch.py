"""A checkpoint, run by torch."""

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from splip.encoders.base import describe
from splip.encoders.manifest import MODALITIES
from splip.encoders.threads import Threads
from splip.encoders.tokenizer import stack
from splip.errors import UserError
from splip.models.names import Model


class TorchRunner:
    """The deploy graph of a checkpoint, in torch."""

    def __init__(self, found: Model, device: str, threads: int | None, precision: str, compiled: bool) -> None:
        try:
            import torch

            from splip.encoders import graph
            from splip.models.checkpoint import pick_device
            from splip.models.registry import load_model
        except ImportError as error:
            raise UserError(
                f"{found.name}: a {found.kind} needs PyTorch and open_clip ({error}); without them, `splip export` it elsewhere"
            ) from None
        if precision not in graph.DTYPES:
            raise UserError(f"precision must be one of {', '.join(graph.DTYPES)}, got {precision}")
        self._torch, self._device = torch, pick_device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        self._threads = Threads(torch)
        model = load_model(found, self._device)
        self._model: Any = model
        self.precision = precision
        self.about = describe(found, model)
        self._encoders: dict[str, Any]
        if model.per_image:  # prompts that depend on the image: the deploy graph has constants only
            if compiled or precision != "fp32":
                raise UserError(f"{found.name}: conditioning: instance runs in engine torch and fp32 only")
            self._encoders = {name: self._per_image(number) for number, name in enumerate(MODALITIES)}
        else:
            encoders = graph.encoders(model, precision, fused=True)
            self._encoders = {name: encoder.to(self._device) for name, encoder in encoders.items()}
        self._tower = functools.cache(self._fold_text)  # made when the first text comes
        self._lock = threading.Lock()
        self._plain = dict(self._encoders)
        self._serial = compiled  # compiled functions are made when they are first called
        if compiled:
            self._encoders = {name: torch.compile(encoder) for name, encoder in self._encoders.items()}

    def __call__(self, pixels: np.ndarray, modality: str) -> np.ndarray:
        with self._threads.of(len(pixels)):
            return self._encoded(pixels, modality)

    def settle(self) -> int:
        """Find out how many threads encode few pictures soonest: for whoever sends few at a time, and waits for them.

        Returns:
            how many pictures at a time one thread encodes from now on, 0: none.
        """
        if self._device.type == "cpu" and not self._serial:
            side = self.about.image_size
            self._threads.measure(
                lambda count: self._encoded(np.zeros((count, side, side, 3), np.uint8), MODALITIES[0])
            )
        return self._threads.few

    def _encoded(self, pixels: np.ndarray, modality: str) -> np.ndarray:
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

    @property
    def sums(self) -> bool:
        """Whether :meth:`parts` can be asked for: a stem that mixes all patches leaves none of them to speak of."""
        from splip.encoders.graph import DeployEncoder

        return all(isinstance(e, DeployEncoder) and e.stem is None for e in self._plain.values())

    def parts(self, pixels: np.ndarray, modality: str) -> np.ndarray:
        """Features as sums, float32 ``[B, 1 + P, D]``, of uint8 ``[B, S, S, 3]``: see :mod:`splip.encoders.explain`."""
        from splip.encoders.explain import PartsEncoder

        with self._torch.inference_mode():
            batch = self._torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).to(self._device)
            return cast(np.ndarray, PartsEncoder(self._plain[modality])(batch).cpu().numpy())

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
        tokens = stack(texts, tokenizer.encode, tokenizer.eot_token_id, tower.length)
        modalities = self._torch.full((len(tokens),), number, device=self._device)
        with self._torch.inference_mode():
            features = tower(self._torch.from_numpy(tokens).to(self._device), modalities)
        return cast(np.ndarray, features.cpu().numpy())

    def save(self, path: Path) -> None:
        """Write the model's checkpoint, which of a model without training holds no weights."""
        from splip.models.checkpoint import write_checkpoint

        write_checkpoint(self._model.checkpoint(), path)

    def _fold_text(self) -> Any:
        """The text tower, its prompts folded in; None: texts have to run as the model runs them."""
        from splip.encoders import graph

        if not self._model.per_image and self._model.backbone.reads_byte_pairs:
            with contextlib.suppress(UserError):  # blocks that are not understood
                return graph.text_encoder(self._model).to(self._device)
        return None

    def close(self) -> None:
        self._encoders.clear()
        self._plain.clear()
        self._tower.cache_clear()
        self._model = None
