"""TorchRec's plans held against later lookups: with the caches that it has, with ideal ones, and without.

    torchrec-uvm   its planner without caches (kernels FUSED and FUSED_UVM): whole shards in one tier
    torchrec-lru   its planner with caches, through FBGEMM's set-associative caches; LRU is its default
    torchrec-lfu   the same with FBGEMM's LFU
    torchrec-past  the same plan, the caches holding the rows that the statistics rank hottest: an ideal LFU
                   cache that has converged, a cache for each table and device of the size that the plan has
    torchrec       the same plan, the caches holding the rows that the later lookups themselves read most,
                   from the start: no cache can know them, and one of more rows than are read never misses

FBGEMM's caches are filled by the batches before the later ones, those that the statistics were made from. The
planner is told the true hit rates in all of these, and starts from caches that fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.plan_ranking import Ranking
from recsys_opt.plan import Plan
from recsys_opt.planner.cache_replay import POLICIES, replay_caches, slow_moves, slow_reads, with_caches
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.lookup_trace import LookupTrace
from recsys_opt.planner.problem import PlannedTable
from recsys_opt.planner.replay import replay
from recsys_opt.planner.replay_cost import replay_cost

if TYPE_CHECKING:
    from recsys_opt.integrations.torchrec import Placement

TORCHREC, TORCHREC_PAST, TORCHREC_UVM = "torchrec", "torchrec-past", "torchrec-uvm"
LOAD_FACTOR = 0.2
"""Of caches before TorchRec scales them up: its default, or half of the share that HBM holds, if less."""
SHARDINGS = ("table_wise", "column_wise", "row_wise")


@dataclass(frozen=True)
class TorchRecSettings:
    """How TorchRec's planner is run."""

    seconds: float = 300.0
    """CPU time of its search, for each share and kind of kernels."""
    shardings: tuple[str, ...] = SHARDINGS
    """Those that it chooses from; with all of its own it takes many minutes for some hundred tables."""
    keep: Path | None = None
    """A folder of its answers, which are not searched for again."""


def torchrec_plans(
    planner: str,
    tables: Sequence[PlannedTable],
    hardware: Hardware,
    statistics: AccessStatistics,
    batch_size: int,
    hbm_share: float,
    settings: TorchRecSettings,
) -> tuple[Plan, Placement]:
    """The plan of `TORCHREC` or `TORCHREC_UVM`."""
    # The optional package is needed by this baseline alone.
    from recsys_opt.integrations.torchrec.planner import FUSED, KERNELS, UVM
    from recsys_opt.planner.torchrec_baseline import torchrec_plan

    return torchrec_plan(
        [t.config for t in tables],
        [t.lookups_per_sample for t in tables],
        hardware,
        batch_size=batch_size,
        curves={t.name: t.curve for t in statistics.tables.values()},
        time_limit=settings.seconds,
        sharding_types=settings.shardings,
        kernels=(FUSED, UVM) if planner == TORCHREC_UVM else KERNELS,
        load_factor=min(LOAD_FACTOR, hbm_share / 2),
        keep=settings.keep,
    )


def through_caches(
    plan: Plan,
    placement: Placement,
    tables: Sequence[PlannedTable],
    trace: LookupTrace,
    warm: int,
    model: CostModel,
    ranking: Ranking,
    threads: int,
) -> dict[str, dict[str, Any]]:
    """Policy -> the plan's replayed figures with FBGEMM's caches.

    warm  batches of the trace that fill the caches; the others are replayed
    """
    from recsys_opt.integrations.torchrec.planner import CACHED
    from recsys_opt.planner.torchrec_baseline import torchrec_caches

    cached = {t.name for t in placement.tables if t.compute_kernel == CACHED}
    hot = replace(
        plan,
        tables=tuple(
            replace(t, hot_rows=tuple(p.rows for p in t.pieces())) if t.name in cached else t
            for t in plan.tables
        ),
    )
    caches = torchrec_caches([t.config for t in tables], placement)
    base = replay(hot, trace.between(warm), ranking, threads=threads)
    traffic = replay_caches(caches, trace, warm=warm, threads=threads)
    found = {}
    for policy in POLICIES:
        cost = with_caches(replay_cost(base, model), caches, traffic[policy], model)
        reads = int(base.lookups[..., 1].sum()) + slow_reads(traffic[policy])
        moves = int((base.lookups[..., 1] + 2 * base.rows[..., 1]).sum()) + slow_moves(traffic[policy])
        found[policy] = {
            "replayed_seconds": cost.slowest,
            "replayed_slow_share": reads / max(int(base.lookups.sum()), 1),
            "slow_reads": reads / base.batches,
            "slow_moves": moves / base.batches,
            "max_over_mean": cost.imbalance,
            "cache_load_factors": sorted({round(c.load_factor, 4) for c in caches}),
        }
    return found
