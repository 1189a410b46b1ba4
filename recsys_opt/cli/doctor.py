"""`recsys-opt doctor`: what is installed, what works, what to do about what does not. It never crashes."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import recsys_opt
from recsys_opt.cli.outcome import Outcome

EXAMPLE = "recsys-opt doctor"


@dataclass(frozen=True)
class Finding:
    """One checked part."""

    part: str
    state: str
    """"ok", "absent" (optional) or "broken" (needed)."""
    detail: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Has no arguments of its own."""


def run(args: argparse.Namespace) -> Outcome:
    """Checks every part; exit code 1 when a needed one is broken."""
    findings = [_guarded(part, check, needed) for part, check, needed, _ in CHECKS]
    findings = [
        f if f.state == "ok" else Finding(f.part, f.state, f.detail, remedy)
        for f, (_, _, _, remedy) in zip(findings, CHECKS, strict=True)
    ]
    width = max(len(f.part) for f in findings)
    signs = {"ok": "ok    ", "absent": "-     ", "broken": "BROKEN"}
    lines = [f"{f.part:<{width}}  {signs[f.state]}  {f.detail}" for f in findings]
    lines += [f"\n{f.part}: {f.remedy}" for f in findings if f.remedy]
    broken = any(f.state == "broken" for f in findings)
    return Outcome("\n".join(lines), {"findings": [asdict(f) for f in findings]}, int(broken))


def _guarded(part: str, check: Callable[[], str], needed: bool) -> Finding:
    try:
        return Finding(part, "ok", check())
    # A broken shared library can raise nearly anything, SystemExit included; the doctor reports it all.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Finding(part, "broken" if needed else "absent", text[:160])


def _python() -> str:
    return f"{platform.python_version()} at {sys.executable}"


def _machine() -> str:
    cpu = platform.processor() or platform.machine()
    flags = ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        text = info.read_text()
        model = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
        cpu = model[0] if model else cpu
        has = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {f}" in text]
        flags = ", " + " ".join(has) if has else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu}{flags}, {len(os.sched_getaffinity(0))} cores, {memory:.1f} GiB"


def _package(name: str) -> Callable[[], str]:
    def check() -> str:
        importlib.import_module(name)
        return importlib.metadata.version(name.replace("_", "-"))

    return check


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
    return f"{len(names)} ops in {Path(recsys_opt.ops.LIBRARY).name}"


def _cuda_kernels() -> str:
    import torch

    import recsys_opt.ops

    if not torch.version.cuda:
        raise ImportError("this torch is built without CUDA")
    if not recsys_opt.ops.CUDA_LIBRARY.exists():
        raise ImportError("not built")
    return recsys_opt.ops.CUDA_LIBRARY.name


def _native(name: str) -> Callable[[], str]:
    def check() -> str:
        module = importlib.import_module(f"recsys_opt.{name}")
        return Path(module.__file__ or "").name

    return check


def _datasets() -> str:
    from recsys_opt.data.descriptor import datasets_dir

    folder = datasets_dir()
    return f"{', '.join(sorted(p.name for p in folder.iterdir() if p.is_dir()))}"


def _nvcc() -> str:
    path = shutil.which("nvcc")
    if not path:
        raise FileNotFoundError("no nvcc on PATH")
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    return text.strip().splitlines()[-1]


_REBUILD = "run scripts/setup.sh again; it rebuilds the native code and prints why it fails"
# part, check, needed, remedy
CHECKS: list[tuple[str, Callable[[], str], bool, str]] = [
    ("recsys_opt", lambda: recsys_opt.__version__, True, ""),
    ("python", _python, True, ""),
    ("machine", _machine, False, ""),
    ("numpy", _package("numpy"), True, "pip install numpy"),
    ("torch", _torch, True, "pip install 'torch>=2.11'"),
    ("native ops", _ops, True, _REBUILD),
    ("native reader", _native("_criteo"), True, _REBUILD),
    ("native generator", _native("_synth"), True, _REBUILD),
    ("descriptors", _datasets, True, "reinstall: the wheel carries datasets/ as recsys_opt/_datasets"),
    ("safetensors", _package("safetensors"), True, "pip install safetensors"),
    ("CUDA kernels", _cuda_kernels, False, "optional; with a CUDA torch and nvcc, run scripts/setup.sh"),
    ("nvcc", _nvcc, False, "optional; compiles the CUDA kernels"),
    ("torchrec", _package("torchrec"), False, "optional, for KeyedJaggedTensor models: scripts/setup.sh"),
    ("fbgemm_gpu", _package("fbgemm_gpu"), False, "optional, fused dense tables: scripts/setup.sh"),
    (
        "tensorboard",
        _package("tensorboard"),
        False,
        "optional, curves in TensorBoard: pip install tensorboard",
    ),
    ("zstandard", _package("zstandard"), False, "optional, reads .zst files: pip install zstandard"),
]
