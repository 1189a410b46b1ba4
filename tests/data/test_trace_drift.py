import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt.data.table_traces import TableTraces
from recsys_opt.data.trace_drift import Drift
from recsys_opt.errors import InputError


@settings(max_examples=60)
@given(
    rows=st.integers(1, 500),
    day=st.integers(0, 4),
    share=st.floats(0, 1),
    seed=st.integers(0, (1 << 63) - 1),
    table=st.integers(0, 9),
)
def test_rows_change_places_one_to_one(rows, day, share, seed, table):
    found = Drift(day, share).rows(np.arange(rows), rows, seed, table)
    assert sorted(found) == list(range(rows))
    if day == 0 or share == 0:
        assert (found == np.arange(rows)).all()


def test_about_the_share_moves_each_day():
    rows = np.arange(100_000)
    days = [Drift(day, 0.2).rows(rows, len(rows), 3, 0) for day in range(4)]
    for yesterday, today in itertools.pairwise(days):
        assert np.mean(yesterday != today) == pytest.approx(0.2, abs=0.01)
    assert np.mean(days[0] != days[3]) > 0.4
    other = Drift(1, 0.2).rows(rows, len(rows), 3, 1)
    assert np.mean(other != days[1]) > 0.3


def test_a_day_of_a_trace():
    first, same, later = (
        TableTraces(tables=5, batch_size=256, seed=2, shrink=64, drift=drift)
        for drift in (None, Drift(0, 0.5), Drift(1, 0.5))
    )
    assert [s.config for s in first.specs] == [s.config for s in later.specs]
    for table in range(5):
        for one, other in zip(first.lookups(table, 1), same.lookups(table, 1), strict=True):
            assert (one == other).all()
        assert later.lookups(table, 1)[1].max() < first.specs[table].config.num_embeddings
    amounts = [[t.lengths(k, 0).sum() / 256 for k in range(5)] for t in (first, later)]
    assert max(abs(np.log(amounts[1]) - np.log(amounts[0]))) > 0.1


@pytest.mark.parametrize(
    ("day", "share", "message"), [(-1, 0.1, "day = -1"), (1, 1.5, "drift = 1.5"), (1, float("nan"), "nan")]
)
def test_bad_drifts(day, share, message):
    with pytest.raises(InputError, match=message):
        Drift(day, share)
