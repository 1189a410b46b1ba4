import json
from pathlib import Path

import pytest

from recsys_opt.bench.criteo_text import make_lines, write_rows
from recsys_opt.cli.main import main


def test_json_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = make_lines(100, seed=1)
    lines[41] = "nonsense"
    path = tmp_path / "train.txt"
    path.write_text("\n".join(lines) + "\n")
    command = ["data", "prepare", str(path), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert f"{path}, line 42: it has 1 column" in capsys.readouterr().err
    # The run that failed is not finished; other options start over.
    assert main([*command, "--bad-lines", "skip", "--json"]) == 2
    assert "its bad_lines is error, now asked for: skip" in capsys.readouterr().err
    assert main([*command, "--bad-lines", "skip", "--json", "--overwrite"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["rows"], result["bad_lines"], result["decision"]) == (99, 1, "fresh")
    assert result["bad_line_examples"] == [f"{path}, line 42: it has 1 column, not 40: 'nonsense'"]
    assert len(result["cardinalities"]) == 26
    assert result["splits"] == {"train": [0, 79], "validation": [79, 89], "test": [89, 99]}
    assert result["rows_per_s"] > 0
    assert main([*command, "--bad-lines", "skip"]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_cardinalities_by_name_list_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "train.txt", 50, seed=1)
    sizes = list(range(2, 28))
    (tmp_path / "sizes.txt").write_text("\n".join(map(str, sizes)))
    for i, which in enumerate((",".join(map(str, sizes)), str(tmp_path / "sizes.txt"))):
        out = str(tmp_path / f"out{i}")
        assert (
            main(["data", "prepare", str(path), "--out", out, "--hash", "--cardinalities", which, "--json"])
            == 0
        )
        assert list(json.loads(capsys.readouterr().out)["cardinalities"].values()) == sizes
    assert main(["data", "prepare", str(path), "--out", str(tmp_path / "named"), "--hash", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cardinalities"]["C3"] == 10_131_227


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cardinalities", "kaggle"], "--cardinalities needs --hash"),
        (["--hash", "--cardinalities", "avazu"], "neither one of kaggle, "),
        (["--hash", "--cardinalities", "1,2,3"], "there are 3 cardinalities; Criteo has 26"),
        (["--hash", "--cardinalities", "1," * 25 + "1"], "the cardinality of C1 is 1; it must be at least 2"),
        (["--min-count", "0"], "the minimum count is 0"),
        (["--split", "half"], "the split is 'half'"),
        (["--split", "last-day"], "a last-day split needs at least two days"),
        (["--threads", "-1"], "threads = -1"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    path = write_rows(tmp_path / "train.txt", 5, seed=1)
    assert main(["data", "prepare", str(path), "--out", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "dataset.json").exists()
