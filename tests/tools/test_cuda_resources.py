"""What the CUDA kernels take, read from the compiler's words and from machine code, against limits."""

import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import cuda_resources  # noqa: E402
from cuda_resources import Kernel, past_limits  # noqa: E402

LOG = """
ptxas info    : Compiling entry function '_Z1av' for 'sm_80'
ptxas info    : Function properties for _Z1av
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 408 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90a'
ptxas info    : Function properties for _Z1bv
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""


def tool(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "tools/cuda_resources.py", *arguments], capture_output=True, text=True
    )


def test_the_compilers_words(tmp_path):
    kernels = cuda_resources.parse(LOG)
    assert kernels == [Kernel("sm_80", "_Z1av", 40, 2048, 0, 0), Kernel("sm_90a", "_Z1bv", 255, 0, 16, 20)]
    (tmp_path / "log").write_text(LOG)
    run = tool("--log", tmp_path / "log")
    assert run.returncode == 1 and "2 kernels, 1 past a limit" in run.stdout
    assert re.search(r"sm_90a b: 16 bytes of stack; 20 bytes of spills", run.stdout)
    (tmp_path / "log").write_text(LOG.rsplit("ptxas info    : Used", 1)[0])
    run = tool("--log", tmp_path / "log")
    assert run.returncode == 1 and "2 kernels in the log" in run.stderr


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("tile_kernel<float, Tile<64, 128>>", {}, []),
        ("tile_kernel<float, Tile<64, 128>>", {"code": 90 << 10}, ["92160 bytes of code, limit 73728"]),
        ("merge_kernel", {"code": 37 << 10}, ["37888 bytes of code, limit 36864"]),
        ("merge_kernel", {"registers": 65, "threads": 1024}, ["65 registers for 1024 threads, 65536 in all"]),
        ("merge_kernel", {"registers": 64, "threads": 1024}, []),
        ("wgmma_kernel<__half>", {"registers": 168, "threads": 384}, []),
        ("wgmma_kernel<__half>", {"registers": 169, "threads": 384}, ["169 registers for 384 threads, 65536 in all"]),
        ("wgmma_kernel<__half>", {"shared": 1024}, []),  # the system's
        ("wgmma_kernel<__half>", {"shared": 1040}, ["16 bytes of static shared memory beside 232448"]),
        ("finish_kernel<float>", {"shared": (48 << 10) + 1024}, []),
        ("finish_kernel<float>", {"shared": (48 << 10) + 1040}, ["49168 bytes of static shared memory beside 49152"]),
    ],
)
def test_limits(name, change, words):
    plain = Kernel("sm_90a", "mangled", 32, 0, 0, 0, code=4096, threads=256)
    assert past_limits(plain._replace(**change), name) == words


def elf(kernel, code, threads, flags):
    """As the CUDA compiler writes one, as far as is read."""
    names = ["", ".shstrtab", cuda_resources.CODE + kernel, cuda_resources.INFO + kernel, ".nv.shared." + kernel]
    table = b"\0".join(n.encode() for n in names) + b"\0"
    info = struct.pack("<BBH", 3, 0x50, 0) + struct.pack("<BBHI", 4, 0x1E, 4, 0)
    info += struct.pack("<BBH3I", 4, cuda_resources.MAX_THREADS, 12, threads, 1, 1)
    contents = [b"", table, b"\1" * code, info, b""]
    kinds = [0, 3, 1, 0x70000000, 8]
    offset, body, headers = 64, b"", b""
    for name, kind, content in zip(names, kinds, contents, strict=True):
        place = table.index(name.encode() + b"\0")
        length = 512 if kind == 8 else len(content)
        headers += struct.pack("<IIQQQQIIQQ", place, kind, 0, 0, offset + len(body), length, 0, 0, 1, 0)
        body += content
    start = offset + len(body)
    head = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQI", 2, cuda_resources.CUDA, 1, 0, 0, start, flags)
    return head + struct.pack("<6H", 64, 56, 0, 64, len(names), 1) + body + headers


def test_machine_code_in_object_files(tmp_path):
    """Beside the host's code, which is an ELF file too; both places of the architecture's number."""
    host = b"\x7fELF" + bytes(14) + struct.pack("<H", 62) + bytes(60)
    first, second = elf("_Z1av", 1280, 256, 0x500550), elf("_Z1bv", 7168, 1024, 0x6005A04)
    data = host + b"fatbin" + first + bytes(24) + second
    found = cuda_resources.cubins(data)
    assert [cuda_resources.architecture(f) for f in found] == [80, 90]
    kernels = cuda_resources.add_code(cuda_resources.parse(LOG), found)
    assert [(k.code, k.threads) for k in kernels] == [(1280, 256), (7168, 1024)]
    with pytest.raises(SystemExit, match="no machine code of 1 kernels, such as _Z1bv"):
        cuda_resources.add_code(cuda_resources.parse(LOG), found[:1])
    (tmp_path / "log").write_text(LOG)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/one.o").write_bytes(data)
    run = tool("--log", tmp_path / "log", "--objects", tmp_path)
    assert run.returncode == 1 and "2 kernels, 1 past a limit; the largest has 7 KB of code" in run.stdout
    assert "255 registers for 1024 threads" in run.stdout


@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_real_compiler(tmp_path):
    """What it says and what it writes are understood, compressed or not."""
    source = tmp_path / "one.cu"
    source.write_text("__global__ void __launch_bounds__(96) copy_kernel(int* p) { __shared__ int s[64];"
                      " s[threadIdx.x] = p[0]; __syncthreads(); p[threadIdx.x] = s[63 - threadIdx.x]; }")  # fmt: skip
    for arch in ("80", "90a"):
        target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
        command = ["nvcc", target, "-Xptxas=-v", "-no-compress", "-c", source, "-o", tmp_path / "one.o"]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        kernels = cuda_resources.parse(run.stdout + run.stderr)
        made = (tmp_path / "one.o").read_bytes()
        (kernel,) = cuda_resources.add_code(kernels, cuda_resources.cubins(made))
        assert kernel.arch == f"sm_{arch}" and kernel.threads == 96 and kernel.code >= 128 and kernel.shared >= 256
        assert not past_limits(kernel, "copy_kernel")
