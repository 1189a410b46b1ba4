"""Timing side by side: candidates take turns in short blocks, and are compared round by round.

A noisy machine is noisy for all candidates of a round alike, so the ratio of two medians of one round says
more than the ratio of two figures taken minutes apart. A block begins with calls that are not counted: they
bring the candidate's own working set back into the caches and its memory back from the allocator, so that a
candidate is not charged for its predecessor's appetite.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

WARM_CALLS = 2
"""Calls at the start of a block that are not counted."""
FEWEST_ROUNDS = 3
"""Rounds in which a candidate takes part, however slow it is."""


@dataclass(frozen=True)
class Task:
    """What is timed, and what has to happen before each call without being timed."""

    run: Callable[[], object]
    prepare: Callable[[], object] | None = None


@dataclass(frozen=True)
class Program:
    """A candidate that times itself: each turn runs it once, and it says how long its calls took."""

    times_s: Callable[[], Sequence[float]]


@dataclass(frozen=True)
class Timing:
    """Times of one candidate, in seconds."""

    median_s: float
    p20_s: float
    p80_s: float
    repeats: int

    @classmethod
    def of(cls, times_s: Sequence[float]) -> Timing:
        """Median and spread."""
        return cls(statistics.median(times_s), quantile(times_s, 0.2), quantile(times_s, 0.8), len(times_s))


@dataclass(frozen=True)
class Turns:
    """What a candidate's turns came to: the times of the calls of each round it took part in."""

    rounds: Mapping[int, Sequence[float]] = field(default_factory=dict)

    def timing(self) -> Timing:
        """Over all calls."""
        return Timing.of([t for times in self.rounds.values() for t in times])

    def ratios(self, baseline: Turns) -> list[float]:
        """Own median over the baseline's, for every round that both took part in."""
        return [
            statistics.median(times) / statistics.median(baseline.rounds[i])
            for i, times in self.rounds.items()
            if i in baseline.rounds
        ]


class Clock(Protocol):
    """Times calls on a device."""

    def times_s(self, task: Task, calls: int) -> list[float]:
        """Seconds of each of `calls` calls."""


class WallClock:
    """For work that is done when the call returns."""

    def times_s(self, task: Task, calls: int) -> list[float]:
        """Seconds of each of `calls` calls."""
        times = []
        for _ in range(calls):
            if task.prepare:
                task.prepare()
            began = time.perf_counter()
            task.run()
            times.append(time.perf_counter() - began)
        return times


class CudaClock:
    """For work queued on the current CUDA stream: events around each call, read once at the block's end."""

    def times_s(self, task: Task, calls: int) -> list[float]:
        """Seconds of each of `calls` calls."""
        events = []
        for _ in range(calls):
            if task.prepare:
                task.prepare()
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            task.run()
            ended.record()
            events.append((began, ended))
        torch.cuda.synchronize()
        return [began.elapsed_time(ended) / 1e3 for began, ended in events]


def take_turns(
    candidates: Mapping[str, Task | Program],
    *,
    rounds: int = 10,
    block_s: float = 0.03,
    most_calls: int = 100,
    clock: Clock | None = None,
    done: Callable[[str], object] = lambda name: None,
) -> dict[str, Turns]:
    """Times candidates in `rounds` rounds of one block each.

    A block is about `block_s` long, and `most_calls` calls at most. A candidate that needs much longer for
    one call takes part in fewer rounds, evenly spread, but in FEWEST_ROUNDS at least; so do programs. The
    order turns by one place a round, so that nobody always follows the same neighbour. After each turn,
    `done` is called with the candidate's name.
    """
    clock = clock or WallClock()
    calls: dict[str, int] = {}
    every = {name: max(1, rounds // FEWEST_ROUNDS) for name in candidates}
    for name, task in candidates.items():
        if isinstance(task, Program):
            continue
        clock.times_s(task, 1)
        once = clock.times_s(task, 1)[0]
        calls[name] = max(1, min(most_calls, math.ceil(block_s / max(once, 1e-9))))
        block = once * (calls[name] + WARM_CALLS)
        every[name] = max(1, min(round(block / (6 * block_s)), rounds // FEWEST_ROUNDS))
    times: dict[str, dict[int, list[float]]] = {name: {} for name in candidates}
    names = list(candidates)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            if i % every[name]:
                continue
            task = candidates[name]
            if isinstance(task, Program):
                times[name][i] = list(task.times_s())
            else:
                clock.times_s(task, min(WARM_CALLS, calls[name]))
                times[name][i] = clock.times_s(task, calls[name])
            done(name)
    return {name: Turns(found) for name, found in times.items()}


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile by linear interpolation."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
