import shutil

import numpy as np
import pytest

from recsys_opt.bench.profile import PathRequest, assumed_profile, worth_of
from recsys_opt.data.dataset import Dataset
from recsys_opt.errors import InputError
from recsys_opt.serving.assumed import gpu_figures
from recsys_opt.serving.models import ServingOptions, load_frozen
from recsys_opt.training.evaluate import evaluate_run
from tests.serving.runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("profile"), "one")


@pytest.fixture(scope="module")
def gpu():
    return gpu_figures("v100")


def test_accuracy_is_measured_as_the_path_computes(run):
    """In fp32 it is training's evaluation; in less it is its own."""
    data = run.parent / "data"
    trained = evaluate_run(run, Dataset(data), "test")
    exact = worth_of(str(run), load_frozen(run), data, None)
    assert exact.accuracy == trained.accuracy
    assert exact.auc == pytest.approx(trained.auc, abs=1e-5)
    coarse = worth_of(str(run), load_frozen(run, ServingOptions(tables="bf16", products="bf16")), data, None)
    assert coarse.auc != exact.auc
    assert coarse.auc == pytest.approx(exact.auc, abs=0.01)


def test_only_so_many_rows_are_evaluated(run, monkeypatch):
    monkeypatch.setattr("recsys_opt.bench.profile.EVALUATED_ROWS", 100)
    found = worth_of(str(run), load_frozen(run), run.parent / "data", None)
    assert found.source == "measured on 100 rows of the test split of generated"


def test_accuracy_that_nobody_knows(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy, symlinks=True)
    (copy / "metrics.jsonl").unlink()
    frozen = load_frozen(copy)
    with pytest.raises(
        InputError, match=r"the accuracy of .* is unknown: its metrics\.jsonl has no evaluation"
    ):
        worth_of(str(copy), frozen, None, None)
    assert worth_of(str(copy), frozen, None, 0.75).accuracy == 0.75


def test_two_runs_of_one_representation_have_the_folders_names(run, gpu, tmp_path):
    copy = tmp_path / "two"
    shutil.copytree(run, copy, symlinks=True)
    both = [PathRequest(str(run)), PathRequest(str(copy))]
    profile = assumed_profile(both, gpu, data=run.parent / "data", sizes=[1, 64])
    assert [p.name for p in profile.paths] == ["one@gpu", "two@gpu"]
    assert [p.representation for p in profile.paths] == ["table", "table"]
    named = assumed_profile(
        [PathRequest(str(run), "a"), PathRequest(str(copy))], gpu, data=run.parent / "data"
    )
    assert [p.name for p in named.paths] == ["a@gpu", "table@gpu"]


def test_another_dataset_in_the_place_of_the_runs(run, gpu):
    """A dataset where the run's was, but of other rows, is not measured on."""
    data = run.parent / "data"
    (one,) = assumed_profile([PathRequest(str(run))], gpu).paths
    assert one.accuracy_from.startswith("measured on 600 rows")
    document = (data / "dataset.json").read_text()
    try:
        (data / "dataset.json").write_text(document.replace("seed 0, rows 6000", "seed 9, rows 6000"))
        (other,) = assumed_profile([PathRequest(str(run))], gpu).paths
        assert other.accuracy_from == "training's evaluation on 600 rows of its test split"
        assert np.isclose(other.accuracy, one.accuracy)
    finally:
        (data / "dataset.json").write_text(document)
