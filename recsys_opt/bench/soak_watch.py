"""What a server's processes hold while it runs: memory, file descriptors, children; and whether it grows."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys_opt.bench.served import Served, memory_bytes
from recsys_opt.errors import RecsysOptError

EVERY_S = 0.5
_STALL_S = 2.0
"""A sample that comes so much later than it should: this process, and perhaps others, did not run."""
_FIRST_PART = 0.25
"""Of a life, in which caches fill: it says nothing about growth."""
_LOADED = 0.85
"""Of its largest memory: a worker that has so much has loaded its models."""


@dataclass(frozen=True)
class Growth:
    """Of a series of samples."""

    span_s: float
    first: float
    """Median of the first third, after caches are full."""
    last: float
    """Median of the last third."""
    slope_per_h: float
    """Least squares over the same time."""
    slope_error_per_h: float
    """Its standard error, from blocks of neighbouring samples."""

    @property
    def grown(self) -> float:
        """From the first third to the last."""
        return self.last - self.first

    @classmethod
    def of(cls, times: list[float], values: list[float]) -> Growth | None:
        """Of the samples after the first part; None: there are too few."""
        t, v = np.array(times), np.array(values)
        if len(t):
            kept = t >= t[0] + _FIRST_PART * (t[-1] - t[0])
            t, v = t[kept], v[kept]
        if len(t) < 12:
            return None
        third = len(t) // 3
        blocks = np.array_split(np.arange(len(t)), 12)
        tb, vb = (np.array([x[b].mean() for b in blocks]) for x in (t, v))
        (slope, _), covariance = np.polyfit(tb, vb, 1, cov=True)
        return cls(
            float(t[-1] - t[0]),
            float(np.median(v[:third])),
            float(np.median(v[-third:])),
            3600 * float(slope),
            3600 * float(np.sqrt(covariance[0, 0])),
        )

    def row(self, unit: float) -> dict[str, float]:
        """For a record, in multiples of `unit`."""
        return {
            "first": round(self.first / unit, 3),
            "last": round(self.last / unit, 3),
            "grown": round(self.grown / unit, 3),
            "slope_per_h": round(self.slope_per_h / unit, 3),
            "slope_error_per_h": round(self.slope_error_per_h / unit, 3),
            "over_s": round(self.span_s, 1),
        }


class Watch:
    """Samples of a server and its workers, taken from time to time."""

    def __init__(self, server: Served) -> None:
        self._server = server
        self.stalls: list[float] = []
        """Seconds for each of which this process did not run."""
        self._times: list[float] = []
        self._memory: list[float] = []
        self._files: list[float] = []
        self._workers: dict[int, tuple[list[float], list[float]]] = {}

    async def run(self) -> None:
        """Samples until it is cancelled."""
        due = time.monotonic()
        while True:
            now = time.monotonic()
            if now - due > _STALL_S:
                self.stalls.append(now - due)
            self._sample(now)
            due = time.monotonic() + EVERY_S
            await asyncio.sleep(EVERY_S)

    def _sample(self, now: float) -> None:
        pid = self._server.process.pid
        self._times.append(now)
        self._memory.append(memory_bytes(pid))
        self._files.append(open_files(pid, sockets=False))
        for child in children(pid):
            with contextlib.suppress(OSError, RecsysOptError):  # it has just ended
                memory = memory_bytes(child)
                times, values = self._workers.setdefault(child, ([], []))
                times.append(now)
                values.append(memory)

    def memory(self) -> Growth | None:
        """Of the server's process."""
        return Growth.of(self._times, self._memory)

    def files(self) -> Growth | None:
        """File descriptors of the server's process that are no sockets: those come and go with clients."""
        return Growth.of(self._times, self._files)

    def workers(self, least_s: float) -> list[Growth]:
        """Memory of the workers that lived so long, each by itself, from when its models were loaded."""
        found = []
        for t, v in self._workers.values():
            # Loading is what brings most of the memory. Had it leaked after that, this were late in its
            # life, and the rest of the way would be more than what is taken to be flat.
            begin = next(k for k, value in enumerate(v) if value >= _LOADED * max(v))
            if t[-1] - t[begin] >= least_s:
                found.append(Growth.of(t[begin:], v[begin:]))
        return [g for g in found if g is not None]

    def row(self) -> dict[str, Any]:
        """For a record: largest values."""
        return {
            "samples": len(self._times),
            "most_memory_mb": round(max(self._memory) / 1e6, 3),
            "most_files_but_sockets": int(max(self._files)),
            "worker_processes": len(self._workers),
            "stalls": len(self.stalls),
            "stalled_s": round(sum(self.stalls), 1),
        }


def open_files(pid: int, *, sockets: bool = True) -> int:
    """File descriptors that a process has."""
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # just closed
            count += sockets or not os.readlink(entry).startswith("socket:")
    return count


def children(pid: int) -> list[int]:
    """A process's children, those that have ended and were not waited for among them."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return found
