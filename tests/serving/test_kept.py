import shutil

import numpy as np
import pytest

from recsys_opt.errors import InputError
from recsys_opt.run_folder import RunFolder
from recsys_opt.serving.models import ServingOptions, load_frozen
from recsys_opt.serving.samples import generated_samples
from recsys_opt.tensor_files import tensor_shapes
from recsys_opt.training.config import HashingConfig
from tests.serving.runs import make_run


@pytest.fixture(scope="module")
def hashed_runs(tmp_path_factory):
    """A run of deep hash embeddings and one of hybrids."""
    folder = tmp_path_factory.mktemp("kept")
    deep = HashingConfig(dhe_hashes=16, dhe_widths=(8,))
    return {
        kind: make_run(folder, kind, {"representation": kind, "hashing": deep}) for kind in ("dhe", "hybrid")
    }


@pytest.fixture(params=["dhe", "hybrid"])
def fresh(request, hashed_runs, tmp_path):
    """A copy that was never served."""
    shutil.copytree(hashed_runs[request.param], tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def kept_files(run):
    return list(RunFolder(run).checkpoint_folder().glob("*served_*"))


def predictions(run, options=None):
    frozen = load_frozen(run, options)
    return frozen.predict(*generated_samples(frozen.request, 500).request(300, 0))


def test_computed_rows_are_made_once(fresh):
    first = predictions(fresh)
    (file,) = kept_files(fresh)
    columns = {shape[1] for shape in tensor_shapes(file).values()}
    assert tensor_shapes(file).keys() == {"C1", "C2", "C3", "C4"}
    assert columns in ({16}, {32})
    written = file.stat().st_mtime_ns
    np.testing.assert_array_equal(predictions(fresh), first)
    assert kept_files(fresh) == [file]
    assert file.stat().st_mtime_ns == written


def test_a_damaged_file_is_named(fresh):
    predictions(fresh)
    (file,) = kept_files(fresh)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"{file.name} is damaged"):
        predictions(fresh)
    file.unlink()
    predictions(fresh)


@pytest.mark.parametrize("options", [ServingOptions(), ServingOptions(tables="fp16")])
def test_a_folder_that_cannot_be_written(table_run, hashed_runs, tmp_path, monkeypatch, options):
    kind = table_run if options.tables == "fp16" else hashed_runs["dhe"]
    shutil.copytree(kind, tmp_path / "run", symlinks=True, ignore=shutil.ignore_patterns("served_*"))
    expected = predictions(kind, options)
    monkeypatch.setattr("recsys_opt.serving.kept.os.access", lambda path, mode: False)
    np.testing.assert_array_equal(predictions(tmp_path / "run", options), expected)
    assert kept_files(tmp_path / "run") == []


def test_nothing_to_keep(hashed_runs):
    with pytest.raises(InputError, match="no table of the model has stored rows to keep in float16"):
        load_frozen(hashed_runs["dhe"], ServingOptions(tables="fp16"))
