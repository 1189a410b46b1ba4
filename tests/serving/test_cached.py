import shutil

import numpy as np
import pytest
import torch

from recsys_opt.cli.main import main
from recsys_opt.data.dataset import Dataset
from recsys_opt.embeddings.dhe_cache import CachedDHEBag
from recsys_opt.errors import InputError
from recsys_opt.models.saved import load_model
from recsys_opt.run_folder import RunFolder
from recsys_opt.serving.dense_net import has_packed_products
from recsys_opt.serving.models import ServingOptions, load_frozen
from recsys_opt.serving.profile import Profile
from recsys_opt.serving.samples import dataset_samples
from recsys_opt.tensor_files import map_tensors
from recsys_opt.training.config import HashingConfig
from tests.generated import make_dataset
from tests.serving.runs import make_run

LARGE = 2_200_000  # rows of 16 numbers that are not stored as a whole


@pytest.fixture(scope="module")
def hashed_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached")
    make_dataset(folder / "data", columns=(700, LARGE))
    deep = HashingConfig(dhe_hashes=16, dhe_widths=(16,), dhe_largest=1)
    return {
        kind: make_run(folder, kind, {"representation": kind, "hashing": deep})
        for kind in ("dhe", "hybrid", "select")
    }


@pytest.fixture
def run(hashed_runs, tmp_path):
    """A copy that was never served; its dataset is where it was."""
    ignore = shutil.ignore_patterns("served_*")
    shutil.copytree(hashed_runs["dhe"], tmp_path / "run", symlinks=True, ignore=ignore)
    return tmp_path / "run"


def caches(frozen):
    return [
        bag
        for group, _ in frozen._tables.groups
        for bag in getattr(group, "bags", ())
        if type(bag) is CachedDHEBag
    ]


def kept(run):
    return sorted(RunFolder(run).checkpoint_folder().glob("served_cache_*"))


@pytest.mark.parametrize("kind", ["dhe", "hybrid", "select"])
def test_equals_the_trained_model(hashed_runs, kind):
    run = hashed_runs[kind]
    model, frozen = load_model(run), load_frozen(run, ServingOptions(cache_rows=50))
    (bag,) = caches(frozen)
    assert frozen.representation == kind
    assert (bag.num_embeddings, len(bag.keys)) == (LARGE, 50)
    samples = dataset_samples(run.parent / "data", frozen.request)
    dense, ids = samples.request(600, 0)
    assert 0.05 < bag.hot_share(torch.from_numpy(ids[1])) < 0.95
    with torch.no_grad():
        expected = model(torch.from_numpy(dense), torch.from_numpy(ids).reshape(-1)).sigmoid().numpy()
    np.testing.assert_allclose(frozen.predict(dense, ids), expected, atol=1e-6)
    assert frozen.bytes > load_frozen(run).bytes


def test_it_holds_what_the_training_rows_look_up_most(run):
    load_frozen(run, ServingOptions(cache_rows=20))
    (file,) = kept(run)
    dataset = Dataset(RunFolder(run).description()["dataset"]["path"])
    start, stop = dataset.split("train")
    column = np.load(dataset.path / "a_sparse.npy")[start:stop, 1]
    column = np.concatenate([column, np.load(dataset.path / "b_sparse.npy")[: stop - len(column), 1]])
    values, counts = np.unique(column, return_counts=True)
    most = values[np.lexsort((values, -counts))][:20]
    np.testing.assert_array_equal(map_tensors(file)["C2.ids"].numpy(), most)


def test_it_is_counted_once(run, tmp_path, monkeypatch):
    options = ServingOptions(cache_rows=30)
    first = load_frozen(run, options)
    monkeypatch.setattr("recsys_opt.serving.cached.dataset_of", lambda run: None)
    (again,) = caches(load_frozen(run, options))
    torch.testing.assert_close(again.weight, caches(first)[0].weight, rtol=0, atol=0)
    with pytest.raises(InputError, match="name a dataset or access statistics"):
        load_frozen(run, ServingOptions(cache_rows=31))
    monkeypatch.setattr("recsys_opt.serving.cached.os.access", lambda path, mode: False)
    source = str(RunFolder(run).description()["dataset"]["path"])
    unkept = load_frozen(run, ServingOptions(cache_rows=30, cache_from=source))
    assert len(kept(run)) == 1
    dense, ids = dataset_samples(source, first.request).request(100, 0)
    np.testing.assert_array_equal(unkept.predict(dense, ids), first.predict(dense, ids))


def test_rows_by_access_statistics(run, tmp_path, capsys):
    data = RunFolder(run).description()["dataset"]["path"]
    assert main(["stats", str(data), "--out", str(tmp_path / "stats.npz")]) == 0
    load_frozen(run, ServingOptions(cache_rows=20))
    load_frozen(run, ServingOptions(cache_rows=20, cache_from=str(tmp_path / "stats.npz")))
    own, counted = (map_tensors(file)["C2.ids"].tolist() for file in kept(run))
    assert len(set(own) & set(counted)) >= 15  # of all rows, not of the training rows
    make_dataset(tmp_path / "other", columns=(700, LARGE - 1))
    with pytest.raises(InputError, match=r"2,199,999 ids in C2, but the table has 2,200,000 rows"):
        load_frozen(run, ServingOptions(cache_rows=20, cache_from=str(tmp_path / "other")))


def test_centroids_change_predictions(run):
    exact, near = (load_frozen(run, ServingOptions(cache_rows=50, centroids=c)) for c in (0, 4))
    dense, ids = dataset_samples(RunFolder(run).description()["dataset"]["path"], exact.request).request(
        300, 0
    )
    (bag,) = caches(near)
    stored = np.isin(ids[1], bag.keys.numpy())
    assert 0 < stored.sum() < 300
    apart = np.abs(near.predict(dense, ids) - exact.predict(dense, ids))
    assert apart[stored].max() < 1e-6
    assert apart[~stored].max() > 1e-4
    again = load_frozen(run, ServingOptions(cache_rows=50, centroids=4))
    np.testing.assert_array_equal(again.predict(dense, ids), near.predict(dense, ids))


@pytest.mark.parametrize("cache_rows", [0, 50])
def test_networks_in_bf16(run, cache_rows):
    if not has_packed_products(torch.bfloat16):
        with pytest.raises(InputError, match="serve with networks fp32"):
            load_frozen(run, ServingOptions(networks="bf16"))
        return
    exact = load_frozen(run, ServingOptions(cache_rows=cache_rows))
    rounded = load_frozen(run, ServingOptions(cache_rows=cache_rows, networks="bf16"))
    path = RunFolder(run).description()["dataset"]["path"]
    dense, ids = dataset_samples(path, exact.request).request(300, 0)
    expected, found = exact.predict(dense, ids), rounded.predict(dense, ids)
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert not np.array_equal(found, expected)
    np.testing.assert_array_equal(exact.predict(dense, ids), expected)


def test_mistakes(table_run, run):
    with pytest.raises(InputError, match=r"no table of .* has rows that are computed"):
        load_frozen(table_run, ServingOptions(cache_rows=5))
    with pytest.raises(InputError, match="cache_rows = -1, centroids = 0; they must be 0 or more"):
        ServingOptions(cache_rows=-1)
    with pytest.raises(InputError, match="give it rows by cache_rows"):
        ServingOptions.from_json({"centroids": 5})


@pytest.mark.slow
def test_a_profile_has_paths_with_caches(run, table_run, tmp_path, capsys):
    out = tmp_path / "profile.json"
    quick = ["--seconds", "0.1", "--sizes", "1", "--out", str(out)]
    assert main(["profile", str(run), *quick, "--cache-rows", "10", "--centroids", "2"]) == 0
    profile = Profile.load(out)
    assert [p.name for p in profile.paths] == ["dhe@cpu", "dhe+cache10@cpu", "dhe+cache10+2@cpu"]
    dhe, cached, near = profile.paths
    assert dhe.auc == pytest.approx(cached.auc, abs=1e-6)
    assert near.auc != cached.auc
    assert dhe.bytes < cached.bytes
    frozen = load_frozen(run, ServingOptions.from_json(cached.options), fingerprint=cached.fingerprint)
    assert len(caches(frozen)[0].keys) == 10
    capsys.readouterr()
    assert main(["profile", str(table_run), *quick, "--cache-rows", "10"]) == 2
    assert "none of the runs has deep hash embeddings" in capsys.readouterr().err
    assert main(["profile", str(run), *quick, "--centroids", "10"]) == 2
    assert "give it rows by --cache-rows" in capsys.readouterr().err
