"""Requests to measure with: real rows where there are some, else generated ones of the same cardinalities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys_opt.data.batches import BatchStream
from recsys_opt.data.dataset import Dataset
from recsys_opt.data.synth import SyntheticCriteo
from recsys_opt.errors import InputError
from recsys_opt.serving.profile import ServedModel

POOL_ROWS = 131_072
"""Rows that requests are drawn from: their ids' rows are several times what a cache holds."""
_SPLITS = ("test", "validation", "train")
_SKEW = 4.0


@dataclass(frozen=True)
class Samples:
    """Rows that requests are slices of."""

    dense: NDArray[np.float32]  # [N, dense_features]
    ids: NDArray[np.int32]  # [F, N]
    labels: NDArray[np.uint8] | None  # [N]
    what: str
    """For a reader: where the rows are from."""

    @property
    def rows(self) -> int:
        """N."""
        return len(self.dense)

    def request(self, size: int, start: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """`size` rows from `start` on, around the end, as a request's own arrays."""
        at = np.arange(start, start + size) % self.rows
        return self.dense[at], self.ids[:, at]


def dataset_samples(path: Path | str, model: ServedModel, limit: int = POOL_ROWS) -> Samples:
    """The first rows of a dataset's test split, or of the next split that has some."""
    dataset = Dataset(path)
    columns = tuple(c.num_embeddings for c in dataset.info.sparse_columns)
    numbers = len(dataset.info.dense_columns)
    if columns != model.cardinalities or numbers != model.dense_features:
        raise InputError(
            f"{path} has {numbers} dense columns and columns of {list(columns)} ids; the model has "
            f"{model.dense_features} and {list(model.cardinalities)}: name the dataset that it was trained on"
        )
    for split in _SPLITS:
        start, stop = dataset.info.splits.get(split, (0, 0))
        if stop > start:
            batch = BatchStream(dataset, start, stop, 1).read(start, min(stop, start + limit))
            ids = batch.values.view(len(columns), batch.rows).numpy()
            labels = batch.labels.numpy().astype(np.uint8)
            what = f"{batch.rows:,} rows of the {split} split of {dataset.info.name}"
            return Samples(batch.dense.numpy(), ids, labels, what)
    raise InputError(f"{path} has no labelled rows to measure with; name another dataset with --data")


def generated_samples(model: ServedModel, rows: int = POOL_ROWS, seed: int = 0) -> Samples:
    """Criteo's columns where the model has them, else ids by a power law; labels of neither."""
    criteo = SyntheticCriteo(rows, seed=seed)
    if (
        tuple(c.num_embeddings for c in criteo.sparse_columns) == model.cardinalities
        and len(criteo.dense_columns) == model.dense_features
    ):
        made = criteo.rows(0, rows)
        ids = np.ascontiguousarray(made.sparse.T)
        return Samples(made.dense, ids, None, f"{rows:,} generated rows like Criteo Kaggle's")
    rng = np.random.default_rng(seed)
    dense = np.log1p(rng.exponential(5.0, (rows, model.dense_features))).astype(np.float32)
    ids = np.stack([(n * rng.random(rows) ** _SKEW).astype(np.int32) for n in model.cardinalities])
    ids = np.minimum(ids, model.rows[:, None] - 1).astype(np.int32)
    return Samples(dense, ids, None, f"{rows:,} rows of ids by a power law")
