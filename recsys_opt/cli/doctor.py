"""`recsys-opt doctor`: what is installed, what works, what to do about what does not.

It never crashes: each check runs in a process of its own, so that even a library that ends the process or
breaks the interpreter is a line of the table.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import recsys_opt
from recsys_opt.cli.outcome import Outcome
from recsys_opt.environment import cpu_model

EXAMPLE = "recsys-opt doctor"
CHECK_TIMEOUT_S = 120


@dataclass(frozen=True)
class Check:
    """One part to look at."""

    part: str
    probe: Callable[[], str]
    """Returns one line of detail, or raises."""
    remedy: str = ""
    needed: bool = True


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    part: str
    state: str
    """"ok", "absent" (optional) or "broken" (needed)."""
    detail: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Has no arguments of its own."""


def run(args: argparse.Namespace) -> Outcome:
    """Checks every part; exit code 1 when a needed one is broken."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        findings = list(pool.map(_examine, range(len(CHECKS))))
    width = max(len(f.part) for f in findings)
    signs = {"ok": "ok", "absent": "-", "broken": "BROKEN"}
    lines = [f"{f.part:<{width}}  {signs[f.state]:<6}  {f.detail}".rstrip() for f in findings]
    remedies = [f"{f.part}: {f.remedy}" for f in findings if f.remedy]
    broken = [f.part for f in findings if f.state == "broken"]
    verdict = f"broken: {', '.join(broken)}" if broken else "everything needed works"
    text = "\n".join([*lines, "", *remedies, verdict])
    return Outcome(text, {"ok": not broken, "findings": [asdict(f) for f in findings]}, int(bool(broken)))


def _examine(number: int) -> Finding:
    """Runs one check in a process of its own."""
    check = CHECKS[number]
    code = f"from recsys_opt.cli.doctor import CHECKS; print('\\n' + CHECKS[{number}].probe())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CHECK_TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    else:
        if done.returncode == 0:
            return Finding(check.part, "ok", _last_line(done.stdout))
        if done.returncode < 0:
            failure = f"the import was killed by {signal.Signals(-done.returncode).name}"
        else:
            failure = _last_line(done.stderr) or f"the import ended the process with {done.returncode}"
    return Finding(check.part, "broken" if check.needed else "absent", failure[:160], check.remedy)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _version() -> str:
    return f"{recsys_opt.__version__} in {Path(recsys_opt.__file__).parent}"


def _python() -> str:
    return f"{platform.python_version()} at {sys.executable}"


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores, {memory:.1f} GiB"


def _package(name: str) -> Callable[[], str]:
    def probe() -> str:
        importlib.import_module(name)
        # fbgemm_gpu comes with fbgemm-gpu or with fbgemm-gpu-cpu.
        distribution = importlib.metadata.packages_distributions().get(name, [name])[0]
        return importlib.metadata.version(distribution)

    return probe


def _torch() -> str:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    return f"{torch.__version__}, {torch.get_num_threads()} threads, {gpu}"


def _ops() -> str:
    import torch

    import recsys_opt.ops

    names = sorted({s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("recsys_opt::")})
    if not names:
        raise ImportError("the library loaded but holds no op")
    return f"{len(names)} ops in {recsys_opt.ops.LIBRARY.name}"


def _cuda_kernels() -> str:
    import torch

    import recsys_opt.ops

    if not torch.version.cuda:
        raise ImportError("this torch is built without CUDA")
    if not recsys_opt.ops.CUDA_LIBRARY.exists():
        raise ImportError("not built")
    return recsys_opt.ops.CUDA_LIBRARY.name


def _native(name: str) -> Callable[[], str]:
    def probe() -> str:
        module = importlib.import_module(f"recsys_opt.{name}")
        return Path(module.__file__ or "").name

    return probe


def _datasets() -> str:
    from recsys_opt.data.descriptor import datasets_dir

    folder = datasets_dir()
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    return f"{', '.join(names)} in {folder}"


def _nvcc() -> str:
    path = shutil.which("nvcc")
    if not path:
        raise FileNotFoundError("no nvcc on PATH")
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    return _last_line(text)


_REBUILD = "run scripts/setup.sh (source tree) or pip install . again; it prints why the build fails"
CHECKS = [
    Check("recsys_opt", _version),
    Check("python", _python),
    Check("machine", _machine),
    Check("numpy", _package("numpy"), "pip install numpy"),
    Check("torch", _torch, "pip install 'torch>=2.11'"),
    Check("native ops", _ops, _REBUILD),
    Check("native reader", _native("_criteo"), _REBUILD),
    Check("native generator", _native("_synth"), _REBUILD),
    Check("descriptors", _datasets, "install again: the wheel carries datasets/ as recsys_opt/_datasets"),
    Check("safetensors", _package("safetensors"), "pip install safetensors"),
    Check("rich", _package("rich"), "pip install rich"),
    Check("CUDA kernels", _cuda_kernels, "optional; with a CUDA torch and nvcc: scripts/setup.sh", False),
    Check("nvcc", _nvcc, "optional; compiles the CUDA kernels", False),
    Check("torchrec", _package("torchrec"), "optional, KeyedJaggedTensor models: scripts/setup.sh", False),
    Check("fbgemm_gpu", _package("fbgemm_gpu"), "optional, fused dense tables: scripts/setup.sh", False),
    Check("tensorboard", _package("tensorboard"), "optional, curves: pip install tensorboard", False),
    Check("zstandard", _package("zstandard"), "optional, reads .zst files: pip install zstandard", False),
    Check("pyarrow", _package("pyarrow"), "optional, stats of Parquet files: pip install pyarrow", False),
]
