"""The program that checks the CPU's kernels without Python, and the script that runs it as ARM processors."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from splip import _C

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.exhaustive
def test_kernels_without_openmp(tmp_path):
    """What stands in for OpenMP where there is none: the same answers, also of several callers and after a fork()."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if not all(shutil.which(tool, path=path) for tool in ("cmake", "ninja", "c++")):
        pytest.skip("no cmake, ninja and C++ compiler")
    options = {"KERNEL_CHECK": "ON", "THREADS": "std", "CUDA": "off", "VERSION": "check"}
    flags = [f"-DSPLIP_{name}={value}" for name, value in options.items()]
    for command in (["cmake", "-S", ROOT, "-B", tmp_path, "-G", "Ninja", *flags], ["cmake", "--build", tmp_path]):
        subprocess.run(command, env={**os.environ, "PATH": path}, check=True, capture_output=True)
    done = subprocess.run([tmp_path / "kernel_check", _C.levels()[-1]], capture_output=True, text=True)
    assert done.returncode == 0 and "checks passed" in done.stdout, done.stdout + done.stderr


def test_arm_is_skipped_in_one_line(tmp_path):
    """Without the tools and without apt-get."""
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    script = [tmp_path / "bash", ROOT / "tools" / "check_arm.sh"]
    done = subprocess.run(script, capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == "check_arm: skipped: no g++-aarch64-linux-gnu qemu-user, and no apt-get\n"
