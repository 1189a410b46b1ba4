"""What is written of a plan for other programs; needs no torchrec."""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from recsys_opt.cli import plan_export
from recsys_opt.data.access_statistics import AccessStatistics, TableStatistics
from recsys_opt.data.plan_ranking import plan_ranking
from recsys_opt.errors import InputError
from recsys_opt.integrations.plan_export import export_plan, read_export
from recsys_opt.integrations.plan_layout import PlanLayout
from recsys_opt.plan import Plan, TablePlan
from recsys_opt.ranks import rank_order

TABLES = (
    TablePlan("a", 10, 8, (1, 0), (3, 2), row_shards=2),
    TablePlan("b", 6, 8, (0, 1), (6, 0), column_shards=2, feature_names=("x", "y")),
    TablePlan("c", 5, 4, (0, 1), (5, 5), replicated=True),
)


def statistics(seed: int = 0, rows: int = 10) -> AccessStatistics:
    g = np.random.default_rng(seed)
    sizes = {"a": rows, "b": 6, "c": 5}
    return AccessStatistics.of(
        [TableStatistics.from_ids(name, n, g.integers(0, n, 40)) for name, n in sizes.items()]
    )


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    found = statistics()
    found.save(tmp_path / "stats.npz")
    said = {"statistics": {"path": str(tmp_path / "stats.npz"), "sha256": found.sha256}}
    return Plan(TABLES, 2, 16, inputs=said)


def test_every_row_is_in_one_place(plan: Plan, tmp_path: Path):
    export_plan(plan, tmp_path / "p.json", "torchrec")
    document = json.loads((tmp_path / "p.json").read_text())
    assert document["remap"] == {
        "keys": list(PlanLayout(plan).keys),
        "statistics": {"path": "stats.npz", "sha256": plan.inputs["statistics"]["sha256"]},
    }
    assert document["sharding"].keys() == document["tables"].keys()
    order = rank_order(statistics().table("a").ranking(), 10)
    of_a = {name: t for name, t in document["tables"].items() if t["of"] == "a"}
    rows = {
        name: order[t["ranks"]["first"] :: t["ranks"]["step"]][: t["rows"]].tolist()
        for name, t in of_a.items()
    }
    assert sorted(row for part in rows.values() for row in part) == list(range(10))
    assert rows["a__0__hot"] == order[[0, 2, 4]].tolist()
    assert rows["a__1__cold"] == order[[5, 7, 9]].tolist()
    assert document["tables"]["b__1__cold"]["columns"] == [4, 8]
    assert document["sharding"]["b__1__cold"] == {
        "sharding_type": "table_wise",
        "compute_kernel": "fused_uvm",
        "ranks": [1],
        "shards": [{"offsets": [0, 0], "sizes": [6, 4], "rank": 1}],
    }
    assert document["sharding"]["c"]["sharding_type"] == "data_parallel"


def test_an_export_moves_with_its_statistics(plan: Plan, tmp_path: Path):
    export_plan(plan, tmp_path / "p.json", "torchrec")
    (tmp_path / "there").mkdir()
    for name in ("p.json", "stats.npz"):
        (tmp_path / name).rename(tmp_path / "there" / name)
    again, found = read_export(tmp_path / "there" / "p.json")
    assert again == plan
    assert found.sha256 == statistics().sha256
    (tmp_path / "there" / "stats.npz").rename(tmp_path / "elsewhere.npz")
    assert read_export(tmp_path / "there" / "p.json", tmp_path / "elsewhere.npz")[1].samples == 40
    with pytest.raises(InputError, match=r"there/stats.npz do not exist; say where they are"):
        read_export(tmp_path / "there" / "p.json")


def test_an_export_moves_with_the_statistics_of_its_stripes(plan: Plan, tmp_path: Path):
    earlier = statistics(1)
    earlier.save(tmp_path / "earlier.npz")
    said = {"path": str(tmp_path / "earlier.npz"), "sha256": earlier.sha256}
    striped = dataclasses.replace(
        plan,
        tables=(dataclasses.replace(TABLES[0], striped_by="day1"), *TABLES[1:]),
        inputs={**plan.inputs, "day1": said},
    )
    export_plan(striped, tmp_path / "p.json", "torchrec")
    (tmp_path / "there").mkdir()
    for name in ("p.json", "stats.npz", "earlier.npz"):
        (tmp_path / name).rename(tmp_path / "there" / name)
    again, found = read_export(tmp_path / "there" / "p.json")
    order = plan_ranking(again, found, folder=tmp_path / "there")("a")
    dealt = rank_order(earlier.table("a").ranking(), 10)
    assert [set(order[s::2]) for s in (0, 1)] == [set(dealt[s::2]) for s in (0, 1)]
    with pytest.raises(
        InputError, match=r"earlier.npz, which the plan deals rows to stripes by, does not exist"
    ):
        export_plan(striped, tmp_path / "p.json", "torchrec", tmp_path / "there" / "stats.npz")


def test_statistics_that_mean_other_rows_are_refused(plan: Plan, tmp_path: Path):
    statistics(1).save(tmp_path / "other.npz")
    with pytest.raises(InputError, match=r"other.npz has other statistics .* than the plan was made from"):
        export_plan(plan, tmp_path / "p.json", "torchrec", tmp_path / "other.npz")
    export_plan(plan, tmp_path / "p.json", "torchrec")
    with pytest.raises(InputError, match=r"other.npz has other statistics"):
        read_export(tmp_path / "p.json", tmp_path / "other.npz")
    statistics(0, rows=11).save(tmp_path / "longer.npz")
    unsaid = dataclasses.replace(plan, inputs={})
    with pytest.raises(InputError, match=r"longer.npz: table a has 11 rows; the plan's has 10"):
        export_plan(unsaid, tmp_path / "p.json", "torchrec", tmp_path / "longer.npz")
    assert not list(tmp_path.glob(".*.partial"))


def test_a_plan_without_statistics_ranks_rows_by_their_ids(tmp_path: Path):
    export_plan(Plan(TABLES, 2, 16), tmp_path / "p.json", "torchrec")
    assert read_export(tmp_path / "p.json") == (Plan(TABLES, 2, 16), None)


def test_a_damaged_export_is_named(plan: Plan, tmp_path: Path):
    export_plan(plan, tmp_path / "p.json", "torchrec")
    document = json.loads((tmp_path / "p.json").read_text())
    del document["remap"]
    (tmp_path / "p.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"p.json is not an exported plan that can be read \(KeyError"):
        read_export(tmp_path / "p.json")


def test_the_verb_writes_both_forms(plan: Plan, tmp_path: Path):

    plan.save(tmp_path / "plan.json")
    parser = argparse.ArgumentParser()
    plan_export.add_arguments(parser)
    for form in ("torchrec", "json"):
        out = tmp_path / f"{form}.json"
        done = plan_export.run(parser.parse_args([form, str(tmp_path / "plan.json"), "--out", str(out)]))
        assert done.result == {"export": str(out), "form": form, "tables": 3, "pieces": 6}
    pieces = json.loads((tmp_path / "json.json").read_text())["pieces"]
    assert pieces[1] == {
        "table": "a",
        "device": 0,
        "columns": [0, 8],
        "stripe": [1, 2],
        "rows": 5,
        "hot_rows": 2,
        "replicated": False,
    }
