"""How near the planner's plans are to their bounds, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from recsys_opt.bench.plan_cases import CRITEO, Case, criteo_case, random_case
from recsys_opt.errors import InfeasibleError, InputError, RecsysOptError
from recsys_opt.planner.check import problems
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.solve import make_plan
from recsys_opt.progress import Progress, SilentProgress

CRITEO_DEVICES = (2, 4, 8, 16)
HBM_SHARES = (0.1, 0.3, 0.5)
LARGE = ((1000, 128), (5000, 128))
"""(tables, devices) whose planning is timed."""


def cases(sets: Sequence[str], count: int) -> Iterator[tuple[str, Case]]:
    """(set, case) of the sets "random" (seeds 0 .. count - 1), "criteo" and "large"."""
    if unknown := sorted(set(sets) - {"random", "criteo", "large"}):
        raise InputError(f"there is no set of cases {unknown[0]!r}; choose from random, criteo, large")
    if "random" in sets:
        for seed in range(count):
            yield "random", random_case(seed)
    if "criteo" in sets:
        for data in CRITEO:
            for devices in CRITEO_DEVICES:
                for share in HBM_SHARES:
                    yield "criteo", criteo_case(data, devices, share)
    if "large" in sets:
        for tables, devices in LARGE:
            yield "large", random_case(0, tables=tables, devices=devices)


def measure(
    sets: Sequence[str],
    count: int,
    *,
    effort: float = 1.0,
    torchrec_seconds: float | None = None,
    torchrec_shardings: Sequence[str] = ("table_wise",),
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Plans every case; checks every plan.

    torchrec_seconds    CPU time that TorchRec's planner has for each case, beside ours; None: it is not run
    torchrec_shardings  that it chooses from
    """
    progress = progress or SilentProgress()
    chosen = list(cases(sets, count))
    progress.start("planning", len(chosen), "cases")
    rows = []
    for name, case in chosen:
        settings = replace(case.settings, effort=effort)
        start = time.process_time()
        plan = make_plan(case.tables, case.hardware, settings)
        took = time.process_time() - start
        wrong = problems(plan, case.tables, case.hardware, settings)
        seconds = [d.seconds for d in plan.devices]
        rows.append(
            {
                "set": name,
                "case": case.name,
                "tables": len(plan.tables),
                "devices": plan.num_devices,
                "seconds": plan.seconds,
                "bound_seconds": plan.bound_seconds,
                "gap": plan.gap,
                "max_over_mean": plan.seconds / float(np.mean(seconds)),
                "planning_cpu_seconds": took,
                "wrong": wrong,
            }
        )
        if torchrec_seconds is not None:
            rows[-1] |= _torchrec(case, torchrec_seconds, torchrec_shardings, plan.seconds)
        progress.advance(1)
    progress.finish()
    return rows


def _torchrec(case: Case, limit: float, shardings: Sequence[str], ours: float) -> dict[str, Any]:
    """How long TorchRec's planner takes, with access statistics and caches, and what its plan would take.

    "torchrec_time_over_ours"  with ideal caches, by our cost model
    """
    # The optional package is needed by this baseline alone.
    from recsys_opt.planner.torchrec_baseline import torchrec_plan

    size = sum(t.config.num_embeddings * case.settings.row_bytes(t.config.embedding_dim) for t in case.tables)
    share = case.hardware.fast.capacity_bytes * case.hardware.num_devices / size
    said: dict[str, Any] = {"torchrec_shardings": list(shardings), "torchrec_limit_seconds": limit}
    try:
        plan, placement = torchrec_plan(
            [t.config for t in case.tables],
            [t.lookups_per_sample for t in case.tables],
            case.hardware,
            batch_size=case.settings.batch_size,
            curves={t.config.name: t.curve for t in case.tables},
            time_limit=limit,
            sharding_types=shardings,
            load_factor=min(0.2, share / 2),
        )
    except (InfeasibleError, RecsysOptError) as error:
        if isinstance(error, InputError):
            raise
        return said | {"torchrec_failed": str(error)}
    theirs = max(d.seconds for d in CostModel(case.hardware, case.settings).loads(plan, case.tables))
    return said | {
        "torchrec_cpu_seconds": placement.seconds,
        "torchrec_finished": placement.finished,
        "torchrec_time_over_ours": theirs / ours,
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each set of cases: gaps, balance and planning time."""
    found = {}
    for name in dict.fromkeys(r["set"] for r in rows):
        of_set = [r for r in rows if r["set"] == name]
        gaps = np.array([r["gap"] for r in of_set])
        found[name] = {
            "cases": len(of_set),
            "gap_median": float(np.median(gaps)),
            "gap_p95": float(np.percentile(gaps, 95)),
            "gap_max": float(gaps.max()),
            "within_1_percent": float((gaps <= 0.01).mean()),
            "within_5_percent": float((gaps <= 0.05).mean()),
            "max_over_mean": float(max(r["max_over_mean"] for r in of_set)),
            "planning_cpu_seconds_median": float(np.median([r["planning_cpu_seconds"] for r in of_set])),
            "planning_cpu_seconds_max": max(r["planning_cpu_seconds"] for r in of_set),
            "wrong_plans": sum(bool(r["wrong"]) for r in of_set),
        }
    return found
