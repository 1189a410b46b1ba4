"""Where lookups go under a plan."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

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
