"""Batches streamed from a dataset folder in time order, prepared by a background thread.

Criteo's rows are in the order of time, and so is training on them: rows are not shuffled.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys_opt.data.dataset import Dataset, PartArrays
from recsys_opt.errors import InputError


@dataclass(frozen=True)
class Batch:
    """Consecutive rows, in the memory order that a collection of tables takes."""

    dense: Tensor  # [B, 13] f32
    values: Tensor  # [26 * B] i32, feature-major: column f of row b is values[f * B + b]
    labels: Tensor  # [B] f32
    start: int
    """Row number of the first row, over the labelled parts laid end to end."""

    @property
    def rows(self) -> int:
        """B; the last batch of a range may be shorter than the others."""
        return int(self.labels.numel())

    def to(self, device: torch.device) -> Batch:
        """The same rows on a device."""
        if device.type == "cpu":
            return self
        dense, values, labels = (
            t.pin_memory().to(device, non_blocking=True) for t in (self.dense, self.values, self.labels)
        )
        return Batch(dense, values, labels, self.start)


class BatchStream:
    """The rows [start, stop) of a dataset's labelled parts as batches; iterating twice gives the same twice.

    Holds at most `prefetch` batches ahead of the consumer. Leaving the loop early ends the thread.
    """

    def __init__(
        self, dataset: Dataset, start: int, stop: int, batch_size: int, *, prefetch: int = 4
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size = {batch_size}; it must be at least 1")
        if prefetch < 1:
            raise InputError(f"prefetch = {prefetch}; it must be at least 1")
        if not 0 <= start <= stop <= dataset.info.labelled_rows:
            raise InputError(
                f"rows {start} to {stop} of {dataset.path}: it has {dataset.info.labelled_rows} labelled rows"
            )
        self._parts = dataset.labelled_arrays()
        self._first_rows = np.concatenate([[0], np.cumsum([len(p.dense) for p in self._parts])])
        self.start, self.stop, self.batch_size = start, stop, batch_size
        self._prefetch = prefetch

    def __len__(self) -> int:
        """The number of batches."""
        return -(-(self.stop - self.start) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches in row order."""
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(self._prefetch)
        stopped = threading.Event()
        worker = threading.Thread(target=self._fill, args=(ready, stopped), name="batches", daemon=True)
        worker.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            worker.join()

    def _fill(self, ready: queue.Queue[Batch | BaseException | None], stopped: threading.Event) -> None:
        def put(item: Batch | BaseException | None) -> None:
            while not stopped.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put(item, timeout=0.1)
                    return

        try:
            for row in range(self.start, self.stop, self.batch_size):
                if stopped.is_set():
                    return
                put(self.read(row, min(row + self.batch_size, self.stop)))
        except Exception as error:  # handed to the consumer, which raises it
            put(error)
        else:
            put(None)

    def read(self, start: int, stop: int) -> Batch:
        """The rows [start, stop) as one batch, which may lie across parts."""
        dense, sparse, labels = [], [], []
        first = int(np.searchsorted(self._first_rows, start, side="right")) - 1
        for i in range(first, len(self._parts)):
            offset = int(self._first_rows[i])
            if offset >= stop:
                break
            part = self._parts[i]
            rows = slice(max(start - offset, 0), min(stop - offset, len(part.dense)))
            dense.append(part.dense[rows])
            sparse.append(part.sparse[rows])
            labels.append(_labels(part)[rows, 0])
        # np.array copies out of the memory map, so that a batch outlives the dataset and never faults later.
        values = np.concatenate(sparse).T if len(sparse) > 1 else sparse[0].T
        return Batch(
            torch.from_numpy(np.array(np.concatenate(dense), dtype=np.float32)),
            torch.from_numpy(np.array(values, dtype=np.int32, order="C").reshape(-1)),
            torch.from_numpy(np.concatenate(labels).astype(np.float32)),
            start,
        )


def _labels(part: PartArrays) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    assert part.labels is not None, "labelled_arrays() gives labelled parts only"
    return part.labels
