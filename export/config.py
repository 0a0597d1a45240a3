"""Settings of `splip export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass
class ExportConfig:
    """Write the sketch and photo encoders of a checkpoint as verified files that run without training code."""

    model: tyro.conf.Positional[str]
    """A run, its best.safetensors, or any other name of a model, see `splip models`."""
    out: Path
    """Folder to write: sketch.* and photo.*, export.json, and a model card README.md."""
    onnx: bool = False
    """Write ONNX files; the default when no other format is named, and always with --trt."""
    trt: bool = False
    """Build engines with TensorRT, else with TensorRT-RTX, which needs no GPU for it (they are marked "built, not
    run"). Where neither can build, the ONNX files are written and the exit code is 3."""
    openvino: bool = False
    """Write OpenVINO's own files: the fastest on a CPU."""
    text: bool = False
    """Also the text tower, so that galleries of this export are searched by words too: text.onnx, fp32, run on the CPU
    by onnxruntime or OpenVINO whatever the images run in."""
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    """Of the blocks' matrix products; pixels, residuals, LayerNorms and the last projection stay in fp32. OpenVINO
    computes fp32 files in bf16 where the CPU has AMX and the verification allows it."""
    batch: str = "1:8:64"
    """Fewest, usual and most images per call, min:opt:max; larger batches are split."""
    fuse_preprocess: bool = False
    """Take uint8 pixels [B, S, S, 3] and normalise them in the graph, instead of normalised float32 [B, 3, S, S]."""
    opset: int | None = None
    """ONNX opset, 18 to 23; none: 20, and 23 for bf16."""
    images: Path | None = None
    """Pictures to verify with: a folder that holds sketch/ and photo/, or any pictures; none: the sample data. Files
    whose features differ too much are kept as *.rejected, and the exit code is 1."""
    calibration: Path | None = None
    """int8: pictures like those to be searched, laid out as for --images, or sample."""
    compute_capability: tuple[str, ...] = ()
    """TensorRT-RTX: kinds of GPUs to build for, e.g. 8.6 8.9 12.0; none: the GPU here, else the library's list."""
    hardware_compatible: Literal["none", "ampere+", "same"] = "none"
    """TensorRT: let the engine run on other GPUs too: from Ampere on, or of the same compute capability."""
    version_compatible: bool = False
    """TensorRT: let later versions of the library run the engine."""
    timing_cache: Path | None = None
    """TensorRT: file that remembers measured kernels between builds; needs a GPU."""
    overwrite: bool = False
    """Replace an existing export."""
