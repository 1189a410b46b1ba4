"""Query scheduling: fleets, policies, the scheduler and its simulation. Times are seconds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class Fleet:
    """Devices, and the paths that serve a query on them, with the distribution of their times."""

    def __init__(self) -> None: ...
    def add_device(self, name: str, workers: int) -> int: ...
    def add_path(
        self, name: str, device: int, accuracy: float, sizes: NDArray[Any], quantiles: NDArray[Any]
    ) -> int:
        """A path: sizes [S] ascending, quantiles [S, Q] seconds, equally likely, ascending in each row.

        Between the sizes times are linear; below the first one they are its own; no batch is larger than
        the last.
        """
    @property
    def workers(self) -> int: ...
    @property
    def devices(self) -> list[str]: ...
    @property
    def paths(self) -> list[str]: ...
    def device_of_worker(self, worker: int) -> int: ...
    def device_of_path(self, path: int) -> int: ...
    def accuracy(self, path: int) -> float: ...
    def max_size(self, path: int) -> int: ...
    def expected(self, path: int, size: int) -> float:
        """Mean seconds of a batch."""
    def quantile(self, path: int, size: int, q: float) -> float: ...
    def means(self, path: int) -> NDArray[np.float64]:
        """Mean seconds of batches of 1 .. max_size samples."""

class View:
    """What a policy sees of the scheduler. A lane is a path's (of the same number) or the shared one."""

    @property
    def now(self) -> float: ...
    @property
    def shared_lane(self) -> int: ...
    @property
    def waiting_samples(self) -> int: ...
    @property
    def waiting_queries(self) -> int: ...
    def lane_samples(self, lane: int) -> int: ...
    def head(self, lane: int) -> tuple[int, float, float] | None:
        """Waiting samples, arrival and deadline of the lane's query with the earliest deadline."""
    def give_up_head(self, lane: int) -> None:
        """Drops that query."""
    def free_at(self, worker: int) -> float:
        """When the worker's batch is expected to end; now, if it has none or is late."""
    def backlog(self, device: int) -> float:
        """Expected seconds of what waits in the lanes of the device's paths."""
    def available(self, device: int) -> int:
        """Workers of the device that are up."""
    def expected(self, path: int, size: int) -> float:
        """Expected seconds of a batch as the device does of late; more than max_size: of several."""

class Decision:
    """A free worker's batch: `samples` from a lane on a path; or nothing (path -1) until `wake`."""

    def __init__(self, path: int = -1, lane: int = 0, samples: int = 0, wake: float = ...) -> None: ...
    @property
    def path(self) -> int: ...
    @property
    def lane(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def wake(self) -> float: ...

class Policy:
    """Which lane a query waits in, and what a free worker does. A policy of your own overrides all three."""

    def __init__(self) -> None: ...
    def begin(self, view: View) -> None:
        """A run begins."""
    def arrive(self, view: View, size: int, deadline: float) -> int:
        """The lane of a query that arrives now; -1: it is rejected."""
    def start(self, view: View, worker: int) -> Decision:
        """What a free worker does; asked again after every arrival and every batch that ends."""

def make_policy(name: str, fleet: Fleet, sla: float, **options: Any) -> Policy:
    """One of static (path=), threshold (small=, large=, size=), mp-rec, earliest-finish, priced, adaptive.

    adaptive has admit= (True): reject at its arrival what would not be done in time.
    """

class Batch:
    """What a worker is to compute: of queries[i] the `count[i]` samples from first[i] on."""

    @property
    def path(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def expected(self) -> float: ...
    @property
    def queries(self) -> list[int]: ...
    @property
    def first(self) -> list[int]: ...
    @property
    def count(self) -> list[int]: ...

class Finished:
    """A query all of whose samples are computed."""

    @property
    def query(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def accuracy(self) -> float:
        """Mean accuracy of the paths that computed its samples."""
    @property
    def arrival(self) -> float: ...
    @property
    def deadline(self) -> float: ...

class Scheduler:
    """The scheduler with a real clock (time.monotonic()), for threads. Workers begin as not available."""

    def __init__(self, fleet: Fleet, policy: Policy, *, max_waiting: int = ...) -> None: ...
    def submit(self, query: int, size: int, deadline: float) -> bool:
        """Admits a query; False: rejected (more than max_waiting samples would wait, or by the policy)."""
    def take(self, worker: int, timeout: float) -> Batch | None:
        """The worker's next batch; None after `timeout` seconds without one, or once closed."""
    def done(self, worker: int, seconds: float = ...) -> list[Finished]:
        """The worker's batch is computed: the queries that this completes.

        seconds  that it took on the device, from which policies learn how slow that is (default: since the
                 batch was given out, with all that kept the caller from take() and done())
        """
    def failed(self, worker: int) -> None:
        """The worker died: its parts wait again, and it is not available."""
    def set_worker(self, worker: int, available: bool) -> None: ...
    def drop(self, query: int) -> bool:
        """Gives up a query that waits; False: it does not."""
    def dropped(self, timeout: float) -> list[int]:
        """Queries given up since the last call; waits for one `timeout` seconds at most."""
    def close(self) -> None:
        """Ends all waiting; queries are no longer admitted."""
    @property
    def closed(self) -> bool: ...
    @property
    def wake_at(self) -> float:
        """When the policy wants to be asked again, by a `take`, though nothing happens until then; or inf."""
    def slowness(self, device: int) -> float:
        """How many times longer than profiled the device's batches take of late."""
    def statistics(self) -> dict[str, int]: ...

class SizeDistribution:
    """Query sizes (samples) by weight."""

    def __init__(self, values: NDArray[Any], weights: NDArray[Any]) -> None: ...
    @property
    def mean(self) -> float: ...

class Workload:
    """When queries arrive, and how large they are. Rates are queries a second."""

    @staticmethod
    def poisson(rate: float, sizes: SizeDistribution) -> Workload: ...
    @staticmethod
    def mmpp(rates: Sequence[float], dwell: Sequence[float], sizes: SizeDistribution) -> Workload:
        """Poisson at the rate of a state; mean seconds in each; then any other state, all alike."""
    @staticmethod
    def varying(
        times: Sequence[float], rates: Sequence[float], period: float, sizes: SizeDistribution
    ) -> Workload:
        """Poisson at a rate that is linear between times (from 0) and repeats after `period`."""
    @staticmethod
    def trace(arrivals: NDArray[Any], sizes: NDArray[Any]) -> Workload: ...
    @property
    def rate(self) -> float:
        """In the long run."""
    @property
    def queries(self) -> int | None:
        """Of a trace."""

class SimulationResult:
    """What happened to the queries after the warm-up; outcomes are in_time, late, dropped, rejected."""

    @property
    def arrived(self) -> int: ...
    @property
    def arrived_samples(self) -> int: ...
    @property
    def outcomes(self) -> dict[str, int]: ...
    @property
    def outcome_samples(self) -> dict[str, int]: ...
    @property
    def worth(self) -> float:
        """Sum over the answered samples of the accuracy of their path."""
    @property
    def worth_in_time(self) -> float: ...
    @property
    def seconds(self) -> float:
        """From the first counted arrival to the last."""
    @property
    def events(self) -> int:
        """Arrivals, batches and device events, warm-up included."""
    @property
    def wait_seconds(self) -> float:
        """Sum over queries of the time from their arrival to their first batch."""
    def percentile(self, percent: float) -> float:
        """Of the latency of answered queries, within .1 %."""
    @property
    def mean_latency(self) -> float: ...
    @property
    def max_latency(self) -> float: ...
    @property
    def busy(self) -> NDArray[np.float64]:
        """[workers] seconds."""
    @property
    def batches(self) -> NDArray[np.int64]:
        """[paths]"""
    @property
    def path_queries(self) -> NDArray[np.int64]:
        """[paths] parts of queries."""
    @property
    def path_samples(self) -> NDArray[np.int64]:
        """[paths]"""
    @property
    def class_samples(self) -> NDArray[np.int64]:
        """[paths, 32] samples of queries of 2^i .. 2^(i + 1) - 1 samples."""
    @property
    def class_outcomes(self) -> NDArray[np.int64]:
        """[outcomes, 32] queries."""
    @property
    def timeline(self) -> dict[str, NDArray[np.int64]]:
        """By bin: arrived [N], waiting_samples [N] (most), outcomes [N, 4], path_samples [N, paths]."""
    @property
    def queries(self) -> dict[str, NDArray[Any]]:
        """With record=True, by arrival, warm-up included: arrival, start, finish, size, path, outcome, batch.

        The batch is the one of `batch_records` that answered it; -1: none did.
        """
    @property
    def batch_records(self) -> dict[str, NDArray[Any]]:
        """With record=True, in the order of their starts: start, seconds, worker, path, size."""

def simulate(
    fleet: Fleet,
    policy: Policy,
    workload: Workload,
    *,
    sla: float,
    queries: int,
    seed: int = 0,
    warmup: int = 0,
    max_waiting: int = ...,
    events: Sequence[tuple[float, int, float]] = (),
    overhead: float = 0.0,
    sample_overhead: float = 0.0,
    answer_overhead: float = 0.0,
    wake: float = 0.0,
    turnaround: float = 0.0,
    bin: float = 0.0,
    record: bool = False,
    recorded: Sequence[tuple[Sequence[float], Sequence[float]]] = (),
    batch_path: NDArray[Any] = ...,
    batch_size: NDArray[Any] = ...,
    batch_seconds: NDArray[Any] = ...,
    times: Fleet | None = None,
) -> SimulationResult:
    """Serves `queries` arrivals of the workload.

    warmup      the first so many are not counted
    events      (time, device, factor): from then on its batches take so many times as long; inf: it is lost
    overhead    seconds of each query beside its wait and its batch; sample_overhead: of each of its samples;
                answer_overhead: and of each other query that its last batch answers
    wake        further seconds of a batch that a worker has waited for: it begins as one of its queries
                arrives
    turnaround  seconds of a worker between two batches
    bin         seconds of the timeline's bins; 0: no timeline
    recorded    by device: starts of batches, and how many times the mean they took, to be replayed in place
                of times drawn from the distributions
    batch_path, batch_size, batch_seconds
                by query, of the recorded batch with its last part (path -1: unknown): where a simulated batch
                is that batch again, it takes just as long
    times       whose times batches take, where these are others than the policy is to expect
    """
