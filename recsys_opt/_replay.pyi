"""Where lookups go under a plan, or through a cache."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

WAYS: int
"""Rows of a set of a cache."""

class RowCaches:
    """Two caches that get the same lookups: the one evicts by time of use, the other by number of uses."""

    def __init__(self, rows: int, sets: int) -> None: ...
    def add(self, ids: NDArray[Any], first: int, last: int, base: int) -> None:
        """Lookups of the batch; those within [first, last) are of the rows from `base` on."""
    def end_batch(self) -> NDArray[np.int64]:
        """[2, 6] LRU, LFU: lookups, rows, loads, evictions, direct lookups, direct rows."""

class TableCounter:
    """One table: counts lookups by stripe, and by how many parts have the row in their slow tier."""

    def __init__(self, ranking: NDArray[Any], rows: int, hot_rows: NDArray[np.int64]) -> None: ...
    @property
    def slots(self) -> int: ...
    def next_round(self) -> None: ...
    def count(
        self,
        ids: NDArray[Any],
        bounds: NDArray[np.int64],
        lookups: NDArray[np.int64],
        distinct: NDArray[np.int64],
    ) -> int: ...
