import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from recsys_opt.cli.main import main
from recsys_opt.data.dataset import Dataset, array_path
from recsys_opt.data.id_order import FILE_NAME, ORDERS, read_orders
from recsys_opt.data.reorder import reorder
from recsys_opt.errors import InputError
from recsys_opt.training.config import recipe, replaced
from recsys_opt.training.trainer import train
from tests.generated import COLUMNS, make_dataset


@pytest.fixture
def data(tmp_path):
    return make_dataset(tmp_path / "data")


def rows_of(dataset):
    parts = dataset.labelled_arrays()
    return [np.concatenate([getattr(p, kind) for p in parts]) for kind in ("sparse", "dense", "labels")]


@pytest.mark.parametrize("by", ORDERS)
@pytest.mark.parametrize("memory_bytes", [1, 1 << 30])
def test_the_same_rows_under_new_ids(data, tmp_path, by, memory_bytes):
    info = reorder(data, tmp_path / "new", by, memory_bytes=memory_bytes)
    new = Dataset(tmp_path / "new")
    assert new.info == info
    assert (info.splits, info.parts, info.sparse_columns) == (
        data.info.splits,
        data.info.parts,
        data.info.sparse_columns,
    )
    assert info.input_hash != data.info.input_hash
    (sparse, dense, labels), (old_sparse, old_dense, old_labels) = rows_of(new), rows_of(data)
    np.testing.assert_array_equal(dense, old_dense)
    np.testing.assert_array_equal(labels, old_labels)
    orders = read_orders(new.path, COLUMNS, new.info.ids)
    for column, order in enumerate(orders):
        np.testing.assert_array_equal(order.new_ids()[old_sparse[:, column]], sparse[:, column])
        np.testing.assert_array_equal(order.old_ids()[sparse[:, column]], old_sparse[:, column])


def test_frequent_ids_come_first_and_only_training_rows_decide(data, tmp_path):
    reorder(data, tmp_path / "a", "frequency")
    sparse = rows_of(Dataset(tmp_path / "a"))[0][:4800]
    for column in range(len(COLUMNS)):
        counts = np.bincount(sparse[:, column], minlength=COLUMNS[column])
        assert (np.diff(counts) <= 0).all()
    # Other ids in the validation and test rows: the same order.
    path = array_path(data.path, "b", "sparse")
    changed = np.load(path)
    changed[4800 - 3750 :] = 0
    np.save(path, changed)
    reorder(Dataset(data.path), tmp_path / "b", "frequency")
    assert (tmp_path / "a" / FILE_NAME).read_bytes() == (tmp_path / "b" / FILE_NAME).read_bytes()


def test_training_on_other_names_of_the_same_ids_is_as_good(data, tmp_path):
    """Dense tables do not mind the order; their rows start otherwise, so nearly alike is all there is."""
    reorder(data, tmp_path / "new", "frequency")
    config = replaced(
        recipe("criteo_kaggle"), {"architecture.bottom_mlp": (16, 8), "architecture.top_mlp": (16, 1)}
    )
    a, b = (train(config, path, tmp_path / f"run{i}") for i, path in enumerate((data.path, tmp_path / "new")))
    assert a.test.auc == pytest.approx(b.test.auc, abs=0.03)


def test_repeating_does_nothing_and_another_order_needs_another_folder(data, tmp_path):
    out = tmp_path / "new"
    info = reorder(data, out, "frequency")
    before = os.stat(out / "a_sparse.npy").st_mtime_ns
    assert reorder(data, out, "frequency") == info
    assert os.stat(out / "a_sparse.npy").st_mtime_ns == before
    with pytest.raises(InputError, match="holds another dataset"):
        reorder(data, out, "cooccurrence")
    with pytest.raises(InputError, match="reorder the dataset it was made from"):
        reorder(Dataset(out), tmp_path / "third", "frequency")
    with pytest.raises(InputError, match="keeps the ids"):
        read_orders(data.path, COLUMNS, data.info.ids)


def test_refusals(data, tmp_path):
    with pytest.raises(InputError, match="batch_size = 0"):
        reorder(data, tmp_path / "new", "cooccurrence", batch_size=0)
    with pytest.raises(InputError, match="choose one of frequency"):
        reorder(data, tmp_path / "new", "size")
    with pytest.raises(InputError, match="into the old one"):
        reorder(data, data.path, "frequency")
    path = array_path(data.path, "a", "sparse")
    sparse = np.load(path)
    sparse[3, 1] = 60
    np.save(path, sparse)
    with pytest.raises(InputError, match="column C2: id 60 is outside"):
        reorder(Dataset(data.path), tmp_path / "new", "frequency")
    assert not (tmp_path / "new" / "dataset.json").exists()


def test_a_damaged_order_is_refused(data, tmp_path):
    info = reorder(data, tmp_path / "new", "frequency")
    path = tmp_path / "new" / FILE_NAME
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match="id_order"):
        read_orders(tmp_path / "new", COLUMNS, info.ids)


def test_read_only_sources_are_copied(data, tmp_path):
    path = array_path(data.path, "a", "dense")
    path.chmod(0o444)
    reorder(data, tmp_path / "new", "frequency")
    np.testing.assert_array_equal(np.load(array_path(tmp_path / "new", "a", "dense")), np.load(path))


def test_the_command(data, tmp_path, capsys):
    out = tmp_path / "new"
    assert main(["data", "reorder", str(data.path), "--by", "cooccurrence", "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["order"]["by"] == "cooccurrence"
    assert result["order"]["rows"] == [0, 4800]
    assert sum(result["order"]["ranked"]) == result["seen_ids"] <= result["ids"] == sum(COLUMNS)
    assert main(["data", "reorder", str(out), "--out", str(tmp_path / "third")]) == 2


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_no_half_dataset(tmp_path):
    data = make_dataset(tmp_path / "data", rows=100_000, columns=(40, 6000, 2_000_000))
    reorder(data, tmp_path / "whole", "frequency")
    out = tmp_path / "new"
    command = [sys.executable, "-m", "recsys_opt.cli.main", "data", "reorder", str(data.path)]
    began = time.monotonic()
    subprocess.run([*command, "--out", str(tmp_path / "timed")], check=True, capture_output=True)
    whole_s = time.monotonic() - began
    for share in (0.7, 0.85, 0.95):
        process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.DEVNULL)
        time.sleep(share * whole_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (out / "dataset.json").exists():
            break
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    for file in (tmp_path / "whole").glob("[!.]*"):
        assert (out / file.name).read_bytes() == file.read_bytes()
