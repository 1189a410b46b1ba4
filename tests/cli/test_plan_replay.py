"""`recsys-opt plan replay` from files to figures."""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from recsys_opt.cli import plan_replay
from recsys_opt.cli.outcome import Outcome
from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.access_table import TableStatistics
from recsys_opt.data.dataset import Dataset
from recsys_opt.errors import InputError
from recsys_opt.plan import Plan
from recsys_opt.planner.baselines import greedy_plan
from recsys_opt.planner.hardware import Hardware
from recsys_opt.planner.lookup_trace import open_trace
from recsys_opt.planner.problem import PlanSettings
from recsys_opt.tables import TableConfig
from tests.generated import make_dataset


def command(*arguments: str) -> Outcome:
    parser = argparse.ArgumentParser()
    plan_replay.add_arguments(parser)
    return plan_replay.run(parser.parse_args(list(arguments)))


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    """Statistics of a dataset's first rows and a plan with a tenth of each table in the fast tier."""
    dataset = make_dataset(tmp_path / "data", 20_000)
    train = open_trace(tmp_path / "data", batch_size=1000, split="train")
    counted = []
    for feature, (name, rows) in enumerate(zip(train.features, train.num_embeddings, strict=True)):
        ids = [part.sparse[:, feature] for part in Dataset(dataset.path).labelled_arrays()]
        counted.append(TableStatistics.from_ids(name, rows, ids[0][:10_000]))
    statistics = AccessStatistics.of(counted)
    statistics.save(tmp_path / "stats.npz")
    tables = [TableConfig(s.name, s.num_embeddings, 8) for s in counted]
    hardware = Hardware.load("h100:devices=18,hbm=1GB")
    plan = greedy_plan("lookup", tables, [1.0] * 4, [36] * 4, hardware, batch_size=200)
    Plan(
        tuple(replace(t, hot_rows=(t.num_embeddings // 10,)) for t in plan.tables),
        18,
        200,
        hardware=hardware.to_json(),
        settings=asdict(PlanSettings(batch_size=200)),
        inputs={"statistics": {"path": str(tmp_path / "stats.npz"), "sha256": statistics.sha256}},
    ).save(tmp_path / "plan.json")
    return tmp_path


def test_later_rows_of_a_dataset(planned: Path) -> None:
    outcome = command(str(planned / "plan.json"), str(planned / "data"))
    assert max(map(len, outcome.text.splitlines())) <= 100
    result = json.loads(json.dumps(outcome.result, allow_nan=False))
    assert (result["batches"], result["lookups"]) == (10, 10 * 200 * 4)
    # The later rows are drawn as the first ones were.
    share = result["slow_share"]
    assert abs(share["relative_error"]) < 0.1
    assert 0.01 < share["realised"] < 0.9
    assert "and 2 faster devices" in outcome.text
    assert "C3" in outcome.text
    some = command(
        str(planned / "plan.json"), str(planned / "data"), "--batch-size", "100", "--batches", "4:7"
    )
    assert (some.result["batches"], some.result["lookups"]) == (3, 3 * 100 * 4)


def test_a_plan_whose_statistics_are_elsewhere(planned: Path) -> None:
    moved = planned / "moved.npz"
    (planned / "stats.npz").rename(moved)
    with pytest.raises(InputError, match=r"stats\.npz"):
        command(str(planned / "plan.json"), str(planned / "data"))
    outcome = command(str(planned / "plan.json"), str(planned / "data"), "--stats", str(moved))
    assert outcome.result["batches"] == 10
    plan = Plan.load(planned / "plan.json")
    replace(plan, inputs={}).save(planned / "plan.json")
    with pytest.raises(InputError, match="does not say which statistics"):
        command(str(planned / "plan.json"), str(planned / "data"))
