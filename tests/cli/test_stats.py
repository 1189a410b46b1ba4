import json
from pathlib import Path

import numpy as np
import pytest

from recsys_opt.cli.main import main
from recsys_opt.data.access_statistics import AccessStatistics
from tests.generated import make_dataset


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in ("stats", *words)])
    found = capsys.readouterr()
    return code, found.out, found.err


def columns(text: str, folder: Path) -> int:
    """The longest line's, however long the name of the tests' folder is."""
    return max(map(len, text.replace(f"{folder}/", "").splitlines()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "data").path


def test_counted_shown_and_merged(capsys, tmp_path, data):
    out = tmp_path / "s.npz"
    code, text, _ = run(capsys, data, "--out", out)
    assert code == 0
    assert columns(text, tmp_path) <= 100
    assert "19,200 lookups of 4,800 samples" in text
    code, again, _ = run(capsys, out)
    assert (code, again.splitlines()[3:]) == (0, text.splitlines()[4:])
    code, details, _ = run(capsys, out, "--table", "C4")
    assert code == 0
    assert "C4: 5,000 rows; 4,800 lookups" in details
    assert columns(details, tmp_path) <= 100
    assert run(capsys, out, "--table", "C9")[0] == 2
    for first in (0, 2400):
        assert (
            run(capsys, data, "--range", f"{first}:{first + 2400}", "--out", tmp_path / f"{first}.npz")[0]
            == 0
        )
    merged = tmp_path / "m.npz"
    code, text, _ = run(
        capsys, "--merge", tmp_path / "0.npz", tmp_path / "2400.npz", "--out", merged, "--json"
    )
    result = json.loads(text)
    assert (code, result["sha256"]) == (0, AccessStatistics.load(out).sha256)
    assert [t["name"] for t in result["tables"]] == ["C1", "C2", "C3", "C4"]
    assert sum(b["lookups"] for b in result["tables"][3]["histogram"]) == 4800


def test_many_tables_are_abbreviated(capsys, tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(60).reshape(2, 30))
    code, text, _ = run(capsys, tmp_path / "ids.npy", "--out", tmp_path / "s.npz", "--top", 4)
    lines = text.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines[5:9]] == ["column_29", "column_28", "column_27", "column_26"]
    assert "and 26 smaller tables" in text
    assert "largest id + 1" in text
    assert columns(text, tmp_path) <= 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{data}"], "give the file to write with --out"),
        (["{data}/none", "--out", "{out}"], "does not exist"),
        (["{data}", "--batches", "0:1", "--out", "{out}"], "--batches is about traces"),
        (["{data}", "--split", "test", "--range", "0:5", "--out", "{out}"], "give one"),
        (["{data}", "--split", "later", "--out", "{out}"], "later"),
        (["{data}", "--range", "5900:6100", "--out", "{out}"], "rows 5900 to 6100; there are 6000"),
        (["{data}", "--rows", "C1=5", "--out", "{out}"], "table C1 has 4 rows by its data"),
        (["{data}", "--rows", "C1", "--out", "{out}"], "--rows NAME=40000000"),
        (["{data}", "--memory", "1kB", "--out", "{out}"], "give more with --passes or --memory"),
        (["{data}/dataset.json", "--out", "{out}"], "no .parquet or .npy files"),
        (["--merge", "{data}", "--out", "{out}"], "is a folder; recsys-opt stats"),
    ],
)
def test_bad_arguments(capsys, tmp_path, data, words, message):
    out = tmp_path / "s.npz"
    code, _, error = run(capsys, *(w.format(data=data, out=out) for w in words))
    assert (code, out.exists()) == (2, False)
    assert message in error
