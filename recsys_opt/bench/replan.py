"""Plans that go on from yesterday's, held against lookups that came after today's statistics.

A plan of the first statistics runs. For the second ones it is kept as it is, or gets new thresholds, or
moves at most so many bytes between devices, or is made anew. Each is replayed: every lookup goes where the
plan has its row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recsys_opt.data.plan_ranking import Ranking, plan_ranking
from recsys_opt.errors import InputError
from recsys_opt.plan import Plan
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.inputs import PlanInputs
from recsys_opt.planner.lookup_trace import LookupTrace
from recsys_opt.planner.problem import PlanSettings
from recsys_opt.planner.replan import Candidate, replan
from recsys_opt.planner.replay import replay
from recsys_opt.planner.replay_cost import replay_cost
from recsys_opt.planner.solve import make_plan
from recsys_opt.progress import Progress, SilentProgress


def measure(
    then: Path,
    now: Path,
    trace: LookupTrace,
    *,
    embedding_dim: int = 64,
    hardware: str = "h100",
    hbm_shares: Sequence[float] = (0.1, 0.3),
    effort: float = 1.0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """A row for each share of the model that all fast tiers hold and each way to go on.

    then, now  statistics of the same tables
    trace      lookups that came after `now`
    """
    progress = progress or SilentProgress()
    for share in hbm_shares:
        if not 0 < share <= 2:
            raise InputError(f"hbm_shares has {share}; a share of the model is above 0 and at most 2")
    base, settings = Hardware.load(hardware), PlanSettings(batch_size=trace.batch_size, effort=effort)
    rows: list[dict[str, Any]] = []
    progress.start("shares of the model", len(hbm_shares), "shares")
    for share in hbm_shares:
        first = PlanInputs.gather(then, embedding_dim, base, settings)
        size = sum(t.config.num_embeddings * settings.row_bytes(embedding_dim) for t in first.tables)
        fast = replace(base.fast, memory_bytes=int(share * size / base.num_devices), reserved_bytes=0)
        here = replace(base, name=f"{base.name}, HBM for {share:.0%}", fast=fast)
        second = PlanInputs.gather(now, embedding_dim, here, settings)
        rows += [{"hbm_share": share, **row} for row in _ways(replace(first, hardware=here), second, trace)]
        progress.advance(1)
    progress.finish()
    return rows


def _ways(first: PlanInputs, second: PlanInputs, trace: LookupTrace) -> Iterator[dict[str, Any]]:
    old = make_plan(first.tables, first.hardware, first.settings, inputs=first.files)
    began = time.process_time()
    found = replan(old, first.statistics, second)
    took = time.process_time() - began
    model = CostModel(second.hardware, second.settings)

    def replayed(plan: Plan, ranking: Ranking) -> float:
        return replay_cost(replay(plan, trace, ranking), model).slowest

    before = replayed(old, plan_ranking(old, first.statistics))

    def row(way: str, one: Candidate | None, limit: float) -> dict[str, Any]:
        seconds = before if one is None else replayed(one.plan, plan_ranking(one.plan, second.statistics))
        return {
            "way": way,
            "limit_share": None if math.isinf(limit) else limit / found.model_bytes,
            "moved_share": 0.0 if one is None else one.between_devices_bytes / found.model_bytes,
            "tiers_share": 0.0 if one is None else one.between_tiers_bytes / found.model_bytes,
            "predicted_seconds": found.as_is if one is None else one.seconds,
            "replayed_seconds": seconds,
            "predicted_gain": found.gain(found.as_is if one is None else one.seconds),
            "replayed_gain": 1 - seconds / before,
            "gap": one.plan.gap if one is not None and one.plan.bound_seconds > 0 else None,
            "planning_cpu_seconds": took,
        }

    yield row("as it is", None, 0.0)
    yield row("new thresholds", found.retiered, 0.0)
    for limit, one in found.trade_off[:-1]:
        if limit > 0:
            yield row("limited", one, limit)
    yield row("free", found.free, math.inf)
