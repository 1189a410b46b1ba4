import json

import pytest

from recsys_opt.bench.quality import SPACE, mean_and_spread, paired_difference, points
from recsys_opt.cli.main import main
from tests.generated import make_dataset

SMALL = [
    "--bottom-mlp",
    "16,8",
    "--top-mlp",
    "16,1",
    "--max-rows",
    "2k",
    "--tt-above",
    "700",
    "--tt-rank",
    "4",
]


def test_points_fill_the_space_and_stay_the_same():
    found = points(8)
    assert found == points(8)
    for path, (low, high) in SPACE.items():
        values = sorted(p[path] for p in found)
        assert low <= values[0] < values[-1] <= high
        assert len(set(values)) == 8
        assert values[-1] / values[0] > (high / low) ** 0.8


def test_differences_are_paired():
    found = paired_difference([0.3, 0.5, 0.4], [0.1, 0.3, 0.2])
    assert found["mean"] == pytest.approx(0.2)
    assert found["spread"] == pytest.approx(0)
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_spread([1.0]) == (1.0, 0.0)


@pytest.mark.slow
def test_a_comparison_from_search_to_record(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    flags = [str(data.path), "--seeds", "2", "--search", "2", "--logistic", *SMALL]
    code = main(["bench", "quality", *flags, "--record", str(tmp_path / "record.json"), "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert code == 0
    record = json.loads((tmp_path / "record.json").read_text())
    searched = [r for r in record["rows"] if r["stage"] == "search"]
    assert [r["variant"] for r in searched] == ["dense", "dense", "tt", "tt"]
    assert not any(key.startswith("test_") for r in searched for key in r)  # chosen without the test rows
    for name in ("dense", "tt"):
        own = [r for r in searched if r["variant"] == name]
        best = max(own, key=lambda r: r["validation_auc"])
        assert {path: best[path] for path in SPACE} == summary["chosen"][name]
    finals = [r for r in record["rows"] if r["stage"] == "seeds"]
    assert [(r["variant"], r["seed"]) for r in finals] == [("dense", 1), ("tt", 1), ("dense", 2), ("tt", 2)]
    difference = summary["variants"]["tt"]["test_auc_difference"]["mean"]
    dense, tt = ([r["test_auc"] for r in finals if r["variant"] == v] for v in ("dense", "tt"))
    assert difference == pytest.approx(sum(tt) / 2 - sum(dense) / 2)
    assert summary["variants"]["tt"]["embedding_bytes"] < summary["variants"]["dense"]["embedding_bytes"]
    assert summary["logistic"]["test_auc"] > 0.5


def test_refusals(tmp_path, capsys):
    data = make_dataset(tmp_path / "data", rows=100)
    assert main(["bench", "quality", str(data.path), "--variants", "dense,dhe"]) == 2
    assert "there is no variant 'dhe'" in capsys.readouterr().err
    assert main(["bench", "quality", str(data.path), "--seeds", "0"]) == 2
