from pathlib import Path

import numpy as np
import pytest

from recsys_opt.bench.load import Plan, Target, samples_for, send
from recsys_opt.cli.main import main
from recsys_opt.serving.sizes import parse_sizes
from recsys_opt.serving.trace import State, read_trace
from recsys_opt.serving.workload import make_workload, parse_arrivals
from tests.server.served import serving, write_all

pytest.importorskip("httptools")
pytest.importorskip("prometheus_client")


def test_a_plan_is_the_workload_for_its_time():
    workload = make_workload(parse_arrivals("poisson:rate=500"), parse_sizes("lognormal:mean=64,max=500"))
    plan = Plan.of(workload, 4.0, seed=3)
    assert 1800 < len(plan.arrivals) < 2200
    assert (np.diff(plan.arrivals) >= 0).all()
    assert 0 <= plan.arrivals[0] < plan.arrivals[-1] < 4
    assert 50 < plan.sizes.mean() < 80
    assert plan.sizes.max() <= 500
    again = Plan.of(workload, 4.0, seed=3)
    np.testing.assert_array_equal(plan.arrivals, again.arrivals)
    np.testing.assert_array_equal(plan.sizes, again.sizes)


def test_every_query_of_a_load_is_accounted_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_all(tmp_path)
    with serving(folder, "--sla", "2s", "--max-waiting", "4000") as server:
        target = Target(*server.address)
        samples = samples_for(target, None)
        workload = make_workload(parse_arrivals("poisson:rate=400"), parse_sizes("lognormal:mean=64,max=500"))
        load = send(target, Plan.of(workload, 1.5), samples)
        trace = load.trace
        assert (trace.state == State.ANSWERED).all()
        known = trace.answered
        assert (trace.latency >= trace.wait + trace.service)[known].all()
        batches = {b: trace.batch_size[trace.batch == b] for b in np.unique(trace.batch)}
        for batch, size in batches.items():
            assert len(set(size.tolist())) == 1
            own = trace.size[trace.batch == batch]  # the first may have had a part in the batch before
            assert own.sum() - own.max() <= size[0]
        assert set(trace.paths) <= {"table@cpu", "tt@cpu"}
        # More at once than may wait: refused, and counted so.
        burst = Plan(np.zeros(200), np.full(200, 400), "a burst")
        refused = send(target, burst, samples).summary()
        assert refused["answered"] + refused["rejected"] == 200
        assert refused["rejected"] > 0
        assert refused["refusals"] == {"overloaded": refused["rejected"]}
        record = tmp_path / "run.npz"
        words = ["bench", "load", "--http", server.ready["http"], "--load", "200", "--seconds", "1s"]
        assert main([*words, "--record", str(record)]) == 0
        assert "outcomes" in capsys.readouterr().out
        outcomes = server.stop()["queries"]
        answered = int(known.sum()) + refused["answered"] + 6  # each load warms up with 2
        assert outcomes["answered"] == answered + int(read_trace(record).answered.sum())
        assert outcomes["rejected"] == refused["rejected"]
    profile = str(folder / "profile.json")
    assert main(["simulate", profile, "--against", str(record)]) == 0
    assert "p99" in capsys.readouterr().out
