"""Lookups to replay, batch by batch and feature by feature: rows of a dataset, or a trace folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt.data.dataset import FILE_NAME as DATASET_FILE
from recsys_opt.data.dataset import Dataset
from recsys_opt.data.table_traces import FILE_NAME as TRACE_FILE
from recsys_opt.data.trace_folder import TraceFolder
from recsys_opt.errors import InputError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LookupTrace:
    """Whole batches of lookups."""

    name: str
    """Where they are from, for messages."""
    features: tuple[str, ...]
    num_embeddings: tuple[int, ...]
    """Of the table that each feature looks up."""
    batches: int
    batch_size: int
    """Samples of a batch."""
    read: Callable[[int, int], tuple[NDArray[Any] | None, NDArray[Any]]]
    """(feature, batch) -> (lengths [batch_size], None: one id a sample; ids, i32 or i64, sample after
    sample)."""

    def between(self, first: int, last: int | None = None) -> LookupTrace:
        """The batches [first, last)."""
        last = self.batches if last is None else last
        if not 0 <= first < last <= self.batches:
            raise InputError(
                f"{self.name}: batches {first} to {last} (left out) of {self.batches}, counted from 0; "
                "choose one at least of those that are there"
            )
        return replace(
            self, batches=last - first, read=lambda feature, batch: self.read(feature, batch + first)
        )

    def lookups(self, feature: int, batch: int, devices: int) -> tuple[NDArray[Any], Ints]:
        """(ids, bounds [devices + 1]): device d's samples have the ids [bounds[d], bounds[d + 1]).

        Samples are dealt to devices in order: device d has [d * B // devices, (d + 1) * B // devices).
        """
        lengths, ids = self.read(feature, batch)
        firsts = first_samples(self.batch_size, devices)
        if lengths is None:
            return np.ascontiguousarray(ids), firsts
        ends = np.zeros(self.batch_size + 1, dtype=np.int64)
        np.cumsum(lengths, out=ends[1:])
        if ends[-1] != len(ids) or (len(lengths) and int(lengths.min()) < 0):
            raise InputError(
                f"{self.name}: feature {self.features[feature]} of batch {batch} has {len(ids)} ids; "
                f"its lengths add up to {int(ends[-1])}"
            )
        return np.ascontiguousarray(ids), ends[firsts]


def first_samples(batch_size: int, devices: int) -> Ints:
    """The first sample of each device, and the batch's size behind them."""
    return np.arange(devices + 1, dtype=np.int64) * batch_size // devices


def open_trace(path: Path | str, *, batch_size: int, split: str = "test") -> LookupTrace:
    """A dataset's split, or a trace folder, whose batches are as they are.

    batch_size  of a dataset's batches; a last one that is not full is left out
    """
    path = Path(path)
    if (path / TRACE_FILE).exists():
        return _of_folder(TraceFolder(path))
    if not (path / DATASET_FILE).exists():
        raise InputError(
            f"{path} is neither a dataset (it has no {DATASET_FILE}) nor a trace (no {TRACE_FILE}); name a "
            "folder of `recsys-opt data prepare`, `data synth` or `data tables`"
        )
    return of_dataset(Dataset(path), batch_size=batch_size, split=split)


def _of_folder(folder: TraceFolder) -> LookupTrace:
    return LookupTrace(
        str(folder.path),
        tuple(t.name for t in folder.tables),
        tuple(t.num_embeddings for t in folder.tables),
        folder.batches,
        folder.batch_size,
        folder.lookups,
    )


def of_dataset(dataset: Dataset, *, batch_size: int, split: str = "test") -> LookupTrace:
    """A split's rows, in order, in whole batches."""
    if batch_size < 1:
        raise InputError(f"batch_size = {batch_size}; it must be at least 1")
    start, stop = dataset.split(split)
    if stop - start < batch_size:
        raise InputError(
            f"the split {split!r} of {dataset.path} has {stop - start} rows, not one batch of "
            f"{batch_size}; give a smaller --batch-size or another --split"
        )
    parts = [part.sparse for part in dataset.labelled_arrays()]
    firsts = np.concatenate([[0], np.cumsum([len(part) for part in parts])])

    def read(feature: int, batch: int) -> tuple[None, NDArray[Any]]:
        first = start + batch * batch_size
        last = first + batch_size
        pieces = [
            part[max(first - at, 0) : last - at, feature]
            for at, part in zip(firsts, parts, strict=False)
            if at < last and at + len(part) > first
        ]
        return None, np.concatenate(pieces) if len(pieces) > 1 else pieces[0]

    columns = dataset.info.sparse_columns
    return LookupTrace(
        f"{dataset.path} ({split})",
        tuple(c.name for c in columns),
        tuple(c.num_embeddings for c in columns),
        (stop - start) // batch_size,
        batch_size,
        read,
    )
