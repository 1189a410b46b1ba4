import json

from recsys_opt.cli.main import main
from recsys_opt.run_folder import RunFolder
from tests.generated import make_dataset

SMALL = ["--bottom-mlp", "16,8", "--top-mlp", "16,1", "--max-rows", "1k"]


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_train_convert_evaluate_fine_tune(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    dense, svd, tuned = (tmp_path / name for name in ("dense", "svd", "tuned"))
    assert run(capsys, "train", data.path, "--out", dense, *SMALL)[0] == 0
    code, text, _ = run(capsys, "convert", dense, "--out", svd, "--tt-threshold", "700", "--tt-rank", "4")
    assert code == 0
    assert "C4             5,000" in text
    assert "C3" in text
    assert run(capsys, "train", data.path, "--out", svd, "--evaluate-only", "test")[0] == 0
    flags = ["--init-from", svd, "--core-lr", "0.001", "--json"]
    code, text, _ = run(capsys, "train", data.path, "--out", tuned, *flags)
    assert code == 0
    assert json.loads(text)["rows"] == 1000  # the settings of the run that it starts from
    tables = RunFolder(tuned).description()["model"]["tables"]
    assert [t["representation"] for t in tables] == ["dense", "dense", "tt", "tt"]


def test_json(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    assert run(capsys, "train", data.path, "--out", tmp_path / "dense", *SMALL)[0] == 0
    flags = ["--out", tmp_path / "svd", "--tt-tables", "C4", "--tt-rank", "2", "--json"]
    code, text, _ = run(capsys, "convert", tmp_path / "dense", *flags)
    (table,) = json.loads(text)["tables"]
    assert code == 0
    assert (table["name"], table["tt_ranks"]) == ("C4", [2, 2])
    assert 0 < table["weighted_error"] < 1 < table["fit_error"] < 1.1


def test_ranks_by_tolerance_and_by_budget(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    dense = tmp_path / "dense"
    assert run(capsys, "train", data.path, "--out", dense, *SMALL)[0] == 0
    flags = ["--out", tmp_path / "near", "--tt-tables", "C4", "--tolerance", "0.2", "--json"]
    code, text, _ = run(capsys, "convert", dense, *flags)
    assert code == 0
    (table,) = json.loads(text)["tables"]
    assert table["fit_error"] <= 0.2
    assert all(rank % 8 == 0 for rank in table["tt_ranks"])
    code, text, _ = run(capsys, "train", data.path, "--out", tmp_path / "near", "--resume", "--json")
    assert code == 0  # the run knows its ranks
    code, text, _ = run(
        capsys, "convert", dense, "--out", tmp_path / "small", "--memory-budget", "60kB", "--json"
    )
    assert code == 0
    tables = RunFolder(tmp_path / "small").description()["model"]["tables"]
    assert sum(t["storage_bytes"] for t in tables) <= 60_000


def test_refusals_exit_with_2(tmp_path, capsys):
    code, _, error = run(capsys, "convert", tmp_path, "--out", tmp_path / "x", "--tt-rank", "2")
    assert code == 2
    assert "is not a run folder" in error


def test_a_budget_s_choice_can_be_changed_and_cut(tmp_path, capsys):
    """Shapes that are not the defaults survive conversion; an old choice does not outlive a new wish."""
    data = make_dataset(tmp_path / "data")
    first, cut, less, other = (tmp_path / name for name in ("first", "cut", "less", "other"))
    assert run(capsys, "train", data.path, "--out", first, *SMALL, "--memory-budget", "60kB")[0] == 0
    flags = ["--tt-threshold", "700", "--tt-rank", "4"]
    assert run(capsys, "convert", first, "--out", cut, *flags)[0] == 0
    assert run(capsys, "train", data.path, "--out", cut, "--evaluate-only", "test")[0] == 0
    code, text, _ = run(
        capsys, "train", data.path, "--out", less, "--init-from", first, "--memory-budget", "20kB", "--json"
    )
    assert code == 0
    assert json.loads(text)["embedding_bytes"] <= 20_000
    code, text, _ = run(
        capsys, "train", data.path, "--out", other, "--init-from", cut, "--tt-rank", "2", "--json"
    )
    assert code == 0
    tables = RunFolder(other).description()["model"]["tables"]
    ranks = [t["options"]["tt_ranks"] for t in tables if t["representation"] == "tt"]
    assert len(ranks) == 2
    assert {rank for bonds in ranks for rank in bonds} == {2}
