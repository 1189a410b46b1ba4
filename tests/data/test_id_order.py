import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt.data.id_order import ORDERS, ColumnLookups, IdOrder
from recsys_opt.errors import InputError


def lookups_of(ids, rows, chunk):
    found = ColumnLookups.empty(rows)
    for start in range(0, len(ids), chunk):
        found.add(np.array(ids[start : start + chunk], dtype=np.int64), start)
    return found


@st.composite
def columns(draw):
    rows = draw(st.integers(1, 40))
    ids = draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=120))
    return ids, rows, draw(st.integers(1, 50)), draw(st.integers(1, 130))


@settings(max_examples=200)
@given(columns(), st.sampled_from(ORDERS))
def test_every_order_is_a_bijection_with_seen_ids_first(column, by):
    ids, rows, chunk, batch = column
    order = lookups_of(ids, rows, chunk).order(by, batch)
    new, old = order.new_ids(), order.old_ids()
    np.testing.assert_array_equal(np.sort(new), np.arange(rows))
    np.testing.assert_array_equal(old[new], np.arange(rows))
    np.testing.assert_array_equal(new[old], np.arange(rows))
    seen = np.unique(ids)
    assert set(new[seen]) == set(range(len(seen)))
    unseen = np.setdiff1d(np.arange(rows), seen)
    assert list(new[unseen]) == list(range(len(seen), rows))  # in their old order


@settings(max_examples=100)
@given(columns())
def test_frequency_is_by_lookups_then_by_first_row(column):
    ids, rows, chunk, batch = column
    order = lookups_of(ids, rows, chunk).order("frequency", batch)
    counts = np.bincount(ids, minlength=rows)
    keys = [(-counts[i], ids.index(i)) for i in order.ranked]
    assert keys == sorted(keys)


def test_cooccurrence_puts_rare_ids_of_a_time_together():
    # Id 9 is in every batch; the others come in two spells, interleaved by number.
    ids = [9, 0, 2, 9, 2, 4, 9, 0, 4, 9, 1, 3, 9, 3, 5, 9, 1, 5]
    order = lookups_of(ids, 10, 4).order("cooccurrence", 3)
    assert order.ranked[0] == 9
    assert set(order.ranked[1:4]) == {0, 2, 4}
    assert set(order.ranked[4:]) == {1, 3, 5}


@pytest.mark.parametrize("ranked", [[0, 0], [3], [-1]])
def test_what_is_no_order(ranked):
    with pytest.raises(InputError, match="different ids from 0 to 2"):
        IdOrder(np.array(ranked, dtype=np.int32), 3)


def test_an_unknown_order_is_refused():
    with pytest.raises(InputError, match="choose one of frequency, cooccurrence"):
        lookups_of([1], 3, 1).order("size", 5)
