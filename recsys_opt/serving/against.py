"""Simulations held against a recorded run: the same arrivals, percentile by percentile.

Three simulations answer three questions. With the recorded service times what is left is the scheduler's
model: queues, batches, decisions. A simulated batch that is a recorded one again takes just as long; another
one takes the mean of the recorded batches of its size, times what the batch that began last on its device in
the recording took more or less than that. From the profile alone it is what one would have predicted. And
with the profile's times multiplied by one number a path, how many times as long its batches took in the run,
it is what one would have predicted on a machine that is always as fast.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _serving
from recsys_opt.errors import InputError
from recsys_opt.serving.calibration import as_served, recorded_batches, slowed, slowness
from recsys_opt.serving.profile import Profile, fleet
from recsys_opt.serving.simulation import Policy, Setup, in_time_share, run_native
from recsys_opt.serving.sizes import Sizes
from recsys_opt.serving.trace import Trace
from recsys_opt.serving.workload import Recorded, Workload

Array = NDArray[Any]
PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
RUNS = 5
"""Simulations of a kind, whose figures are averaged: with other seeds, or with the recorded times of a few
batches before. Where batches are not the recorded ones, which of them meets which time is chance."""


@dataclass(frozen=True)
class Row:
    """A figure, measured and simulated."""

    name: str
    measured: float | None
    replayed: float | None
    """With the recorded service times; None: the recording has none."""
    profiled: float | None
    """From the profile alone."""
    at_speed: float | None
    """From the profile at the speed of the recording; None: it has no service times."""

    @property
    def replayed_off(self) -> float | None:
        """Relative error."""
        return _off(self.replayed, self.measured)

    @property
    def profiled_off(self) -> float | None:
        """Relative error."""
        return _off(self.profiled, self.measured)

    @property
    def at_speed_off(self) -> float | None:
        """Relative error."""
        return _off(self.at_speed, self.measured)


@dataclass(frozen=True)
class Comparison:
    """A recorded run beside its simulations."""

    policy: str
    queries: int
    load: float
    sla: float
    slowness: dict[str, float]
    """By path, how many times as long as by the profile its batches took; empty: it is not known."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        document = asdict(self)
        for row, own in zip(document["rows"], self.rows, strict=True):
            row |= {
                "replayed_off": own.replayed_off,
                "profiled_off": own.profiled_off,
                "at_speed_off": own.at_speed_off,
            }
        return document


def against(
    profile: Profile,
    policy: Policy,
    trace: Trace,
    *,
    sla: float | None = None,
    seed: int = 0,
    overhead: float | None = None,
    times: Profile | None = None,
    skip: float = 0.0,
) -> Comparison:
    """Simulates a recorded run's arrivals.

    sla       seconds; None: the recorded one
    overhead  seconds of each query beside wait and batch, for the simulation from the profile; None: what
              the profile says, if its times are as served, else none. With recorded times it is the recorded
              one, where that is known
    skip      seconds at the run's start that are served but not compared: a policy may remember what came
              before the recording
    times     whose times batches take in the simulation from the profile; None: the profile's, which is what
              the policy expects in any case
    """
    sla = sla if sla is not None else trace.sla
    if sla is None:
        raise InputError("the recorded run says no SLA; give one with --sla")
    if len(trace) < 2:
        raise InputError(f"the recorded run has {len(trace)} queries; it needs at least 2")
    arrivals = Recorded(trace.arrival - trace.arrival[0], trace.size, "the recorded run")
    workload = Workload(arrivals, Sizes.of(trace.size, "recorded"))
    first = int(np.searchsorted(arrivals.arrivals, skip)) if skip > 0 else 0
    if first >= len(trace):
        raise InputError(f"skip = {skip:g} s of a recorded run of {arrivals.arrivals[-1]:g} s; skip less")
    setup = Setup(profile, workload, sla, queries=len(trace), seed=seed, warmup=first, overhead=overhead)
    notes = []
    replayed: list[_serving.SimulationResult] = []
    own = own_times(profile, trace)
    if own is not None:
        devices, ratios = recorded_times(profile, own, trace)
        server = own.as_served or setup.overheads
        replayed = [
            run_native(
                setup,
                policy,
                recorded=[(starts, np.roll(ratios, before)) for starts, ratios in devices],
                batches=batches_by_query(profile, trace),
                times=own,
                overheads=server,
            )
            for before in range(RUNS)
        ]
        q50, q95, q99 = np.quantile(ratios, (0.5, 0.95, 0.99))
        notes.append(
            f"{len(ratios):,} recorded batches took {q50:.2f} times the profile's mean in the median, "
            f"{q95:.2f} and {q99:.2f} times it in 1 of 20 and of 100; {1e6 * server.query_s:,.0f} us a query "
            f"beside wait and batch, {1e6 * server.sample_s:.2f} us a sample, {1e6 * server.answer_s:.0f} us "
            "for each other query of its batch"
        )
    else:
        notes.append("the recording has no service times: it can be simulated from the profile alone")
    if (times or profile).as_served is None and not trace.circumstances.get("simulated"):
        notes.append(
            "the profile's times are those of the models by themselves, without a server's work; recsys-opt "
            "profile served PROFILE --runs FOLDER --out FILE measures them in the server"
        )
    beside = times.as_served if times is not None and overhead is None else None

    def from_profile(taken: Profile | None) -> list[_serving.SimulationResult]:
        seeds = range(seed, seed + RUNS)
        return [run_native(setup.at(seed=s), policy, times=taken, overheads=beside) for s in seeds]

    slow = slowness(times or profile, trace)
    simulated = replayed, from_profile(times), from_profile(slowed(times or profile, slow)) if slow else []
    latency = trace.latency[first:][trace.answered[first:]]
    rows = [
        Row(
            f"p{percent:g}",
            float(np.percentile(latency, percent)) if len(latency) else None,
            *(_mean([_percentile(run, percent) for run in runs]) for runs in simulated),
        )
        for percent in PERCENTILES
    ]
    rows.append(
        Row(
            "mean",
            float(latency.mean()) if len(latency) else None,
            *(_mean([float(run.mean_latency) for run in runs]) for runs in simulated),
        )
    )
    rows.append(
        Row(
            "in SLA",
            float((latency <= sla).sum() / (len(trace) - first)),
            *(_mean([in_time_share(run) for run in runs]) for runs in simulated),
        )
    )
    return Comparison(policy.name, len(trace) - first, arrivals.rate, sla, slow, tuple(rows), tuple(notes))


def own_times(profile: Profile, trace: Trace) -> Profile | None:
    """The profile with a recorded run's times, where its paths were used; None: it has no times."""
    used = np.unique(trace.path[trace.answered & (trace.path >= 0) & (trace.service > 0)])
    if not len(used):
        return None
    for number in used:
        profile.path(trace.paths[number])  # it has it
    found = as_served(profile, [trace])
    known = {p.name: p for p in found.paths}
    return replace(
        profile, paths=tuple(known.get(p.name, p) for p in profile.paths), as_served=found.as_served
    )


def recorded_times(profile: Profile, own: Profile, trace: Trace) -> tuple[list[tuple[Array, Array]], Array]:
    """By device: when batches began and how many times the mean of `own` they took; and how many times the
    profile's mean all took."""
    found = recorded_batches(trace)
    sizes, seconds = found.sizes, found.seconds
    starts = trace.arrival[found.rows] + trace.wait[found.rows] - trace.arrival[0]
    theirs, of_profile = fleet(own), fleet(profile)
    mean, expected = np.empty(len(sizes)), np.empty(len(sizes))
    device = np.empty(len(sizes), dtype=np.int64)
    order = [d.name for d in profile.devices]
    for number, path in enumerate(profile.paths):
        mine = found.paths == path.name
        size = np.minimum(sizes[mine], path.max_size)
        mean[mine], expected[mine] = theirs.means(number)[size - 1], of_profile.means(number)[size - 1]
        device[mine] = order.index(path.device)
    by_device = []
    for number in range(len(order)):
        at = np.flatnonzero((device == number) & np.isfinite(starts))
        at = at[np.argsort(starts[at], kind="stable")]
        by_device.append((starts[at], seconds[at] / mean[at]))
    return by_device, seconds / expected


def batches_by_query(profile: Profile, trace: Trace) -> dict[str, Array]:
    """Of each query's last batch, as the simulator takes it."""
    numbers = {path.name: number for number, path in enumerate(profile.paths)}
    own = np.array([*(numbers.get(name, -1) for name in trace.paths), -1], np.int32)
    known = trace.answered & np.isfinite(trace.service) & (trace.batch_size > 0) & (trace.service > 0)
    return {
        "batch_path": np.where(known, own[trace.path], -1).astype(np.int32),
        "batch_size": trace.batch_size.astype(np.int32),
        "batch_seconds": np.where(known, trace.service, 0.0),
    }


def _percentile(result: _serving.SimulationResult, percent: float) -> float | None:
    value = float(result.percentile(percent))
    return value if value == value else None


def _mean(values: list[float | None] | list[float]) -> float | None:
    found = [v for v in values if v is not None]
    return statistics.fmean(found) if found else None


def _off(value: float | None, measured: float | None) -> float | None:
    return None if value is None or not measured else value / measured - 1
