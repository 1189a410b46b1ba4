import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt import _access
from recsys_opt.data.access_file import _members
from recsys_opt.data.access_statistics import AccessStatistics, TableStatistics
from recsys_opt.errors import InputError


def statistics(ids: dict[str, tuple[int, np.ndarray]]) -> AccessStatistics:
    return AccessStatistics.of([TableStatistics.from_ids(name, *given) for name, given in ids.items()])


@pytest.fixture
def two(tmp_path):
    rng = np.random.default_rng(0)
    found = statistics(
        {
            "large": (20_000, (20_000 * rng.random(30_000) ** 3).astype(np.int64)),
            "small": (5, rng.integers(0, 4, 30_000).astype(np.int32)),
        }
    )
    found.save(tmp_path / "stats.npz")
    return found


def test_a_table_by_definition():
    ids = np.array([7, 3, 3, 9, 7, 3, 0, 9, 3, 5], dtype=np.int64)
    table = TableStatistics.from_ids("t", 12, ids, samples=20, bags=8)
    assert list(table.ranking()) == [3, 7, 9, 0, 5]
    assert list(table.row_counts()) == [4, 2, 2, 1, 1]
    assert list(table.late_counts()) == [2, 0, 1, 1, 1]
    assert (table.lookups, table.late_lookups, table.distinct, table.dead_rows) == (10, 5, 5, 7)
    assert (table.coverage, table.pooling_factor, table.lookups_per_sample) == (0.4, 1.25, 0.5)
    assert table.histogram() == [(1, 1, 2, 2), (2, 2, 2, 4), (3, 4, 1, 4)]
    np.testing.assert_allclose(table.curve_in_sample.share_of([1, 3, 5, 12]), [0.4, 0.8, 1, 1])


def test_saved_and_loaded(two, tmp_path):
    found = AccessStatistics.load(tmp_path / "stats.npz")
    assert found.sha256 == two.sha256
    assert list(found.tables) == ["large", "small"]
    for name, table in two.tables.items():
        again = found.table(name)
        assert again.to_json() == table.to_json()
        np.testing.assert_array_equal(again.ranking(), table.ranking())
        np.testing.assert_array_equal(again.late_counts(), table.late_counts())
        np.testing.assert_array_equal(again.curve.share, table.curve.share)
    again_path = tmp_path / "again.npz"
    found.save(again_path)
    assert again_path.read_bytes() == (tmp_path / "stats.npz").read_bytes()


@settings(max_examples=40)
@given(st.data())
def test_merged_shards_are_one_pass(data):
    rows = data.draw(st.integers(1, 40))
    length = data.draw(st.integers(0, 30))
    shards = data.draw(st.integers(1, 5))
    dtype = data.draw(st.sampled_from([np.int32, np.int64]))
    ids = np.array(
        data.draw(st.lists(st.integers(0, rows - 1), min_size=length * shards, max_size=length * shards)),
        dtype=dtype,
    )
    parts = [statistics({"t": (rows, ids[i * length : (i + 1) * length])}) for i in range(shards)]
    merged, whole = AccessStatistics.merge(parts), statistics({"t": (rows, ids)})
    assert merged.sha256 == whole.sha256
    assert (merged.samples, merged.late_from) == (whole.samples, whole.late_from)
    np.testing.assert_array_equal(merged.tables["t"].ranking(), whole.tables["t"].ranking())
    for (name, a), (_, b) in zip(
        _members(list(merged.tables.values())).items(),
        _members(list(whole.tables.values())).items(),
        strict=True,
    ):
        assert a.tobytes() == b.tobytes(), name


def test_other_tables_do_not_merge(two):
    other = statistics({"large": (30_000, np.array([1, 2]))})
    with pytest.raises(InputError, match=r"of 'large', the first has 20000 rows, number 2 has 30000 rows"):
        AccessStatistics.merge([two, other])


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.6, 0.99])
def test_truncated_files_are_refused(two, tmp_path, keep):
    path = tmp_path / "stats.npz"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(InputError, match=r"is not whole, .*; make it again with recsys-opt stats"):
        AccessStatistics.load(path)


def test_damaged_bytes_are_noticed(two, tmp_path):
    path = tmp_path / "stats.npz"
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        places = {i.filename: i.header_offset + 200 for i in archive.infolist()}
    for name in ("about.npy", "curve.npy", "run_rows.npy", "ranking.npy", "late.npy"):
        at = places[name]
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        with pytest.raises(InputError, match="stats"):
            found = AccessStatistics.load(path).table("large")
            found.ranking()
            found.late_counts()


def test_bytes_changed_at_random_are_refused_or_change_nothing(two, tmp_path):
    path, random = tmp_path / "stats.npz", np.random.default_rng(5)
    counters = _access.SampledCounters(20_000, 64, 32)
    counters.add(random.integers(0, 20_000, 3000), False)
    sampled = TableStatistics.from_sampled("sampled", 3000, 3000, counters, (64, 32))
    whole = AccessStatistics.of([*two.tables.values(), sampled])
    whole.save(path)
    content = path.read_bytes()
    refused = 0
    for _ in range(300):
        at, length = random.integers(0, len(content)), random.integers(1, 20)
        path.write_bytes(content[:at] + random.bytes(length) + content[at + length :])
        try:
            found = AccessStatistics.load(path)
            for table in found.tables.values():
                table.ranking(), table.late_counts(), table.row_counts()
            assert found.sha256 == whole.sha256
        except InputError:
            refused += 1
    assert refused > 250


def test_newer_versions_and_other_files_are_refused(two, tmp_path):
    newer = tmp_path / "newer.npz"
    text = b'{"format": "recsys_opt.access_statistics", "version": 99}'
    np.savez(newer, about=np.frombuffer(text, dtype=np.uint8))
    with pytest.raises(InputError, match=r"version 99 .* reads version 1: make it again"):
        AccessStatistics.load(newer)
    np.savez(newer, weights=np.zeros(3))
    with pytest.raises(InputError, match="no member 'about'"):
        AccessStatistics.load(newer)
    with pytest.raises(InputError, match="does not exist; make one with recsys-opt stats"):
        AccessStatistics.load(tmp_path / "absent.npz")


def test_a_table_that_is_not_there(two):
    with pytest.raises(InputError, match="no table 'x'; their tables are large, small"):
        two.table("x")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([1, 2, 3, 10]), r"table t, ids\[3\]: id 10 is outside the table's 10 rows \(0 to 9\)"),
        (np.array([1, -4, 3], np.int32), r"ids\[1\]: id -4 is outside"),
        (np.array([np.nan, 1.0]), r"ids\[0\]: .* float64 \(not a number.*integers"),
        (np.array([True]), "bool"),
        (np.array([3, 1 << 63, 2, 2], np.uint64), r"ids\[1\]: id 9223372036854775808 is above"),
        (np.zeros((2, 2), np.int64), r"shape \(1, 2\)"),
    ],
)
def test_bad_ids_are_refused_with_their_place(ids, message):
    with pytest.raises(InputError, match=message):
        TableStatistics.from_ids("t", 10, ids)
