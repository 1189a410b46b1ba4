"""Plans held against later lookups: ours, the greedy baselines and TorchRec's, on the same hardware.

Every planner is given the statistics of the lookups that were seen and the same memory; each plan is replayed
on later lookups and priced by the same cost model. TorchRec's are held in several ways
(`recsys_opt.bench.placement_torchrec`).

    slow_reads  rows that lookups read from the slow tiers (UVM), in a batch, of all devices
    slow_moves  rows that go over the links to the slow tiers in a batch, either way: reads, rows that a cache
                writes back, and both ways of an update in place
    least-reads the slow_reads of the hottest rows by the statistics in all fast tiers as if they were one:
                no plan is expected to read less
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from recsys_opt.bench.placement_torchrec import (
    TORCHREC,
    TORCHREC_PAST,
    TORCHREC_UVM,
    TorchRecSettings,
    through_caches,
    torchrec_plans,
)
from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.plan_ranking import Ranking
from recsys_opt.errors import InfeasibleError, InputError, RecsysOptError
from recsys_opt.plan import Plan, TablePlan, slow_share
from recsys_opt.planner.baselines import BASELINES, greedy_plan, least_slow_reads
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.lookup_trace import LookupTrace
from recsys_opt.planner.problem import PlanSettings, planned_tables
from recsys_opt.planner.replay import SLOW, lfu_ranking, replay
from recsys_opt.planner.replay_cost import replay_cost
from recsys_opt.planner.solve import make_plan
from recsys_opt.progress import Progress, SilentProgress

OURS, LEAST = "recsys-opt", "least-reads"
PLANNERS = (OURS, *BASELINES, LEAST, TORCHREC_UVM, TORCHREC)
HBM_SHARES = (0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Settings:
    """What is planned, and for what."""

    embedding_dim: int = 64
    """Of all tables."""
    hardware: str = "h100:nodes=2"
    """Its fast tier's memory is set by `hbm_shares`."""
    hbm_shares: tuple[float, ...] = HBM_SHARES
    """Of the model with its optimizer state, in the fast tiers of all devices together."""
    planners: tuple[str, ...] = PLANNERS
    torchrec: TorchRecSettings = field(default_factory=TorchRecSettings)
    threads: int = 1
    """Tables that are replayed at once."""

    def __post_init__(self) -> None:
        for share in self.hbm_shares:
            if not 0 < share <= 2:
                raise InputError(f"hbm_shares has {share}; a share of the model is above 0 and at most 2")
        for planner in self.planners:
            if planner not in PLANNERS:
                raise InputError(f"planners has {planner!r}; choose from {', '.join(PLANNERS)}")


def measure(
    statistics: AccessStatistics,
    trace: LookupTrace,
    settings: Settings | None = None,
    progress: Progress | None = None,
    *,
    warm: int = 0,
) -> list[dict[str, Any]]:
    """A row for each share and planner; where a planner finds no plan, its row says why ("failed").

    trace  of later lookups than the statistics, behind the batches that fill caches
    warm   how many of these there are: those that the statistics are of
    """
    settings = settings or Settings()
    progress = progress or SilentProgress()
    base = Hardware.load(settings.hardware)
    bench = _Bench(statistics, trace, warm, settings)
    rows: list[dict[str, Any]] = []
    progress.start("plans", len(settings.hbm_shares) * len(settings.planners), "plans")
    for share in settings.hbm_shares:
        hbm = int(share * bench.model_bytes / base.num_devices)
        hardware = replace(
            base,
            name=f"{base.name} with {hbm / 1e9:.3g} GB",
            fast=replace(base.fast, memory_bytes=hbm, reserved_bytes=0),
        )
        for planner in settings.planners:
            try:
                rows += [{"hbm_share": share, **row} for row in bench.rows(planner, hardware, share)]
            except (InfeasibleError, RecsysOptError) as error:
                if isinstance(error, InputError):
                    raise
                rows.append({"hbm_share": share, "planner": planner, "failed": str(error)})
            progress.advance(1)
    progress.finish()
    return rows


class _Bench:
    """What all plans are made for and held against."""

    def __init__(
        self, statistics: AccessStatistics, trace: LookupTrace, warm: int, settings: Settings
    ) -> None:
        self.statistics, self.settings = statistics, settings
        self.trace, self.warm, self.later = trace, warm, trace.between(warm)
        self.plan_settings = PlanSettings(batch_size=trace.batch_size)
        self.tables = planned_tables(statistics, settings.embedding_dim)
        self.row_bytes = [self.plan_settings.row_bytes(t.config.embedding_dim) for t in self.tables]
        self.model_bytes = sum(
            n * t.config.num_embeddings for n, t in zip(self.row_bytes, self.tables, strict=True)
        )
        self.seen: Ranking = functools.cache(lambda name: statistics.table(name).ranking())
        names = [(t.config.name, t.config.num_embeddings, t.config.embedding_dim) for t in self.tables]
        whole = Plan(tuple(TablePlan(*name, (0,), (0,)) for name in names), 1, trace.batch_size)
        self.clairvoyant: Ranking = functools.cache(lfu_ranking(whole, self.later))

    def rows(self, planner: str, hardware: Hardware, share: float) -> list[dict[str, Any]]:
        """The figures of one planner, or of several ways to hold its plan."""
        if planner == LEAST:
            return [{"planner": LEAST, **self._least(self._capacity(hardware))}]
        model = CostModel(hardware, self.plan_settings)
        began = time.process_time()
        if planner in (TORCHREC, TORCHREC_UVM):
            plan, placement = torchrec_plans(
                planner,
                self.tables,
                hardware,
                self.statistics,
                self.later.batch_size,
                share,
                self.settings.torchrec,
            )
            said: dict[str, Any] = {
                "plan_seconds": placement.seconds,
                "found_seconds": placement.found_seconds,
            }
            said |= {"finished": placement.finished, "fitting": placement.fitting}
            said |= {"limit_seconds": self.settings.torchrec.seconds}
            said |= {"shardings_allowed": list(self.settings.torchrec.shardings)}
            used = self._fast_bytes(plan)
            said |= {"fast_bytes_used": used / self._capacity(hardware)}
            said |= {"least_slow_reads_in_these_bytes": self._least(used)["slow_reads"]}
            past = {**said, **self._held(plan, model, self.seen)}
            if planner == TORCHREC_UVM:
                return [{"planner": TORCHREC_UVM, **past}]
            real = through_caches(
                plan,
                placement,
                self.tables,
                self.trace,
                self.warm,
                model,
                self.seen,
                self.settings.threads,
            )
            rows = [{"planner": f"{TORCHREC}-{policy}", **said, **row} for policy, row in real.items()]
            rows.append({"planner": TORCHREC_PAST, **past})
            return [*rows, {"planner": TORCHREC, **said, **self._held(plan, model, self.clairvoyant)}]
        extra: dict[str, Any] = {}
        if planner == OURS:
            plan = make_plan(self.tables, hardware, self.plan_settings)
            extra = {"gap": plan.gap, "bound_seconds": plan.bound_seconds}
        else:
            configs, lookups = zip(*((t.config, t.lookups_per_sample) for t in self.tables), strict=True)
            plan = greedy_plan(
                planner, configs, lookups, self.row_bytes, hardware, batch_size=self.later.batch_size
            )
        extra |= {"plan_seconds": time.process_time() - began}
        extra |= {"fast_bytes_used": self._fast_bytes(plan) / self._capacity(hardware)}
        return [{"planner": planner, **extra, **self._held(plan, model, self.seen)}]

    def _held(self, plan: Plan, model: CostModel, ranking: Ranking) -> dict[str, Any]:
        """The plan's figures, predicted and replayed."""
        found = replay(plan, self.later, ranking, threads=self.settings.threads)
        cost = replay_cost(found, model)
        predicted = model.loads(plan, self.tables)
        return {
            "predicted_seconds": max(d.seconds for d in predicted),
            "replayed_seconds": cost.slowest,
            "predicted_slow_share": slow_share(predicted),
            "replayed_slow_share": found.slow_share,
            "slow_reads": float(found.lookups[..., SLOW].sum()) / found.batches,
            "slow_moves": float((found.lookups[..., SLOW] + 2 * found.rows[..., SLOW]).sum()) / found.batches,
            "max_over_mean": cost.imbalance,
            "shardings": _counts(table.sharding for table in plan.tables),
        }

    def _least(self, fast_bytes: int) -> dict[str, Any]:
        batch_size = self.later.batch_size
        plan = least_slow_reads(self.tables, self.row_bytes, fast_bytes, batch_size=batch_size)
        found = replay(plan, self.later, self.seen, threads=self.settings.threads)
        return {
            "replayed_slow_share": found.slow_share,
            "slow_reads": float(found.lookups[..., SLOW].sum()) / found.batches,
            "slow_moves": float((found.lookups[..., SLOW] + 2 * found.rows[..., SLOW]).sum()) / found.batches,
        }

    def _capacity(self, hardware: Hardware) -> int:
        return hardware.fast.capacity_bytes * hardware.num_devices

    def _fast_bytes(self, plan: Plan) -> int:
        return sum(
            piece.hot_rows * self.plan_settings.row_bytes(piece.width)
            for table in plan.tables
            for piece in table.pieces()
        )


def _counts(names: Iterator[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return found


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The others over ours, at the cases and shares where both have a plan; None where there are none.

    rows  of one case, or of several that "case" tells apart

    Times are geometric means over cases and shares, and what is least of them; reads and moves are sums.
    """
    by = {(r.get("case"), r["hbm_share"], r["planner"]): r for r in rows if "failed" not in r}
    at = sorted({(str(case), share, case) for case, share, planner in by if planner == OURS})
    others = {"best_greedy": BASELINES, **{name: (name,) for name in BASELINES}}
    ways = (TORCHREC_UVM, f"{TORCHREC}-lru", f"{TORCHREC}-lfu", TORCHREC_PAST, TORCHREC, LEAST)
    others |= {name: (name,) for name in ways}
    found: dict[str, Any] = {}
    for name, planners in others.items():
        pairs = []
        for _, share, case in at:
            theirs = [by[case, share, planner] for planner in planners if (case, share, planner) in by]
            if theirs:
                best = min(theirs, key=lambda r: float(r.get("replayed_seconds", 0.0)))
                pairs.append((best, by[case, share, OURS]))
        key = name.replace("-", "_")
        times = [a["replayed_seconds"] / b["replayed_seconds"] for a, b in pairs if name != LEAST]
        if name != LEAST:
            mean = math.exp(sum(map(math.log, times)) / len(times)) if times else None
            found |= {f"{key}_time_over_ours": mean, f"{key}_time_over_ours_least": min(times, default=None)}
        for what in ("slow_reads", "slow_moves"):
            theirs_sum, ours_sum = (
                (sum(r[what] for r in side) for side in zip(*pairs, strict=True)) if pairs else (0, 0)
            )
            found[f"{key}_{what}_over_ours"] = theirs_sum / ours_sum if ours_sum else None
    ours = [by[case, share, OURS] for _, share, case in at]
    slow = [(r["predicted_slow_share"], r["replayed_slow_share"]) for r in ours]
    errors = [abs(predicted / replayed - 1) for predicted, replayed in slow if replayed]
    return found | {
        "largest_error_of_slow_share": max(errors, default=None),
        "largest_max_over_mean": max((r["max_over_mean"] for r in ours), default=None),
        "largest_gap": max((r["gap"] for r in ours), default=None),
    }
