"""Build TensorRT engines on the GPU of this machine, run them, and compare them with torch.

    python -m splip.export.gpu_check

For machines with a GPU: what cannot be proved without one. Without a GPU or TensorRT it says so and does nothing.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splip.encoders import cuda, graph, tensorrt_runtime
from splip.encoders.base import describe
from splip.encoders.manifest import MODALITIES, Batch
from splip.errors import UserError
from splip.export import to_onnx, to_tensorrt, verify
from splip.models.config import BackboneConfig, TrainConfig
from splip.models.splip import SpLIP

BACKBONES = ("splip-tiny", "ViT-B-32")
PRECISIONS = ("fp32", "fp16", "bf16")
BATCH = Batch(1, 8, 64)
REPEATS = 30


def gpu_check(backbones: tuple[str, ...] = BACKBONES, precisions: tuple[str, ...] = PRECISIONS) -> dict[str, Any]:
    """What TensorRT makes of our encoders here.

    Returns:
        ``{"skipped": reason}``; or the library, the GPU, and for each backbone and precision a row with build time,
        size, fidelity to float32 torch, and latency at batch 1, 8 and 64 beside torch's on the same GPU, or with the
        ``error`` that the library gave.
    """
    if not cuda.gpus():
        return {"skipped": "no NVIDIA GPU, or no driver"}
    try:
        trt, flavour = to_tensorrt.need((), False, None)
        to_onnx.need()
    except UserError as error:
        return {"skipped": str(error)}
    gpu = cuda.gpus()[0]
    found: dict[str, Any] = {"library": flavour, "version": trt.__version__, "gpu": gpu.name, "rows": []}
    found["compute_capability"] = f"{gpu.capability[0]}.{gpu.capability[1]}"
    for backbone in backbones:
        torch.manual_seed(0)
        model = SpLIP(TrainConfig(backbone=BackboneConfig(name=backbone)), ["dog", "cup"])
        model.patch_mean.normal_()
        model.eval()
        for precision in precisions:
            row: dict[str, Any] = {"backbone": backbone, "precision": precision}
            try:
                row |= _measure(model, precision)
            except (UserError, RuntimeError) as error:
                row["error"] = str(error)
            found["rows"].append(row)
    return found


def _measure(model: SpLIP, precision: str) -> dict[str, Any]:
    side = model.backbone.image_size
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.pt"
        torch.save(model.checkpoint(), checkpoint)
        pixels = verify.load(None, describe(checkpoint, model), verify.COUNTS)
        wanted = verify.reference(model, pixels)
        encoders, engines, build_s = graph.encoders(model, precision, fused=True), {}, 0.0
        for name in MODALITIES:
            source, path = Path(folder) / f"{name}.onnx", Path(folder) / f"{name}.engine"
            to_onnx.write(encoders[name], source, BATCH, to_onnx.OPSETS[precision], {})
            began = time.monotonic()
            to_tensorrt.write(source, path, [side, side, 3], BATCH)
            build_s += time.monotonic() - began
            engines[name] = tensorrt_runtime.Engine(path)
        size = path.stat().st_size
        try:
            fidelity = verify.compare(wanted, verify.run(lambda part, name: engines[name].run(part), pixels))
            in_torch = graph.encoders(model, precision, fused=True)["sketch"].to("cuda")
            latency = {}
            for count in BATCH:
                images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
                latency[str(count)] = {
                    "tensorrt_ms": _median_ms(lambda images=images: engines["sketch"].run(images)),
                    "torch_ms": _median_ms(lambda images=images: _run_torch(in_torch, images)),
                }
        finally:
            for engine in engines.values():
                engine.close()
    failure = fidelity.failure(precision)
    return {
        "build_s": build_s / len(MODALITIES),
        "engine_MiB": size / 2**20,
        "fidelity": fidelity.to_dict(),
        "passed": failure is None,
        "failure": failure,
        "latency": latency,
    }


def _run_torch(encoder: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        features: np.ndarray = encoder(torch.from_numpy(images).to("cuda")).cpu().numpy()
    return features


def _median_ms(run: Any) -> float:
    """From numpy array to numpy array, copies to the GPU and back included."""
    times = []
    for _ in range(3 + REPEATS):
        began = time.perf_counter()
        run()
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times[3:])


if __name__ == "__main__":
    print(json.dumps(gpu_check(), indent=1))
