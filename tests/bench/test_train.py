import json
import sys

import pytest
import torch

from recsys_opt import ops
from recsys_opt.bench.train import Settings, run
from recsys_opt.bench.train_models import Candidate, TTOptions, build_models, make_step
from recsys_opt.cli.main import main
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.progress import SilentProgress

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"batch_sizes": (8,), "rounds": 3, "block_ms": 1.0, "tt_rank": 4, "max_rows": 50}


def test_every_candidate_is_timed_compared_and_recorded(tmp_path, capsys):
    out = tmp_path / "new" / "record.json"
    flags = ["--rounds", "3", "--tt-rank", "4", "--max-rows", "50", "--algorithm", "sgd", "adagrad"]
    flags += ["--batch-size", "8", "--tables", "nn", "dense", "tt", "--record", str(out), "--block-ms", "1"]
    assert main(["bench", "train", *flags, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    record = json.loads(out.read_text())
    assert record["rows"] == rows
    assert record["rows_of_tables"][2] == 50
    assert record["tt_q"] == [2, 1, 8]
    assert record["threads"] == 1
    assert record["core_wait_s"] is None or record["core_wait_s"] >= 0
    assert [row["candidate"] for row in rows] == [
        "nn fp32 sgd", "dense fp32 sgd", "tt fp32 sgd", "dense fp32 adagrad", "tt fp32 adagrad",
        "nn bf16 sgd", "dense bf16 sgd", "tt bf16 sgd", "dense bf16 adagrad", "tt bf16 adagrad",
    ]  # fmt: skip
    for row in rows:
        assert 3 <= row["rounds"] <= row["steps"]
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["samples_per_s"] == pytest.approx(8e3 / row["median_ms"], rel=0.01)
        assert ("ratio_to_nn" in row) == row["candidate"].endswith("sgd")
        assert "ratio_to_script" not in row
    assert rows[0]["ratio_to_nn"] == {"median": 1, "p20": 1, "p80": 1}


def test_the_table_is_narrow_enough_to_paste(tmp_path, capsys):
    flags = ["--rounds", "3", "--max-rows", "50", "--batch-size", "64", "--tables", "nn", "tt"]
    flags += [
        "--block-ms",
        "1",
        "--precision",
        "fp32",
        "--ids",
        "uniform",
        "--record",
        str(tmp_path / "r.json"),
    ]
    assert main(["bench", "train", *flags]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


def test_fbgemm_tables():
    pytest.importorskip("fbgemm_gpu")
    rows = run(Settings(**SMALL, tables=("fbgemm", "tt")), SilentProgress())
    assert [row["candidate"] for row in rows] == [
        "fbgemm fp32 sgd", "tt fp32 sgd", "fbgemm bf16 sgd", "tt bf16 sgd"
    ]  # fmt: skip
    assert all(row["ratio_to_fbgemm"]["median"] > 0 for row in rows)


def test_every_candidate_trains_its_tables_by_its_own_rule():
    """They share weights, and what one candidate sets up must not stop another's updates."""
    kinds = [(t, a) for t in ("nn", "dense", "tt") for a in ("sgd", "adagrad") if t != "nn" or a == "sgd"]
    candidates = [Candidate(tables, "fp32", algorithm) for tables, algorithm in kinds]
    models = build_models(candidates, (40, 7, 19), TTOptions(1, 4))
    batch = (torch.randn(8, 13), torch.arange(24) % 7, torch.ones(8))
    steps = {c: make_step(models[c.model], c, [batch]) for c in candidates}
    dense = models["dense sgd"].embeddings.table("C1").weight
    assert dense.data_ptr() == models["nn sgd"].embeddings.bags[0].weight.data_ptr()
    for candidate, step in steps.items():
        tables = models[candidate.model].embeddings
        before = {name: tensor.clone() for name, tensor in tables.state_dict().items()}
        step()
        for name, tensor in tables.state_dict().items():
            moved = (tensor != before[name]).flatten(1).any(1)
            assert moved.any(), (candidate, name)
            assert tensor.shape[0] == 7 or "core" in name or not moved[7:].any(), (candidate, name)
    for kind in ("dense", "tt"):
        bag = models[f"{kind} adagrad"].embeddings.table("C3")
        assert bag.update.algorithm == "rowwise_adagrad"
        assert bag.update_state()["weight"].count_nonzero() == 7
        assert models[f"{kind} sgd"].embeddings.table("C3").update.algorithm == "sgd"


def test_a_step_multiplies_tensor_trains_in_its_precision():
    candidates = [Candidate("tt", "fp32", "sgd"), Candidate("tt", "bf16", "sgd")]
    models = build_models(candidates, (400, 7, 19), TTOptions(1, 16))
    batch = (torch.randn(8, 13), torch.arange(24) % 7, torch.ones(8))
    steps = {c.precision: make_step(models[c.model], c, [batch]) for c in candidates}
    try:
        for precision in ("bf16", "fp32", "bf16"):
            steps[precision]()
            assert ops.tt_allow_bf16(False) == (precision == "bf16")
    finally:
        ops.tt_allow_bf16(False)


def test_column_factors_reach_the_tensor_trains():
    models = build_models([Candidate("tt", "fp32", "sgd")], (40, 7, 19), TTOptions(1, 4, (1, 2, 8)))
    table = models["tt sgd"].embeddings.table("C1")
    assert (table.tt_q_shapes, table.tt_ranks) == ((1, 2, 8), (1, 4, 4, 1))


def test_the_stock_model_is_the_same_model():
    rows = (40, 7, 19)
    candidates = [Candidate(tables, "fp32", "sgd") for tables in ("nn", "dense")]
    models = build_models(candidates, rows, TTOptions(1, 4))
    values, dense = torch.tensor([3, 39, 3, 0, 6, 6, 18, 0, 1], dtype=torch.int32), torch.randn(3, 13)
    torch.testing.assert_close(models["nn sgd"](dense, values), models["dense sgd"](dense, values))
    batch = (dense, values, torch.tensor([0.0, 1.0, 1.0]))
    table = models["dense sgd"].embeddings.table("C1").weight
    before = table.clone()
    make_step(models["nn sgd"], candidates[0], [batch])()  # trains the rows that both share
    assert (table != before).any(1).nonzero().flatten().tolist() == [3, 39]


def test_the_script_is_run_in_turns_and_compared_with(tmp_path):
    script = tmp_path / "dlrm_s_pytorch.py"
    script.write_text(
        "import sys\n"
        "assert '--mini-batch-size=8' in sys.argv and '--arch-mlp-bot=13-512-256-64-16' in sys.argv\n"
        "open('runs', 'a').write('x')\n"
        "for ms in (900, 50, 60): print(f'Finished training it 5/15 of epoch 0, {ms:.2f} ms/it, loss 0.7')\n"
    )
    chosen = {"tables": ("dense",), "dlrm_script": script, "dlrm_python": sys.executable}
    rows = run(Settings(**SMALL, **chosen), SilentProgress())
    assert (tmp_path / "runs").read_text() == "xxx"
    assert rows[0]["candidate"].startswith("DLRM repository's script")
    assert rows[0]["median_ms"] == 55  # without the first, warming line of each run
    assert rows[0]["ratio_to_script"]["median"] == 1
    # A round's median over the script's 55 ms.
    assert 0 < rows[1]["ratio_to_script"]["p20"] <= rows[1]["p80_ms"] / 55


def test_a_failing_script_is_reported(tmp_path):
    script = tmp_path / "dlrm_s_pytorch.py"
    settings = {**SMALL, "dlrm_script": script, "dlrm_python": sys.executable}
    with pytest.raises(InputError, match="does not exist; give the path"):
        Settings(**settings)
    script.write_text("raise SystemExit('no such flag')")
    with pytest.raises(RecsysOptError, match="ended with code 1: no such flag"):
        run(Settings(**settings, tables=("dense",)), SilentProgress())
    script.write_text("print('hello')")
    with pytest.raises(RecsysOptError, match="printed 0 lines with ms/it"):
        run(Settings(**settings, tables=("dense",)), SilentProgress())
    with pytest.raises(InputError, match="cannot run /no/python"):
        run(Settings(**{**settings, "dlrm_python": "/no/python"}, tables=("dense",)), SilentProgress())


@pytest.mark.parametrize(("name", "value"), [("rounds", 0), ("threads", 0), ("batch_sizes", (8, 0))])
def test_bad_settings_are_named(name, value):
    with pytest.raises(InputError, match="= 0; it must be at least 1"):
        Settings(**{**SMALL, name: value})
