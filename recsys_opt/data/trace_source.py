"""Lookups of a trace folder (`recsys_opt.data.table_traces`): jagged batches of many tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.data.lookup_sources import Block, SourceTable, file_identity
from recsys_opt.data.table_traces import FILE_NAME, FORMAT, VERSION
from recsys_opt.errors import InputError
from recsys_opt.files import read_json

Array = NDArray[Any]
BLOCK_LOOKUPS = 1 << 23


class TraceSource:
    """Some consecutive batches of a trace folder."""

    def __init__(self, folder: Path, batches: tuple[int, int] | None = None) -> None:
        """batches  [first, last): default all"""
        self._folder = folder
        about = read_json(folder / FILE_NAME, FORMAT, VERSION)
        self._batch_size, there = int(about["batch_size"]), int(about["batches"])
        self._first, last = batches or (0, there)
        if not 0 <= self._first < last <= there:
            raise InputError(
                f"{folder} has the batches 0 to {there - 1}; batches {self._first}:{last} asked for"
            )
        self.tables = [SourceTable(t["name"], int(t["num_embeddings"])) for t in about["tables"]]
        self.samples = (last - self._first) * self._batch_size
        self.inputs = [
            {
                "kind": "trace",
                "name": folder.name,
                "batches": [self._first, last],
                "files": [file_identity(self._file(b, "values")) for b in range(self._first, last)],
            }
        ]
        self._bounds: dict[int, Array] = {}

    def blocks(self, tables: Sequence[int], start: int, stop: int) -> Iterator[Block]:
        """Views of the memory-mapped values."""
        at = start
        while at < stop:
            batch, sample = divmod(at, self._batch_size)
            last = min(stop - at + sample, self._batch_size)
            yield from self._batch_blocks(self._first + batch, tables, sample, last)
            at += last - sample

    def _batch_blocks(self, batch: int, tables: Sequence[int], start: int, stop: int) -> Iterator[Block]:
        lengths, values = self._arrays(batch)
        bounds = self._table_bounds(batch, lengths, values)
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
                    f"{self._file(batch, 'values')}: values[{int(starts[table]) + position}], sample {row}, "
                    f"table {self.tables[t].name}"
                )

            yield Block(here.shape[1], ids, bags, place)
            at = ends

    def _table_bounds(self, batch: int, lengths: Array, values: Array) -> Array:
        """Where each table's values begin and end, [tables + 1]; checked."""
        if batch not in self._bounds:
            sums = np.zeros(len(self.tables) + 1, dtype=np.int64)
            for t, row in enumerate(lengths):
                if row.size and int(row.min()) < 0:
                    sample = int(row.argmin())
                    raise InputError(
                        f"{self._file(batch, 'lengths')}: table {self.tables[t].name}, sample {sample} has "
                        f"the length {int(row[sample])}; write the trace again"
                    )
                sums[t + 1] = row.sum(dtype=np.int64)
            bounds = np.cumsum(sums)
            if bounds[-1] != len(values):
                raise InputError(
                    f"{self._file(batch, 'lengths')} says {int(bounds[-1])} ids, but "
                    f"{self._file(batch, 'values').name} has {len(values)}; write the trace again"
                )
            self._bounds[batch] = bounds
        return self._bounds[batch]

    def _arrays(self, batch: int) -> tuple[Array, Array]:
        shape = (len(self.tables), self._batch_size)
        lengths, values = (self._map(self._file(batch, kind)) for kind in ("lengths", "values"))
        if lengths.shape != shape or lengths.dtype.kind not in "iu":
            raise InputError(
                f"{self._file(batch, 'lengths')} holds {lengths.dtype} {lengths.shape}; {FILE_NAME} says "
                f"integers {shape}; write the trace again"
            )
        if values.ndim != 1:
            raise InputError(
                f"{self._file(batch, 'values')} holds {values.dtype} {values.shape}; it must have one "
                "dimension; write the trace again"
            )
        return lengths, values

    def _map(self, path: Path) -> Array:
        try:
            array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"{path} cannot be read as a .npy array: {error}; write the trace again"
            ) from None
        return array

    def _file(self, batch: int, kind: str) -> Path:
        return self._folder / f"batch_{batch}_{kind}.npy"
