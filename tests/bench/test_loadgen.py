"""MLPerf LoadGen against a real server of trained models."""

import json
from pathlib import Path

import pytest

from recsys_opt.cli.main import main
from tests.server.served import serving
from tests.serving.runs import make_run

pytest.importorskip("httptools")
pytest.importorskip("prometheus_client")
pytest.importorskip("mlperf_loadgen")


def test_a_summary_is_valid_where_loadgen_says_so():
    from recsys_opt.errors import InputError
    from recsys_opt.integrations.loadgen import read_summary

    text = "Scenario : Server\nResult is : {}\n  Min duration satisfied : Yes\n * Run successful.\n"
    assert read_summary(text.format("VALID")).valid
    assert not read_summary(text.format("INVALID")).valid
    assert read_summary(text.format("VALID")).fields["Min duration satisfied"] == "Yes"
    with pytest.raises(InputError, match="no line 'Result is'"):
        read_summary("Scenario : Server\n")


@pytest.mark.parametrize("given", [("qps", 0.0), ("sla_s", -1.0), ("percentile", 1.0), ("min_seconds", 0.0)])
def test_a_scenario_that_is_none_is_refused(given: tuple[str, float]):
    from recsys_opt.errors import InputError
    from recsys_opt.integrations.loadgen import ServerScenario

    name, value = given
    with pytest.raises(InputError, match=f"{name} = {value}"):
        ServerScenario(**{"qps": 100.0, "sla_s": 0.03, name: value})


@pytest.mark.slow
def test_loadgens_server_scenario_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path / "runs", "table")
    words = ["profile", str(run), "--sizes", "1", "128", "1024", "--seconds", "1"]
    assert main([*words, "--out", str(tmp_path / "profile.json")]) == 0
    with serving(tmp_path, "--sla", "1s") as server:
        loadgen = ["bench", "loadgen", "--http", server.ready["http"], "--json"]
        capsys.readouterr()
        words = ["--qps", "300", "--sla", "1s", "--seconds", "3s", "--queries", "800"]
        assert main([*loadgen, *words, "--logs", str(tmp_path / "logs")]) == 0
        found = json.loads(capsys.readouterr().out)
        summary = (tmp_path / "logs" / "mlperf_log_summary.txt").read_text()
        assert "Result is : VALID\n" in summary
        assert "Scenario : Server\n" in summary
        assert "No errors encountered during test." in summary
        assert found["valid"]
        assert found["loadgen_valid"]
        assert found["issued"] == found["answered"] >= 800
        assert found["answered_twice"] == found["never_answered"] == found["failed"] == 0
        # What the server refuses is late to LoadGen, whose run is invalid then.
        words = ["--qps", "100", "--sla", "20us", "--seconds", "1s"]
        assert main([*loadgen, *words]) == 1
        refused = json.loads(capsys.readouterr().out)
        assert refused["loadgen"]["Result is"] == "INVALID"
        assert not refused["valid"]
        assert refused["refused"] + refused["answered"] == refused["issued"] > 50
        assert refused["refused"] > 0
        outcomes = server.stop()["queries"]
    assert outcomes["answered"] == found["answered"] + refused["answered"] + 2 * 20  # those that warm up
    assert outcomes["rejected"] + outcomes["dropped"] == refused["refused"]
