"""Plans held against later lookups: ours, the greedy baselines and TorchRec's, on the same hardware.

Every planner is given the statistics of the lookups that were seen and the same memory; each plan is replayed
on later lookups and priced by the same cost model. TorchRec's caches are ideal in two ways:

    torchrec        they hold the rows that the later lookups themselves read most (`lfu_ranking`), from the
                    start: no cache can know them, and a cache of more rows than are read later never misses
    torchrec-past   they hold the rows that the statistics rank hottest: an LFU cache that has converged
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.plan_ranking import Ranking
from recsys_opt.errors import InfeasibleError, InputError, RecsysOptError
from recsys_opt.plan import Plan, TablePlan, slow_share
from recsys_opt.planner.baselines import BASELINES, greedy_plan
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.lookup_trace import LookupTrace
from recsys_opt.planner.problem import PlannedTable, PlanSettings, planned_tables
from recsys_opt.planner.replay import lfu_ranking, replay
from recsys_opt.planner.replay_cost import replay_cost
from recsys_opt.planner.solve import make_plan
from recsys_opt.progress import Progress, SilentProgress

OURS, TORCHREC, TORCHREC_PAST = "recsys-opt", "torchrec", "torchrec-past"
HBM_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class Settings:
    """What is planned, and for what."""

    embedding_dim: int = 64
    """Of all tables."""
    hardware: str = "h100:nodes=2"
    """Its fast tier's memory is set by `hbm_shares`."""
    hbm_shares: tuple[float, ...] = HBM_SHARES
    """Of the model with its optimizer state, in the fast tiers of all devices together."""
    planners: tuple[str, ...] = (OURS, *BASELINES, TORCHREC)
    torchrec_seconds: float = 300.0
    """Of its search, for each share."""
    torchrec_shardings: tuple[str, ...] = ("table_wise", "column_wise", "row_wise")
    """Those that TorchRec chooses from; with all of its own it takes many minutes for some hundred tables."""
    threads: int = 1
    """Tables that are replayed at once."""

    def __post_init__(self) -> None:
        for share in self.hbm_shares:
            if not 0 < share <= 2:
                raise InputError(f"hbm_shares has {share}; a share of the model is above 0 and at most 2")
        for planner in self.planners:
            if planner not in (OURS, *BASELINES, TORCHREC):
                raise InputError(
                    f"planners has {planner!r}; choose from {', '.join((OURS, *BASELINES, TORCHREC))}"
                )


def measure(
    statistics: AccessStatistics,
    trace: LookupTrace,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """A row for each share and planner; where a planner finds no plan, its row says why ("failed").

    trace  of later lookups than the statistics
    """
    settings = settings or Settings()
    progress = progress or SilentProgress()
    plan_settings = PlanSettings(batch_size=trace.batch_size)
    tables = planned_tables(statistics, settings.embedding_dim)
    row_bytes = plan_settings.row_bytes(settings.embedding_dim)
    model_bytes = row_bytes * sum(t.config.num_embeddings for t in tables)
    base = Hardware.load(settings.hardware)
    seen = functools.cache(lambda name: statistics.table(name).ranking())
    names = [(t.config.name, t.config.num_embeddings, t.config.embedding_dim) for t in tables]
    whole = Plan(tuple(TablePlan(*name, (0,), (0,)) for name in names), 1, trace.batch_size)
    later: Ranking = functools.cache(lfu_ranking(whole, trace))
    rows: list[dict[str, Any]] = []
    progress.start("plans", len(settings.hbm_shares) * len(settings.planners), "plans")
    for share in settings.hbm_shares:
        hbm = int(share * model_bytes / base.num_devices)
        hardware = replace(
            base,
            name=f"{base.name} with {hbm / 1e9:.3g} GB",
            fast=replace(base.fast, memory_bytes=hbm, reserved_bytes=0),
        )
        model = CostModel(hardware, plan_settings)
        for planner in settings.planners:
            row: dict[str, Any] = {"hbm_share": share, "planner": planner}
            began = time.perf_counter()
            try:
                plan, said = _plan(planner, tables, hardware, plan_settings, statistics, settings)
            except (InfeasibleError, RecsysOptError) as error:
                if isinstance(error, InputError):
                    raise
                row["failed"] = str(error)
            else:
                row |= {"plan_seconds": time.perf_counter() - began, **said}
                held = functools.partial(_held, plan, trace, model, tables, settings)
                if planner == TORCHREC:
                    rows.append(row | {"planner": TORCHREC_PAST} | held(seen))
                row |= held(later if planner == TORCHREC else seen)
            rows.append(row)
            progress.advance(1)
    progress.finish()
    return rows


def _plan(
    planner: str,
    tables: Sequence[PlannedTable],
    hardware: Hardware,
    plan_settings: PlanSettings,
    statistics: AccessStatistics,
    settings: Settings,
) -> tuple[Plan, dict[str, Any]]:
    """(The plan, what its planner says of it.)"""
    configs = [t.config for t in tables]
    lookups = [t.lookups_per_sample for t in tables]
    if planner == OURS:
        plan = make_plan(tables, hardware, plan_settings)
        return plan, {"gap": plan.gap, "bound_seconds": plan.bound_seconds}
    if planner == TORCHREC:
        # The optional package is needed by this baseline alone.
        from recsys_opt.planner.torchrec_baseline import torchrec_plan

        plan, placement = torchrec_plan(
            configs,
            lookups,
            hardware,
            batch_size=plan_settings.batch_size,
            curves={t.name: t.curve for t in statistics.tables.values()},
            time_limit=settings.torchrec_seconds,
            sharding_types=settings.torchrec_shardings,
        )
        return plan, {"search_seconds": placement.seconds, "finished": placement.finished}
    sizes = [plan_settings.row_bytes(c.embedding_dim) for c in configs]
    return (
        greedy_plan(planner, configs, lookups, sizes, hardware, batch_size=plan_settings.batch_size),
        {},
    )


def _held(
    plan: Plan,
    trace: LookupTrace,
    model: CostModel,
    tables: Sequence[PlannedTable],
    settings: Settings,
    ranking: Ranking,
) -> dict[str, Any]:
    """The plan's figures, predicted and replayed."""
    found = replay(plan, trace, ranking, threads=settings.threads)
    cost = replay_cost(found, model)
    predicted = model.loads(plan, tables)
    return {
        "predicted_seconds": max(d.seconds for d in predicted),
        "replayed_seconds": cost.slowest,
        "predicted_slow_share": slow_share(predicted),
        "replayed_slow_share": found.slow_share,
        "slow_reads": float(found.lookups[..., 1].sum()) / found.batches,
        "max_over_mean": cost.imbalance,
        "shardings": _counts(table.sharding for table in plan.tables),
    }


def _counts(names: Iterator[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return found


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The others over ours, at the shares where both have a plan; None where there are none.

    Times are geometric means over the shares, reads from the slow tier are sums.
    """
    by = {(r["hbm_share"], r["planner"]): r for r in rows if "failed" not in r}
    shares = sorted({share for share, planner in by if planner == OURS})
    found: dict[str, Any] = {}
    others = {"best_greedy": BASELINES, TORCHREC: (TORCHREC,), TORCHREC_PAST: (TORCHREC_PAST,)}
    for name, planners in others.items():
        pairs = []
        for share in shares:
            theirs = [by[share, planner] for planner in planners if (share, planner) in by]
            if theirs:
                best = min(theirs, key=lambda r: float(r["replayed_seconds"]))
                pairs.append((best, by[share, OURS]))
        key = name.replace("-", "_")
        times = [math.log(a["replayed_seconds"] / b["replayed_seconds"]) for a, b in pairs]
        reads = [sum(r["slow_reads"] for r in side) for side in zip(*pairs, strict=True)]
        found[f"{key}_time_over_ours"] = math.exp(sum(times) / len(times)) if times else None
        found[f"{key}_slow_reads_over_ours"] = reads[0] / reads[1] if reads and reads[1] else None
    ours = [by[share, OURS] for share in shares]
    slow = [(r["predicted_slow_share"], r["replayed_slow_share"]) for r in ours]
    errors = [abs(predicted / replayed - 1) for predicted, replayed in slow if replayed]
    return found | {
        "largest_error_of_slow_share": max(errors, default=None),
        "largest_max_over_mean": max((r["max_over_mean"] for r in ours), default=None),
        "largest_gap": max((r["gap"] for r in ours), default=None),
    }
