"""From the plan that runs to a better one for later statistics, with a limit on the bytes that move.

    found = replan(old, statistics, inputs, move_limit=5e9)
    found.plan                  the best within the limit, its devices numbered as the old plan's
    found.as_is, found.retiered the old plan under the new statistics, its thresholds as they are, or anew

Bytes between devices count towards the limit: weights and optimizer state of rows that leave their device.
Thresholds are set anew on every device whatever the limit is; what changes its tier there does not count, and
is told beside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import recsys_opt._planner as _planner
from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.plan_ranking import STATISTICS, plan_ranking, plan_statistics
from recsys_opt.errors import InfeasibleError, InputError
from recsys_opt.plan import Plan, TablePlan
from recsys_opt.planner.compare import table_move
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.inputs import PlanInputs, orders_between
from recsys_opt.planner.moves import make_ways
from recsys_opt.planner.options import make_options
from recsys_opt.planner.overlap import Orders
from recsys_opt.planner.problem import PlannedTable
from recsys_opt.planner.renumber import renumbered
from recsys_opt.planner.solve import SolverProblem, make_plan, search_trials, table_plan
from recsys_opt.ranks import rank_of, rank_order

SHARES = (0.0, 0.01, 0.05, 0.2, 1.0)
"""Limits of the trade-off, as shares of the model's bytes."""
_PART = 0.15
"""Of the search's length, for each limit but the one that is asked for."""


@dataclass(frozen=True)
class Candidate:
    """A plan for the new statistics, and what it takes to go there from the old one."""

    plan: Plan
    between_devices_bytes: int
    between_tiers_bytes: int
    """Of rows that stay on their device."""

    @property
    def seconds(self) -> float:
        """Of the slowest device."""
        return self.plan.seconds


@dataclass(frozen=True)
class Replanned:
    """What `replan` found."""

    as_is: float
    """Seconds of the old plan under the new statistics, with the rows that are in its fast tiers now."""
    retiered: Candidate
    """Every table where it is, thresholds set anew."""
    best: Candidate
    """Within the limit; its bound is one for every plan within the limit."""
    free: Candidate
    """Without a limit."""
    trade_off: tuple[tuple[float, Candidate], ...]
    """(limit in bytes, the best within it); limits ascend."""
    model_bytes: int
    move_limit: float
    """Bytes; infinity without one."""

    def gain(self, seconds: float) -> float:
        """The share of the old plan's time, as it is, that is saved."""
        return 1 - seconds / self.as_is if self.as_is > 0 else 0.0


def replan(
    old: Plan, statistics: AccessStatistics, inputs: PlanInputs, *, move_limit: float = math.inf
) -> Replanned:
    """The best plan that moves at most `move_limit` bytes between devices, and what other limits would give.

    statistics  those that the old plan was made from
    inputs      the new statistics, the hardware and the settings; devices and tables must be the old plan's
    """
    if math.isnan(move_limit) or move_limit < 0:
        raise InputError(f"move_limit = {move_limit} bytes; it must be 0 or more")
    _check(old, inputs)
    return _Replan(old, statistics, inputs).run(move_limit)


class _Replan:
    """The problem, and where its tables are."""

    def __init__(self, old: Plan, statistics: AccessStatistics, inputs: PlanInputs) -> None:
        self.inputs = inputs
        self.model = model = CostModel(inputs.hardware, inputs.settings)
        self.placed = [old.table(t.config.name) for t in inputs.tables]
        self.old = replace(old, tables=tuple(self.placed))
        self.row_bytes = {t.name: inputs.settings.row_bytes(t.embedding_dim) for t in self.placed}
        self.model_bytes = sum(t.num_embeddings * self.row_bytes[t.name] for t in self.placed)
        self.old_ranking = plan_ranking(old, statistics)
        self.dealt_by = {
            t.name: found for t in self.placed if (found := self._dealt_by(t, statistics)) is not None
        }
        self.ways = make_ways(
            make_options(model, inputs.tables), inputs.tables, self.placed, model, self._reranked(statistics)
        )
        memory = (inputs.hardware.fast.capacity_bytes, inputs.hardware.slow.capacity_bytes)
        arguments = SolverProblem(inputs.tables, model, self.ways.options).arguments(*memory)
        self.replanner = _planner.Replanner(**arguments, moves=self.ways.arrays)

    def run(self, move_limit: float) -> Replanned:
        """Searches at every limit; each goes on from the best of the limit before."""
        settings = self.inputs.settings
        free = make_plan(self.inputs.tables, self.inputs.hardware, settings, inputs=self._files(()))
        free = renumbered(self.old, free, self.row_bytes, self._orders(free))
        bound, price = self.replanner.free_bound()
        if not self.ways.dealt.any():  # then the other bounds hold, too
            bound = max(bound, free.bound_seconds)
        bound = min(bound, free.seconds)
        guide = [self.ways.find(t, p, self.model, dealt=False) for t, p in enumerate(free.tables)]
        limits = sorted({share * self.model_bytes for share in SHARES} | {move_limit, math.inf})
        trials = search_trials(settings, len(self.placed), self.old.num_devices)
        found = self.replanner.search(
            guide_option=guide,
            guide_devices=[list(t.devices) for t in free.tables],
            limits=limits,
            trials=[round(trials * (1 if limit == move_limit else _PART)) for limit in limits],
            price=price,
            bound=bound,
            seed=settings.seed,
        )
        if not found:
            raise InfeasibleError(
                "some device has no room for what the old plan has there: give the hardware that the old "
                "plan was made for, or plan anew, without --from"
            )
        plans = [self._plan(one) for one in found] + [free]
        moved = [self._moved(one["option"], one["devices"]) for one in found]
        moved.append(self._moved(guide, [t.devices for t in free.tables]))
        if moved[0] > move_limit + 0.5:
            raise InfeasibleError(
                f"the pins move {moved[0]:,.0f} bytes to other devices, more than the {move_limit:,.0f} "
                "that may move; allow as many, or take pins away"
            )
        limits = [limit for limit in limits if moved[0] <= limit + 0.5]
        chosen = [
            min(
                (i for i in range(len(plans)) if moved[i] <= limit + 0.5),
                key=lambda i: (plans[i].seconds, moved[i]),
            )
            for limit in limits
        ]
        tiers, hot_cells = self._drift({i: plans[i] for i in {0, len(plans) - 1, *chosen}})
        candidates = {i: Candidate(plans[i], round(moved[i]), tiers[i]) for i in tiers}
        trade_off = []
        for limit, i in zip(limits, chosen, strict=True):
            seconds, least = plans[i].seconds, bound
            if limit < math.inf:
                least = self.replanner.bound(limit, price, bound, seconds)
            certified = replace(plans[i], bound_seconds=min(least, seconds))
            trade_off.append((limit, replace(candidates[i], plan=certified)))
        dealt = [replace(t, striped_by=self.dealt_by.get(t.name, "")) for t in self.placed]
        as_is_plan = replace(self.old, tables=tuple(dealt), inputs=self._files(dealt))
        as_is = self.model.loads(as_is_plan, self._as_dealt(as_is_plan), hot_cells)
        return Replanned(
            as_is=max(load.seconds for load in as_is),
            retiered=candidates[0],
            best=dict(trade_off)[move_limit],
            free=candidates[len(plans) - 1],
            trade_off=tuple(trade_off),
            model_bytes=self.model_bytes,
            move_limit=move_limit,
        )

    def _dealt_by(self, table: TablePlan, statistics: AccessStatistics) -> str | None:
        """The input of the new plan whose ranking deals a table's rows now, if that is not its statistics."""
        if table.row_shards == 1:
            return None
        name = table.striped_by or STATISTICS
        said = self.old.inputs.get(name, {})
        sha256 = said.get("sha256", statistics.sha256)
        if sha256 == self.inputs.statistics.sha256:
            return None
        return table.striped_by or f"stripes-{sha256[:8]}"

    def _reranked(self, statistics: AccessStatistics) -> dict[str, NDArray[Any]]:
        """For `make_ways`."""
        ranked_by: dict[str, AccessStatistics] = {}
        found = {}
        for table in self.placed:
            if table.name not in self.dealt_by:
                continue
            dealer = table.striped_by
            if dealer not in ranked_by:
                ranked_by[dealer] = plan_statistics(self.old, dealer) if dealer else statistics
            n = table.num_embeddings
            now = rank_of(rank_order(self.inputs.statistics.table(table.name).ranking(), n))
            found[table.name] = now[rank_order(ranked_by[dealer].table(table.name).ranking(), n)]
        return found

    def _files(self, tables: Sequence[TablePlan]) -> dict[str, Mapping[str, str]]:
        """The inputs of a plan with such tables."""
        files = dict(self.inputs.files)
        for table in tables:
            if table.striped_by:
                files[table.striped_by] = self.old.inputs.get(
                    table.striped_by, self.old.inputs.get(STATISTICS, {})
                )
        return files

    def _plan(self, found: Mapping[str, Any]) -> Plan:
        """A plan from what the search says."""
        cuts, cut_of = self.ways.options.cuts, self.ways.options.cut
        tables = []
        for t, planned in enumerate(self.inputs.tables):
            option = found["option"][t]
            placed = table_plan(planned, cuts[cut_of[option]], found["devices"][t], found["hot_rows"][t])
            if self.ways.dealt[option]:
                placed = replace(placed, striped_by=self.dealt_by[placed.name])
            tables.append(placed)
        plan = Plan(
            tables=tuple(tables),
            num_devices=self.inputs.hardware.num_devices,
            batch_size=self.inputs.settings.batch_size,
            hardware=self.inputs.hardware.to_json(),
            settings=asdict(self.inputs.settings),
            inputs=self._files(tables),
        )
        return replace(plan, devices=self.model.loads(plan, self._as_dealt(plan)))

    def _as_dealt(self, plan: Plan) -> list[PlannedTable]:
        """The tables, which also know their rows in stripes that are dealt as they were."""
        tables = list(self.inputs.tables)
        for t, placed in enumerate(plan.tables):
            if placed.striped_by:
                k = placed.row_shards
                tables[t] = replace(tables[t], dealt={k: self.ways.dealt_rows(placed.name, k)})
        return tables

    def _moved(self, option: Sequence[int], devices: Sequence[Sequence[int]]) -> float:
        """Bytes that go to another device."""
        arrays, moved = self.ways.arrays, 0.0
        for t, (o, on) in enumerate(zip(option, devices, strict=True)):
            before = self.placed[t].devices
            kept = arrays["kept"][o].reshape(len(on), len(before))
            same = np.array(on)[:, None] == np.array(before)
            moved += max(arrays["bytes"][o] - float(kept[same].sum()), 0.0)
        return moved

    def _orders(self, plan: Plan) -> Orders:
        return orders_between(self.old, plan, self.old_ranking, plan_ranking(plan, self.inputs.statistics))

    def _drift(self, plans: Mapping[int, Plan]) -> tuple[dict[int, int], dict[str, NDArray[np.float64]]]:
        """(bytes that change their tier on the way to each plan; table -> [pieces, K] rows of each cell that
        are fast in the old plan)."""
        tiers = dict.fromkeys(plans, 0)
        hot_cells = {}
        orders = {i: self._orders(plan) for i, plan in plans.items()}
        for t, (planned, before) in enumerate(zip(self.inputs.tables, self.placed, strict=True)):
            for i, plan in plans.items():
                size = self.row_bytes[before.name]
                tiers[i] += table_move(
                    before, plan.tables[t], size, orders[i](before.name)
                ).between_tiers_bytes
            if not before.replicated:
                hot_cells[before.name] = self._hot_cells(planned, before)
        return tiers, hot_cells

    def _hot_cells(self, planned: PlannedTable, before: TablePlan) -> NDArray[np.float64]:
        """[pieces, K] of the old plan's fast rows, those in each cell of the new statistics."""
        n, cells = before.num_embeddings, len(planned.rows)
        now = self.inputs.statistics.table(before.name).ranking()
        then = self.old_ranking(before.name)
        if max(p.stripe[0] + p.hot_rows * p.stripe[1] for p in before.pieces()) > len(then):
            then = rank_order(then, n)
        last = np.clip(planned.cell_ends, 0, n).astype(np.int64)
        cell = np.full(n, -1, dtype=np.int16)  # rows that the new statistics do not rank follow by id
        if len(now) < n:
            now = rank_order(now, n)
        cell[now] = np.repeat(np.arange(cells, dtype=np.int16), np.diff(last, prepend=0))
        return np.stack(
            [
                np.bincount(cell[then[p.stripe[0] :: p.stripe[1]][: p.hot_rows]], minlength=cells)
                for p in before.pieces()
            ]
        ).astype(np.float64)


def _check(old: Plan, inputs: PlanInputs) -> None:
    """Refuses what is not the same tables on the same devices."""
    planned, hardware = {t.config.name: t.config for t in inputs.tables}, inputs.hardware
    for name in sorted({t.name for t in old.tables} ^ planned.keys()):
        where = "the model" if name in planned else "the old plan"
        raise InputError(f"table {name} is in {where} alone; plan anew, without --from")
    for table in old.tables:
        config = planned[table.name]
        for what in ("num_embeddings", "embedding_dim"):
            if getattr(table, what) != getattr(config, what):
                raise InputError(
                    f"table {table.name} has {what} = {getattr(table, what)} in the old plan and "
                    f"{getattr(config, what)} in the model; plan anew, without --from"
                )
    per_node = int(old.hardware.get("devices_per_node", old.num_devices))
    if (old.num_devices, per_node) != (hardware.num_devices, hardware.devices_per_node):
        raise InputError(
            f"the old plan is for {old.num_devices} devices, {per_node} in a node; {hardware.name} has "
            f"{hardware.num_devices}, {hardware.devices_per_node} in a node: plan anew, without --from"
        )
    for name in ("optimizer", "weight_bytes"):
        said, now = old.settings.get(name), getattr(inputs.settings, name)
        if said is not None and said != now:
            raise InputError(
                f"the old plan was made with {name} = {said}, this one would be with {now}: rows cannot be "
                "moved into it as they are; plan anew, without --from"
            )
