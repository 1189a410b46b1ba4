"""Profiles as a server serves them, from recorded runs."""

from dataclasses import replace

import numpy as np
import pytest

from recsys_opt.errors import InputError
from recsys_opt.serving.against import against
from recsys_opt.serving.as_served import AsServed, padded, padded_sizes
from recsys_opt.serving.calibration import as_served, recorded_batches, slowness
from recsys_opt.serving.choices import parse_policy
from recsys_opt.serving.merging import merged
from recsys_opt.serving.profile import Profile, ServiceTime, fleet
from recsys_opt.serving.simulation import Setup, simulate
from recsys_opt.serving.sizes import parse_sizes
from recsys_opt.serving.trace import State, Trace
from recsys_opt.serving.trace_of import trace_of
from recsys_opt.serving.workload import make_workload, parse_arrivals
from tests.serving.profiles import make_profile

BARE = make_profile({"table@cpu": (0.7879, 100e-6, 14e-6), "dhe@cpu": (0.7894, 300e-6, 30e-6)})
POLICY = parse_policy("static:table@cpu")


def slower(profile: Profile, fixed: float, times: float, work: AsServed) -> Profile:
    """A machine on which batches take longer, as a server's do."""

    def of(t: ServiceTime) -> ServiceTime:
        return ServiceTime(t.size, tuple(times * q + fixed for q in t.quantiles), t.runs)

    paths = tuple(replace(p, times=tuple(map(of, p.times))) for p in profile.paths)
    return replace(profile, paths=paths, as_served=work)


REAL = slower(BARE, 150e-6, 1.05, AsServed(300e-6, 0.2e-6, 120e-6))


def run(
    profile: Profile, rate: float, queries: int = 12_000, seed: int = 0, policy: str = POLICY.name
) -> Trace:
    workload = make_workload(
        parse_arrivals("poisson"), parse_sizes("lognormal:mean=128,sigma=1,max=4096"), rate
    )
    setup = Setup(profile, workload, 0.1, queries=queries, seed=seed, warmup=0)
    return trace_of(setup, simulate(setup, parse_policy(policy), record=True))


def test_a_run_says_what_the_server_adds():
    found = as_served(BARE, [run(REAL, 300.0)])
    assert [p.name for p in found.paths] == ["table@cpu"]
    assert found.as_served.query_s == pytest.approx(300e-6, rel=0.01)
    assert found.as_served.sample_s == pytest.approx(0.2e-6, rel=0.05)
    assert found.as_served.wake_s == pytest.approx(120e-6, rel=0.1)
    (path,) = found.paths
    real = REAL.path("table@cpu")
    for size in (32, 64, 128, 256, 512):
        assert path.expected(size) == pytest.approx(real.expected(size), rel=0.04), size
        assert path.quantile(size, 0.9) == pytest.approx(real.quantile(size, 0.9), rel=0.08), size
    # Sizes that were not seen have the ratio of the nearest ones.
    assert path.expected(4096) == pytest.approx(real.expected(4096), rel=0.08)


def test_a_run_says_what_an_answer_takes_for_each_before_it():
    """In a server that answers a batch's queries one after another."""
    work = AsServed(300e-6, 0.2e-6, 120e-6, 40e-6)
    found = as_served(BARE, [run(slower(BARE, 150e-6, 1.05, work), 500.0, policy="adaptive", queries=30_000)])
    assert found.as_served.answer_s == pytest.approx(40e-6, rel=0.02)
    assert found.as_served.query_s == pytest.approx(300e-6, rel=0.02)
    assert found.as_served.sample_s == pytest.approx(0.2e-6, rel=0.1)


def test_another_load_is_predicted_from_it():
    profile = as_served(BARE, [run(REAL, 300.0)])
    trace = run(REAL, 380.0, queries=20_000, seed=5)
    rows = {row.name: row for row in against(profile, POLICY, trace).rows}
    bare = {row.name: row for row in against(BARE, POLICY, trace).rows}
    assert not any("profile served" in note for note in against(BARE, POLICY, trace).notes)  # it is simulated
    measured = replace(trace, circumstances={})
    assert any("profile served" in note for note in against(BARE, POLICY, measured).notes)
    assert not any("profile served" in note for note in against(profile, POLICY, measured).notes)
    for name in ("p50", "p99", "mean"):
        assert abs(rows[name].replayed_off) < 0.01, name
        assert abs(rows[name].profiled_off) < 0.1, name
        assert bare[name].profiled_off < -0.2, name


def test_slowness_counts_what_workers_woke_for():
    for wake in (0.0, 120e-6, 1.0):  # the last more than any batch takes: still a time
        real = slower(BARE, 150e-6, 1.05, AsServed(300e-6, 0.2e-6, wake))
        found = slowness(real, run(REAL, 300.0))
        assert set(found) == {"table@cpu"}
        assert (
            found["table@cpu"] == pytest.approx(1.0, rel=0.03) if wake == 120e-6 else found["table@cpu"] > 0
        )
    assert against(real, POLICY, run(REAL, 300.0, queries=500)).rows[0].at_speed > 0


def test_batches_are_filled_up():
    assert [padded(n) for n in (1, 31, 33, 250, 257, 1025)] == [1, 31, 40, 256, 288, 1152]
    assert {padded(n) for n in range(1, 3000)} == set(padded_sizes(2999))
    bare, filled = fleet(BARE), fleet(replace(BARE, as_served=AsServed(0.0, 0.0)))
    assert filled.max_size(0) == bare.max_size(0) == 4096
    for size in (1, 32, 64, 65, 100, 257, 1000, 2049, 4095, 4096):
        full = min(padded(size), 4096)
        assert filled.expected(0, size) == pytest.approx(bare.expected(0, full)), size
        assert filled.quantile(1, size, 0.9) == pytest.approx(bare.quantile(1, full, 0.9)), size


def test_batches_are_counted_once():
    """Of queries that share a batch one says its time; it is waited for if it began as one of them came."""
    trace = Trace(
        arrival=np.array([0.0, 0.1, 0.2, 0.3]),
        size=np.array([10, 20, 30, 5]),
        state=np.array([State.ANSWERED] * 3 + [State.DROPPED]),
        latency=np.array([0.3, 0.2, 0.1, np.nan]),
        path=np.array([0, 0, 0, -1]),
        wait=np.array([0.1, 0.0, 0.05, np.nan]),
        service=np.array([0.05, 0.05, 0.02, np.nan]),
        batch=np.array([7, 7, 8, -1]),
        batch_size=np.array([30, 30, 30, 0]),
        paths=("table@cpu",),
    )
    found = recorded_batches(trace)
    assert found.sizes.tolist() == [30, 30]
    assert found.seconds.tolist() == [0.05, 0.02]
    assert found.waited_for.tolist() == [True, False]


def test_it_is_kept_and_merged(tmp_path):
    served = replace(BARE, as_served=AsServed(1e-4, 2e-7, 3e-5))
    served.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json").as_served == served.as_served
    other = make_profile({"table@gpu": (0.7879, 500e-6, 0.7e-6)})
    assert merged([other, served]).as_served == served.as_served
    with pytest.raises(InputError, match="query_s = -1"):
        AsServed(-1.0, 0.0)
    nothing = np.zeros(3)
    unknown = Trace(np.array([0, 0.1, 0.2]), nothing + 5, nothing + State.ANSWERED, nothing + 0.01)
    with pytest.raises(InputError, match="no batch of a path of this profile"):
        as_served(BARE, [unknown])
