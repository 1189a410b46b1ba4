import json
import signal
import time

import pytest

from recsys_opt.errors import InfeasibleError, InputError, RecsysOptError

pytest.importorskip("torchrec")

from recsys_opt.integrations.torchrec import PlacedTable, Placement, PlannerMachine, PlannerTable, planner
from recsys_opt.integrations.torchrec.planner import KERNELS, placement_of, torchrec_placement
from recsys_opt.integrations.torchrec.planner_process import (
    AccessCache,
    BestSoFar,
    TimeUp,
    answer,
    time_limit,
)
from recsys_opt.plan import TablePlan
from recsys_opt.tables import TableConfig

ACCESS = ((0.0, 0.01, 0.1, 1.0), (0.0, 0.5, 0.8, 1.0))
TABLES = [
    PlannerTable("small", 1000, 64, 1.0, ACCESS, 2, 200.0),
    PlannerTable("hot", 100_000, 64, 20.0, ACCESS, 1, 5_000.0),
    PlannerTable("large", 4_000_000, 64, 1.0, ACCESS, 1, 2_000.0),
    PlannerTable("wide", 50_000, 192, 3.0, ACCESS, 1, 3_000.0),
]
MACHINE = PlannerMachine(4, 2, 300_000_000, 4_000_000_000, 2e12, 30e9, 300e9, 30e9)


def request(**changes) -> dict:
    tables = [t.__dict__ for t in TABLES]
    content = {"tables": tables, "machine": MACHINE.__dict__, "batch_size": 512, "time_limit": 300}
    content |= {"sharding_types": ["table_wise", "row_wise"], "load_factor": 0.2, "kernels": list(KERNELS)}
    return json.loads(json.dumps(content | changes))


@pytest.mark.slow
def test_torchrec_plans_in_a_process_of_its_own():
    types = ("table_wise", "column_wise", "row_wise", "table_row_wise")
    found = torchrec_placement(TABLES, MACHINE, 2048, sharding_types=types)
    assert found.finished
    assert found.fitting > 0
    configs = [TableConfig(t.name, t.num_embeddings, t.embedding_dim) for t in TABLES]
    plan = found.to_plan(configs, 2048, 4)
    for placed, table in zip(
        sorted(found.tables, key=lambda t: t.name), sorted(configs, key=lambda t: t.name), strict=True
    ):
        ours = plan.table(table.name)
        assert ours.sharding == placed.sharding_type.replace("table_row", "row")
        assert sum(p.rows * p.width for p in ours.pieces()) == table.num_embeddings * table.embedding_dim
        assert (placed.cache_load_factor is None) == (placed.compute_kernel != "fused_uvm_caching")
    # 1 GB of tables in 1.2 GB of HBM, of which the largest table takes 1 GB: not all of it is hot.
    assert plan.table("hot").hot_row_count == 100_000


def test_what_does_not_fit_is_infeasible_and_said_so():
    small = MACHINE.__dict__ | {"hbm_bytes": 1000, "uvm_bytes": 1000}
    with pytest.raises(InfeasibleError, match=r"TorchRec's planner finds no plan: .*Planner evaluated"):
        placement_of(answer(request(machine=small)), 60)


def test_at_the_time_limit_the_best_plan_so_far_counts(monkeypatch):
    rate = BestSoFar.rate

    def until_the_time_is_up(self, plan):
        if self.fitting == 5:
            raise TimeUp
        return rate(self, plan)

    monkeypatch.setattr(BestSoFar, "rate", until_the_time_is_up)
    found = placement_of(answer(request()), 60)
    assert not found.finished
    assert found.fitting == 5
    assert {t.name for t in found.tables} == {t.name for t in TABLES}
    assert found.estimated_seconds > 0
    assert 0 < found.found_seconds <= found.seconds
    with pytest.raises(RecsysOptError, match=r"found no plan within 0\.001 s; allow it fewer"):
        placement_of(answer(request(time_limit=0.001)), 0.001)


def test_the_time_limit_stops_what_runs():
    began = time.process_time()
    with pytest.raises(TimeUp), time_limit(0.01):
        while time.process_time() < began + 60:
            pass
    assert time.process_time() < began + 30
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_caches_are_scaled_up_where_hit_rates_are_known():
    tables = [t.__dict__ for t in TABLES[2:3]]
    unknown = [t | {"access": ((), ())} for t in tables]
    machine = MACHINE.__dict__ | {"num_devices": 1, "devices_per_node": 1, "hbm_bytes": 600_000_000}
    options = {"machine": machine, "sharding_types": ["table_wise"]}
    factors = [
        answer(request(tables=t, **options))["tables"][0]["cache_load_factor"] for t in (tables, unknown)
    ]
    assert factors[0] > 0.3
    assert factors[1] == 0.2


def test_hit_rates_come_from_the_access_curve():
    cache = AccessCache(ACCESS, 100.0)
    assert [cache.expected_miss_rate(f) for f in (0.0, 0.01, 0.1, 1.0)] == pytest.approx([1, 0.5, 0.2, 0])
    assert cache.cacheability == pytest.approx(1 - (0.0025 + 0.09 * 0.65 + 0.9 * 0.9))
    assert cache.expected_lookups == 100.0


@pytest.mark.parametrize(
    ("placed", "wanted"),
    [
        (("table_wise", "fused", None, (3,), (8,)), {"devices": (3,), "hot_rows": (10,)}),
        (("table_wise", "fused_uvm", None, (3,), (8,)), {"devices": (3,), "hot_rows": (0,)}),
        (("table_wise", "fused_uvm_caching", 0.25, (3,), (8,)), {"devices": (3,), "hot_rows": (2,)}),
        (
            ("row_wise", "fused_uvm_caching", 0.5, (0, 1, 2, 3), (8,) * 4),
            {"devices": (0, 1, 2, 3), "hot_rows": (2, 2, 1, 1), "row_shards": 4},
        ),
        (
            ("table_row_wise", "fused", None, (2, 3), (8, 8)),
            {"devices": (2, 3), "hot_rows": (5, 5), "row_shards": 2},
        ),
        (
            ("column_wise", "fused_uvm", None, (3, 0), (4, 4)),
            {"devices": (3, 0), "hot_rows": (0, 0), "column_shards": 2},
        ),
        (
            ("data_parallel", "dense", None, (0, 1, 2, 3), (8,) * 4),
            {"devices": (0, 1, 2, 3), "hot_rows": (10,) * 4, "replicated": True},
        ),
    ],
)
def test_a_placement_is_a_plan(placed, wanted):
    found = Placement((PlacedTable("t", *placed),), 1.0, 0.5, True, 1, 0.1)
    plan = found.to_plan([TableConfig("t", 10, 8, pooling="mean")], 64, 4)
    assert plan.tables == (TablePlan("t", 10, 8, pooling="mean", feature_names=("t",), **wanted),)


def test_more_devices_than_rows_and_unequal_columns():
    placed = PlacedTable("t", "row_wise", "fused", None, (0, 1, 2, 3), (8,) * 4)
    found = Placement((placed,), 1.0, 0.5, True, 1, 0.1)
    assert found.to_plan([TableConfig("t", 3, 8)], 64, 4).table("t").devices == (0, 1, 2)
    placed = PlacedTable("t", "column_wise", "fused", None, (0, 1), (8, 4))
    found = Placement((placed,), 1.0, 0.5, True, 1, 0.1)
    with pytest.raises(InputError, match=r"cuts table t into shards of \[8, 4\] columns"):
        found.to_plan([TableConfig("t", 3, 12)], 64, 4)


def test_without_caches_a_table_is_in_one_tier():
    machine = MACHINE.__dict__ | {"num_devices": 1, "devices_per_node": 1, "hbm_bytes": 600_000_000}
    found = answer(request(machine=machine, sharding_types=["table_wise"], kernels=["fused", "fused_uvm"]))
    kernels = {t["name"]: t["compute_kernel"] for t in found["tables"]}
    assert kernels["large"] == "fused_uvm"
    assert kernels["small"] == "fused"


def test_an_answer_that_is_kept_is_not_searched_again(tmp_path, monkeypatch):
    found = answer(request())
    monkeypatch.setattr(planner, "_asked", lambda *_: found)
    first = torchrec_placement(TABLES, MACHINE, 2048, keep=tmp_path)
    monkeypatch.setattr(planner, "_asked", lambda *_: pytest.fail("searched again"))
    assert torchrec_placement(TABLES, MACHINE, 2048, keep=tmp_path) == first
    with pytest.raises(pytest.fail.Exception):
        torchrec_placement(TABLES, MACHINE, 1024, keep=tmp_path)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="kernels = \\['uvm'\\]; choose from fused, "):
        torchrec_placement(TABLES, MACHINE, 8, kernels=["uvm"])
    with pytest.raises(InputError, match="batch_size = 10 is not divisible by 4 devices"):
        torchrec_placement(TABLES, MACHINE, 10)
    with pytest.raises(InputError, match="sharding_types = \\['rows'\\]; choose from table_wise"):
        torchrec_placement(TABLES, MACHINE, 8, sharding_types=["rows"])
