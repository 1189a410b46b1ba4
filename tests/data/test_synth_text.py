"""Generated rows as text: `data prepare` reads from it what was generated."""

import json

import numpy as np
import pytest

from recsys_opt.cli.main import main
from recsys_opt.data.criteo import HashedIds, VocabularyIds
from recsys_opt.data.dataset import Dataset
from recsys_opt.data.prepare import PrepareOptions, prepare
from recsys_opt.data.synth import SyntheticCriteo
from recsys_opt.data.synth_text import write_days
from recsys_opt.errors import InputError, RecsysOptError


@pytest.fixture(scope="module")
def source():
    return SyntheticCriteo(5000, seed=2, max_cardinality=3000)


@pytest.fixture(scope="module")
def text(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    assert [p.name for p in write_days(source, folder, 3)] == ["day_0", "day_1", "day_2"]
    return folder


def prepared(text, out, ids):
    prepare([text], out, PrepareOptions(ids=ids))
    dataset = Dataset(out)
    parts = list(dataset.labelled_arrays())
    return dataset, *(np.concatenate([getattr(p, k) for p in parts]) for k in ("labels", "dense", "sparse"))


def test_what_is_prepared_from_it_is_what_was_generated(source, text, tmp_path):
    rows = source.rows(0, 5000)
    dataset, labels, dense, sparse = prepared(text, tmp_path / "d", VocabularyIds(1))
    assert dataset.info.splits["train"] == (0, 3333)
    np.testing.assert_array_equal(labels, rows.labels)
    np.testing.assert_allclose(dense, rows.dense, atol=1e-6)
    for c, column in enumerate(source.statistics.sparse):
        missing = (rows.sparse[:, c] == 0) & (not column.never_missing)
        np.testing.assert_array_equal(sparse[:, c] == 0, missing)
        # An id has one value, and no two ids of a column have the same.
        pairs = np.unique(np.stack([rows.sparse[:, c], sparse[:, c]]), axis=1)
        assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


def test_hashed_ids_spread_over_the_table(text, tmp_path):
    *_, sparse = prepared(text, tmp_path / "d", HashedIds((1000,) * 26))
    wide = np.unique(sparse[:, 2])  # some 2,000 values in 999 rows: but for e^-2 of them, all are taken
    assert 700 < len(wide) < 1000


def test_the_text_does_not_depend_on_threads_or_slabs(source, monkeypatch, tmp_path):
    monkeypatch.setattr("recsys_opt.data.synth_text.SLAB_ROWS", 700)
    (path,) = write_days(source, tmp_path, 1, threads=3)
    assert path.read_bytes() == source.text(0, 5000, threads=1)
    lines = path.read_text().splitlines()
    assert len(lines) == 5000
    assert {line.count("\t") for line in lines} == {39}


def test_the_command(tmp_path, capsys):
    command = ["data", "synth", "--rows", "40", "--cardinalities", "terabyte-10m", "--text-days", "2"]
    assert main([*command, "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == sum((tmp_path / f"day_{d}").stat().st_size for d in (0, 1))
    assert main([*command, "--out", str(tmp_path)]) == 2
    assert "holds day_0" in capsys.readouterr().err


def test_bad_numbers_are_named(source, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="days = 0; it must be 1 to 1000"):
        write_days(source, tmp_path, 0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 5})())
    with pytest.raises(RecsysOptError, match="5 bytes free"):
        write_days(source, tmp_path, 1)
