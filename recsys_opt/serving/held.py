"""The load that a policy holds: the most queries a second of which 99 % are answered inside the SLA.

The share is of the queries that arrived: what is rejected or dropped counts against it. Each of several runs
with seeds of their own finds its load by bisection, with the same random numbers at every load, so that only
the load differs; their mean and its 95 % confidence interval are the answer.

A run must be much longer than the SLA: what waits at its end is served after the last arrival, so that a
short one holds more than can be held for long.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from recsys_opt.errors import InputError
from recsys_opt.serving.bound import held_bound
from recsys_opt.serving.simulation import Policy, Setup, in_time_share, run_native

SHARE = 0.99
RUNS = 5
QUERIES = 100_000
"""Of each run, at least."""
LENGTH = 100
"""SLAs that a run lasts at least."""
TOLERANCE = 0.002
"""Share of the load at which the bisection ends."""
_T95 = {
    1: math.inf,
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
    9: 2.306,
    10: 2.262,
}
"""Student's t: 95 % of a mean of so many values lie within so many standard errors of the truth."""
_HALVINGS = 12
"""Loads tried downwards from the bound, before a policy is said to hold none."""


@dataclass(frozen=True)
class HeldLoad:
    """The answer."""

    load: float
    """Queries a second; 0: none that was tried."""
    within: float
    """Half the width of its 95 % confidence interval."""
    share: float
    sla: float
    runs: int
    queries: int
    bound: float
    """No policy holds more."""

    @property
    def ratio(self) -> float:
        """To the bound."""
        return self.load / self.bound if self.bound else 0.0


def held_load(
    setup: Setup,
    policy: Policy,
    *,
    share: float = SHARE,
    runs: int = RUNS,
    queries: int = QUERIES,
    done: Callable[[], object] = lambda: None,
) -> HeldLoad:
    """Finds it; the setup's own load, number of queries and events do not matter."""
    if not 2 <= runs <= max(_T95):
        raise InputError(f"{runs} runs; take 2 to {max(_T95)}, so that they give a confidence interval")
    bound = held_bound(setup.profile, setup.workload.sizes, setup.sla, share)
    found = []
    for run in range(runs):
        one = setup.at(queries=queries, seed=setup.seed + 1000 * (run + 1), events=(), warmup=None)
        found.append(_held_once(one, policy, share, bound))
        done()
    mean = statistics.fmean(found)
    # What the bisections leave open, too: several may end in the same interval.
    within = _T95[runs] * statistics.stdev(found) / math.sqrt(runs) + TOLERANCE / 2 * mean
    return HeldLoad(mean, within, share, setup.sla, runs, queries, bound)


def _held_once(setup: Setup, policy: Policy, share: float, bound: float) -> float:
    def holds(rate: float) -> bool:
        queries = max(setup.queries, round(LENGTH * setup.sla * rate))
        own = setup.at(rate=rate, queries=queries, warmup=queries // 20)
        return in_time_share(run_native(own, policy)) >= share

    # Within one run chance may favour a policy that is near the bound.
    high = bound * 1.05
    low = high / 2
    for _ in range(_HALVINGS):
        if low <= 0 or holds(low):
            break
        low, high = low / 2, low
    else:
        return 0.0
    while high - low > TOLERANCE * high:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2 if low > 0 else 0.0
