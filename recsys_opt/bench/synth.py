"""Rows a second that the generator makes and writes, per core and with all cores."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys_opt.bench.measure import quantile
from recsys_opt.data.synth import SyntheticCriteo, usable_threads, write_dataset
from recsys_opt.errors import InputError


@dataclass(frozen=True)
class Rate:
    """One run."""

    wall_s: float
    cpu_s: float
    """Of the whole process: on a shared machine it says what a core of one's own would need."""


def measure(rows: int, *, repeats: int = 5, folder: Path | None = None) -> list[dict[str, Any]]:
    """Times writing (one thread, then all) and making rows in memory, in turns; one row per way."""
    if rows < 1 or repeats < 1:
        raise InputError(f"rows = {rows}, repeats = {repeats}; both must be at least 1")
    source = SyntheticCriteo(rows, seed=1)
    block = min(rows, 1 << 18)
    ways = {"written, 1 thread": 1, f"written, {usable_threads()} threads": usable_threads()}
    found: dict[str, list[Rate]] = {name: [] for name in [*ways, "in memory, 1 thread"]}
    for _ in range(repeats):
        for name, threads in ways.items():
            with tempfile.TemporaryDirectory(dir=folder, prefix="recsys_opt_synth_") as target:
                began, cpu = time.perf_counter(), time.process_time()
                write_dataset(source, Path(target), threads=threads)
                found[name].append(Rate(time.perf_counter() - began, time.process_time() - cpu))
        began, cpu = time.perf_counter(), time.process_time()
        for start in range(0, rows, block):
            source.rows(start, min(start + block, rows), threads=1)
        found["in memory, 1 thread"].append(Rate(time.perf_counter() - began, time.process_time() - cpu))
    return [
        {
            "way": name,
            "rows": rows,
            "rows_per_s": rows / quantile([r.wall_s for r in rates], 0.5),
            "rows_per_cpu_s": rows / quantile([r.cpu_s for r in rates], 0.5),
            "rows_per_cpu_s_p20": rows / quantile([r.cpu_s for r in rates], 0.8),
            "rows_per_cpu_s_p80": rows / quantile([r.cpu_s for r in rates], 0.2),
            "repeats": repeats,
        }
        for name, rates in found.items()
    ]
