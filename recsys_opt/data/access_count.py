"""Statistics of a source of lookups in bounded memory, in one pass or several, resumable."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _access
from recsys_opt.data.access_counters import as_ids, count
from recsys_opt.data.access_journal import AccessJournal
from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.access_table import TableStatistics
from recsys_opt.data.lookup_sources import LookupSource
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress, SilentProgress

BYTES_PER_ROW = 8
"""Two counters of 32 bits: of the earlier and of the later half of the time."""
STATE_EVERY_S = 30.0
STATE_SHARE = 0.05
"""Saving the state takes no more of the time than this."""


@dataclass(frozen=True)
class CountOptions:
    """How lookups are counted."""

    memory_bytes: int = 2_000_000_000
    """For counters; more tables than fit are counted in several passes."""
    threads: int = 1
    state_every_s: float = STATE_EVERY_S
    """Seconds between two states that a killed run goes on from."""


def table_sizes(
    source: LookupSource, given: Mapping[str, int], progress: Progress | None = None
) -> tuple[list[int], list[str]]:
    """(Rows of every table, names of those whose size is the largest id + 1, found by reading all ids).

    given  sizes by name, of tables whose source does not say
    """
    names = [t.name for t in source.tables]
    for name, rows in given.items():
        if name not in names:
            some = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise InputError(f"a size is given of {name!r}, which is no table of the input; they are {some}")
        known = source.tables[names.index(name)].num_embeddings
        if known is not None and known != rows:
            raise InputError(f"table {name} has {known} rows by its data; the size given is {rows}")
        if rows < 1:
            raise InputError(f"the size given of table {name} is {rows}; it must be at least 1")
    sizes = [given.get(t.name, t.num_embeddings) for t in source.tables]
    unknown = [i for i, size in enumerate(sizes) if size is None]
    if unknown:
        progress = progress or SilentProgress()
        progress.start("finding the largest ids", source.samples, "samples")
        largest = np.full(len(unknown), -1, dtype=np.int64)
        for block in source.blocks(unknown, 0, source.samples):
            ids = [as_ids(array, partial(block.place, t)) for t, array in enumerate(block.ids)]
            found, bad = _access.largest_ids(ids)
            if bad is not None:
                raise InputError(
                    f"{block.place(bad[0], bad[1])}: id {bad[2]} is negative; ids are rows, counted from 0"
                )
            largest = np.maximum(largest, found)
            progress.advance(block.samples)
        progress.finish()
        for i, most in zip(unknown, largest, strict=True):
            sizes[i] = max(int(most) + 1, 1)
    return [int(size) for size in sizes if size is not None], [names[i] for i in unknown]


def count_statistics(
    source: LookupSource,
    sizes: Sequence[int],
    out: Path,
    options: CountOptions | None = None,
    *,
    overwrite: bool = False,
    derived: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[AccessStatistics, bool]:
    """Counts all lookups and writes `out`; (the statistics, whether an interrupted run was gone on with).

    sizes      rows of every table of the source (`table_sizes`)
    overwrite  replace the file, and start an unfinished run over
    derived    tables whose size was derived, for the file
    """
    options = options or CountOptions()
    if not source.samples:
        raise InputError("the input has no samples to count")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already; choose another file, or replace it with --overwrite")
    groups = _groups(sizes, options.memory_bytes)
    settings = {
        "inputs": list(source.inputs),
        "tables": [[t.name, n] for t, n in zip(source.tables, sizes, strict=True)],
        "groups": groups,
    }
    progress = progress or SilentProgress()
    late_from = source.samples // 2
    with AccessJournal(out, settings, overwrite=overwrite) as journal:
        resumed = journal.resumed
        progress.start("counting ids", source.samples * len(groups), "samples")
        progress.advance(source.samples * journal.groups_done)
        while journal.groups_done < len(groups):
            tables = _count_group(source, groups[journal.groups_done], sizes, journal, options, progress)
            journal.group_done(AccessStatistics.of(tables, late_from=late_from))
        progress.finish()
        by_name = {t.name: t for t in journal.tables()}
        statistics = AccessStatistics.of(
            [by_name[t.name] for t in source.tables],
            late_from=late_from,
            inputs=list(source.inputs),
            derived_sizes=list(derived),
            hashed=[t.name for t in source.tables if t.hashed],
        )
        statistics.save(out)
        journal.remove()
    return AccessStatistics.load(out), resumed


def _groups(sizes: Sequence[int], memory_bytes: int) -> list[list[int]]:
    """Tables whose counters fit into the memory together, in few groups: largest first into the first that
    has room."""
    limit = memory_bytes // BYTES_PER_ROW
    groups: list[list[int]] = []
    left: list[int] = []
    for table in sorted(range(len(sizes)), key=lambda t: (-sizes[t], t)):
        if sizes[table] > limit:
            raise InputError(
                f"a table of {sizes[table]:,} rows needs {BYTES_PER_ROW * sizes[table]:,} bytes of counters; "
                f"the memory allowed is {memory_bytes:,}: give more with --memory"
            )
        for at, room in enumerate(left):
            if sizes[table] <= room:
                groups[at].append(table)
                left[at] -= sizes[table]
                break
        else:
            groups.append([table])
            left.append(limit - sizes[table])
    return [sorted(group) for group in groups]


def _count_group(
    source: LookupSource,
    group: Sequence[int],
    sizes: Sequence[int],
    journal: AccessJournal,
    options: CountOptions,
    progress: Progress,
) -> list[TableStatistics]:
    """A group's statistics; its counters are gone when it returns."""
    return _Group(source, group, [sizes[t] for t in group]).run(journal, options, progress)


class _Group:
    """Tables that are counted in one pass."""

    def __init__(self, source: LookupSource, group: Sequence[int], sizes: Sequence[int]) -> None:
        self._source, self._group = source, group
        self._early = [_access.Counters(n) for n in sizes]
        self._late = [_access.Counters(n) for n in sizes]
        self._bags = np.zeros(len(group), dtype=np.int64)

    def run(self, journal: AccessJournal, options: CountOptions, progress: Progress) -> list[TableStatistics]:
        """Counts from where the journal's state ends."""
        position = journal.position
        if position:
            self._restore(journal.load_state())
            progress.advance(position)
        saved, cost = time.monotonic(), 0.0
        lookups = 0
        samples = self._source.samples
        for counters, stop in ((self._early, samples // 2), (self._late, samples)):
            if position >= stop:
                continue
            for block in self._source.blocks(self._group, position, stop):
                count(counters, block.ids, block.place, threads=options.threads)
                self._bags += np.array(block.bags, dtype=np.int64)
                position += block.samples
                lookups += sum(len(ids) for ids in block.ids)
                progress.advance(block.samples, lookups=f"{lookups / 1e6:.0f} M")
                now = time.monotonic()
                if now - saved > max(options.state_every_s, cost / STATE_SHARE):
                    journal.save_state(position, self._state())
                    saved, cost = time.monotonic(), time.monotonic() - now

        def finish(i: int) -> TableStatistics:
            name, bags = self._source.tables[self._group[i]].name, int(self._bags[i])
            return TableStatistics.from_counters(name, samples, bags, self._early[i], self._late[i])

        with ThreadPoolExecutor(options.threads) as pool:  # the native code works without the GIL
            return list(pool.map(finish, range(len(self._group))))

    def _state(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {"bags": self._bags}
        for part, all_counters in (("early", self._early), ("late", self._late)):
            for i, counters in enumerate(all_counters):
                if counters.lookups:
                    arrays[f"{part}_{i}_low"] = counters.low
                    arrays[f"{part}_{i}_carried"] = counters.carried
                    arrays[f"{part}_{i}_lookups"] = np.array(counters.lookups, dtype=np.uint64)
        return arrays

    def _restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._bags = arrays["bags"]
        for part, all_counters in (("early", self._early), ("late", self._late)):
            for i, counters in enumerate(all_counters):
                if f"{part}_{i}_low" in arrays:
                    low, carried = arrays[f"{part}_{i}_low"], arrays[f"{part}_{i}_carried"]
                    counters.restore(low, carried, int(arrays[f"{part}_{i}_lookups"]))
