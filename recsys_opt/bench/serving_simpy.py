"""Queues and batches simulated with SimPy, to time the simulator beside it.

The models are written the way SimPy's documentation does it: a process for each query and each worker. That
of batches does what the simulator does with the adaptive policy, by simpler rules: queries wait in the order
of their deadlines, those that cannot be in time are given up, batches hold parts of several queries and take
at most a share of the SLA, the path is chosen by what waits, and outcomes, samples and latencies are counted.
"""

from __future__ import annotations

import heapq
import importlib
import importlib.util
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from recsys_opt.errors import InputError


def single_queue(queries: int, load: float, seed: int) -> list[float]:
    """M/M/1, mean service 1: the latencies."""
    simpy = _simpy()
    environment = simpy.Environment()
    server = simpy.Resource(environment, capacity=1)
    draws = random.Random(seed)
    latencies: list[float] = []

    def query() -> Any:
        arrival = environment.now
        with server.request() as turn:
            yield turn
            yield environment.timeout(draws.expovariate(1.0))
        latencies.append(environment.now - arrival)

    def arrivals() -> Any:
        for _ in range(queries):
            yield environment.timeout(draws.expovariate(load))
            environment.process(query())

    environment.process(arrivals())
    environment.run()
    return latencies


@dataclass
class Query:
    """One query, until it is answered or given up."""

    deadline: float
    number: int
    arrival: float
    size: int
    left: int
    """Samples that wait."""
    running: int
    done: Any
    """SimPy's event of its end."""

    def __lt__(self, other: Query) -> bool:
        return (self.deadline, self.number) < (other.deadline, other.number)


@dataclass(frozen=True)
class Path:
    """Times of a device's path: (fixed + each * samples) * one of the factors."""

    device: str
    name: str
    accuracy: float
    fixed: float
    each: float
    factors: Sequence[float]


@dataclass
class Counts:
    """What is counted of a run."""

    latencies: list[float] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=lambda: {"in_time": 0, "late": 0, "dropped": 0})
    worth: float = 0.0
    path_samples: dict[str, int] = field(default_factory=dict)
    class_samples: dict[tuple[str, int], int] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)


class Batches:
    """Late binding and coalescing on one worker for each device."""

    def __init__(self, paths: Sequence[Path], sla: float) -> None:
        self._environment = _simpy().Environment()
        self._paths, self._sla = paths, sla
        self._waiting: list[Query] = []
        self._samples = 0
        self._idle: list[Any] = []
        self._over = False
        self.counts = Counts()

    def run(self, queries: int, rate: float, sizes: Sequence[int], seed: int) -> Counts:
        """Queries of sizes that are each as likely."""
        draws = random.Random(seed)
        for device in dict.fromkeys(p.device for p in self._paths):
            own = [p for p in self._paths if p.device == device]
            self._environment.process(self._worker(own, draws))
        self._environment.process(self._arrivals(queries, rate, sizes, draws))
        self._environment.run()
        return self.counts

    def _arrivals(self, queries: int, rate: float, sizes: Sequence[int], draws: random.Random) -> Any:
        for number in range(queries):
            yield self._environment.timeout(draws.expovariate(rate))
            self._environment.process(self._query(number, draws.choice(sizes)))
        self._over = True

    def _query(self, number: int, size: int) -> Any:
        now = self._environment.now
        query = Query(now + self._sla, number, now, size, size, 0, self._environment.event())
        heapq.heappush(self._waiting, query)
        self._samples += size
        if self._idle:
            self._idle.pop().succeed()
        answered = yield query.done
        counts = self.counts
        if not answered:
            counts.outcomes["dropped"] += 1
            return
        latency = self._environment.now - now
        counts.latencies.append(latency)
        counts.outcomes["in_time" if latency <= self._sla else "late"] += 1

    def _worker(self, paths: Sequence[Path], draws: random.Random) -> Any:
        environment, counts = self._environment, self.counts
        while True:
            self._give_up(paths)
            if not self._waiting:
                if self._over:
                    for wake in self._idle:
                        wake.succeed()
                    self._idle.clear()
                    return
                wake = environment.event()
                self._idle.append(wake)
                yield wake
                continue
            path = self._choose(paths)
            parts, size = self._take(max(1, int((self._sla / 2 - path.fixed) / path.each)))
            seconds = (path.fixed + path.each * size) * draws.choice(path.factors)
            yield environment.timeout(seconds)
            counts.busy[path.device] = counts.busy.get(path.device, 0.0) + seconds
            counts.path_samples[path.name] = counts.path_samples.get(path.name, 0) + size
            for query, count in parts:
                kind = (path.name, query.size.bit_length())
                counts.class_samples[kind] = counts.class_samples.get(kind, 0) + count
                counts.worth += count * path.accuracy
                query.running -= count
                if not query.left and not query.running:
                    query.done.succeed(True)

    def _give_up(self, paths: Sequence[Path]) -> None:
        while self._waiting:
            head = self._waiting[0]
            least = min(p.fixed + p.each * head.left for p in paths)
            if self._environment.now + least <= head.deadline or head.left < head.size:
                return
            heapq.heappop(self._waiting)
            self._samples -= head.left
            head.done.succeed(False)

    def _choose(self, paths: Sequence[Path]) -> Path:
        """The most accurate path that works the backlog off in a third of the SLA, or the fastest."""
        rated = sorted(paths, key=lambda p: -p.accuracy)
        for path in rated:
            if path.fixed + path.each * self._samples <= self._sla / 3:
                return path
        return min(paths, key=lambda p: p.each)

    def _take(self, most: int) -> tuple[list[tuple[Query, int]], int]:
        parts, size = [], 0
        while self._waiting and size < most:
            head = self._waiting[0]
            count = min(head.left, most - size)
            parts.append((head, count))
            size += count
            head.left -= count
            head.running += count
            if not head.left:
                heapq.heappop(self._waiting)
        self._samples -= size
        return parts, size


def _simpy() -> Any:
    if importlib.util.find_spec("simpy") is None:
        raise InputError("simpy is not installed: pip install simpy")
    return importlib.import_module("simpy")
