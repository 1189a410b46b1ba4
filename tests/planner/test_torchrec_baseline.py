import numpy as np
import pytest

from recsys_opt.data.access_curve import AccessCurve
from recsys_opt.errors import InputError
from recsys_opt.planner.hardware import Hardware
from recsys_opt.tables import TableConfig

pytest.importorskip("torchrec")

from recsys_opt.planner.torchrec_baseline import machine, mean_row_bytes, planner_table, torchrec_plan

TABLES = [TableConfig("a", 1000, 16), TableConfig("b", 2_000_000, 64, pooling="mean")]


def curve(rows: int) -> AccessCurve:
    return AccessCurve(np.array([0.0, 0.01 * rows, 0.2 * rows, rows]), np.array([0.0, 0.6, 0.9, 1.0]))


@pytest.mark.slow
def test_torchrecs_plan_is_a_plan_of_ours():
    hardware = Hardware.load("a100-40gb:devices=2,hbm=200MB,uvm=1GB,reserved=0")
    curves = {t.name: curve(t.num_embeddings) for t in TABLES}
    plan, placement = torchrec_plan(
        TABLES, [1.0, 5.0], hardware, batch_size=512, curves=curves, sharding_types=["table_wise"]
    )
    assert placement.finished
    assert [t.name for t in plan.tables] == ["a", "b"]
    assert plan.hardware == hardware.to_json()
    assert plan.table("b").pooling == "mean"
    # 512 MB of rows, 200 MB of memory: a cache, scaled up to what fits.
    assert 0.2 < plan.table("b").hot_row_count / 2_000_000 < 0.4
    assert plan.table("a").hot_row_count == 1000


def test_what_torchrec_is_told():
    hardware = Hardware.load("h100:nodes=2,devices=4")
    assert mean_row_bytes(TABLES, [1.0, 3.0]) == (64 + 3 * 256) / 4
    assert mean_row_bytes(TABLES, [0.0, 0.0]) == 160
    told = machine(hardware, 256.0)
    assert (told.num_devices, told.devices_per_node) == (8, 4)
    assert told.hbm_bytes == hardware.fast.capacity_bytes
    assert told.hbm_bytes_per_s == pytest.approx(256 / hardware.fast.read_seconds(256))
    assert told.uvm_bytes_per_s == pytest.approx(256 / hardware.slow.read_seconds(256))
    assert told.inter_node_bytes_per_s == hardware.inter_node.bytes_per_s
    table = planner_table(TABLES[0], 2.0, 512, curve(1000))
    assert table.access == ((0.0, 0.01, 0.2, 1.0), (0.0, 0.6, 0.9, 1.0))
    g = np.random.default_rng(0)
    chances = np.repeat([0.6 / 10, 0.3 / 190, 0.1 / 800], [10, 190, 800])
    seen = [len(np.unique(g.choice(1000, 1024, p=chances))) for _ in range(50)]
    assert table.lookups_of_distinct_rows == pytest.approx(np.mean(seen), rel=0.02)
    assert planner_table(TABLES[0], 2.0, 512, None).access == ((), ())
    assert planner_table(TableConfig("c", 9, 4, ("x", "y")), 2.0, 512, None).features == 2
    with pytest.raises(InputError, match="2 tables, 1 lookups_per_sample"):
        torchrec_plan(TABLES, [1.0], hardware, batch_size=512)
