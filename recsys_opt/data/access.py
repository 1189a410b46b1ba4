"""Counts of every id of a dataset's rows, in one pass over the memory-mapped arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _access
from recsys_opt.access import TableAccess
from recsys_opt.data.access_counters import count, totals
from recsys_opt.data.dataset import Dataset
from recsys_opt.errors import InputError
from recsys_opt.progress import Progress, SilentProgress

CHUNK_ROWS = 1 << 16
MEMORY_BYTES = 1 << 30
"""Default limit of the counters. They take 8 bytes a row of the tables, however many rows the dataset has."""


def count_access(
    dataset: Dataset,
    split: str = "train",
    *,
    max_rows: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
    progress: Progress | None = None,
) -> list[TableAccess]:
    """How often a split looks up the ids of each column, and with which labels.

    memory_bytes  columns whose counters do not fit together are counted in several passes
    """
    return [
        TableAccess.from_counts(dataset.info.sparse_columns[column].name, counts, clicks)
        for column, counts, clicks in count_columns(
            dataset, split, max_rows=max_rows, memory_bytes=memory_bytes, progress=progress
        )
    ]


def count_columns(
    dataset: Dataset,
    split: str = "train",
    *,
    max_rows: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
    progress: Progress | None = None,
) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
    """(column, lookups of each id, those of them with label 1) for every column in order."""
    start, stop = dataset.split(split)
    if max_rows is not None:
        stop = min(stop, start + max_rows)
    if start == stop:
        raise InputError(f"the split {split!r} of {dataset.path} has no rows to count")
    rows = [column.num_embeddings for column in dataset.info.sparse_columns]
    groups = _groups(rows, memory_bytes)
    progress = progress or SilentProgress()
    progress.start("counting ids", (stop - start) * len(groups), "rows")
    names = [column.name for column in dataset.info.sparse_columns]
    for group in groups:
        counts = [_access.Counters(rows[column]) for column in group]
        clicks = [_access.Counters(rows[column]) for column in group]
        for sparse, labels, first in _chunks(dataset, start, stop):

            def place(at: int, row: int, first: int = first, group: list[int] = group) -> str:
                return f"{dataset.path}: row {first + row}, column {names[group[at]]}"

            clicked = sparse[labels != 0]
            count(counts, [sparse[:, column] for column in group], place)
            count(clicks, [clicked[:, column] for column in group], place)
            progress.advance(len(labels))
        for at, column in enumerate(group):
            yield column, totals(counts[at]), totals(clicks[at])
    progress.finish()


def _groups(rows: Sequence[int], memory_bytes: int) -> list[list[int]]:
    """Consecutive columns whose counters fit into the memory; a column too large for it is alone."""
    groups: list[list[int]] = []
    taken = 0
    for column, n in enumerate(rows):
        if not groups or taken + 8 * n > memory_bytes:
            groups.append([])
            taken = 0
        groups[-1].append(column)
        taken += 8 * n
    return groups


def _chunks(dataset: Dataset, start: int, stop: int) -> Iterator[tuple[NDArray[np.int32], NDArray[Any], int]]:
    """(ids [n, columns], labels [n], number of the first row) of the rows [start, stop)."""
    offset = 0
    for part in dataset.labelled_arrays():
        assert part.labels is not None, "labelled_arrays() gives labelled parts only"
        length = len(part.sparse)
        for row in range(max(start - offset, 0), min(stop - offset, length), CHUNK_ROWS):
            rows = slice(row, min(row + CHUNK_ROWS, stop - offset, length))
            yield part.sparse[rows], part.labels[rows, 0], offset + row
        offset += length
