from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

def solve(
    cell_offsets: NDArray[Any],
    cell_rows: NDArray[Any],
    cell_lookups: NDArray[Any],
    options: Mapping[str, NDArray[Any]],
    pinned: Sequence[Sequence[int]],
    nodes: int,
    per_node: int,
    fast_bytes: Sequence[float],
    total_bytes: Sequence[float],
    trials: int,
    rounds: int,
    gap: float,
    seed: int,
) -> dict[str, Any]: ...
def assign(weight: NDArray[Any]) -> list[int]: ...
