"""Lookups a second that a replay takes through a plan, on one core, beside the same in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt._replay import TableCounter
from recsys_opt.bench.measure import Task, take_turns
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress, SilentProgress
from recsys_opt.ranks import rank_of, rank_order

TABLE_ROWS = (100_000, 10_000_000, 40_000_000)
ZIPF = 1.2


def measure(
    rows: Sequence[int] = TABLE_ROWS,
    *,
    lookups: int = 1 << 22,
    rounds: int = 7,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """One row for each table, kind of ids and candidate: rows read and different rows by tier are counted."""
    if min(rows, default=0) < 2 or lookups < 1 or rounds < 1:
        raise InputError(f"rows = {list(rows)}, lookups = {lookups}, rounds = {rounds}; ask for some of each")
    progress = progress or SilentProgress()
    random = np.random.default_rng(0)
    found = []
    for n in rows:
        ranking = random.permutation(n)[: n // 2]
        hot = n // 10
        counter = TableCounter(ranking, n, np.array([[hot]]))
        ranks = rank_of(rank_order(ranking, n))
        kinds = {"uniform": random.integers(0, n, lookups), "zipf": random.zipf(ZIPF, lookups) % n}
        for kind, ids in kinds.items():
            candidates = {
                "replay": Task(lambda c=counter, i=ids: _native(c, i)),  # type: ignore[misc]
                "numpy": Task(lambda r=ranks, i=ids, h=hot: _numpy(r, i, h)),  # type: ignore[misc]
            }
            if not np.array_equal(_native(counter, ids), _numpy(ranks, ids, hot)):
                raise AssertionError(f"native and numpy counts differ for {n} rows, {kind} ids")
            progress.start(f"{n} rows, {kind}", 2 * rounds, "turns")
            turns = take_turns(candidates, rounds=rounds, done=lambda _: progress.advance(1))
            for name, times in turns.items():
                timing = times.timing()
                found.append(
                    {
                        "rows": n,
                        "ids": kind,
                        "candidate": name,
                        "lookups_per_s": lookups / timing.median_s,
                        "p20": lookups / timing.p80_s,
                        "p80": lookups / timing.p20_s,
                    }
                )
    progress.finish()
    return found


def _native(counter: TableCounter, ids: NDArray[Any]) -> NDArray[Any]:
    """[lookups, rows] x [fast, slow]."""
    counts = np.zeros((2, 1, counter.slots), dtype=np.int64)
    counter.next_round()
    counter.count(ids, np.array([0, len(ids)]), counts[0], counts[1])
    return counts[:, 0]


def _numpy(ranks: NDArray[Any], ids: NDArray[Any], hot: int) -> NDArray[Any]:
    slow = ranks[ids] >= hot
    new = ranks[np.unique(ids)] >= hot
    return np.stack([np.bincount(slow, minlength=2), np.bincount(new, minlength=2)])
