"""Builds splip._C with CMake and finds the packages; everything else is in pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "python/splip/__init__.py").read_text()).group(1)


def say(text: str) -> None:
    print(text, flush=True)


class Build(build):
    def run(self) -> None:
        # From scratch: what was moved or removed since an earlier build would go into the wheel.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


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
            "SPLIP_CUDA": os.environ.get("SPLIP_CUDA", "").lower() or "auto",
            "SPLIP_CUDA_ARCHS": ";".join(re.split(r"[;,\s]+", os.environ.get("SPLIP_CUDA_ARCHS", "").strip())),
            "SPLIP_THREADS": os.environ.get("SPLIP_THREADS", "").lower() or "auto",
        }
        macs = re.findall(r"-arch\s+(\S+)", os.environ.get("ARCHFLAGS", ""))  # what wheels for Macs are built for
        if sys.platform == "darwin" and macs:
            options["CMAKE_OSX_ARCHITECTURES"] = ";".join(macs)
        flags = [f"-D{key}={value}" for key, value in options.items()]
        configure = ["cmake", str(ROOT), "-G", "Ninja", *flags]
        done = subprocess.run(configure, cwd=build, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            # One line for what a user can mend, everything for the rest.
            ours = re.search(r"CMake Error at .*\n((?:  splip: .*\n)(?:  .*\n)*)", done.stdout)
            if ours is None:
                say(done.stdout)
            raise SystemExit(" ".join(ours[1].split()) if ours else "splip: error: cmake failed, see above")
        for line in re.findall("^-- (splip: .*)", done.stdout, re.MULTILINE):
            say(line)
        # ninja's lines, each when a file is done.
        environment = {"NINJA_STATUS": "splip: %f of %t files compiled, %e s: ", **os.environ}
        if subprocess.run(["cmake", "--build", "."], cwd=build, env=environment).returncode:
            raise SystemExit("splip: error: the compiler failed, see above")


# Folders without Python files hold data only, and are packages to setuptools all the same.
# splip.export lives in export/ at the top level of the repository.
skipped = ["*.__pycache__", "__pycache__"]
packages = find_namespace_packages("python", include=["splip", "splip.*"], exclude=skipped)
exported = find_namespace_packages("export", exclude=skipped)

setup(
    version=VERSION,
    verbose=False,  # or a line for each copied file hides what the compiler says
    packages=[*packages, "splip.export", *(f"splip.export.{name}" for name in exported)],
    package_dir={"splip": "python/splip", "splip.export": "export"},
    ext_modules=[Extension("splip._C", sources=[])],
    cmdclass={"build": Build, "build_ext": CMakeBuild},
)
