"""The bound of a run whose load or devices change: one program for each stretch of time.

A sample that arrives in a stretch is timely only if it is computed in it, or within the SLA after its end.
So each stretch has its own arrivals and the capacity of the stretch and of an SLA more; the sum over the
stretches is a bound of the run.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys_opt.serving.bound import Coalescing, DeviceState, accuracy_bound, correct_bound
from recsys_opt.serving.events import Event, device_states
from recsys_opt.serving.profile import Profile
from recsys_opt.serving.sizes import Sizes
from recsys_opt.serving.workload import Arrivals, Diurnal

_PIECES, _MOST_PIECES = 24, 240
"""Of a period whose load varies, and of a run."""


@dataclass(frozen=True)
class Window:
    """A stretch of time."""

    share: float
    """Of the run."""
    load: float
    """Over the run's mean load."""
    states: tuple[DeviceState, ...]


@dataclass(frozen=True)
class RunBound:
    """What no policy can exceed in a run."""

    correct_per_s: float
    not_batched_correct_per_s: float
    accuracy: float | None
    """Of all samples, where all can be answered in time."""


def windows(
    arrivals: Arrivals, events: Sequence[Event], profile: Profile, span: float, sla: float
) -> list[Window]:
    """The stretches between events, cut further where the load varies over a period."""
    cuts = {0.0, span, *(e.time for e in events if 0 < e.time < span)}
    if isinstance(arrivals, Diurnal):
        pieces = min(_MOST_PIECES, max(_PIECES, math.ceil(_PIECES * span / arrivals.period)))
        cuts |= set(np.linspace(0, span, pieces + 1).tolist())
    times = sorted(cuts)
    found = []
    for begin, end in itertools.pairwise(times):
        in_order = sorted(events, key=lambda e: e.time)
        later = [Event(max(0.0, e.time - begin), e.device, e.factor) for e in in_order]
        states = device_states(later, profile, end - begin + sla)
        grown = (end - begin + sla) / (end - begin)
        found.append(
            Window(
                (end - begin) / span,
                _mean_load(arrivals, begin, end),
                tuple(DeviceState(s.device, s.workers * grown, s.factor) for s in states),
            )
        )
    mean = sum(w.share * w.load for w in found)
    return [Window(w.share, w.load / mean, w.states) for w in found]


def run_bound(
    profile: Profile, sizes: Sizes, rate: float, sla: float, stretches: Sequence[Window]
) -> RunBound:
    """Sums the stretches' bounds; a single one is bounded as it is over a long time."""
    if len(stretches) == 1:
        whole = tuple(DeviceState(d.name, d.workers) for d in profile.devices)
        healthy = all(s.factor == 1.0 for s in stretches[0].states)
        only = Window(1.0, 1.0, whole if healthy else stretches[0].states)
        stretches = [only]
    solve = functools.partial(correct_bound, profile, sizes, sla=sla)
    loads = [rate * w.load for w in stretches]
    both = [
        sum(
            w.share * solve(rate=load, states=w.states, coalescing=coalescing).correct_per_s
            for w, load in zip(stretches, loads, strict=True)
            if load > 0
        )
        for coalescing in (Coalescing.FULL, Coalescing.NONE)
    ]
    accuracies = [
        (w.share * w.load, accuracy_bound(profile, sizes, load, sla, states=w.states))
        for w, load in zip(stretches, loads, strict=True)
        if load > 0
    ]
    known = [(weight, a) for weight, a in accuracies if a is not None]
    accuracy = sum(weight * a for weight, a in known) if len(known) == len(accuracies) else None
    return RunBound(both[0], both[1], accuracy)


def _mean_load(arrivals: Arrivals, begin: float, end: float) -> float:
    if not isinstance(arrivals, Diurnal):
        return 1.0
    turn = 2 * math.pi / arrivals.period
    area = (math.cos(turn * begin) - math.cos(turn * end)) / turn
    return 1 + arrivals.swing * area / (end - begin)
