"""What a server adds to its models' own time: dispatch, round trips over each protocol, saturation."""

from pathlib import Path

import pytest

from recsys_opt.bench.server import dispatch_cost
from recsys_opt.cli.main import main
from recsys_opt.files import read_json
from tests.server.served import write_all
from tests.serving.profiles import make_profile


def test_dispatch_is_timed_by_query():
    profile = make_profile({"table@cpu": (0.75, 1e-4, 1e-7), "dhe@cpu": (0.76, 2e-4, 2e-7)})
    row = dispatch_cost(profile, 0.025, batches=20, together=3)
    assert row["queries"] == 60
    for figures in (row["us_per_query"], row["us_per_query_from_sleep"]):
        assert 0 < figures["p50"] <= figures["p95"] <= figures["p99"]


@pytest.mark.slow
def test_a_small_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("httptools")
    pytest.importorskip("prometheus_client")
    pytest.importorskip("grpc")
    folder, record = write_all(tmp_path), tmp_path / "record.json"
    words = ["bench", "server", "--profile", str(folder / "profile.json"), "--runs", str(folder / "runs")]
    words += ["--at", "1", "40", "--queries", "20", "--seconds", "1s", "--record", str(record)]
    assert main(words) == 0
    assert "saturated" in capsys.readouterr().out
    rows = read_json(record, "recsys_opt.measurement", 1)["rows"]
    trips = [r for r in rows if r["what"] == "round trip"]
    assert [(r["protocol"], r["size"]) for r in trips] == [
        (protocol, size) for size in (1, 40) for protocol in ("HTTP", "gRPC", "JSON")
    ]
    for row in trips:
        parts = [row[f"{name}_ms"] for name in ("model", "worker", "server", "transport")]
        assert all(0 <= part["p50"] < row["round_trip_ms"]["p50"] for part in parts)
        assert sum(part["mean"] for part in parts) == pytest.approx(row["round_trip_ms"]["mean"])
        assert row["added_ms"]["p50"] > 0
    (full,) = (r for r in rows if r["what"] == "saturation")
    assert full["outcomes"]["answered"] > 0
    assert 0 < full["model_share"] <= 1.05
    assert set(full["cpu_share"]) == {"server", "cpu:0"}
