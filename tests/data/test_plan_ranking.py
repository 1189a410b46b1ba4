from dataclasses import replace

import numpy as np
import pytest

from recsys_opt._access import Counters, count
from recsys_opt.data.access_statistics import AccessStatistics, TableStatistics
from recsys_opt.data.plan_ranking import plan_ranking, plan_statistics
from recsys_opt.errors import InputError
from recsys_opt.plan import Plan, TablePlan
from recsys_opt.ranks import rank_order


def statistics(seed: int, rows: int = 50) -> AccessStatistics:
    """Of one table whose rows are looked up by a skewed draw; the seed says which are hot."""
    random = np.random.default_rng(seed)
    ids = random.permutation(rows)[np.minimum(random.geometric(0.15, 2000) - 1, rows - 1)]
    early, late = Counters(rows), Counters(rows)
    count([early], [ids[:1000].astype(np.int64)], 1)
    count([late], [ids[1000:].astype(np.int64)], 1)
    return AccessStatistics.of([TableStatistics.from_counters("t", 2000, 2000, early, late)])


@pytest.fixture
def days(tmp_path):
    """Statistics of two days, and a plan of the second whose stripes are the first's."""
    first, second = statistics(1), statistics(2)
    for name, found in (("first.npz", first), ("second.npz", second)):
        found.save(tmp_path / name)
    inputs = {
        key: {"path": str(tmp_path / name), "sha256": found.sha256}
        for key, name, found in (("statistics", "second.npz", second), ("day1", "first.npz", first))
    }
    table = TablePlan("t", 50, 4, (2, 0, 1), (5, 5, 5), row_shards=3, striped_by="day1")
    return first, second, Plan((table,), 3, 64, inputs=inputs)


def test_rows_stay_in_their_stripe_and_take_the_new_order_there(days):
    first, second, plan = days
    order = plan_ranking(plan, second)("t")
    then, now = (rank_order(s.table("t").ranking(), 50) for s in (first, second))
    rank_now = np.argsort(now)
    assert sorted(order) == list(range(50))
    for stripe in range(3):
        rows = order[stripe::3]
        assert set(rows) == set(then[stripe::3])
        assert (np.diff(rank_now[rows]) > 0).all()
    plain = replace(plan, tables=(replace(plan.tables[0], striped_by=""),))
    assert (plan_ranking(plain, second)("t") == second.table("t").ranking()).all()


def test_the_earlier_statistics_are_needed_as_they_were(days, tmp_path):
    _, second, plan = days
    statistics(3).save(tmp_path / "first.npz")
    with pytest.raises(InputError, match="has changed since the plan was made"):
        plan_ranking(plan, second)("t")
    (tmp_path / "first.npz").unlink()
    with pytest.raises(InputError, match="deals rows to stripes by"):
        plan_ranking(plan, second)("t")
    statistics(1).save(tmp_path / "elsewhere.npz")
    assert plan_statistics(plan, "day1", tmp_path / "elsewhere.npz").sha256 == statistics(1).sha256


def test_files_beside_an_export_are_found(days, tmp_path):
    _, second, plan = days
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "first.npz").rename(moved / "first.npz")
    assert sorted(plan_ranking(plan, second, folder=moved)("t")) == list(range(50))


def test_a_plan_names_what_deals_its_rows():
    table = TablePlan("t", 50, 4, (0, 1), (5, 5), row_shards=2, striped_by="yesterday")
    with pytest.raises(InputError, match="none of the plan's inputs"):
        Plan((table,), 2, 64)
