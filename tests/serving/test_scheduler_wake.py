"""A policy that lets a worker wait is asked again when it wanted to be, by callers that never block, too."""

import math
import time

from recsys_opt import _serving
from recsys_opt.serving.profile import fleet
from tests.serving.profiles import make_profile


class Patient(_serving.Policy):
    """Starts nothing until a query has waited for 30 ms."""

    def arrive(self, view: _serving.View, size: int, deadline: float) -> int:
        return int(view.shared_lane)

    def start(self, view: _serving.View, worker: int) -> _serving.Decision:
        head = view.head(view.shared_lane)
        assert head is not None
        _, arrival, _ = head
        if view.now < arrival + 0.03:
            return _serving.Decision(wake=arrival + 0.03)
        return _serving.Decision(path=0, lane=view.shared_lane, samples=1000)


def test_a_policy_that_waits_is_asked_again():
    devices = fleet(make_profile({"table@cpu": (0.7, 1e-4, 1e-6)}))
    scheduler = _serving.Scheduler(devices, Patient())
    scheduler.set_worker(0, True)
    assert scheduler.wake_at == math.inf
    now = time.monotonic()
    assert scheduler.submit(1, 10, now + 10)
    assert scheduler.submit(2, 10, now + 10)
    assert scheduler.take(0, 0.0) is None
    assert now + 0.03 <= scheduler.wake_at < now + 5
    while time.monotonic() < scheduler.wake_at:
        time.sleep(0.001)
    batch = scheduler.take(0, 0.0)
    assert batch is not None
    assert list(batch.queries) == [1, 2]
    assert [q.query for q in scheduler.done(0)] == [1, 2]
    assert scheduler.wake_at == math.inf
    assert scheduler.submit(3, 10, time.monotonic() + 10)
    assert scheduler.take(0, 5.0) is not None  # one that blocks is woken by itself
