import json

import pytest

from recsys_opt.bench.replan import measure
from recsys_opt.cli.main import main
from recsys_opt.errors import InputError
from recsys_opt.planner.lookup_trace import open_trace


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Traces of two days, and statistics of all but the last batch."""
    folder = tmp_path_factory.mktemp("replan")
    make = ["data", "tables", "--tables", "10", "--batch", "256", "--shrink", "256", "--batches", "7"]
    for day in (0, 1):
        trace = str(folder / f"day{day}")
        assert main([*make, "--day", str(day), "--drift", "0.2", "--out", trace]) == 0
        assert main(["stats", trace, "--batches", "0:6", "--out", f"{trace}.npz"]) == 0
    return folder


def test_replays_agree_with_what_plans_predict(days, capsys):
    record, day = days / "replan.json", [str(days / name) for name in ("day0.npz", "day1.npz", "day1")]
    flags = ["--hardware", "h100:devices=4", "--hbm-share", ".2", "--effort", ".05", "--batches", "6:"]
    capsys.readouterr()
    assert main(["bench", "replan", *day, *flags, "--record", str(record)]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
    rows = json.loads(record.read_text())["rows"]
    assert [r["way"] for r in rows] == ["as it is", "new thresholds", *["limited"] * 4, "free"]
    for row in rows:
        assert row["replayed_seconds"] == pytest.approx(row["predicted_seconds"], rel=0.15)
    as_is, thresholds, *limited, _ = rows
    assert thresholds["replayed_seconds"] < 0.95 * as_is["replayed_seconds"]
    assert all(r["moved_share"] <= r["limit_share"] for r in limited)
    assert limited[-1]["predicted_seconds"] <= thresholds["predicted_seconds"]


def test_bad_shares(days):
    trace = open_trace(days / "day1", batch_size=1)
    with pytest.raises(InputError, match="hbm_shares has 0"):
        measure(days / "day0.npz", days / "day1.npz", trace, hbm_shares=(0.0,))
