"""Whether a plan holds: every row exactly once, nothing over capacity, and its costs as it says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys_opt.plan import Plan, TablePlan
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.problem import PlannedTable, PlanSettings

TOLERANCE = 1e-9
"""Relative, of seconds that are computed again."""


def problems(
    plan: Plan, tables: Sequence[PlannedTable], hardware: Hardware, settings: PlanSettings
) -> list[str]:
    """What is wrong with a plan; empty where it holds. It is computed anew from the definition."""
    found = []
    if plan.num_devices != hardware.num_devices:
        return [f"the plan has {plan.num_devices} devices, the hardware {hardware.num_devices}"]
    wanted = {t.config.name: t.config for t in tables}
    for name in sorted(wanted.keys() - {t.name for t in plan.tables}):
        found.append(f"table {name} has no place in the plan")
    fast, slow = np.zeros(plan.num_devices), np.zeros(plan.num_devices)
    for table in plan.tables:
        config = wanted.get(table.name)
        if config is None:
            found.append(f"table {table.name} of the plan is not among the tables")
            continue
        if (config.num_embeddings, config.embedding_dim) != (table.num_embeddings, table.embedding_dim):
            found.append(
                f"table {table.name} is {config.num_embeddings} x {config.embedding_dim}, but "
                f"{table.num_embeddings} x {table.embedding_dim} in the plan"
            )
            continue
        found += _coverage(table)
        for piece in table.pieces():
            row = settings.row_bytes(piece.width)
            if table.replicated:
                row = settings.row_bytes(piece.width) + 4 * piece.width
            fast[piece.device] += piece.hot_rows * row
            slow[piece.device] += piece.cold_rows * row
    if found:
        return found
    for tier, held in ((hardware.fast, fast), (hardware.slow, slow)):
        for device in np.flatnonzero(held > tier.capacity_bytes).tolist():
            found.append(
                f"device {device}: {held[device]:.0f} bytes in {tier.name}, which has {tier.capacity_bytes}"
            )
    loads = CostModel(hardware, settings).loads(plan, tables)
    for device, (said, is_) in enumerate(zip(plan.devices, loads, strict=False)):
        if abs(said.seconds - is_.seconds) > TOLERANCE * max(is_.seconds, 1e-12):
            found.append(f"device {device}: the plan says {said.seconds:.9g} s, it is {is_.seconds:.9g} s")
    if len(plan.devices) not in (0, plan.num_devices):
        found.append(f"the plan predicts {len(plan.devices)} of {plan.num_devices} devices")
    if plan.devices and plan.bound_seconds > plan.seconds * (1 + TOLERANCE):
        found.append(f"the bound, {plan.bound_seconds:.9g} s, is above the plan's own {plan.seconds:.9g} s")
    return found


def _coverage(table: TablePlan) -> list[str]:
    """Every row of every column on exactly one device, or on all of a replicated table's."""
    if table.replicated:
        short = [p for p in table.pieces() if p.hot_rows != table.num_embeddings]
        return [f"table {table.name}: its replica on device {p.device} is not all fast" for p in short]
    cells = np.zeros(table.embedding_dim)
    for piece in table.pieces():
        cells[piece.columns[0] : piece.columns[1]] += piece.rows
    if (cells != table.num_embeddings).any():
        at = int(np.flatnonzero(cells != table.num_embeddings)[0])
        return [f"table {table.name}: column {at} has {cells[at]:.0f} of {table.num_embeddings} rows"]
    return []
