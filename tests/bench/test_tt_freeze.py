import json

import pytest

from recsys_opt.bench.tt_freeze import Settings
from recsys_opt.cli.main import main
from recsys_opt.errors import InputError


def test_levels_beside_the_dense_table(tmp_path, capsys):
    out = tmp_path / "freeze.json"
    flags = ["--rows", "1000", "--p", "10,10,10", "--q", "2,2,2", "--rank", "4"]
    flags += ["--batch-size", "1", "64", "--rounds", "3", "--dtype", "fp32", "bf16", "--record", str(out)]
    assert main(["bench", "tt-freeze", *flags]) == 0
    text = capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    found = {(r["candidate"], r["batch_size"]): r for r in rows}
    for level in ("cores", "prefix", "dense"):
        for batch in (1, 64):
            row = found[f"{level} fp32", batch]
            assert row["error"] < 1e-5
            assert row["median_us"] > 0
            assert row["ratio"] > 0
        assert f"{level} fp32" in text
    assert found["dense fp32", 1]["bytes"] == found["nn.EmbeddingBag", 1]["bytes"] == 1000 * 8 * 4
    assert found["dense bf16", 1]["bytes"] == 1000 * 8 * 2
    assert 1e-4 < found["dense bf16", 1]["error"] < 2**-8
    assert found["nn.EmbeddingBag", 1]["ratio"] == 1.0


def test_refusals():
    with pytest.raises(InputError, match="there is no type 'int8'"):
        Settings(dtypes=("int8",))
    with pytest.raises(InputError, match="must be at least 1"):
        Settings(rounds=0)
