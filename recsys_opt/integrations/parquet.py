"""Lookups in Parquet files, read with pyarrow: a column is a table, a list is a bag, null is an empty bag."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.data.lookup_sources import Block, SourceTable, file_identity
from recsys_opt.errors import InputError

Array = NDArray[Any]
BATCH_ROWS = 1 << 16


class ParquetSource:
    """The columns of ids of Parquet files, given in the order of time; other columns are left out."""

    def __init__(self, files: Sequence[Path]) -> None:
        if importlib.util.find_spec("pyarrow") is None:
            raise InputError(
                f"{files[0]} needs pyarrow, which is not installed: pip install 'recsys-opt[parquet]'"
            )
        self._arrow: Any = importlib.import_module("pyarrow")
        self._parquet: Any = importlib.import_module("pyarrow.parquet")
        self._files = [(file, self._open(file)) for file in files]
        first_file, first = self._files[0]
        names = [f.name for f in first.schema_arrow if self._is_ids(f.type)]
        if not names:
            told = ", ".join(f"{f.name} {f.type}" for f in list(first.schema_arrow)[:12])
            raise InputError(
                f"{first_file} has no column of integers or of lists of integers; its columns are: {told}"
            )
        for file, opened in self._files:
            for name in names:
                at = opened.schema_arrow.get_field_index(name)
                if at < 0 or not self._is_ids(opened.schema_arrow.field(at).type):
                    raise InputError(
                        f"{file} has no column {name} of ids, as {first_file} has; files of one trace need "
                        "the same columns"
                    )
        self.tables = [SourceTable(name, None) for name in names]
        self.samples = sum(opened.metadata.num_rows for _, opened in self._files)
        self.inputs = [file_identity(file) for file in files]

    def most_lookups(self, table: int) -> int | None:
        """One a sample, but of lists."""
        schema = self._files[0][1].schema_arrow
        kind = schema.field(schema.get_field_index(self.tables[table].name)).type
        return None if self._is_list(kind) else self.samples

    def blocks(self, tables: Sequence[int], start: int, stop: int) -> Iterator[Block]:
        """Batches of rows; row groups before `start` are not read."""
        names = [self.tables[t].name for t in tables]
        offset = 0
        for file, opened in self._files:
            groups = [opened.metadata.row_group(g).num_rows for g in range(opened.num_row_groups)]
            begins = offset + np.concatenate([[0], np.cumsum(groups)]).astype(np.int64)
            offset = int(begins[-1])
            wanted = [g for g in range(len(groups)) if begins[g] < stop and begins[g + 1] > start]
            if not wanted:
                continue
            at = int(begins[wanted[0]])
            for batch in self._batches(file, opened, wanted, names):
                first, last = max(start - at, 0), min(stop - at, batch.num_rows)
                if first < last:
                    row = at - int(begins[0]) + first
                    yield self._block(file, batch.slice(first, last - first), names, row)
                at += batch.num_rows

    def _batches(self, file: Path, opened: Any, groups: list[int], names: list[str]) -> Iterator[Any]:
        try:
            yield from opened.iter_batches(BATCH_ROWS, row_groups=groups, columns=names)
        except (self._arrow.ArrowException, OSError) as error:
            raise InputError(f"{file} cannot be read: {error}; write the file again") from None

    def _block(self, file: Path, batch: Any, names: list[str], row: int) -> Block:
        ids, bags, offsets = [], [], []
        for name in names:
            column = batch.column(batch.schema.get_field_index(name))
            if self._is_list(column.type):
                column = column.cast(self._arrow.large_list(column.type.value_type))
                lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
                values = column.flatten()
                if values.null_count:
                    at = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
                    within = int(np.searchsorted(np.cumsum(lengths), at, side="right"))
                    raise InputError(
                        f"{file}: row {row + within}, column {name} has a list with a null in it; leave "
                        "missing ids out of the list"
                    )
            else:
                lengths = column.is_valid().to_numpy(zero_copy_only=False).astype(np.int64)
                values = column.drop_null()
            ids.append(values.to_numpy(zero_copy_only=False))
            bags.append(int(np.count_nonzero(lengths)))
            offsets.append(lengths)

        def place(table: int, position: int) -> str:
            within = int(np.searchsorted(np.cumsum(offsets[table]), position, side="right"))
            return f"{file}: row {row + within}, column {names[table]}"

        return Block(batch.num_rows, ids, bags, place)

    def _is_list(self, kind: Any) -> bool:
        types = self._arrow.types
        return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))

    def _is_ids(self, kind: Any) -> bool:
        if self._is_list(kind):
            kind = kind.value_type
        return bool(self._arrow.types.is_integer(kind))

    def _open(self, file: Path) -> Any:
        try:
            return self._parquet.ParquetFile(file)
        except (self._arrow.ArrowException, OSError) as error:
            raise InputError(f"{file} cannot be read as Parquet: {error}; write the file again") from None
