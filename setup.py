"""Builds splip._C with CMake and lists the packages; everything else is in pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "python/splip/__init__.py").read_text()).group(1)

WINGS = [path.parent.name for path in sorted((ROOT / "python/splip").glob("*/__init__.py"))]


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / ext.name
        # From scratch: CMake's cache names tools of the isolated environment of an earlier build.
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir(parents=True)
        options = {
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": target,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "SPLIP_VERSION": VERSION,
            "SPLIP_CUDA": os.environ.get("SPLIP_CUDA", "auto").lower(),
            "SPLIP_CUDA_ARCHS": os.environ.get("SPLIP_CUDA_ARCHS", "").replace(",", ";"),
        }
        flags = [f"-D{key}={value}" for key, value in options.items()]
        subprocess.run(["cmake", str(ROOT), "-G", "Ninja", *flags], cwd=build, check=True)
        subprocess.run(["cmake", "--build", "."], cwd=build, check=True)


setup(
    version=VERSION,
    # splip.export lives in export/ at the top level of the repository.
    # The last five hold data only; setuptools wants them named.
    packages=[
        "splip",
        *(f"splip.{wing}" for wing in WINGS),
        "splip.serve.page",
        "splip.weights",
        "splip.export",
        "splip.configs",
        "splip.configs.ablations",
        "splip.configs.models",
    ]
    + ["splip.sample_data", "splip.sample_data.licenses"],
    package_dir={"splip": "python/splip", "splip.export": "export"},
    ext_modules=[Extension("splip._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
