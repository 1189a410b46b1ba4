import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recsys_opt.bench import quality
from recsys_opt.bench.quality import mean_and_spread, paired_difference, points, summarise
from recsys_opt.bench.quality_trial import SPACE
from recsys_opt.cli.main import main
from recsys_opt.training import trainer
from tests.generated import make_dataset

SMALL = [
    "--bottom-mlp",
    "16,8",
    "--top-mlp",
    "16,1",
    "--max-rows",
    "2k",
    "--tt-above",
    "700",
    "--tt-rank",
    "4",
]


POOL = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from recsys_opt.bench.quality_trial import end_with_parent

def trial(file):
    Path(file + ".new").write_text(str(os.getpid()))
    os.rename(file + ".new", file)
    time.sleep(600)

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent) as pool:
        pool.submit(trial, sys.argv[1]).result()
"""


def wait_until(true, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def test_a_trial_ends_with_the_command_that_started_it(tmp_path):
    (tmp_path / "pool.py").write_text(POOL)
    pid = tmp_path / "pid"
    command = subprocess.Popen([sys.executable, str(tmp_path / "pool.py"), str(pid)])
    assert wait_until(pid.exists)
    trial = Path("/proc") / pid.read_text()
    assert trial.exists()
    command.kill()
    command.wait()
    assert wait_until(lambda: not trial.exists() or "State:\tZ" in (trial / "status").read_text())


def test_points_fill_the_space_and_stay_the_same():
    found = points(8)
    assert found == points(8)
    for path, (low, high) in SPACE.items():
        values = sorted(p[path] for p in found)
        assert low <= values[0] < values[-1] <= high
        assert len(set(values)) == 8
        assert values[-1] / values[0] > (high / low) ** 0.8


def test_differences_are_paired():
    found = paired_difference([0.3, 0.5, 0.4], [0.1, 0.3, 0.2])
    assert found["mean"] == pytest.approx(0.2)
    assert found["spread"] == pytest.approx(0)
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_spread([1.0]) == (1.0, 0.0)


def summarised(auc, logloss, variant):
    return [
        {
            "stage": "seeds", "variant": variant, "seed": seed, "test_auc": a, "test_logloss": b,
            "test_accuracy": 0.8, "test_calibration": 1.0, "embedding_bytes": 10, "dense_embedding_bytes": 40,
        }
        for seed, (a, b) in enumerate(zip(auc, logloss, strict=True))
    ]  # fmt: skip


def test_a_summary_pairs_by_seed():
    dense = summarised([0.75, 0.77], [0.5, 0.4], "dense")
    tt = summarised([0.74, 0.78], [0.6, 0.5], "tt8")
    found = summarise([tt[1], dense[0], tt[0], dense[1]], ["dense", "tt8"])
    assert found["tt8"]["test_auc"]["mean"] == pytest.approx(0.76)
    assert found["tt8"]["test_auc_difference"]["mean"] == pytest.approx(0)
    assert found["tt8"]["test_auc_difference"]["standard_error"] == pytest.approx(0.01)
    assert found["tt8"]["test_logloss_difference"]["mean"] == pytest.approx(0.1)
    assert found["tt8"]["smaller"] == 4
    assert "test_auc_difference" not in found["dense"]


@pytest.mark.slow
def test_a_comparison_from_search_to_record(tmp_path, capsys):
    data, path = make_dataset(tmp_path / "data"), tmp_path / "record.json"
    flags = [str(data.path), "--variants", "dense,tt3", "--search", "2", "--logistic", *SMALL]
    flags = ["bench", "quality", *flags, "--record", str(path), "--json"]
    assert main([*flags, "--seeds", "1"]) == 0
    first = json.loads(path.read_text())["rows"]
    capsys.readouterr()
    assert main([*flags, "--seeds", "2", "--resume"]) == 0
    summary = json.loads(capsys.readouterr().out)
    rows = json.loads(path.read_text())["rows"]
    assert rows[: len(first)] == first
    assert len(rows) == len(first) + 2
    searched = [r for r in rows if r["stage"] == "search"]
    assert [r["variant"] for r in searched] == ["dense", "dense", "tt3", "tt3"]
    assert not any(key.startswith("test_") for r in searched for key in r)  # chosen without the test rows
    for name in ("dense", "tt3"):
        own = [r for r in searched if r["variant"] == name]
        best = max(own, key=lambda r: r["validation_auc"])
        assert {path: best[path] for path in SPACE} == summary["chosen"][name]
    finals = [r for r in rows if r["stage"] == "seeds"]
    assert [(r["variant"], r["seed"]) for r in finals] == [
        ("dense", 1), ("tt3", 1), ("dense", 2), ("tt3", 2)
    ]  # fmt: skip
    difference = summary["variants"]["tt3"]["test_auc_difference"]["mean"]
    dense, tt = ([r["test_auc"] for r in finals if r["variant"] == v] for v in ("dense", "tt3"))
    assert difference == pytest.approx(sum(tt) / 2 - sum(dense) / 2)
    assert summary["variants"]["tt3"]["embedding_bytes"] < summary["variants"]["dense"]["embedding_bytes"]
    assert summary["logistic"]["test_auc"] > 0.5
    assert main([*flags, "--seeds", "2", "--resume", "--batch-size", "64"]) == 2
    assert "was made with another config" in capsys.readouterr().err


@pytest.mark.slow
def test_variants_that_begin_with_the_dense_model(tmp_path, capsys):
    data, path = make_dataset(tmp_path / "data"), tmp_path / "record.json"
    flags = [str(data.path), "--variants", "dense,svd2,svd800,fit2,dense+tuned,fit2+tuned", "--seeds", "1"]
    work = tmp_path / "work"
    work.mkdir()
    flags = ["bench", "quality", *flags, *SMALL, "--record", str(path), "--work", str(work), "--json"]
    assert main([*flags, "--tune-rate", "0.5"]) == 0
    assert not list(work.iterdir())
    rows = {r["variant"]: r for r in json.loads(path.read_text())["rows"]}
    assert list(rows) == ["dense", "svd2", "svd800", "fit2", "dense+tuned", "fit2+tuned"]
    assert all(0.1 < error < 1 for error in rows["svd2"]["fit_error"].values())
    # A tensor train of full rank is the dense table.
    assert rows["svd800"]["test_auc"] == pytest.approx(rows["dense"]["test_auc"], abs=1e-4)
    assert rows["svd2"]["test_logloss"] != rows["dense"]["test_logloss"]
    assert rows["dense+tuned"]["test_logloss"] != pytest.approx(rows["dense"]["test_logloss"], abs=1e-5)
    assert all(error is None for error in rows["svd2"]["weighted_fit_error"].values())
    assert all(0.1 < error < 1 for error in rows["fit2"]["weighted_fit_error"].values())
    assert rows["fit2"]["fit_error"].keys() == rows["svd2"]["fit_error"].keys()
    assert all(error > rows["svd2"]["fit_error"][name] for name, error in rows["fit2"]["fit_error"].items())
    assert rows["fit2+tuned"]["embedding_bytes"] == rows["svd2"]["embedding_bytes"]
    assert rows["fit2+tuned"]["test_logloss"] != rows["fit2"]["test_logloss"]
    capsys.readouterr()
    assert {name: row.get("tune_rate") for name, row in rows.items()} == {
        "dense": None, "svd2": None, "svd800": None, "fit2": None, "dense+tuned": 0.5, "fit2+tuned": 0.5
    }  # fmt: skip
    assert rows["svd2"]["tensor_trains"] == rows["fit2+tuned"]["tensor_trains"] != {}


@pytest.mark.slow
def test_the_tuning_rate_is_chosen_without_the_test_rows(tmp_path, capsys):
    data, path = make_dataset(tmp_path / "data"), tmp_path / "record.json"
    flags = ["bench", "quality", str(data.path), "--variants", "dense,svd2+tuned", "--seeds", "1", *SMALL]
    flags += ["--tune-rate", "0.01", "0.3", "--work", str(tmp_path), "--record", str(path), "--json"]
    assert main(flags) == 0
    chosen = json.loads(capsys.readouterr().out)["chosen"]["svd2+tuned"]
    rows = json.loads(path.read_text())["rows"]
    searched = [r for r in rows if r["stage"] == "search"]
    assert [(r["variant"], r["tune_rate"]) for r in searched] == [("svd2+tuned", 0.01), ("svd2+tuned", 0.3)]
    assert not any(key.startswith("test_") for r in searched for key in r)
    best = max(searched, key=lambda r: r["validation_auc"])
    finals = {r["variant"]: r for r in rows if r["stage"] == "seeds"}
    assert chosen == {"tune_rate": best["tune_rate"]}
    assert finals["svd2+tuned"]["tune_rate"] == best["tune_rate"]
    assert "tune_rate" not in finals["dense"]


def test_a_record_of_other_shapes_is_not_gone_on_with(tmp_path, capsys):
    data, path = make_dataset(tmp_path / "data"), tmp_path / "record.json"
    flags = ["bench", "quality", str(data.path), "--variants", "tt4", "--seeds", "1", *SMALL]
    assert main([*flags, "--record", str(path)]) == 0
    document = json.loads(path.read_text())
    (row,) = document["rows"]
    assert all(train["tt_q_shapes"] == [1, 1, 8] for train in row["tensor_trains"].values())
    table, train = next(iter(row["tensor_trains"].items()))
    train["tt_q_shapes"] = [2, 2, 2]
    path.write_text(json.dumps(document))
    assert main([*flags, "--record", str(path), "--resume"]) == 2
    error = capsys.readouterr().err
    assert f"tt4 with tensor trains of other shapes than now ({table}: " in error
    assert "leave out --resume" in error
    del row["tensor_trains"]
    path.write_text(json.dumps(document))
    assert main([*flags, "--record", str(path), "--resume"]) == 2
    assert "shapes that it does not tell" in capsys.readouterr().err


@pytest.mark.slow
def test_column_factors_and_precision_are_variants(tmp_path):
    data, path = make_dataset(tmp_path / "data"), tmp_path / "record.json"
    variants = ["tt4", "tt4@1x1x8", "tt@2x2x2+cache", "tt4+bf16"]
    flags = ["bench", "quality", str(data.path), "--variants", ",".join(variants), "--seeds", "1", *SMALL]
    assert main([*flags, "--record", str(path)]) == 0
    rows = {r["variant"]: r for r in json.loads(path.read_text())["rows"]}
    assert list(rows) == variants
    assert rows["tt4+bf16"]["tensor_trains"] == rows["tt4"]["tensor_trains"]
    assert rows["tt4+bf16"]["test_logloss"] == pytest.approx(rows["tt4"]["test_logloss"], abs=0.01)
    assert rows["tt4+bf16"]["test_logloss"] != rows["tt4"]["test_logloss"]
    assert rows["tt4"]["embedding_bytes"] != rows["tt@2x2x2+cache"]["embedding_bytes"]
    # SMALL's dimension is 8, of which 1 x 1 x 8 are the default factors: the same model.
    assert rows["tt4"]["test_auc"] == rows["tt4@1x1x8"]["test_auc"]


@pytest.mark.slow
def test_deep_hash_embeddings_are_variants(tmp_path):
    data, path = make_dataset(tmp_path / "data"), tmp_path / "record.json"
    variants = ["dense", "dhe16", "hybrid16", "hybrid16@halves", "select16"]
    flags = ["bench", "quality", str(data.path), "--variants", ",".join(variants), "--seeds", "1", *SMALL]
    assert main([*flags, "--record", str(path)]) == 0
    rows = {r["variant"]: r for r in json.loads(path.read_text())["rows"]}
    assert list(rows) == variants
    size = {name: row["embedding_bytes"] for name, row in rows.items()}
    assert size["dhe16"] < size["hybrid16@halves"] < size["dense"] + size["dhe16"] == size["hybrid16"]
    loss = {name: row["test_logloss"] for name, row in rows.items()}
    assert loss["select16"] == loss["dhe16"]  # the 5 largest of 4 tables
    assert len(set(loss.values())) == 4
    assert len({row["dense_embedding_bytes"] for row in rows.values()}) == 1
    assert main(["bench", "quality", str(data.path), "--variants", "dense,select@halves"]) == 2


@pytest.mark.slow
def test_held_rows_are_counted_as_bytes(tmp_path):
    data, path = make_dataset(tmp_path / "data"), tmp_path / "record.json"
    flags = ["bench", "quality", str(data.path), "--variants", "tt4,tt4+cache", "--seeds", "1", *SMALL]
    assert main([*flags, "--cache-rows", "50", "--tt-cache-refresh-every", "4", "--record", str(path)]) == 0
    plain, held = json.loads(path.read_text())["rows"]
    tables = sum(n > 700 for n in (c.num_embeddings for c in data.info.sparse_columns))
    assert held["embedding_bytes"] >= plain["embedding_bytes"] + tables * 50 * 16 * 2
    assert held["test_logloss"] != plain["test_logloss"]


def test_a_finished_comparison_is_read_from_its_record(tmp_path, capsys, monkeypatch):
    data, path = make_dataset(tmp_path / "data"), tmp_path / "record.json"
    flags = ["bench", "quality", str(data.path), "--variants", "dense", "--seeds", "1", *SMALL]
    assert main([*flags, "--record", str(path), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(quality, "run_trial", None)
    assert main([*flags, "--record", str(path), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == made
    assert main([*flags, "--record", str(path), "--resume"]) == 0
    text = capsys.readouterr().out
    assert f"{made['variants']['dense']['test_auc']['mean']:.5f}" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.slow
def test_a_budget_beside_one_rank_for_all(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    flags = ["--variants", "uniform30kB,budget30kB", "--seeds", "1", *SMALL, "--json"]
    assert main(["bench", "quality", str(data.path), *flags]) == 0
    found = json.loads(capsys.readouterr().out)["variants"]
    assert 20_000 < found["uniform30kB"]["embedding_bytes"] <= 30_000
    assert 20_000 < found["budget30kB"]["embedding_bytes"] <= 30_000


def test_refusals(tmp_path, capsys):
    data = make_dataset(tmp_path / "data", rows=100)
    assert main(["bench", "quality", str(data.path), "--variants", "dense,rows"]) == 2
    assert "there is no variant 'rows'" in capsys.readouterr().err
    assert main(["bench", "quality", str(data.path), "--variants", "dense,budget4XB"]) == 2
    assert "4XB is no number of bytes" in capsys.readouterr().err
    assert main(["bench", "quality", str(data.path), "--variants", "uniform100B"]) == 3
    assert main(["bench", "quality", str(data.path), "--seeds", "0"]) == 2
    assert main(["bench", "quality", str(data.path), "--variants", "dense,dense"]) == 2
    assert main(["bench", "quality", str(data.path), "--variants", "svd+tuned"]) == 2
    for name in ("svd8+bf16", "tt8+bf16+bf16", "dense+tuned+bf16"):
        capsys.readouterr()
        assert main(["bench", "quality", str(data.path), "--variants", name]) == 2
        assert "trained from the start, once" in capsys.readouterr().err
    assert main(["bench", "quality", str(data.path), "--tune-rate", "0.1", "0.1"]) == 2
    assert "none twice" in capsys.readouterr().err
    assert main(["bench", "quality", str(data.path), "--resume"]) == 2
    assert "--resume needs --record" in capsys.readouterr().err


class InThisProcess:
    """Of ProcessPoolExecutor what a comparison needs."""

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def map(self, function, *arguments):
        return map(function, *arguments)


def without_speed(row):
    return {key: value for key, value in row.items() if key != "samples_per_s"}


@pytest.mark.slow
def test_a_killed_trial_goes_on_from_its_checkpoint(tmp_path, capsys, monkeypatch):
    data = make_dataset(tmp_path / "data")
    flags = ["bench", "quality", str(data.path), "--variants", "dense,tt4,tt4+cache", "--seeds", "1", *SMALL]
    flags += ["--batch-size", "100", "--json"]
    # In this process, so that a trial can be cut off at a given update, with checkpoints every 4.
    monkeypatch.setattr(quality, "ProcessPoolExecutor", InThisProcess)
    assert main([*flags, "--record", str(tmp_path / "whole.json")]) == 0
    whole = json.loads((tmp_path / "whole.json").read_text())["rows"]
    place = ["--record", str(tmp_path / "cut.json"), "--work", str(tmp_path), "--resume"]
    saves, updates = [], []
    save, update = trainer._Training._save, trainer._Training._update

    def cut_off(training, batch):
        if len(updates) == 30:  # in the second of three trials
            raise KeyboardInterrupt
        updates.append(training.position.step)
        update(training, batch)

    def counted(training):
        saves.append(training.position.step)
        save(training)

    monkeypatch.setattr(trainer._Training, "_save", counted)
    monkeypatch.setattr(trainer._Training, "_update", cut_off)
    monkeypatch.setattr(
        trainer._Training, "_checkpoint_due", lambda t, last, elapsed: not last and t.position.step % 4 == 0
    )
    assert main([*flags, *place]) != 0
    assert updates == [*range(20), *range(10)]
    assert saves == [4, 8, 12, 16, 4, 8]
    assert [r["variant"] for r in json.loads((tmp_path / "cut.json").read_text())["rows"]] == ["dense"]
    updates.clear()
    updates += [-1] * 31  # never cut off again
    capsys.readouterr()
    assert main([*flags, *place]) == 0
    assert updates[31:] == [*range(8, 20), *range(20)]
    rows = json.loads((tmp_path / "cut.json").read_text())["rows"]
    assert [without_speed(r) for r in rows] == [without_speed(r) for r in whole]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.json", "data", "whole.json"]


def test_networks_have_a_rate_of_their_own(tmp_path, capsys):
    data, path = make_dataset(tmp_path / "data"), tmp_path / "record.json"
    flags = ["bench", "quality", str(data.path), "--variants", "dense,dhe16", "--seeds", "1", *SMALL]
    assert main([*flags, "--hash-rate", "0.003", "--record", str(path)]) == 0
    dense, hashed = json.loads(path.read_text())["rows"]
    assert hashed["optimizer.core_lr"] == 0.003
    assert "optimizer.core_lr" not in dense
    assert main([*flags, "--hash-rate", "0"]) == 2
    assert "--hash-rate 0.0: give a rate above 0" in capsys.readouterr().err
