import itertools
import math

import highspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt.errors import InputError
from recsys_opt.serving.bound import (
    Coalescing,
    DeviceState,
    accuracy_bound,
    correct_bound,
    held_bound,
    sample_costs,
)
from recsys_opt.serving.linear import maximise, share_out
from recsys_opt.serving.sizes import Sizes, parse_sizes
from tests.serving.profiles import affine_times, cpu_gpu_profile, make_path, make_profile

SIZES = parse_sizes("lognormal:mean=128")


def with_highs(weight, cost, owner, supply, capacity) -> float:
    """The program of `share_out`, as HiGHS solves it."""
    if not np.isfinite(cost).any():  # a program without variables, which it does not call solved
        return 0.0
    solver = highspy.Highs()
    solver.silent()
    rows = [[] for _ in capacity]
    for n, available in enumerate(supply):
        row = []
        for p in range(len(weight)):
            if math.isfinite(cost[n, p]):
                x = solver.addVariable(lb=0, ub=1, obj=-float(available * weight[p]))
                row.append(x)
                rows[owner[p]].append(float(available * cost[n, p]) * x)
        if row:
            solver.addConstr(sum(row) <= 1)
    for terms, limit in zip(rows, capacity, strict=True):
        if terms:
            solver.addConstr(sum(terms) <= float(limit))
    solver.run()
    assert solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return -float(solver.getObjectiveValue())


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_shares_are_those_of_highs(seed):
    random = np.random.default_rng(seed)
    groups, columns, owners = random.integers(1, 12), random.integers(1, 7), random.integers(1, 4)
    weight = random.uniform(0.7, 0.8, columns)
    cost = random.lognormal(0, 1, (groups, columns)) * 1e-5
    cost[random.random(cost.shape) < 0.15] = math.inf
    owner = random.integers(0, owners, columns)
    supply = random.exponential(1e4, groups)
    capacity = random.choice([0.0, 0.1, 1.0, 4.0], owners)
    found = share_out(weight, cost, owner, supply, capacity)
    wanted = with_highs(weight, cost, owner, supply, capacity)
    assert math.isclose(found.value, wanted, rel_tol=1e-7, abs_tol=1e-6)
    assert math.isclose(found.reached, wanted, rel_tol=1e-7, abs_tol=1e-6)
    assert (found.used >= 0).all()
    assert found.used.sum() <= supply.sum() * (1 + 1e-9)
    assert (found.prices >= 0).all()


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_the_simplex_is_exact(seed):
    random = np.random.default_rng(seed)
    rows, count = random.integers(1, 6), random.integers(1, 30)
    matrix, limit = random.uniform(0.0, 1.0, (rows, count)), random.choice([0.0, 0.5, 1.0], rows)
    matrix[0] += 0.1  # bounded
    objective = random.uniform(-1, 1, count)
    x, duals = maximise(objective, matrix, limit)
    assert (x >= 0).all()
    assert (matrix @ x <= limit + 1e-9).all()
    assert (duals >= -1e-9).all()
    assert (duals @ matrix >= objective - 1e-9).all()  # dual feasible: its value bounds every other
    assert math.isclose(objective @ x, duals @ limit, abs_tol=1e-9)


def test_costs_are_the_least_time_of_a_timely_sample():
    path = make_path("table@cpu", 0.8, affine_times(1e-3, 1e-5, spread=0.5, sizes=(2, 16, 256), quantiles=8))
    for sla in (1e-4, 1e-3, 1.5e-3, 3e-3, 1.0):
        found = sample_costs(path, sla)
        assert found.shape == (256,)
        for m in (1, 2, 16, 17, 100, 255, 256):
            times = path.quantiles(m)
            timely = sum(t <= sla for t in times) / 8
            wanted = path.expected(m) / (m * timely) if timely else math.inf
            assert math.isclose(found[m - 1], wanted, rel_tol=1e-9)
    assert np.isinf(sample_costs(path, 1e-4)).all()
    once = make_path("table@cpu", 0.8, affine_times(1e-3, 1e-5, spread=0.0, sizes=(8,)))
    assert math.isclose(sample_costs(once, 1.0)[7], 1.08e-3 / 8)


def test_bounds_of_one_path_in_closed_form():
    profile = make_profile({"table@cpu": (0.8, 1e-3, 1e-5)}, spread=0.0, sizes=(1, 1000))
    sizes = parse_sizes("fixed:size=100")
    # A batch may take 2 ms: 100 samples at most, 2e-5 s each: 50,000 samples a second.
    assert math.isclose(held_bound(profile, sizes, 2e-3, share=1.0), 500.0, rel_tol=1e-9)
    assert math.isclose(held_bound(profile, sizes, 2e-3), 500.0 / 0.99, rel_tol=1e-9)
    assert math.isclose(held_bound(profile, sizes, 1.0, share=1.0), 1 / (1.1e-5 * 100), rel_tol=1e-9)
    full = correct_bound(profile, sizes, 1000.0, 2e-3)
    assert math.isclose(full.correct_per_s, 0.8 * 50_000, rel_tol=1e-9)
    assert math.isclose(full.prices["cpu"], 0.8 * 50_000, rel_tol=1e-9)
    half = correct_bound(profile, sizes, 250.0, 2e-3)
    assert math.isclose(half.correct_per_s, 0.8 * 25_000, rel_tol=1e-9)
    assert half.prices["cpu"] == 0.0
    alone = correct_bound(profile, sizes, 1e6, 1.0, coalescing=Coalescing.NONE)
    assert math.isclose(alone.correct_per_s, 0.8 * 50_000, rel_tol=1e-9)


@pytest.mark.parametrize("sla", [0.01, 0.025, 0.1])
def test_bounds_are_ordered(sla):
    profile = cpu_gpu_profile()
    held = held_bound(profile, SIZES, sla)
    before = 0.0
    for rate in (10.0, 0.1 * held, 0.5 * held, held, 2 * held):
        full = correct_bound(profile, SIZES, rate, sla)
        alone = correct_bound(profile, SIZES, rate, sla, coalescing=Coalescing.NONE)
        assert before <= alone.correct_per_s <= full.correct_per_s * (1 + 1e-9)
        assert full.correct_per_s <= 0.7898 * rate * SIZES.mean * (1 + 1e-9)
        assert full.samples_per_s <= full.offered_per_s * (1 + 1e-9)
        slower = [DeviceState("cpu", 1.0), DeviceState("gpu", 0.5), DeviceState("gpu", 0.5, 2.0)]
        fewer = correct_bound(profile, SIZES, rate, sla, states=slower).correct_per_s
        lost = correct_bound(profile, SIZES, rate, sla, states=slower[:2]).correct_per_s
        assert lost <= fewer * (1 + 1e-9) <= full.correct_per_s * (1 + 2e-9)
        before = alone.correct_per_s * (1 - 1e-9)
    best = accuracy_bound(profile, SIZES, 10.0, sla)
    assert best is not None
    assert math.isclose(best, 0.7898, abs_tol=1e-6)
    assert accuracy_bound(profile, SIZES, 1.2 * held, sla) is None
    near = accuracy_bound(profile, SIZES, 0.9 * held * SIZES.least_samples(0.99) / SIZES.mean, sla)
    assert near is not None
    assert 0.7879 <= near < best


def best_schedule(profile, queries, sla) -> float:
    """Most correct predictions inside the SLA, over every way to compute queries (arrival, size) in whole
    batches on one worker of each device, found by trying them all."""
    paths = list(profile.paths)
    devices = [d.name for d in profile.devices]

    def search(left: frozenset[int], free: tuple[float, ...]) -> float:
        best = 0.0
        for count in range(1, len(left) + 1):
            for chosen in itertools.combinations(sorted(left), count):
                size = sum(queries[i][1] for i in chosen)
                arrived = max(queries[i][0] for i in chosen)
                for path in paths:
                    if size > path.max_size:
                        continue
                    at = devices.index(path.device)
                    end = max(free[at], arrived) + path.expected(size)
                    timely = sum(queries[i][1] for i in chosen if end <= queries[i][0] + sla + 1e-12)
                    if timely:
                        then = (*free[:at], end, *free[at + 1 :])
                        best = max(best, timely * path.accuracy + search(left - set(chosen), then))
        return best

    return search(frozenset(range(len(queries))), (0.0,) * len(devices))


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_no_schedule_of_few_queries_exceeds_the_bound(seed):
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 5))
    arrivals = np.sort(random.uniform(0, random.choice([0.0, 0.003, 0.02]), count))
    arrivals -= arrivals[0]
    queries = [(float(t), int(n)) for t, n in zip(arrivals, random.integers(1, 200, count), strict=True)]
    profile = make_profile(
        {
            "table@cpu": (0.7, float(random.uniform(1e-4, 2e-3)), float(random.uniform(1e-6, 3e-5))),
            "dhe@cpu": (0.9, float(random.uniform(1e-4, 4e-3)), float(random.uniform(1e-6, 6e-5))),
            "table@gpu": (0.7, float(random.uniform(1e-3, 4e-3)), 1e-6),
        },
        spread=0.0,
        sizes=(1, 64, 1000),
    )
    sla = float(random.choice([1e-3, 4e-3, 2e-2]))
    reached = best_schedule(profile, queries, sla)
    seconds = arrivals[-1] + sla
    sizes = Sizes.of(np.array([n for _, n in queries]))
    bound = correct_bound(profile, sizes, count / seconds, sla).correct_per_s * seconds
    assert reached <= bound * (1 + 1e-9)
    alone = correct_bound(profile, sizes, count / seconds, sla, coalescing=Coalescing.NONE)
    assert alone.correct_per_s * seconds <= bound * (1 + 1e-9)


def test_the_bound_can_be_reached():
    profile = make_profile({"table@cpu": (0.8, 1e-3, 0.0)}, spread=0.0, sizes=(1, 10))
    queries = [(0.0, 10), (1e-3, 10), (2e-3, 10)]
    reached = best_schedule(profile, queries, 1e-3)
    bound = correct_bound(profile, parse_sizes("fixed:size=10"), 1000.0, 1e-3)
    assert math.isclose(reached / 3e-3, bound.correct_per_s, rel_tol=1e-9)


def test_impossible_arguments_are_refused():
    profile = cpu_gpu_profile()
    with pytest.raises(InputError, match=r"rate = 0\.0"):
        correct_bound(profile, SIZES, 0.0, 0.01)
    with pytest.raises(InputError, match="sla = nan"):
        correct_bound(profile, SIZES, 1.0, math.nan)
    with pytest.raises(InputError, match="share = 0"):
        held_bound(profile, SIZES, 0.01, share=0.0)
    assert correct_bound(profile, SIZES, 10.0, 1e-6).correct_per_s == 0.0
    assert held_bound(profile, SIZES, 1e-6) == 0.0
    assert correct_bound(profile, SIZES, 10.0, 0.01, states=[]).correct_per_s == 0.0
