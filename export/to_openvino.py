"""From an ONNX file to OpenVINO's own format, in float32, with float16 weights, or in 8-bit integers."""

import contextlib
import io
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from splip.encoders.base import no_telemetry
from splip.errors import UserError


def need(int8: bool) -> None:
    """Raises UserError if a package is missing."""
    try:
        no_telemetry()
        import openvino  # noqa: F401
    except ImportError:
        raise UserError("--openvino needs openvino: pip install 'splip[openvino]'") from None
    if int8:
        try:
            _nncf()
        except ImportError:
            raise UserError("--openvino --precision int8 needs nncf: pip install 'splip[int8]'") from None


def _nncf() -> Any:
    # It would tell its makers of every use.
    os.environ.setdefault("NNCF_CI", "1")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # imported with it; looks for CUDA
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf


def write(source: Path, path: Path, half: bool = False, calibration: np.ndarray | None = None) -> list[str]:
    """Write ``<path>.xml`` and ``<path>.bin``.

    Args:
        source: a float32 ONNX file, its head written as a sum: that keeps it out of bfloat16 and int8.
        path: without suffix.
        half: keep weights in float16, half the size; computing stays as the CPU is told.
        calibration: images as the model takes them: quantise to int8 with them.

    Returns:
        Names of the two files, the model first.
    """
    import openvino

    model = openvino.Core().read_model(str(source))
    if calibration is not None:
        model = _quantise(model, calibration)
    xml = path.with_name(path.name + ".xml")
    try:
        openvino.save_model(model, str(xml), compress_to_fp16=half)
    except RuntimeError as error:  # what it raises when the disk is full
        raise UserError(
            f"{xml}: OpenVINO cannot write it (is the disk full?): {' '.join(str(error).split())[:200]}"
        ) from None
    return [xml.name, path.name + ".bin"]


def _quantise(model: Any, calibration: np.ndarray) -> Any:
    nncf = _nncf()
    with contextlib.redirect_stdout(io.StringIO()):  # it draws bars in log files too
        return nncf.quantize(
            model,
            nncf.Dataset([image[None] for image in calibration]),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
        )


def has_bf16() -> bool:
    """Whether OpenVINO can compute in bfloat16 on this CPU, fast or not."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
