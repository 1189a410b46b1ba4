"""Gaps of plans, and TorchRec's planner timed beside ours."""

import json
from pathlib import Path

import pytest

from recsys_opt.bench import plan as bench
from recsys_opt.bench.plan_cases import random_case
from recsys_opt.cli.main import main
from recsys_opt.errors import InputError


def test_every_case_is_planned_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "plan.json"
    assert main(["bench", "plan", "--cases", "random", "--count", "1", "--record", str(record)]) == 0
    assert "random" in capsys.readouterr().out
    content = json.loads(record.read_text())
    assert [r["wrong"] for r in content["rows"]] == [[]]
    assert all(r["gap"] >= 0 for r in content["rows"])
    assert content["summary"]["random"]["cases"] == 1
    with pytest.raises(InputError, match="there is no set of cases 'small'"):
        bench.measure(["small"], 1)


@pytest.mark.slow
def test_torchrecs_planner_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchrec")
    case = random_case(3, tables=26, devices=2)
    monkeypatch.setattr(bench, "cases", lambda *_: [("large", case)])
    (row,) = bench.measure(["large"], 0, torchrec_seconds=60.0)
    assert row["torchrec_finished"]
    assert 0 < row["torchrec_cpu_seconds"] < 60
    assert row["torchrec_time_over_ours"] >= 0.99 * (1 - row["gap"])
    (row,) = bench.measure(["large"], 0, torchrec_seconds=0.001)
    assert "no plan within" in row["torchrec_failed"]
