"""Replays lookups through the caches that FBGEMM keeps of rows in UVM, as TorchRec sets them up.

On each device the tables of one way of sharding share one set-associative cache of 32 rows a set, whose size
is their rows there times the mean of their load factors, weighted by the rows of the whole tables. Rows are
brought in before each batch and written back when they make room (csrc/replay/row_cache.h). What lookups of
cached tables read over the link are rows that are brought in, and rows that found no room.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recsys_opt._replay import WAYS, RowCaches
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.lookup_trace import LookupTrace
from recsys_opt.planner.replay_cost import ReplayCost

Ints = NDArray[np.int64]
POLICIES = ("lru", "lfu")
"""FBGEMM's: the row that was used longest ago makes room, or the one that was used least often."""
LOOKUPS, ROWS, LOADS, EVICTIONS, DIRECT_LOOKUPS, DIRECT_ROWS = range(6)


@dataclass(frozen=True)
class CachedShard:
    """A block of a table's rows on a device."""

    features: tuple[str, ...]
    """That look them up."""
    first: int
    """Its first id."""
    last: int
    """The id behind its last."""
    columns: int


@dataclass(frozen=True)
class DeviceCache:
    """A cache in a device's fast tier, of rows in its slow tier."""

    device: int
    load_factor: float
    """Rows of the cache over rows of the shards."""
    shards: tuple[CachedShard, ...]

    @property
    def rows(self) -> int:
        """Of all shards."""
        return sum(s.last - s.first for s in self.shards)

    @property
    def sets(self) -> int:
        """Of `WAYS` rows each."""
        return max(-(-int(self.rows * self.load_factor) // WAYS), 1)

    @property
    def columns(self) -> int:
        """Of a row of the cache: those of its widest shard."""
        return max(s.columns for s in self.shards)


def replay_caches(
    caches: Sequence[DeviceCache], trace: LookupTrace, *, warm: int = 0, threads: int = 1
) -> dict[str, Ints]:
    """Policy -> [batches, caches, 6] what each cache brings in and writes back, from empty caches on.

    warm     batches at the trace's start that fill the caches and are not in the result
    threads  caches that are replayed at once; each takes 20 bytes a row of its shards
    """
    place = {name: at for at, name in enumerate(trace.features)}

    def one(cache: DeviceCache) -> Ints:
        rows = RowCaches(cache.rows, cache.sets)
        found = np.zeros((trace.batches, len(POLICIES), 6), dtype=np.int64)
        for batch in range(trace.batches):
            base = 0
            for shard in cache.shards:
                for feature in shard.features:
                    _, ids = trace.read(place[feature], batch)
                    rows.add(np.ascontiguousarray(ids), shard.first, shard.last, base)
                base += shard.last - shard.first
            found[batch] = rows.end_batch()
        return found[warm:]

    if not caches:
        empty = np.zeros((trace.batches - warm, 0, 6), dtype=np.int64)
        return dict.fromkeys(POLICIES, empty)
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        try:
            found = np.stack(list(pool.map(one, caches)), axis=1)
        finally:
            pool.shutdown(cancel_futures=True)
    return {policy: found[:, :, at] for at, policy in enumerate(POLICIES)}


def with_caches(
    cost: ReplayCost, caches: Sequence[DeviceCache], traffic: Ints, model: CostModel
) -> ReplayCost:
    """The cost of a plan in which the cached tables are all in the fast tier, with what their caches move.

    traffic  [batches, caches, 6] of one policy

    A row that is brought in is read from the slow tier; one that is written back costs what an update there
    costs beyond a read; a row that found no room is read and updated there, and not in the fast tier.
    """
    fast, slow = cost.fast.copy(), cost.slow.copy()
    for at, cache in enumerate(caches):
        costs = model.row_costs(cache.columns)
        moved = traffic[:, at].astype(np.float64)
        slow[:, cache.device] += (
            moved[:, LOADS] * costs.read_slow
            + moved[:, EVICTIONS] * (costs.update_slow - costs.read_slow)
            + moved[:, DIRECT_LOOKUPS] * costs.read_slow
            + moved[:, DIRECT_ROWS] * costs.update_slow
        )
        fast[:, cache.device] -= (
            moved[:, DIRECT_LOOKUPS] * costs.read_fast + moved[:, DIRECT_ROWS] * costs.update_fast
        )
    return replace(cost, fast=fast, slow=slow)


def slow_reads(traffic: Ints) -> int:
    """Rows read over the link for lookups."""
    return int(traffic[..., [LOADS, DIRECT_LOOKUPS]].sum())


def slow_moves(traffic: Ints) -> int:
    """Rows that the link carries, either way: an update in place is one each way."""
    return int((traffic @ np.array([0, 0, 1, 1, 1, 2])).sum())
