"""From tables and hardware to a plan with its certificate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

import recsys_opt._planner as _planner
from recsys_opt.errors import InfeasibleError, InputError
from recsys_opt.plan import Plan, TablePlan, stripe_rows
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.options import Cut, Options, make_options
from recsys_opt.planner.problem import PlannedTable, PlanSettings

GOOD_ENOUGH = 5e-4
"""The search ends at this gap."""
TRIALS = 10_000_000
"""Of the search with effort 1, at most: a second or two."""
LARGE, TRIALS_PER_TABLE = 64_000, 4_000
"""From so many tables times devices on: most of a millisecond a table in all."""


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
    problem = SolverProblem(tables, model, options)
    devices = hardware.num_devices
    found = problem.solve(
        hardware.fast.capacity_bytes,
        hardware.slow.capacity_bytes,
        trials=search_trials(settings, len(tables), devices),
        rounds=round(settings.effort * _rounds(len(tables), devices)),
    )
    if found["unplaced"] >= 0:
        raise InfeasibleError(_why_not(problem, tables[found["unplaced"]]))
    placed = tuple(
        table_plan(table, options.cuts[options.cut[option]], where, hot)
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


@dataclass(frozen=True, eq=False)
class SolverProblem:
    """The solver's arguments, all but the memory and the effort."""

    tables: Sequence[PlannedTable]
    model: CostModel
    options: Options

    def arguments(self, fast_bytes: int, slow_bytes: int) -> dict[str, Any]:
        """Tables, options and devices with so much of each tier."""
        hardware, settings = self.model.hardware, self.model.settings
        n = hardware.num_devices
        return {
            "cell_offsets": np.concatenate([[0], np.cumsum([len(t.rows) for t in self.tables])]),
            "cell_rows": np.concatenate([t.rows for t in self.tables]),
            "cell_lookups": np.concatenate(
                [t.share * (t.lookups_per_sample * settings.batch_size) for t in self.tables]
            ),
            "options": self.options.arrays,
            "pinned": [list(settings.pins.get(t.config.name, {}).get("devices", ())) for t in self.tables],
            "nodes": hardware.nodes,
            "per_node": hardware.devices_per_node,
            "fast_bytes": [fast_bytes] * n,
            "total_bytes": [fast_bytes + slow_bytes] * n,
        }

    def solve(self, fast_bytes: int, slow_bytes: int, *, trials: int, rounds: int) -> dict[str, Any]:
        """With so much of each tier on every device."""
        return _planner.solve(
            **self.arguments(fast_bytes, slow_bytes),
            trials=trials,
            rounds=rounds,
            gap=GOOD_ENOUGH,
            seed=self.model.settings.seed,
        )

    def fits(self, fast_bytes: int, slow_bytes: int) -> bool:
        """Whether all tables find room."""
        return bool(self.solve(fast_bytes, slow_bytes, trials=0, rounds=0)["unplaced"] < 0)


def search_trials(settings: PlanSettings, tables: int, devices: int) -> int:
    """The search's length: how often it asks for a device's time, at most."""
    trials = TRIALS if tables * devices <= LARGE else min(TRIALS, TRIALS_PER_TABLE * tables)
    return round(settings.effort * trials)


def _rounds(tables: int, devices: int) -> int:
    """Columns of the pattern bound: for few tables, where the pooled bound is weak; many take too long."""
    return min(4000, 100_000 // tables) if tables <= 200 and tables < 24 * devices and devices > 1 else 0


def _why_not(problem: SolverProblem, table: PlannedTable) -> str:
    """The constraint that binds, and the least change of one tier's memory that mends it."""
    h, settings = problem.model.hardware, problem.model.settings
    fast, slow = h.fast.capacity_bytes, h.slow.capacity_bytes
    need = sum(t.config.num_embeddings * settings.row_bytes(t.config.embedding_dim) for t in problem.tables)
    have = h.num_devices * (fast + slow)
    name = table.config.name
    size = table.config.num_embeddings * settings.row_bytes(table.config.embedding_dim)
    if need > have:
        reason = f"the tables take {need:,} bytes, the {h.num_devices} devices have {have:,} in all"
    else:
        reason = (
            f"no device has room for table {name} ({size:,} bytes) or a piece of it beside the others; the "
            f"tables take {need:,} bytes, the {h.num_devices} devices have {have:,} in all"
        )
    if any(pin.get("tier") == "fast" for pin in settings.pins.values()):
        pinned = sum(
            t.config.num_embeddings * settings.row_bytes(t.config.embedding_dim)
            for t in problem.tables
            if settings.pins.get(t.config.name, {}).get("tier") == "fast"
        )
        reason += (
            f"; pins want {pinned:,} bytes in {h.fast.name}, of which there are {h.num_devices * fast:,}"
        )
    changes = []
    for tier, at in ((h.slow.name, 1), (h.fast.name, 0)):
        more = _least_more(problem, fast, slow, at, 2 * need)
        if more is not None:
            now = slow if at else fast
            changes.append(f"{tier} of {now + more:,} bytes a device in place of {now:,} (+{more:,})")
    if not changes:
        return f"{reason}; more memory does not mend it: allow more shardings, or take pins away"
    return f"{reason}; smallest change: {', or '.join(changes)}"


def _least_more(problem: SolverProblem, fast: int, slow: int, at: int, most: int) -> int | None:
    """Bytes more of one tier with which all tables find room, to within 1 % of what is needed."""

    def fits(more: int) -> bool:
        return problem.fits(fast + (0 if at else more), slow + (more if at else 0))

    if not fits(most):
        return None
    low, high = 0, most
    while high - low > max(high // 100, 1):
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle
    return high


def table_plan(table: PlannedTable, cut: Cut, devices: Sequence[int], hot: Sequence[float]) -> TablePlan:
    """A table's place from what the solver says of it: devices and rows in the fast tier, by piece."""
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
