"""What a plan exchanges on TorchRec, and its time: beside whole tables and tiers that are plain tables."""

from __future__ import annotations

import statistics
from typing import Any

from recsys_opt.bench.measure import quantile
from recsys_opt.errors import InputError
from recsys_opt.plan import Plan, TablePlan

WARM_ROUNDS = 3


def split_tables(
    rows: list[int], *, devices: int, embedding_dim: int, hot_share: float, batch_size: int
) -> Plan:
    """Whole tables on the devices in turn; of those of more than 1,000 rows, a share of the rows is hot."""
    if not rows or min(rows) < 1 or not 0 <= hot_share <= 1 or devices < 1:
        raise InputError(
            f"rows = {rows}, hot_share = {hot_share}, devices = {devices}; rows and devices are at least 1, "
            "the share is from 0 to 1"
        )
    tables = tuple(
        TablePlan(f"t{at}", n, embedding_dim, (at % devices,), (int(hot_share * n) if n > 1000 else n,))
        for at, n in enumerate(rows)
    )
    return Plan(tables, devices, batch_size)


def measure(plan: Plan, rounds: int) -> dict[str, Any]:
    """Bytes of a step by way, and times of the first process; `rounds` steps of each, in turns."""
    if rounds < 1:
        raise InputError(f"rounds = {rounds}; it must be at least 1")
    from recsys_opt.integrations.torchrec.trial import run_trial  # torchrec takes seconds, and may be absent

    results, remap = run_trial(plan, rounds + WARM_ROUNDS)
    ways = []
    for result in results:
        times = result.seconds[WARM_ROUNDS:]
        ways.append(
            {
                "way": result.way,
                "pooled_bytes": result.pooled_bytes,
                "id_bytes": result.id_bytes,
                "median_ms": 1e3 * statistics.median(times),
                "p20_ms": 1e3 * quantile(times, 0.2),
                "p80_ms": 1e3 * quantile(times, 0.8),
            }
        )
    return {
        "devices": plan.num_devices,
        "tables": len(plan.tables),
        "batch_size": plan.batch_size,
        "remap_ms": 1e3 * statistics.median(remap),
        "ways": ways,
    }
