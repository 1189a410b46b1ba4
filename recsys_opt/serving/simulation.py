"""What a policy does to a workload on a profile's devices, by discrete-event simulation.

The scheduler and the policies are those of the server (`recsys_opt._serving`); only the clock is simulated,
and the times of batches are drawn from the profile, or those of a recorded run.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_opt import _serving
from recsys_opt.errors import InputError
from recsys_opt.serving.as_served import AsServed
from recsys_opt.serving.events import Event, native_events
from recsys_opt.serving.profile import Profile, fleet
from recsys_opt.serving.windows import run_bound, windows
from recsys_opt.serving.workload import Bursty, Diurnal, Poisson, Recorded, Workload

Array = NDArray[Any]
QUERIES = 500_000
"""Of a simulation, unless somebody wants more."""
WARMUP = 0.05
"""Share of the queries that come before those that are counted."""


@dataclass(frozen=True)
class Policy:
    """A policy by name; each run makes one anew."""

    name: str
    make: Callable[[_serving.Fleet, Setup], _serving.Policy]
    """For a fleet and what is simulated on it."""


@dataclass(frozen=True)
class Setup:
    """What is simulated, but for the policy."""

    profile: Profile
    workload: Workload
    sla: float
    """Seconds in which each query is to be answered."""
    queries: int = QUERIES
    seed: int = 0
    warmup: int | None = None
    """Queries that come before those counted; None: a twentieth, or none where there are events."""
    events: tuple[Event, ...] = ()
    max_waiting: int = 1 << 40
    """Samples that may wait."""
    overhead: float | None = None
    """Seconds that each query takes beside its wait and its batch: the network's and the server's work. None:
    what the profile says, if its times are as served, else none."""
    turnaround: float = 0.0
    """Seconds of a worker between two batches."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sla) and self.sla > 0):
            raise InputError(f"an SLA of {self.sla} s; it must be above 0")
        if self.queries < 1:
            raise InputError(f"{self.queries} queries; simulate at least 1")
        for name in ("overhead", "turnaround"):
            if not 0 <= (getattr(self, name) or 0.0) < math.inf:
                raise InputError(f"{name} = {getattr(self, name)}; it must be 0 s or more")
        if self.warmup is not None and not 0 <= self.warmup < self.queries:
            raise InputError(f"warmup = {self.warmup}; it must be less than the {self.queries} queries")
        for event in self.events:
            self.profile.device(event.device)

    @property
    def warmup_queries(self) -> int:
        """Queries that are not counted."""
        if self.warmup is not None:
            return self.warmup
        recorded = isinstance(self.workload.arrivals, Recorded)
        return 0 if self.events or recorded else int(self.queries * WARMUP)

    @property
    def overheads(self) -> AsServed:
        """What queries take beside wait and batch."""
        known = self.profile.as_served
        if self.overhead is not None or known is None:
            return AsServed(self.overhead or 0.0, 0.0)
        return known

    def at(self, **changes: Any) -> Setup:
        """The same but for some fields; `rate` is the workload's."""
        rate = changes.pop("rate", None)
        workload = self.workload if rate is None else self.workload.at_rate(rate)
        return replace(self, **{"workload": workload, **changes})


@dataclass(frozen=True)
class Summary:
    """What came of a simulation; shares are of the queries that arrived."""

    policy: str
    load: float
    """Queries a second that arrived."""
    sla: float
    queries: int
    seconds: float
    samples_per_s: float
    """That arrived."""
    p50: float | None
    """Seconds from arrival to answer, of those answered; None: none was."""
    p95: float | None
    p99: float | None
    p999: float | None
    mean: float | None
    in_time: float
    late: float
    dropped: float
    rejected: float
    late_of_admitted: float
    """Of those that were not rejected: answered late, or dropped."""
    accuracy: float | None
    """Mean over the samples answered."""
    gain_captured: float | None
    """(accuracy - the table's) / (the best path's - the table's); None: no path is better than the table."""
    correct_per_s: float
    """Correct predictions inside the SLA."""
    utilisation: dict[str, float]
    path_samples: dict[str, float]
    """Share of the samples computed by each path."""
    mean_batch: dict[str, float]
    """Samples of a batch, by path."""
    bound_correct_per_s: float
    """What no policy can exceed."""
    bound_ratio: float
    bound_gain: float | None
    """Gain captured at most where all samples are answered in time; None: not all can be."""
    not_batched_bound_correct_per_s: float
    """What no policy without coalescing can exceed."""

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Run:
    """A simulation's summary and everything else that was counted."""

    summary: Summary
    result: _serving.SimulationResult


def simulate(
    setup: Setup,
    policy: Policy,
    *,
    record: bool = False,
    bin_seconds: float = 0.0,
    recorded: Sequence[tuple[Array, Array]] = (),
) -> Run:
    """Simulates a policy.

    record       keeps each query and each batch
    bin_seconds  of a timeline; 0: none
    recorded     by device: times at which batches began, ascending, and how many times the profile's mean
                 they took; replayed instead of drawn times
    """
    result = run_native(setup, policy, record=record, bin_seconds=bin_seconds, recorded=recorded)
    return Run(summarise(setup, policy.name, result), result)


def run_native(
    setup: Setup,
    policy: Policy,
    *,
    record: bool = False,
    bin_seconds: float = 0.0,
    recorded: Sequence[tuple[Array, Array]] = (),
    batches: Mapping[str, Array] | None = None,
    times: Profile | None = None,
    overheads: AsServed | None = None,
) -> _serving.SimulationResult:
    """What the simulator counted, as it is.

    batches    recorded ones by query: batch_path, batch_size, batch_seconds of `_serving.simulate`
    times      whose times batches take, where these are others than the policy is to expect
    overheads  None: the setup's
    """
    devices = fleet(setup.profile)
    beside = overheads or setup.overheads
    served = (times or setup.profile).as_served
    workload = native_workload(setup.workload, setup.queries, setup.seed)
    own = policy.make(devices, setup)
    simulate = functools.partial(
        _serving.simulate,
        devices,
        own,
        workload,
        sla=setup.sla,
        queries=setup.queries,
        seed=setup.seed,
        warmup=setup.warmup_queries,
        max_waiting=setup.max_waiting,
        events=native_events(setup.events, setup.profile),
        overhead=beside.query_s,
        sample_overhead=beside.sample_s,
        answer_overhead=beside.answer_s,
        wake=0.0 if served is None else served.wake_s,
        turnaround=setup.turnaround,
        bin=bin_seconds,
        record=record,
        recorded=[(starts.tolist(), ratios.tolist()) for starts, ratios in recorded],
        times=None if times is None else fleet(times),
        **(batches or {}),
    )
    try:
        return simulate()
    except (ValueError, IndexError) as error:  # what a policy asked for cannot be
        raise InputError(f"policy {policy.name}: {error}; mend it") from error


def native_workload(workload: Workload, queries: int, seed: int) -> _serving.Workload:
    """The workload as the simulator takes it."""
    arrivals = workload.arrivals
    sizes = _serving.SizeDistribution(workload.sizes.values, workload.sizes.weights)
    if isinstance(arrivals, Recorded):
        times = arrivals.arrivals[:queries]
        given = arrivals.sizes
        if given is None:
            given = workload.sizes.draw(len(times), np.random.default_rng(seed))
        return _serving.Workload.trace(times, given[: len(times)].astype(np.int32))
    if isinstance(arrivals, Bursty):
        return _serving.Workload.mmpp(list(arrivals.rates()), list(arrivals.dwells()), sizes)
    if isinstance(arrivals, Diurnal):
        times, rates = arrivals.curve()
        return _serving.Workload.varying(times.tolist(), rates.tolist(), arrivals.period, sizes)
    assert isinstance(arrivals, Poisson)
    return _serving.Workload.poisson(workload.rate, sizes)


def table_accuracy(profile: Profile) -> float:
    """What the gain is counted from: of the least accurate path of plain tables (or of any, without one)."""
    tables = [p.accuracy for p in profile.paths if p.representation == "table"]
    return min(tables or [p.accuracy for p in profile.paths])


def gain(profile: Profile, accuracy: float | None) -> float | None:
    """The share of the best path's gain over the table that an accuracy is."""
    table, best = table_accuracy(profile), max(p.accuracy for p in profile.paths)
    return None if accuracy is None or best <= table else (accuracy - table) / (best - table)


def in_time_share(result: _serving.SimulationResult) -> float:
    """Of the queries that arrived."""
    return result.outcomes["in_time"] / max(result.arrived, 1)


def summarise(setup: Setup, policy: str, result: _serving.SimulationResult) -> Summary:
    """The figures that matter."""
    profile, outcomes, samples = setup.profile, result.outcomes, result.outcome_samples
    arrived, span = max(result.arrived, 1), max(result.seconds, 1e-9)
    answered = outcomes["in_time"] + outcomes["late"]
    answered_samples = samples["in_time"] + samples["late"]
    accuracy = result.worth / answered_samples if answered_samples else None
    load = max(result.arrived - 1, 1) / span
    offered = result.arrived_samples / arrived * load
    rate = offered / setup.workload.sizes.mean
    stretches = windows(
        setup.workload.arrivals, setup.events, profile, setup.warmup_queries / load + span, setup.sla
    )
    bound = run_bound(profile, setup.workload.sizes, rate, setup.sla, stretches)
    correct = result.worth_in_time / arrived * load
    total = max(int(result.path_samples.sum()), 1)
    names = [p.name for p in profile.paths]

    def percentile(q: float) -> float | None:
        return float(result.percentile(q)) if answered else None

    return Summary(
        policy=policy,
        load=load,
        sla=setup.sla,
        queries=result.arrived,
        seconds=span,
        samples_per_s=offered,
        p50=percentile(50),
        p95=percentile(95),
        p99=percentile(99),
        p999=percentile(99.9),
        mean=float(result.mean_latency) if answered else None,
        in_time=outcomes["in_time"] / arrived,
        late=outcomes["late"] / arrived,
        dropped=outcomes["dropped"] / arrived,
        rejected=outcomes["rejected"] / arrived,
        late_of_admitted=(outcomes["late"] + outcomes["dropped"]) / max(arrived - outcomes["rejected"], 1),
        accuracy=accuracy,
        gain_captured=gain(profile, accuracy),
        correct_per_s=correct,
        utilisation=_utilisation(profile, result.busy, span),
        path_samples={n: int(s) / total for n, s in zip(names, result.path_samples, strict=True)},
        mean_batch={
            n: int(s) / int(b)
            for n, s, b in zip(names, result.path_samples, result.batches, strict=True)
            if b
        },
        bound_correct_per_s=bound.correct_per_s,
        bound_ratio=correct / bound.correct_per_s if bound.correct_per_s else 1.0,
        bound_gain=gain(profile, bound.accuracy),
        not_batched_bound_correct_per_s=bound.not_batched_correct_per_s,
    )


def _utilisation(profile: Profile, busy: Array, span: float) -> dict[str, float]:
    shares, first = {}, 0
    for device in profile.devices:
        shares[device.name] = float(busy[first : first + device.workers].sum()) / (device.workers * span)
        first += device.workers
    return shares
