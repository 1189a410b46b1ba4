"""Timing side by side: candidates take turns, so that a noisy machine is noisy for all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Wall times of one candidate, in seconds."""

    median_s: float
    p20_s: float
    p80_s: float
    repeats: int


def quantile(values: list[float], q: float) -> float:
    """The q-quantile by linear interpolation."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def side_by_side(
    candidates: Mapping[str, Callable[[], object]], *, repeats: int = 20, warm_up: int = 3
) -> dict[str, Timing]:
    """Times each candidate `repeats` times, in turns; a call must do its whole work before it returns."""
    for call in candidates.values():
        for _ in range(warm_up):
            call()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return {
        name: Timing(statistics.median(t), quantile(t, 0.2), quantile(t, 0.8), len(t))
        for name, t in times.items()
    }
