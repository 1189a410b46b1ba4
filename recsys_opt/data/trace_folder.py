"""Trace folders, as `recsys_opt.data.table_traces` writes them, read: lookups of many tables in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.data.npy import mapped_array
from recsys_opt.data.table_traces import FILE_NAME, FORMAT, VERSION
from recsys_opt.errors import InputError
from recsys_opt.files import read_json
from recsys_opt.tables import TableConfig

_OPEN_ARRAYS = 4096
"""That are mapped at once; a process may have some 65,000 mappings."""


class TraceFolder:
    """A trace folder, opened for reading; arrays are memory-mapped, shapes and types are checked."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        file = self.path / FILE_NAME
        if self.path.is_dir() and not file.exists():
            raise InputError(
                f"{self.path} is not a whole trace: it has no {FILE_NAME}; make it again with "
                "`recsys-opt data tables --out`"
            )
        document = read_json(file, FORMAT, VERSION)
        try:
            self.batch_size = int(document["batch_size"])
            self.batches = int(document["batches"])
            self.tables = tuple(
                TableConfig(
                    str(t["name"]),
                    int(t["num_embeddings"]),
                    int(t["embedding_dim"]),
                    tuple(t.get("feature_names", ())),
                    t.get("pooling", "sum"),
                )
                for t in document["tables"]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file} does not describe a trace ({error!r}); make it again") from None
        if self.batch_size < 1 or self.batches < 1 or not self.tables:
            raise InputError(
                f"{file}: {self.batches} batches of {self.batch_size} samples and {len(self.tables)} "
                "tables; a trace has at least one of each"
            )
        self._starts: dict[int, NDArray[np.int64]] = {}
        self._open: dict[tuple[int, str], NDArray[Any]] = {}

    def lengths(self, batch: int) -> NDArray[np.int32]:
        """[tables, batch_size] ids of each sample."""
        return self._opened(batch, "lengths")

    def values(self, batch: int) -> NDArray[np.int64]:
        """[lookups] ids, table after table, sample after sample."""
        return self._opened(batch, "values")

    def lookups(self, table: int, batch: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """(lengths [batch_size], values [their sum]) of one table in one batch."""
        starts = self.starts(batch)
        return self.lengths(batch)[table], self.values(batch)[starts[table] : starts[table + 1]]

    def starts(self, batch: int) -> NDArray[np.int64]:
        """[tables + 1] where each table's ids begin, and where the last one's end."""
        if batch not in self._starts:
            lengths = self.lengths(batch)
            if lengths.size and int(lengths.min()) < 0:
                table, sample = (int(i[0]) for i in np.nonzero(lengths < 0))
                raise InputError(
                    f"{self.file(batch, 'lengths')}: table {self.tables[table].name}, sample {sample} has "
                    f"the length {int(lengths[table, sample])}; make the trace again"
                )
            sums = lengths.sum(axis=1, dtype=np.int64)
            self._starts[batch] = np.concatenate([[0], np.cumsum(sums)])
        return self._starts[batch]

    def file(self, batch: int, kind: str) -> Path:
        """`kind` is "lengths" or "values"."""
        return self.path / f"batch_{batch}_{kind}.npy"

    def _opened(self, batch: int, kind: str) -> NDArray[Any]:
        """An array of a batch, mapped and checked at its first use: table by table, it is asked for often."""
        if (batch, kind) not in self._open:
            if len(self._open) >= _OPEN_ARRAYS:
                self._open.clear()
            self._open[batch, kind] = self._lengths(batch) if kind == "lengths" else self._values(batch)
        return self._open[batch, kind]

    def _lengths(self, batch: int) -> NDArray[Any]:
        return self._map(self.file(batch, "lengths"), np.int32, (len(self.tables), self.batch_size))

    def _values(self, batch: int) -> NDArray[Any]:
        path, count = self.file(batch, "values"), int(self.starts(batch)[-1])
        if not count:  # numpy cannot map a file without numbers
            return np.zeros(0, dtype=np.int64)
        values = self._map(path, np.int64, None)
        if len(values) != count:
            raise InputError(
                f"{self.file(batch, 'lengths')} says {count} ids, but {path.name} has {len(values)}; "
                "make the trace again"
            )
        return values

    def _map(self, path: Path, dtype: type[np.generic], shape: tuple[int, ...] | None) -> NDArray[Any]:
        """shape  None: any of one dimension"""
        array = mapped_array(path, "make the trace again")
        wanted = f"{np.dtype(dtype)} {'of one dimension' if shape is None else shape}"
        if array.dtype != dtype or (array.ndim != 1 if shape is None else array.shape != shape):
            raise InputError(
                f"{path} holds {array.dtype} {array.shape}; {FILE_NAME} asks for {wanted}; make "
                "the trace again"
            )
        return array
