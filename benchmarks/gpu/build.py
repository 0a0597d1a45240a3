"""The package with its kernels for the GPU at hand, in a temporary folder: the tree stays as it is."""

import importlib.util
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .machine import ROOT, missing
from .worker import Job

READING = "reading.so"  # the kernel that only reads, for the ceilings


def commands(site: Path, folder: Path, arch: str) -> list[list[str]]:
    """Configure, then compile with all processors."""
    pybind11 = [] if importlib.util.find_spec("pybind11") is None else [f"-Dpybind11_DIR={_pybind11_folder()}"]
    flags = {
        "CMAKE_CUDA_FLAGS": "-Xptxas=-v -lineinfo",  # lines of the source for the profiler; the code is the same
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": site / "splip",
        "Python_EXECUTABLE": sys.executable,
        "SPLIP_CUDA": "on",
        "SPLIP_CUDA_ARCHS": arch,
        "SPLIP_VERSION": "gpu-suite",
    }
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *(f"-D{k}={v}" for k, v in flags.items())]
    return [configure + pybind11, ["cmake", "--build", str(folder)]]


def _pybind11_folder() -> str:
    import pybind11

    return pybind11.get_cmake_dir()


def reading_command(target: Path, arch: str) -> list[str]:
    source = Path(__file__).with_name("reading.cu")
    code = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    return ["nvcc", "-O3", "-std=c++17", code, "-shared", "-Xcompiler=-fPIC", str(source), "-o", str(target)]


def copy_package(site: Path) -> None:
    without = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "python/splip", site / "splip", ignore=without)
    shutil.copytree(ROOT / "export", site / "splip/export", ignore=without)


def slowest(ninja_log: str) -> list[tuple[str, float]]:
    """Objects and the seconds that each took, the longest first. Lines: start, end (ms), time stamp, output, hash."""
    took = {}
    for line in ninja_log.splitlines():
        fields = line.split("\t")
        if len(fields) == 5 and not line.startswith("#"):
            name = re.sub(r"^.*?\.dir/|\.o$", "", fields[3])
            took[name] = (int(fields[1]) - int(fields[0])) / 1000
    return sorted(took.items(), key=lambda pair: -pair[1])


def resources(log: str) -> dict[str, Any]:
    """Registers, memory and spills of each kernel, as the compiler said."""
    import cuda_resources  # of tools/

    kernels = cuda_resources.parse(log)
    names = cuda_resources.readable([k.name for k in kernels])
    pairs = list(zip(names, kernels, strict=True))
    return {
        "kernels": {name: k._asdict() | {"name": name} for name, k in pairs},
        "spilling": [name for name, k in pairs if k.stack or k.spills],
    }


def build(job: Job) -> None:
    reading = None
    if shutil.which("nvcc"):
        reading = subprocess.Popen(reading_command(job.shared / READING, job.arch))
    if job.module:
        job.found(module=job.module)
    else:
        if lack := missing(("nvcc", "cmake", "ninja"), ("pybind11",)):
            raise RuntimeError(f"missing on this machine: {', '.join(lack)}")
        copy_package(job.site)
        compile_extension(job)
    if reading is not None and reading.wait():
        job.wrong("the kernel that only reads does not compile")


def compile_extension(job: Job) -> None:
    folder, log, began = job.scratch / "build", "", time.monotonic()
    for command in commands(job.site, folder, job.arch):
        print("$", *command, flush=True)
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        log += run.stdout
        if run.returncode:
            print(run.stdout[-8000:])
            raise RuntimeError(f"the build failed: {' '.join(command[:2])}, exit code {run.returncode}")
    print("\n".join(line for line in log.splitlines() if "warning" in line))
    files = slowest((folder / ".ninja_log").read_text())
    said = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in files[:4])
    print(f"   {time.monotonic() - began:.0f} s; {said}", flush=True)
    job.found(arch=job.arch, slowest_files=dict(files[:8]))
    try:
        found = resources(log)
    except SystemExit as e:  # the compiler's words have changed, the kernels may be fine
        print(f"   no registers and spills: {e}")
        return
    job.found(**found)
    if found["spilling"]:
        job.wrong(f"kernels that spill: {found['spilling']}")
