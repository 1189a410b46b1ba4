"""The generator: any row alone, one result whatever the threads, datasets that open, labels as promised."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recsys_opt._synth as _synth
from recsys_opt.data.bayes import Scores, bayes
from recsys_opt.data.dataset import FILE_NAME, Dataset
from recsys_opt.data.statistics import read_statistics
from recsys_opt.data.synth import Rows, SyntheticCriteo, write_dataset
from recsys_opt.errors import InputError, RecsysOptError

KAGGLE_IDS = 33_762_577


@pytest.fixture(scope="module")
def source() -> SyntheticCriteo:
    return SyntheticCriteo(100_000, seed=3)


@pytest.fixture(scope="module")
def rows(source: SyntheticCriteo) -> Rows:
    return source.rows(0, source.num_rows)


def assert_equal(a: Rows, b: Rows) -> None:
    for name, x, y in zip(Rows._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


@settings(max_examples=40)
@given(start=st.integers(0, 100_000), length=st.integers(0, 1500), threads=st.integers(1, 4))
def test_any_range_alone_equals_the_whole_run(
    source: SyntheticCriteo, rows: Rows, start: int, length: int, threads: int
) -> None:
    stop = min(start + length, source.num_rows)
    assert_equal(source.rows(start, stop, threads=threads), Rows(*(a[start:stop] for a in rows)))


@settings(max_examples=15)
@given(seed=st.integers(0, (1 << 63) - 1), total=st.integers(1, 1 << 40), data=st.data())
def test_any_seed_and_size_gives_rows_in_range(seed: int, total: int, data: st.DataObject) -> None:
    source = SyntheticCriteo(total, seed=seed, max_cardinality=data.draw(st.sampled_from([None, 2, 3, 1000])))
    start = data.draw(st.integers(0, total - 1))
    made = source.rows(start, min(start + 700, total))
    sizes = np.array([c.num_embeddings for c in source.sparse_columns])
    assert (made.sparse >= 0).all()
    assert (made.sparse < sizes).all()
    assert np.isfinite(made.dense).all()
    assert (made.dense >= 0).all()
    assert set(np.unique(made.labels)) <= {0, 1}
    assert ((made.probabilities > 0) & (made.probabilities < 1)).all()


def test_published_cardinalities_and_both_ends_of_the_largest_table(
    rows: Rows, source: SyntheticCriteo
) -> None:
    assert sum(c.num_embeddings for c in source.sparse_columns) == KAGGLE_IDS
    c3 = rows.sparse[:, 2]
    assert c3.max() > 0.99 * source.sparse_columns[2].num_embeddings  # ~40 % of draws are from the rare ids
    assert (c3 == 1).sum() > 1000


def test_seeds_differ_and_seeds_agree() -> None:
    a, b = SyntheticCriteo(2000, seed=1).rows(0, 2000), SyntheticCriteo(2000, seed=2).rows(0, 2000)
    assert (a.sparse != b.sparse).mean() > 0.5
    assert_equal(a, SyntheticCriteo(2000, seed=1).rows(0, 2000))


def test_dense_is_the_log_of_the_integers(rows: Rows) -> None:
    present = rows.integers != _synth.MISSING
    expected = np.where(present, np.log1p(np.maximum(rows.integers, 0).astype(np.float64)), 0)
    np.testing.assert_allclose(rows.dense, expected, rtol=1e-6)
    assert (rows.integers[present] < 0).any()  # I2 has negatives, as in the real rows


def test_labels_are_drawn_with_the_probabilities_given(rows: Rows) -> None:
    # In 20 groups of rising probability, clicks are binomial: 5 standard deviations never happen.
    p, y = rows.probabilities.ravel(), rows.labels.ravel()
    for group in np.array_split(np.argsort(p), 20):
        deviation = (y[group] - p[group]).sum() / np.sqrt((p[group] * (1 - p[group])).sum())
        assert abs(deviation) < 5


def test_bayes_against_exact_computation(rows: Rows) -> None:
    p, y = rows.probabilities.ravel()[:20_000], rows.labels.ravel()[:20_000]
    found = bayes(Scores.of_probabilities(p, y))
    order = np.argsort(p, kind="stable")
    rank = np.empty(len(p))
    rank[order] = np.arange(1, len(p) + 1)
    positives = int(y.sum())
    exact_auc = (rank[y == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(p) - positives))
    assert found["auc"] == pytest.approx(exact_auc, abs=2e-6)
    assert found["logloss"] == pytest.approx(float(-np.log(np.where(y == 1, p, 1 - p)).mean()), abs=2e-6)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
    assert found["expected_logloss"] == pytest.approx(entropy, abs=1e-6)
    sorted_p = p[order]
    below = np.concatenate([[0.0], np.cumsum(1 - sorted_p)[:-1]])
    expected = (sorted_p * (below + 0.5 * (1 - sorted_p))).sum() / (p.sum() * (1 - p).sum())
    assert found["expected_auc"] == pytest.approx(expected, abs=1e-6)


def test_bayes_figures_are_near_the_target(rows: Rows) -> None:
    # Calibrated to .805 and .2568 on one seed; the ids' effects are drawn anew with each seed.
    found = bayes(Scores.of_probabilities(rows.probabilities.ravel(), rows.labels.ravel()))
    assert found["expected_auc"] == pytest.approx(0.805, abs=0.02)
    assert found["expected_click_rate"] == pytest.approx(0.2568, abs=0.03)


def test_dataset_opens_and_holds_the_rows(tmp_path: Path) -> None:
    source = SyntheticCriteo(9_999, seed=5, max_cardinality=5000)
    info = write_dataset(source, tmp_path / "d", threads=3)
    dataset = Dataset(tmp_path / "d")
    assert dataset.info == dataclasses.replace(info, bayes=json.loads(json.dumps(info.bayes)))
    assert dataset.info.splits == {"train": (0, 7999), "validation": (7999, 8999), "test": (8999, 9999)}
    arrays, expected = dataset.arrays("train"), source.rows(0, 9_999, threads=1)
    np.testing.assert_array_equal(arrays.dense, expected.dense)
    np.testing.assert_array_equal(arrays.sparse, expected.sparse)
    assert arrays.labels is not None
    np.testing.assert_array_equal(arrays.labels, expected.labels)
    test = slice(8999, 9999)
    again = bayes(
        Scores.of_probabilities(expected.probabilities[test].ravel(), expected.labels[test].ravel())
    )
    assert dataset.info.bayes is not None
    assert dataset.info.bayes["test"]["auc"] == pytest.approx(again["auc"], abs=1e-5)
    assert dataset.info.bayes["test"]["logloss"] == pytest.approx(again["logloss"], abs=1e-5)


def test_same_call_again_is_done_and_another_is_refused(tmp_path: Path) -> None:
    source = SyntheticCriteo(500)
    first = write_dataset(source, tmp_path)
    stamp = (tmp_path / "train_sparse.npy").stat().st_mtime_ns
    assert write_dataset(source, tmp_path).input_hash == first.input_hash
    assert (tmp_path / "train_sparse.npy").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="holds another dataset"):
        write_dataset(SyntheticCriteo(500, seed=1), tmp_path)


def test_killed_run_leaves_no_dataset_and_runs_again(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    command = [sys.executable, "-m", "recsys_opt.cli.main", "data", "synth", "--rows", "3000000"]
    process = subprocess.Popen([*command, "--out", str(folder)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(folder.glob(".*.partial")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / FILE_NAME).exists()
    with pytest.raises(InputError, match="not a whole dataset"):
        Dataset(folder)
    write_dataset(SyntheticCriteo(1000), folder)
    assert Dataset(folder).info.labelled_rows == 1000
    assert not list(folder.glob(".*.partial"))


def test_write_failure_is_one_error_and_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(SyntheticCriteo):
        def write(self, *args: object) -> Scores:  # type: ignore[override]
            raise OSError(28, "No space left on device")

    with pytest.raises(RecsysOptError, match="No space left on device"):
        write_dataset(Full(1000), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".lock"}


def test_native_write_reports_the_system_error(source: SyntheticCriteo) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        source.write(0, 5000, (full, full, full), (0, 0, 0), 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, "rows = 0"),
        ({"rows": -5}, "rows = -5"),
        ({"rows": 10, "seed": -1}, "seed = -1"),
        ({"rows": 10, "seed": 1 << 63}, "seed = "),
        ({"rows": 10, "max_cardinality": 1}, "max_cardinality = 1"),
        ({"rows": 10, "profile": "no_such"}, "no profile 'no_such'; known: .*criteo_kaggle"),
        ({"rows": 10, "profile": "no_such.json"}, "does not exist"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SyntheticCriteo(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("start_stop", [(-1, 5), (5, 4), (0, 100_001)])
def test_bad_ranges(source: SyntheticCriteo, start_stop: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="not within the 100000 rows"):
        source.rows(*start_stop)


def test_damaged_statistics_are_refused(tmp_path: Path) -> None:
    document = {"format": "recsys_opt.statistics", "version": 1, **read_statistics("criteo_kaggle").to_json()}
    path = tmp_path / "s.json"
    path.write_text(json.dumps(document | {"sparse": [{"name": "C1"}]}))
    with pytest.raises(InputError, match="does not hold statistics"):
        SyntheticCriteo(10, profile=path)
    document["dense"][0]["quantiles"] = [1, 2]
    document["dense"][0]["effect_edges"] = []
    path.write_text(json.dumps(document))
    with pytest.raises(InputError):
        SyntheticCriteo(10, profile=path)


def test_unfinished_prepare_is_not_written_over(tmp_path: Path):
    (tmp_path / ".prepare").mkdir()
    with pytest.raises(InputError, match="unfinished run of data prepare"):
        write_dataset(SyntheticCriteo(100), tmp_path)
    assert not list(tmp_path.glob("*.npy"))
