import numpy as np
import pytest

from recsys_opt.data.access import count_access, count_columns
from recsys_opt.data.dataset import Dataset, array_path
from recsys_opt.errors import InputError
from tests.generated import COLUMNS, make_dataset


@pytest.mark.parametrize("memory_bytes", [1, 8 * 800, 1 << 30])
def test_counts_are_those_of_the_split_across_parts(tmp_path, memory_bytes):
    data = make_dataset(tmp_path / "data")
    parts = data.labelled_arrays()
    sparse = np.concatenate([p.sparse for p in parts])[:4800]
    labels = np.concatenate([p.labels for p in parts])[:4800, 0]
    found = list(count_columns(data, "train", memory_bytes=memory_bytes))
    assert [column for column, _, _ in found] == list(range(len(COLUMNS)))
    for column, counts, clicks in found:
        np.testing.assert_array_equal(counts, np.bincount(sparse[:, column], minlength=COLUMNS[column]))
        np.testing.assert_array_equal(
            clicks, np.bincount(sparse[:, column], weights=labels, minlength=COLUMNS[column])
        )


def test_chunks_make_no_difference(tmp_path, monkeypatch):
    data = make_dataset(tmp_path / "data")
    whole = count_access(data)
    monkeypatch.setattr("recsys_opt.data.access.CHUNK_ROWS", 37)
    for a, b in zip(whole, count_access(data), strict=True):
        np.testing.assert_array_equal(a.counts, b.counts)
        np.testing.assert_array_equal(a.ids, b.ids)
        assert (a.name, a.effect) == (b.name, b.effect)


def test_only_the_rows_that_are_trained_on_count(tmp_path):
    data = make_dataset(tmp_path / "data")
    assert {a.lookups for a in count_access(data, max_rows=1000)} == {1000}
    assert {a.lookups for a in count_access(data, "test")} == {600}


def test_ids_outside_the_column_are_refused_with_their_place(tmp_path):
    data = make_dataset(tmp_path / "data")
    path = array_path(data.path, "a", "sparse")
    sparse = np.load(path)
    sparse[17, 2] = 700
    np.save(path, sparse)
    with pytest.raises(InputError, match=r"row 17, column C3: id 700 is outside the table's 700 rows"):
        count_access(Dataset(data.path))


def test_a_split_without_rows_is_refused(tmp_path):
    data = make_dataset(tmp_path / "data", rows=5)
    with pytest.raises(InputError, match="no rows to count"):
        count_access(data, "validation")
