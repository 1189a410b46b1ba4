"""torchrec's own Criteo reader takes the files of prepare."""

from pathlib import Path

import numpy as np
import pytest

from recsys_opt.bench.criteo_text import write_rows
from recsys_opt.data.dataset import Dataset, array_path
from recsys_opt.data.prepare import PrepareOptions, prepare

criteo = pytest.importorskip("torchrec.datasets.criteo")
pytest.importorskip("iopath")


def read_back(folder: Path, parts: list[str], stage: str, batch_size: int) -> dict[str, np.ndarray]:
    pipe = criteo.InMemoryBinaryCriteoIterDataPipe(
        stage,
        *([str(array_path(folder, part, kind)) for part in parts] for kind in ("dense", "sparse", "labels")),
        batch_size=batch_size,
        rank=0,
        world_size=1,
    )
    batches = list(pipe)
    return {
        "dense": np.concatenate([b.dense_features.numpy() for b in batches]),
        "labels": np.concatenate([b.labels.numpy() for b in batches]),
        "sparse": np.concatenate([b.sparse_features.values().view(26, -1).T.numpy() for b in batches]),
    }


def test_torchrec_reads_the_days_with_the_same_values(tmp_path: Path) -> None:
    for day in range(3):
        write_rows(tmp_path / f"day_{day}", 64 + 7 * day, seed=day)
    out = tmp_path / "out"
    prepare([tmp_path / f"day_{d}" for d in range(3)], out, PrepareOptions(dense_transform="torchrec"))
    dataset = Dataset(out)
    found = read_back(out, ["day_0", "day_1"], "train", 16)
    for kind in ("dense", "sparse"):
        mine = np.concatenate([getattr(dataset.arrays(f"day_{d}"), kind) for d in range(2)])
        np.testing.assert_array_equal(found[kind], mine)
    labels = np.concatenate([a.labels[:, 0] for a in dataset.labelled_arrays()[:2] if a.labels is not None])
    np.testing.assert_array_equal(found["labels"].reshape(-1), labels)
    # Its halves of the last day are our validation and test splits.
    last = dataset.arrays("day_2")
    start = 64 + 71
    for stage, split in (("val", "validation"), ("test", "test")):
        a, b = dataset.split(split)
        np.testing.assert_array_equal(
            read_back(out, ["day_2"], stage, 8)["sparse"], last.sparse[a - start : b - start]
        )


def test_torchrecs_own_conversion_gives_the_same_dense_values_and_labels(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.txt", 300, seed=4)
    prepare([path], tmp_path / "out", PrepareOptions(dense_transform="torchrec"))
    arrays = Dataset(tmp_path / "out").arrays("train")
    theirs = [tmp_path / f"{kind}.npy" for kind in ("dense", "sparse", "labels")]
    criteo.BinaryCriteoUtils.tsv_to_npys(str(path), *map(str, theirs), dataset_name="criteo_1tb")
    np.testing.assert_allclose(arrays.dense, np.load(theirs[0]), rtol=3e-7)
    np.testing.assert_array_equal(arrays.labels, np.load(theirs[2]))
