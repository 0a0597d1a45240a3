"""The GPU by the driver alone, before anything is built and without importing torch; and the machine's tools."""

import ctypes
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MAJOR, MINOR = 75, 76  # CUdevice_attribute


def gpu() -> dict[str, Any] | None:
    """Name and compute capability of the first GPU; None without one."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(128)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    numbers = [ctypes.c_int(), ctypes.c_int()]
    failed = cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetName(name, len(name), device)
    for number, attribute in zip(numbers, (MAJOR, MINOR), strict=True):
        failed = failed or cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
    if failed:
        return None
    return {"gpu": name.value.decode(errors="replace"), "capability": [n.value for n in numbers]}


def arch_of(found: dict[str, Any] | None) -> str:
    """What to build for: the GPU at hand with its own instructions; Hopper if there is none."""
    major, minor = found["capability"] if found else (9, 0)
    return f"{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")


def missing(tools: tuple[str, ...], modules: tuple[str, ...]) -> list[str]:
    lack = [tool for tool in tools if shutil.which(tool) is None]
    return lack + [module for module in modules if importlib.util.find_spec(module) is None]


def describe(found: dict[str, Any] | None) -> dict[str, Any]:
    def last_line(command: list[str]) -> str | None:
        if shutil.which(command[0]) is None:
            return None
        lines = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip().splitlines()
        return lines[-1] if lines else None

    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = None
    return {
        **(found or {}),
        "torch": torch,
        "python": platform.python_version(),
        "commit": last_line(["git", "rev-parse", "--short", "HEAD"]),
        "nvcc": last_line(["nvcc", "--version"]),
    }
