"""Replayed lookups, priced: by hand on hardware with round figures, and against the plan's own prediction."""

from dataclasses import replace

import numpy as np
import pytest

from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.access_table import TableStatistics
from recsys_opt.errors import InputError
from recsys_opt.plan import Plan, TablePlan
from recsys_opt.planner.cost import CostModel
from recsys_opt.planner.hardware import Hardware, Link, Tier
from recsys_opt.planner.lookup_trace import LookupTrace
from recsys_opt.planner.problem import PlanSettings, planned_tables
from recsys_opt.planner.replay import replay, statistics_ranking
from recsys_opt.planner.replay_cost import replay_cost, summary, table_shares
from recsys_opt.tables import TableConfig

ROUND = Hardware(
    "round",
    "made up",
    False,
    1,
    2,
    Tier("hbm", 1 << 40, (16,), (16e3,), (16e2,)),  # a row: 1 ms read, 10 ms updated
    Tier("uvm", 1 << 40, (16,), (16e2,), (16e1,)),  # 10 ms, 100 ms
    Link("wire", 1e3, 0.0),
    Link("far wire", 1.0, 0.0),
)
IDS = np.array([3, 3, 1, 0, 3, 2], dtype=np.int64)  # four samples: 3 3 1 | 0 | 3 2 | -
LENGTHS = np.array([3, 1, 2, 0], dtype=np.int32)
TRACE = LookupTrace("the trace", ("t",), (5,), 1, 4, lambda feature, batch: (LENGTHS, IDS))
SGD = PlanSettings(batch_size=4, optimizer="sgd")


def test_a_split_table_by_hand() -> None:
    # Rows 3 and 1 are hot: 4 lookups of 2 rows; rows 0 and 2 are not.
    plan = Plan((TablePlan("t", 5, 4, (1,), (2,)),), 2, 4)
    cost = replay_cost(replay(plan, TRACE, lambda _: np.array([3, 1])), CostModel(ROUND, SGD))
    assert cost.fast.tolist() == [[0.0, pytest.approx(4 * 0.001 + 2 * 0.01)]]
    assert cost.slow.tolist() == [[0.0, pytest.approx(2 * 0.01 + 2 * 0.1)]]
    # Both ways: pooled rows of half the samples, 16 bytes each; in: 6 ids of 8 bytes, half from elsewhere.
    assert cost.communication.tolist() == [[0.0, pytest.approx((2 * 2 * 16 + 6 * 8 / 2) / 1e3)]]
    assert cost.slowest == pytest.approx(cost.seconds[0, 1]) == cost.iteration
    assert cost.imbalance == pytest.approx(2.0)


def test_a_replica_by_hand() -> None:
    plan = Plan((TablePlan("t", 5, 4, (0, 1), (5, 5), replicated=True),), 2, 4)
    cost = replay_cost(replay(plan, TRACE, lambda _: np.array([3, 1])), CostModel(ROUND, SGD))
    # All rows are updated on both; the device of the first two samples reads four.
    assert cost.fast.tolist() == [[pytest.approx(0.004 + 0.05), pytest.approx(0.002 + 0.05)]]
    assert (cost.slow == 0).all()
    assert cost.communication.tolist() == [[pytest.approx(2 * 5 * 16 / 2 / 1e3)] * 2]


def test_lookups_as_predicted_cost_as_predicted() -> None:
    """Ids drawn from the distribution that the curve is of: prediction and replay meet."""
    rng = np.random.default_rng(0)
    weight = 1 / np.arange(1, 2001)
    draw = lambda n: rng.choice(2000, n, p=weight / weight.sum())  # noqa: E731
    statistics = AccessStatistics.of([TableStatistics.from_ids("t", 2000, draw(400_000))])
    settings = PlanSettings(batch_size=20_000)
    (table,) = planned_tables(statistics, [TableConfig("t", 2000, 16)])
    trace = LookupTrace("later", ("t",), (2000,), 5, 20_000, lambda f, b: (None, draw(20_000)))
    hardware = Hardware.load("h100:devices=4")
    for cut in (
        TablePlan("t", 2000, 16, (2,), (150,)),
        TablePlan("t", 2000, 16, (0, 1, 2, 3), (20, 30, 40, 50), row_shards=4),
        TablePlan("t", 2000, 16, (0, 1, 2, 3), (20, 30, 40, 50), column_shards=2, row_shards=2),
        TablePlan("t", 2000, 16, (3, 2, 1, 0), (2000,) * 4, replicated=True),
    ):
        model = CostModel(hardware, settings)
        plan = Plan((cut,), 4, 20_000)
        predicted = model.loads(plan, [table])
        found = replay(plan, trace, statistics_ranking(plan, statistics))
        cost = replay_cost(found, model)
        np.testing.assert_allclose(cost.device_seconds, [d.seconds for d in predicted], rtol=0.03, atol=1e-9)
        (drift,) = table_shares(found, [table], 20_000)
        assert drift.realised == pytest.approx(drift.predicted, rel=0.03, abs=1e-3)
        figures = summary(found, cost, predicted, [drift])
        slow = figures["slow_share"]
        assert slow["realised"] == found.slow_share == pytest.approx(slow["predicted"], rel=0.03)
        assert sum(d["lookups_fast"] + d["lookups_slow"] for d in figures["devices"]) == figures["lookups"]
        assert figures["by_batch"][3]["slowest_seconds"] == cost.seconds[3].max()


def test_models_of_other_plans_are_refused() -> None:
    plan = Plan((TablePlan("t", 5, 4, (1,), (2,)),), 2, 4)
    found = replay(plan, TRACE, lambda _: np.array([3, 1]))
    with pytest.raises(InputError, match="batches of 8 samples, the trace has 4"):
        replay_cost(found, CostModel(ROUND, replace(SGD, batch_size=8)))
    with pytest.raises(InputError, match=r"the plan has 2 devices, the hardware round has 6"):
        replay_cost(found, CostModel(replace(ROUND, nodes=3), SGD))
