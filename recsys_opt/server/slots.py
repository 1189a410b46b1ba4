"""The memory that a worker shares with the server: one batch's inputs, and its outputs.

The file has no name (memfd): when both processes are gone, however they ended, so is the memory.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Shape:
    """Of the largest batch."""

    samples: int
    dense_columns: int
    features: int
    id_bytes: int = 8
    """4 where all ids fit."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Bytes of ids, dense columns and outputs, in the order in which they lie, each a whole page."""
        return (
            _pages(self.id_bytes * self.samples * self.features),
            _pages(4 * self.samples * self.dense_columns),
            _pages(4 * self.samples),
        )


class Slots:
    """The arrays in the shared memory; a batch of n samples takes the beginning of each."""

    def __init__(self, fd: int, shape: Shape) -> None:
        ids, dense, outputs = shape.sizes
        self.shape = shape
        self._memory = memory = mmap.mmap(fd, ids + dense + outputs)
        self._ids = np.frombuffer(memory, f"i{shape.id_bytes}", shape.samples * shape.features)
        self._dense = np.frombuffer(memory, np.float32, shape.samples * shape.dense_columns, ids)
        self._outputs = np.frombuffer(memory, np.float32, shape.samples, ids + dense)

    def ids(self, samples: int) -> NDArray[np.int32] | NDArray[np.int64]:
        """[F, samples], without gaps: feature-major as the models take it."""
        return self._ids[: samples * self.shape.features].reshape(self.shape.features, samples)

    def dense(self, samples: int) -> NDArray[np.float32]:
        """[samples, D]"""
        return self._dense[: samples * self.shape.dense_columns].reshape(samples, self.shape.dense_columns)

    def outputs(self, samples: int) -> NDArray[np.float32]:
        """[samples] probabilities."""
        return self._outputs[:samples]

    def close(self) -> None:
        """Gives the memory back; nobody may have one of its arrays any more."""
        del self._ids, self._dense, self._outputs
        self._memory.close()


def create(shape: Shape) -> int:
    """A file descriptor of memory for `Slots`."""
    fd = os.memfd_create("recsys_opt batch", os.MFD_CLOEXEC)
    os.ftruncate(fd, sum(shape.sizes))
    return fd


def _pages(length: int) -> int:
    return -(-max(length, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
