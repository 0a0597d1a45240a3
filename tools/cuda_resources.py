"""What every CUDA kernel takes, per architecture: registers, shared memory, stack, spills, code; fails past a limit.

    python tools/cuda_resources.py                       # compiles csrc/cuda for all default architectures
    python tools/cuda_resources.py --archs 90a
    python tools/cuda_resources.py --log build.log --objects build
                                   # of a build with -DCMAKE_CUDA_FLAGS="-Xptxas=-v -no-compress"

Exit code 1 if a kernel has a stack frame, spills registers or is past a limit, 2 if there is nothing to read. Needs
nvcc only, and nothing at all for a build's log and objects. Code sizes and launch bounds are read from the machine code
itself, an ELF file for each architecture; they are 0 where only a log is given.
"""

import argparse
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

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
    code: int = 0
    threads: int = 0  # of a block, by its launch bounds


class Limit(NamedTuple):
    """Of the kernels whose readable name fits."""

    kernel: str
    code: int  # bytes
    dynamic: int = 48 << 10  # bytes of shared memory that a launch may ask for, beside the static ones


# The first that fits. A multiprocessor's instruction cache holds 128 KB, and tiles once had 182 KB of code that every
# warp waited for. Kernels stay at what they have, and some room. What asks for all of a GPU's shared memory leaves none
# for static arrays.
LIMITS = (
    Limit(r"^tile_kernel<", 72 << 10, 227 << 10),
    Limit(r"^wgmma_kernel<", 48 << 10, 227 << 10),
    Limit(r"^stream_kernel<", 40 << 10, 64 << 10),
    Limit(r"^finish_kernel<|^pixel_(backward_)?kernel<|^prepare_eight_bit_kernel<", 48 << 10),
    Limit(r"", 36 << 10),
)
REGISTERS = 65536  # of a multiprocessor, and so of a block
# Shared memory of a block, static and dynamic; with compute capability 9.0 and later the system's 1 KB comes on top.
SHARED = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}
SYSTEM_SHARED = 1024


def number(arch: str) -> int:
    return int(re.sub(r"\D", "", arch))


def past_limits(kernel: Kernel, name: str) -> list[str]:
    """What is wrong with a kernel, in words."""
    limit = next(limit for limit in LIMITS if re.search(limit.kernel, name))
    wrong = [f"{kernel.stack} bytes of stack"] if kernel.stack else []
    wrong += [f"{kernel.spills} bytes of spills"] if kernel.spills else []
    wrong += [f"{kernel.code} bytes of code, limit {limit.code}"] if kernel.code > limit.code else []
    taken = -(-kernel.registers // 8) * 8 * kernel.threads  # registers come in eights
    if taken > REGISTERS:
        wrong.append(f"{kernel.registers} registers for {kernel.threads} threads, {REGISTERS} in all")
    most = SHARED.get(number(kernel.arch), 99) << 10
    static = kernel.shared - (SYSTEM_SHARED if number(kernel.arch) >= 90 and kernel.shared else 0)
    if static + min(limit.dynamic, most) > most or static > 48 << 10:
        wrong.append(f"{static} bytes of static shared memory beside {min(limit.dynamic, most)}")
    return wrong


# ---- machine code: 64-bit ELF, one section of code and one of attributes for each kernel ----

CUDA = 190  # e_machine
CODE, INFO = ".text.", ".nv.info."
MAX_THREADS = 0x05  # an attribute: threads of a block in x, y, z


def cubins(data: bytes) -> list[bytes]:
    """The machine code for GPUs in a file that holds some, uncompressed."""
    found, at = [], data.find(b"\x7fELF")
    while at >= 0:
        if len(data) >= at + 64 and struct.unpack_from("<H", data, at + 18)[0] == CUDA:
            found.append(data[at:])
        at = data.find(b"\x7fELF", at + 1)
    return found


def sections(elf: bytes) -> dict[str, bytes]:
    """By name; those without contents are left out."""
    (start,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<3H", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, start + i * size) for i in range(count)]
    text = headers[names][4]
    made = {}
    for name, kind, _, _, offset, length in headers:
        end = elf.index(b"\0", text + name)
        if kind != 8:  # NOBITS
            made[elf[text + name : end].decode()] = elf[offset : offset + length]
    return made


def attributes(data: bytes) -> dict[int, bytes]:
    """Of an .nv.info section: format, attribute, and two bytes that are the value or its length."""
    made, at = {}, 0
    while at + 4 <= len(data):
        form, attribute, value = struct.unpack_from("<BBH", data, at)
        at += 4
        if form == 4:
            made[attribute] = data[at : at + value]
            at += value
    return made


def architecture(elf: bytes) -> int:
    """The number of the architecture, which has moved by a byte in the flags of later files."""
    (flags,) = struct.unpack_from("<I", elf, 48)
    return next((n for n in (flags & 0xFF, flags >> 8 & 0xFF) if n in SHARED), flags & 0xFF)


def add_code(kernels: list[Kernel], elfs: list[bytes]) -> list[Kernel]:
    """The kernels with the sizes of their code and their launch bounds."""
    known: dict[tuple[int, str], dict[str, Any]] = {}
    for elf in elfs:
        parts = sections(elf)
        for name, code in parts.items():
            if name.startswith(CODE):
                kernel = name.removeprefix(CODE)
                threads = attributes(parts.get(INFO + kernel, b"")).get(MAX_THREADS, b"")
                x, y, z = struct.unpack("<3I", threads) if len(threads) == 12 else (0, 0, 0)
                known[architecture(elf), kernel] = {"code": len(code), "threads": x * y * z}
    missing = [k.name for k in kernels if (number(k.arch), k.name) not in known]
    if missing:
        sys.exit(f"cuda_resources: no machine code of {len(missing)} kernels, such as {missing[0]}: was it compressed?")
    return [k._replace(**known[number(k.arch), k.name]) for k in kernels]


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


def compile_all(archs: list[str]) -> tuple[str, list[bytes]]:
    """The compiler's words and the machine code."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("cuda_resources: no nvcc on PATH", file=sys.stderr)
        sys.exit(2)

    def compiled(job: tuple[Path, str]) -> tuple[str, bytes]:
        source, arch = job
        with tempfile.TemporaryDirectory() as folder:
            command = [
                nvcc,
                "-std=c++17",
                "-O3",
                "-DSPLIP_HAS_CUDA",
                "-DSPLIP_WGMMA",
                "-cubin",
                "-Xptxas=-v",
                "-Xcompiler=-Wall",
            ]
            command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", str(source), "-o", f"{folder}/out.cubin"]
            run = subprocess.run(command, capture_output=True, text=True)
            made = Path(folder, "out.cubin")
            elf = made.read_bytes() if made.is_file() else b""
        if run.returncode or "warning" in run.stderr + run.stdout:
            sys.exit(f"{source.name} for sm_{arch}:\n{run.stdout}{run.stderr}")
        return run.stdout + run.stderr, elf

    jobs = [(source, arch) for arch in archs for source in sorted(SOURCES.glob("*.cu"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        logs, elfs = zip(*pool.map(compiled, jobs), strict=True)
    return "\n".join(logs), list(elfs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", default="80;86;89;90a;100;120", help="compute capabilities (default: %(default)s)")
    parser.add_argument("--log", type=Path, help="read this build log instead of compiling")
    parser.add_argument("--objects", type=Path, help="with --log: the build's folder, for the machine code")
    args = parser.parse_args()
    if args.log:
        log = args.log.read_text()
        files = sorted(args.objects.rglob("*.o")) if args.objects else []
        elfs = [elf for file in files for elf in cubins(file.read_bytes())]
    else:
        log, elfs = compile_all(re.split("[;, ]+", args.archs))
    kernels = parse(log)
    if not kernels:
        print("cuda_resources: the log names no kernel", file=sys.stderr)
        sys.exit(2)
    if args.objects or not args.log:
        kernels = add_code(kernels, elfs)
    names = readable([k.name for k in kernels])
    width = max(map(len, names))
    print(f"{'arch':7} {'kernel':{width}} threads registers static shared  stack  spills    code")
    bad = []
    for name, k in sorted(zip(names, kernels, strict=True), key=lambda pair: (number(pair[1].arch), pair[0])):
        row = (
            f"{k.arch:7} {name:{width}} {k.threads:7} {k.registers:9} {k.shared:13} {k.stack:6} {k.spills:7} {k.code:7}"
        )
        print(row)
        wrong = past_limits(k, name)
        if wrong:
            bad.append(f"{k.arch} {name}: {'; '.join(wrong)}")
    print(*bad, sep="\n", end="\n" if bad else "")
    most = max(kernels, key=lambda k: k.code)
    print(f"{len(kernels)} kernels, {len(bad)} past a limit; the largest has {most.code / 1024:.0f} KB of code")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
