"""Tables that are counted in one pass: with a counter for each row, or by sampled rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _access
from recsys_opt.data.access_counters import as_ids, count, refuse
from recsys_opt.data.access_sampled import slots_for
from recsys_opt.data.access_table import TableStatistics
from recsys_opt.data.lookup_sources import Block

Arrays = Mapping[str, NDArray[Any]]
T = TypeVar("T")
_KNOWN = ("ids", "early", "late", "least")


class ExactGroup:
    """Two counters a row: of the earlier and of the later part of the time."""

    def __init__(self, tables: Sequence[int], sizes: Sequence[int]) -> None:
        self.tables = tables
        self._parts = [[_access.Counters(n) for n in sizes] for _ in range(2)]
        self._bags = np.zeros(len(tables), dtype=np.int64)

    def count(self, block: Block, late: bool, threads: int) -> None:
        """Counts a block of samples of one part of the time."""
        count(self._parts[late], block.ids, block.place, threads=threads)
        self._bags += np.array(block.bags, dtype=np.int64)

    def statistics(self, names: Sequence[str], samples: int, threads: int) -> list[TableStatistics]:
        """Of all tables."""
        early, late = self._parts

        def finish(t: int) -> TableStatistics:
            return TableStatistics.from_counters(names[t], samples, int(self._bags[t]), early[t], late[t])

        return _in_threads(finish, len(names), threads)

    def state(self) -> Arrays:
        """What `restore` goes on from."""
        arrays: dict[str, NDArray[Any]] = {"bags": self._bags}
        for part, all_counters in enumerate(self._parts):
            for t, counters in enumerate(all_counters):
                if counters.lookups:
                    arrays[f"{part}_{t}_low"] = counters.low
                    arrays[f"{part}_{t}_carried"] = counters.carried
                    arrays[f"{part}_{t}_lookups"] = np.array(counters.lookups, dtype=np.uint64)
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """The inverse of `state`, of new counters."""
        self._bags = arrays["bags"]
        for part, all_counters in enumerate(self._parts):
            for t, counters in enumerate(all_counters):
                if f"{part}_{t}_low" in arrays:
                    low, carried = arrays[f"{part}_{t}_low"], arrays[f"{part}_{t}_carried"]
                    counters.restore(low, carried, int(arrays[f"{part}_{t}_lookups"]))


class SampledGroup:
    """Counters of sampled rows and a summary of the hottest, in equal shares of the memory."""

    def __init__(self, tables: Sequence[int], sizes: Sequence[int], memory_bytes: int) -> None:
        self.tables = tables
        self._slots = slots_for(memory_bytes // len(tables))
        self._counters = [_access.SampledCounters(n, *self._slots) for n in sizes]
        self._bags = np.zeros(len(tables), dtype=np.int64)

    def count(self, block: Block, late: bool, threads: int) -> None:
        """Counts a block of samples of one part of the time."""
        ids = [as_ids(array, partial(block.place, t)) for t, array in enumerate(block.ids)]
        found = _in_threads(lambda t: self._counters[t].add(ids[t], late), len(ids), threads)
        for t, bad in enumerate(found):
            if bad is not None:
                raise refuse(block.place(t, bad[0]), bad[1], self._counters[t].rows)
        self._bags += np.array(block.bags, dtype=np.int64)

    def statistics(self, names: Sequence[str], samples: int, threads: int) -> list[TableStatistics]:
        """Of all tables."""

        def finish(t: int) -> TableStatistics:
            counters, bags = self._counters[t], int(self._bags[t])
            return TableStatistics.from_sampled(names[t], samples, bags, counters, self._slots)

        return _in_threads(finish, len(names), threads)

    def state(self) -> Arrays:
        """What `restore` goes on from."""
        arrays: dict[str, NDArray[Any]] = {"bags": self._bags}
        for t, counters in enumerate(self._counters):
            known = counters.known()
            numbers = (counters.level, counters.offset, counters.lookups(False), counters.lookups(True))
            arrays[f"{t}_numbers"] = np.array(numbers, dtype=np.uint64)
            arrays |= {f"{t}_{name}": known[name] for name in _KNOWN}
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """The inverse of `state`, of new counters."""
        self._bags = arrays["bags"]
        for t, counters in enumerate(self._counters):
            level, offset, early, late = (int(n) for n in arrays[f"{t}_numbers"])
            counters.merge(level, offset, early, late, *(arrays[f"{t}_{name}"] for name in _KNOWN))


def _in_threads(work: Callable[[int], T], count: int, threads: int) -> list[T]:
    """The native code works without the GIL."""
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        return list(pool.map(work, range(count)))
