import numpy as np
import pytest

from recsys_opt.data.access_count import count_statistics, table_sizes
from recsys_opt.data.access_statistics import AccessStatistics, TableStatistics
from recsys_opt.errors import InputError
from recsys_opt.integrations.parquet import ParquetSource

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def run(paths, out, **given: int) -> AccessStatistics:
    source = ParquetSource(paths)
    sizes, derived = table_sizes(source, given)
    return count_statistics(source, sizes, out, derived=derived)[0]


def test_bags_missing_bags_and_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("recsys_opt.integrations.parquet.BATCH_ROWS", 70)
    rng = np.random.default_rng(0)
    users = rng.integers(0, 50, 1000)
    lengths = rng.integers(0, 5, 1000)
    bags = [list(map(int, rng.integers(0, 400, n))) if n else None for n in lengths]
    table = pa.table(
        {
            "price": pa.array(rng.random(1000)),
            "user": pa.array(users, pa.int32()),
            "items": pa.array(bags, pa.list_(pa.int64())),
            "shop": pa.array([None if u < 10 else int(u) for u in users], pa.uint16()),
        }
    )
    pq.write_table(table.slice(0, 450), tmp_path / "0.parquet", row_group_size=200)
    pq.write_table(table.slice(450), tmp_path / "1.parquet", row_group_size=333)
    found = run([tmp_path / "0.parquet", tmp_path / "1.parquet"], tmp_path / "s.npz", items=1000)
    assert list(found.tables) == ["user", "items", "shop"]
    assert found.source["derived_sizes"] == ["user", "shop"]
    assert found.table("user").to_json() == TableStatistics.from_ids("user", 50, users).to_json()
    items = found.table("items")
    assert (items.samples, items.bags, items.lookups) == (1000, (lengths > 0).sum(), lengths.sum())
    flat = np.concatenate([bag for bag in bags if bag])
    early = sum(len(bag) for bag in bags[:500] if bag)
    counts, late = np.bincount(flat, minlength=1000), np.bincount(flat[early:], minlength=1000)
    np.testing.assert_array_equal(items.row_counts(), counts[items.ranking()])
    np.testing.assert_array_equal(items.late_counts(), late[items.ranking()])
    shop = found.table("shop")
    assert (shop.bags, shop.lookups, shop.num_embeddings) == ((users >= 10).sum(), (users >= 10).sum(), 50)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": pa.array([1.0, 2.0])}, r"has no column of integers or of lists .*: a double"),
        ({"a": pa.array([1, 2, 90])}, r"row 2, column a: id 90 is outside the table's 60 rows"),
        ({"a": pa.array([[1], [], [2, -5]])}, r"row 2, column a: id -5 is outside the table's 60 rows"),
        ({"a": pa.array([[1], [3, None]])}, r"row 1, column a has a list with a null"),
        ({"a": pa.array([3, 1 << 63], pa.uint64())}, r"row 1, column a: id 9223372036854775808 is above"),
    ],
)
def test_bad_columns_are_refused(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=message):
        run([tmp_path / "t.parquet"], tmp_path / "s.npz", a=60)


def test_files_that_are_not_of_one_trace_are_refused(tmp_path):
    pq.write_table(pa.table({"a": pa.array([1])}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"b": pa.array([1])}), tmp_path / "1.parquet")
    (tmp_path / "2.parquet").write_bytes((tmp_path / "0.parquet").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"1.parquet has no column a of ids, as .*0.parquet has"):
        ParquetSource([tmp_path / "0.parquet", tmp_path / "1.parquet"])
    with pytest.raises(InputError, match=r"2.parquet cannot be read as Parquet"):
        ParquetSource([tmp_path / "2.parquet"])
