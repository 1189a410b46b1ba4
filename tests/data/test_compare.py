"""Measures of a column against counting by hand, and the comparison as a whole."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from recsys_opt.cli.main import main
from recsys_opt.data.calibration_ids import pair_agreement, unseen_share
from recsys_opt.data.compare import Table, compare, format_comparison, load_table, sparse_measures, top_share
from recsys_opt.data.synth import SyntheticCriteo, write_dataset
from recsys_opt.errors import InputError


def test_measures_by_hand() -> None:
    ids = np.array([0, 5, 5, 5, 7, 7, 9, 0, 5, 8])
    found = sparse_measures(ids)
    assert found["distinct"] == 4
    assert found["singletons"] == 2
    assert found["top_1"] == pytest.approx(0.4)
    assert found["top_1_percent"] == pytest.approx(0.4)
    assert found["top_10_percent"] == pytest.approx(0.4)
    assert found["missing"] == pytest.approx(0.2)
    assert found["unseen"] == 1.0  # the last row's 8 is new


def test_shares_of_the_top_ids_count_the_last_one_in_part() -> None:
    counts = np.array([10, 6, 4])
    assert top_share(counts, 0.1) == 10
    assert top_share(counts, 1.5) == 13
    assert top_share(counts, 3) == 20
    assert top_share(counts[:0], 0) == 0


def test_pair_agreement_by_hand() -> None:
    parent = np.array([1, 1, 1, 2, 2, 3, 0, 0])
    child = np.array([4, 4, 5, 6, 6, 7, 8, 9])
    # rows of parent 1: of the two others, 1, 1 and 0 agree out of 2; of parent 2 both; 3 is alone, 0 missing
    assert pair_agreement(parent, child) == pytest.approx((0.5 + 0.5 + 0 + 1 + 1) / 5)
    assert pair_agreement(np.array([1, 2]), np.array([1, 1])) == 0.0


def test_unseen_share_by_hand() -> None:
    ids = np.array([1, 2, 3, 4, 5, 6, 7, 8, 99, 1])
    assert unseen_share(ids) == 0.0
    ids[9] = 99  # occurs between .8 and .9 only
    assert unseen_share(ids) == 1.0


def test_equal_tables_differ_in_nothing(tmp_path: Path) -> None:
    write_dataset(SyntheticCriteo(5000, seed=1), tmp_path / "a")
    table = load_table(tmp_path / "a")
    assert table.integers is not None
    found = compare(table, table)
    assert all(entry["difference"] == 0 for entry in found["worst"].values())
    text = format_comparison(found)
    assert max(map(len, text.splitlines())) <= 100
    json.dumps(found, allow_nan=False)


def test_integers_unknown_where_the_generator_is_not(tmp_path: Path) -> None:
    write_dataset(SyntheticCriteo(500), tmp_path / "a")
    document = json.loads((tmp_path / "a" / "dataset.json").read_text())
    document["input_hash"] = "0" * 64  # as if the profile had changed since
    (tmp_path / "a" / "dataset.json").write_text(json.dumps(document))
    table = load_table(tmp_path / "a")
    assert table.integers is None
    found = compare(table, table)
    assert found["dense"][0]["a"]["missing"] is None
    assert "-/-" in format_comparison(found)


def test_rows_are_taken_evenly(tmp_path: Path) -> None:
    write_dataset(SyntheticCriteo(1000), tmp_path / "a")
    whole, some = load_table(tmp_path / "a"), load_table(tmp_path / "a", rows=100)
    np.testing.assert_array_equal(some.ids, whole.ids[::10])
    assert len(load_table(tmp_path / "a", rows=5000).labels) == 1000


def criteo_text(rows: int) -> bytes:
    """Criteo text from generated rows."""
    made = SyntheticCriteo(rows, seed=9).rows(0, rows)
    lines = []
    for label, integers, ids in zip(made.labels.ravel(), made.integers, made.sparse, strict=True):
        numbers = ["" if v == np.iinfo(np.int32).min else str(v) for v in integers]
        lines.append("\t".join([str(label), *numbers, *(f"{v:08x}" if v else "" for v in ids)]))
    return ("\n".join(lines) + "\n").encode()


def test_text_and_folder_measure_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "rows.tsv.gz"
    text.write_bytes(gzip.compress(criteo_text(2000)))
    write_dataset(SyntheticCriteo(2000, seed=9), tmp_path / "d")
    record = tmp_path / "record.json"
    assert main(["data", "compare", str(text), str(tmp_path / "d"), "--json", "--record", str(record)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["worst"]["missing_integer"]["difference"] == 0
    column = found["sparse"][2]
    assert column["a"] == column["b"]  # C3 can be missing, so that its id 0 means the same in both
    written = json.loads(record.read_text())
    assert written["name"] == "synth_vs_real"
    assert str(tmp_path) not in record.read_text()  # a record travels: it tells no one's folders


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_table(tmp_path / "none.tsv")
    (tmp_path / "short.tsv").write_text("1\t2\t3\n")
    with pytest.raises(InputError, match="line 1: 3 columns"):
        load_table(tmp_path / "short.tsv")
    assert main(["data", "compare", "x", "y", "--rows", "3"]) == 2


def test_table_needs_criteo_columns() -> None:
    n = 100
    table = Table(np.ones((n, 26), dtype=np.int64), None, np.zeros(n, dtype=np.int32))
    found = compare(table, table)
    assert found["click_rate"] == {"a": 0.0, "b": 0.0}
