import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_opt.data.batches import BatchStream
from recsys_opt.data.dataset import Dataset, DatasetInfo, Part, SparseColumn, array_path, write_dataset_info
from recsys_opt.errors import InputError

COLUMNS = 3


def make(folder: Path, rows: list[int]) -> Dataset:
    """Parts of the given sizes, whose every value names its row; an unlabelled part lies in between."""
    folder.mkdir(parents=True, exist_ok=True)
    parts, first = [], 0
    for i, n in enumerate(rows):
        row = np.arange(first, first + n)
        write(folder, f"part_{i}", row)
        np.save(array_path(folder, f"part_{i}", "labels"), (row % 2).astype(np.int32)[:, None])
        parts.append(Part(f"part_{i}", n))
        first += n
        if i == 0:
            write(folder, "unlabelled", np.arange(900, 905))
            parts.append(Part("unlabelled", 5, labelled=False))
    info = DatasetInfo(
        name="test",
        dense_columns=("I1", "I2"),
        sparse_columns=tuple(SparseColumn(f"C{c}", 1000) for c in range(COLUMNS)),
        parts=tuple(parts),
        splits={"train": (0, first)},
        ids={"method": "hash"},
        dense_transform="none",
    )
    write_dataset_info(folder, info)
    return Dataset(folder)


def write(folder: Path, part: str, row: np.ndarray) -> None:
    np.save(array_path(folder, part, "dense"), np.stack([row, -row], axis=1).astype(np.float32))
    np.save(
        array_path(folder, part, "sparse"),
        np.stack([row + 100 * c for c in range(COLUMNS)], axis=1).astype(np.int32),
    )


@settings(max_examples=40)
@given(
    rows=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    batch_size=st.integers(1, 12),
    bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_every_row_once_in_order(tmp_path_factory, rows, batch_size, bounds):
    dataset = make(tmp_path_factory.mktemp("dataset"), rows)
    total = sum(rows)
    start, stop = sorted(int(b * total) for b in bounds)
    stream = BatchStream(dataset, start, stop, batch_size)
    batches = list(stream)
    assert len(batches) == len(stream) == -(-(stop - start) // batch_size)
    assert all(b.rows == batch_size for b in batches[:-1])
    expected = start
    for batch in batches:
        row = torch.arange(expected, expected + batch.rows)
        assert batch.start == expected
        assert torch.equal(batch.dense, torch.stack([row, -row], 1).float())
        assert batch.values.dtype == torch.int32
        assert batch.values.is_contiguous()
        assert torch.equal(batch.values.view(COLUMNS, -1).long(), row + 100 * torch.arange(COLUMNS)[:, None])
        assert torch.equal(batch.labels, (row % 2).float())
        expected += batch.rows
    assert expected == stop


def test_leaving_early_ends_the_thread(tmp_path):
    stream = BatchStream(make(tmp_path, [50]), 0, 50, 1, prefetch=2)
    for batch in stream:
        if batch.start == 3:
            break
    assert not [t for t in threading.enumerate() if t.name == "batches"]


def test_a_fault_of_the_thread_reaches_the_consumer(tmp_path, monkeypatch):
    stream = BatchStream(make(tmp_path, [5]), 0, 5, 2)

    def fail(start: int, stop: int):
        raise OSError("the disk is gone")

    monkeypatch.setattr(stream, "read", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        list(stream)


@pytest.mark.parametrize(("start", "stop", "batch_size"), [(0, 6, 1), (-1, 2, 1), (3, 2, 1), (0, 5, 0)])
def test_refusals(tmp_path, start, stop, batch_size):
    with pytest.raises(InputError, match=r"batch_size|labelled rows"):
        BatchStream(make(tmp_path, [5]), start, stop, batch_size)
