"""Where lookups are read from: samples in the order of time, each with a bag of ids per table.

A source hands out blocks of samples; ids are views of memory-mapped files where that can be. What reads a
source may read it several times, from any sample on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from recsys_opt.data.dataset import Dataset, array_path
from recsys_opt.data.npy import mapped_array
from recsys_opt.errors import InputError

Array = NDArray[Any]
BLOCK_ROWS = 1 << 16


@dataclass(frozen=True)
class SourceTable:
    """A table whose lookups a source has."""

    name: str
    num_embeddings: int | None
    """None: the source does not say."""
    hashed: bool = False
    """Whether ids were made by hashing values to rows."""


@dataclass(frozen=True)
class Block:
    """Consecutive samples."""

    samples: int
    ids: Sequence[Array]  # [tables] of one dimension each
    bags: Sequence[int]  # [tables] samples with at least one id
    place: Callable[[int, int], str]
    """(index of the table among those asked for, position among its ids) -> file, row and table in words."""


class LookupSource(Protocol):
    """Samples in the order of time."""

    @property
    def tables(self) -> Sequence[SourceTable]:
        """In order."""

    @property
    def samples(self) -> int:
        """In all."""

    @property
    def inputs(self) -> Sequence[Mapping[str, Any]]:
        """What is read, told in the statistics and compared when an interrupted run goes on; JSON values."""

    def most_lookups(self, table: int) -> int | None:
        """As many as a table has, or more; None where only reading tells."""

    def blocks(self, tables: Sequence[int], start: int, stop: int) -> Iterator[Block]:
        """The samples [start, stop) of some tables."""


class DatasetSource:
    """Rows of a dataset folder: every column looks up one id a row."""

    def __init__(self, dataset: Dataset, split: str | None = "train", rows: tuple[int, int] | None = None):
        """`rows` are counted over the labelled parts, in place of a split; neither: all of them."""
        if rows is None:
            rows = (0, dataset.info.labelled_rows) if split is None else dataset.split(split)
        self._start, stop = rows
        if not 0 <= self._start < stop <= dataset.info.labelled_rows:
            what = f"the split {split!r}" if split and rows == dataset.split(split) else "the range"
            raise InputError(
                f"{dataset.path}: {what} is rows {self._start} to {stop}; there are "
                f"{dataset.info.labelled_rows} labelled rows: give --range A:B with A below B, or another "
                "--split"
            )
        self._dataset = dataset
        self.samples = stop - self._start
        hashed = dataset.info.ids.get("method") == "hash"
        self.tables = [SourceTable(c.name, c.num_embeddings, hashed) for c in dataset.info.sparse_columns]
        self.inputs = [
            {
                "kind": "dataset",
                "name": dataset.path.name,
                "input_hash": dataset.info.input_hash,
                "rows": [self._start, stop],
            }
        ]

    def most_lookups(self, table: int) -> int | None:
        """One a sample."""
        return self.samples

    def blocks(self, tables: Sequence[int], start: int, stop: int) -> Iterator[Block]:
        """Views of the memory-mapped columns."""
        parts = (p for p in self._dataset.info.parts if p.labelled)
        for part, sparse, first, last in _spans(
            [(p.name, self._dataset.arrays(p.name).sparse) for p in parts],
            start + self._start,
            stop + self._start,
        ):
            file = array_path(self._dataset.path, part, "sparse")
            for at in range(first, last, BLOCK_ROWS):
                rows = sparse[at : min(at + BLOCK_ROWS, last)]
                yield _matrix_block(rows, tables, [t.name for t in self.tables], file, at)


class ArraySource:
    """Plain .npy files of ids.

    A file of shape [N] has the lookups of one table, called as the file; several must be of one length. A
    file of shape [N, C] has those of C tables, column_0 and so on; several are taken as consecutive in time.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        arrays = [(file, _map(file)) for file in files]
        shapes = {array.ndim for _, array in arrays}
        if shapes - {1, 2} or len(shapes) > 1:
            told = ", ".join(f"{file.name} {array.shape}" for file, array in arrays[:8])
            raise InputError(f"the arrays must be all of shape [N], or all of [N, C]; they are: {told}")
        self._arrays = arrays
        first_file, first = arrays[0]
        if shapes == {1}:
            for file, array in arrays:
                if len(array) != len(first):
                    raise InputError(
                        f"{file} has {len(array)} ids, {first_file} has {len(first)}; the files of one trace "
                        "need an id for every sample: count other traces by themselves"
                    )
            self.samples = len(first)
            self.tables = [SourceTable(file.stem, None) for file, _ in arrays]
        else:
            for file, array in arrays:
                if array.shape[1] != first.shape[1]:
                    raise InputError(
                        f"{file} has {array.shape[1]} columns, {first_file} has {first.shape[1]}; files of "
                        "several columns are taken as parts of one trace"
                    )
            self.samples = sum(len(array) for _, array in arrays)
            self.tables = [SourceTable(f"column_{c}", None) for c in range(first.shape[1])]
        self.inputs = [file_identity(file) for file in files]

    def most_lookups(self, table: int) -> int | None:
        """One a sample."""
        return self.samples

    def blocks(self, tables: Sequence[int], start: int, stop: int) -> Iterator[Block]:
        """Views of the memory-mapped arrays."""
        names = [t.name for t in self.tables]
        if self._arrays[0][1].ndim == 2:
            for file, array, first, last in _spans(self._arrays, start, stop):
                for at in range(first, last, BLOCK_ROWS):
                    rows = array[at : min(at + BLOCK_ROWS, last)]
                    yield _matrix_block(rows, tables, names, file, at)
            return
        for at in range(start, stop, BLOCK_ROWS):
            ids = [self._arrays[t][1][at : min(at + BLOCK_ROWS, stop)] for t in tables]

            def place(table: int, position: int, at: int = at) -> str:
                return f"{self._arrays[tables[table]][0]}: row {at + position}, table {names[tables[table]]}"

            yield Block(len(ids[0]) if ids else 0, ids, [len(i) for i in ids], place)


def file_identity(file: Path) -> dict[str, Any]:
    """What tells a file from another."""
    state = file.stat()
    return {"kind": "file", "name": file.name, "bytes": state.st_size, "mtime_ns": state.st_mtime_ns}


def _map(file: Path) -> Array:
    return mapped_array(file, "write the ids again with numpy.save")


def _spans(
    arrays: Sequence[tuple[Any, Array]], start: int, stop: int
) -> Iterator[tuple[Any, Array, int, int]]:
    """(name, array, first, last) of the arrays laid end to end that the rows [start, stop) touch."""
    offset = 0
    for name, array in arrays:
        first, last = max(start - offset, 0), min(stop - offset, len(array))
        if first < last:
            yield name, array, first, last
        offset += len(array)


def _matrix_block(rows: Array, tables: Sequence[int], names: Sequence[str], file: Path, at: int) -> Block:
    def place(table: int, position: int) -> str:
        return f"{file}: row {at + position}, table {names[tables[table]]}"

    return Block(len(rows), [rows[:, t] for t in tables], [len(rows)] * len(tables), place)
