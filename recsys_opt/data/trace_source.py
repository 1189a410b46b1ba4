"""Lookups of a trace folder (`recsys_opt.data.table_traces`): jagged batches of many tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.data.lookup_sources import Block, SourceTable, file_identity
from recsys_opt.data.trace_folder import TraceFolder
from recsys_opt.errors import InputError

Array = NDArray[Any]
BLOCK_LOOKUPS = 1 << 23


class TraceSource:
    """Some consecutive batches of a trace folder."""

    def __init__(self, folder: Path, batches: tuple[int, int] | None = None) -> None:
        """batches  [first, last): default all"""
        self._trace = TraceFolder(folder)
        self._batch_size, there = self._trace.batch_size, self._trace.batches
        self._first, last = batches or (0, there)
        if not 0 <= self._first < last <= there:
            raise InputError(
                f"{folder} has the batches 0 to {there - 1}; batches {self._first}:{last} asked for"
            )
        self.tables = [SourceTable(t.name, t.num_embeddings) for t in self._trace.tables]
        self.samples = (last - self._first) * self._batch_size
        self.inputs = [
            {
                "kind": "trace",
                "name": folder.name,
                "batches": [self._first, last],
                "files": [file_identity(self._trace.file(b, "values")) for b in range(self._first, last)],
            }
        ]

    def most_lookups(self, table: int) -> int | None:
        """By the lengths."""
        last = self._first + self.samples // self._batch_size
        starts = (self._trace.starts(batch) for batch in range(self._first, last))
        return sum(int(s[table + 1] - s[table]) for s in starts)

    def blocks(self, tables: Sequence[int], start: int, stop: int) -> Iterator[Block]:
        """Views of the memory-mapped values."""
        at = start
        while at < stop:
            batch, sample = divmod(at, self._batch_size)
            last = min(stop - at + sample, self._batch_size)
            yield from self._batch_blocks(self._first + batch, tables, sample, last)
            at += last - sample

    def _batch_blocks(self, batch: int, tables: Sequence[int], start: int, stop: int) -> Iterator[Block]:
        lengths, values = self._trace.lengths(batch), self._trace.values(batch)
        bounds = self._trace.starts(batch)
        # Each table's ids before the sample `start` are passed over.
        at = np.array([bounds[t] + lengths[t, :start].sum(dtype=np.int64) for t in tables], dtype=np.int64)
        total = sum(int(bounds[t + 1] - bounds[t]) for t in tables)
        step = max(1, int(self._batch_size * BLOCK_LOOKUPS / max(total, 1)))
        for first in range(start, stop, step):
            here = lengths[:, first : min(first + step, stop)]
            ends = at + np.array([here[t].sum(dtype=np.int64) for t in tables], dtype=np.int64)
            ids = [values[a:b] for a, b in zip(at, ends, strict=True)]
            bags = [int(np.count_nonzero(here[t])) for t in tables]
            starts = at

            def place(
                table: int, position: int, first: int = first, here: Array = here, starts: Array = starts
            ) -> str:
                t = tables[table]
                within = np.cumsum(here[t], dtype=np.int64)
                row = first + int(np.searchsorted(within, position, side="right"))
                return (
                    f"{self._trace.file(batch, 'values')}: values[{int(starts[table]) + position}], "
                    f"sample {row}, table {self.tables[t].name}"
                )

            yield Block(here.shape[1], ids, bags, place)
            at = ends
