"""The live scheduler under many threads: each query ends once, nobody waits for ever."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from recsys_opt import _serving
from recsys_opt.serving.profile import fleet
from tests.serving.profiles import make_profile

WORKERS = {"cpu": 2, "gpu": 2}
POLICIES = ("static", "earliest-finish", "priced", "adaptive")
JOIN_S = 60.0
"""A thread that has not ended by then never will."""


def make_fleet() -> _serving.Fleet:
    return fleet(
        make_profile(
            {
                "table@cpu": (0.70, 2e-5, 1e-7),
                "dhe@cpu": (0.75, 6e-5, 3e-7),
                "table@gpu": (0.70, 5e-5, 2e-8),
                "dhe@gpu": (0.75, 8e-5, 5e-8),
            },
            workers=WORKERS,
        )
    )


def make_policy(name: str, devices: _serving.Fleet, sla: float) -> _serving.Policy:
    if name != "static":
        return _serving.make_policy(name, devices, sla)
    return _serving.make_policy("static", devices, sla, path="table@gpu")


class Crowd:
    """Threads that submit, compute, fail and drop, and what they have seen of each query."""

    def __init__(self, policy: str, *, queries: int, submitters: int, seed: int) -> None:
        devices = make_fleet()
        self.scheduler = _serving.Scheduler(devices, make_policy(policy, devices, 0.05), max_waiting=20_000)
        self.workers = sum(WORKERS.values())
        self.queries, self.submitters, self.seed = queries, submitters, seed
        self.admitted: list[set[int]] = [set() for _ in range(submitters)]
        self.rejected: list[set[int]] = [set() for _ in range(submitters)]
        self.sizes: list[dict[int, int]] = [{} for _ in range(submitters)]
        self.finished: list[list[_serving.Finished]] = [[] for _ in range(self.workers)]
        self.given_up: list[int] = []
        self.batches = Counter[str]()
        self.errors: list[BaseException] = []
        self.submitting = submitters
        self.lock = threading.Lock()
        for worker in range(self.workers):
            self.scheduler.set_worker(worker, True)

    def submit(self, number: int) -> None:
        chance = random.Random(self.seed * 100 + number)
        for k in range(self.queries):
            query = k * self.submitters + number
            size = int(min(10_000, chance.paretovariate(1.1) * 20))
            within = chance.choice((0.002, 0.02, 0.2, 5.0))
            self.sizes[number][query] = size
            ok = self.scheduler.submit(query, size, time.monotonic() + within)
            (self.admitted if ok else self.rejected)[number].add(query)
            if chance.random() < 0.05:
                self.scheduler.drop(query - self.submitters * chance.randrange(4))
            if chance.random() < 0.02:
                time.sleep(0.001)
        with self.lock:
            self.submitting -= 1

    def compute(self, worker: int) -> None:
        chance = random.Random(self.seed * 100 + 50 + worker)
        while (batch := self.scheduler.take(worker, 0.05)) is not None or not self.over():
            if batch is None:
                continue
            assert sum(batch.count) == batch.size
            self.batches["taken"] += 1
            if chance.random() < 0.1:
                time.sleep(batch.expected)
            if chance.random() < 0.05:
                self.scheduler.failed(worker)
                self.scheduler.set_worker(worker, True)
            else:
                self.finished[worker] += self.scheduler.done(worker)

    def disturb(self) -> None:
        """Takes workers away and brings them back, and asks for figures meanwhile."""
        chance = random.Random(self.seed * 100 + 99)
        while not self.over():
            worker = chance.randrange(self.workers)
            self.scheduler.set_worker(worker, False)
            counts = self.scheduler.statistics()
            assert counts["waiting_samples"] >= counts["waiting_queries"] >= 0
            assert 0 <= counts["running_batches"] <= self.workers
            assert self.scheduler.slowness(chance.randrange(2)) > 0
            time.sleep(0.0005)
            self.scheduler.set_worker(worker, True)

    def hear(self) -> None:
        while not self.over():
            self.given_up += self.scheduler.dropped(0.01)

    def over(self) -> bool:
        if self.errors:
            return True
        if self.submitting:
            return False
        counts = self.scheduler.statistics()
        return not counts["waiting_queries"] and not counts["running_batches"]

    def run(self) -> None:
        def guarded(work: Callable[..., None], *arguments: int) -> None:
            try:
                work(*arguments)
            except BaseException as error:
                self.errors.append(error)

        jobs: list[tuple[Callable[..., None], tuple[int, ...]]] = [(self.disturb, ()), (self.hear, ())]
        jobs += [(self.submit, (n,)) for n in range(self.submitters)]
        jobs += [(self.compute, (w,)) for w in range(self.workers)]
        threads = [threading.Thread(target=guarded, args=(work, *a), daemon=True) for work, a in jobs]
        for thread in threads:
            thread.start()
        end = time.monotonic() + JOIN_S
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        if self.errors:
            raise self.errors[0]
        assert not any(t.is_alive() for t in threads), f"a deadlock: {self.scheduler.statistics()}"
        self.given_up += self.scheduler.dropped(0.0)


@pytest.mark.parametrize("policy", POLICIES)
def test_each_query_ends_once_whatever_threads_do(policy: str):
    crowd = Crowd(policy, queries=5000, submitters=4, seed=POLICIES.index(policy))
    crowd.run()
    admitted, rejected = set.union(*crowd.admitted), set.union(*crowd.rejected)
    sizes = {query: size for each in crowd.sizes for query, size in each.items()}
    assert len(admitted) + len(rejected) == len(sizes) == 5000 * 4
    finished = [f.query for each in crowd.finished for f in each]
    ends = Counter(finished) + Counter(crowd.given_up)
    assert set(ends) == admitted
    assert set(ends.values()) == {1}
    assert finished
    assert crowd.given_up
    for each in crowd.finished:
        for answer in each:
            assert answer.size == sizes[answer.query]
            assert 0.70 - 1e-9 <= answer.accuracy <= 0.75 + 1e-9
    counts = crowd.scheduler.statistics()
    assert counts["submitted"] == len(sizes)
    assert counts["rejected"] == len(rejected)
    assert counts["finished"] == len(finished)
    assert counts["given_up"] == len(crowd.given_up)
    assert counts["waiting_queries"] == counts["waiting_samples"] == counts["running_batches"] == 0
    assert counts["batches"] >= crowd.batches["taken"] > 0
    assert counts["failed_batches"] > 0


def test_close_wakes_all_who_wait():
    devices = make_fleet()
    scheduler = _serving.Scheduler(devices, _serving.make_policy("adaptive", devices, 0.05))
    found: list[object] = []
    threads = [threading.Thread(target=lambda w=w: found.append(scheduler.take(w, 600.0))) for w in range(4)]
    threads += [threading.Thread(target=lambda: found.append(scheduler.dropped(600.0))) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    assert all(thread.is_alive() for thread in threads)
    scheduler.close()
    for thread in threads:
        thread.join(JOIN_S)
        assert not thread.is_alive()
    assert sorted(map(str, found)) == ["None"] * 4 + ["[]"] * 3
    assert scheduler.closed
    assert not scheduler.submit(1, 1, time.monotonic() + 1)
    assert scheduler.take(0, 600.0) is None


def test_what_runs_when_it_closes_can_still_be_finished():
    devices = make_fleet()
    scheduler = _serving.Scheduler(devices, _serving.make_policy("earliest-finish", devices, 5.0))
    scheduler.set_worker(0, True)
    assert scheduler.submit(1, 10, time.monotonic() + 5)
    batch = scheduler.take(0, 1.0)
    assert batch is not None
    scheduler.close()
    assert [f.query for f in scheduler.done(0)] == [1]


def test_a_python_policy_is_asked_by_any_thread():
    class First(_serving.Policy):
        def arrive(self, view: _serving.View, size: int, deadline: float) -> int:
            return int(view.shared_lane)

        def start(self, view: _serving.View, worker: int) -> _serving.Decision:
            head = view.head(view.shared_lane)
            if head is None:
                return _serving.Decision()
            return _serving.Decision(path=0 if worker < 2 else 2, lane=view.shared_lane, samples=4096)

    devices = make_fleet()
    scheduler = _serving.Scheduler(devices, First())
    for worker in range(4):
        scheduler.set_worker(worker, True)
    finished: list[int] = []

    def submit(first: int) -> None:
        for query in range(first, first + 300):
            assert scheduler.submit(query, 1 + query % 5000, time.monotonic() + 60)

    def compute(worker: int) -> None:
        while (batch := scheduler.take(worker, 1.0)) is not None:
            assert batch.size == sum(batch.count)
            finished.extend(f.query for f in scheduler.done(worker))

    threads = [threading.Thread(target=submit, args=(k,), daemon=True) for k in (0, 300, 600)]
    threads += [threading.Thread(target=compute, args=(w,), daemon=True) for w in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN_S)
        assert not thread.is_alive()
    assert sorted(finished) == list(range(900))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: s.submit(1, 0, 1e18), "query 1 has 0 samples; it needs 1 at least"),
        (lambda s: s.take(4, 0.0), "there is no worker 4; there are 4"),
        (lambda s: s.take(-1, 0.0), "there is no worker -1"),
        (lambda s: s.done(0), "worker 0 has no batch"),
        (lambda s: s.failed(9), "there is no worker 9"),
        (lambda s: s.set_worker(4, True), "there is no worker 4"),
        (lambda s: s.slowness(2), "there is no device 2"),
    ],
)
def test_calls_that_make_no_sense_are_refused(call: Callable[[_serving.Scheduler], object], said: str):
    devices = make_fleet()
    scheduler = _serving.Scheduler(devices, _serving.make_policy("adaptive", devices, 0.05))
    with pytest.raises((ValueError, IndexError), match=said):
        call(scheduler)
    scheduler.set_worker(0, True)
    assert scheduler.submit(1, 10, time.monotonic() + 5)
