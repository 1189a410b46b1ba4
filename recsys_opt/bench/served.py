"""A server of its own for a measurement: `recsys-opt serve` in another process, gone afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from recsys_opt.bench.load import Target
from recsys_opt.errors import RecsysOptError

_START_S, _STOP_S = 300.0, 90.0


@dataclass
class Served:
    """A server that runs."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    """Its ready line: addresses, models, workers."""
    _log: IO[str] = field(repr=False)

    @property
    def target(self) -> Target:
        """Where it listens over HTTP."""
        host, _, port = self.ready["http"].rpartition(":")
        return Target(host, int(port))

    @property
    def pids(self) -> dict[str, int]:
        """Its processes: itself, and its workers as they are now."""
        workers: dict[str, int] = self.target.describe()["workers"]
        return {"server": self.process.pid, **workers}

    @property
    def log(self) -> str:
        """What it has written to stderr."""
        self._log.seek(0)
        return self._log.read()

    def stop(self) -> dict[str, int]:
        """Has it finish what it has; returns its queries by what became of them."""
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=_STOP_S)
        if self.process.returncode != 0:
            raise RecsysOptError(f"the server ended with {self.process.returncode}:\n{self.log[-2000:]}")
        outcomes: dict[str, int] = json.loads(out)["queries"]
        return outcomes


@contextlib.contextmanager
def served(profile: Path, runs: Path, *arguments: str, grpc: bool = False) -> Iterator[Served]:
    """A server on free ports of this machine."""
    command = [sys.executable, "-m", "recsys_opt.cli.main", "serve", "--json", "--http", "127.0.0.1:0"]
    command += ["--grpc", "127.0.0.1:0"] if grpc else []
    command += ["--profile", str(profile), "--runs", str(runs), *arguments]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()  # at its end, if it could not start
            if not line:
                process.wait(_START_S)
                log.seek(0)
                raise RecsysOptError(f"the server did not start: {_last_line(log.read())}")
            yield Served(process, json.loads(line), log)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def memory_bytes(pid: int) -> int:
    """A process's own memory, without what it shares with others (its models are mapped files)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RecsysOptError(f"/proc/{pid}/status does not say what memory process {pid} has")


def cpu_seconds(pid: int) -> float:
    """That a process has used so far."""
    fields: Sequence[str] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Disturbance:
    """What else the machine did meanwhile, in shares of the time of a core."""

    others: float
    """That processes other than this one and the server's took."""
    stolen: float
    """That the hypervisor gave to others."""

    @classmethod
    @contextlib.contextmanager
    def during(cls, server: Served) -> Iterator[list[Disturbance]]:
        """Of the block; the list has it when that is left."""
        pids = [os.getpid(), *server.pids.values()]
        found: list[Disturbance] = []
        begun, before, own = time.monotonic(), _machine_seconds(), sum(map(cpu_seconds, pids))
        yield found
        span = time.monotonic() - begun
        busy, stolen = (b - a for a, b in zip(before, _machine_seconds(), strict=True))
        others = busy - (sum(map(cpu_seconds, pids)) - own)
        found.append(cls(max(0.0, others) / span, stolen / span))


def _machine_seconds() -> tuple[float, float]:
    """Seconds of cores in which something ran, and which were stolen."""
    numbers = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _, _, irq, softirq, stolen, *_ = numbers
    ticks = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / ticks, stolen / ticks


def wait_until_idle(target: Target, seconds: float = 30.0) -> None:
    """Until the server has no unanswered query; raises where that does not come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if gauge(target, "recsys_opt_unanswered_queries") == 0:
            return
        time.sleep(0.05)
    raise RecsysOptError(f"queries are still unanswered after {seconds:g} s")


def gauge(target: Target, name: str) -> float:
    """The sum of a metric's samples, as /metrics has them."""
    text = target.metrics()
    if f"# TYPE {name} " not in text:
        raise RecsysOptError(f"the server has no metric {name}")
    lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    return sum(float(line.rpartition(" ")[2]) for line in lines)  # none: nothing has been counted yet


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "it said nothing"
