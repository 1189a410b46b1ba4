"""What the live scheduler believes of its devices' speed."""

import time

import pytest

from recsys_opt import _serving
from recsys_opt.serving.profile import fleet
from tests.serving.profiles import make_profile

SLA = 5.0  # no pause of this process makes a query late


def adaptive() -> _serving.Scheduler:
    devices = fleet(make_profile({"table@cpu": (0.7, 1e-4, 1e-6)}))
    scheduler = _serving.Scheduler(devices, _serving.make_policy("adaptive", devices, SLA))
    scheduler.set_worker(0, True)
    return scheduler


def submit(scheduler: _serving.Scheduler, query: int, size: int = 100) -> bool:
    return scheduler.submit(query, size, time.monotonic() + SLA)


def compute(scheduler: _serving.Scheduler, query: int, *seconds: float) -> None:
    assert submit(scheduler, query)
    assert scheduler.take(0, 0.0) is not None
    assert [q.query for q in scheduler.done(0, *seconds)] == [query]


def test_slowness_is_that_of_the_seconds_told():
    scheduler = adaptive()
    for query in range(40):
        compute(scheduler, query, 2 * 2e-4)  # twice what the profile says, whatever this process does between
        time.sleep(0.001)
    assert scheduler.slowness(0) == pytest.approx(2, rel=0.1)


def test_without_them_it_is_that_of_the_time_between():
    scheduler = adaptive()
    for query in range(30):
        assert submit(scheduler, query)
        assert scheduler.take(0, 0.0) is not None
        time.sleep(0.002)
        scheduler.done(0)
    assert scheduler.slowness(0) > 3


def test_a_device_that_was_too_slow_for_any_query_is_tried_again():
    scheduler = adaptive()
    query = 0
    while scheduler.submit(query, 100, time.monotonic() + SLA):
        assert scheduler.take(0, 0.0) is not None
        scheduler.done(0, 10.0)
        query += 1
        assert query < 100
    slow = scheduler.slowness(0)
    assert slow > 20
    refused = 0
    while not submit(scheduler, query):
        refused += 1
        assert refused < 100
    assert scheduler.slowness(0) < slow
    assert scheduler.take(0, 0.0) is not None  # if it is slow still, it is known again
    scheduler.done(0, 10.0)
    assert not submit(scheduler, query + 1)
