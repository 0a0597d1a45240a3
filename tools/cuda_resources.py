"""Registers, shared memory, stack and spills of every CUDA kernel, per architecture; fails if one spills.

    python tools/cuda_resources.py                       # compiles csrc/cuda for all default architectures
    python tools/cuda_resources.py --archs 90a
    python tools/cuda_resources.py --log build.log       # of a build with -DCMAKE_CUDA_FLAGS=-Xptxas=-v

Exit code 1 if a kernel has a stack frame or spills registers, 2 if there is nothing to read. Needs nvcc only.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).resolve().parents[1] / "csrc/cuda"
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?, (\d+) bytes smem)?")


class Kernel(NamedTuple):
    arch: str
    name: str
    registers: int
    shared: int
    stack: int
    spills: int


def parse(log: str) -> list[Kernel]:
    """What ptxas -v said of each kernel."""
    kernels = []
    entry: tuple[str, str] | None = None
    stack: tuple[int, int] | None = None
    for line in log.splitlines():
        if found := ENTRY.search(line):
            entry, stack = (found[2], found[1]), None
        elif found := STACK.search(line):
            stack = int(found[1]), int(found[2]) + int(found[3])
        elif (found := USED.search(line)) and entry and stack:
            kernels.append(Kernel(*entry, int(found[1]), int(found[2] or 0), *stack))
            entry = None
    said = len(ENTRY.findall(log))
    if said != len(kernels):
        sys.exit(f"cuda_resources: {said} kernels in the log, but numbers of {len(kernels)}: is it from one compiler?")
    return kernels


def readable(names: list[str]) -> list[str]:
    """Kernel names without namespaces and arguments."""
    tool = shutil.which("c++filt")
    if tool:
        text = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
        names = text.splitlines()
    for noise in (r"\(anonymous namespace\)::", r"splip::(\w+::)?", r"^void ", r"\(\w+\)(?=\d)", r"\(.*"):
        names = [re.sub(noise, "", name) for name in names]
    return names


def compile_all(archs: list[str]) -> str:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("cuda_resources: no nvcc on PATH", file=sys.stderr)
        sys.exit(2)

    def log_of(job: tuple[Path, str]) -> str:
        source, arch = job
        with tempfile.TemporaryDirectory() as folder:
            command = [nvcc, "-std=c++17", "-O3", "-DSPLIP_HAS_CUDA", "-cubin", "-Xptxas=-v", "-Xcompiler=-Wall"]
            command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", str(source), "-o", f"{folder}/out.cubin"]
            run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode or "warning" in run.stderr + run.stdout:
            sys.exit(f"{source.name} for sm_{arch}:\n{run.stdout}{run.stderr}")
        return run.stdout + run.stderr

    jobs = [(source, arch) for arch in archs for source in sorted(SOURCES.glob("*.cu"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return "\n".join(pool.map(log_of, jobs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", default="80;86;89;90a;100;120", help="compute capabilities (default: %(default)s)")
    parser.add_argument("--log", type=Path, help="read this build log instead of compiling")
    args = parser.parse_args()
    kernels = parse(args.log.read_text() if args.log else compile_all(re.split("[;, ]+", args.archs)))
    if not kernels:
        print("cuda_resources: the log names no kernel", file=sys.stderr)
        sys.exit(2)
    names = readable([k.name for k in kernels])
    width = max(map(len, names))
    print(f"{'arch':7} {'kernel':{width}} registers  static shared  stack  spills")
    for name, k in sorted(zip(names, kernels, strict=True), key=lambda pair: (pair[1].arch, pair[0])):
        print(f"{k.arch:7} {name:{width}} {k.registers:9}  {k.shared:13}  {k.stack:5}  {k.spills:6}")
    bad = [k for k in kernels if k.stack or k.spills]
    print(f"{len(kernels)} kernels, {len(bad)} with a stack frame or spills")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
