import pytest

from recsys_opt.data.criteo import DENSE_COLUMNS, SPARSE_COLUMNS
from recsys_opt.data.descriptor import load_descriptor, published_cardinalities
from recsys_opt.errors import InputError


def test_published_figures() -> None:
    kaggle, terabyte = load_descriptor("criteo_kaggle"), load_descriptor("criteo_terabyte")
    assert sum(kaggle.cardinalities["kaggle"]) == 33_762_577
    assert kaggle.rows == {"train": 45_840_617, "test": 6_042_135}
    assert (
        max(terabyte.cardinalities["terabyte-10m"])
        < 10_000_000
        <= max(terabyte.cardinalities["terabyte-40m"])
    )
    assert sum(terabyte.multi_hot_sizes["mlperf-v2"]) == 214
    for descriptor in (kaggle, terabyte):
        assert (descriptor.dense_columns, descriptor.sparse_columns) == (DENSE_COLUMNS, SPARSE_COLUMNS)
        assert all(len(c) == 26 for c in descriptor.cardinalities.values())
    assert set(published_cardinalities()) == {"kaggle", "terabyte-40m", "terabyte-10m", "mlperf-v2"}


def test_unknown_dataset() -> None:
    with pytest.raises(
        InputError, match=r"no dataset descriptor 'avazu'; there are: criteo_kaggle, criteo_terabyte"
    ):
        load_descriptor("avazu")
