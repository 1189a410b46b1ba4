"""Ids and dense values of prepare against slow, obvious implementations in pandas."""

from pathlib import Path

import numpy as np
import pytest

from recsys_opt.bench.criteo_text import write_rows
from recsys_opt.data.criteo import DENSE_COLUMNS, SPARSE_COLUMNS, HashedIds, VocabularyIds, hash_values
from recsys_opt.data.dataset import Dataset
from recsys_opt.data.descriptor import load_descriptor
from recsys_opt.data.prepare import PrepareOptions, prepare

pd = pytest.importorskip("pandas")


def read(path: Path) -> "pd.DataFrame":
    return pd.read_csv(
        path,
        sep="\t",
        header=None,
        names=["label", *DENSE_COLUMNS, *SPARSE_COLUMNS],
        dtype=str,
        na_filter=False,
    )


def expected_vocabulary_ids(values: "pd.Series", min_count: int) -> tuple[np.ndarray, int]:
    present = values[values != ""]
    counts = present.value_counts().reset_index()
    counts.columns = ["value", "n"]
    counts = counts[counts.n >= min_count].sort_values(["n", "value"], ascending=[False, True])
    ids = {value: i for i, value in enumerate(counts.value, start=2)}
    return values.map(lambda v: 0 if v == "" else ids.get(v, 1)).to_numpy(), len(ids) + 2


@pytest.fixture(params=["real", "generated"])
def text(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "real":
        path: Path = request.getfixturevalue("criteo_sample")
        return path

    return write_rows(tmp_path / "train.txt", rows=3000, seed=5)


@pytest.mark.parametrize("min_count", [1, 3])
def test_vocabulary_ids_equal_those_of_pandas(text: Path, tmp_path: Path, min_count: int) -> None:
    prepare([text], tmp_path / "out", PrepareOptions(ids=VocabularyIds(min_count)))
    dataset = Dataset(tmp_path / "out")
    sparse = dataset.arrays("train").sparse
    frame = read(text)
    for i, column in enumerate(dataset.info.sparse_columns):
        ids, n = expected_vocabulary_ids(frame[column.name], min_count)
        assert column.num_embeddings == n
        np.testing.assert_array_equal(sparse[:, i], ids)


def test_hashed_ids_equal_those_of_numpy(text: Path, tmp_path: Path) -> None:
    cardinalities = load_descriptor("criteo_kaggle").cardinalities["kaggle"]
    prepare([text], tmp_path / "out", PrepareOptions(ids=HashedIds(cardinalities)))
    sparse = Dataset(tmp_path / "out").arrays("train").sparse
    frame = read(text)
    for i, name in enumerate(SPARSE_COLUMNS):
        missing = (frame[name] == "").to_numpy()
        values = np.array([int(v or "0", 16) for v in frame[name]], dtype=np.uint32)
        expected = np.where(missing, 0, hash_values(values, cardinalities[i]))
        np.testing.assert_array_equal(sparse[:, i], expected)
        assert expected.max() < cardinalities[i]


@pytest.mark.parametrize("transform", ["dlrm", "torchrec"])
def test_labels_and_dense_values_equal_those_of_numpy(text: Path, tmp_path: Path, transform: str) -> None:
    prepare([text], tmp_path / "out", PrepareOptions(dense_transform=transform))  # type: ignore[arg-type]
    arrays = Dataset(tmp_path / "out").arrays("train")
    frame = read(text)
    integers = frame[list(DENSE_COLUMNS)].replace("", "0").astype(np.int64).to_numpy()
    if transform == "dlrm":
        expected = np.log(np.maximum(integers, 0).astype(np.float32) + 1)
    else:
        expected = np.log((integers - (integers.min() - 2)).astype(np.float32))
    np.testing.assert_allclose(arrays.dense, expected, rtol=3e-7)
    assert arrays.labels is not None
    np.testing.assert_array_equal(arrays.labels[:, 0], frame.label.astype(int))
