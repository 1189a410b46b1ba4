import json
import sys

import pytest

from recsys_opt.bench.train import Settings, run
from recsys_opt.cli.main import main
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.progress import SilentProgress

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"batch_sizes": (8,), "rounds": 2, "steps": 2, "tt_rank": 4, "max_rows": 50}


def test_every_candidate_is_timed_and_recorded(tmp_path, capsys):
    out = tmp_path / "new" / "record.json"
    flags = ["--rounds", "2", "--steps", "2", "--tt-rank", "4", "--max-rows", "50"]
    assert (
        main(
            [
                "bench",
                "train",
                "--batch-size",
                "8",
                "--tables",
                "dense",
                "tt",
                *flags,
                "--out",
                str(out),
                "--json",
            ]
        )
        == 0
    )
    rows = json.loads(capsys.readouterr().out)["rows"]
    record = json.loads(out.read_text())
    assert record["rows"] == rows
    assert record["rows_of_tables"][2] == 50
    assert [row["candidate"] for row in rows] == [
        "dense fp32 sgd uniform", "dense bf16 sgd uniform", "dense bf16 adagrad uniform",
        "dense bf16 sgd zipf",
        "tt fp32 sgd uniform", "tt bf16 sgd uniform", "tt bf16 adagrad uniform", "tt bf16 sgd zipf",
    ]  # fmt: skip
    for row in rows:
        assert row["timings"] == 4
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["samples_per_s"] == pytest.approx(8e3 / row["median_ms"], rel=0.01)
        assert row["ratio_to_script"] is None


def test_fbgemm_tables():
    pytest.importorskip("fbgemm_gpu")
    rows = run(Settings(**SMALL, tables=("fbgemm",)), SilentProgress())
    assert [row["candidate"] for row in rows] == [
        "fbgemm fp32 sgd uniform", "fbgemm bf16 sgd uniform", "fbgemm bf16 adagrad uniform"
    ]  # fmt: skip


def test_the_script_is_run_in_turns_and_compared_with(tmp_path):
    script = tmp_path / "dlrm_s_pytorch.py"
    script.write_text(
        "import sys\n"
        "assert '--mini-batch-size=8' in sys.argv and '--arch-mlp-bot=13-512-256-64-16' in sys.argv\n"
        "open('runs', 'a').write('x')\n"
        "for ms in (900, 50, 60): print(f'Finished training it 5/15 of epoch 0, {ms:.2f} ms/it, loss 0.7')\n"
    )
    rows = run(
        Settings(**SMALL, tables=("dense",), dlrm_script=script, dlrm_python=sys.executable), SilentProgress()
    )
    assert (tmp_path / "runs").read_text() == "xx"
    assert rows[0]["candidate"].startswith("DLRM repository's script")
    assert rows[0]["median_ms"] == 55  # without the first, warming line of each run
    assert rows[0]["ratio_to_script"] == 1
    assert rows[1]["ratio_to_script"] == pytest.approx(55 / rows[1]["median_ms"], rel=0.01)


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


@pytest.mark.parametrize(("name", "value"), [("rounds", 0), ("steps", 0), ("batch_sizes", (8, 0))])
def test_bad_settings_are_named(name, value):
    with pytest.raises(InputError, match="= 0; it must be at least 1"):
        Settings(**{**SMALL, name: value})
