"""A small dataset with something to learn, made by numpy alone, for tests of what comes after the data."""

from pathlib import Path

import numpy as np

from recsys_opt.data.dataset import Dataset, DatasetInfo, Part, SparseColumn, array_path, write_dataset_info

COLUMNS = (4, 60, 700, 5000)


def make_dataset(
    folder: Path, rows: int = 6000, *, seed: int = 0, columns: tuple[int, ...] = COLUMNS
) -> Dataset:
    """`rows` rows in two parts, split 80/10/10 in order; the label depends on ids and dense columns."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    dense = np.log1p(rng.exponential(5.0, (rows, 3))).astype(np.float32)
    sparse = np.stack([(n * rng.random(rows) ** 4).astype(np.int32) for n in columns], axis=1)
    logit = -1.5 + 0.4 * (dense[:, 0] - dense[:, 1])
    for c, n in enumerate(columns):
        logit += np.random.default_rng(100 + c).normal(0, 0.8, n)[sparse[:, c]]
    labels = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int32)[:, None]
    middle = rows * 5 // 8
    for name, part in (("a", slice(0, middle)), ("b", slice(middle, rows))):
        np.save(array_path(folder, name, "dense"), dense[part])
        np.save(array_path(folder, name, "sparse"), sparse[part])
        np.save(array_path(folder, name, "labels"), labels[part])
    first, second = rows * 8 // 10, rows * 9 // 10
    info = DatasetInfo(
        name="generated",
        dense_columns=("I1", "I2", "I3"),
        sparse_columns=tuple(SparseColumn(f"C{i + 1}", n) for i, n in enumerate(columns)),
        parts=(Part("a", middle), Part("b", rows - middle)),
        splits={"train": (0, first), "validation": (first, second), "test": (second, rows)},
        ids={"method": "synthetic"},
        dense_transform="none",
        input_hash=f"seed {seed}, rows {rows}",
        bayes={"test": {"auc": 0.85, "logloss": 0.4}},
    )
    write_dataset_info(folder, info)
    return Dataset(folder)
