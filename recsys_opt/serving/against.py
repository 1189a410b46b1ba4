"""Simulations held against a recorded run: the same arrivals, percentile by percentile.

Two simulations answer two questions. With the recorded service times (each batch takes as many times the
profile's mean as the batch that began last on its device in the recording) what is left is the scheduler's
model: queues, batches, decisions. From the profile alone it is what one would have predicted.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _serving
from recsys_opt.errors import InputError
from recsys_opt.serving.profile import Profile
from recsys_opt.serving.simulation import Policy, Setup, in_time_share, run_native
from recsys_opt.serving.sizes import Sizes
from recsys_opt.serving.trace import Trace
from recsys_opt.serving.workload import Recorded, Workload

Array = NDArray[Any]
PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
RUNS = 5
"""Seeds of the simulation from the profile, whose percentiles are averaged."""


@dataclass(frozen=True)
class Row:
    """A figure, measured and simulated."""

    name: str
    measured: float | None
    replayed: float | None
    """With the recorded service times; None: the recording has none."""
    profiled: float | None
    """From the profile alone."""

    @property
    def replayed_off(self) -> float | None:
        """Relative error."""
        return _off(self.replayed, self.measured)

    @property
    def profiled_off(self) -> float | None:
        """Relative error."""
        return _off(self.profiled, self.measured)


@dataclass(frozen=True)
class Comparison:
    """A recorded run beside its simulations."""

    policy: str
    queries: int
    load: float
    sla: float
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        document = asdict(self)
        for row, own in zip(document["rows"], self.rows, strict=True):
            row |= {"replayed_off": own.replayed_off, "profiled_off": own.profiled_off}
        return document


def against(
    profile: Profile,
    policy: Policy,
    trace: Trace,
    *,
    sla: float | None = None,
    seed: int = 0,
    overhead: float = 0.0,
) -> Comparison:
    """Simulates a recorded run's arrivals.

    sla       seconds; None: the recorded one
    overhead  seconds of each query beside wait and batch, for the simulation from the profile; with recorded
              times it is the recorded median, where it is known
    """
    sla = sla if sla is not None else trace.sla
    if sla is None:
        raise InputError("the recorded run says no SLA; give one with --sla")
    if len(trace) < 2:
        raise InputError(f"the recorded run has {len(trace)} queries; it needs at least 2")
    arrivals = Recorded(trace.arrival - trace.arrival[0], trace.size, "the recorded run")
    workload = Workload(arrivals, Sizes.of(trace.size, "recorded"))
    setup = Setup(profile, workload, sla, queries=len(trace), seed=seed, overhead=overhead)
    notes = []
    replayed = None
    times, ratios = recorded_times(profile, trace)
    if len(ratios):
        own = trace.latency - trace.wait - trace.service
        known = own[trace.answered & np.isfinite(own)]
        beside = max(0.0, float(np.median(known))) if len(known) else overhead
        replayed = run_native(setup.at(overhead=beside), policy, recorded=times)
        q50, q95, q99 = np.quantile(ratios, (0.5, 0.95, 0.99))
        notes.append(
            f"{len(ratios):,} recorded batches took {q50:.2f} times the profile's mean in the median, "
            f"{q95:.2f} and {q99:.2f} times it in 1 of 20 and of 100; "
            f"{1e6 * beside:,.0f} us a query beside wait and batch"
        )
    else:
        notes.append("the recording has no service times: it can be simulated from the profile alone")
    runs = [run_native(setup.at(seed=seed + at), policy) for at in range(RUNS)]
    latency = trace.latency[trace.answered]
    rows = [
        Row(
            f"p{percent:g}",
            float(np.percentile(latency, percent)) if len(latency) else None,
            None if replayed is None else _percentile(replayed, percent),
            _mean([_percentile(run, percent) for run in runs]),
        )
        for percent in PERCENTILES
    ]
    rows.append(
        Row(
            "mean",
            float(latency.mean()) if len(latency) else None,
            None if replayed is None else float(replayed.mean_latency),
            _mean([float(run.mean_latency) for run in runs]),
        )
    )
    rows.append(
        Row(
            "in SLA",
            float((latency <= sla).sum() / len(trace)),
            None if replayed is None else in_time_share(replayed),
            _mean([in_time_share(run) for run in runs]),
        )
    )
    return Comparison(policy.name, len(trace), arrivals.rate, sla, tuple(rows), tuple(notes))


def recorded_times(profile: Profile, trace: Trace) -> tuple[list[tuple[Array, Array]], Array]:
    """By device: when batches began and how many times the profile's mean they took; and all these ratios."""
    known = trace.answered & (trace.path >= 0) & np.isfinite(trace.service) & np.isfinite(trace.wait)
    rows = np.flatnonzero(known)
    # Of the queries of a batch one will do.
    numbered = np.where(trace.batch[rows] >= 0, trace.batch[rows], -1 - rows)
    rows = rows[np.unique(numbered, return_index=True)[1]]
    starts = trace.arrival[rows] + trace.wait[rows] - trace.arrival[0]
    sizes = np.where(trace.batch_size[rows] > 0, trace.batch_size[rows], trace.size[rows])
    expected = np.empty(len(rows))
    device = np.empty(len(rows), dtype=np.int64)
    names = [d.name for d in profile.devices]
    for number in np.unique(trace.path[rows]):
        path = profile.path(trace.paths[number])
        own = trace.path[rows] == number
        means = np.array([path.expected(int(n)) for n in np.unique(np.minimum(sizes[own], path.max_size))])
        expected[own] = means[np.unique(np.minimum(sizes[own], path.max_size), return_inverse=True)[1]]
        device[own] = names.index(path.device)
    ratios = trace.service[rows] / expected
    by_device = []
    for number in range(len(names)):
        own_rows = np.flatnonzero(device == number)
        own_rows = own_rows[np.argsort(starts[own_rows], kind="stable")]
        by_device.append((starts[own_rows], ratios[own_rows]))
    return by_device, ratios


def _percentile(result: _serving.SimulationResult, percent: float) -> float | None:
    value = float(result.percentile(percent))
    return value if value == value else None


def _mean(values: list[float | None] | list[float]) -> float | None:
    found = [v for v in values if v is not None]
    return statistics.fmean(found) if found else None


def _off(value: float | None, measured: float | None) -> float | None:
    return None if value is None or not measured else value / measured - 1
