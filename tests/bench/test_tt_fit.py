import json

import numpy as np
import pytest

from recsys_opt.bench.tt_fit import Case, Settings, least_error, planted_blocks, run
from recsys_opt.cli.main import main
from recsys_opt.errors import InputError
from recsys_opt.progress import SilentProgress


def test_a_planted_table_has_its_noise():
    case = Case("planted", 4000, 8, 8, "exact", "memory", 1 << 24, 1)
    table = np.concatenate([block.numpy() for block in planted_blocks(case, 999)])
    assert table.shape == (4000, 8)
    again = np.concatenate([block.numpy() for block in planted_blocks(case, 999)])
    assert np.array_equal(table, again)
    assert least_error(case) == pytest.approx(0.2873, abs=1e-3)


@pytest.mark.slow
def test_methods_and_sources_come_to_the_same(tmp_path):
    np.save(tmp_path / "t.npy", np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32))
    settings = Settings(
        rows=(20_000,),
        dim=8,
        rank=8,
        kinds=("planted",),
        methods=("exact", "single-pass"),
        file_bytes=200_000,
        work_bytes=32 << 20,
        threads=1,
        table=str(tmp_path / "t.npy"),
    )
    rows = run(settings, SilentProgress())
    assert [(r["kind"], r["source"], r["method"]) for r in rows] == [
        ("planted", "memory", "exact"),
        ("planted", "memory", "single-pass"),
        ("planted", "file", "single-pass"),
        ("given", "file", "single-pass"),
    ]
    exact, single, _, given = rows
    assert exact["error"] == pytest.approx(0.287, abs=0.01)
    assert exact["error_range"] == [exact["error"]] * 2
    assert single["error_range"][0] < single["error"] < single["error_range"][1]
    assert single["error"] == pytest.approx(exact["error"], rel=0.3)
    assert (exact["passes"], single["passes"], given["rows"]) == (2, 1, 3000)
    assert all(0 <= r["peak_bytes"] < 64 << 20 and r["seconds"] > 0 for r in rows)
    assert [r["path"] for r in rows] == [None, None, "table.npy", "t.npy"]  # no folder of this machine
    json.dumps(rows, allow_nan=False)


@pytest.mark.slow
def test_the_command_writes_a_record(tmp_path, capsys):
    out = tmp_path / "fit.json"
    flags = ["--rows", "3k", "--dim", "4", "--rank", "4", "--kind", "random", "--method", "streaming"]
    assert main(["bench", "tt-fit", *flags, "--file-bytes", "0", "--threads", "1", "--record", str(out)]) == 0
    assert "streaming" in capsys.readouterr().out
    (row,) = json.loads(out.read_text())["rows"]
    assert row["rows"] == 3000


def test_refusals():
    with pytest.raises(InputError, match="there is no method 'fast'"):
        Settings(methods=("fast",))
    with pytest.raises(InputError, match="must be at least 1"):
        Settings(rank=0)
