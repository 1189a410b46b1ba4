"""The generator's benchmarks run, count what they claim, and leave records."""

import json
from pathlib import Path

import pytest

from recsys_opt.bench.synth import measure
from recsys_opt.bench.synth_gap import measure as measure_gap
from recsys_opt.cli.main import main
from recsys_opt.errors import InputError


def test_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "rate.json"
    command = ["bench", "synth", "--rows", "20000", "--rounds", "1", "--work", str(tmp_path)]
    assert main([*command, "--record", str(record)]) == 0
    assert "rows/CPU-s" in capsys.readouterr().out
    rows = json.loads(record.read_text())["rows"]
    assert rows[0]["way"] == "written, 1 thread"
    assert all(r["rows_per_cpu_s"] > 0 for r in rows)
    assert [p.name for p in tmp_path.iterdir()] == ["rate.json"]  # what was written is gone


@pytest.mark.parametrize(("rows", "repeats"), [(0, 1), (10, 0)])
def test_rate_refuses_nothing_to_do(rows: int, repeats: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        measure(rows, repeats=repeats)


def test_gap_to_the_best_auc() -> None:
    # Tables of 500 rows, 16,000 rows to train on: better than chance by far, and not better than the best by
    # more than the luck of 2,000 test rows (the standard deviation of an AUC's difference is below .01).
    (found,) = measure_gap([20_000], max_cardinality=500)
    assert found["rows"] == 20_000
    assert found["test_rows"] == 2000
    assert 0.65 < found["auc"] < found["bayes_auc"] + 0.03
    assert found["auc_gap"] == pytest.approx(found["bayes_auc"] - found["auc"])
    assert found["logloss_gap"] > -0.02


def test_gap_refuses_too_few_rows() -> None:
    with pytest.raises(InputError, match="10 rows; at least 1000"):
        measure_gap([10])
