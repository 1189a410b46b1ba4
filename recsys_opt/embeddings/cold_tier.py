"""Where the cold rows of a tiered table are: ordinary memory, pinned memory that a GPU reads, or a file."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import resource
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from recsys_opt.embeddings.tiered_rows import chunks
from recsys_opt.errors import InputError, RecsysOptError


@dataclass(frozen=True)
class ColdTier:
    """Makes the tensors of a cold tier.

    folder  they are memory-mapped files in it, without a name: they go with the process, whatever ends it, so
            that none is mistaken for a checkpoint. None: memory
    """

    folder: Path | None = None

    def zeros(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor in host memory for the table whose hot rows are on `device`: pinned for a GPU."""
        if device.type == "meta":
            return torch.empty(*shape, dtype=dtype, device="meta")
        if self.folder is None:
            return torch.zeros(*shape, dtype=dtype, pin_memory=device.type == "cuda")
        if device.type != "cpu":
            raise InputError(
                f"a cold tier in files ({self.folder}) is for tables on the CPU, but the hot rows are on "
                f"{device}; leave cold_dir out: the cold rows are then in pinned memory"
            )
        return _mapped(self.folder, shape, dtype)

    def following(self, cold: Tensor, hot: Tensor) -> Tensor:
        """What a tensor of the cold tier becomes when the hot one has moved or has another dtype."""
        stays = cold.dtype == hot.dtype and cold.is_meta == hot.is_meta
        if stays and (hot.device.type != "cuda" or cold.numel() == 0 or cold.is_pinned()):
            return cold
        fresh = self.zeros(cold.shape, hot.dtype, hot.device)
        if not hot.is_meta and not cold.is_meta:
            for start, stop in chunks(len(cold), cold):
                fresh[start:stop] = cold[start:stop]
        return fresh


class Waits:
    """Whether lookups have waited for a disk lately: then the pages of the next ones are worth asking for.

    Asking for pages that are in memory already costs about a microsecond each, which is more than a lookup.
    """

    def __init__(self, few: int = 8, calls: int = 64) -> None:
        """Pages that are waited for in a call, fewer of which do not count; calls that it then holds for."""
        self._few, self._calls = few, calls
        self._seen = self._now()
        self._left = 0

    def lately(self) -> bool:
        """To be asked once per call."""
        now = self._now()
        if now - self._seen >= self._few:
            self._left = self._calls
        self._seen = now
        self._left = max(0, self._left - 1)
        return self._left > 0

    @staticmethod
    def _now() -> int:
        """Pages that this process has waited for."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def _mapped(folder: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.zeros(*shape, dtype=dtype)
    try:
        fd = _unnamed_file(folder)
    except OSError as error:
        raise InputError(
            f"cannot make a file for cold rows in {folder}: {error.strerror}; name a folder that exists and "
            "can be written to"
        ) from None
    try:
        # Reserved now: where the disk is full later, a write to the mapping would end the process.
        os.posix_fallocate(fd, 0, size)
        mapping = mmap.mmap(fd, size)
    except OSError as error:
        raise RecsysOptError(
            f"cannot reserve {size:,} bytes for cold rows in {folder}: {error.strerror}; make room, or name "
            "a folder on a larger disk"
        ) from None
    finally:
        os.close(fd)
    with contextlib.suppress(OSError):  # advice; without it the system reads ahead what nothing asks for
        mapping.madvise(mmap.MADV_RANDOM)
    return torch.frombuffer(mapping, dtype=dtype).view(*shape)


def _unnamed_file(folder: Path) -> int:
    with contextlib.suppress(OSError, AttributeError):  # some file systems have no such files
        return os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    fd, path = tempfile.mkstemp(prefix=".cold-", dir=folder)
    os.unlink(path)
    return fd
