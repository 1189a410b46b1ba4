import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from recsys_opt.cli.main import main
from recsys_opt.data.dataset import write_dataset_info
from recsys_opt.errors import InputError
from recsys_opt.models.recipes import DLRMConfig
from recsys_opt.models.saved import load_model
from recsys_opt.run_folder import RunFolder
from recsys_opt.training.config import CompressionConfig, TrainingConfig, replaced
from recsys_opt.training.initial import convert_run
from recsys_opt.training.lookup_counts import count_lookups
from recsys_opt.training.trainer import train
from tests.generated import make_dataset

CONFIG = TrainingConfig(architecture=DLRMConfig(bottom_mlp=(16, 8), top_mlp=(16, 1)), max_rows=2000)
TT = CompressionConfig(tt_tables=("C4",), tt_rank=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a dataset and of a dense run over its first 2,000 rows."""
    folder = tmp_path_factory.mktemp("counts")
    train(CONFIG, make_dataset(folder / "data").path, folder / "dense")
    return folder


def looked_up(folder) -> np.ndarray:
    rows = np.load(folder / "data" / "a_sparse.npy", mmap_mode="r")[:2000, 3]
    return np.bincount(rows, minlength=5000)


def test_counts_of_the_rows_that_were_trained_on(run):
    counts = count_lookups(make_dataset(run / "again"), ["C4"], 2000)
    np.testing.assert_array_equal(counts("C4").numpy(), looked_up(run))
    assert counts("C3") is None
    assert count_lookups(make_dataset(run / "again"), [], 2000) is None


def weighted_error(folder, name: str) -> float:
    old, new = (load_model(folder / n).embeddings.table("C4").materialize().detach() for n in ("dense", name))
    weights = torch.from_numpy(looked_up(folder)).float()
    return float((weights @ (new - old).square().sum(1) / (weights @ old.square().sum(1))).sqrt())


def test_a_run_is_fitted_to_the_rows_of_its_own_dataset(run):
    done = convert_run(run / "dense", run / "fit", TT)
    convert_run(run / "dense", run / "svd", replaced(TT, {"tt_fit": "svd"}))
    (fit,) = done.fits
    assert fit.weighted_error == pytest.approx(weighted_error(run, "fit"), rel=1e-3)
    assert fit.weighted_error < 0.9 * weighted_error(run, "svd")
    assert str(run / "data") in done.weighting
    assert RunFolder(run / "fit").description()["conversion_weights"] == done.weighting


def test_starting_from_a_run_fits_likewise(run):
    slow = {f"optimizer.{kind}_lr": 1e-9 for kind in ("mlp", "table", "core")}
    config = replaced(dataclasses.replace(CONFIG, compression=TT), {**slow, "init_from": str(run / "dense")})
    train(replaced(config, {"max_rows": 100}), run / "data", run / "started")
    convert_run(run / "dense", run / "converted", TT)
    started, converted = (load_model(run / n).embeddings.table("C4") for n in ("started", "converted"))
    torch.testing.assert_close(started.materialize(), converted.materialize(), rtol=1e-3, atol=1e-5)


def test_without_its_dataset_every_row_counts_alike_and_it_is_said(run, tmp_path, capsys):
    shutil.copytree(run / "dense", tmp_path / "dense")
    path = tmp_path / "dense" / "config.json"
    document = json.loads(path.read_text())
    document["dataset"]["path"] = str(tmp_path / "moved")
    path.write_text(json.dumps(document))
    flags = ["convert", str(tmp_path / "dense"), "--tt-tables", "C4", "--tt-rank", "4"]
    assert main([*flags, "--out", str(tmp_path / "alike")]) == 0
    text = capsys.readouterr().out
    assert "fitted: every row alike, since the run's dataset cannot be read" in text
    assert main([*flags, "--out", str(tmp_path / "named"), "--count-from", str(run / "data"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert str(run / "data") in document["weighting"]
    assert 0 < document["tables"][0]["weighted_error"] < 1
    changed = make_dataset(tmp_path / "moved")
    write_dataset_info(tmp_path / "moved", dataclasses.replace(changed.info, input_hash="other rows"))
    assert convert_run(tmp_path / "dense", tmp_path / "x", TT).weighting.startswith("every row alike, since")


def test_refusals(run, tmp_path):
    other = make_dataset(tmp_path / "other", columns=(4, 60, 700, 4000))
    with pytest.raises(InputError, match="has 4000 ids in column C4, but the run's table has 5000 rows"):
        convert_run(run / "dense", tmp_path / "x", TT, count_from=other.path)
    with pytest.raises(InputError, match="neither a tolerance nor tt_fit = 'svd' counts lookups"):
        convert_run(run / "dense", tmp_path / "x", TT, tolerance=0.5, count_from=run / "data")
    with pytest.raises(InputError, match="tt_fit = 'als'; it must be 'counts' or 'svd'"):
        replaced(TT, {"tt_fit": "als"})
    with pytest.raises(InputError, match=r"nothing/dataset\.json does not exist"):
        convert_run(run / "dense", tmp_path / "x", TT, count_from=tmp_path / "nothing")
