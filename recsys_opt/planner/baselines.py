"""The greedy planners that RecShard compares itself with (ASPLOS 2022, section 5): whole tables only.

Tables are taken in descending order of a cost; each goes to the device whose costs add up to the least so
far, into the fast tier of the first device, in this order, that has room for it; once no fast tier has, into
the slow tier in the same way. The costs are

    size          rows x columns
    lookup        lookups a sample x columns
    size-lookup   lookups a sample x columns x log10(rows)

Lookups a sample count the samples without any (coverage x pooling factor), which favours the baselines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from recsys_opt.errors import InfeasibleError, InputError
from recsys_opt.plan import Plan, TablePlan
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.problem import PlannedTable
from recsys_opt.tables import TableConfig

BASELINES = ("size", "lookup", "size-lookup")


def greedy_plan(
    baseline: str,
    tables: Sequence[TableConfig],
    lookups_per_sample: Sequence[float],
    row_bytes: Sequence[int],
    hardware: Hardware,
    *,
    batch_size: int,
) -> Plan:
    """A plan by one of `BASELINES`; nothing in it is priced.

    lookups_per_sample  of each table
    row_bytes           of each table: what a row takes in memory, optimizer state included
    batch_size          of an iteration, over all devices; goes into the plan
    """
    if baseline not in BASELINES:
        raise InputError(f"no baseline is called {baseline!r}; there are {', '.join(BASELINES)}")
    if not len(tables) == len(lookups_per_sample) == len(row_bytes):
        raise InputError(
            f"{len(tables)} tables, {len(lookups_per_sample)} lookups_per_sample, {len(row_bytes)} "
            "row_bytes; give one of each for every table"
        )
    costs = [_cost(baseline, table, n) for table, n in zip(tables, lookups_per_sample, strict=True)]
    sums = [0.0] * hardware.num_devices
    fast = [hardware.fast.capacity_bytes] * hardware.num_devices
    slow = [hardware.slow.capacity_bytes] * hardware.num_devices
    placed: dict[int, TablePlan] = {}
    for at in sorted(range(len(tables)), key=lambda i: (-costs[i], i)):
        table = tables[at]
        need = table.num_embeddings * row_bytes[at]
        order = sorted(range(hardware.num_devices), key=lambda d: (sums[d], d))
        place = next(((room, d) for room in (fast, slow) for d in order if room[d] >= need), None)
        if place is None:
            raise InfeasibleError(
                f"{baseline} greedy: table {table.name} needs {need:,} bytes in one tier of one device, of "
                f"which {max(fast):,} are left in {hardware.fast.name} and {max(slow):,} in "
                f"{hardware.slow.name}; give more devices or memory: this baseline cuts no table"
            )
        room, device = place
        room[device] -= need
        sums[device] += costs[at]
        placed[at] = TablePlan(
            name=table.name,
            num_embeddings=table.num_embeddings,
            embedding_dim=table.embedding_dim,
            devices=(device,),
            hot_rows=(table.num_embeddings if room is fast else 0,),
            feature_names=table.feature_names,
            pooling=table.pooling,
        )
    return Plan(
        tables=tuple(placed[at] for at in range(len(tables))),
        num_devices=hardware.num_devices,
        batch_size=batch_size,
        hardware=hardware.to_json(),
        settings={"planner": baseline},
    )


def least_slow_reads(
    tables: Sequence[PlannedTable], row_bytes: Sequence[int], fast_bytes: int, *, batch_size: int
) -> Plan:
    """The rows in the fast tier that leave the fewest lookups to the slow one, as a plan for one device.

    Rows are taken by lookups per byte, over all tables; no plan for any number of devices whose fast tiers
    hold `fast_bytes` together reads less, whatever it takes in time.

    row_bytes  of each table: what a row takes in memory, optimizer state included
    """
    table = np.repeat(np.arange(len(tables)), [len(t.rows) for t in tables])
    rows = np.concatenate([t.rows for t in tables])
    sizes = np.asarray(row_bytes, dtype=float)[table]
    lookups = np.concatenate([t.lookups_per_sample * t.share for t in tables])
    order = np.argsort(-lookups / rows / sizes, kind="stable")
    ends = np.cumsum((rows * sizes)[order])
    taken = np.clip(rows[order] - (ends - fast_bytes) / sizes[order], 0, rows[order])
    hot = np.bincount(table[order], weights=taken, minlength=len(tables))
    return Plan(
        tables=tuple(
            TablePlan(
                name=t.config.name,
                num_embeddings=t.config.num_embeddings,
                embedding_dim=t.config.embedding_dim,
                devices=(0,),
                hot_rows=(min(int(n), t.config.num_embeddings),),
                feature_names=t.config.feature_names,
                pooling=t.config.pooling,
            )
            for t, n in zip(tables, hot, strict=True)
        ),
        num_devices=1,
        batch_size=batch_size,
        settings={"planner": "least-reads"},
    )


def _cost(baseline: str, table: TableConfig, lookups_per_sample: float) -> float:
    if not 0 <= lookups_per_sample < math.inf:
        raise InputError(
            f"table {table.name}: lookups_per_sample = {lookups_per_sample}; it must be 0 or more"
        )
    if baseline == "size":
        return float(table.num_embeddings * table.embedding_dim)
    cost = lookups_per_sample * table.embedding_dim
    return cost if baseline == "lookup" else cost * math.log10(table.num_embeddings)
