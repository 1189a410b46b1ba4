"""Criteo-like rows and lookup traces, each row and lookup a pure function of seed and place."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES: int
FACTORS: int
LATENT: int
MAX_DENSE: int
LOGIT_LIMIT: float
MISSING: int
IN_ORDER: int
SCATTERED: int
UNLINKED: int

class Generator:
    def __init__(
        self,
        total_rows: int,
        seed: int,
        *,
        dense: Sequence[Mapping[str, Any]],
        sparse: Sequence[Mapping[str, Any]],
        patterns: NDArray[np.uint64],
        pattern_mass: NDArray[np.float64],
        bias: float,
    ) -> None: ...
    def rows(self, start: int, stop: int, threads: int) -> dict[str, NDArray[Any]]: ...
    def write(
        self,
        start: int,
        stop: int,
        threads: int,
        files: tuple[int, int, int],
        offsets: tuple[int, int, int],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...

class TraceTable:
    def __init__(
        self,
        rows: int,
        seed: int,
        table: int,
        *,
        width: Sequence[int],
        mass: Sequence[float],
        coverage: float,
        pooling_factor: float,
    ) -> None: ...
    def lengths(self, batch: int, samples: int) -> NDArray[np.int32]: ...
    def values(self, batch: int, count: int) -> NDArray[np.int64]: ...

def criteo_text(
    labels: NDArray[np.int32],
    integers: NDArray[np.int32],
    sparse: NDArray[np.int32],
    never_missing: Sequence[bool],
) -> bytes: ...
def reuse_histogram(values: NDArray[np.int64], rows: int) -> list[int]: ...
