"""``splip info``: what a bug report needs."""

import importlib.metadata
import importlib.util
import os
import platform
import re
from pathlib import Path
from typing import Any

import splip
from splip.cli.config import InfoConfig
from splip.report import Report


def info(config: InfoConfig) -> Report:
    from splip import _C
    from splip.ops import host

    lines: list[tuple[str, Any]] = [
        ("splip", f"{splip.__version__} ({os.path.dirname(os.path.abspath(splip.__file__))})"),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", torch_version()),
    ]
    lines += [(package, version(package)) for package in ("open_clip_torch", "numpy", "pillow")]
    lines += [
        ("cpu threads", host.threads()),
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
    for name, value in [] if config.json else lines:
        print(f"{name:{width}}  {value}")
    return Report(**{name.replace(" ", "_"): value for name, value in lines})


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def torch_version() -> str:
    """With its CUDA, which the installer does not know of; without importing it."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.origin:
        return "not installed"
    told = Path(found.origin).with_name("version.py")
    match = re.search(r"^__version__ = '([^']+)'", told.read_text(encoding="utf-8") if told.is_file() else "", re.M)
    return match[1] if match else version("torch")
