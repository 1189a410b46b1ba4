"""How the rows of embedding tables are looked up: what planners rest on, and the file stats.npz.

Counts are exact and merge exactly: a table keeps how often each of its rows was looked up, in all and in the
later half of the time; everything else follows from that. What `recsys-opt stats` writes for two shards,
merged, is what it writes for both at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recsys_opt import _access
from recsys_opt.data import access_file
from recsys_opt.data.access_curve import AccessCurve
from recsys_opt.data.access_sampled import LEAST_SLOTS
from recsys_opt.data.access_table import TableStatistics
from recsys_opt.errors import InputError

MEMORY_BYTES = 2_000_000_000
BYTES_PER_ROW = 8
"""Two counters of 32 bits: of the earlier and of the later part of the time."""

__all__ = ["AccessCurve", "AccessStatistics", "TableStatistics"]


@dataclass(frozen=True, eq=False)
class AccessStatistics:
    """The content of stats.npz."""

    tables: Mapping[str, TableStatistics]
    """By name, in order."""
    samples: int
    """Rows of data that were seen."""
    late_from: int
    """The later part of the time begins with this sample."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """What was counted: "inputs"; names of tables with "derived_sizes" (largest id + 1) and of those with
    "hashed" ids. JSON values."""
    sha256: str = ""
    """Of all but the source: equal hashes mean equal statistics."""

    @classmethod
    def of(
        cls, tables: Sequence[TableStatistics], *, late_from: int | None = None, **source: Any
    ) -> AccessStatistics:
        """Of tables that were counted over the same samples."""
        by_name: dict[str, TableStatistics] = {}
        for table in tables:
            if table.name in by_name:
                raise InputError(f"the statistics have two tables called {table.name!r}")
            by_name[table.name] = table
        samples = max((t.samples for t in tables), default=0)
        late_from = samples // 2 if late_from is None else late_from
        sha256 = access_file.digest(tables, samples, late_from)
        return cls(by_name, samples, late_from, source, sha256)

    def table(self, name: str) -> TableStatistics:
        """A table by name."""
        if name not in self.tables:
            some = ", ".join(list(self.tables)[:20]) + (", ..." if len(self.tables) > 20 else "")
            raise InputError(f"the statistics have no table {name!r}; their tables are {some}")
        return self.tables[name]

    @classmethod
    def load(cls, path: Path | str) -> AccessStatistics:
        """Reads what `save` wrote; rankings are read when they are asked for."""
        content = access_file.read(Path(path))
        return cls(
            {t.name: t for t in content.tables},
            content.samples,
            content.late_from,
            content.source,
            content.sha256,
        )

    def save(self, path: Path | str) -> None:
        """Writes stats.npz whole."""
        content = access_file.Content(
            list(self.tables.values()), self.samples, self.late_from, self.source, self.sha256
        )
        access_file.write(content, Path(path))

    @classmethod
    def merge(cls, parts: Sequence[AccessStatistics], memory_bytes: int = MEMORY_BYTES) -> AccessStatistics:
        """Of shards of the same tables' lookups, given in the order of time: as counted in one pass.

        The later part of the time begins at the shard's border or middle that is nearest to the middle of
        all; with shards of equal length, that is the middle.

        memory_bytes  for the counters of one table. Sampled tables stay as exact as the least exact of them.
        """
        if not parts:
            raise InputError("give the statistics of at least one shard to merge")
        _check_same_tables(parts)
        late_from, sides = _borders(parts)
        tables = [_merged([p.tables[name] for p in parts], sides, memory_bytes) for name in parts[0].tables]
        told = {
            key: list({json.dumps(e): e for p in parts for e in p.source.get(key, ())}.values())
            for key in ("inputs", "derived_sizes", "hashed")
        }
        return cls.of(tables, late_from=late_from, **told)


def _merged(
    shards: Sequence[TableStatistics], sides: Sequence[tuple[bool, bool]], memory_bytes: int
) -> TableStatistics:
    """One table of all shards."""
    name, rows = shards[0].name, shards[0].num_embeddings
    samples, bags = sum(s.samples for s in shards), sum(s.bags for s in shards)
    samplings = [s.sampling for s in shards if s.sampling is not None]
    if not samplings and BYTES_PER_ROW * rows <= memory_bytes and rows <= _access.MAX_ROWS:
        early, late = _access.Counters(rows), _access.Counters(rows)
        for shard, (early_is, late_is) in zip(shards, sides, strict=True):
            shard.add_to((early, late)[early_is], (early, late)[late_is])
        return TableStatistics.from_counters(name, samples, bags, early, late)
    # Of exact shards, room for all rows seen keeps the sum exact.
    room = 16 + 2 * sum(s.distinct for s in shards)
    slots = (
        max((s.sample_slots for s in samplings), default=room),
        max((s.head_slots for s in samplings), default=LEAST_SLOTS),
    )
    counters = _access.SampledCounters(rows, *slots)
    for shard, (early_is, late_is) in zip(shards, sides, strict=True):
        shard.add_to_sampled(counters, early_is, late_is)
    return TableStatistics.from_sampled(name, samples, bags, counters, slots)


def _borders(parts: Sequence[AccessStatistics]) -> tuple[int, list[tuple[bool, bool]]]:
    """(Where the later part begins, for each shard whether its earlier and its later part are later)."""
    total = sum(p.samples for p in parts)
    borders = []
    start = 0
    for p in parts:
        borders += [start, start + p.late_from]
        start += p.samples
    best = min(borders, key=lambda b: (abs(2 * b - total), b))
    sides = []
    start = 0
    for p in parts:
        sides.append((start >= best, start + p.late_from >= best))
        start += p.samples
    return best, sides


def _check_same_tables(parts: Sequence[AccessStatistics]) -> None:
    first = parts[0]
    for at, part in enumerate(parts[1:], 2):
        for name in [*first.tables, *part.tables]:
            here, there = first.tables.get(name), part.tables.get(name)
            if here is None or there is None or here.num_embeddings != there.num_embeddings:
                one = "no table of the name" if here is None else f"{here.num_embeddings} rows"
                other = "no table of the name" if there is None else f"{there.num_embeddings} rows"
                raise InputError(
                    f"the statistics to merge are of other tables: of {name!r}, the first has {one}, number "
                    f"{at} has {other}; merge shards of one model's lookups (--rows gives the sizes)"
                )
