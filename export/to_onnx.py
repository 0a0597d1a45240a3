"""From the deploy graph to an ONNX file, and from that to one of 8-bit integers."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splip.encoders.graph import ImageEncoder, WordEncoder
from splip.encoders.manifest import INPUT, OUTPUT, Batch
from splip.errors import UserError

# bfloat16 is for TensorRT, which fuses the Attention of opset 23; float32 has no fused kernel there.
OPSETS = {"fp32": 20, "fp16": 20, "bf16": 23, "int8": 20}
OLDEST, NEWEST = 18, 23
OLDEST_BF16 = 22
PERCENTILE = 99.99  # of the activations; the few beyond are cut off, which costs less than a coarser step for all
ONE_FILE = 1_900_000_000  # bytes; a protobuf must stay under 2 GiB


def check_opset(opset: int | None, precision: str) -> int:
    """The opset to write.

    Raises:
        UserError: one that is not supported, or in which the precision does not exist.
    """
    if opset is None:
        return OPSETS[precision]
    oldest = OLDEST_BF16 if precision == "bf16" else OLDEST
    if not oldest <= opset <= NEWEST:
        raise UserError(f"--opset must be between {oldest} and {NEWEST} for {precision}, got {opset}")
    return opset


def need() -> None:
    """Raises UserError if a package is missing that writing ONNX takes."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"writing ONNX needs {error.name}: pip install 'splip[onnx]'") from None


def write(
    encoder: ImageEncoder | WordEncoder, path: Path, batch: Batch, opset: int, about: dict[str, str]
) -> list[str]:
    """Write the encoder with a batch axis of any length.

    Args:
        encoder: see :mod:`splip.encoders.graph`.
        path: the file; weights of more than 2 GB go into a second one beside it.
        batch: its max is the longest batch that the graph must take.
        opset: see :func:`check_opset`.
        about: written into the file's metadata.

    Returns:
        Names of the files, the model first.
    """
    import onnx

    examples, axes = encoder.inputs(batch.max)
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                encoder,
                tuple(examples.values()),
                input_names=list(examples),
                output_names=[OUTPUT],
                dynamo=True,
                dynamic_shapes=tuple(axes),
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
    finally:
        log.setLevel(level)
    assert program is not None
    model = program.model
    # The tracer notes for every node which lines of which files it came from.
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    model.metadata_props.update(about)
    model.producer_name = "splip"
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    external = size > ONE_FILE
    program.save(str(path), external_data=external)
    onnx.checker.check_model(str(path), full_check=True)
    return [path.name, path.name + ".data"] if external else [path.name]


def quantise(source: Path, path: Path, calibration: np.ndarray) -> None:
    """Write the model with 8-bit matrix products.

    Quantise/dequantise nodes around every product with a weight, symmetric, weights per channel: TensorRT takes no
    other kind. Products of two activations (attention) and the last projection stay in float32.

    Args:
        source: the float32 file.
        path: the file to write.
        calibration: images as the model takes them.
    """
    import onnx

    try:
        from onnxruntime import quantization
    except ImportError:
        raise UserError("quantising ONNX needs onnxruntime: pip install 'splip[onnx]'") from None

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(_chunks(calibration, 8))

        def get_next(self) -> Any:
            return next(self._batches, None)

    graph = onnx.load(str(source), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    products = [n for n in graph.node if n.op_type in ("MatMul", "Gemm")]
    head = products[-1]
    kept = [n.name for n in products if n is head or not weights.intersection(n.input)]
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advises a preparation that changes nothing here
    with contextlib.redirect_stdout(io.StringIO()):
        quantization.quantize_static(
            str(source),
            str(path),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=kept,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.Percentile,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "CalibPercentile": PERCENTILE,
            },
        )
    logging.getLogger().setLevel(level)
    onnx.checker.check_model(str(path), full_check=True)


def _chunks(images: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(images), size):
        yield {INPUT: images[start : start + size]}
