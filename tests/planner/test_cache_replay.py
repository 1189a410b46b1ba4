"""Caches of rows in UVM, against their definition and against cases small enough to follow."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt._replay import WAYS, RowCaches
from recsys_opt.plan import Plan, TablePlan
from recsys_opt.planner.cache_replay import (
    POLICIES,
    CachedShard,
    DeviceCache,
    replay_caches,
    slow_moves,
    slow_reads,
    with_caches,
)
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.lookup_trace import LookupTrace
from recsys_opt.planner.problem import PlanSettings
from recsys_opt.planner.replay import replay
from recsys_opt.planner.replay_cost import replay_cost

MASK = (1 << 64) - 1


def set_of(row: int, sets: int) -> int:
    h = (row ^ row >> 33) * 0xFF51AFD7ED558CCD & MASK
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & MASK
    return (h ^ h >> 33) % sets


def twin(batches: list[list[int]], sets: int) -> np.ndarray:
    """[batches, 2, 6] by FBGEMM's rules; of rows that may as well go, the one in the first place goes."""
    found = np.zeros((len(batches), 2, 6), dtype=int)
    uses: Counter[int] = Counter()
    last: dict[int, int] = {}  # batch
    caches: list[list[list[int | None]]] = [[[None] * WAYS for _ in range(sets)] for _ in POLICIES]
    for b, batch in enumerate(batches):
        rows = sorted(set(batch))
        uses.update(batch)
        last.update(dict.fromkeys(rows, b))
        for policy, cache in enumerate(caches):
            worth = (last, uses)[policy]
            counts = Counter(batch)
            loads = evictions = 0
            for s, places in enumerate(cache):
                missing = [row for row in rows if set_of(row, sets) == s and row not in places]
                if policy == 1:
                    missing.sort(key=lambda row: -uses[row])
                costs = [-1 if row is None else worth[row] for row in places]
                order = sorted(range(WAYS), key=lambda place, costs=costs: costs[place])
                for row, place in zip(missing, order, strict=False):
                    if costs[place] == b if policy == 0 else costs[place] > uses[row]:
                        break
                    evictions += places[place] is not None
                    loads += 1
                    places[place] = row
            direct = [row for row in rows if row not in cache[set_of(row, sets)]]
            moved = [loads, evictions, sum(counts[row] for row in direct), len(direct)]
            found[b, policy] = [len(batch), len(rows), *moved]
    return found


def replayed(batches: list[list[int]], rows: int, sets: int) -> np.ndarray:
    caches = RowCaches(rows, sets)
    found = []
    for batch in batches:
        caches.add(np.array(batch, dtype=np.int64), 0, rows, 0)
        found.append(caches.end_batch())
    return np.stack(found)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 300),
    sets=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    lookups=st.integers(0, 400),
    skew=st.floats(0.0, 4.0),
)
def test_caches_are_their_definition(rows: int, sets: int, seed: int, lookups: int, skew: float) -> None:
    random = np.random.default_rng(seed)
    batches = [(rows * random.random(lookups) ** (1 + skew)).astype(int).tolist() for _ in range(5)]
    np.testing.assert_array_equal(replayed(batches, rows, sets), twin(batches, sets))


def test_a_batch_larger_than_the_cache_reads_the_others_in_place() -> None:
    everything = list(range(WAYS + 10))
    lru, lfu = replayed([everything, everything], WAYS + 10, 1)[1]
    # Rows of this batch do not make room for each other under LRU, and do under LFU.
    assert lru.tolist() == [WAYS + 10, WAYS + 10, 0, 0, 10, 10]
    assert lfu.tolist() == [WAYS + 10, WAYS + 10, 10, 10, 10, 10]


def trace(batches: list[dict[str, list[int]]], rows: dict[str, int]) -> LookupTrace:
    names = tuple(rows)

    def read(feature: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.array(batches[batch][names[feature]], dtype=np.int64)
        return np.array([len(ids), 0], dtype=np.int32), ids

    return LookupTrace("a trace", names, tuple(rows.values()), len(batches), 2, read)


def test_shards_share_a_cache_and_see_their_own_rows() -> None:
    rows = {"a": 100, "b": 50}
    batches = [
        {"a": [1, 1, 60, 99], "b": [0, 49]},
        {"a": [60, 2], "b": [0, 0, 7]},
        {"a": [1, 60], "b": [7]},
    ]
    caches = [
        DeviceCache(0, 0.5, (CachedShard(("a",), 0, 50, 8), CachedShard(("b",), 0, 50, 8))),
        DeviceCache(1, 0.5, (CachedShard(("a",), 50, 100, 8),)),
    ]
    assert [(c.rows, c.sets) for c in caches] == [(100, 2), (50, 1)]
    for threads in (1, 2):
        found = replay_caches(caches, trace(batches, rows), warm=1, threads=threads)
        # All rows fit: what is brought in is what no batch before has read.
        assert found["lru"][:, 0].tolist() == [[4, 3, 2, 0, 0, 0], [2, 2, 0, 0, 0, 0]]
        assert found["lfu"][:, 1].tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert slow_reads(found["lru"]) == 2
    assert slow_moves(found["lru"]) == 2
    assert slow_moves(np.array([[9, 9, 5, 4, 3, 2]])) == 5 + 4 + 3 + 2 * 2
    assert replay_caches([], trace(batches, rows), warm=1)["lru"].shape == (2, 0, 6)


def test_a_cache_that_holds_nothing_costs_what_the_slow_tier_does() -> None:
    hardware = Hardware.load("h100:devices=2")
    model = CostModel(hardware, PlanSettings(batch_size=2))
    one = trace([{"a": list(range(90)) + [5] * 30}], {"a": 90})
    slow, fast = (
        replay_cost(
            replay(Plan((TablePlan("a", 90, 64, (1,), (n,)),), 2, 2), one, lambda _: np.arange(90)), model
        )
        for n in (0, 90)
    )
    cache = [DeviceCache(1, 0.0, (CachedShard(("a",), 0, 90, 64),))]
    nothing = np.array([[[120, 90, 0, 0, 120, 90]]])
    np.testing.assert_allclose(with_caches(fast, cache, nothing, model).seconds, slow.seconds, rtol=1e-12)
    full = np.array([[[120, 90, 0, 0, 0, 0]]])
    np.testing.assert_array_equal(with_caches(fast, cache, full, model).seconds, fast.seconds)
    moved = with_caches(fast, cache, np.array([[[120, 90, 7, 7, 0, 0]]]), model).seconds - fast.seconds
    costs = model.row_costs(64)
    np.testing.assert_allclose(moved, [[0, 7 * costs.update_slow]], rtol=1e-9)


def test_bad_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="a cache of 0 sets for 5 rows"):
        RowCaches(5, 0)
    with pytest.raises(ValueError, match="must have rows from base on"):
        RowCaches(5, 1).add(np.arange(3), 0, 4, 2)
