import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt import _access
from recsys_opt.data.access_counters import count, totals
from recsys_opt.errors import InputError


def place(table: int, position: int) -> str:
    return f"table {table}, position {position}"


@settings(max_examples=60)
@given(st.data())
def test_columns_of_a_matrix_are_counted_where_they_lie(data):
    """Strided, either type, any number of threads, and counters that run over after a few lookups."""
    columns = data.draw(st.integers(1, 5))
    sizes = data.draw(st.lists(st.integers(1, 50), min_size=columns, max_size=columns))
    length = data.draw(st.integers(0, 400))
    seed = data.draw(st.integers(0, 1000))
    dtype = data.draw(st.sampled_from([np.int32, np.int64, np.uint16, ">i4"]))
    carry_at = data.draw(st.sampled_from([1, 2, 7, 1 << 31]))
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, n, length) for n in sizes], axis=1).astype(dtype)
    counters = [_access.Counters(n, carry_at) for n in sizes]
    for rows in (ids[: length // 3], ids[length // 3 :]):
        count(counters, [rows[:, c] for c in range(columns)], place, threads=data.draw(st.integers(1, 3)))
    for c, n in enumerate(sizes):
        np.testing.assert_array_equal(totals(counters[c]), np.bincount(ids[:, c].astype(int), minlength=n))
        assert counters[c].lookups == length


def test_large_tables_and_many_blocks():
    rng = np.random.default_rng(1)
    ids = (3_000_000 * rng.random((40_000, 2)) ** 5).astype(np.int32)
    counters = [_access.Counters(3_000_000) for _ in range(2)]
    count(counters, [ids[:, 0], ids[::-1, 1]], place, threads=2)
    for c in range(2):
        np.testing.assert_array_equal(totals(counters[c]), np.bincount(ids[:, c], minlength=3_000_000))


def test_counts_beyond_32_bits_are_exact_and_survive_a_state():
    counters = _access.Counters(3)
    counters.add_counts(np.array([1, 2]), np.array([5_000_000_000, 4], dtype=np.uint64))
    count([counters], [np.array([1, 1, 0])], place)
    again = _access.Counters(3)
    again.restore(counters.low, counters.carried, counters.lookups)
    count([again], [np.array([1])], place)
    assert list(totals(again)) == [1, 5_000_000_003, 4]
    late = _access.Counters(3)
    assert list(_access.ranked(again, late)["counts"]) == [5_000_000_003, 4, 1]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_bad_id_is_named_however_many_threads(threads):
    ids = [np.zeros(9000, np.int64) for _ in range(3)]
    ids[1][[8500, 8600]] = [-7, 99]
    ids[2][3] = 50
    counters = [_access.Counters(50) for _ in ids]
    with pytest.raises(InputError, match=r"table 1, position 8500: id -7 is outside the table's 50 rows"):
        count(counters, ids, place, threads=threads)


def test_the_same_counters_twice_are_refused():
    counters = _access.Counters(5)
    with pytest.raises(ValueError, match="given twice"):
        _access.count([counters, counters], [np.zeros(1, np.int64)] * 2, 1)


@pytest.mark.parametrize("packed", [b"\x05\x80", b"\x05\x05\x05", b"\x05", b"\x05\xff\x01", b"\x80" * 11])
def test_packed_rows_that_are_none_are_refused(packed):
    with pytest.raises(ValueError, match="damaged"):
        _access.unpack_ranking(np.frombuffer(packed, np.uint8), np.array([2]), 100)
