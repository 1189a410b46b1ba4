"""The simulator against queueing theory: waits and latencies inside 95 % confidence intervals.

One path on one device, queries in the order of their arrival, is M/G/c. Each case is simulated in independent
replications; theory's value must lie in the interval that their means give.
"""

import math
import statistics

import numpy as np
import pytest

from recsys_opt import _serving

RUNS, QUERIES, WARMUP = 16, 60_000, 6_000
T95 = 2.131  # Student's t, 15 degrees of freedom
LONG = 1e6  # an SLA that nothing misses


def exponential(count: int = 4096) -> np.ndarray:
    """Equally likely times with mean 1: each the mean of its part of the exponential distribution."""
    edges = -np.log1p(-np.arange(count) / count)
    # The integral of t exp(-t) from a to b is (a + 1) exp(-a) - (b + 1) exp(-b).
    left = (edges + 1) * np.exp(-edges)
    return np.diff(np.append(left, 0.0)) * -count


def hyperexponential() -> np.ndarray:
    """Mean 1, squared coefficient of variation about 4: many short times and a few long ones."""
    return np.sort(np.concatenate([0.25 * np.repeat(exponential(512), 3), 3.25 * exponential(512)]))


def simulate(times: np.ndarray, load: float, *, workers: int = 1, seed: int, sizes=((1,), (1.0,))) -> object:
    """times [sizes, Q] or [Q] seconds; load: of each worker, the time of one sample having the mean 1."""
    fleet = _serving.Fleet()
    device = fleet.add_device("cpu", workers)
    table = np.atleast_2d(times)
    fleet.add_path("path", device, 1.0, np.arange(1, len(table) + 1), table)
    spread = _serving.SizeDistribution(np.array(sizes[0]), np.array(sizes[1]))
    mean = sum(w * table[n - 1].mean() for n, w in zip(*sizes, strict=True))
    return _serving.simulate(
        fleet,
        _serving.make_policy("static", fleet, LONG, path="path"),
        _serving.Workload.poisson(load * workers / mean, spread),
        sla=LONG,
        queries=QUERIES + WARMUP,
        warmup=WARMUP,
        seed=seed,
    )


def check(found: list[float], theory: float) -> None:
    """Theory's value lies in the 95 % interval of the replications' mean."""
    within = T95 * statistics.stdev(found) / math.sqrt(len(found))
    assert abs(statistics.fmean(found) - theory) <= within, (statistics.fmean(found), theory, within)


def replications(times: np.ndarray, load: float, **options) -> list:
    return [simulate(times, load, seed=7919 * run + 11, **options) for run in range(RUNS)]


def wait(result) -> float:
    return result.wait_seconds / result.arrived


def pollaczek_khinchine(times: np.ndarray, weights: np.ndarray, load: float) -> float:
    """Mean wait of M/G/1: lambda E[S^2] / (2 (1 - rho))."""
    mean, second = weights @ times, weights @ times**2
    return load / mean * second / (2 * (1 - load))


def erlang_c(workers: int, load: float) -> float:
    """Probability that an arrival waits, of M/M/c."""
    offered = workers * load
    terms = [offered**k / math.factorial(k) for k in range(workers)]
    last = offered**workers / math.factorial(workers) / (1 - load)
    return last / (sum(terms) + last)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_m_m_1(load):
    runs = replications(exponential(), load)
    check([wait(r) for r in runs], load / (1 - load))
    check([r.mean_latency for r in runs], 1 / (1 - load))
    # The time in the system is exponential with the rate 1 - load.
    for percent in (25, 50, 75, 90, 95, 99):
        check([r.percentile(percent) for r in runs], -math.log(1 - percent / 100) / (1 - load))
    check([float(r.busy[0]) / r.seconds for r in runs], load)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_m_d_1(load):
    runs = replications(np.ones(1), load)
    check([wait(r) for r in runs], load / (2 * (1 - load)))
    # Who finds nobody is served at once.
    assert min(r.percentile(0) for r in runs) == pytest.approx(1.0, rel=2e-3)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_m_g_1(load):
    times = hyperexponential()
    assert times.mean() == pytest.approx(1.0)
    assert times.var() > 3.5
    runs = replications(times, load)
    check([wait(r) for r in runs], pollaczek_khinchine(times, np.full(len(times), 1 / len(times)), load))


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_m_g_1_with_sizes(load):
    sizes = ((1, 3, 10), (0.6, 0.3, 0.1))
    times = np.arange(1.0, 11.0)[:, None] * np.array([0.8, 1.0, 1.2])  # linear in the size, with a spread
    runs = replications(times, load, sizes=sizes)
    all_times = np.concatenate([times[n - 1] for n in sizes[0]])
    weights = np.repeat(np.array(sizes[1]) / 3, 3)
    check([wait(r) for r in runs], pollaczek_khinchine(all_times, weights, load))
    assert sum(r.arrived_samples for r in runs) / sum(r.arrived for r in runs) == pytest.approx(2.5, rel=0.01)


@pytest.mark.parametrize("workers", [2, 4, 16])
@pytest.mark.parametrize("load", [0.5, 0.8])
def test_m_m_c(workers, load):
    runs = replications(exponential(), load, workers=workers)
    mean = erlang_c(workers, load) / (workers * (1 - load))
    check([wait(r) for r in runs], mean)
    check([r.mean_latency for r in runs], mean + 1)
    check([float(r.busy.sum()) / (workers * r.seconds) for r in runs], load)


def test_arrivals_have_the_rates_asked_for():
    one = _serving.SizeDistribution(np.array([1]), np.array([1.0]))
    fleet = _serving.Fleet()
    fleet.add_path("path", fleet.add_device("cpu", 1), 1.0, np.array([1]), np.array([[1e-6]]))
    policy = _serving.make_policy("static", fleet, 1.0, path="path")

    def arrivals(workload, seed) -> np.ndarray:
        found = _serving.simulate(fleet, policy, workload, sla=1.0, queries=40_000, seed=seed, record=True)
        return found.queries["arrival"]

    gaps = np.diff(arrivals(_serving.Workload.poisson(100.0, one), 1))
    assert gaps.mean() == pytest.approx(0.01, rel=0.015)
    assert gaps.std() == pytest.approx(0.01, rel=0.03)
    bursty = _serving.Workload.mmpp([50.0, 500.0], [4.0, 1.0], one)
    assert bursty.rate == pytest.approx(140.0)
    spans = [arrivals(bursty, seed)[-1] for seed in range(8)]
    assert 40_000 / statistics.fmean(spans) == pytest.approx(140.0, rel=0.1)
    counts = np.bincount(arrivals(bursty, 3).astype(int))
    assert counts.var() > 20 * counts.mean()  # Poisson's are equal
    varying = _serving.Workload.varying([0.0, 5.0], [50.0, 150.0], 10.0, one)
    assert varying.rate == pytest.approx(100.0)
    phase = np.concatenate([arrivals(varying, seed) for seed in range(3)]) % 10.0
    found = np.histogram(phase, bins=10, range=(0, 10))[0] / len(phase) * 1000
    assert found == pytest.approx([60, 80, 100, 120, 140, 140, 120, 100, 80, 60], rel=0.05)


def test_runs_of_near_seeds_have_nothing_in_common():
    sizes = _serving.SizeDistribution(np.arange(1, 1025), np.ones(1024))
    fleet = _serving.Fleet()
    times = np.arange(1.0, 129.0)[None] * 1e-9  # so short that nothing waits
    fleet.add_path("path", fleet.add_device("cpu", 1), 1.0, np.array([1024]), times)
    drawn = []
    for seed in range(4):
        policy = _serving.make_policy("static", fleet, 1.0, path="path")
        workload = _serving.Workload.poisson(1.0, sizes)
        run = _serving.simulate(fleet, policy, workload, sla=1.0, queries=4000, seed=seed, record=True)
        drawn += [np.diff(run.queries["arrival"]), run.queries["size"][1:], run.batch_records["seconds"][1:]]
    ranks = [np.argsort(np.argsort(d)) / len(d) - 0.5 for d in drawn]
    for a, first in enumerate(ranks):
        for second in ranks[a:]:
            shifts = range(1 if first is second else 0, 9)
            for shift in shifts:
                both = first[shift:] * second[: len(second) - shift]
                assert abs(12 * both.mean()) < 5 / math.sqrt(len(both)), (a, shift)
