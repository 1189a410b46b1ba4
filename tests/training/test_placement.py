"""`train --plan`: rows in two tiers train as dense tables do, go on after a kill, move to another plan."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys_opt.cli.main import main
from recsys_opt.data.access_statistics import AccessStatistics
from recsys_opt.data.access_table import TableStatistics
from recsys_opt.data.dataset import Dataset
from recsys_opt.embeddings.tiered import TieredEmbeddingBag
from recsys_opt.errors import InputError, RecsysOptError
from recsys_opt.models.saved import load_model
from recsys_opt.plan import Plan, TablePlan
from recsys_opt.run_folder import RunFolder
from recsys_opt.training.config import CompressionConfig, PlacementConfig, replaced
from recsys_opt.training.evaluate import evaluate_run
from recsys_opt.training.initial import convert_run
from recsys_opt.training.optimizers import OptimizerConfig
from recsys_opt.training.trainer import train
from tests.generated import COLUMNS, make_dataset
from tests.training.slowed import slow_steps
from tests.training.test_trainer import CONFIG, interrupt, lines

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = replaced(CONFIG, {"epochs": 1, "max_rows": 2000})
ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = [f"C{c + 1}" for c in range(len(COLUMNS))]
SPLIT = (4, 20, 0, 900)  # whole in the fast tier, split, whole in the slow one, split


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="module")
def statistics(dataset, tmp_path_factory) -> Path:
    ids = np.concatenate([np.load(dataset.path / f"{part}_sparse.npy") for part in "ab"])[:4800]
    tables = [
        TableStatistics.from_ids(n, rows, ids[:, c])
        for c, (n, rows) in enumerate(zip(NAMES, COLUMNS, strict=True))
    ]
    path = tmp_path_factory.mktemp("stats") / "stats.npz"
    AccessStatistics.of(tables).save(path)
    return path


def write_plan(path: Path, statistics: Path, hot_rows=SPLIT, rows=COLUMNS, devices=1) -> str:
    tables = [TablePlan(name, n, 8, (0,), (hot,)) for name, n, hot in zip(NAMES, rows, hot_rows, strict=True)]
    sha256 = AccessStatistics.load(statistics).sha256
    inputs = {"statistics": {"path": str(statistics), "sha256": sha256}}
    Plan(tuple(tables), num_devices=devices, batch_size=100, inputs=inputs).save(path)
    return str(path)


def planned(path: str, config=SHORT, **more):
    return replaced(config, {"placement": PlacementConfig(plan=path, **more)})


def tables_of(run: Path) -> list[torch.Tensor]:
    model = load_model(run)
    return [model.embeddings.table(name).materialize() for name in NAMES]


@pytest.mark.parametrize("algorithm", ["sgd", "adagrad"])
@pytest.mark.parametrize("in_file", [False, True])
def test_a_planned_run_is_the_dense_run(dataset, statistics, tmp_path, algorithm, in_file):
    """Bit for bit: predictions, weights and what the log says."""
    config = replaced(SHORT, {"optimizer.algorithm": algorithm})
    dense = train(config, dataset.path, tmp_path / "dense")
    plan = write_plan(tmp_path / "plan.json", statistics)
    (tmp_path / "cold").mkdir()
    folder = str(tmp_path / "cold") if in_file else None
    tiered = train(planned(plan, config, cold_dir=folder), dataset.path, tmp_path / "tiered")
    assert tiered.test == dense.test
    assert lines(tmp_path / "tiered") == lines(tmp_path / "dense")
    assert all(
        torch.equal(a, b)
        for a, b in zip(tables_of(tmp_path / "tiered"), tables_of(tmp_path / "dense"), strict=True)
    )
    assert evaluate_run(tmp_path / "tiered", dataset, "test") == dense.test
    described = {t["name"]: t for t in RunFolder(tmp_path / "tiered").description()["model"]["tables"]}
    assert [described[name]["options"] for name in NAMES] == [
        {"hot_rows": 4, "ranked": False},
        {"hot_rows": 20, "ranked": True},
        {"hot_rows": 0, "ranked": in_file},
        {"hot_rows": 900, "ranked": True},
    ]
    assert list((tmp_path / "cold").iterdir()) == []
    hottest = AccessStatistics.load(statistics).table("C4").ranking()[:900]
    table = load_model(tmp_path / "tiered").embeddings.table("C4")
    assert isinstance(table, TieredEmbeddingBag)
    assert sorted(table.remap[torch.from_numpy(hottest).long()].tolist()) == list(range(900))


@pytest.mark.parametrize("algorithm", ["sgd", "adagrad"])
def test_a_resumed_run_ends_as_one_never_stopped(dataset, statistics, tmp_path, monkeypatch, algorithm):
    """The file of cold rows went on after the checkpoint, and is gone: the checkpoint holds its rows."""
    plan = write_plan(tmp_path / "plan.json", statistics)
    config = replaced(SHORT, {"optimizer.algorithm": algorithm, "checkpoint_every_s": 0.0})
    config = planned(plan, config, cold_dir=str(tmp_path))
    train(config, dataset.path, tmp_path / "whole")
    interrupt(monkeypatch, 9, config, dataset, tmp_path / "run")
    train(config, dataset.path, tmp_path / "run", resume=True)
    for name in ("model", "optimizer", "trainer"):
        file = Path("checkpoint") / f"{name}.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_a_run_that_goes_on_with_another_plan_moves_its_rows(dataset, statistics, tmp_path, monkeypatch):
    """Nothing is lost, not the optimizer's state either: it ends as the run that was never moved."""
    plans = [
        write_plan(tmp_path / f"{k}.json", statistics, hot_rows)
        for k, hot_rows in enumerate([SPLIT, (0, 60, 300, 10)])
    ]
    config = replaced(SHORT, {"checkpoint_every_s": 0.0})
    whole = train(planned(plans[0], config), dataset.path, tmp_path / "whole")
    interrupt(monkeypatch, 9, planned(plans[0], config), dataset, tmp_path / "run")
    moved = planned(plans[1], config, cold_dir=str(tmp_path))
    interrupt(monkeypatch, 14, moved, dataset, tmp_path / "run", resume=True)
    # And on as it was left, by the run's own configuration.
    description = RunFolder(tmp_path / "run").description()
    assert description["config"]["placement"]["hot_rows"] == {"C1": 0, "C2": 60, "C3": 300, "C4": 10}
    result = train(moved, dataset.path, tmp_path / "run", resume=True)
    assert result.test == whole.test
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    for a, b in zip(tables_of(tmp_path / "run"), tables_of(tmp_path / "whole"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("algorithm", ["sgd", "adagrad"])
def test_states_of_stored_gradients_move_too(dataset, statistics, tmp_path, monkeypatch, algorithm):
    """The trainer's optimizer holds them, by position."""
    plans = [
        write_plan(tmp_path / f"{k}.json", statistics, hot_rows)
        for k, hot_rows in enumerate([SPLIT, (0, 60, 300, 10)])
    ]
    optimizer = OptimizerConfig(algorithm, table_update="stored")
    config = replaced(SHORT, {"checkpoint_every_s": 0.0, "optimizer": optimizer})
    whole = train(planned(plans[0], config), dataset.path, tmp_path / "whole")
    interrupt(monkeypatch, 9, planned(plans[0], config), dataset, tmp_path / "run")
    interrupt(monkeypatch, 14, planned(plans[1], config), dataset, tmp_path / "run", resume=True)
    result = train(planned(plans[0], config), dataset.path, tmp_path / "run", resume=True)
    assert result.test == whole.test
    file = Path("checkpoint") / "optimizer.safetensors"
    assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    for a, b in zip(tables_of(tmp_path / "run"), tables_of(tmp_path / "whole"), strict=True):
        assert torch.equal(a, b)


def test_weights_are_taken_over_from_and_into_other_tables(dataset, statistics, tmp_path):
    plan = write_plan(tmp_path / "plan.json", statistics)
    other = write_plan(tmp_path / "other.json", statistics, (0, 1, 2, 3))
    train(SHORT, dataset.path, tmp_path / "dense")
    runs = {}
    for name, placement, source in (
        ("tiered", PlacementConfig(plan=plan, cold_dir=str(tmp_path)), "dense"),
        ("moved", PlacementConfig(plan=other), "tiered"),
        ("back", PlacementConfig(), "moved"),
    ):
        still = {"optimizer.mlp_lr": 0.0, "optimizer.table_lr": 0.0, "max_rows": 100}
        config = replaced(SHORT, {**still, "placement": placement, "init_from": str(tmp_path / source)})
        train(config, dataset.path, tmp_path / name)
        runs[name] = tables_of(tmp_path / name)
        tables = RunFolder(tmp_path / name).description()["model"]["tables"]
        assert {t["representation"] for t in tables} == {"dense" if name == "back" else "tiered"}
    convert_run(tmp_path / "tiered", tmp_path / "trains", CompressionConfig(tt_tables=("C4",), tt_rank=8))
    converted = load_model(tmp_path / "trains").embeddings
    assert [c.representation for c in converted.configs] == ["dense"] * 3 + ["tt"]
    runs["trains"] = [*tables_of(tmp_path / "trains")[:3], runs["tiered"][3]]
    for name in runs:
        for a, b in zip(runs[name], tables_of(tmp_path / "dense"), strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            {"rows": (4, 61, 700, 5000)},
            "its C2 has 61 rows of 8 columns with sum pooling, the model's 60",
        ),
        ({"devices": 2}, r"is for 2 devices, but `train` runs on one.*TorchRec"),
    ],
)
def test_a_plan_of_other_tables_or_devices_is_refused(dataset, statistics, tmp_path, plan, message):
    path = write_plan(tmp_path / "plan.json", statistics, **plan)
    with pytest.raises(InputError, match=message):
        train(planned(path), dataset.path, tmp_path / "run")
    assert not RunFolder(tmp_path / "run").exists()


def test_plans_that_do_not_fit_are_refused(dataset, statistics, tmp_path):
    path = Path(write_plan(tmp_path / "plan.json", statistics))
    plan = Plan.load(path)
    changes = {
        "has no table C2, which the dataset has": plan.tables[:1] + plan.tables[2:],
        "has a table C9, which the dataset has not": (*plan.tables, TablePlan("C9", 9, 8, (0,), (9,))),
        "its C1 has 4 rows of 16 columns": (TablePlan("C1", 4, 16, (0,), (4,)), *plan.tables[1:]),
    }
    for message, tables in changes.items():
        dataclasses.replace(plan, tables=tables).save(tmp_path / "other.json")
        with pytest.raises(InputError, match=message):
            train(planned(str(tmp_path / "other.json")), dataset.path, tmp_path / "run")
    settled = {"plan": str(path), "hot_rows": dict.fromkeys(NAMES, 1)}  # taken over from another run
    for placement in (PlacementConfig(plan=str(path)), PlacementConfig(**settled)):
        config = replaced(SHORT, {"placement": placement, "compression.tt_tables": ("C3",)})
        with pytest.raises(InputError, match="leave out either the plan"):
            train(config, dataset.path, tmp_path / "run")
    dataclasses.replace(plan, inputs={}).save(tmp_path / "unnamed.json")
    with pytest.raises(InputError, match=r"does not name the statistics.*give them by --statistics"):
        train(planned(str(tmp_path / "unnamed.json")), dataset.path, tmp_path / "run")
    gone = {"statistics": {"path": "gone.npz", "sha256": "0"}}
    dataclasses.replace(plan, inputs=gone).save(tmp_path / "gone.json")
    with pytest.raises(InputError, match=r"gone.npz, which .* was made from, does not exist"):
        train(planned(str(tmp_path / "gone.json")), dataset.path, tmp_path / "run")
    with pytest.raises(InputError, match=r"is not what .* was made from: its hash is"):
        train(
            planned(str(tmp_path / "gone.json"), statistics=str(statistics)), dataset.path, tmp_path / "run"
        )
    fewer = [TableStatistics.from_ids(n, 3, np.zeros(9, np.int64)) for n in NAMES]
    AccessStatistics.of(fewer).save(tmp_path / "fewer.npz")
    with pytest.raises(InputError, match="is about other tables: its C1 has 3 rows, the model's 4"):
        other = planned(str(path), statistics=str(tmp_path / "fewer.npz"))
        train(other, dataset.path, tmp_path / "run")


def test_a_disk_too_small_is_named_before_rows_are_drawn(dataset, statistics, tmp_path, monkeypatch):
    plan = write_plan(tmp_path / "plan.json", statistics)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 999})())
    monkeypatch.setattr(TieredEmbeddingBag, "reset_parameters", lambda _: pytest.fail("rows were drawn"))
    with pytest.raises(RecsysOptError, match=r"bytes of rows to files in .*, which has 999 bytes free; make"):
        train(planned(plan, cold_dir=str(tmp_path)), dataset.path, tmp_path / "run")


def test_a_run_with_a_plan_and_one_without_do_not_go_on_as_each_other(dataset, statistics, tmp_path):
    path = write_plan(tmp_path / "plan.json", statistics)
    for first, then in ((SHORT, planned(path)), (planned(path), SHORT)):
        run = tmp_path / f"run{first is SHORT}"
        train(replaced(first, {"max_rows": 200}), dataset.path, run)
        with pytest.raises(InputError, match=r"other settings than it was started with \(placement.plan"):
            train(replaced(then, {"max_rows": 200}), dataset.path, run, resume=True)


@pytest.mark.slow
def test_the_command_survives_a_kill(dataset, statistics, tmp_path, capsys):
    """kill -9 in the middle of training on a file of cold rows, and on with --resume alone."""
    plan = write_plan(tmp_path / "plan.json", statistics)
    flags = ["--bottom-mlp", "16,8", "--top-mlp", "16,1", "--batch-size", "100", "--epochs", "2",
             "--checkpoint-every-s", "0.1", "--plan", plan, "--cold-dir", str(tmp_path)]  # fmt: skip
    assert main(["train", str(dataset.path), "--out", str(tmp_path / "whole"), *flags, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    run = tmp_path / "run"
    slowed = [sys.executable, "-m", "tests.training.slowed", "0.05", "train", str(dataset.path)]
    process = subprocess.Popen(
        [*slowed, "--out", str(run), *flags], cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            found = RunFolder(run).checkpoint_folder()
            if found is not None and int(found.name.split("-")[1]) >= 5:
                break
            time.sleep(0.002)
        assert process.poll() is None
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert main(["train", str(dataset.path), "--out", str(run), "--resume", "--json"]) == 0
    ended = json.loads(capsys.readouterr().out)
    assert ended["test"] == whole["test"]
    assert all(torch.equal(a, b) for a, b in zip(tables_of(run), tables_of(tmp_path / "whole"), strict=True))


def _go_on_with(plan: str, data: Path, run: Path, slower_s: float) -> None:
    torch.set_num_threads(1)
    slow_steps(slower_s)
    config = replaced(CONFIG, {"epochs": 1, "batch_size": 50, "checkpoint_every_s": 0.02})
    train(planned(plan, config), data, run, resume=True)


@pytest.mark.slow
def test_kills_while_rows_move_change_nothing(tmp_path):
    """kill -9 at random moments of runs that each go on with the other plan: what is on the disk is whole,
    by the old plan or by the new, and the end is that of the run that never moved."""
    data = make_dataset(tmp_path / "dataset", rows=9_000)
    ids = np.concatenate([np.load(data.path / f"{part}_sparse.npy") for part in "ab"])
    tables = [
        TableStatistics.from_ids(n, rows, ids[:, c])
        for c, (n, rows) in enumerate(zip(NAMES, COLUMNS, strict=True))
    ]
    AccessStatistics.of(tables).save(tmp_path / "stats.npz")
    splits = [SPLIT, (0, 60, 300, 10)]
    plans = [
        write_plan(tmp_path / f"{k}.json", tmp_path / "stats.npz", split) for k, split in enumerate(splits)
    ]
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__, "torch.utils.tensorboard"])  # importing takes longest

    def start(plan: str, run: Path, slower_s: float = 0.0) -> multiprocessing.process.BaseProcess:
        process = processes.Process(target=_go_on_with, args=(plan, data.path, run, slower_s))
        process.start()
        return process

    whole = start(plans[0], tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0
    rng, run, seen = np.random.default_rng(1), tmp_path / "run", set()
    for attempt in range(6):
        before, process = RunFolder(run).checkpoint_folder(), start(plans[attempt % 2], run, 0.05)
        # Some of them get as far as their first checkpoint.
        while attempt % 3 == 0 and RunFolder(run).checkpoint_folder() == before and process.is_alive():
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.15))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        found = load_model(run).embeddings
        seen.add(tuple(found.table(name).hot_rows for name in NAMES))
    assert seen == set(splits)
    last = start(plans[1], run)
    last.join()
    assert last.exitcode == 0
    assert lines(run) == lines(tmp_path / "whole")
    for a, b in zip(tables_of(run), tables_of(tmp_path / "whole"), strict=True):
        assert torch.equal(a, b)
