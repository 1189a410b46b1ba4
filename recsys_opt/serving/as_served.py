"""What a server does to batches and queries beside computing them: the sizes of batches, the time of queries.

oneDNN makes its products anew for every number of rows, in a millisecond or two, and keeps some thousand of
them: with batches of any size it would hardly ever have the one that is wanted. So the server fills batches
up to one of some hundred sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from recsys_opt.errors import InputError

_STEPS = ((32, 1), (256, 8), (1024, 32))
_LAST_STEP = 128


@dataclass(frozen=True)
class AsServed:
    """Of a profile whose times are those of batches inside the server: copied to a worker and back, and
    filled up to one of `padded_sizes`."""

    query_s: float
    """Of each query beside its wait and its batch: network, protocol, the server's own work,"""
    sample_s: float
    """and of each of its samples."""
    wake_s: float = 0.0
    """Further seconds of a batch that a worker has waited for: it wakes, and its caches are cold."""
    answer_s: float = 0.0
    """Of each query, for each other one that its last batch answers: answers are written, and read, one by
    one."""

    def __post_init__(self) -> None:
        for name in ("query_s", "sample_s", "wake_s", "answer_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"as_served: {name} = {getattr(self, name)}; it must be 0 s or more")


def padded(samples: int) -> int:
    """The size that a batch is computed with: at most an eighth more."""
    for most, step in _STEPS:
        if samples <= most:
            return -(-samples // step) * step
    return -(-samples // _LAST_STEP) * _LAST_STEP


def padded_sizes(largest: int) -> list[int]:
    """All that `padded` gives for batches of up to so many samples."""
    return sorted({padded(samples) for samples in range(1, largest + 1)})
