"""Tables that are counted in one pass: with a counter for each row, or with one for each row seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _access
from recsys_opt.data.access_counters import as_ids, count, refuse
from recsys_opt.data.access_sampled import LEAST_SLOTS, SAMPLE_SLOT_BYTES, slots_for
from recsys_opt.data.access_statistics import BYTES_PER_ROW
from recsys_opt.data.access_table import TableStatistics
from recsys_opt.data.lookup_sources import Block

Arrays = Mapping[str, NDArray[Any]]
Slots = tuple[int, int]
"""Of the sample and of the summary (csrc/access/sampled.h), where rows are counted when they are seen."""
TableWay = tuple[int, Slots | None]
"""(index of a table, slots; None: a counter for each row)."""
SPARSE = 3
"""A counter for each row seen is the slower way: it must save so many times the memory."""
_KNOWN = ("ids", "early", "late", "least")
T = TypeVar("T")


def plan_groups(
    sizes: Sequence[int], most_lookups: Sequence[int | None], memory_bytes: int, passes: int
) -> list[list[TableWay]]:
    """The tables of every pass over the input, and how each is counted.

    Tables with few lookups for their rows are counted by the rows seen, exactly; the others by counters for
    all rows. They are counted in up to `passes` passes, largest first into the first that has room. If that
    does not do for all, there is one pass less, and one for those left over, the largest, which are sampled.

    most_lookups  of each table, if that is known
    """
    ways: list[Slots | None] = []
    needs = []
    for rows, lookups in zip(sizes, most_lookups, strict=True):
        need, way = BYTES_PER_ROW * rows, None
        if lookups is not None:
            slots = 3 * min(lookups, rows) // 2 + LEAST_SLOTS  # never so full that rows are left out
            if SPARSE * slots * SAMPLE_SLOT_BYTES < need:
                need, way = slots * SAMPLE_SLOT_BYTES, (slots, LEAST_SLOTS)
        if way is None and rows > _access.MAX_ROWS:
            need = memory_bytes + 1
        needs.append(need)
        ways.append(way)
    by_need = sorted(range(len(sizes)), key=lambda t: (-needs[t], t))
    left_over = sum(need > memory_bytes for need in needs)
    while True:
        groups = _packed(by_need[left_over:], needs, memory_bytes)
        if len(groups) + (left_over > 0) <= passes or left_over == len(sizes):
            break
        left_over += 1
    found = [[(t, ways[t]) for t in group] for group in groups]
    if left_over:
        slots_each = slots_for(memory_bytes // left_over)
        found.append([(t, slots_each) for t in sorted(by_need[:left_over])])
    return found


def _packed(tables: Sequence[int], needs: Sequence[int], limit: int) -> list[list[int]]:
    groups: list[list[int]] = []
    left: list[int] = []
    for table in tables:
        for at, room in enumerate(left):
            if needs[table] <= room:
                groups[at].append(table)
                left[at] -= needs[table]
                break
        else:
            groups.append([table])
            left.append(limit - needs[table])
    return [sorted(group) for group in groups]


class Group:
    """The counters of some tables, for both parts of the time."""

    def __init__(self, ways: Sequence[TableWay], sizes: Sequence[int]) -> None:
        """`sizes` are those of all tables."""
        self.tables = [t for t, _ in ways]
        self._slots = [slots for _, slots in ways]
        self._bags = np.zeros(len(ways), dtype=np.int64)
        self._all: dict[int, tuple[_access.Counters, _access.Counters]] = {}
        self._seen: dict[int, _access.SampledCounters] = {}
        for at, (t, slots) in enumerate(ways):
            if slots is None:
                self._all[at] = _access.Counters(sizes[t]), _access.Counters(sizes[t])
            else:
                self._seen[at] = _access.SampledCounters(sizes[t], *slots)

    def count(self, block: Block, late: bool, threads: int) -> None:
        """Counts a block of samples of one part of the time."""
        every = list(self._all)
        count(
            [self._all[at][late] for at in every],
            [block.ids[at] for at in every],
            lambda t, position: block.place(every[t], position),
            threads=threads,
        )

        def add(at: int) -> tuple[int, int] | None:
            return self._seen[at].add(as_ids(block.ids[at], partial(block.place, at)), late)

        for at, bad in zip(self._seen, _in_threads(add, list(self._seen), threads), strict=True):
            if bad is not None:
                raise refuse(block.place(at, bad[0]), bad[1], self._seen[at].rows)
        self._bags += np.array(block.bags, dtype=np.int64)

    def statistics(self, names: Sequence[str], samples: int, threads: int) -> list[TableStatistics]:
        """Of the tables."""

        def finish(at: int) -> TableStatistics:
            name, bags, slots = names[at], int(self._bags[at]), self._slots[at]
            if slots is None:
                return TableStatistics.from_counters(name, samples, bags, *self._all[at])
            return TableStatistics.from_sampled(name, samples, bags, self._seen[at], slots)

        return _in_threads(finish, range(len(names)), threads)

    def state(self) -> Arrays:
        """What `restore` goes on from."""
        arrays: dict[str, NDArray[Any]] = {"bags": self._bags}
        for at, parts in self._all.items():
            for part, counters in enumerate(parts):
                if counters.lookups:
                    arrays[f"{at}_{part}_low"] = counters.low
                    arrays[f"{at}_{part}_carried"] = counters.carried
                    arrays[f"{at}_{part}_lookups"] = np.array(counters.lookups, dtype=np.uint64)
        for at, seen in self._seen.items():
            known = seen.known()
            numbers = (seen.level, seen.offset, seen.lookups(False), seen.lookups(True))
            arrays[f"{at}_numbers"] = np.array(numbers, dtype=np.uint64)
            arrays |= {f"{at}_{name}": known[name] for name in _KNOWN}
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """The inverse of `state`, of new counters."""
        self._bags = arrays["bags"]
        for at, parts in self._all.items():
            for part, counters in enumerate(parts):
                if f"{at}_{part}_low" in arrays:
                    low, carried = arrays[f"{at}_{part}_low"], arrays[f"{at}_{part}_carried"]
                    counters.restore(low, carried, int(arrays[f"{at}_{part}_lookups"]))
        for at, seen in self._seen.items():
            level, offset, early, late = (int(n) for n in arrays[f"{at}_numbers"])
            seen.merge(level, offset, early, late, *(arrays[f"{at}_{name}"] for name in _KNOWN))


def _in_threads(work: Callable[[int], T], items: Sequence[int], threads: int) -> list[T]:
    """The native code works without the GIL."""
    if not items:
        return []
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        return list(pool.map(work, items))
