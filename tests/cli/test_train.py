import dataclasses
import json

import pytest

from recsys_opt.cli.arguments import field_docs
from recsys_opt.cli.main import build_parser, main
from recsys_opt.cli.train import LEAVE_OUT
from recsys_opt.models.recipes import DLRMConfig
from recsys_opt.quantities import whole_number
from recsys_opt.run_folder import RunFolder
from recsys_opt.training.config import TrainingConfig, leaves
from recsys_opt.training.optimizers import OptimizerConfig
from recsys_opt.training.schedule import ScheduleConfig
from tests.generated import make_dataset

SMALL = ["--bottom-mlp", "16,8", "--top-mlp", "16,1", "--max-rows", "1k"]


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(["train", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_one_command_trains_evaluates_and_reports(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    out = tmp_path / "run"
    code, text, _ = run(capsys, str(data.path), "--out", str(out), *SMALL)
    assert code == 0
    assert "trained    1,000 rows, 8 steps" in text
    assert "test       AUC 0." in text
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")  # one file: nothing is fetched


def test_json_goes_to_stdout_alone(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    code, text, progress = run(capsys, str(data.path), "--out", str(tmp_path / "run"), *SMALL, "--json")
    result = json.loads(text)
    assert code == 0
    assert result["test"]["rows"] == 600
    assert result["report"].endswith("report.html")
    assert "training: " in progress
    again = ["--out", str(tmp_path / "run"), "--evaluate-only", "test", "--json"]
    code, text, _ = run(capsys, str(data.path), *again)
    assert code == 0
    assert json.loads(text) == result["test"]


def test_tensor_trains_by_threshold_and_name(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    for name, flags, expected in (
        ("threshold", ["--tt-threshold", "700"], {"C3", "C4"}),
        ("names", ["--tt-tables", "C4", "--tt-rank", "4"], {"C4"}),
        ("none", ["--tt-threshold", "none"], set()),
    ):
        out = tmp_path / name
        code, _, _ = run(capsys, str(data.path), "--out", str(out), *SMALL, *flags)
        tables = RunFolder(out).description()["model"]["tables"]
        assert code == 0
        assert {t["name"] for t in tables if t["representation"] == "tt"} == expected
        (c4,) = [t for t in tables if t["name"] == "C4"]
        assert c4["dense_bytes"] == 4 * 8 * 5000
        if name == "names":
            shapes = {"tt_p_shapes": [16, 15, 21], "tt_q_shapes": [1, 1, 8]}
            assert c4["options"] == {"tt_ranks": [4, 4], **shapes}  # with them defaults may change
            assert c4["storage_bytes"] < c4["dense_bytes"] / 20


def test_fbgemm_tables_beside_tensor_trains(tmp_path, capsys):
    pytest.importorskip("fbgemm_gpu")
    data, out = make_dataset(tmp_path / "data"), tmp_path / "run"
    flags = ["--dense-representation", "fbgemm", "--tt-tables", "C4", "--json"]
    code, text, _ = run(capsys, str(data.path), "--out", str(out), *SMALL, *flags)
    assert code == 0
    result = json.loads(text)
    tables = RunFolder(out).description()["model"]["tables"]
    assert [t["representation"] for t in tables] == ["fbgemm", "fbgemm", "fbgemm", "tt"]
    assert [t["storage_bytes"] for t in tables[:3]] == [t["dense_bytes"] for t in tables[:3]]
    assert "<td>fbgemm</td>" in (out / "report.html").read_text()
    for more in (["--evaluate-only", "test"], ["--resume"]):
        code, text, _ = run(capsys, str(data.path), "--out", str(out), *more, "--json")
        assert code == 0
        found = json.loads(text)
        assert found.get("test", found) == result["test"]


def test_resume_keeps_the_runs_settings(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    flags = [str(data.path), "--out", str(tmp_path / "run")]
    assert run(capsys, *flags, *SMALL, "--mlp-lr", "0.03")[0] == 0
    code, _, message = run(capsys, *flags)
    assert code == 2
    assert "already holds a run; add --resume" in message
    assert run(capsys, *flags, "--resume")[0] == 0
    code, _, message = run(capsys, *flags, "--resume", "--mlp-lr", "0.04")
    assert code == 2
    assert "optimizer.mlp_lr: 0.03 -> 0.04" in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "0"], "batch_size = 0; it must be at least 1"),
        (["--warmup", "0.8", "--decay", "0.7"], "more than the whole run"),
        (["--tt-tables", "C1,C77"], "C77"),
        (["--mlp-lr", "-1"], "mlp_lr = -1.0"),
        (["--evaluate-only", "test", "--seed", "1"], "takes no settings"),
        (["--evaluate-only", "test"], "is not a run folder"),
    ],
)
def test_refusals_exit_with_2(tmp_path, capsys, flags, message):
    data = make_dataset(tmp_path / "data", rows=100)
    code, _, error = run(capsys, str(data.path), "--out", str(tmp_path / "run"), *flags)
    assert code == 2
    assert message in error


@pytest.mark.parametrize(("text", "value"), [("12", 12), ("100k", 100_000), ("1e6", 10**6)])
def test_whole_numbers(text, value):
    assert whole_number(text) == value


@pytest.mark.parametrize("text", ["", "1.5", "k", "1e-3", "ten"])
def test_what_is_no_whole_number(text):
    with pytest.raises(ValueError, match=r"whole number|could not convert"):
        whole_number(text)


def test_every_setting_has_a_flag_with_help():
    parser = build_parser("train")
    (train,) = [a.choices["train"] for a in parser._actions if a.choices and "train" in a.choices]
    flags = {a.dest: a for a in train._actions}
    for path, _ in leaves(TrainingConfig()):
        if path not in LEAVE_OUT:
            assert flags["config." + path].help


@pytest.mark.parametrize("cls", [TrainingConfig, OptimizerConfig, ScheduleConfig, DLRMConfig])
def test_field_docs_are_the_strings_below_the_fields(cls):
    docs = field_docs(cls)
    plain = [f.name for f in dataclasses.fields(cls) if not dataclasses.is_dataclass(f.default_factory)]
    documented = [n for n in plain if n not in ("architecture", "compression", "optimizer", "schedule")]
    assert set(documented) <= set(docs)
