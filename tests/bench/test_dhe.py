import json

import pytest
import torch

from recsys_opt.cli.main import main
from recsys_opt.serving.dense_net import has_packed_products


@pytest.mark.slow
def test_measures_kinds_and_candidates_with_equal_outputs(tmp_path, capsys):
    path = tmp_path / "record.json"
    flags = [
        "--query-size",
        "32",
        "--threads",
        "1",
        "--hashes",
        "32",
        "--widths",
        "16",
        "--max-cardinality",
        "2k",
    ]
    flags += ["--counted-rows", "2k", "--cache-rows", "50", "--rounds", "3", "--record", str(path)]
    assert main(["bench", "dhe", *flags]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert {(r["kind"], r["part"], r["candidate"]) for r in rows} == {
        (kind, part, name)
        for kind in ("dhe", "hybrid")
        for part in ("tables", "model")
        for name in ("plain", "distinct", "stored", "cached", "bf16")
        if name != "bf16" or has_packed_products(torch.bfloat16)
    }
    assert all(r["max_error"] < 1e-5 for r in rows if r["candidate"] != "bf16")
    assert all(r["max_error"] < 0.02 for r in rows)
    assert all(r["faster"] == 1 for r in rows if r["candidate"] == "plain")
    assert "hybrid model, cached" in capsys.readouterr().out


def test_refusals(capsys):
    assert main(["bench", "dhe", "--query-size", "0"]) == 2
    assert main(["bench", "dhe", "--query-size", "1000000"]) == 2
    assert "more than 10,000,000" in capsys.readouterr().err
