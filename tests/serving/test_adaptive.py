"""The adaptive policy does what it is for, with nothing tuned: loads, accuracy, bursts, failures."""

import numpy as np
import pytest

from recsys_opt import _serving
from recsys_opt.serving.choices import parse_policy
from recsys_opt.serving.events import Event
from recsys_opt.serving.held import held_load
from recsys_opt.serving.simulation import Setup, run_native, simulate
from recsys_opt.serving.sizes import parse_sizes
from recsys_opt.serving.workload import make_workload, parse_arrivals
from tests.serving.profiles import cpu_gpu_profile, make_profile

PROFILE = cpu_gpu_profile()
LATE = 0.01
"""Of the queries that are admitted, at most."""
HALF = {0.01: 3700.0, 0.025: 4650.0, 0.1: 4750.0}
"""SLA -> about half of the queries a second that are held."""


def setup(sla: float, rate: float, arrivals: str = "poisson", *, queries: int = 60_000, **changes) -> Setup:
    workload = make_workload(parse_arrivals(arrivals), parse_sizes("lognormal:mean=128"), rate)
    return Setup(**{"profile": PROFILE, "workload": workload, "sla": sla, "queries": queries, **changes})


def adaptive(setting: Setup):
    return simulate(setting, parse_policy("adaptive")).summary


@pytest.mark.parametrize("sla", HALF)
@pytest.mark.parametrize("times", [2.4, 8.0])
def test_what_is_admitted_in_an_overload_is_in_time(sla, times):
    found = adaptive(setup(sla, times * HALF[sla]))
    assert found.rejected > 0.01
    assert found.late_of_admitted <= LATE
    assert found.bound_ratio >= 0.95


@pytest.mark.parametrize("sla", HALF)
def test_nothing_is_refused_below_saturation(sla):
    for times in (0.2, 1.0, 1.5):
        found = adaptive(setup(sla, times * HALF[sla]))
        assert found.rejected < 0.002
        assert found.late_of_admitted < 0.001
        assert found.bound_ratio >= 0.99


@pytest.mark.parametrize("sla", [0.025, 0.1])
def test_at_half_load_it_captures_the_gain_in_accuracy(sla):
    found = adaptive(setup(sla, HALF[sla]))
    assert found.gain_captured is not None
    assert found.bound_gain is not None
    assert found.gain_captured >= 0.95 * found.bound_gain


@pytest.mark.parametrize("sla", HALF)
@pytest.mark.parametrize("arrivals", ["mmpp:peak=3,share=0.2,dwell=1s", "diurnal:swing=0.8,period=5s"])
def test_loads_that_change(sla, arrivals):
    found = adaptive(setup(sla, HALF[sla], arrivals))
    assert found.late_of_admitted <= LATE
    assert found.in_time > 0.75


@pytest.mark.parametrize("sla", HALF)
@pytest.mark.parametrize(("device", "factor"), [("gpu", float("inf")), ("cpu", float("inf")), ("gpu", 2.0)])
def test_devices_that_fail(sla, device, factor):
    events = (Event(4.0, device, factor), Event(8.0, device, 1.0))
    found = adaptive(setup(sla, HALF[sla], events=events, queries=round(12 * HALF[sla])))
    assert found.late_of_admitted <= LATE
    least = 2 / 3 if (device, factor) == ("gpu", float("inf")) else 0.98
    assert found.in_time >= least


def test_it_holds_more_than_those_that_bind_at_arrival():
    setting = setup(0.025, 1.0, queries=20_000)
    held = {
        name: held_load(setting, parse_policy(name), runs=2, queries=10_000).load
        for name in ("adaptive", "threshold", "mp-rec")
    }
    assert held["adaptive"] >= 2 * held["threshold"]
    assert held["adaptive"] >= 3 * held["mp-rec"]


@pytest.mark.parametrize("rate", [100.0, 200.0, 300.0, 350.0])
def test_on_a_device_alone_small_batches_do_not_speak_for_fast_paths(rate):
    """They would be served at once by the fast path, and a backlog for large ones would never come."""
    profile = PROFILE.with_paths([p.name for p in PROFILE.paths if p.device == "cpu"])
    found = adaptive(setup(0.1, rate, profile=profile, queries=30_000))
    assert found.in_time > 0.99
    assert found.gain_captured > 0.55 * found.bound_gain


@pytest.mark.parametrize("workers", [1, 3])
def test_one_path_on_one_device(workers):
    profile = make_profile({"table@cpu": (0.8, 2e-4, 1e-5)}, workers={"cpu": workers})
    rate = workers / (1e-5 * 128)
    below = adaptive(setup(0.05, 0.8 * rate, profile=profile))
    assert below.in_time > 0.99
    above = adaptive(setup(0.05, 1.5 * rate, profile=profile))
    assert above.late_of_admitted <= LATE
    assert above.bound_ratio >= 0.95


def test_a_query_that_no_device_can_do_in_time_is_refused_at_once():
    profile = make_profile({"table@cpu": (0.8, 1e-3, 1e-4)})
    workload = make_workload(parse_arrivals("poisson"), parse_sizes("fixed:size=2000"), 10.0)
    found = adaptive(Setup(profile, workload, 0.05, 500))
    assert found.rejected == 1.0


def test_what_is_admitted_is_served_though_one_in_a_hundred_takes_longer_than_the_sla():
    times = np.full(100, 1e-3)
    times[-2:] = 0.1
    devices = _serving.Fleet()
    devices.add_path("table", devices.add_device("cpu", 1), 0.8, np.array([1, 128]), np.array([times, times]))
    workload = _serving.Workload.trace(np.arange(2000) * 0.02, np.ones(2000, np.int32))
    policy = _serving.make_policy("adaptive", devices, 0.025)
    found = _serving.simulate(devices, policy, workload, sla=0.025, queries=2000)
    assert found.outcomes["in_time"] > 0.7 * 2000


@pytest.mark.parametrize(
    ("sla", "rate", "spread", "least"),
    [(0.01, 8500.0, 0.6, 0.98), (0.01, 24000.0, 1.0, 0.75), (0.025, 8500.0, 1.0, 0.97)],
)
def test_times_that_vary_widely_do_not_set_late_queries_against_those_behind_them(sla, rate, spread, least):
    """A long batch makes those behind it urgent; served each alone, one after another, all would be late."""
    fast_gpu = {
        "table@gpu": (0.7879, 720e-6, 0.135e-6),
        "hybrid@gpu": (0.7898, 870e-6, 0.48e-6),
        "table@cpu": (0.7879, 300e-6, 10e-6),
        "hybrid@cpu": (0.7898, 900e-6, 35e-6),
    }
    found = adaptive(setup(sla, rate, profile=make_profile(fast_gpu, spread=spread)))
    assert found.in_time >= least


def test_the_priced_policy_trades_accuracy_for_time():
    """It holds about what the earliest finish does, and has most of the gain at half of that."""
    setting = setup(0.025, 1.0, queries=20_000)
    held = {
        name: held_load(setting, parse_policy(name), runs=2, queries=20_000).load
        for name in ("priced", "earliest-finish")
    }
    assert held["priced"] >= 0.8 * held["earliest-finish"]
    gains = [
        simulate(setting.at(rate=share * held["priced"]), parse_policy("priced")).summary.gain_captured
        for share in (0.5, 1.0)
    ]
    assert gains[0] > 0.9
    assert gains[1] < gains[0]


def test_times_between_poisson_arrivals_are_exponential():
    """Kolmogorov and Smirnov's statistic, at the level of one in a thousand; also far in the tail."""
    rate, count = 1000.0, 400_000
    setting = setup(0.1, rate, queries=count, seed=3, warmup=0)
    arrivals = run_native(setting, parse_policy("adaptive"), record=True).queries["arrival"]
    gaps = np.sort(np.diff(arrivals)) * rate
    law = -np.expm1(-gaps)
    steps = np.arange(len(gaps) + 1) / len(gaps)
    distance = max(np.abs(law - steps[1:]).max(), np.abs(law - steps[:-1]).max())
    assert distance < 1.95 / np.sqrt(len(gaps))
    for far in (5.0, 8.0):
        expected = len(gaps) * np.exp(-far)
        assert abs((gaps > far).sum() - expected) < 4.5 * np.sqrt(expected)
    # Neighbours know nothing of each other.
    between = np.diff(arrivals)
    assert abs(np.corrcoef(between[:-1], between[1:])[0, 1]) < 4.5 / np.sqrt(len(between))
