import json
from dataclasses import replace

import pytest

from recsys_opt.errors import InputError
from recsys_opt.plan import DeviceLoad, Plan, TablePlan, stripe_rows

TABLE = TablePlan("a", 10, 8, devices=(0, 1, 2), hot_rows=(2, 1, 0), row_shards=3)
PLAN = Plan(
    tables=(
        TABLE,
        TablePlan("b", 7, 16, devices=(2, 0), hot_rows=(7, 3), column_shards=2, pooling="mean"),
        TablePlan("c", 3, 8, devices=(0, 1, 2), hot_rows=(3, 3, 3), replicated=True),
        TablePlan("d", 5, 8, devices=(1,), hot_rows=(0,), feature_names=("d1", "d2")),
    ),
    num_devices=3,
    batch_size=64,
    devices=(DeviceLoad(1e-3, 2e-3, 0.5e-3, 100, 200, 5.0, 6.0),) * 3,
    bound_seconds=3e-3,
    hardware={"name": "test"},
    settings={"seed": 1},
    inputs={"statistics": {"path": "stats.npz", "sha256": "0" * 64}},
)


def test_pieces():
    assert [(p.device, p.columns, p.stripe, p.rows, p.hot_rows) for p in TABLE.pieces()] == [
        (0, (0, 8), (0, 3), 4, 2),
        (1, (0, 8), (1, 3), 3, 1),
        (2, (0, 8), (2, 3), 3, 0),
    ]
    assert [t.sharding for t in PLAN.tables] == ["row_wise", "column_wise", "data_parallel", "table_wise"]
    assert [p.columns for p in PLAN.table("b").pieces()] == [(0, 8), (8, 16)]
    assert [p.rows for p in PLAN.table("c").pieces()] == [3, 3, 3]
    assert [t.hot_row_count for t in PLAN.tables] == [3, 5, 3, 0]


@pytest.mark.parametrize(("rows", "stripes"), [(10, 3), (1, 4), (12, 4), (5, 5), (7, 1)])
def test_stripes_have_every_row(rows, stripes):
    expected = [len(range(s, rows, stripes)) for s in range(stripes)]
    assert [stripe_rows(rows, s, stripes) for s in range(stripes)] == expected


def test_save_and_load(tmp_path):
    PLAN.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == PLAN
    assert PLAN.seconds == pytest.approx(3.5e-3)
    assert PLAN.gap == pytest.approx(3.5 / 3 - 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"devices": (0, 1)}, "2 devices and 3 hot_rows for 3 pieces"),
        ({"devices": (0, 1, 1)}, "must be different devices"),
        ({"devices": (0, 1, -1)}, "counted from 0"),
        ({"hot_rows": (5, 0, 0)}, "hot_rows = 5 on device 0; the piece has 4 rows"),
        ({"hot_rows": (-1, 0, 0)}, "hot_rows = -1"),
        ({"column_shards": 3, "row_shards": 1}, "column_shards = 3 does not divide its 8 columns"),
        ({"row_shards": 11}, "row_shards = 11; the table has 10 rows"),
        ({"replicated": True}, "a replicated table is whole"),
        ({"pooling": "max"}, "pooling = 'max'"),
    ],
)
def test_bad_tables(change, message):
    with pytest.raises(InputError, match=message):
        replace(TABLE, **change)


def test_bad_plans():
    with pytest.raises(InputError, match="two tables called 'a'"):
        replace(PLAN, tables=(TABLE, TABLE))
    with pytest.raises(InputError, match="device 2; the plan has 2 devices"):
        replace(PLAN, num_devices=2)
    with pytest.raises(InputError, match="no table 'x'; its tables are a, b, c, d"):
        PLAN.table("x")


def test_bad_files(tmp_path):
    path = tmp_path / "plan.json"
    PLAN.save(path)
    document = json.loads(path.read_text())
    for broken, message in (
        ({**document, "version": 2}, "version 2 .* reads version 1"),
        ({**document, "format": "recsys_opt.other"}, "is of the format 'recsys_opt.other', not a plan"),
        ({**document, "format": "recsys_opt.profile"}, "is a profile of paths, not a plan"),
        ({k: v for k, v in document.items() if k != "tables"}, "has no 'tables'.*; make the plan again"),
        ({**document, "tables": [{"name": "a"}]}, r"tables\[0\] has no 'num_embeddings'"),
        ({**document, "tables": [{**document["tables"][0], "hot_rows": ["4"]}]}, "hot_rows.0. = '4'"),
        ({**document, "tables": 3}, "plan.json: tables = 3; it must be a list"),
        ({**document, "hardware": None}, "hardware = None; it must be an object"),
        ({**document, "inputs": {"statistics": 3}}, "'statistics'. = 3; it must be an object"),
        ({**document, "num_devices": 0}, "num_devices = 0; it must be at least 1"),
        ({**document, "batch_size": "9"}, "batch_size = '9'; it must be a whole number"),
        ({**document, "devices": [{}]}, "devices.0. has no 'fast_seconds'"),
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(InputError, match=message):
            Plan.load(path)
    path.write_text(json.dumps(document)[:200])
    with pytest.raises(InputError, match="not whole, readable JSON"):
        Plan.load(path)
