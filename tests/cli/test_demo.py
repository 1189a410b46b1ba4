import json
from pathlib import Path

import pytest

from recsys_opt.cli.main import main


@pytest.mark.slow
def test_demo_compares_dense_and_tensor_train_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["demo", "--out", str(tmp_path), "--rows", "150000", "--max-cardinality", "200000"]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    dense, tt = result["runs"]["dense"], result["runs"]["tt"]
    assert result["compression"] == dense["embedding_bytes"] / tt["embedding_bytes"] > 5
    best = result["bayes"]["test"]["auc"]
    assert 0.65 < tt["test"]["auc"] < best
    assert abs(tt["test"]["auc"] - dense["test"]["auc"]) < 0.02
    for page in ("report.html", "dense/report.html", "tt/report.html"):
        text = (tmp_path / page).read_text()
        assert "<svg" in text
        assert "http://" not in text.replace("http://www.w3.org/", "")
    # A second call finds everything done, and says the same.
    assert main(arguments) == 0
    assert f"{tt['test']['auc']:.4f}" in capsys.readouterr().out
