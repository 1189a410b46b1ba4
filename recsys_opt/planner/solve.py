"""From tables and hardware to a plan with its certificate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np

import recsys_opt._planner as _planner
from recsys_opt.errors import InfeasibleError, InputError
from recsys_opt.plan import Plan, TablePlan, stripe_rows
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.options import Cut, make_options
from recsys_opt.planner.problem import PlannedTable, PlanSettings

GOOD_ENOUGH = 5e-4
"""The search ends at this gap."""


def make_plan(
    tables: Sequence[PlannedTable],
    hardware: Hardware,
    settings: PlanSettings | None = None,
    *,
    inputs: Mapping[str, Mapping[str, str]] | None = None,
) -> Plan:
    """The plan of least time for the slowest device that the search finds, and a bound on all plans' times.

    The same arguments give the same plan. Raises InfeasibleError where the tables do not fit.
    """
    settings = settings or PlanSettings()
    _check(tables, hardware, settings)
    model = CostModel(hardware, settings)
    options = make_options(model, tables)
    cells = [len(t.rows) for t in tables]
    lookups = [t.share * (t.lookups_per_sample * settings.batch_size) for t in tables]
    devices = hardware.num_devices
    fast, slow = hardware.fast.capacity_bytes, hardware.slow.capacity_bytes
    names = [t.config.name for t in tables]
    found = _planner.solve(
        cell_offsets=np.concatenate([[0], np.cumsum(cells)]),
        cell_rows=np.concatenate([t.rows for t in tables]),
        cell_lookups=np.concatenate(lookups),
        options=options.arrays,
        pinned=[list(settings.pins.get(name, {}).get("devices", ())) for name in names],
        nodes=hardware.nodes,
        per_node=hardware.devices_per_node,
        fast_bytes=[fast] * devices,
        total_bytes=[fast + slow] * devices,
        trials=round(settings.effort * 6_000_000),
        rounds=round(settings.effort * _rounds(len(tables), devices)),
        gap=GOOD_ENOUGH,
        seed=settings.seed,
    )
    if found["unplaced"] >= 0:
        _refuse(tables, model, tables[found["unplaced"]])
    placed = tuple(
        _table_plan(table, options.cuts[options.cut[option]], where, hot)
        for table, option, where, hot in zip(
            tables, found["option"], found["devices"], found["hot_rows"], strict=True
        )
    )
    plan = Plan(
        tables=placed,
        num_devices=devices,
        batch_size=settings.batch_size,
        hardware=hardware.to_json(),
        settings=asdict(settings),
        inputs=dict(inputs or {}),
    )
    plan = replace(plan, devices=model.loads(plan, tables))
    return replace(plan, bound_seconds=min(found["bound"], plan.seconds))


def _rounds(tables: int, devices: int) -> int:
    """Steps of the pattern bound: many for few tables, where the pooled bound is weak."""
    return max(20, min(400, 20_000 // tables)) if tables < 24 * devices and devices > 1 else 0


def _table_plan(table: PlannedTable, cut: Cut, devices: Sequence[int], hot: Sequence[float]) -> TablePlan:
    config = table.config
    replicated = cut.sharding == "data_parallel"
    rows = [
        config.num_embeddings
        if replicated
        else stripe_rows(config.num_embeddings, i % cut.row_shards, cut.row_shards)
        for i in range(len(devices))
    ]
    return TablePlan(
        name=config.name,
        num_embeddings=config.num_embeddings,
        embedding_dim=config.embedding_dim,
        devices=tuple(devices),
        hot_rows=tuple(min(int(h + 1e-6), n) for h, n in zip(hot, rows, strict=True)),
        column_shards=cut.column_shards,
        row_shards=cut.row_shards,
        replicated=replicated,
        feature_names=config.feature_names,
        pooling=config.pooling,
    )


def _check(tables: Sequence[PlannedTable], hardware: Hardware, settings: PlanSettings) -> None:
    if not tables:
        raise InputError("there are no tables to plan")
    names = {t.config.name for t in tables}
    for name, pin in settings.pins.items():
        if name not in names:
            raise InputError(
                f"pins: there is no table {name!r}; the tables are {', '.join(sorted(names)[:20])}"
            )
        for device in pin.get("devices", ()):
            if not 0 <= device < hardware.num_devices:
                raise InputError(
                    f"pins of table {name}: device {device}; there are {hardware.num_devices}, counted from 0"
                )


def _refuse(tables: Sequence[PlannedTable], model: CostModel, table: PlannedTable) -> None:
    h = model.hardware
    need = sum(t.config.num_embeddings * model.settings.row_bytes(t.config.embedding_dim) for t in tables)
    have = h.num_devices * (h.fast.capacity_bytes + h.slow.capacity_bytes)
    raise InfeasibleError(
        f"no device has room for table {table.config.name}: the tables take {need} bytes, the devices have "
        f"{have}"
    )
