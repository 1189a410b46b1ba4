import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_opt.errors import InputError
from recsys_opt.serving.requests import check_request
from tests.serving.profiles import MODEL

ROWS = np.array(MODEL.cardinalities)


def request(batch, dtype=np.int32):
    return np.zeros((batch, 3), np.float32), np.zeros((4, batch), dtype)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_a_good_one(dtype):
    dense, ids = request(5, dtype)
    ids[:] = ROWS[:, None] - 1
    assert check_request(MODEL, dense, ids) == 5


@given(
    st.integers(1, 40),
    st.integers(0, 3),
    st.data(),
    st.sampled_from([-(2**31), -1, None, 2**31 - 1]),
)
def test_an_id_outside_is_named(batch, feature, data, wrong):
    sample = data.draw(st.integers(0, batch - 1))
    dense, ids = request(batch)
    ids[feature, sample] = ROWS[feature] if wrong is None else wrong
    with pytest.raises(InputError) as error:
        check_request(MODEL, dense, ids)
    assert f"ids[{feature}, {sample}] = {ids[feature, sample]} is outside the {ROWS[feature]:,} rows" in str(
        error.value
    )
    assert MODEL.features[feature] in str(error.value)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_a_number_that_is_none(wrong):
    dense, ids = request(7)
    dense[4, 2] = wrong
    with pytest.raises(InputError, match=r"dense\[4, 2\] = .* must be a number of at most 1e\+18"):
        check_request(MODEL, dense, ids)


@pytest.mark.parametrize(
    ("dense", "ids", "message"),
    [
        (np.zeros((2, 3)), np.zeros((4, 2), np.int32), "dense is float64 [2, 3]; it must be float32"),
        (np.zeros((2, 4), np.float32), np.zeros((4, 2), np.int32), "dense is float32 [2, 4]"),
        (np.zeros(3, np.float32), np.zeros((4, 1), np.int32), "dense is float32 [3]"),
        (np.zeros((2, 3), np.float32), np.zeros((4, 2)), "ids is float64 [4, 2]; it must be int32 or int64"),
        (np.zeros((2, 3), np.float32), np.zeros((3, 2), np.int32), "ids is int32 [3, 2]"),
        (np.zeros((2, 3), np.float32), np.zeros(8, np.int32), "ids is int32 [8]"),
        (np.zeros((2, 3), np.float32), np.zeros((4, 3), np.int32), "dense has 2 samples, but ids has 3"),
        (np.zeros((0, 3), np.float32), np.zeros((4, 0), np.int32), "the request has no samples"),
    ],
)
def test_what_is_no_request(dense, ids, message):
    with pytest.raises(InputError) as error:
        check_request(MODEL, dense, ids)
    assert message in str(error.value)
