"""Real runs of a small server beside simulations of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recsys_opt.bench.as_served import Serving, capacity, measured_as_served
from recsys_opt.cli.main import main
from recsys_opt.errors import InputError
from recsys_opt.files import read_json
from recsys_opt.serving.profile import Profile
from recsys_opt.serving.trace import read_trace
from tests.server.served import write_all, write_profile
from tests.serving.profiles import make_profile

pytest.importorskip("httptools")
pytest.importorskip("prometheus_client")


@pytest.mark.slow
def test_served_profile_runs_and_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_all(tmp_path, paths=("table",))
    words = ["bench", "against", str(folder / "profile.json"), "--runs", str(folder / "runs")]
    words += [
        "--policy",
        "static:table@cpu",
        "--shares",
        "0.2",
        "--seconds",
        "1s",
        "--path-seconds",
        "1s",
        "--sla",
        "20ms",
    ]
    keep, record = tmp_path / "kept", tmp_path / "record.json"
    assert main([*words, "--repeat", "2", "--keep", str(keep), "--record", str(record)]) == 0
    assert "from profile" in capsys.readouterr().out
    (row,) = read_json(record, "recsys_opt.measurement", 1)["rows"]
    assert len(row["p50"]["measured_ms"]) == 2
    assert row["p50"]["runs_apart"] >= 0
    assert row["paths"][0] == {"table@cpu": 1.0}
    assert len(row["p50"]["at_speed_off"]) == 2
    assert [set(by_path) for by_path in row["slowness"]] == [{"table@cpu"}] * 2
    # What was measured in the server replaces the made-up times.
    profile = Profile.load(keep / "profile.json")
    assert profile.as_served.query_s > 0
    trace = read_trace(keep / "static_20_1.npz")
    assert len(trace) == row["queries"]
    # How far off they are is the machine's noise here; tests/serving/test_simulation.py holds what is exact.
    assert all(off is not None for way in ("replayed", "profiled") for off in row["p50"][f"{way}_off"])


@pytest.mark.slow
def test_a_profile_as_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_all(tmp_path)
    words = ["profile", "served", str(folder / "profile.json"), "--runs", str(folder / "runs")]
    out = tmp_path / "served.json"
    assert main([*words, "--paths", "table@cpu", "--seconds", "1s", "--out", str(out)]) == 0
    assert "as served: times inside the server" in capsys.readouterr().out
    profile = Profile.load(out)
    assert [p.name for p in profile.paths] == ["table@cpu"]
    assert profile.as_served.query_s > 0
    assert profile.circumstances["cpu"]["as_served"].startswith("1 s of load")
    assert profile.path("table@cpu").times[0].runs >= 100
    assert main(["simulate", str(out), "--load", "100", "--queries", "2000"]) == 0


def test_nothing_to_serve(tmp_path: Path):
    write_profile(tmp_path / "profile.json")
    profile = Profile.load(tmp_path / "profile.json")
    assumed = tuple(replace(p, assumed=True) for p in profile.paths)
    replace(profile, paths=assumed).save(tmp_path / "profile.json")
    with pytest.raises(InputError, match="are assumed: there is nothing to serve"):
        measured_as_served(Serving(tmp_path / "profile.json", tmp_path))


def test_capacity_is_of_queries_one_at_a_time():
    profile = make_profile({"table@cpu": (0.75, 1e-3, 1e-5)}, spread=0.0)
    (path,) = profile.paths
    assert capacity(path, np.array([100, 300])) == pytest.approx(2 / (2e-3 + 4e-3))
    assert capacity(path, np.array([100, 300]), workers=2) == pytest.approx(4 / (2e-3 + 4e-3))
