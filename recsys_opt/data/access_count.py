"""Statistics of a source of lookups in bounded memory, in one pass or several, resumable."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from recsys_opt import _access
from recsys_opt.data.access_counters import as_ids
from recsys_opt.data.access_groups import Group, plan_groups
from recsys_opt.data.access_journal import AccessJournal
from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.access_table import TableStatistics
from recsys_opt.data.lookup_sources import LookupSource
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress, SilentProgress

LEAST_MEMORY_BYTES = 4096
"""Of a table."""
STATE_EVERY_S = 30.0
STATE_SHARE = 0.05
"""Saving the state takes no more of the time than this."""


@dataclass(frozen=True)
class CountOptions:
    """How lookups are counted."""

    memory_bytes: int = 2_000_000_000
    """For counters; more tables than fit are counted in several passes."""
    passes: int = 8
    """Over the input, at most; the largest of the tables that do not fit into them are sampled."""
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
    if options.passes < 1 or options.memory_bytes < LEAST_MEMORY_BYTES * max(len(sizes), 1):
        raise InputError(
            f"{options.passes} passes with {options.memory_bytes:,} bytes of memory; there must be at least "
            f"1 pass, and {LEAST_MEMORY_BYTES:,} bytes for each of the {len(sizes)} tables: give more with "
            "--passes or --memory"
        )
    if not source.samples:
        raise InputError("the input has no samples to count")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already; choose another file, or replace it with --overwrite")
    most = [source.most_lookups(t) for t in range(len(sizes))]
    groups = plan_groups(sizes, most, options.memory_bytes, options.passes)
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
            group = Group(groups[journal.groups_done], sizes)
            tables = _count_group(source, group, journal, options, progress)
            del group  # the counters, before the next ones are made
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


def _count_group(
    source: LookupSource,
    group: Group,
    journal: AccessJournal,
    options: CountOptions,
    progress: Progress,
) -> list[TableStatistics]:
    """Counts from where the journal's state ends."""
    position = journal.position
    if position:
        group.restore(journal.load_state())
        progress.advance(position)
    saved, cost = time.monotonic(), 0.0
    lookups = 0
    samples = source.samples
    for late, stop in ((False, samples // 2), (True, samples)):
        if position >= stop:
            continue
        for block in source.blocks(group.tables, position, stop):
            group.count(block, late, options.threads)
            position += block.samples
            lookups += sum(len(ids) for ids in block.ids)
            progress.advance(block.samples, lookups=f"{lookups / 1e6:.0f} M")
            now = time.monotonic()
            if now - saved > max(options.state_every_s, cost / STATE_SHARE):
                journal.save_state(position, group.state())
                saved, cost = time.monotonic(), time.monotonic() - now
    names = [source.tables[t].name for t in group.tables]
    return group.statistics(names, samples, options.threads)
