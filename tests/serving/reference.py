"""The scheduler and its simulation in plain Python: slow, and as near to the definition as it gets.

Queries wait in lanes in the order of their deadlines. A free worker takes a batch from a lane as the policy
decides; a query may be split, is answered when all its samples are computed, and is given up when the policy
says so. Times are the profile's means (its quantiles must not vary). Policies see the same `View` as those of
the simulator, so that a policy written in Python runs on both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from recsys_opt import _serving
from recsys_opt.serving.profile import Profile


@dataclass
class Query:
    number: int
    arrival: float
    size: int
    deadline: float
    lane: int = -1
    computed: int = 0
    worth: float = 0.0
    start: float = math.inf
    finish: float = math.inf
    path: int = -1
    outcome: str = ""


@dataclass
class Waiting:
    query: Query
    count: int
    rank: int
    """Among those of the same deadline: who came first."""


@dataclass
class Worker:
    device: int
    up: bool = True
    batch: list[tuple[Query, int]] = field(default_factory=list)
    path: int = -1
    start: float = 0.0
    end: float = math.inf


class Reference:
    """A run: `queries` say what became of them; `log` has (start, worker, path, size) of the batches."""

    def __init__(self, profile: Profile, policy: object, sla: float, events=()) -> None:
        self.profile, self.policy, self.sla = profile, policy, sla
        self.paths = list(profile.paths)
        self.devices = list(profile.devices)
        names = [d.name for d in self.devices]
        self.device_of = [names.index(p.device) for p in self.paths]
        self.workers = [Worker(at) for at, d in enumerate(self.devices) for _ in range(d.workers)]
        self.lanes: list[list[Waiting]] = [[] for _ in range(len(self.paths) + 1)]
        self.events = list(events)
        self.now, self.wake, self.ranks = 0.0, math.inf, 0
        self.queries: list[Query] = []
        self.log: list[tuple[float, int, int, int]] = []
        self.factors = [1.0] * len(self.devices)
        # The device of the highest throughput is asked first; of its workers the one that was idle last.
        best = [
            max(p.max_size / p.expected(p.max_size) for p in self.paths if p.device == d.name)
            for d in self.devices
        ]
        self.order = sorted(range(len(self.devices)), key=lambda d: -best[d])
        self.idle = [
            [w for w in reversed(range(len(self.workers))) if self.workers[w].device == d]
            for d in range(len(self.devices))
        ]

    # What policies see.
    @property
    def shared_lane(self) -> int:
        return len(self.paths)

    @property
    def waiting_samples(self) -> int:
        return sum(w.count for lane in self.lanes for w in lane)

    def lane_samples(self, lane: int) -> int:
        return sum(w.count for w in self.lanes[lane])

    def head(self, lane: int):
        if not self.lanes[lane]:
            return None
        first = self.lanes[lane][0]
        return first.count, first.query.arrival, first.query.deadline

    def give_up_head(self, lane: int) -> None:
        query = self.lanes[lane][0].query
        query.outcome = "dropped"
        for other in self.lanes:
            other[:] = [w for w in other if w.query is not query]

    def available(self, device: int) -> int:
        return sum(w.up for w in self.workers if w.device == device)

    def expected(self, path: int, size: int) -> float:
        own = self.paths[path]
        whole, rest = divmod(size, own.max_size)
        return whole * own.expected(own.max_size) + (own.expected(rest) if rest else 0.0)

    def free_at(self, worker: int) -> float:
        own = self.workers[worker]
        if not own.batch:
            return self.now
        return max(self.now, own.start + self.expected(own.path, sum(n for _, n in own.batch)))

    def backlog(self, device: int) -> float:
        lanes = [p for p in range(len(self.paths)) if self.device_of[p] == device]
        return sum(self.expected(p, w.count) for p in lanes for w in self.lanes[p])

    # What happens.
    def run(self, arrivals, sizes) -> Reference:
        coming = [(float(t), i, int(n)) for i, (t, n) in enumerate(zip(arrivals, sizes, strict=True))]
        coming.reverse()
        while True:
            event = self.events[0][0] if self.events else math.inf
            ending = [(w.end, at) for at, w in enumerate(self.workers) if w.batch]
            completion = min(ending)[0] if ending else math.inf
            arrival = coming[-1][0] if coming else math.inf
            wake = self.wake if self.waiting_samples else math.inf
            self.now = min(event, completion, arrival, wake)
            if self.now == math.inf:
                break
            if self.now == event:
                self.happen(*self.events.pop(0)[1:])
            elif self.now == completion:
                self.complete(min(ending)[1])
            elif self.now == arrival:
                self.arrive(*coming.pop())
            self.dispatch()
        for lane in range(len(self.lanes)):
            while self.lanes[lane]:
                self.give_up_head(lane)
        return self

    def arrive(self, time: float, number: int, size: int) -> None:
        query = Query(number, time, size, time + self.sla)
        self.queries.append(query)
        query.lane = self.policy.arrive(self, size, query.deadline)
        if query.lane < 0:
            query.outcome = "rejected"
        else:
            self.wait(query, size)

    def wait(self, query: Query, count: int) -> None:
        self.ranks += 1
        lane = self.lanes[query.lane]
        lane.append(Waiting(query, count, self.ranks))
        lane.sort(key=lambda w: (w.query.deadline, w.rank))

    def dispatch(self) -> None:
        self.wake = math.inf
        for device in self.order:
            while self.idle[device] and self.waiting_samples:
                worker = self.idle[device][-1]
                decision = self.policy.start(self, worker)
                if decision.path < 0:
                    if decision.wake > self.now:
                        self.wake = min(self.wake, decision.wake)
                    break
                self.idle[device].pop()
                self.start(worker, decision.path, decision.lane, decision.samples)

    def start(self, worker: int, path: int, lane: int, samples: int) -> None:
        own, left = self.workers[worker], min(samples, self.paths[path].max_size)
        own.batch, own.path, own.start = [], path, self.now
        while left and self.lanes[lane]:
            head = self.lanes[lane][0]
            count = min(left, head.count)
            own.batch.append((head.query, count))
            head.query.start = min(head.query.start, self.now)
            head.query.path = path
            head.count -= count
            left -= count
            if not head.count:
                self.lanes[lane].pop(0)
        size = sum(n for _, n in own.batch)
        own.end = self.now + self.paths[path].expected(size) * self.factors[own.device]
        self.log.append((self.now, worker, path, size))

    def complete(self, worker: int) -> None:
        own = self.workers[worker]
        for query, count in own.batch:
            query.computed += count
            query.worth += count * self.paths[own.path].accuracy
            if query.computed == query.size and not query.outcome:
                query.finish = self.now
                in_time = self.now <= query.deadline + 1e-9 * self.sla
                query.outcome = "in_time" if in_time else "late"
        own.batch = []
        self.idle[own.device].append(worker)

    def happen(self, device: int, factor: float) -> None:
        self.factors[device] = factor
        for at, worker in enumerate(self.workers):
            if worker.device != device:
                continue
            if factor < math.inf:
                if not worker.up:
                    worker.up = True
                    self.idle[device].append(at)
                continue
            if worker.up:
                worker.up = False
                if at in self.idle[device]:
                    self.idle[device].remove(at)
            parts, worker.batch = worker.batch, []
            for query, count in parts:
                if not query.outcome:
                    self.wait(query, count)


class Binding(_serving.Policy):
    """A policy that binds a query to a path at its arrival; `choose` says to which."""

    def __init__(self, profile: Profile) -> None:
        super().__init__()
        self.paths = list(profile.paths)
        names = [d.name for d in profile.devices]
        self.device_of = [names.index(p.device) for p in self.paths]
        self.workers = [d for d, own in enumerate(profile.devices) for _ in range(own.workers)]

    def arrive(self, view, size, deadline):
        return self.choose(view, size, deadline)

    def start(self, view, worker):
        own = [
            p for p in range(len(self.paths)) if self.device_of[p] == self.workers[worker] and view.head(p)
        ]
        if not own:
            return _serving.Decision()
        path = min(own, key=lambda p: view.head(p)[2])
        return _serving.Decision(path, path, view.head(path)[0])

    def finish(self, view, path: int, size: int) -> float:
        device = self.device_of[path]
        available = view.available(device)
        if not available:
            return math.inf
        running = sum(view.free_at(w) - view.now for w, d in enumerate(self.workers) if d == device)
        return view.now + (running + view.backlog(device)) / available + view.expected(path, size)


class EarliestFinish(Binding):
    def choose(self, view, size, deadline):
        return min(range(len(self.paths)), key=lambda p: self.finish(view, p, size))


class MPRec(Binding):
    def choose(self, view, size, deadline):
        times = [self.finish(view, p, size) for p in range(len(self.paths))]
        for accuracy in sorted({p.accuracy for p in self.paths}, reverse=True):
            alike = [p for p in range(len(self.paths)) if self.paths[p].accuracy == accuracy]
            best = min(alike, key=lambda p: times[p])
            if times[best] <= deadline:
                return best
        ranked = sorted(range(len(self.paths)), key=lambda p: -self.paths[p].accuracy)
        return min(ranked, key=lambda p: times[p])


class Static(Binding):
    def __init__(self, profile: Profile, path: int) -> None:
        super().__init__(profile)
        self.path = path

    def choose(self, view, size, deadline):
        return self.path


class Threshold(Binding):
    def __init__(self, profile: Profile, small: int, large: int, size: int) -> None:
        super().__init__(profile)
        self.small, self.large, self.size = small, large, size

    def choose(self, view, size, deadline):
        return self.large if size >= self.size else self.small


class Coalescing(_serving.Policy):
    """Late binding: each worker takes up to `most` waiting samples on its device's path with `turn`; waits
    until `patience` before the head's deadline for more; gives up heads that are past it."""

    def __init__(self, profile: Profile, most: int, patience: float, turn: int) -> None:
        super().__init__()
        names = [d.name for d in profile.devices]
        own = [[p for p, path in enumerate(profile.paths) if path.device == d] for d in names]
        workers = [d for d, device in enumerate(profile.devices) for _ in range(device.workers)]
        self.path_of = [own[d][turn % len(own[d])] for d in workers]
        self.most, self.patience = most, patience

    def arrive(self, view, size, deadline):
        return -1 if view.waiting_samples > 40 * self.most else view.shared_lane

    def start(self, view, worker):
        lane = view.shared_lane
        while view.head(lane) and view.head(lane)[2] < view.now:
            view.give_up_head(lane)
        if view.head(lane) is None:
            return _serving.Decision()
        latest = view.head(lane)[2] - self.patience
        if view.lane_samples(lane) < self.most and view.now < latest:
            return _serving.Decision(-1, 0, 0, latest)
        return _serving.Decision(self.path_of[worker], lane, self.most)
