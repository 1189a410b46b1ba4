"""The simulator in C++: equal to the plain Python one, and what must hold whatever happens."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt import _serving
from recsys_opt.serving.profile import fleet
from tests.serving import reference
from tests.serving.profiles import make_profile

POLICIES = ("static", "threshold", "mp-rec", "earliest-finish", "coalescing")
OUTCOMES = ("in_time", "late", "dropped", "rejected")


def random_profile(random: np.random.Generator, *, spread: float):
    """One to three devices with one to three paths each."""
    paths = {}
    for d in range(random.integers(1, 4)):
        for r in range(random.integers(1, 4)):
            fixed, each = random.uniform(1e-4, 2e-3), random.uniform(1e-6, 3e-5)
            paths[f"p{r}@d{d}"] = (float(random.uniform(0.7, 0.8)), float(fixed), float(each))
    devices = dict.fromkeys(name.partition("@")[2] for name in paths)
    workers = {d: int(random.integers(1, 4)) for d in devices}
    return make_profile(paths, workers=workers, spread=spread, sizes=(1, 50, 300), quantiles=16)


def random_queries(random: np.random.Generator, count: int, rate: float):
    arrivals = np.cumsum(random.exponential(1 / rate, count))
    return arrivals - arrivals[0], random.choice([1, 7, 40, 130, 299, 300, 301, 900], count)


def random_events(random: np.random.Generator, profile, span: float):
    """Devices are lost and come back, are slow and well again; the last event leaves all well."""
    events = []
    for device in range(len(profile.devices)):
        times = np.sort(random.uniform(0, span, 2 * random.integers(0, 3)))
        for begin, end in times.reshape(-1, 2):
            events += [(begin, device, float(random.choice([math.inf, 0.5, 3.0]))), (end, device, 1.0)]
    return sorted(events)


def both_policies(name: str, profile, devices, sla: float, random: np.random.Generator):
    """A policy of the simulator's and the same one in plain Python."""
    first, last = 0, len(profile.paths) - 1
    names = [p.name for p in profile.paths]
    if name == "static":
        return (
            _serving.make_policy(name, devices, sla, path=names[last]),
            reference.Static(profile, last),
        )
    if name == "threshold":
        return (
            _serving.make_policy(name, devices, sla, small=names[first], large=names[last], size=100),
            reference.Threshold(profile, first, last, 100),
        )
    if name == "coalescing":
        settings = (int(random.integers(1, 600)), float(random.uniform(0, sla)), int(random.integers(0, 3)))
        return reference.Coalescing(profile, *settings), reference.Coalescing(profile, *settings)
    own = {"mp-rec": reference.MPRec, "earliest-finish": reference.EarliestFinish}[name]
    return _serving.make_policy(name, devices, sla), own(profile)


@settings(max_examples=60)
@given(st.sampled_from(POLICIES), st.integers(0, 2**32 - 1))
def test_small_cases_equal_the_plain_simulation(name, seed):
    random = np.random.default_rng(seed)
    profile = random_profile(random, spread=0.0)
    devices = fleet(profile)
    sla = float(random.choice([0.004, 0.02, 0.2]))
    arrivals, sizes = random_queries(random, 150, float(random.choice([300.0, 2000.0])))
    # Policies that look ahead reckon with how slow a device was of late, which the plain one does not model.
    looks_ahead = name in ("mp-rec", "earliest-finish")
    events = [] if looks_ahead else random_events(random, profile, arrivals[-1])
    own, plain = both_policies(name, profile, devices, sla, random)
    found = _serving.simulate(
        devices,
        own,
        _serving.Workload.trace(arrivals, sizes.astype(np.int32)),
        sla=sla,
        queries=len(arrivals),
        events=events,
        record=True,
    )
    wanted = reference.Reference(profile, plain, sla, events).run(arrivals, sizes)
    queries = found.queries
    assert [OUTCOMES[o] for o in queries["outcome"]] == [q.outcome for q in wanted.queries]
    assert queries["path"].tolist() == [q.path for q in wanted.queries]
    np.testing.assert_allclose(queries["start"], [q.start for q in wanted.queries], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(queries["finish"], [q.finish for q in wanted.queries], rtol=1e-12, atol=1e-12)
    batches = found.batch_records
    assert list(zip(*(batches[k].tolist() for k in ("worker", "path", "size")), strict=True)) == [
        b[1:] for b in wanted.log
    ]
    np.testing.assert_allclose(batches["start"], [b[0] for b in wanted.log], rtol=1e-12, atol=1e-12)
    worth = sum(q.worth for q in wanted.queries if q.outcome in ("in_time", "late"))
    assert found.worth == pytest.approx(worth)


def any_policy(name: str, profile, devices, sla: float, random: np.random.Generator):
    if name in ("adaptive", "priced"):
        return _serving.make_policy(name, devices, sla)
    return both_policies(name, profile, devices, sla, random)[0]


@settings(max_examples=80)
@given(st.sampled_from((*POLICIES, "adaptive", "priced")), st.integers(0, 2**32 - 1))
def test_what_must_hold_whatever_happens(name, seed):
    random = np.random.default_rng(seed)
    profile = random_profile(random, spread=0.3)
    devices = fleet(profile)
    sla = float(random.choice([0.004, 0.02, 0.2]))
    arrivals, sizes = random_queries(random, 400, float(random.choice([300.0, 2000.0, 20000.0])))
    events = random_events(random, profile, arrivals[-1])
    workload = _serving.Workload.trace(arrivals, sizes.astype(np.int32))
    setting = {"sla": sla, "queries": 400, "seed": seed, "events": events, "record": True, "bin": sla}
    setting["max_waiting"] = int(random.choice([500, 1 << 40]))
    policy_seed = int(random.integers(1 << 30))

    def run():
        policy = any_policy(name, profile, devices, sla, np.random.default_rng(policy_seed))
        return _serving.simulate(devices, policy, workload, **setting)

    found, again = run(), run()
    queries, batches = found.queries, found.batch_records
    # Same seed, same result.
    for key, values in queries.items():
        np.testing.assert_array_equal(values, again.queries[key])
    np.testing.assert_array_equal(batches["seconds"], again.batch_records["seconds"])
    # Every query is answered once, or counted as dropped or rejected.
    counts = np.bincount(queries["outcome"], minlength=4)
    assert dict(zip(OUTCOMES, counts.tolist(), strict=True)) == found.outcomes
    assert found.arrived == sum(found.outcomes.values()) == 400
    assert found.arrived_samples == sum(found.outcome_samples.values()) == sizes.sum()
    answered = queries["outcome"] < 2
    assert np.isfinite(queries["finish"]).tolist() == answered.tolist()
    assert np.isinf(queries["start"][queries["outcome"] == 3]).all()
    timeline = found.timeline
    assert timeline["arrived"].sum() == 400
    assert timeline["outcomes"].sum(axis=0).tolist() == counts.tolist()
    assert timeline["path_samples"].sum() == found.path_samples.sum() == batches["size"].sum()
    # In the order of time: nothing begins before it arrives, or is answered before its shortest batch.
    assert (np.diff(batches["start"]) >= 0).all()
    started = np.isfinite(queries["start"])
    assert (queries["start"] >= queries["arrival"])[started].all()
    shortest = min(p.quantiles(1)[0] for p in profile.paths) * 0.5  # an event may double the speed
    taken = queries["finish"][answered] - queries["start"][answered]
    assert (taken >= shortest * (1 - 1e-9)).all()
    late = queries["finish"] > queries["arrival"] + sla * (1 + 1e-6)
    assert (late == (queries["outcome"] == 1))[answered].all()
    # A worker computes one batch at a time, on paths of its device, none larger than the path takes.
    lost = [(t, d) for t, d, factor in events if factor == math.inf]
    for worker in range(devices.workers):
        own = batches["worker"] == worker
        device = devices.device_of_worker(worker)
        assert {devices.device_of_path(p) for p in batches["path"][own].tolist()} <= {device}
        ends = batches["start"][own] + batches["seconds"][own]
        for moment, d in lost:
            running = (batches["start"][own] < moment) & (ends > moment) & (d == device)
            ends[running] = moment
        assert (batches["start"][own][1:] >= ends[:-1] - 1e-12).all()
    assert (batches["size"] <= 300).all()
    # Samples are computed once, but for those of batches that were lost.
    computed = int(found.path_samples.sum())
    if not lost:
        assert computed <= sizes.sum()
    assert computed >= sizes[answered].sum()
    assert 0.7 * sizes[answered].sum() - 1e-6 <= found.worth <= 0.8 * sizes[answered].sum() + 1e-6
    assert found.worth_in_time <= found.worth + 1e-9
    assert (found.busy <= found.seconds * (1 + 1e-9)).all()


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_the_earliest_deadline_is_first(seed):
    """The scheduler that the simulator drives, fed with deadlines that do not come in order."""
    random = np.random.default_rng(seed)
    profile = make_profile({"table@cpu": (0.8, 1e-3, 1e-5)}, sizes=(1, 300))
    devices = fleet(profile)
    scheduler = _serving.Scheduler(devices, reference.Coalescing(profile, 10, 1e6, 0))
    deadlines = time.monotonic() + 1e4 + random.integers(0, 40, 60).astype(float)
    for query, deadline in enumerate(deadlines.tolist()):
        assert scheduler.submit(query, int(random.integers(1, 4)), deadline)
    scheduler.set_worker(0, True)
    served = []
    while len(served) < 60:
        batch = scheduler.take(0, 10.0)
        assert batch is not None
        served += [f.query for f in scheduler.done(0)]
    scheduler.close()
    assert served == sorted(range(60), key=lambda query: (deadlines[query], query))


@settings(max_examples=25)
@given(st.sampled_from(("static", "earliest-finish", "adaptive")), st.integers(0, 2**32 - 1))
def test_a_faster_machine_is_no_worse(name, seed):
    """All times halved, the same arrivals and random numbers: on the whole not later, and more in time."""
    random = np.random.default_rng(seed)
    fixed, each = float(random.uniform(2e-4, 2e-3)), float(random.uniform(1e-6, 2e-5))
    arrivals, sizes = random_queries(random, 2000, float(random.uniform(100.0, 2000.0)))
    workload = _serving.Workload.trace(arrivals, sizes.astype(np.int32))
    shares, means = [], []
    for speed in (1.0, 2.0, 4.0):
        profile = make_profile({"table@cpu": (0.8, fixed / speed, each / speed)}, sizes=(1, 300))
        devices = fleet(profile)
        options = {"path": "table@cpu"} if name == "static" else {}
        policy = _serving.make_policy(name, devices, 0.02, **options)
        found = _serving.simulate(devices, policy, workload, sla=0.02, queries=2000, seed=seed)
        shares.append(found.outcomes["in_time"])
        means.append(found.mean_latency)
    assert shares == sorted(shares)
    if name != "adaptive":  # which has patience
        assert means == sorted(means, reverse=True)


def test_a_slow_device_takes_longer_and_a_lost_one_nothing():
    profile = make_profile({"table@cpu": (0.8, 1e-3, 1e-5)}, spread=0.0, sizes=(1, 300))
    devices = fleet(profile)
    policy = _serving.make_policy("static", devices, 1.0, path="table@cpu")
    arrivals, sizes = np.array([0.0, 1.0, 2.0, 3.0]), np.full(4, 100, np.int32)
    events = [(0.5, 0, 3.0), (1.5, 0, math.inf), (2.5, 0, 1.0)]
    found = _serving.simulate(
        devices,
        policy,
        _serving.Workload.trace(arrivals, sizes),
        sla=1.0,
        queries=4,
        events=events,
        record=True,
    )
    latency = found.queries["finish"] - found.queries["arrival"]
    np.testing.assert_allclose(latency, [2e-3, 6e-3, 0.502, 2e-3], rtol=1e-9)
    # Lost for good with queries that wait: they are given up, once.
    found = _serving.simulate(
        devices,
        policy,
        _serving.Workload.trace(arrivals, sizes),
        sla=1.0,
        queries=4,
        events=[(1.001, 0, math.inf)],
    )
    assert found.outcomes == {"in_time": 1, "late": 0, "dropped": 3, "rejected": 0}


def test_what_has_time_is_not_given_up_because_large_batches_are_slow():
    """In an overload adaptive gives up what fits into small batches alone: a size that is less efficient than
    smaller ones makes none of those small."""
    devices = _serving.Fleet()
    sizes, seconds = np.array([1, 1024, 4096]), np.array([[1e-4], [0.01], [0.08]])
    devices.add_path("table", devices.add_device("cpu", 1), 0.75, sizes, seconds)
    policy = _serving.make_policy("adaptive", devices, 0.025)
    workload = _serving.Workload.trace(np.linspace(0, 0.01, 100), np.full(100, 128, np.int32))
    result = _serving.simulate(devices, policy, workload, sla=30.0, queries=100)
    assert result.outcomes == {"in_time": 100, "late": 0, "dropped": 0, "rejected": 0}
