"""Simulations of policies on profiles: figures, loads held, sweeps, failures, recorded runs."""

import math

import numpy as np
import pytest

from recsys_opt.errors import InputError
from recsys_opt.serving.against import against, own_times, recorded_times
from recsys_opt.serving.bound import DeviceState
from recsys_opt.serving.calibration import slowed
from recsys_opt.serving.choices import (
    parse_policy,
    python_policy,
    static,
    table_pair,
    threshold,
    tune_threshold,
)
from recsys_opt.serving.events import Event, device_states, parse_event
from recsys_opt.serving.held import held_load
from recsys_opt.serving.simulation import Run, Setup, gain, in_time_share, run_native, simulate, summarise
from recsys_opt.serving.sizes import parse_sizes
from recsys_opt.serving.sweep import parse_sweep, size_choices, sweep, timeline
from recsys_opt.serving.trace import State, Trace
from recsys_opt.serving.trace_of import trace_of
from recsys_opt.serving.workload import Recorded, Workload, make_workload, parse_arrivals
from tests.serving.profiles import cpu_gpu_profile, make_profile

PROFILE = cpu_gpu_profile()


def setup(arrivals="poisson:rate=1000", sizes="lognormal:mean=128", **changes) -> Setup:
    workload = make_workload(parse_arrivals(arrivals), parse_sizes(sizes))
    return Setup(**{"profile": PROFILE, "workload": workload, "sla": 0.025, "queries": 20_000, **changes})


def test_figures_of_a_simulation_agree_with_each_other():
    run = simulate(setup(), parse_policy("adaptive"))
    found = run.summary
    assert found.queries == 19_000
    assert found.load == pytest.approx(1000, rel=0.03)
    assert found.samples_per_s == pytest.approx(128 * found.load, rel=0.05)
    assert found.p50 < found.p95 < found.p99 < found.p999
    assert found.in_time + found.late + found.dropped + found.rejected == pytest.approx(1.0)
    assert sum(found.path_samples.values()) == pytest.approx(1.0)
    assert 0.7879 <= found.accuracy <= 0.7898 + 1e-9
    assert found.gain_captured == pytest.approx((found.accuracy - 0.7879) / 0.0019)
    assert found.correct_per_s <= found.bound_correct_per_s * 1.001
    assert found.not_batched_bound_correct_per_s <= found.bound_correct_per_s * (1 + 1e-9)
    assert set(found.utilisation) == {"cpu", "gpu"}
    assert all(0 < u <= 1 for u in found.utilisation.values())
    busy = sum(
        share
        * found.samples_per_s
        * found.in_time
        / found.mean_batch[name]
        * PROFILE.path(name).expected(round(found.mean_batch[name]))
        for name, share in found.path_samples.items()
        if share
    )
    assert busy == pytest.approx(sum(found.utilisation.values()), rel=0.05)


@pytest.mark.parametrize("policy", ["adaptive", "earliest-finish", "priced", "mp-rec", "static:table@gpu"])
@pytest.mark.parametrize("sla", [0.004, 0.05])
@pytest.mark.parametrize("load", [500.0, 8000.0])
def test_no_policy_exceeds_the_bound(policy, sla, load):
    found = simulate(setup(sla=sla).at(rate=load), parse_policy(policy)).summary
    assert found.correct_per_s <= found.bound_correct_per_s * 1.005  # times are drawn
    exact = setup(profile=cpu_gpu_profile(spread=0.0), sla=sla).at(rate=load)
    found = simulate(exact.at(warmup=0), parse_policy(policy)).summary
    longer = (found.seconds + sla) / found.seconds
    assert found.correct_per_s <= found.bound_correct_per_s * longer * (1 + 1e-9)


def test_the_load_held_is_where_one_in_a_hundred_is_late():
    policy = static("table@gpu")
    held = held_load(setup(), policy, runs=4, queries=30_000)
    assert 0 < held.within < 0.1 * held.load
    assert held.load <= held.bound
    assert held.ratio == held.load / held.bound
    shares = [
        in_time_share(run_native(setup(queries=100_000, seed=9).at(rate=held.load * factor), policy))
        for factor in (0.9, 1.0, 1.1)
    ]
    assert shares[0] > 0.99 > shares[2]
    assert shares[1] == pytest.approx(0.99, abs=0.003)
    again = held_load(setup(arrivals="poisson:rate=3"), policy, runs=4, queries=30_000)
    assert again == held  # the setup's own load does not matter
    assert held_load(setup(sla=1e-4), policy, runs=2, queries=1000).load == 0.0
    with pytest.raises(InputError, match="1 runs; take 2 to 10"):
        held_load(setup(), policy, runs=1)


def test_the_threshold_is_tuned_by_climbing():
    assert table_pair(PROFILE) == ("table@cpu", "table@gpu")
    tuned, held = tune_threshold(setup())
    for size in (16, 4096):
        fixed = held_load(setup(), threshold("table@cpu", "table@gpu", size), runs=2, queries=20_000)
        assert held.load >= fixed.load
    assert tuned.name.startswith("threshold:small=table@cpu,large=table@gpu,size=")
    own = simulate(setup(), parse_policy("threshold")).summary
    told = simulate(setup(), parse_policy(tuned.name)).summary
    assert own.p99 == told.p99


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "'best' is no policy; it must be one of adaptive"),
        ("static", "has no path, which it needs"),
        ("mp-rec:size=3", "takes no 'size'"),
        ("threshold:size=0,small=a,large=b", "size = 0; it must be a whole number"),
        ("threshold:size=9,small=a", "has no large"),
        ("adaptive:admit=2", "admit = 2"),
    ],
)
def test_unknown_policies_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_policy(text)


def test_unknown_paths_of_policies_are_refused():
    for text in ("static:table@tpu", "threshold:size=9,small=table@tpu,large=table@gpu"):
        with pytest.raises(InputError, match="no path 'table@tpu'; it has table@cpu"):
            simulate(setup(), parse_policy(text))


def test_a_policy_of_ones_own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from recsys_opt._serving import Decision, Policy\n"
        "class First(Policy):\n"
        "    def __init__(self, fleet, sla):\n"
        "        super().__init__()\n"
        "    def arrive(self, view, size, deadline):\n"
        "        return 3\n"
        "    def start(self, view, worker):\n"
        "        head = view.head(3)\n"
        "        return Decision(3, 3, head[0]) if head and worker == 1 else Decision()\n"
        "class Other: pass\n"
    )
    own = simulate(setup(queries=2000), python_policy(f"{file}:First")).summary
    same = simulate(setup(queries=2000), static("table@gpu")).summary
    assert own.policy == "First"
    assert (own.p50, own.p99, own.correct_per_s) == (same.p50, same.p99, same.correct_per_s)
    file.write_text(file.read_text().replace("return 3", "return 99"))
    with pytest.raises(
        InputError, match=r"policy First: .* returned lane 99; the last one, shared by all, is 6"
    ):
        simulate(setup(queries=2000), python_policy(f"{file}:First"))
    (tmp_path / "wrong.py").write_text("raise RuntimeError('no')")
    for text, message in (
        (str(file), "names no class of a file"),
        (f"{file}:Other", "has no class Other that is"),
        (f"{file}:None", "has no class None"),
        (f"{tmp_path}/none.py:A", "does not exist"),
        (f"{tmp_path}/wrong.py:A", "fails: RuntimeError: no"),
    ):
        with pytest.raises(InputError, match=message):
            python_policy(text)


def test_events():
    assert parse_event("10s:gpu:lost") == Event(10.0, "gpu", math.inf)
    assert parse_event("500ms:gpu:ok") == Event(0.5, "gpu", 1.0)
    assert parse_event("5s:cpu:x2.5") == Event(5.0, "cpu", 2.5)
    assert [parse_event(e.spec) for e in (Event(1, "a", math.inf), Event(2, "b", 1.5))] == [
        Event(1, "a", math.inf),
        Event(2, "b", 1.5),
    ]
    for text in ("10s:gpu", "10s:gpu:broken", "soon:gpu:lost", "10s:gpu:x0", "10s::lost"):
        with pytest.raises(InputError, match="event"):
            parse_event(text)
    with pytest.raises(InputError, match="no device 'tpu'"):
        setup(events=(parse_event("1s:tpu:lost"),))
    events = [Event(8, "gpu", 1.0), Event(2, "gpu", math.inf), Event(4, "cpu", 3.0), Event(99, "cpu", 9.0)]
    assert device_states(events, PROFILE, 10.0) == [
        DeviceState("cpu", 0.4, 1.0),
        DeviceState("cpu", 0.6, 3.0),
        DeviceState("gpu", 0.4, 1.0),
    ]


def test_a_lost_device_is_missed_only_while_it_is_lost():
    lost = (Event(4.0, "gpu", math.inf), Event(8.0, "gpu", 1.0))
    run = simulate(
        setup(events=lost, queries=24_000).at(rate=2000.0), parse_policy("adaptive"), bin_seconds=1.0
    )
    seen = timeline(run, 1.0)
    gpu = np.sum([v for name, v in seen["path_samples"].items() if name.endswith("@gpu")], axis=0)
    assert (gpu[4:8] == 0).all()
    assert (gpu[[1, 2, 3, 9, 10, 11]] > 100_000).all()
    assert np.sum(list(seen["outcomes"].values())) == 24_000
    whole = simulate(setup(queries=24_000, warmup=0).at(rate=2000.0), parse_policy("adaptive"))
    assert run.summary.bound_ratio > 0.9  # it is bounded by what the CPU can do meanwhile
    assert run.summary.bound_gain is None
    assert run.summary.bound_correct_per_s < whole.summary.bound_correct_per_s
    assert run.summary.correct_per_s <= run.summary.bound_correct_per_s * 1.005
    assert run.summary.in_time < 0.95 < whole.summary.in_time
    choices = size_choices(whole)
    np.testing.assert_allclose(np.sum(list(choices["path_shares"].values()), axis=0), 1.0)


def test_the_bound_of_a_load_that_varies():
    one = setup(arrivals="diurnal:rate=8000,swing=0.8,period=2s", queries=40_000, warmup=0)
    found = simulate(one, parse_policy("adaptive")).summary
    steady = simulate(setup(queries=40_000, warmup=0).at(rate=8000.0), parse_policy("adaptive")).summary
    assert steady.bound_correct_per_s > 0.999 * 0.7879 * steady.samples_per_s
    assert found.bound_correct_per_s < 0.98 * 0.7879 * found.samples_per_s  # the peaks are too much
    assert found.correct_per_s <= found.bound_correct_per_s * 1.005


def test_sweeps():
    assert parse_sweep("load=100:1000:log:3,sla=10ms,25ms") == {
        "load": (100, 316.228, 1000),
        "sla": (0.01, 0.025),
    }
    assert parse_sweep("load=1:12")["load"] == tuple(float(n) for n in range(1, 13))
    for text, message in (
        ("size=3", "'size'; a sweep is over load and sla"),
        ("3", "'3' has no name"),
        ("load=1,load=2", "load is given twice"),
        ("load=9:1", "from the smaller to the larger"),
        ("load=1:9:cube", "'cube'; a range is"),
        ("load=0", "load = 0; it must be above 0"),
        ("load=many", "load = 'many'; it must be a number"),
        ("sla=soon", "'soon' is no time"),
    ):
        with pytest.raises(InputError, match=message):
            parse_sweep(text)
    over = {"load": (200.0, 2000.0), "sla": (0.01, 0.1)}
    found = sweep(setup(queries=5000), [parse_policy("adaptive"), parse_policy("mp-rec")], over)
    assert [(s.sla, s.policy) for s in found[:3]] == [
        (0.01, "adaptive"),
        (0.01, "mp-rec"),
        (0.01, "adaptive"),
    ]
    assert len(found) == 8
    assert found[0].load == pytest.approx(200, rel=0.05)


def test_a_recorded_simulation_replayed_is_itself():
    """With its own times each batch takes as long again: what is left is rounding, and who was where."""
    policy = parse_policy("static:table@gpu")
    one = setup(sizes="lognormal:mean=128,max=4000", queries=20_000, warmup=0, overhead=3e-4)
    trace = trace_of(one, simulate(one, policy, record=True))
    assert trace.sla == 0.025
    assert (trace.latency[trace.answered] >= 3e-4).all()
    compared = against(PROFILE, policy, trace)
    rows = {row.name: row for row in compared.rows}
    for name in ("p50", "p99", "mean", "in SLA"):
        assert abs(rows[name].replayed_off) < 0.002, name
    assert abs(rows["p99"].profiled_off) > 0.05  # it does not know of the overhead
    known = against(PROFILE, policy, trace, overhead=3e-4)
    assert all(abs(row.profiled_off) < 0.05 for row in known.rows if row.name != "p99.9")


def test_a_recorded_run_of_an_adaptive_policy_is_met():
    policy = parse_policy("adaptive")
    one = setup(queries=40_000, warmup=0).at(rate=3000.0)
    trace = trace_of(one, simulate(one, policy, record=True))
    rows = {row.name: row for row in against(PROFILE, policy, trace).rows}
    for name in ("p50", "p99", "mean"):
        assert abs(rows[name].replayed_off) < 0.05, name
        assert abs(rows[name].profiled_off) < 0.15, name
    slower = cpu_gpu_profile()
    doubled = Trace(**{**vars(trace), "service": trace.service * 2})
    own = own_times(slower, doubled)
    devices, ratios = recorded_times(slower, own, doubled)
    assert np.median(ratios) == pytest.approx(2.0, rel=0.05)
    assert np.median(np.concatenate([ratios for _, ratios in devices])) == pytest.approx(1.0, rel=0.05)


def test_a_run_on_slower_devices_is_met_at_their_speed():
    policy = parse_policy("earliest-finish")
    slow = {"table@cpu": 1.5, "table@gpu": 1.25}
    one = setup(queries=20_000, warmup=0).at(rate=2500.0)
    result = run_native(one, policy, record=True, times=slowed(PROFILE, slow))
    trace = trace_of(one, Run(summarise(one, policy.name, result), result))
    compared = against(PROFILE, policy, trace)
    assert set(compared.slowness) >= set(slow)
    for path, factor in compared.slowness.items():
        assert factor == pytest.approx(slow.get(path, 1.0), rel=0.02), path
    rows = {row.name: row for row in compared.rows}
    assert rows["p50"].profiled_off < -0.1
    for name in ("p50", "p99", "mean"):
        assert abs(rows[name].at_speed_off) < 0.05, name
    document = compared.to_json()
    assert document["slowness"] == compared.slowness
    assert document["rows"][0]["at_speed_off"] == rows["p50"].at_speed_off


def test_the_start_of_a_recorded_run_may_be_left_out():
    policy = parse_policy("static:table@gpu")
    one = setup(queries=20_000, warmup=0)
    trace = trace_of(one, simulate(one, policy, record=True))
    start = trace.arrival[60]
    late = Trace(**{**vars(trace), "latency": np.where(trace.arrival < start, 1.0, trace.latency)})
    assert against(PROFILE, policy, late).rows[5].measured == 1.0
    compared = against(PROFILE, policy, late, skip=start)
    assert compared.queries == 20_000 - 60
    rows = {row.name: row for row in compared.rows}
    assert rows["p99.9"].measured < 1.0
    for name in ("p50", "p99", "mean", "in SLA"):
        assert rows[name].measured == pytest.approx(rows[name].replayed, rel=0.002), name
    with pytest.raises(InputError, match=r"skip = 1000 s of a recorded run of .* s; skip less"):
        against(PROFILE, policy, trace, skip=1000.0)


def test_recordings_without_times_or_sla():
    nothing = np.zeros(3)
    trace = Trace(np.array([0, 0.1, 0.2]), nothing + 5, nothing + State.ANSWERED, nothing + 0.01)
    with pytest.raises(InputError, match="says no SLA; give one"):
        against(PROFILE, parse_policy("adaptive"), trace)
    compared = against(PROFILE, parse_policy("adaptive"), trace, sla=0.05)
    assert compared.rows[0].replayed is compared.rows[0].at_speed is None
    assert compared.slowness == {}
    assert "no service times" in compared.notes[0]
    assert compared.to_json()["rows"][0]["profiled_off"] is not None
    with pytest.raises(InputError, match="has 0 queries; it needs at least 2"):
        against(PROFILE, parse_policy("adaptive"), Trace(*(np.zeros(0),) * 4), sla=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sla": 0.0}, "an SLA of 0.0 s"),
        ({"queries": 0}, "0 queries"),
        ({"warmup": 20_000}, "warmup = 20000; it must be less"),
        ({"overhead": -1.0}, "overhead = -1.0"),
    ],
)
def test_impossible_setups_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        setup(**change)


def test_profiles_of_one_accuracy_have_no_gain():
    same = make_profile({"table@cpu": (0.78, 1e-4, 1e-5)})
    assert gain(same, 0.78) is None
    assert gain(PROFILE, None) is None


def test_a_trace_without_sizes_has_those_given():
    arrivals = Recorded(np.linspace(0, 1, 500), None)
    one = Setup(PROFILE, Workload(arrivals, parse_sizes("fixed:size=77")), 0.05, queries=10_000)
    run = simulate(one, parse_policy("adaptive"))
    assert run.result.arrived == 500
    assert run.result.arrived_samples == 500 * 77
