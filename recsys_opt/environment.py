"""Where a run or a measurement was made: machine, versions, commit, command."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any


def cpu_model() -> str:
    """The processor's name, and the vector extensions that the kernels use."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    models = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    extensions = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {f}" in text]
    return " ".join([models[0] if models else platform.machine(), *extensions])


def commit() -> str:
    """The commit of the source tree this package runs from, with "+" where it has changes; "" if none."""
    root = Path(__file__).resolve().parent.parent
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def command() -> str:
    """The command line of this process; of a path elsewhere on the machine only the last name is kept."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return shlex.join(Path(w).name if w.startswith(("/", "../")) else w for w in words)


def core_wait_s() -> float | None:
    """Seconds that this process's threads were ready to run while others had the cores; None if unknown.

    Where a measurement's threads are as many as the cores, it is what makes times jump by milliseconds: a
    thread that waits for the others at a barrier waits until they get a core again.
    """
    waited_ns = 0
    for entry in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # a thread that has just ended
            waited_ns += int(entry.read_text().split()[1])
    return round(waited_ns / 1e9, 2) if Path("/proc/self/schedstat").exists() else None


def environment() -> dict[str, Any]:
    """Where, when and by which command; JSON values only."""
    import torch

    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "command": command(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
