import pytest

from recsys_opt.data.dataset import SparseColumn
from recsys_opt.data.descriptor import published_cardinalities
from recsys_opt.errors import InputError
from recsys_opt.models.recipes import criteo_kaggle, criteo_terabyte, table_configs

COLUMNS = [SparseColumn(f"C{i + 1}", rows) for i, rows in enumerate(published_cardinalities()["kaggle"])]


def test_kaggle_tables_have_the_published_size():
    assert sum(column.num_embeddings for column in COLUMNS) == 33_762_577
    tables = table_configs(COLUMNS, criteo_kaggle().embedding_dim)
    assert sum(table.dense_bytes for table in tables) == 2_160_804_928


def test_terabyte_has_64_columns():
    assert criteo_terabyte().embedding_dim == 64
    assert criteo_terabyte().top_mlp == (512, 512, 256, 1)


def test_tensor_trains_by_threshold_and_by_name():
    tables = table_configs(COLUMNS, 16, tt_threshold=142_572, tt_tables=["C6"], tt_ranks=[8, 16])
    trains = [table.name for table in tables if table.representation == "tt"]
    assert trains == ["C3", "C4", "C6", "C12", "C16", "C21", "C24", "C26"]
    assert all(table.options == {"tt_ranks": [8, 16]} for table in tables if table.representation == "tt")
    assert all(table.options == {} for table in tables if table.representation == "dense")
    assert all(table.representation == "dense" for table in table_configs(COLUMNS, 16))


def test_the_tables_that_are_no_tensor_trains_take_the_dense_representation():
    tables = table_configs(COLUMNS[:3], 16, tt_tables=["C2"], dense_representation="fbgemm")
    assert [table.representation for table in tables] == ["fbgemm", "tt", "fbgemm"]
    assert tables[0].options == {}


def test_tensor_trains_with_held_rows():
    tables = table_configs(COLUMNS[:3], 16, tt_tables=["C2"], tt_cache_rows=50, tt_cache_refresh_every=7)
    assert [table.representation for table in tables] == ["dense", "tt_cached", "dense"]
    assert tables[1].options == {"tt_ranks": 32, "cache_rows": 50, "refresh_every": 7}


def test_an_unknown_table_is_named():
    with pytest.raises(InputError, match="tt_tables names C27, but the tables are C1, C2"):
        table_configs(COLUMNS[:2], 16, tt_tables=["C1", "C27"])
