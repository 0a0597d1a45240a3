"""From an ONNX file to an engine of TensorRT 10, 11 or TensorRT-RTX.

One way for all: the network is strongly typed, so its types are those of the ONNX file (version 11 knows no other
way), with one optimisation profile over the batch. TensorRT-RTX builds without a GPU, for named kinds of GPUs.
"""

import os
import re
from pathlib import Path
from typing import Any

from splip import disk
from splip.encoders import cuda
from splip.encoders.manifest import INPUT, Batch
from splip.encoders.tensorrt_runtime import INSTALL, Metadata, Unavailable, load_library, make_logger
from splip.errors import UserError


def need(capabilities: tuple[str, ...], version_compatible: bool, timing_cache: Path | None) -> tuple[Any, str]:
    """The library that can build here, before anything slow is begun.

    Raises:
        Unavailable: none is installed, or it needs a GPU that is not here.
        UserError: options that it does not have.
    """
    trt, flavour = load_library("tensorrt-rtx" if capabilities else None)
    if flavour == "tensorrt" and not cuda.gpus():
        try:  # TensorRT-RTX may be installed beside it and needs none
            trt, flavour = load_library("tensorrt-rtx")
        except Unavailable:
            raise Unavailable(f"TensorRT {trt.__version__} builds on a GPU only, and none is here: {INSTALL}") from None
    if flavour == "tensorrt-rtx" and version_compatible:
        raise UserError("--version-compatible is full TensorRT's; TensorRT-RTX has no such engines")
    if timing_cache is not None and not cuda.gpus():
        raise UserError("--timing-cache needs a GPU: without one nothing is timed")
    for capability in capabilities:
        _compute_capability(trt, capability)
    return trt, flavour


def write(
    source: Path,
    path: Path,
    image_shape: list[int],
    batch: Batch,
    *,
    capabilities: tuple[str, ...] = (),
    hardware: str = "none",
    version_compatible: bool = False,
    timing_cache: Path | None = None,
) -> Metadata:
    """Build an engine and write it and its sidecar.

    Args:
        source: the ONNX file; float32, float16, bfloat16, or symmetric int8 (:func:`splip.export.to_onnx.quantise`).
        path: the engine file.
        image_shape: of one image.
        batch: the optimisation profile.
        capabilities: TensorRT-RTX: kinds of GPUs, e.g. 8.9; empty: the GPU here, or without one the library's list.
        hardware: ampere+: also for other GPUs from 8.0 on; same: for all of the same compute capability.
        version_compatible: also for later versions of the library.
        timing_cache: file with the timings of earlier builds, made if it is not there.

    Raises:
        Unavailable: see :func:`need`.
        UserError: the library cannot read or build this model; the message says why.
    """
    trt, flavour = need(capabilities, version_compatible, timing_cache)
    logger, errors = make_logger(trt)

    def refuse(what: str) -> UserError:
        reason = errors[-1] if errors else "it gives no reason"
        return UserError(f"{flavour} {trt.__version__} cannot {what} {source.name}: {reason}")

    builder = trt.Builder(logger)
    # Version 11 has no other networks; in 10 the flag is what makes it so.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)):
        errors += [" ".join(parser.get_error(i).desc().split()) for i in range(parser.num_errors)]
        raise refuse("read")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, *((count, *image_shape) for count in batch))
    if config.add_optimization_profile(profile) < 0:
        raise refuse("take the batch sizes of")
    here = [f"{gpu.capability[0]}.{gpu.capability[1]}" for gpu in cuda.gpus()[:1]]
    _configure(trt, config, flavour, capabilities, here, hardware, version_compatible)
    # Never without a GPU: a timing cache makes TensorRT-RTX ask for one.
    cache = None
    if timing_cache is not None:
        cache = config.create_timing_cache(timing_cache.read_bytes() if timing_cache.is_file() else b"")
        if cache is None or not config.set_timing_cache(cache, False):
            raise UserError(f"{timing_cache}: not a timing cache of {flavour} {trt.__version__} for this GPU")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise refuse("build")
    path.write_bytes(memoryview(plan))
    if cache is not None and timing_cache is not None:
        part = timing_cache.with_name(f".{timing_cache.name}.{os.getpid()}")
        part.write_bytes(memoryview(cache.serialize()))
        os.replace(part, timing_cache)
    metadata = Metadata(
        flavour=flavour,
        version=trt.__version__,
        capabilities=list(capabilities) or here,
        hardware=hardware,
        version_compatible=version_compatible,
        batch=list(batch),
        onnx_sha256=disk.file_hash(source),
        engine_sha256=disk.file_hash(path),
    )
    metadata.save(path)
    return metadata


def _configure(
    trt: Any,
    config: Any,
    flavour: str,
    capabilities: tuple[str, ...],
    here: list[str],
    hardware: str,
    version_compatible: bool,
) -> None:
    """Which GPUs and versions an engine is for; ``here``: the compute capability of this machine's GPU, if there is one."""
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    if version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if hardware != "none":
        level = {"ampere+": "AMPERE_PLUS", "same": "SAME_COMPUTE_CAPABILITY"}[hardware]
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if flavour == "tensorrt-rtx" and (capabilities or here):
        config.num_compute_capabilities = max(1, len(capabilities))
        if capabilities:
            for position, capability in enumerate(capabilities):
                config.set_compute_capability(_compute_capability(trt, capability), position)
        else:
            config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)


def _compute_capability(trt: Any, text: str) -> Any:
    """``8.9`` as the library calls it."""
    known = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in trt.ComputeCapability.__members__.items()
        if re.fullmatch(r"SM\d{2,3}", name)
    }
    if text not in known:
        raise UserError(f"--compute-capability {text}: TensorRT-RTX {trt.__version__} builds for {', '.join(known)}")
    return known[text]
