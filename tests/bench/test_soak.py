"""The soak: a short one of a real server, and that its verdict sees what must not be."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys_opt.bench.record import read_record
from recsys_opt.bench.soak import Load
from recsys_opt.bench.soak_rude import Tally
from recsys_opt.bench.soak_verdict import Counts, verdict
from recsys_opt.bench.soak_watch import Growth, Watch
from recsys_opt.cli.main import main
from tests.server.served import write_all

MB = 1e6


class Watched:
    """What a `Watch` has seen."""

    def __init__(self, server: float = 0.0, worker: float = 0.0, files: float = 0.0) -> None:
        self._grown = server, worker, files

    def memory(self) -> Growth:
        return growth(100 * MB, self._grown[0])

    def workers(self, least_s: float) -> list[Growth]:
        return [growth(50 * MB, 0.0), growth(50 * MB, self._grown[1])]

    def files(self) -> Growth:
        return growth(30, self._grown[2])

    def row(self) -> dict[str, Any]:
        return {}


def growth(first: float, grown: float) -> Growth:
    return Growth(100.0, first, first + grown, 36 * grown, 1.0)


def good() -> Counts:
    load = Load(
        sent=100,
        over=Counter({1: 100}),
        outcomes=Counter(answered=90, late=6, overloaded=4),
        latencies=[0.01],
    )
    rude = Tally({"a": Counter(closed=3)}, admissible=Counter(answered=2, late=1), abandoned=5, cancelled=3)
    # Of the 5 whose clients were gone 1 was answered, of the 3 perhaps sent 2 came.
    server = {"answered": 94, "dropped": 7, "rejected": 4, "gone": 5, "failed": 0, "late": 1, "invalid": 9}
    return Counts(load, rude, server, 2, 2, {"done": 1}, (2, 2), (20, 20))


def faults(counts: Counts, **grown: float) -> list[str]:
    found = verdict(counts, Watched(**grown))  # type: ignore[arg-type]
    return list(found["faults"])


def test_what_is_as_it_must_be_has_no_fault():
    assert faults(good()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"load": replace(good().load, over=Counter({1: 99, 0: 1}))}, "over other than once"),
        ({"load": replace(good().load, unasked=1)}, "not asked"),
        ({"load": replace(good().load, wrong=["x"])}, "not their queries'"),
        ({"load": replace(good().load, sent=0, over=Counter())}, "no load"),
        ({"server": good().server | {"answered": 101}}, "answers (and"),  # more than were sent
        ({"server": good().server | {"answered": 91}}, "answers (and"),  # fewer than have answers
        ({"server": good().server | {"gone": 0}}, "well-formed queries"),
        ({"rude": replace(good().rude, unexpected=["far_ids: answered"])}, "answered otherwise"),
        ({"reloads": {"done": 1, "500: no": 1}}, "reloads"),
        ({"restarts": 1}, "2 workers killed, 1 started again"),
        ({"workers": (2, 3)}, "3 processes afterwards"),
        ({"files": (20, 21)}, "21 afterwards"),
    ],
)
def test_each_fault_is_found(changes: dict[str, Any], said: str):
    (fault,) = [f for f in faults(replace(good(), **changes)) if said in f]
    assert fault


@pytest.mark.parametrize(
    ("grown", "said"),
    [
        ({"server": 9 * MB}, "server's memory grew"),
        ({"worker": 9 * MB}, "worker's memory grew"),
        ({"files": 17}, "sockets aside, became more"),
    ],
)
def test_growth_is_found(grown: dict[str, float], said: str):
    (fault,) = faults(good(), **grown)
    assert said in fault
    assert faults(good(), **{what: most / 3 for what, most in grown.items()}) == []


def test_growth_is_that_after_the_beginning():
    random = np.random.default_rng(0)
    times = np.arange(400) * 0.5
    warm = np.minimum(times, 40) * MB  # fills its caches at the beginning
    flat = Growth.of(list(times), list(100 * MB + warm + random.normal(0, 0.3 * MB, 400)))
    assert flat is not None
    assert abs(flat.grown) < 0.3 * MB
    assert abs(flat.slope_per_h) < 4 * flat.slope_error_per_h
    leak = Growth.of(list(times), list(100 * MB + 0.1 * MB * times))
    assert leak is not None
    assert leak.slope_per_h == pytest.approx(360 * MB)
    assert leak.grown == pytest.approx(10 * MB, rel=0.02)
    assert Growth.of([0.0, 1.0], [1.0, 1.0]) is None


def test_a_workers_memory_is_looked_at_when_its_models_are_loaded():
    watch = Watch(None)  # type: ignore[arg-type]  # nothing is sampled
    times = np.arange(200) * 0.5
    loading = np.minimum(times * 40, 400) * MB
    watch._workers[1] = list(times), list(100 * MB + loading)
    watch._workers[2] = list(times), list(100 * MB + loading + 1 * MB * times)  # leaks
    watch._workers[3] = list(times[:30]), list(100 * MB + loading[:30])  # is gone soon
    flat, leaks = watch.workers(30.0)
    assert flat.grown == 0
    assert leaks.grown > 20 * MB


@pytest.mark.slow
def test_a_server_outlives_a_short_soak(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for package in ("httptools", "prometheus_client", "grpc"):
        pytest.importorskip(package)
    folder = write_all(tmp_path, workers=2)
    words = ["bench", "soak", "--profile", str(folder / "profile.json"), "--runs", str(folder / "runs")]
    words += ["--seconds", "20s", "--capacity", "2s", "--kill-every", "6s", "--reload-every", "8s"]
    code = main([*words, "--record", str(tmp_path / "soak.json")])
    (found,) = read_record(tmp_path / "soak.json")["rows"]
    assert found["faults"] == []
    assert code == 0
    assert "all 15 checks hold" in capsys.readouterr().out
    assert found["kills"] == found["restarts"] >= 2
    assert found["reloads"]["done"] >= 1
    assert found["load"]["outcomes"]["answered"] > 100
    assert found["load"]["over_once"] == found["load"]["sent"]
    assert len(found["rude"]["replies"]) == 27
