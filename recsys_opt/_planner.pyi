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

class Replanner:
    def __init__(
        self,
        cell_offsets: NDArray[Any],
        cell_rows: NDArray[Any],
        cell_lookups: NDArray[Any],
        options: Mapping[str, NDArray[Any]],
        pinned: Sequence[Sequence[int]],
        nodes: int,
        per_node: int,
        fast_bytes: Sequence[float],
        total_bytes: Sequence[float],
        moves: Mapping[str, Any],
    ) -> None: ...
    def search(
        self,
        guide_option: Sequence[int],
        guide_devices: Sequence[Sequence[int]],
        limits: Sequence[float],
        trials: Sequence[int],
        price: float,
        bound: float,
        seed: int,
    ) -> list[dict[str, Any]]: ...
    def free_bound(self) -> tuple[float, float]: ...
    def bound(self, most_bytes: float, price: float, free_bound: float, known: float) -> float: ...
