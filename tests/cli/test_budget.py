import json

import pytest

from recsys_opt.access import TableAccess
from recsys_opt.cli.budget_table import budget_table
from recsys_opt.cli.main import main
from recsys_opt.embeddings.tt_budget import choose_tables
from recsys_opt.quantities import byte_size
from recsys_opt.run_folder import RunFolder
from recsys_opt.tables import TableConfig
from tests.generated import make_dataset

SMALL = ["--bottom-mlp", "16,8", "--top-mlp", "16,1", "--max-rows", "1k"]


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20MB", 20_000_000),
        ("16MiB", 16 * 2**20),
        ("1.1GB", 1_100_000_000),
        ("0.5KiB", 512),
        ("3k", 3000),
        ("1_000", 1000),
        ("2e6", 2_000_000),
        ("7 B", 7),
    ],
)
def test_bytes_as_people_write_them(text, value):
    assert byte_size(text) == value


@pytest.mark.parametrize(
    "text", ["", "MB", "-1MB", "1.5", "0.3B", "20 megabytes", "20MiBs", "1e-3MB", "2Mi3"]
)
def test_what_is_no_number_of_bytes(text):
    with pytest.raises(ValueError, match="bytes"):
        byte_size(text)


def test_a_look_at_the_choice_without_training(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    code, text, _ = run(capsys, "data", "tables", str(data.path), "--memory-budget", "40kB")
    assert code == 0
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines[1:6]] == ["C1", "C2", "C3", "C4", "total"]
    assert "5,000" in lines[4]
    assert " tt " in lines[4]
    code, text, _ = run(capsys, "data", "tables", str(data.path), "--memory-budget", "40kB", "--json")
    result = json.loads(text)
    assert result["bytes"] == sum(t["bytes"] for t in result["tables"]) <= 40_000
    assert result["tables"][3]["options"]["tt_ranks"]
    assert result["optimizer_bytes"] > 0


def test_training_takes_a_budget_and_keeps_it(tmp_path, capsys):
    data, out = make_dataset(tmp_path / "data"), tmp_path / "run"
    flags = ["train", str(data.path), "--out", str(out)]
    code, text, progress = run(capsys, *flags, *SMALL, "--memory-budget", "20kB", "--json")
    assert code == 0
    result = json.loads(text)
    assert result["memory_budget"]["bytes"] == result["embedding_bytes"] <= 20_000
    assert "budget 20,000 bytes" in progress
    config = RunFolder(out).description()["config"]["compression"]
    chosen = {t["name"]: t["options"] for t in result["memory_budget"]["tables"] if t["options"]}
    assert config["tt_options"] == chosen
    assert run(capsys, *flags, "--resume")[0] == 0
    assert run(capsys, *flags, "--resume", "--memory-budget", "20000")[0] == 0
    code, _, error = run(capsys, *flags, "--resume", "--memory-budget", "30kB")
    assert code == 2
    assert "memory_budget: 20000 -> 30000" in error


def test_a_budget_for_tables_taken_over_from_a_trained_run(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    assert run(capsys, "train", str(data.path), "--out", str(tmp_path / "dense"), *SMALL)[0] == 0
    flags = ["train", str(data.path), "--out", str(tmp_path / "tt"), *SMALL, "--memory-budget", "20kB"]
    code, text, _ = run(capsys, *flags, "--init-from", str(tmp_path / "dense"), "--json")
    assert code == 0
    assert json.loads(text)["embedding_bytes"] <= 20_000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "DATA", "--out", "OUT", "--memory-budget", "90"], 3, "give at least"),
        (["train", "DATA", "--out", "OUT", "--memory-budget", "1MB", "--tt-threshold", "9"], 2, "leave out"),
        (["data", "tables", "DATA", "--memory-budget", "90"], 3, "for table C"),
        (["data", "tables", "DATA"], 2, "--memory-budget 20MB"),
        (["data", "tables", "DATA", "--memory-budget", "1MB", "--batches", "2"], 2, "--batches is about"),
        (["data", "tables", "--memory-budget", "1MB"], 2, "need a DATASET"),
    ],
)
def test_refusals(tmp_path, capsys, arguments, code, message):
    data = make_dataset(tmp_path / "data", rows=500)
    places = {"DATA": str(data.path), "OUT": str(tmp_path / "run")}
    found, _, error = run(capsys, *(places.get(a, a) for a in arguments))
    assert found == code
    assert message in error


def test_the_widest_table_fits_in_100_columns():
    tables = [TableConfig("a_feature_with_a_very_long_name", 40_000_000, 128), TableConfig("b", 3, 128)]
    counts = [TableAccess.from_counts(t.name, [5] * 3) for t in tables]
    for budget in (2_000_000, 10**11):
        text = budget_table(choose_tables(tables, counts, budget))
        assert max(map(len, text.splitlines())) <= 100
