import dataclasses

import pytest
import torch

from recsys_opt.errors import InputError
from recsys_opt.models.recipes import DLRMConfig
from recsys_opt.models.saved import load_model
from recsys_opt.run_folder import RunFolder
from recsys_opt.training.config import CompressionConfig, TrainingConfig, replaced
from recsys_opt.training.evaluate import evaluate_run
from recsys_opt.training.initial import convert_run
from recsys_opt.training.optimizers import OptimizerConfig
from recsys_opt.training.trainer import train
from tests.generated import make_dataset

CONFIG = TrainingConfig(
    architecture=DLRMConfig(bottom_mlp=(16, 8), top_mlp=(16, 1)),
    optimizer=OptimizerConfig(algorithm="adagrad", mlp_lr=0.01, table_lr=0.05, core_lr=0.01),
    batch_size=128,
)
TT = CompressionConfig(tt_threshold=700, tt_rank=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A dataset, a dense run and the same run converted."""
    folder = tmp_path_factory.mktemp("initial")
    dataset = make_dataset(folder / "data")
    result = train(CONFIG, dataset.path, folder / "dense")
    fits = convert_run(folder / "dense", folder / "svd", TT).fits
    return folder, dataset, result, fits


def test_a_converted_run_is_evaluated_and_fine_tuned(trained):
    folder, dataset, result, fits = trained
    assert [f.name for f in fits] == ["C3", "C4"]
    svd = evaluate_run(folder / "svd", dataset, "test")
    assert svd.logloss != result.test.logloss  # rank 4 loses something
    assert abs(svd.auc - result.test.auc) < 0.1
    before, after = load_model(folder / "dense"), load_model(folder / "svd")
    assert torch.equal(before.top[0].weight, after.top[0].weight)
    table = before.embeddings.table("C4").materialize()
    error = (after.embeddings.table("C4").materialize().detach() - table).norm() / table.norm()
    assert fits[1].fit_error == pytest.approx(float(error.detach()), rel=0.02)
    assert RunFolder(folder / "svd").description()["conversion"][1]["fit_error"] == fits[1].fit_error

    slow = {"optimizer.mlp_lr": 1e-9, "optimizer.table_lr": 1e-9, "optimizer.core_lr": 1e-9}
    config = TrainingConfig.from_json(RunFolder(folder / "svd").description()["config"])
    config = replaced(config, {**slow, "init_from": str(folder / "svd"), "max_rows": 500})
    tuned = train(config, dataset.path, folder / "tuned")
    assert tuned.test.logloss == pytest.approx(svd.logloss, abs=1e-5)

    # Straight from the dense run, the trains are fitted on the way: the same start.
    direct = replaced(CONFIG, {**slow, "init_from": str(folder / "dense"), "max_rows": 500})
    direct = dataclasses.replace(direct, compression=TT)
    assert train(direct, dataset.path, folder / "direct").test.logloss == pytest.approx(svd.logloss, abs=1e-5)


def test_a_run_that_started_from_another_resumes_without_it(trained):
    folder, dataset, _, _ = trained
    config = replaced(CONFIG, {"init_from": str(folder / "svd"), "max_rows": 500})
    config = dataclasses.replace(config, compression=TT)
    first = train(config, dataset.path, folder / "first")
    moved = folder / "svd-away"
    (folder / "svd").rename(moved)
    try:
        assert train(config, dataset.path, folder / "first", resume=True).test == first.test
    finally:
        moved.rename(folder / "svd")


def test_a_converted_run_goes_on_by_itself(trained, tmp_path):
    folder, dataset, _, _ = trained
    convert_run(folder / "dense", tmp_path / "svd", TT)
    config = TrainingConfig.from_json(RunFolder(tmp_path / "svd").description()["config"])
    result = train(config, dataset.path, tmp_path / "svd", resume=True)
    assert result.rows == 4800


def test_refusals(trained, tmp_path):
    folder, dataset, _, _ = trained
    with pytest.raises(InputError, match=r"no table of .* changes.*C4 5000"):
        convert_run(folder / "dense", tmp_path / "x", CompressionConfig())
    assert not RunFolder(tmp_path / "x").exists()
    with pytest.raises(InputError, match="already holds a run"):
        convert_run(folder / "dense", folder / "svd", TT)
    with pytest.raises(InputError, match="is not a run folder"):
        convert_run(tmp_path / "none", tmp_path / "x", TT)
    wider = replaced(CONFIG, {"architecture.top_mlp": (32, 1), "init_from": str(folder / "dense")})
    with pytest.raises(InputError, match=r"do not fit the settings: architecture.top_mlp"):
        train(wider, dataset.path, tmp_path / "y")
    other = make_dataset(tmp_path / "data", columns=(4, 60, 700, 4000))
    with pytest.raises(InputError, match="prepare the dataset in the same way"):
        train(replaced(CONFIG, {"init_from": str(folder / "dense")}), other.path, tmp_path / "z")
