import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_opt.errors import InputError
from recsys_opt.ranks import rank_of, rank_order


@given(st.data())
def test_ranked_rows_first_then_the_others_in_order(data):
    num_embeddings = data.draw(st.integers(1, 60))
    ranking = data.draw(st.lists(st.integers(0, num_embeddings - 1), unique=True))
    order = rank_order(np.array(ranking, dtype=np.int64), num_embeddings)
    assert list(order) == ranking + [row for row in range(num_embeddings) if row not in ranking]
    assert order.dtype == np.int32
    np.testing.assert_array_equal(rank_of(order)[order], np.arange(num_embeddings))


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        (np.array([1, 2, 1]), "names row 1 twice"),
        (np.array([1, 7]), "names row 7; the table has 7 rows"),
        (np.array([-1, 3], np.int32), "names row -1; the table has 7 rows"),
        (np.array([1.0]), "is float64"),
    ],
)
def test_rankings_of_other_tables_are_refused(ranking, message):
    with pytest.raises(InputError, match=message):
        rank_order(ranking, 7)
