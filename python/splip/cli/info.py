"""``splip info``: what a bug report needs."""

import importlib.metadata
import os
import platform

import splip
from splip.cli.config import InfoConfig


def info(_: InfoConfig) -> None:
    import torch

    from splip import _C

    lines: list[tuple[str, object]] = [
        ("splip", f"{splip.__version__} ({os.path.dirname(os.path.abspath(splip.__file__))})"),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", torch.__version__),
    ]
    for package in ("open_clip_torch", "numpy", "pillow"):
        lines.append((package, importlib.metadata.version(package)))
    lines += [
        ("cpu threads", torch.get_num_threads()),
        ("instruction sets", " ".join(_C.instruction_sets()) or "unknown"),
        ("cpu kernels", _C.isa()),
    ]
    if not _C.has_cuda:
        lines.append(("cuda kernels", "not built (SPLIP_CUDA=on needs nvcc)"))
    else:
        lines.append(("cuda kernels", f"CUDA {_C.cuda_toolkit} for sm_{_C.cuda_archs.replace(' ', ' sm_')}"))
        try:
            gpus = _C.cuda_devices()
            lines += [(f"gpu {i}", gpu) for i, gpu in enumerate(gpus)] or [("gpu", "none")]
        except RuntimeError as error:
            lines.append(("gpu", f"none ({str(error).split(': ', 1)[1]})"))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:{width}}  {value}")
