"""Hands the native build to CMake and ships `datasets/` inside the wheel; the rest is in pyproject.toml.

CMAKE_ARGS is passed on, e.g. CMAKE_ARGS="-DRECSYS_OPT_CUDA=OFF" (options: CMakeLists.txt).
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """One CMake build for all native targets, installed beside the Python files."""

    def run(self) -> None:
        # One folder per Python, kept between builds, so that a rebuild compiles only what changed.
        build = ROOT / "build" / sys.implementation.cache_tag
        prefix = ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        if shutil.which("ninja") and not (build / "CMakeCache.txt").exists():
            configure += ["-G", "Ninja"]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        jobs = str(len(os.sched_getaffinity(0)))
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)
        subprocess.run(["cmake", "--install", str(build), "--prefix", str(prefix)], check=True)


class BuildPyWithDatasets(build_py):
    """Copies `datasets/` to `recsys_opt/_datasets`; recsys_opt.data.descriptor looks there first."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "recsys_opt" / "_datasets"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "datasets", target)


# The extension is a marker that makes the wheel platform-specific; CMake builds the real files.
setup(
    ext_modules=[Extension("recsys_opt._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildPyWithDatasets},
)
