"""Plans held against later lookups, and what is made of the figures."""

import json
import math
from pathlib import Path

import pytest

from recsys_opt.bench.placement import LEAST, OURS, Settings, measure, summary
from recsys_opt.bench.placement_torchrec import TORCHREC, TORCHREC_PAST, TORCHREC_UVM, TorchRecSettings
from recsys_opt.cli.main import main
from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.table_traces import TableTraces, write_traces
from recsys_opt.errors import InputError
from recsys_opt.planner.lookup_trace import open_trace


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of three batches, and statistics of its first two."""
    folder = tmp_path_factory.mktemp("placement")
    write_traces(TableTraces(tables=12, batch_size=128, seed=2), folder / "trace", batches=3)
    counted = ["stats", str(folder / "trace"), "--batches", "0:2", "--out", str(folder / "stats.npz")]
    assert main(counted) == 0
    return folder


def test_planners_side_by_side(seen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = seen / "r.json"
    files = [str(seen / "stats.npz"), str(seen / "trace"), "--batches", "2:", "--record", str(record)]
    options = ["--hardware", "h100:devices=4", "--hbm-share", ".1", ".4"]
    options += ["--planner", OURS, "size", "lookup", LEAST]
    capsys.readouterr()
    assert main(["bench", "placement", *files, *options]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
    content = json.loads(record.read_text())
    by = {(r["hbm_share"], r["planner"]): r for r in content["rows"]}
    assert len(by) == 8
    for share in (0.1, 0.4):
        ours = by[share, OURS]
        assert ours["replayed_seconds"] < min(by[share, b]["replayed_seconds"] for b in ("size", "lookup"))
        assert ours["replayed_seconds"] > 0.8 * ours["bound_seconds"]
        assert ours["replayed_slow_share"] == pytest.approx(ours["predicted_slow_share"], rel=0.1)
        assert by[share, LEAST]["slow_reads"] <= 1.02 * ours["slow_reads"]
        assert ours["slow_moves"] > ours["slow_reads"]
        assert 0.9 < ours["fast_bytes_used"] <= 1
    assert by[0.4, OURS]["replayed_slow_share"] < by[0.1, OURS]["replayed_slow_share"]
    assert content["summary"]["best_greedy_time_over_ours"] > 1
    assert content["summary"]["torchrec_time_over_ours"] is None


def test_a_planner_without_a_plan_says_why(seen: Path) -> None:
    statistics = AccessStatistics.load(seen / "stats.npz")
    trace = open_trace(seen / "trace", batch_size=1)
    model = sum(t.num_embeddings for t in statistics.tables.values()) * 260
    settings = Settings(
        hardware=f"h100:devices=4,uvm={model // 40}", hbm_shares=(0.95,), planners=("size", OURS)
    )
    rows = measure(statistics, trace, settings, warm=2)
    assert "needs" in rows[0]["failed"]  # the largest table is more than any tier
    with pytest.raises(InputError, match="planners has 'best'"):
        Settings(planners=("best",))
    with pytest.raises(InputError, match="hbm_shares has 0"):
        Settings(hbm_shares=(0,))


def test_what_is_made_of_the_figures() -> None:
    def row(share: float, planner: str, seconds: float, slow: float, **more: float) -> dict[str, object]:
        return {
            "hbm_share": share,
            "planner": planner,
            "replayed_seconds": seconds,
            "slow_reads": slow,
            "slow_moves": 3 * slow,
            "predicted_slow_share": 0.11,
            "replayed_slow_share": 0.1,
            "max_over_mean": 1.0 + share,
            **more,
        }

    found = summary(
        [
            row(0.1, OURS, 1.0, 10, gap=0.01),
            row(0.1, "size", 9.0, 40),
            row(0.1, "lookup", 4.0, 90),
            row(0.1, TORCHREC, 2.0, 0),
            row(0.1, TORCHREC_PAST, 3.0, 30),
            row(0.2, OURS, 1.0, 5, gap=0.02),
            row(0.2, "size", 16.0, 60),
            {"hbm_share": 0.2, "planner": TORCHREC, "failed": "no plan"},
        ]
    )
    assert found["best_greedy_time_over_ours"] == pytest.approx(math.sqrt(4 * 16))
    assert found["best_greedy_slow_reads_over_ours"] == pytest.approx((90 + 60) / 15)
    assert found["torchrec_time_over_ours"] == pytest.approx(2.0)
    assert found["torchrec_slow_reads_over_ours"] == 0.0
    assert found["torchrec_past_slow_reads_over_ours"] == pytest.approx(3.0)
    assert found["torchrec_past_slow_moves_over_ours"] == pytest.approx(3.0)
    assert found["size_time_over_ours_least"] == pytest.approx(9.0)
    assert found["torchrec_lru_slow_reads_over_ours"] is None
    assert found["largest_error_of_slow_share"] == pytest.approx(0.1)
    assert (found["largest_max_over_mean"], found["largest_gap"]) == (1.2, 0.02)


def test_cases_of_a_record_are_kept_apart(seen: Path) -> None:
    record = seen / "cases.json"
    files = [str(seen / "stats.npz"), str(seen / "trace"), "--batches", "2:", "--record", str(record)]
    options = ["--hardware", "h100:devices=2", "--hbm-share", ".3", "--planner", OURS, "--add"]
    assert main(["bench", "placement", *files, *options]) == 2
    for case in ("one", "two", "one"):
        assert main(["bench", "placement", *files, *options, "--case", case]) == 0
    content = json.loads(record.read_text())
    assert [c["case"] for c in content["cases"]] == ["one", "two"]
    assert [(r["case"], r["planner"]) for r in content["rows"]] == [("two", OURS), ("one", OURS)]
    options[options.index(OURS)] = "size"
    assert main(["bench", "placement", *files, *options, "--case", "two"]) == 0
    assert [r["planner"] for r in json.loads(record.read_text())["rows"]] == [OURS, OURS, "size"]


@pytest.mark.slow
def test_torchrecs_plan_in_its_ways(seen: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchrec")
    statistics = AccessStatistics.load(seen / "stats.npz")
    trace = open_trace(seen / "trace", batch_size=1)
    settings = Settings(
        hardware="h100:devices=2",
        hbm_shares=(0.2,),
        planners=(OURS, LEAST, TORCHREC_UVM, TORCHREC),
        torchrec=TorchRecSettings(30.0, ("table_wise",), tmp_path / "kept"),
    )
    rows = {r["planner"]: r for r in measure(statistics, trace, settings, warm=2)}
    assert "failed" not in {key for row in rows.values() for key in row}
    reads = {name: row["slow_reads"] for name, row in rows.items()}
    assert reads[LEAST] <= 1.02 * reads[OURS] < reads[TORCHREC_UVM]
    assert reads[TORCHREC] <= reads[TORCHREC_PAST]
    for policy in ("lru", "lfu"):
        row = rows[f"torchrec-{policy}"]
        assert 0 < row["slow_reads"] <= row["slow_moves"]
        assert row["cache_load_factors"]
    assert len(list((tmp_path / "kept").iterdir())) == 2
