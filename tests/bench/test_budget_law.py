import json

import pytest

from recsys_opt.bench.budget_law import Settings, run
from recsys_opt.cli.main import main
from recsys_opt.errors import InputError
from recsys_opt.progress import SilentProgress


@pytest.mark.slow
def test_errors_are_near_the_law_for_skewed_weights():
    settings = Settings(
        num_embeddings=4_000, seen=300, exponents=(0.7, 1.1), ranks=((4, 4), (8, 8)), steps=250
    )
    scattered = [r for r in run(settings, SilentProgress()) if r["ids"] == "scattered"]
    for r in scattered:
        assert r["error"] == pytest.approx(r["error_by_the_law"], abs=0.15)
    errors = [r["error"] for r in scattered]
    assert errors[0] > errors[1]  # more rank, less error
    assert errors[0] > errors[2]  # more skew, less error


def test_the_command(tmp_path, capsys):
    record = tmp_path / "law.json"
    flags = ["--rows", "400", "--seen", "40", "--steps", "3", "--record", str(record), "--json"]
    assert main(["bench", "budget-law", *flags]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert json.loads(record.read_text())["rows"] == rows
    assert len(rows) == 30
    assert all(r["error"] > 0 and 0 <= r["error_by_the_law"] <= 1 for r in rows)


def test_more_seen_rows_than_rows_are_refused():
    with pytest.raises(InputError, match="seen = 11"):
        Settings(num_embeddings=10, seen=11)
