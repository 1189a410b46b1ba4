"""Statistics of two days of drifting lookups, and the planning problems of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from recsys_opt._access import Counters, count
from recsys_opt.data.access_statistics import AccessStatistics, TableStatistics
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.inputs import PlanInputs
from recsys_opt.planner.problem import PlanSettings

DIM = 8


def statistics(day: int, sizes: Sequence[int], seed: int, drift: float, lookups: int) -> AccessStatistics:
    """Zipf-like lookups; on every day but the first, a share of the rows has changed ranks, and tables are
    looked up more or less often."""
    tables = []
    for i, rows in enumerate(sizes):
        fixed, random = np.random.default_rng([seed, i]), np.random.default_rng([seed, i, day])
        order, exponent = fixed.permutation(rows), fixed.uniform(0.7, 1.3)
        n = int(lookups * fixed.lognormal(0, 1)) + 10
        if day:
            some = random.permutation(rows)[: int(drift * rows)]
            order[some] = order[random.permutation(some)]
            n = int(n * random.lognormal(0, 0.5)) + 10
        u = random.random(n)
        ranks = (rows ** (1 - exponent) * u + 1 - u) ** (1 / (1 - exponent)) - 1
        ids = order[np.minimum(ranks, rows - 1).astype(np.int64)]
        early, late = Counters(rows), Counters(rows)
        count([early], [ids[: n // 2]], 1)
        count([late], [ids[n // 2 :]], 1)
        tables.append(TableStatistics.from_counters(f"t{i}", lookups, lookups, early, late))
    return AccessStatistics.of(tables)


def two_days(
    folder: Path,
    sizes: Sequence[int],
    *,
    devices: int,
    nodes: int = 1,
    hbm_share: float = 0.25,
    seed: int = 0,
    drift: float = 0.3,
    lookups: int = 2000,
    settings: PlanSettings | None = None,
) -> list[PlanInputs]:
    """The problem of each day; statistics are in `folder` as day0.npz and day1.npz."""
    settings = settings or PlanSettings(batch_size=2048, replicate_rows=100, effort=0.05)
    size = sum(sizes) * settings.row_bytes(DIM)
    hardware = Hardware.load(f"h100:nodes={nodes},devices={devices // nodes},uvm={10 * size}")
    fast = replace(hardware.fast, memory_bytes=max(int(size * hbm_share / devices), 1), reserved_bytes=0)
    hardware = replace(hardware, fast=fast)
    found = []
    for day in (0, 1):
        path = folder / f"day{day}.npz"
        statistics(day, sizes, seed, drift, lookups).save(path)
        found.append(PlanInputs.gather(path, DIM, hardware, settings))
    return found
